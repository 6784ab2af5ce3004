"""Layer norm and softmax of rows.

Fields: 0 values of a row; 1 rows; 2 rows of a unit; then those of the kernel; then a cursor (see `copy`) over the rows of the
result and of x.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from refvit.backends.numba.kernels.copy import advance, innermost, remaining, seek
from refvit.backends.numba.kernels.elementary import exp
from refvit.backends.numba.simd import (
    LANES,
    arg,
    arg_f32,
    fma,
    highest,
    keep,
    load,
    load_part,
    maximum,
    splat,
    store,
    store_part,
    total,
)

f = np.float32


def _walk(at, one):
    """`one(a, out, x)` for each row of a unit; the cursor's arguments begin at `at`."""

    @njit
    def walk(a, unit, scratch):
        i = unit * arg(a, 2)
        end = min(arg(a, 1), i + arg(a, 2))
        seek(a, at, i, scratch)
        last = innermost(a, at)
        out_step, x_step = arg(a, last + 1), arg(a, last + 2)
        while i < end:
            m = min(end - i, remaining(a, at, scratch))
            out, x = arg(scratch, 0), arg(scratch, 1)
            for _ in range(m):
                one(a, out, x)
                out += out_step
                x += x_step
            advance(a, at, m, scratch)
            i += m

    return walk


@njit
def _layer_norm(a, out, x):
    d, weight, bias = arg(a, 0), arg(a, 3), arg(a, 4)
    full, four = d // LANES * LANES, d // (4 * LANES) * (4 * LANES)
    s0 = s1 = s2 = s3 = splat(f(0.0))
    for j in range(0, four, 4 * LANES):
        p = x + 4 * j
        s0 = s0 + load(p)
        s1 = s1 + load(p + 4 * LANES)
        s2 = s2 + load(p + 8 * LANES)
        s3 = s3 + load(p + 12 * LANES)
    for j in range(four, full, LANES):
        s0 = s0 + load(x + 4 * j)
    if full < d:
        s1 = s1 + load_part(x + 4 * full, d - full)
    mean = splat(total((s0 + s1) + (s2 + s3)) * arg_f32(a, 6))

    s0 = s1 = s2 = s3 = splat(f(0.0))
    for j in range(0, four, 4 * LANES):
        p = x + 4 * j
        v0, v1 = load(p) - mean, load(p + 4 * LANES) - mean
        v2, v3 = load(p + 8 * LANES) - mean, load(p + 12 * LANES) - mean
        s0, s1, s2, s3 = fma(v0, v0, s0), fma(v1, v1, s1), fma(v2, v2, s2), fma(v3, v3, s3)
    for j in range(four, full, LANES):
        v0 = load(x + 4 * j) - mean
        s0 = fma(v0, v0, s0)
    if full < d:
        v1 = keep(load_part(x + 4 * full, d - full) - mean, d - full, splat(f(0.0)))
        s1 = fma(v1, v1, s1)
    var = total((s0 + s1) + (s2 + s3)) * arg_f32(a, 6)
    factor = splat(f(1.0) / f(math.sqrt(var + arg_f32(a, 5))))

    for j in range(0, full, LANES):
        store(out + 4 * j, fma((load(x + 4 * j) - mean) * factor, load(weight + 4 * j), load(bias + 4 * j)))
    if full < d:
        j, n = 4 * full, d - full
        v = (load_part(x + j, n) - mean) * factor
        store_part(out + j, fma(v, load_part(weight + j, n), load_part(bias + j, n)), n)


@njit
def _softmax(a, out, x):
    d = arg(a, 0)
    full = d // LANES * LANES
    n, end = d - full, 4 * full
    s0 = splat(f(-np.inf))
    for j in range(0, full, LANES):
        s0 = maximum(s0, load(x + 4 * j))
    if n:
        s0 = maximum(s0, keep(load_part(x + end, n), n, s0))
    top = splat(highest(s0))
    s0 = splat(f(0.0))
    for j in range(0, full, LANES):
        e = exp(load(x + 4 * j) - top)
        store(out + 4 * j, e)
        s0 = s0 + e
    if n:
        e = keep(exp(load_part(x + end, n) - top), n, splat(f(0.0)))
        store_part(out + end, e, n)
        s0 = s0 + e
    factor = splat(f(1.0) / total(s0))
    for j in range(0, full, LANES):
        store(out + 4 * j, load(out + 4 * j) * factor)
    if n:
        store_part(out + end, load_part(out + end, n) * factor, n)


_norms, _softs = _walk(7, _layer_norm), _walk(3, _softmax)


def layer_norm(a, unit, scratch):
    """3 weight; 4 bias; 5 eps; 6 1 / values of a row; 7 cursor."""
    _norms(a, unit, scratch)


def softmax(a, unit, scratch):
    """3 cursor."""
    _softs(a, unit, scratch)
