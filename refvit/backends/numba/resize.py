"""Resizing of maps: a blend of rows, then a blend of pixels, with weights from `refvit.ops.resize.taps`."""

from __future__ import annotations

import numpy as np

from refvit.backends.numba.copy import LayoutError, copy, shares
from refvit.backends.numba.layout import Place
from refvit.backends.numba.program import Address, Argument, Buffer, Instruction
from refvit.graph.ir import Array
from refvit.ops.resize import taps

STRIP = 32768  # values of a blended row that wait in the second cache


def resize(
    x: Place, out: Place, *, size: tuple[int, int], mode: str, align_corners: bool, antialias: bool = False
) -> list[Instruction]:
    """As refvit.ops.resize, x and out maps (n, c, h, w) of one stride an axis with contiguous channels, or LayoutError."""
    n, c, h, w = x.shape
    if out.shape != (n, c, *size):
        raise LayoutError(f"resize: {x.shape} to {size} is not {out.shape}")
    if (h, w) == tuple(size):
        return copy(x, out)
    x_steps, out_steps = pixel_strides(x), pixel_strides(out)
    block = c if w * c <= STRIP else min(c, max(16, STRIP // w // 16 * 16))  # channels
    blocks = -(-c // block)
    rows = table(h, size[0], x_steps[1], mode, align_corners, antialias, pairs=True)
    columns = [table(w, size[1], step, mode, align_corners, antialias, pairs=True) for step in (x_steps[2], 4 * block)]
    changes = (h != size[0], w != size[1])
    along = columns[1] if changes[0] else columns[0]  # pixels of the blended row in scratch, or of x
    constants = [Buffer(2 * t.size, array=t) for t in (rows, along)]
    total = n * size[0] * blocks
    per, units = shares(total, 4 * block * size[1])
    args: list[Argument] = [c, block, blocks, w, *size, total, per]
    for changed, t, constant in zip(changes, (rows, along), constants, strict=True):
        args += [Address(constant), t.shape[1] // 4 if changed else 0]
    args += [x.address, *x_steps, out.address, *out_steps]
    scratch = 4 * w * block if all(changes) else 0
    return [Instruction("resize.resize", args, units, [x.buffer, *constants], [out.buffer], scratch=scratch)]


def pixel_strides(place: Place) -> tuple[int, int, int]:
    """Bytes between the images, rows and columns of a map; LayoutError unless channels are contiguous."""
    if not place.channels_last:
        raise LayoutError(f"a map (n, c, h, w) with contiguous channels and one stride an axis expected, got {place.axes}")
    return 4 * place.stride(0), 4 * place.stride(2), 4 * place.stride(3)


def table(size: int, out: int, step: int, mode: str, align_corners: bool, antialias: bool, *, pairs: bool) -> Array:
    """The taps of an axis for a kernel, int64 (out, words): two byte offsets and the bits of two weights for each pair of taps.

    step: bytes from a pixel to the next. A single tap is two halves, an odd one is paired with itself and weight 0.
    pairs=False: only the offset of a first and only tap, whose weight is 1.
    """
    if size == out:
        index, weight = np.arange(out)[None], np.ones((1, out))
    else:
        index, weight = taps(size, out, mode, align_corners, antialias)
    if not pairs:
        return np.ascontiguousarray(step * index.T)
    if len(index) == 1:
        index, weight = index.repeat(2, 0), np.full((2, out), 0.5)
    elif len(index) % 2:
        index, weight = np.concatenate([index, index[-1:]]), np.concatenate([weight, np.zeros((1, out))])
    number = weight.astype(np.float32).view(np.uint32).astype(np.int64)
    words = np.stack([step * index[0::2], step * index[1::2], number[0::2], number[1::2]], -1)  # (pairs, out, 4)
    return np.ascontiguousarray(words.transpose(1, 0, 2).reshape(out, -1))
