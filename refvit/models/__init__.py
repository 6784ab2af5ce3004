"""Every model by name: what it is, what it computes, what parameters it has."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from refvit.errors import UnknownModelError
from refvit.graph.ir import Shape
from refvit.models import hrnet, hrvit, mobilevit, vit
from refvit.models import hrnet_heads as high
from refvit.models import hrvit_heads as cross
from refvit.models import mobilevit_heads as seen


@dataclass(frozen=True)
class Architecture:
    """A model without weights. `forward(x, p, config=...)` is the model; `parameters(config)` lists names and shapes."""

    name: str
    task: str
    config: Any
    input_size: tuple[int, int]  # (h, w) of the published evaluation
    forward: Callable[..., Any]
    parameters: Callable[[Any], Iterable[tuple[str, Shape]]]


def _family(
    variants: Mapping[str, Any],
    forward: Callable[..., Any],
    parameters: Callable[[Any], Iterable[tuple[str, Shape]]],
    task: str,
    size: tuple[int, int],
) -> dict[str, Architecture]:
    return {name: Architecture(name, task, config, size, forward, parameters) for name, config in variants.items()}


CLASSES, PIXELS, BOXES, JOINTS = "classification", "segmentation", "detection", "pose"
# fmt: off
ARCHITECTURES = (
    {n: Architecture(n, CLASSES, c, (c.image_size, c.image_size), vit.vit, vit.parameters) for n, c in vit.VARIANTS.items()}
    | _family(mobilevit.VARIANTS, mobilevit.mobilevit, mobilevit.parameters, CLASSES, (256, 256))
    | _family(seen.DEEPLABV3_VARIANTS, seen.mobilevit_deeplabv3, seen.deeplabv3_parameters, PIXELS, (512, 512))
    | _family(seen.SSDLITE_VARIANTS, seen.mobilevit_ssdlite, seen.ssdlite_parameters, BOXES, (320, 320))
    | _family(hrnet.VARIANTS, hrnet.hrnet, hrnet.parameters, CLASSES, (224, 224))
    | _family(high.SEGMENTATION_VARIANTS, high.hrnet_segmentation, high.segmentation_parameters, PIXELS, (1024, 2048))
    | _family(high.OCR_VARIANTS, high.hrnet_ocr, high.ocr_parameters, PIXELS, (1024, 2048))
    | _family(high.POSE_VARIANTS, high.hrnet_pose, high.pose_parameters, JOINTS, (256, 192))
    | _family(hrvit.VARIANTS, hrvit.hrvit, hrvit.parameters, CLASSES, (224, 224))
    | _family(cross.SEGFORMER_VARIANTS, cross.hrvit_segmentation, cross.segformer_parameters, PIXELS, (512, 512))
    | _family(cross.UPERNET_VARIANTS, cross.hrvit_segmentation, cross.upernet_parameters, PIXELS, (512, 512))
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
