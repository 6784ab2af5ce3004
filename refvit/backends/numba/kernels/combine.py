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


def _row(join, count, level):
    """out = max(low, scale * join(p, q, r, s)) of n values, with `count` terms; join(x, y, z, t) uses as many of them.

    level: the second term is one value. whole: out takes all of the last vector.
    """

    @njit
    def row(out, p, q, r, s, n, scale, low, whole):
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
            v = maximum(low, join(x, y, z, t) * scale)
            if whole:
                store(out + j, v)
            else:
                store_part(out + j, v, n)

    return row


def _walk(row, count):
    """A pass over `count` terms by rows."""

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
                row(out, p, q, r, s, n, scale, low, False)
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


_row1, _row2, _row3, _row4 = _row(_first, 1, False), _row(_add2, 2, False), _row(_add3, 3, False), _row(_add4, 4, False)
_one, _two, _three, _four = _walk(_row1, 1), _walk(_row2, 2), _walk(_row3, 3), _walk(_row4, 4)
_two_level, _product = _walk(_row(_add2, 2, True), 2), _walk(_row(_times, 2, False), 2)
_product_level = _walk(_row(_times, 2, True), 2)


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
def _add_blend(out, start, p0, p1, q0, q1, w0, w1, v0, v1, n, empty, whole, scale, low):
    """out = max(low, scale (start + the pixel between four)), of rows p and q with weights w and two columns with weights v.

    empty: start is 0. whole: out takes all of the last vector.
    """
    a0, a1, b0, b1 = splat(w0 * v0), splat(w0 * v1), splat(w1 * v0), splat(w1 * v1)
    full, zero = n // LANES * LANES, splat(f(0.0))
    for j in range(0, 4 * full, 4 * LANES):
        v = fma(load(p1 + j), a1, fma(load(p0 + j), a0, zero if empty else load(start + j)))
        v = fma(load(q1 + j), b1, fma(load(q0 + j), b0, v))
        store(out + j, maximum(low, v * scale))
    if full < n:
        j, n = 4 * full, n - full
        v = fma(load_part(p1 + j, n), a1, fma(load_part(p0 + j, n), a0, zero if empty else load_part(start + j, n)))
        v = maximum(low, fma(load_part(q1 + j, n), b1, fma(load_part(q0 + j, n), b0, v)) * scale)
        if whole:
            store(out + j, v)
        else:
            store_part(out + j, v, n)


@njit
def _term(a, g, image, i):
    """Where row i of an image of a term with a single tap begins; its fields are at g."""
    return arg(a, g) + image * arg(a, g + 1) + arg(arg(a, g + 2), i)


def maps(a, unit, scratch):
    """A sum with terms that are resized on the way, a segment of a row at a time; between passes it is in scratch.

    0 channels; 1, 2 rows and columns of the result; 3 pixels of a segment; 4 segments of a row; 5 segments; 6 segments of a
    unit; 7 activation; 8 scale; 9 terms with a single tap, at most 4; 10 terms between two rows and two columns; 11 the result:
    address, bytes from image to image, row to row, pixel to pixel; 15 of each term, those with a single tap first: address,
    bytes from image to image, the tables of rows and of columns (`refvit.backends.numba.resize.table`)
    """
    c, h, w, pixels, segments = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4)
    code, single, double = arg(a, 7), arg(a, 9), arg(a, 10)
    one, open_end = splat(f(1.0)), splat(f(-np.inf))
    ld = 4 * ((c + LANES - 1) // LANES * LANES)
    begin = unit * arg(a, 6)
    for item in range(begin, min(arg(a, 5), begin + arg(a, 6))):
        j0 = item % segments * pixels
        j1 = min(w, j0 + pixels)
        i = item // segments % h
        image = item // segments // h
        out = arg(a, 11) + image * arg(a, 12) + i * arg(a, 13) + j0 * arg(a, 14)
        p = _term(a, 15, image, i) if single > 0 else 0
        pc = arg(a, 18)
        if single > 1 or double == 0:
            q = _term(a, 19, image, i) if single > 1 else 0
            r = _term(a, 23, image, i) if single > 2 else 0
            s = _term(a, 27, image, i) if single > 3 else 0
            qc, rc, sc = arg(a, 22), arg(a, 26) if single > 2 else 0, arg(a, 30) if single > 3 else 0
            last = double == 0
            scale, low = (splat(arg_f32(a, 8)), _bottom(code)) if last else (one, open_end)
            whole = not last or code > 1
            target, step = (scratch, ld) if whole else (out, arg(a, 14))
            if single == 1:
                for j in range(j0, j1):
                    _row1(target, p + arg(pc, j), 0, 0, 0, c, scale, low, whole)
                    target += step
            elif single == 2:
                for j in range(j0, j1):
                    _row2(target, p + arg(pc, j), q + arg(qc, j), 0, 0, c, scale, low, whole)
                    target += step
            elif single == 3:
                for j in range(j0, j1):
                    _row3(target, p + arg(pc, j), q + arg(qc, j), r + arg(rc, j), 0, c, scale, low, whole)
                    target += step
            else:
                for j in range(j0, j1):
                    _row4(target, p + arg(pc, j), q + arg(qc, j), r + arg(rc, j), s + arg(sc, j), c, scale, low, whole)
                    target += step
        for k in range(double):
            g = 15 + 4 * (single + k)
            empty, direct, last = single + k == 0, single == 1 and k == 0, k == double - 1
            scale, low = (splat(arg_f32(a, 8)), _bottom(code)) if last else (one, open_end)
            whole = not last or code > 1
            target, step = (scratch, ld) if whole else (out, arg(a, 14))
            base = arg(a, g) + image * arg(a, g + 1)
            rows, columns = arg(a, g + 2) + 32 * i, arg(a, g + 3)
            q, r = base + arg(rows, 0), base + arg(rows, 1)
            w0, w1 = arg_f32(rows, 2), arg_f32(rows, 3)
            for j in range(j0, j1):
                t = columns + 32 * j
                x0, x1, v0, v1 = arg(t, 0), arg(t, 1), arg_f32(t, 2), arg_f32(t, 3)
                start = p + arg(pc, j) if direct else scratch + (j - j0) * ld
                _add_blend(target, start, q + x0, q + x1, r + x0, r + x1, w0, w1, v0, v1, c, empty, whole, scale, low)
                target += step
        if code > 1:
            activate_block(code, scratch, j1 - j0, ld // 4, ld // 4)
            for j in range(j1 - j0):
                _row1(out + j * arg(a, 14), scratch + j * ld, 0, 0, 0, c, one, open_end, False)
