"""From RGB uint8 pixels to the float32 input of a network: resize, centre crop, enlarge, scale, normalise.

A `Preprocess` belongs to a weights file and is stored in it. Its arithmetic is that of timm's evaluation transform, bit
by bit: Pillow's resize on uint8, torchvision's CenterCrop, ToTensor and Normalize. Where the publication resized by OpenCV,
that is an interpolation of its own.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from refvit.errors import ConfigError, ImageError
from refvit.vision.opencv import resize_bilinear
from refvit.vision.pixels import MAX_PIXELS, check_array

if TYPE_CHECKING:
    import numpy.typing as npt

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
OPENCV = "opencv_bilinear"


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """What is done to an image before the network sees it. Sizes are pixels, pairs are (height, width).

    resize: int for the shorter side (the longer follows), (h, w) to squash to, None to keep the size
    longest: with an int as `resize`, a limit of the longer side; sides are then rounded to the nearest and not down, as in
        mmsegmentation
    crop: centre crop, int for a square; where the image is smaller it is padded with black; None for no crop
    enlarge: a second resize, after the crop, for networks that were trained on enlarged small images
    interpolation: one of FILTERS, Pillow's (antialiased when shrinking; of tall images Pillow 13 and later resample the
        rows before the columns, which changes values by a grey level or a few against older versions), or "opencv_bilinear",
        OpenCV's INTER_LINEAR (never antialiased)
    mean, std: of pixels in [0, 1], in the channel order of the network: (x / 255 - mean) / std
    channel_order: the channel order of the network, "rgb" or "bgr"

    Raises ConfigError for a value of another kind.
    """

    resize: int | tuple[int, int] | None
    crop: int | tuple[int, int] | None
    enlarge: int | tuple[int, int] | None = None
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: str
    longest: int | None = None

    def __post_init__(self) -> None:
        for name in ("resize", "crop", "enlarge"):
            object.__setattr__(self, name, _size(name, getattr(self, name)))
        for name in ("mean", "std"):
            object.__setattr__(self, name, _triple(name, getattr(self, name)))
        if not all(value > 0 for value in self.std):
            raise ConfigError(f"Preprocess.std: {self.std} given, expected three numbers above 0")
        _choice("interpolation", self.interpolation, (*FILTERS, OPENCV))
        longest = _size("longest", self.longest)
        if isinstance(longest, tuple) or (longest and (not isinstance(self.resize, int) or longest < self.resize)):
            raise ConfigError(f"Preprocess.longest: {longest} given, expected one number not below `resize`, which is one too")
        object.__setattr__(self, "longest", longest)
        _choice("channel_order", self.channel_order, ("rgb", "bgr"))

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 (h, w, 3) RGB to float32 (3, H, W), contiguous; (H, W) is `output_size(h, w)`.

        Raises ImageError if `pixels` is not such an array, or so elongated that a resize would exceed MAX_PIXELS.
        """
        height, width, _ = check_array(pixels).shape
        x = self._resize(pixels, _scaled(height, width, self.resize, self.longest))
        if self.crop is not None:
            x = _centre_crop(x, *_pair(self.crop))
        x = self._resize(x, _scaled(x.shape[0], x.shape[1], self.enlarge))
        if self.channel_order == "bgr":
            x = x[:, :, ::-1]
        # float32 throughout and in this order: multiplying by 1 / (255 std) would differ in the last bit.
        y = np.array(x.transpose(2, 0, 1), dtype=np.float32, order="C")
        y /= np.float32(255)
        y -= np.asarray(self.mean, np.float32)[:, None, None]
        y /= np.asarray(self.std, np.float32)[:, None, None]
        return y

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) that an image of this size is given to the network in."""
        size = _scaled(height, width, self.resize, self.longest)
        if self.crop is not None:
            size = _pair(self.crop)
        return _scaled(*size, self.enlarge)

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(H, W) that every image ends up in, or None if it depends on the image."""
        if isinstance(self.enlarge, tuple):
            return self.enlarge
        fixed = self.resize if self.crop is None else _pair(self.crop)
        return _scaled(*fixed, self.enlarge) if isinstance(fixed, tuple) else None

    def scaled(self, factor: float) -> Preprocess:
        """A copy that resizes to `factor` times the size, rounded down, for testing at several scales."""

        def times(size: int) -> int:
            return max(1, int(size * factor))

        resize = tuple(times(s) for s in self.resize) if isinstance(self.resize, tuple) else self.resize and times(self.resize)
        return self.replace(resize=resize, longest=self.longest and times(self.longest))

    def replace(self, **overrides: Any) -> Preprocess:
        """A copy with other values for some fields."""
        _check_names(overrides)
        return dataclasses.replace(self, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` is the inverse."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocess:
        """Inverse of `to_dict`. Raises ConfigError for an unknown or missing key; what has a default may be left out."""
        _check_names(fields)
        missing = [f.name for f in dataclasses.fields(cls) if f.name not in fields and f.default is dataclasses.MISSING]
        if missing:
            raise ConfigError(f"Preprocess: {', '.join(missing)} missing, expected a value for each; add it")
        return cls(**fields)

    def _resize(self, pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        height, width = pixels.shape[:2]
        if size == (height, width):
            return pixels
        if size[0] * size[1] > MAX_PIXELS:
            raise ImageError(
                f"image: {width} x {height} pixels would become {size[1]} x {size[0]}, over {MAX_PIXELS} in all; "
                "crop it to a less elongated part first"
            )
        if self.interpolation == OPENCV:
            return resize_bilinear(pixels, size)
        return np.asarray(Image.fromarray(pixels).resize(size[::-1], FILTERS[self.interpolation]))


def _scaled(height: int, width: int, to: int | tuple[int, int] | None, longest: int | None = None) -> tuple[int, int]:
    """The rule of torchvision's Resize: shorter side `to`, longer side rounded down; a pair is the size itself.

    With `longest` that of mmcv's imrescale: as large as both limits allow, rounded.
    """
    if to is None:
        return height, width
    if isinstance(to, tuple):
        return to
    if longest is not None:
        factor = min(longest / max(height, width), to / min(height, width))
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
    return (to, int(to * width / height)) if height <= width else (int(to * height / width), to)


def _centre_crop(x: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """torchvision's CenterCrop: an odd pixel of padding goes right and below, half offsets round to even."""
    down, right = max(height - x.shape[0], 0), max(width - x.shape[1], 0)
    if down or right:
        x = np.pad(x, ((down // 2, (down + 1) // 2), (right // 2, (right + 1) // 2), (0, 0)))
    top, left = round((x.shape[0] - height) / 2), round((x.shape[1] - width) / 2)
    return x[top : top + height, left : left + width]


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _size(name: str, given: object) -> int | tuple[int, int] | None:
    if given is None:
        return None
    pair = isinstance(given, (tuple, list))
    values = list(given) if isinstance(given, (tuple, list)) else [given]
    whole = [int(v) for v in values if isinstance(v, (int, np.integer)) and not isinstance(v, bool) and v > 0]
    if len(whole) != len(values) or len(values) != (2 if pair else 1):
        raise ConfigError(f"Preprocess.{name}: {given!r} given, expected a size above 0, a pair (height, width), or None")
    if math.prod(whole if pair else whole * 2) > MAX_PIXELS:
        raise ConfigError(f"Preprocess.{name}: {given!r} given, expected at most {MAX_PIXELS} pixels in all")
    return (whole[0], whole[1]) if pair else whole[0]


def _triple(name: str, given: object) -> tuple[float, float, float]:
    values = list(given) if isinstance(given, (tuple, list, np.ndarray)) else []
    if len(values) != 3 or not all(isinstance(v, numbers.Real) and math.isfinite(v) for v in values):
        raise ConfigError(f"Preprocess.{name}: {given!r} given, expected three finite numbers, one a channel")
    return float(values[0]), float(values[1]), float(values[2])


def _choice(name: str, given: object, choices: Iterable[str]) -> None:
    if not isinstance(given, str) or given not in choices:
        raise ConfigError(f"Preprocess.{name}: {given!r} given, expected one of {', '.join(choices)}")


def _check_names(fields: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(Preprocess)]
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(known)}"
            raise ConfigError(f"Preprocess: unknown field {name!r}; {hint}")
