"""What a layout is, and how its keys are renamed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from refvit.errors import WeightsError
from refvit.graph.ir import Array


@dataclass(frozen=True)
class Rule:
    """Source keys that match `pattern` (the whole key) become `target`, a template for re.Match.expand; None drops them."""

    pattern: str
    target: str | None


@dataclass(frozen=True)
class Layout:
    """A family's names as one project publishes them.

    `signature` keys are in every checkpoint of the layout and together in no other. `rules` are tried in order; the first that
    matches a key decides. `config` reads from the renamed tensors what the architecture leaves open (the number of classes) or
    sets what the layout implies, and `preprocess(model, config)` is the evaluation transform of the published weights.
    """

    name: str
    models: tuple[str, ...]  # registry names it can hold
    signature: frozenset[str]
    rules: tuple[Rule, ...]
    config: Callable[[Mapping[str, Array]], dict[str, Any]]
    preprocess: Callable[[str, Any], Mapping[str, Any]]

    def matches(self, state: Mapping[str, Array]) -> bool:
        return self.signature <= state.keys()

    def rename(self, state: Mapping[str, Array]) -> dict[str, Array]:
        """The tensors under canonical names. WeightsError if a key fits no rule or two keys become one."""
        renamed: dict[str, Array] = {}
        origin: dict[str, str] = {}
        for key, array in state.items():
            target = self._target(key)
            if target is None:
                continue
            if target in renamed:
                raise WeightsError(f"layout {self.name}: {origin[target]!r} and {key!r} both become {target!r}")
            renamed[target], origin[target] = array, key
        return renamed

    def _target(self, key: str) -> str | None:
        for rule in self.rules:
            if match := re.fullmatch(rule.pattern, key):
                return None if rule.target is None else match.expand(rule.target)
        raise WeightsError(f"layout {self.name}: {key!r} belongs to no tensor of it")


DROP = Rule(r".*\.num_batches_tracked", None)  # bookkeeping of training
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NO_MEAN, NO_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def evaluation(
    crop: int | None,
    resize: int | tuple[int, int] | None,
    interpolation: str = "bilinear",
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    channel_order: str = "rgb",
) -> dict[str, Any]:
    """The fields of Preprocess for the usual transform: resize, centre crop, normalise."""
    return {
        "resize": resize,
        "crop": crop,
        "enlarge": None,
        "interpolation": interpolation,
        "mean": mean,
        "std": std,
        "channel_order": channel_order,
    }


def whole_image(model: str, config: Any) -> dict[str, Any]:
    """A `preprocess` that keeps the size, for segmentation."""
    return evaluation(None, None)


def classes_of(*names: str) -> Callable[[Mapping[str, Array]], dict[str, Any]]:
    """A `config` that reads the number of classes off the first of these weights (classes, ...) that is there."""

    def config(params: Mapping[str, Array]) -> dict[str, Any]:
        heads = [params[name] for name in names if name in params and params[name].ndim and len(params[name])]
        return {"num_classes": heads[0].shape[0]} if heads else {}

    return config
