"""Pictures of a difference: heat maps as PNG inside of the page."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from refvit.graph.ir import Array
from refvit.vision.attention_maps import colours

DECADES = 3  # from the darkest to the brightest colour of a difference
MOST = 1024  # pixels of a side; larger planes show the largest of several values


@dataclass(frozen=True)
class Pictures:
    """difference: over all slices; candidate, expected: the slice in which they differ most; `slices`: largest by slice.

    Pictures are data: addresses, None for what is no plane. rows, columns, kind: what the axes of the plane and the slices are.
    """

    difference: str | None
    candidate: str | None
    expected: str | None
    slices: list[float]
    worst: int
    largest: float
    rows: str
    columns: str
    kind: str
    shape: tuple[int, int]


def pictures(got: Array, want: Array, spatial: bool) -> Pictures:
    """Of two arrays of one shape, whose first axis is the batch. spatial: they are maps (n, c, h, w)."""
    off = np.abs(got - want)
    off = np.where(np.isfinite(off), off, np.inf)
    largest = float(off.max(initial=0.0))
    if off.ndim < 3:
        return Pictures(None, None, None, _flat(off), int(off.reshape(-1, off.shape[-1]).max(0).argmax()), largest, "", "",
                        "element", (1, off.shape[-1]))  # fmt: skip
    plane = off.reshape(-1, *off.shape[-2:])
    along = -1 if off.ndim == 3 else -3  # of tokens the features are looked at one by one
    by_slice = np.moveaxis(off, along, 0).reshape(off.shape[along], -1).max(1)
    flat = int(plane.max(axis=(1, 2)).argmax())
    one, other = got.reshape(plane.shape)[flat], want.reshape(plane.shape)[flat]
    finite = other[np.isfinite(other)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    rows, columns, kind = _axes(off.ndim, spatial)
    return Pictures(
        _png(_logarithmic(_reduced(plane.max(0)))), _png(_grey(one, low, high)), _png(_grey(other, low, high)),
        by_slice.tolist(), int(np.argmax(by_slice)), largest, rows, columns, kind, plane.shape[1:],
    )  # fmt: skip


def legend() -> str:
    """The colours from 1/10^DECADES of the largest difference to the largest."""
    return _png(np.round(colours(np.linspace(0, 1, 160)[None])).astype(np.uint8))


def _axes(ndim: int, spatial: bool) -> tuple[str, str, str]:
    if spatial:
        return "row", "column", "channel"
    return ("token", "feature", "feature") if ndim == 3 else ("row", "column", "head")


def _flat(off: Array) -> list[float]:
    return off.reshape(-1, off.shape[-1]).max(0).tolist() if off.size else []


def _reduced(plane: Array) -> Array:
    """A plane of at most MOST by MOST, of which every pixel is the largest of those that it stands for."""
    for axis in (0, 1):
        step = math.ceil(plane.shape[axis] / MOST)
        if step > 1:
            plane = np.maximum.reduceat(plane, np.arange(0, plane.shape[axis], step), axis=axis)
    return plane


def _logarithmic(plane: Array) -> Array:
    finite = plane[np.isfinite(plane)]
    top = float(finite.max(initial=0.0)) or 1.0
    with np.errstate(divide="ignore"):
        level = 1 + np.log10(plane / top) / DECADES
    return np.round(colours(np.clip(level, 0, 1))).astype(np.uint8)


def _grey(plane: Array, low: float, high: float) -> Array:
    """Both sides on one scale; what is not finite is red."""
    level = (plane - low) / ((high - low) or 1.0)
    grey = np.round(255 * np.clip(np.nan_to_num(level), 0, 1)).astype(np.uint8)
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    rgb[~np.isfinite(plane)] = (255, 0, 0)
    return rgb[:: math.ceil(plane.shape[0] / MOST), :: math.ceil(plane.shape[1] / MOST)]


def _png(pixels: Array) -> str:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
