"""Resizing of maps, rows first and columns after, by pairs of taps."""

from __future__ import annotations

import numpy as np
from numba import njit

from refvit.backends.numba.simd import LANES, arg, arg_f32, fma, load, load_part, splat, store, store_part

f = np.float32


@njit
def _blend(out, p, q, v, w, n, more):
    """out (+)= v p + w q of n values."""
    v, w, zero = splat(v), splat(w), splat(f(0.0))
    full = n // LANES * LANES
    for j in range(0, 4 * full, 4 * LANES):
        store(out + j, fma(load(q + j), w, fma(load(p + j), v, load(out + j) if more else zero)))
    if full < n:
        j, n = 4 * full, n - full
        s = load_part(out + j, n) if more else zero
        store_part(out + j, fma(load_part(q + j, n), w, fma(load_part(p + j, n), v, s)), n)


@njit
def _rows(out, out_step, x, x_step, weights, pairs, columns, n):
    """A row of `columns` pixels of n values: the blend of rows of x that `weights` says."""
    if out_step == 4 * n and x_step == 4 * n:
        n, columns = n * columns, 1
    for k in range(pairs):
        p, q = x + arg(weights, 4 * k), x + arg(weights, 4 * k + 1)
        v, w = arg_f32(weights, 4 * k + 2), arg_f32(weights, 4 * k + 3)
        for j in range(columns):
            _blend(out + j * out_step, p + j * x_step, q + j * x_step, v, w, n, k > 0)


def resize(a, unit, scratch):
    """A row of the result, for a block of channels, is a blend of rows into scratch, and of its pixels into the result.

    0 channels; 1, 2 channels of a block, blocks; 3 columns of x; 4, 5 rows and columns of the result; 6 items (image, row,
    block); 7 items of a unit; 8 table of rows (`refvit.backends.numba.resize.table`); 9 its pairs, 0 if rows stay as they are;
    10, 11 the same of columns; 12 x: address, bytes from image to image, row to row, pixel to pixel; 16 the same of the result
    """
    c, block, blocks, columns, height, width = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5)
    down, along = arg(a, 9), arg(a, 11)
    begin = unit * arg(a, 7)
    for item in range(begin, min(arg(a, 6), begin + arg(a, 7))):
        first = item % blocks * block
        n = min(block, c - first)
        i = item // blocks % height
        image = item // blocks // height
        x = arg(a, 12) + image * arg(a, 13) + 4 * first
        out = arg(a, 16) + image * arg(a, 17) + i * arg(a, 18) + 4 * first
        step = arg(a, 19)
        if along == 0:
            _rows(out, step, x, arg(a, 15), arg(a, 8) + 32 * down * i, down, columns, n)
            continue
        if down == 0:
            x += i * arg(a, 14)
        else:
            _rows(scratch, 4 * block, x, arg(a, 15), arg(a, 8) + 32 * down * i, down, columns, n)
            x = scratch
        weights = arg(a, 10)
        for j in range(width):
            for k in range(along):
                p, q = x + arg(weights, 4 * k), x + arg(weights, 4 * k + 1)
                v, w = arg_f32(weights, 4 * k + 2), arg_f32(weights, 4 * k + 3)
                _blend(out + j * step, p, q, v, w, n, k > 0)
            weights += 32 * along
