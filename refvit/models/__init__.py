"""Every model by name: what it is, what it computes, what parameters it has."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from refvit.errors import UnknownModelError
from refvit.graph.ir import Shape
from refvit.models import mobilevit, vit


@dataclass(frozen=True)
class Architecture:
    """A model without weights. `forward(x, p, config=...)` is the model; `parameters(config)` lists names and shapes."""

    name: str
    task: str
    config: Any
    input_size: tuple[int, int]  # (h, w) of the published evaluation
    forward: Callable[..., Any]
    parameters: Callable[[Any], Iterable[tuple[str, Shape]]]


ARCHITECTURES = {
    name: Architecture(name, "classification", config, (256, 256), mobilevit.mobilevit, mobilevit.parameters)
    for name, config in mobilevit.VARIANTS.items()
}
for _name, _config in vit.VARIANTS.items():
    _side = _config.image_size
    ARCHITECTURES[_name] = Architecture(_name, "classification", _config, (_side, _side), vit.vit, vit.parameters)


def architecture(name: str) -> Architecture:
    """The entry of `name`; UnknownModelError suggests the nearest names."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = difflib.get_close_matches(name, ARCHITECTURES, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(ARCHITECTURES)}"
    raise UnknownModelError(f"unknown model {name!r}; {hint}")


def matching(pattern: str) -> list[Architecture]:
    """The entries whose names match a wildcard pattern, in the order of the registry."""
    return [a for name, a in ARCHITECTURES.items() if fnmatch.fnmatchcase(name, pattern)]
