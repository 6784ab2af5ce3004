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


def _walk(at, two):
    """`two(a, out, x, y_out, y)` for each pair of rows x, y of a unit; the cursor's arguments begin at `at`."""

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
            for k in range(0, m, 2):
                odd = min(1, m - 1 - k)  # or the last row twice
                two(a, out, x, out + odd * out_step, x + odd * x_step)
                out += 2 * out_step
                x += 2 * x_step
            advance(a, at, m, scratch)
            i += m

    return walk


@njit
def _scale_of(a, squares):
    return splat(f(1.0) / f(math.sqrt(total(squares) * arg_f32(a, 6) + arg_f32(a, 5))))


@njit
def _layer_norm(a, out, x, y_out, y):
    """Two rows at once, x and y: what the one waits for is hidden behind the other. They may be the same."""
    d, weight, bias = arg(a, 0), arg(a, 3), arg(a, 4)
    full, two = d // LANES * LANES, d // (2 * LANES) * (2 * LANES)
    n, end, zero = d - full, 4 * full, splat(f(0.0))
    s0 = s1 = t0 = t1 = zero
    for j in range(0, 4 * two, 8 * LANES):
        s0, s1 = s0 + load(x + j), s1 + load(x + j + 4 * LANES)
        t0, t1 = t0 + load(y + j), t1 + load(y + j + 4 * LANES)
    if two < full:
        s0, t0 = s0 + load(x + 4 * two), t0 + load(y + 4 * two)
    if n:
        s1, t1 = s1 + load_part(x + end, n), t1 + load_part(y + end, n)
    x_mean, y_mean = splat(total(s0 + s1) * arg_f32(a, 6)), splat(total(t0 + t1) * arg_f32(a, 6))

    s0 = s1 = t0 = t1 = zero
    for j in range(0, 4 * two, 8 * LANES):
        u0, u1 = load(x + j) - x_mean, load(x + j + 4 * LANES) - x_mean
        v0, v1 = load(y + j) - y_mean, load(y + j + 4 * LANES) - y_mean
        s0, s1, t0, t1 = fma(u0, u0, s0), fma(u1, u1, s1), fma(v0, v0, t0), fma(v1, v1, t1)
    if two < full:
        u0, v0 = load(x + 4 * two) - x_mean, load(y + 4 * two) - y_mean
        s0, t0 = fma(u0, u0, s0), fma(v0, v0, t0)
    if n:
        u1, v1 = keep(load_part(x + end, n) - x_mean, n, zero), keep(load_part(y + end, n) - y_mean, n, zero)
        s1, t1 = fma(u1, u1, s1), fma(v1, v1, t1)
    x_scale, y_scale = _scale_of(a, s0 + s1), _scale_of(a, t0 + t1)

    for j in range(0, end, 4 * LANES):
        w, b = load(weight + j), load(bias + j)
        store(out + j, fma((load(x + j) - x_mean) * x_scale, w, b))
        store(y_out + j, fma((load(y + j) - y_mean) * y_scale, w, b))
    if n:
        w, b = load_part(weight + end, n), load_part(bias + end, n)
        u0, v0 = load_part(x + end, n), load_part(y + end, n)
        store_part(out + end, fma((u0 - x_mean) * x_scale, w, b), n)
        store_part(y_out + end, fma((v0 - y_mean) * y_scale, w, b), n)


@njit
def _softmax_one(a, out, x):
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


@njit
def _softmax(a, out, x, y_out, y):
    _softmax_one(a, out, x)
    if y != x:
        _softmax_one(a, y_out, y)


_norms, _softs = _walk(7, _layer_norm), _walk(3, _softmax)


def layer_norm(a, unit, scratch):
    """3 weight; 4 bias; 5 eps; 6 1 / values of a row; 7 cursor."""
    _norms(a, unit, scratch)


def softmax(a, unit, scratch):
    """3 cursor."""
    _softs(a, unit, scratch)
