"""How raw outputs become answers where publications differ: recorded with the weights, replaced by options of `load`.

Classification has nothing to choose. Each other task has a dataclass of its own; `from_dict` reads the one of a task.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refvit.errors import ConfigError

MAX_SCALE = 8.0


@dataclass(frozen=True, kw_only=True)
class Postprocess:
    """Of classification, and what the others have in common."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` is the inverse."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


@dataclass(frozen=True, kw_only=True)
class SegmentationPostprocess(Postprocess):
    """From logits at stride 4 or 16 to a map of the image's size. All resizing is bilinear unless said otherwise.

    scales: the image is looked at in each of these sizes, relative to that of the pre-processing
    flip: and each time mirrored as well; classes named left and right change places
    average: what is averaged over scales, mirror images and windows: "exp", exp(logits) as HRNet's repositories do, where a
        mirror image is averaged before the exp; or "softmax", as mmsegmentation does, where windows are averaged before it
    window, window_stride: (h, w); what is larger is looked at through windows of this size, the last one shifted back inside.
        None: always as a whole
    whole_up_to: at scales up to this there are no windows (HRNet on Cityscapes: 1)
    fill_window: smaller images are padded with black to the window (HRNet on Pascal Context)
    pad_multiple: the input is padded below and to the right with the mean colour so that its sides are multiples of this
    to_image: how scores at the size of the network's input come to the image's size, "bilinear" or "nearest" (cvnets)
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    average: str = "exp"
    window: tuple[int, int] | None = None
    window_stride: tuple[int, int] | None = None
    whole_up_to: float = 0.0
    fill_window: bool = False
    pad_multiple: int = 1
    to_image: str = "bilinear"

    def __post_init__(self) -> None:
        scales = list(self.scales) if isinstance(self.scales, (list, tuple, np.ndarray)) else []
        if not scales or not all(_real(s) and 0 < s <= MAX_SCALE for s in scales):
            raise ConfigError(f"scales: numbers above 0 and up to {MAX_SCALE:g} expected, got {self.scales!r:.60}")
        object.__setattr__(self, "scales", tuple(float(s) for s in scales))
        for field in ("window", "window_stride"):
            object.__setattr__(self, field, _size(field, getattr(self, field)))
        if self.window_stride and not self.window:
            raise ConfigError("window_stride: a window is needed as well")
        if self.window and self.window_stride and any(s > w for s, w in zip(self.window_stride, self.window, strict=True)):
            raise ConfigError(f"window_stride: at most the window {self.window} expected, got {self.window_stride}")
        _switch(self, "flip", "fill_window")
        _number(self, "whole_up_to", 0.0, MAX_SCALE)
        _choice("average", self.average, "exp", "softmax")
        _choice("to_image", self.to_image, "bilinear", "nearest")
        if not _whole(self.pad_multiple, 1024):
            raise ConfigError(f"pad_multiple: a whole number from 1 to 1024 expected, got {self.pad_multiple!r}")
        object.__setattr__(self, "pad_multiple", int(self.pad_multiple))


@dataclass(frozen=True, kw_only=True)
class PosePostprocess(Postprocess):
    """From heatmaps to joints, as HRNet's repository does it for COCO.

    padding: the box around a person, in the input's aspect ratio, is enlarged by this
    flip: the mirrored crop's heatmaps are averaged with the plain ones, left and right joints exchanged
    shift: and moved by one pixel before, which corrects for the stride
    joint_threshold: joints below it do not count in the score of a person
    oks_threshold: of two people more alike than this the one with the lower score is suppressed
    """

    padding: float = 1.25
    flip: bool = True
    shift: bool = True
    joint_threshold: float = 0.2
    oks_threshold: float = 0.9

    def __post_init__(self) -> None:
        _switch(self, "flip", "shift")
        _number(self, "padding", 0.1, 10.0)
        _number(self, "joint_threshold", 0.0, 1.0)
        _number(self, "oks_threshold", 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class DetectionPostprocess(Postprocess):
    """From class logits and offsets to boxes, by one of the two rules that cvnets released.

    rule: "cvnets-0.1", at most 200 boxes a class; or "cvnets-head", at most 200 an image, of the best 400 a class
    score_threshold: lower scores are no boxes; None: that of the rule, 0.05 and 0.01
    """

    rule: str = "cvnets-0.1"
    score_threshold: float | None = None

    def __post_init__(self) -> None:
        _choice("rule", self.rule, "cvnets-0.1", "cvnets-head")
        if self.score_threshold is not None:
            _number(self, "score_threshold", 0.0, 1.0)


KINDS: dict[str, type[Postprocess]] = {
    "classification": Postprocess,
    "segmentation": SegmentationPostprocess,
    "pose": PosePostprocess,
    "detection": DetectionPostprocess,
}


def names(task: str | None = None) -> list[str]:
    """The fields that a task has, or all tasks together."""
    kinds = [KINDS[task]] if task else list(KINDS.values())
    return [f.name for kind in kinds for f in dataclasses.fields(kind)]


def replaced(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with others in their place. A stride was chosen for its window, and goes with it."""
    kept = {k: v for k, v in fields.items() if k != "window_stride" or "window" not in changes}
    return kept | dict(changes)


def from_dict(task: str, fields: Mapping[str, Any]) -> Postprocess:
    """The post-processing of a task; fields that are missing have their published defaults. ConfigError for unknown ones."""
    kind = KINDS[task]
    if unknown := sorted(set(fields) - set(names(task))):
        known = ", ".join(names(task)) or "nothing to choose"
        raise ConfigError(f"post-processing of {task}: unknown {', '.join(unknown)}; known: {known}")
    return kind(**fields)


def _real(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object, most: int) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and 1 <= int(value) <= most


def _number(post: Postprocess, field: str, least: float, most: float) -> None:
    value = getattr(post, field)
    if not _real(value) or not least <= value <= most:
        raise ConfigError(f"{field}: a number from {least:g} to {most:g} expected, got {value!r:.60}")
    object.__setattr__(post, field, float(value))


def _switch(post: Postprocess, *fields: str) -> None:
    for field in fields:
        if not isinstance(getattr(post, field), bool):
            raise ConfigError(f"{field}: True or False expected, got {getattr(post, field)!r:.60}")


def _choice(field: str, value: object, *choices: str) -> None:
    if value not in choices:
        raise ConfigError(f"{field}: {' or '.join(choices)} expected, got {value!r:.60}")


def _size(field: str, given: Any) -> tuple[int, int] | None:
    if given is None:
        return None
    pair = [given, given] if isinstance(given, numbers.Integral) else given
    if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(_whole(v, 2**14) for v in pair):
        raise ConfigError(f"{field}: pixels, one number or (height, width), expected, got {given!r:.60}")
    return int(pair[0]), int(pair[1])
