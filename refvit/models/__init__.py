"""Every model by name: what it is, what it computes, what parameters it has."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from refvit.errors import ConfigError, UnknownModelError
from refvit.graph.ir import Shape
from refvit.models import hrnet, hrvit, mobilevit, vit
from refvit.models import hrnet_heads as high
from refvit.models import hrvit_heads as cross
from refvit.models import mobilevit_heads as seen


@dataclass(frozen=True)
class Architecture:
    """A model without weights. `forward(x, p, config=...)` is the model; `parameters(config)` lists names and shapes.

    options: fields of the config that a checkpoint's tensors do not tell, so that a caller may
    multiple: sides of the input that `infer` pads to multiples of this
    """

    name: str
    task: str
    config: Any
    input_size: tuple[int, int]  # (h, w) of the published evaluation
    forward: Callable[..., Any]
    parameters: Callable[[Any], Iterable[tuple[str, Shape]]]
    options: tuple[str, ...] = ()
    multiple: int = 1


def _family(
    variants: Mapping[str, Any],
    forward: Callable[..., Any],
    parameters: Callable[[Any], Iterable[tuple[str, Shape]]],
    task: str,
    size: tuple[int, int] | None,
    **more: Any,
) -> dict[str, Architecture]:
    """size None: the config's own."""
    return {
        name: Architecture(name, task, config, size or (config.image_size,) * 2, forward, parameters, **more)
        for name, config in variants.items()
    }


CLASSES, PIXELS, BOXES, JOINTS = "classification", "segmentation", "detection", "pose"
ALIGN, STREET = ("align_corners",), (1024, 2048)
POSITIONS, STRIDES = ("gelu", "layer_norm_eps", "position_resize"), ("output_stride", "dilation_rule", "rates", *ALIGN)
# fmt: off
ARCHITECTURES = (
    _family(vit.VARIANTS, vit.vit, vit.parameters, CLASSES, None, options=POSITIONS)
    | _family(mobilevit.VARIANTS, mobilevit.mobilevit, mobilevit.parameters, CLASSES, (256, 256))
    | _family(seen.DEEPLABV3_VARIANTS, seen.mobilevit_deeplabv3, seen.deeplabv3_parameters, PIXELS, (512, 512), options=STRIDES)
    | _family(seen.SSDLITE_VARIANTS, seen.mobilevit_ssdlite, seen.ssdlite_parameters, BOXES, (320, 320))
    | _family(hrnet.VARIANTS, hrnet.hrnet, hrnet.parameters, CLASSES, (224, 224))
    | _family(high.SEGMENTATION_VARIANTS, high.hrnet_segmentation, high.segmentation_parameters, PIXELS, STREET, options=ALIGN)
    | _family(high.OCR_VARIANTS, high.hrnet_ocr, high.ocr_parameters, PIXELS, STREET, options=ALIGN)
    | _family(high.POSE_VARIANTS, high.hrnet_pose, high.pose_parameters, JOINTS, (256, 192))
    | _family(hrvit.VARIANTS, hrvit.hrvit, hrvit.parameters, CLASSES, (224, 224), multiple=32)
    | _family(cross.SEGFORMER_VARIANTS, cross.hrvit_segmentation, cross.segformer_parameters, PIXELS, (512, 512), multiple=32)
    | _family(cross.UPERNET_VARIANTS, cross.hrvit_segmentation, cross.upernet_parameters, PIXELS, (512, 512), multiple=32)
)
# fmt: on


def architecture(name: str) -> Architecture:
    """The entry of `name`; UnknownModelError suggests the nearest names."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = difflib.get_close_matches(name, ARCHITECTURES, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "list_models() or `refvit models` name all there are"
    raise UnknownModelError(f"unknown model {name!r}; {hint}")


def matching(pattern: str) -> list[Architecture]:
    """The entries whose names match a wildcard pattern, in the order of the registry."""
    return [a for name, a in ARCHITECTURES.items() if fnmatch.fnmatchcase(name, pattern)]


def config_from_dict(published: Any, values: Mapping[str, Any]) -> Any:
    """A config like `published`, a dataclass, from the output of dataclasses.asdict; lists become tuples.

    A field that has a default may be missing: the file is older than the field, and the default is what was meant before.
    ConfigError names unknown and missing keys, and values of another kind than the published ones: numbers are positive, and a
    tuple has as many as there.
    """
    name, fields = type(published).__name__, dataclasses.asdict(published)
    values = {f.name: f.default for f in dataclasses.fields(published) if f.default is not dataclasses.MISSING} | dict(values)
    if unknown := sorted(set(values) - set(fields)):
        raise ConfigError(f"{name}: unknown {', '.join(unknown)}; known are {', '.join(sorted(fields))}")
    if missing := sorted(set(fields) - set(values)):
        raise ConfigError(f"{name}: {', '.join(missing)} missing")
    for key, example in fields.items():
        if not _like(values[key], example):
            raise ConfigError(f"{name}.{key}: something like {example!r} expected, got {values[key]!r:.60}")
    return type(published)(**{k: _tuples(v) for k, v in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def _like(value: Any, example: Any) -> bool:
    if isinstance(example, tuple):
        fits = isinstance(value, (list, tuple)) and len(value) == len(example)
        return fits and all(_like(v, e) for v, e in zip(value, example, strict=True))
    if isinstance(example, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
    return type(value) is type(example) and (not isinstance(value, int) or isinstance(value, bool) or value > 0)
