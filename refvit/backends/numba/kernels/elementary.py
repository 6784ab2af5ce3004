"""exp, activations: the functions of one vector that kernels share, inlined into them."""

from __future__ import annotations

import numpy as np
from numba import njit

from refvit.backends.numba.simd import (
    LANES,
    absolute,
    exponent,
    fma,
    load,
    load_part,
    maximum,
    minimum,
    negative,
    reciprocal,
    splat,
    store,
    store_part,
)

f = np.float32
LOG2E, LOWEST, HIGHEST = f(1.4426950408889634), f(-127.0), f(125.5)
ROUND = f(1.5 * 2**23 + 127)  # adding it leaves a whole number in the last bits, and the exponent's bias with it


@njit(fastmath=False)  # it would inherit the flags of the kernel, and reassociation would undo the rounding
def exp2(x):
    """2^x for -127 <= x <= 126 to 2 parts in 10^7, 0 for -127: 2^k times a polynomial of the rest, |rest| <= 1/2. NaN stays.

    The coefficients are minimax for the relative error, 1.1e-7, by Lawson's iteration.
    """
    t = x + splat(ROUND)
    r = x - (t - splat(ROUND))
    p = fma(splat(f(0.001326472614891827)), r, splat(f(0.009671512991189957)))
    p = fma(p, r, splat(f(0.05550733581185341)))
    p = fma(p, r, splat(f(0.24022242426872253)))
    p = fma(p, r, splat(f(0.6931470036506653)))
    return fma(p, r, splat(f(1.0))) * exponent(t)


@njit
def exp(x):
    """exp(x) for x <= 0, to 2 parts in 10^7 of 1. 0 below -87.7."""
    return exp2(maximum(splat(LOWEST), x * splat(LOG2E)))  # in this order NaN stays


@njit
def relu(x):
    return maximum(splat(f(0.0)), x)  # of NaN and 0 the second: NaN stays


@njit
def sigmoid(x):
    # at most 6e37 is added to 1: its reciprocal is no subnormal number
    t = minimum(splat(HIGHEST), maximum(splat(LOWEST), x * splat(f(-LOG2E))))
    return reciprocal(splat(f(1.0)) + exp2(t))


@njit
def silu(x):
    return x * sigmoid(x)


@njit
def gelu(x):
    """x Phi(x) = max(x, 0) - t Phi(-t) with t = |x|, and Phi(-t) = q(t)^8 with a polynomial q of degree 8 for 0 <= t <= 6.

    The eighth root falls slowly, which takes far fewer coefficients than Phi itself and no division. They are minimax: the
    smallest largest error of max(t, 0.3) q(t)^8, by Lawson's iteration of weighted least squares on 2000 Chebyshev nodes in
    float64 with SciPy's log_ndtr, then rounded. Fit error 4.0e-9. Measured in float32 on 1.2 million points from -9 to 9:
    1.2e-7 for x < 0 and 1.3e-7 max(1, x) for x > 0, where NumPy's float32 has 8.8e-8. Beyond -6, t Phi(-t) stays at 6e-9.
    """
    t = minimum(splat(f(6.0)), absolute(x))
    q = fma(splat(f(-2.921329951277585e-07)), t, splat(f(7.422256203426514e-06)))
    q = fma(q, t, splat(f(-5.990106728859246e-05)))
    q = fma(q, t, splat(f(3.312693297630176e-05)))
    q = fma(q, t, splat(f(0.001506535685621202)))
    q = fma(q, t, splat(f(-0.0006742628174833953)))
    q = fma(q, t, splat(f(-0.031926751136779785)))
    q = fma(q, t, splat(f(-0.0914577767252922)))
    q = fma(q, t, splat(f(0.9170040488243103)))
    q = q * q
    q = q * q
    return fma(t * q, negative(q), relu(x))


@njit
def gelu_tanh(x):
    """0.5 x (1 + tanh y) = x sigmoid(2 y), which does not cancel for negative x."""
    return x * sigmoid(x * fma(x * x, splat(f(0.07135481282553174)), splat(f(1.5957691216057308))))


@njit
def hardswish(x):
    return x * minimum(splat(f(6.0)), relu(x + splat(f(3.0)))) * splat(f(1.0 / 6.0))


@njit
def activate(code, x):
    """The activation with this code (`epilogue.ACT`) of a vector."""
    if code == 0:
        return x
    if code == 1:
        return relu(x)
    if code == 2:
        return silu(x)
    if code == 3:
        return gelu(x)
    if code == 4:
        return gelu_tanh(x)
    if code == 5:
        return hardswish(x)
    return sigmoid(x)


def _over_block(function):
    """`function` of every value of a block, in place."""

    @njit
    def block(address, rows, columns, ld):
        full = columns // LANES * LANES
        p = address
        for _ in range(rows):
            for j in range(0, full, LANES):
                store(p + 4 * j, function(load(p + 4 * j)))
            p += 4 * ld
        if full < columns and rows > 0:
            n, p = columns - full, address + 4 * full
            v = load_part(p, n)
            for _ in range(rows - 1):  # the next row is read first: processors wait where a part store is near
                ahead = load_part(p + 4 * ld, n)
                store_part(p, function(v), n)
                v = ahead
                p += 4 * ld
            store_part(p, function(v), n)

    return block


_relu_block, _silu_block, _gelu_block = _over_block(relu), _over_block(silu), _over_block(gelu)
_gelu_tanh_block, _hardswish_block, _sigmoid_block = _over_block(gelu_tanh), _over_block(hardswish), _over_block(sigmoid)


@njit
def activate_block(code, address, rows, columns, ld):
    """The activation with this code of rows x columns values at an address, in place; `ld` values from a row to the next."""
    if code == 1:
        _relu_block(address, rows, columns, ld)
    elif code == 2:
        _silu_block(address, rows, columns, ld)
    elif code == 3:
        _gelu_block(address, rows, columns, ld)
    elif code == 4:
        _gelu_tanh_block(address, rows, columns, ld)
    elif code == 5:
        _hardswish_block(address, rows, columns, ld)
    elif code == 6:
        _sigmoid_block(address, rows, columns, ld)
