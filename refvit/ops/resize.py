"""Resizing of maps under every coordinate rule that the models' implementations use."""

from __future__ import annotations

import numpy as np

from refvit.errors import ConfigError, ShapeError
from refvit.graph.ir import Array, HasShape, Shape
from refvit.graph.trace import op

MODES = ("nearest", "bilinear", "bicubic")


def _resize_shape(x: HasShape, *, size: tuple[int, int], mode: str, align_corners: bool, antialias: bool = False) -> Shape:
    if len(x.shape) != 4 or min(x.shape[2:]) < 1:
        raise ShapeError(f"resize: a map (n, c, h, w) of at least 1x1 expected, got {x.shape}")
    if len(size) != 2 or min(size) < 1:
        raise ShapeError(f"resize: size must be (rows, columns) of at least 1, got {size}")
    if mode not in MODES:
        raise ConfigError(f"resize: mode must be one of {', '.join(MODES)}, got {mode!r}")
    if align_corners and (mode == "nearest" or antialias):
        raise ConfigError(f"resize: align_corners has no meaning with mode {mode!r}, antialias={antialias}")
    if antialias and mode == "nearest":
        raise ConfigError("resize: nearest has no antialiasing")
    return (*x.shape[:2], *size)


@op(shape=_resize_shape)
def resize(x: Array, *, size: tuple[int, int], mode: str, align_corners: bool, antialias: bool = False) -> Array:
    """x (n, c, h, w) -> (n, c, *size), as torch.nn.functional.interpolate(size=..., ...).

    Output i looks at the source position s, for `in` pixels made `out`:
    nearest                    floor(i in / out), one tap
    align_corners=False        (i + 1/2) in / out - 1/2, pixels are areas ("half pixel")
    align_corners=True         i (in - 1) / (out - 1), the corner pixels' centres coincide
    Bilinear has 2 taps, bicubic 4 (a = -3/4); taps beyond the border repeat it. antialias=True widens the filter when
    shrinking, drops the taps beyond the border and renormalises, as Pillow does; bicubic then has a = -1/2.
    """
    for axis, out in ((3, size[1]), (2, size[0])):
        if x.shape[axis] == out:
            continue  # every rule is the identity, and 0 * inf of an unused neighbour must not appear
        index, weight = taps(x.shape[axis], out, mode, align_corners, antialias)
        along = (-1,) if axis == 3 else (-1, 1)
        x = sum(x.take(i, axis) * w.astype(x.dtype).reshape(along) for i, w in zip(index, weight, strict=True))
    return x


def taps(size: int, out: int, mode: str, align_corners: bool, antialias: bool) -> tuple[Array, Array]:
    """Source indices int64 (taps, out) and weights float64 (taps, out) of one axis of `size` pixels resized to `out`."""
    i = np.arange(out)
    if mode == "nearest":
        return (i * size // out)[None], np.ones((1, out))
    if antialias:
        return _antialias_taps(size, out, mode)
    if align_corners:
        s = i * ((size - 1) / (out - 1) if out > 1 else 0.0)
    else:
        s = (i + 0.5) * (size / out) - 0.5
    offsets = np.arange(0, 2) if mode == "bilinear" else np.arange(-1, 3)
    index = np.floor(s).astype(np.int64) + offsets[:, None]
    weight = _triangle(index - s) if mode == "bilinear" else _cubic(index - s, -0.75)
    return index.clip(0, size - 1), weight


def _antialias_taps(size: int, out: int, mode: str) -> tuple[Array, Array]:
    step = size / out
    stretch = max(step, 1.0)
    support = (1 if mode == "bilinear" else 2) * stretch
    centre = (np.arange(out) + 0.5) * step
    first = np.maximum(0, (centre - support + 0.5).astype(np.int64))
    last = np.minimum(size, (centre + support + 0.5).astype(np.int64))
    index = first + np.arange(int((last - first).max()))[:, None]
    distance = (index - centre + 0.5) / stretch
    weight = _triangle(distance) if mode == "bilinear" else _cubic(distance, -0.5)
    weight = np.where(index < last, weight, 0.0)
    return np.minimum(index, last - 1), weight / weight.sum(0)  # unused taps repeat the last: they must touch nothing else


def _triangle(t: Array) -> Array:
    return np.maximum(0.0, 1 - np.abs(t))


def _cubic(t: Array, a: float) -> Array:
    """Keys' kernel (1981)."""
    t = np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = a * (((t - 5) * t + 8) * t - 4)
    return np.where(t < 1, near, np.where(t < 2, far, 0.0))
