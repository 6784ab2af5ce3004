"""Sums and products of values, scaled and activated, in one pass over the result.

Fields of all but `maps`: 0 values of a run; 1 runs; 2 runs of a unit; 3 activation; 4 scale; 5 cursor (see `copy`) over the
runs of the result and of the terms, which are contiguous, or in `_level` kernels a single value for the last term's run.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from refvit.backends.numba.kernels.copy import advance, innermost, remaining, seek
from refvit.backends.numba.kernels.elementary import activate_block
from refvit.backends.numba.simd import (
    LANES,
    arg,
    arg_f32,
    fma,
    get,
    load,
    load_part,
    maximum,
    splat,
    store,
    store_part,
)

f = np.float32
SEGMENT = 2048  # values between the sum and a slow activation of it: they stay in the first cache


@njit
def _bottom(code):
    """relu(v) is the greater of 0 and v, no activation the greater of -inf and v; of NaN and these, NaN."""
    return splat(f(0.0) if code == 1 else f(-np.inf))


def _walk(join, count, level):
    """A pass over `count` terms; join(x, y, z, t) uses as many of them."""

    @njit
    def row(out, p, q, r, s, n, scale, low):
        full = n // LANES * LANES
        one = splat(get(q)) if level else splat(f(0.0))
        for j in range(0, 4 * full, 4 * LANES):
            x = load(p + j)
            y = one if level or count < 2 else load(q + j)
            z = load(r + j) if count > 2 else one
            t = load(s + j) if count > 3 else one
            store(out + j, maximum(low, join(x, y, z, t) * scale))
        if full < n:
            j, n = 4 * full, n - full
            x = load_part(p + j, n)
            y = one if level or count < 2 else load_part(q + j, n)
            z = load_part(r + j, n) if count > 2 else one
            t = load_part(s + j, n) if count > 3 else one
            store_part(out + j, maximum(low, join(x, y, z, t) * scale), n)

    @njit
    def walk(a, unit, scratch):
        n, code, scale = arg(a, 0), arg(a, 3), splat(arg_f32(a, 4))
        low = _bottom(code)
        i = unit * arg(a, 2)
        end = min(arg(a, 1), i + arg(a, 2))
        seek(a, 5, i, scratch)
        last = innermost(a, 5)
        while i < end:
            m = min(end - i, remaining(a, 5, scratch))
            if code > 1:
                m = min(m, max(1, SEGMENT // n))
            out, p = arg(scratch, 0), arg(scratch, 1)
            q = arg(scratch, 2) if count > 1 else 0
            r = arg(scratch, 3) if count > 2 else 0
            s = arg(scratch, 4) if count > 3 else 0
            for _ in range(m):
                row(out, p, q, r, s, n, scale, low)
                out += arg(a, last + 1)
                p += arg(a, last + 2)
                if count > 1:
                    q += arg(a, last + 3)
                if count > 2:
                    r += arg(a, last + 4)
                if count > 3:
                    s += arg(a, last + 5)
            if code > 1:
                activate_block(code, arg(scratch, 0), m, n, arg(a, last + 1) // 4)
            advance(a, 5, m, scratch)
            i += m

    return walk


@njit
def _first(x, y, z, t):
    return x


@njit
def _add2(x, y, z, t):
    return x + y


@njit
def _add3(x, y, z, t):
    return x + y + z


@njit
def _add4(x, y, z, t):
    return (x + y) + (z + t)


@njit
def _times(x, y, z, t):
    return x * y


_one, _two, _three, _four = _walk(_first, 1, False), _walk(_add2, 2, False), _walk(_add3, 3, False), _walk(_add4, 4, False)
_two_level, _product, _product_level = _walk(_add2, 2, True), _walk(_times, 2, False), _walk(_times, 2, True)


def one(a, unit, scratch):
    _one(a, unit, scratch)


def two(a, unit, scratch):
    _two(a, unit, scratch)


def three(a, unit, scratch):
    _three(a, unit, scratch)


def four(a, unit, scratch):
    _four(a, unit, scratch)


def two_level(a, unit, scratch):
    _two_level(a, unit, scratch)


def product(a, unit, scratch):
    _product(a, unit, scratch)


def product_level(a, unit, scratch):
    _product_level(a, unit, scratch)


@njit
def _add_run(out, p, n, first):
    """out += a run, or = if it is the first."""
    full = n // LANES * LANES
    for j in range(0, 4 * full, 4 * LANES):
        store(out + j, load(p + j) if first else load(out + j) + load(p + j))
    if full < n:
        j, n = 4 * full, n - full
        v = load_part(p + j, n)
        store_part(out + j, v if first else load_part(out + j, n) + v, n)


@njit
def _add_blend(out, p0, p1, q0, q1, w0, w1, v0, v1, n, first):
    """out += the pixel between four, of two rows p and q with weights w and columns with weights v."""
    a0, a1, b0, b1 = splat(w0 * v0), splat(w0 * v1), splat(w1 * v0), splat(w1 * v1)
    zero = splat(f(0.0))
    full = n // LANES * LANES
    for j in range(0, 4 * full, 4 * LANES):
        s = fma(load(p1 + j), a1, fma(load(p0 + j), a0, zero if first else load(out + j)))
        store(out + j, fma(load(q1 + j), b1, fma(load(q0 + j), b0, s)))
    if full < n:
        j, n = 4 * full, n - full
        s = fma(load_part(p1 + j, n), a1, fma(load_part(p0 + j, n), a0, zero if first else load_part(out + j, n)))
        store_part(out + j, fma(load_part(q1 + j, n), b1, fma(load_part(q0 + j, n), b0, s)), n)


@njit
def _scaled(out, n, scale, low):
    """out = max(low, scale * out)."""
    full = n // LANES * LANES
    for j in range(0, 4 * full, 4 * LANES):
        store(out + j, maximum(low, load(out + j) * scale))
    if full < n:
        store_part(out + 4 * full, maximum(low, load_part(out + 4 * full, n - full) * scale), n - full)


def maps(a, unit, scratch):
    """A sum with terms that are resized on the way, a segment of a row at a time, which stays in the first cache.

    0 channels; 1, 2 rows and columns of the result; 3 pixels of a segment; 4 segments of a row; 5 segments; 6 segments of a unit;
    7 activation; 8 scale; 9 plain terms; 10 resized terms; 11 the result: address, bytes from image to image, row to row, pixel
    to pixel; the same four of each plain term; of each resized term address, bytes from image to image, the tables of rows and of
    columns (`refvit.backends.numba.resize.table`), and 1 if these have two taps each, 0 if one.
    """
    c, h, w, pixels, segments = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4)
    code, scale, plain, resized = arg(a, 7), arg_f32(a, 8), arg(a, 9), arg(a, 10)
    begin = unit * arg(a, 6)
    for item in range(begin, min(arg(a, 5), begin + arg(a, 6))):
        j0 = item % segments * pixels
        j1 = min(w, j0 + pixels)
        i = item // segments % h
        image = item // segments // h
        out = arg(a, 11) + image * arg(a, 12) + i * arg(a, 13) + j0 * arg(a, 14)
        step = arg(a, 14)
        for k in range(plain):
            g = 15 + 4 * k
            p = arg(a, g) + image * arg(a, g + 1) + i * arg(a, g + 2) + j0 * arg(a, g + 3)
            if step == 4 * c and arg(a, g + 3) == step:
                _add_run(out, p, (j1 - j0) * c, k == 0)
            else:
                for j in range(j1 - j0):
                    _add_run(out + j * step, p + j * arg(a, g + 3), c, k == 0)
        for k in range(resized):
            g = 15 + 4 * plain + 5 * k
            first = plain + k == 0
            base = arg(a, g) + image * arg(a, g + 1)
            rows, columns = arg(a, g + 2), arg(a, g + 3)
            if arg(a, g + 4) == 0:
                base += arg(rows, i)
                for j in range(j0, j1):
                    _add_run(out + (j - j0) * step, base + arg(columns, j), c, first)
            else:
                p, q = base + arg(rows, 4 * i), base + arg(rows, 4 * i + 1)
                w0, w1 = arg_f32(rows, 4 * i + 2), arg_f32(rows, 4 * i + 3)
                for j in range(j0, j1):
                    left, right = arg(columns, 4 * j), arg(columns, 4 * j + 1)
                    v0, v1 = arg_f32(columns, 4 * j + 2), arg_f32(columns, 4 * j + 3)
                    _add_blend(out + (j - j0) * step, p + left, p + right, q + left, q + right, w0, w1, v0, v1, c, first)
        if code == 1 or scale != f(1.0):
            for j in range(j1 - j0):
                _scaled(out + j * step, c, splat(scale), _bottom(code))
        if code > 1:
            activate_block(code, out, j1 - j0, c, step // 4)
