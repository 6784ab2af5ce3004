"""Means over windows of a map, over all of it, or over tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refvit.backends.numba.copy import LayoutError, Loop, cursor, extent, loops, shares
from refvit.backends.numba.layout import Place
from refvit.backends.numba.program import Address, Buffer, Instruction
from refvit.backends.numba.resize import pixel_strides
from refvit.graph.ir import Array

CHANNELS = 64  # of a unit


def mean(x: Place, out: Place, *, axes: Sequence[int], keepdims: bool = False) -> list[Instruction]:
    """out = mean of x over `axes`, as refvit.ops.mean. The axes are read by one or two strides in all.

    One of the other axes is contiguous in x and in out: channels of a map, features of tokens. LayoutError otherwise.
    """
    reduced = {axis % len(x.axes) for axis in axes}
    if not keepdims:
        for axis in sorted(reduced):
            out = out.expand(axis)
    gone = [Place(x.buffer, 0, (x.axes[axis],)) for axis in sorted(reduced)]
    inner = loops([Place(x.buffer, 0, tuple(p.axes[0] for p in gone))])
    if len(inner) > 2:
        raise LayoutError(f"mean: axes {axes} of {x.axes} take more than two loops")
    (rows, down), (columns, along) = [(1, 0), (1, 0), *((loop.extent, loop.strides[0]) for loop in inner)][-2:]
    kept = tuple(() if axis in reduced else factors for axis, factors in enumerate(x.axes))
    windows = np.array([[0, rows, columns, 0]], np.int64)
    return [_windows(Place(x.buffer, x.offset, kept), out, windows, 4 * down, 4 * along)]


def adaptive_avg_pool(x: Place, out: Place) -> list[Instruction]:
    """As refvit.ops.adaptive_avg_pool to the size of out. Maps of one stride an axis, channels contiguous, or LayoutError."""
    (_, down, along), (_, out_down, out_along) = pixel_strides(x), pixel_strides(out)
    h, w = x.shape[2:]
    p, q = out.shape[2:]
    windows = np.empty((p, q, 4), np.int64)
    for i, j in np.ndindex(p, q):
        top, bottom = i * h // p, -(-(i + 1) * h // p)
        left, right = j * w // q, -(-(j + 1) * w // q)
        windows[i, j] = top * down + left * along, bottom - top, right - left, i * out_down + j * out_along
    corner = [Place(place.buffer, place.offset, (*place.axes[:2], (), ())) for place in (x, out)]
    return [_windows(corner[0], corner[1], windows.reshape(-1, 4), down, along)]


def _windows(x: Place, out: Place, windows: Array, down: int, along: int) -> Instruction:
    """windows: byte offset in x, rows, columns, byte offset in out."""
    nest = loops([out, x])
    run = next((loop for loop in nest if loop.strides == (1, 1)), Loop(1, (1, 1)))
    outer = [loop for loop in nest if loop is not run]
    blocks = -(-run.extent // CHANNELS)
    total = extent(outer) * len(windows) * blocks
    values = float((windows[:, 1] * windows[:, 2]).mean()) * CHANNELS
    per, units = shares(total, 4 * values)
    constant = Buffer(2 * windows.size, array=windows)
    args = [run.extent, CHANNELS, blocks, len(windows), Address(constant), down, along, total, per, *cursor([out, x], outer)]
    return Instruction("pool.windows", args, units, [x.buffer, constant], [out.buffer], scratch=256)
