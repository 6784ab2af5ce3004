"""Means over windows."""

from __future__ import annotations

import numpy as np
from numba import njit

from refvit.backends.numba.kernels.copy import seek
from refvit.backends.numba.simd import LANES, arg, load, load_part, splat, store, store_part

f = np.float32
BATCH = 16  # values that are added before their sum is, and sums before theirs: rounding errors stay small


@njit
def _mean4(out, x, rows, columns, down, along):
    """Of four vectors of channels."""
    zero = splat(f(0.0))
    s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = u0 = u1 = u2 = u3 = zero
    added = 0
    for i in range(rows):
        j = 0
        while j < columns:
            m = min(BATCH - added % BATCH, columns - j)
            p = x + i * down + j * along
            for _ in range(m):
                s0, s1 = s0 + load(p), s1 + load(p + 4 * LANES)
                s2, s3 = s2 + load(p + 8 * LANES), s3 + load(p + 12 * LANES)
                p += along
            j += m
            added += m
            if added % BATCH == 0:
                t0, t1, t2, t3 = t0 + s0, t1 + s1, t2 + s2, t3 + s3
                s0 = s1 = s2 = s3 = zero
                if added == BATCH * BATCH:
                    u0, u1, u2, u3 = u0 + t0, u1 + t1, u2 + t2, u3 + t3
                    t0 = t1 = t2 = t3 = zero
                    added = 0
    count = splat(f(rows * columns))
    store(out, (u0 + (t0 + s0)) / count)
    store(out + 4 * LANES, (u1 + (t1 + s1)) / count)
    store(out + 8 * LANES, (u2 + (t2 + s2)) / count)
    store(out + 12 * LANES, (u3 + (t3 + s3)) / count)


@njit
def _mean(out, x, rows, columns, down, along, n):
    """Of the first n channels of a vector."""
    s = t = u = splat(f(0.0))
    added = 0
    for i in range(rows):
        j = 0
        while j < columns:
            m = min(BATCH - added % BATCH, columns - j)
            p = x + i * down + j * along
            for _ in range(m):
                s = s + load_part(p, n)
                p += along
            j += m
            added += m
            if added % BATCH == 0:
                t = t + s
                s = splat(f(0.0))
                if added == BATCH * BATCH:
                    u = u + t
                    t = splat(f(0.0))
                    added = 0
    store_part(out, (u + (t + s)) / splat(f(rows * columns)), n)


def windows(a, unit, scratch):
    """The mean of each window.

    0 channels; 1, 2 channels of a block, blocks; 3 windows; 4 their table: byte offset in x, rows, columns, byte offset in
    the result; 5, 6 bytes from row to row and from column to column of x; 7 items (place, window, block); 8 items of a unit;
    9 cursor over the places of the result and of x
    """
    c, block, blocks, count, table = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4)
    down, along = arg(a, 5), arg(a, 6)
    begin = unit * arg(a, 8)
    for item in range(begin, min(arg(a, 7), begin + arg(a, 8))):
        first = item % blocks * block
        end = min(c, first + block)
        window = table + 32 * (item // blocks % count)
        seek(a, 9, item // blocks // count, scratch)
        out, x = arg(scratch, 0) + arg(window, 3), arg(scratch, 1) + arg(window, 0)
        rows, columns = arg(window, 1), arg(window, 2)
        four = first + (end - first) // (4 * LANES) * (4 * LANES)
        for k in range(first, four, 4 * LANES):
            _mean4(out + 4 * k, x + 4 * k, rows, columns, down, along)
        for k in range(four, end, LANES):
            _mean(out + 4 * k, x + 4 * k, rows, columns, down, along, min(LANES, end - k))
