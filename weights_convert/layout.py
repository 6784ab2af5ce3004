"""What a layout is, and how its keys become those of refvit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refvit.errors import WeightsError
from refvit.graph.ir import Array
from refvit.weights.check import SHOWN

ROWS = re.compile(r"\(\?P<rows>([\w|]+)\)")


@dataclass(frozen=True)
class Rule:
    """Source keys that match `pattern` (the whole key) become `target`, a template for re.Match.expand; None drops them.

    A group (?P<rows>a|b|c) in the pattern says that the keys with a, b and c are stacked on rows, in this order, to one target.
    A * in the target says that the source holds all layers: entry i of its first axis becomes the target with i for *.
    change: done to each array on the way; a ValueError of it says what is wrong with the shape
    refusal: keys that match are refused with this sentence, whose subject is the key
    """

    pattern: str
    target: str | None
    change: Callable[[Array], Array] | None = None
    refusal: str = ""

    def sources(self, match: re.Match[str]) -> tuple[str, ...]:
        """All keys that go into the target of the one that matched, in their order."""
        key = match.string
        if (rows := ROWS.search(self.pattern)) is None:
            return (key,)
        start, end = match.span("rows")
        return tuple(key[:start] + name + key[end:] for name in rows[1].split("|"))

    def targets(self, target: str, arrays: Sequence[Array]) -> dict[str, Array]:
        """What the arrays of all sources, of one shape, become. ValueError if they have another number of axes."""
        if "*" not in target:
            changed = [self.change(a) if self.change else a for a in arrays]
            return {target: changed[0] if len(changed) == 1 else np.concatenate(changed)}
        count = len(arrays[0]) if arrays[0].ndim else 0
        if not 0 < count <= arrays[0].size:
            raise ValueError("a first axis of layers expected")
        layers: dict[str, Array] = {}
        for i in range(count):
            layers |= self.targets(target.replace("*", str(i)), [a[i] for a in arrays])
        return layers


@dataclass(frozen=True)
class Layout:
    """A family's names as one project publishes them.

    `signature` keys are in every checkpoint of the layout and together in no other. `rules` are tried in order; the first that
    matches a key decides. `config` reads from the renamed tensors what the architecture leaves open (the number of classes)
    or sets what the layout implies; a value of None says that somebody has to tell. `preprocess(model, config)` and
    `postprocess(model, config)` are the evaluation of the published weights. `assumed(model, config)` says, by field, what the
    published checkpoints are known to be and the tensors do not tell. All keys of a checkpoint start with the same one of
    `prefixes`, which signature and rules leave out.
    """

    name: str
    models: tuple[str, ...]  # registry names it can hold
    signature: frozenset[str]
    rules: tuple[Rule, ...]
    config: Callable[[Mapping[str, Array]], dict[str, Any]]
    preprocess: Callable[[str, Any], Mapping[str, Any]]
    prefixes: tuple[str, ...] = ("",)
    postprocess: Callable[[str, Any], Mapping[str, Any]] = lambda model, config: {}
    assumed: Callable[[str, Any], Mapping[str, str]] = lambda model, config: {}

    def matches(self, state: Mapping[str, Array]) -> bool:
        return self._prefix(state) is not None

    def rename(self, state: Mapping[str, Array]) -> dict[str, Array]:
        """The tensors under canonical names. WeightsError if a key fits no rule, two become one, or rows are incomplete."""
        prefix = self._prefix(state) or ""
        found: dict[str, tuple[Rule, tuple[str, ...]]] = {}
        for key in state:
            rule, match = self._match(prefix, key)
            if rule.target is None:
                continue
            target, sources = match.expand(rule.target), rule.sources(match)
            if found.setdefault(target, (rule, sources)) != (rule, sources):
                raise WeightsError(f"layout {self.name}: {found[target][1][0]!r} and {key!r} both become {target!r}")
        renamed: dict[str, Array] = {}
        problems: list[str] = []
        for target, (rule, sources) in found.items():
            arrays = [state[key] for key in sources if key in state]
            missing = [f"missing {key} {arrays[0].shape}" for key in sources if key not in state]
            if missing:
                problems += missing
            elif len({(a.shape, a.dtype) for a in arrays}) > 1:
                each = ", ".join(f"{key} {state[key].shape} {state[key].dtype}" for key in sources)
                problems.append(f"one shape and dtype expected of {each}")
            else:
                try:
                    renamed |= rule.targets(target, arrays)
                except ValueError as error:
                    problems.append(f"{' and '.join(sources)} of shape {arrays[0].shape}: {error}")
        if problems:
            more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise WeightsError(f"layout {self.name}: {'; '.join(problems[:SHOWN])}{more}")
        return renamed

    def _prefix(self, state: Mapping[str, Array]) -> str | None:
        return next((p for p in self.prefixes if {p + key for key in self.signature} <= state.keys()), None)

    def _match(self, prefix: str, key: str) -> tuple[Rule, re.Match[str]]:
        for rule in self.rules:
            match = re.compile(rule.pattern).fullmatch(key, len(prefix)) if key.startswith(prefix) else None
            if match and rule.refusal:
                raise WeightsError(f"layout {self.name}: {key!r} {rule.refusal}")
            if match:
                return rule, match
        raise WeightsError(f"layout {self.name}: {key!r} belongs to no tensor of it")


DROP = Rule(r".*\.num_batches_tracked", None)  # bookkeeping of training
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENCV = "opencv_bilinear"  # the interpolation of whoever reads images by OpenCV
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


def classes_of(*names: str) -> Callable[[Mapping[str, Array]], dict[str, Any]]:
    """A `config` that reads the number of classes off the first of these weights (classes, ...) that is there."""

    def config(params: Mapping[str, Array]) -> dict[str, Any]:
        heads = [params[name] for name in names if name in params and params[name].ndim and len(params[name])]
        return {"num_classes": heads[0].shape[0]} if heads else {}

    return config
