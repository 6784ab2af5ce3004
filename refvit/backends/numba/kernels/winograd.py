"""Winograd convolutions F(4x4, 3x3) and F(2x2, 3x3): 36 or 16 matrix products over tiles in place of a 3x3 convolution.

A tile of 4x4 (2x2) output pixels needs 6x6 (4x4) pixels of the map. d, the pixels of a channel, become V = B' d B. Each of the
36 (16) places of V is a matrix of tiles x channels, multiplied with its own weights to M, and the tile is A' M A. This takes 4
(2.25) times fewer multiplications. After Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016). The points
of interpolation of F(4x4) are 0, 5/8, -5/8, 3/2, -3/2 and infinity: 0, 1, -1, 2, -2 cost as much and have four times the error.

A unit takes a run of tiles and a run of panels of output channels: transform, then panel by panel products and inverse, so that
V stays in the second-level cache, M of a panel mostly too, and the weights are read in the order in which they lie.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numba.core import types

from refvit.backends.numba.kernels.elementary import activate_block
from refvit.backends.numba.microkernel import NUMBER
from refvit.backends.numba.simd import (
    I64,
    LANES,
    VEC,
    _constant,
    _fma,
    _i,
    _instruction,
    _load,
    _load_part,
    _store,
    _store_part,
    _v,
    arg,
    arg_f32,
    call_tile,
    load,
    load_part,
    set_arg,
    splat,
    store,
)

f = np.float32
TABLE, TAPS, DEPTH = NUMBER["table"], NUMBER["taps"], NUMBER["depth"]
WEIGHT, LDB, OUT, LDO = NUMBER["weight"], NUMBER["ldb"], NUMBER["out"], NUMBER["ldo"]
T_BIAS, T_RESIDUAL, T_LDR, T_RELU = NUMBER["bias"], NUMBER["residual"], NUMBER["ldr"], NUMBER["relu"]
T_LAST, SKIP, AHEAD = NUMBER["last"], NUMBER["skip"], NUMBER["ahead"]
DEEPEST = 128  # channels summed in one go: longer sums are cut, because their error grows and that of F(4x4) is large already


def _forward(b: Any, d: list[Any]) -> list[Any]:
    """B' d: of each point the product of (x - every other point), a polynomial, times d, the values of x^0, x^1, ..."""
    if len(d) == 4:
        return [b.fsub(d[2], d[0]), b.fadd(d[1], d[2]), b.fsub(d[2], d[1]), b.fsub(d[3], d[1])]
    alpha, beta = 0.625, 1.5

    def times(factor: float, x: Any, y: Any) -> Any:
        return _fma(b, _constant(factor), x, y)

    result = [times((alpha * beta) ** 2, d[0], times(-(alpha**2) - beta**2, d[2], d[4]))]
    for point, other in ((alpha, beta), (beta, alpha)):
        even, odd = times(-(other**2), d[2], d[4]), times(-(other**2), d[1], d[3])
        result += [times(point, odd, even), times(-point, odd, even)]
    return [*result, times((alpha * beta) ** 2, d[1], times(-(alpha**2) - beta**2, d[3], d[5]))]


def _inverse(b: Any, m: list[Any]) -> list[Any]:
    """A' m: sums of the points' powers 0, 1, ... times m; infinity counts in the highest power only."""
    if len(m) == 4:
        return [b.fadd(m[0], b.fadd(m[1], m[2])), b.fadd(b.fsub(m[1], m[2]), m[3])]
    alpha, beta = 0.625, 1.5
    even_a, odd_a, even_b, odd_b = b.fadd(m[1], m[2]), b.fsub(m[1], m[2]), b.fadd(m[3], m[4]), b.fsub(m[3], m[4])

    def mixed(power: int, x: Any, y: Any) -> Any:
        return _fma(b, _constant(alpha**power), x, b.fmul(_constant(beta**power), y))

    last = _fma(b, _constant(alpha**3), odd_a, _fma(b, _constant(beta**3), odd_b, m[5]))
    return [b.fadd(m[0], b.fadd(even_a, even_b)), mixed(1, odd_a, odd_b), mixed(2, even_a, even_b), last]


def _at(b: Any, p: Any, *steps: tuple[int, Any]) -> Any:
    for count, step in steps:
        if count:
            p = b.add(p, b.mul(I64(count), step))
    return p


def _forward_line(side: int) -> Any:
    """Intrinsic (p, step, n, to, to_step): B' d of n channels of d[i] at p + i step, stored at to + i to_step."""

    def write(b: Any, p: Any, step: Any, n: Any, to: Any, to_step: Any) -> None:
        for i, value in enumerate(_forward(b, [_load_part(b, _at(b, p, (i, step)), n) for i in range(side)])):
            _store(b, _at(b, to, (i, to_step)), value)

    return _instruction((_i,) * 5, types.void, write)


def _inverse_line(side: int) -> Any:
    """Intrinsic (p, step, to, to_step): A' m of m[i] at p + i step, stored at to + i to_step."""

    def write(b: Any, p: Any, step: Any, to: Any, to_step: Any) -> None:
        for i, value in enumerate(_inverse(b, [_load(b, _at(b, p, (i, step))) for i in range(side)])):
            _store(b, _at(b, to, (i, to_step)), value)

    return _instruction((_i,) * 4, types.void, write)


def _last_line(side: int) -> Any:
    """Intrinsic: n channels of a row of outputs from A' m, m[i] at p + i step; bias, residual and a lower bound.

    Outputs lie `pixel` apart, residuals at q, unless it is 0, q_pixel apart. Only the first `columns` are read and written.
    """

    def write(
        b: Any, p: Any, step: Any, to: Any, pixel: Any, q: Any, q_pixel: Any, columns: Any, bias: Any, least: Any, n: Any
    ) -> None:
        values = _inverse(b, [_load(b, _at(b, p, (i, step))) for i in range(side)])
        values = [b.fadd(bias, value) for value in values]
        added = b.icmp_signed("!=", q, I64(0))
        for i, value in enumerate(values):
            with b.if_then(b.icmp_signed(">", columns, I64(i)), likely=True):
                before = b.basic_block
                with b.if_then(added):
                    total = b.fadd(value, _load_part(b, _at(b, q, (i, q_pixel)), n))
                    then = b.basic_block
                result = b.phi(VEC)
                result.add_incoming(value, before)
                result.add_incoming(total, then)
                result = b.select(b.fcmp_ordered(">", least, result), least, result)  # NaN stays
                at = _at(b, to, (i, pixel))
                if LANES == 16:  # a mask costs nothing
                    _store_part(b, at, result, n)
                    continue
                with b.if_else(b.icmp_signed("==", n, I64(LANES))) as (whole, rest):
                    with whole:
                        _store(b, at, result)
                    with rest:
                        _store_part(b, at, result, n)

    return _instruction((*(_i,) * 7, _v, _v, _i), types.void, write)


forward_6, forward_4 = _forward_line(6), _forward_line(4)
inverse_6, inverse_4 = _inverse_line(6), _inverse_line(4)
last_6, last_4 = _last_line(6), _last_line(4)
STEP = 4 * LANES  # bytes


# the arguments, in order; addresses, strides in bytes
X, X_IMAGE, X_ROW, X_PIXEL = 0, 1, 2, 3
Y, Y_IMAGE, Y_ROW, Y_PIXEL = 4, 5, 6, 7
RESIDUAL, RESIDUAL_IMAGE, RESIDUAL_ROW, RESIDUAL_PIXEL = 8, 9, 10, 11  # zeros if there is none
WEIGHTS, BIAS = 12, 13  # panels (place, c, width); a bias for every lane of the panels
H, W, C, P, Q, K, PADDING = 14, 15, 16, 17, 18, 19, 20
TILES, ACROSS, OF_IMAGE = 21, 22, 23  # tiles in all, in a row of tiles, in an image
RUNS, PANELS, GROUPS = 24, 25, 26  # runs of tiles, panels of weights, runs of panels
VECTORS, LAST_VECTORS, MOST, LAST_MOST = 27, 28, 29, 30  # registers of a panel, rows of its largest register tile; of the last
LEAST, ACT = 31, 32  # outputs are at least that, float32; a code of `epilogue.ACT` to apply to finished tiles
V_TILE, V_PLACE, M_TILE, SIDE = (
    33,
    34,
    35,
    36,
)  # bytes from tile to tile, place to place, tile to tile of M; side of a tile of V
LANE_AT, PATCH_AT, M_AT, V_AT = 37, 38, 39, 40  # offsets in scratch
FUNCTIONS = 41  # register tiles of 1 to MOST rows for a panel, then of 1 to LAST_MOST rows for the last one
TABLE_AT, FIELDS_AT = 0, 256  # in scratch


@njit
def copy_patch(a, image, y, x, side, patch, ld):
    """side x side pixels from (y, x) on, zeros outside of the map."""
    c, h, w = arg(a, C), arg(a, H), arg(a, W)
    row, pixel = arg(a, X_ROW), arg(a, X_PIXEL)
    for i in range(side):
        inside = y + i >= 0 and y + i < h
        for j in range(side):
            to = patch + (i * side + j) * ld
            if inside and x + j >= 0 and x + j < w:
                at = image + (y + i) * row + (x + j) * pixel
                for k in range(0, c, LANES):
                    store(to + 4 * k, load_part(at + 4 * k, min(LANES, c - k)))
            else:
                for k in range(0, c, LANES):
                    store(to + 4 * k, splat(f(0.0)))


@njit
def forward(a, first, count, v, scratch, size, line):
    """V of `count` tiles."""
    c, h, w = arg(a, C), arg(a, H), arg(a, W)
    across, of_image, padding = arg(a, ACROSS), arg(a, OF_IMAGE), arg(a, PADDING)
    v_tile, v_place = arg(a, V_TILE), arg(a, V_PLACE)
    # the same, but not to LLVM: the loops stay loops, and values go through memory unspilt
    side, sides = size + 2, arg(a, SIDE)
    patch, lane, ld = scratch + arg(a, PATCH_AT), scratch + arg(a, LANE_AT), STEP * ((c + LANES - 1) // LANES)
    for t in range(first, first + count):
        image = t // of_image
        place = t - image * of_image
        i = place // across
        y, x = i * size - padding, (place - i * across) * size - padding
        at = arg(a, X) + image * arg(a, X_IMAGE)
        row, pixel = arg(a, X_ROW), arg(a, X_PIXEL)
        if y < 0 or x < 0 or y + side > h or x + side > w:
            copy_patch(a, at, y, x, side, patch, ld)
            at, row, pixel = patch, side * ld, ld
        else:
            at += y * row + x * pixel
        for k in range(0, c, LANES):
            n = min(LANES, c - k)
            for i in range(sides):
                line(at + 4 * k + i * row, pixel, n, lane + i * side * STEP, STEP)
            for i in range(sides):
                line(lane + i * STEP, side * STEP, LANES, v + 4 * k + i * v_place, side * v_place)
        v += v_tile


@njit
def products(a, panel, count, v, scratch, places):
    """M of `count` tiles, for a panel of output channels, place by place."""
    vectors, most, functions = arg(a, VECTORS), arg(a, MOST), FUNCTIONS
    weight = arg(a, WEIGHTS) + panel * places * arg(a, C) * vectors * STEP
    if panel == arg(a, PANELS) - 1:
        functions += most
        vectors, most = arg(a, LAST_VECTORS), arg(a, LAST_MOST)
    width = vectors * STEP
    fields, table = scratch + FIELDS_AT, scratch + TABLE_AT
    set_arg(fields, TABLE, table)
    set_arg(fields, TAPS, 1)
    set_arg(fields, LDB, vectors * LANES)
    set_arg(fields, LDO, arg(a, M_TILE) // 4)
    set_arg(fields, T_LDR, arg(a, M_TILE) // 4)
    set_arg(fields, T_BIAS, 0)
    set_arg(fields, T_RELU, 0)
    set_arg(fields, T_LAST, LANES)
    set_arg(fields, SKIP, 0)
    v_tile, v_place = arg(a, V_TILE), arg(a, V_PLACE)
    m, m_tile = scratch + arg(a, M_AT), arg(a, M_TILE)
    blocks = (count + most - 1) // most
    depth = arg(a, C)
    pieces = (depth + DEEPEST - 1) // DEEPEST
    for _ in range(places):
        for block in range(blocks):
            begin, end = count * block // blocks, count * (block + 1) // blocks
            row = v + begin * v_tile
            for i in range(end - begin):
                set_arg(table, i, row)
                row += v_tile
            out = m + begin * m_tile
            set_arg(fields, OUT, out)
            for piece in range(pieces):
                skip, stop = depth * piece // pieces, depth * (piece + 1) // pieces
                set_arg(fields, SKIP, skip)
                set_arg(fields, DEPTH, stop - skip)
                set_arg(fields, WEIGHT, weight + skip * width)
                set_arg(fields, T_RESIDUAL, out if piece > 0 else 0)
                # of the next place, another part for every block; beyond the last place lies the next panel
                ahead = weight + (depth + skip) * width + (stop - skip) * min(64 * block, width - 64)
                set_arg(fields, AHEAD, ahead)
                call_tile(arg(a, functions + end - begin - 1), fields)
        v += v_place
        m += width
        weight += depth * width


@njit
def inverse(a, panel, first, count, scratch, size, line, last_line):
    """The output's pixels of `count` tiles, for a panel of output channels, from M."""
    across, of_image = arg(a, ACROSS), arg(a, OF_IMAGE)
    row, pixel = arg(a, Y_ROW), arg(a, Y_PIXEL)
    residual, q_row, q_pixel = arg(a, RESIDUAL), arg(a, RESIDUAL_ROW), arg(a, RESIDUAL_PIXEL)
    vectors = arg(a, LAST_VECTORS) if panel == arg(a, PANELS) - 1 else arg(a, VECTORS)
    least, act = splat(arg_f32(a, LEAST)), arg(a, ACT)
    channel = panel * arg(a, VECTORS) * LANES
    channels = min(vectors * LANES, arg(a, K) - channel)
    side, sides = size + 2, arg(a, SIDE)
    m, lane, step = scratch + arg(a, M_AT), scratch + arg(a, LANE_AT), vectors * STEP
    for t in range(first, first + count):
        image = t // of_image
        place = t - image * of_image
        i = place // across
        y, x = i * size, (place - i * across) * size
        rows, columns = min(size, arg(a, P) - y), min(size, arg(a, Q) - x)
        to = arg(a, Y) + image * arg(a, Y_IMAGE) + y * row + x * pixel + 4 * channel
        added = 0
        if residual != 0:
            added = residual + image * arg(a, RESIDUAL_IMAGE) + y * q_row + x * q_pixel + 4 * channel
        for k in range(0, channels, LANES):
            bias = load(arg(a, BIAS) + 4 * (channel + k))
            for i in range(sides):
                line(m + 4 * k + i * step, side * step, lane + i * STEP, side * STEP)
            for i in range(rows):
                q = added + 4 * k + i * q_row if residual != 0 else 0
                n = min(LANES, channels - k)
                last_line(lane + i * side * STEP, STEP, to + 4 * k + i * row, pixel, q, q_pixel, columns, bias, least, n)
        if act > 1:
            for i in range(rows):
                activate_block(act, to + i * row, columns, channels, pixel // 4)
        m += arg(a, M_TILE)


@njit
def convolution(a, unit, scratch, size, line, inverse_line, last_line):
    runs, groups, tiles, panels = arg(a, RUNS), arg(a, GROUPS), arg(a, TILES), arg(a, PANELS)
    group = unit // runs
    run = unit - group * runs
    first = tiles * run // runs
    count = tiles * (run + 1) // runs - first
    v = scratch + arg(a, V_AT)
    forward(a, first, count, v, scratch, size, line)
    for panel in range(panels * group // groups, panels * (group + 1) // groups):
        products(a, panel, count, v, scratch, (size + 2) * (size + 2))
        inverse(a, panel, first, count, scratch, size, inverse_line, last_line)


def f4(a, unit, scratch):
    """F(4x4, 3x3)."""
    convolution(a, unit, scratch, 4, forward_6, inverse_6, last_6)


def f2(a, unit, scratch):
    """F(2x2, 3x3)."""
    convolution(a, unit, scratch, 2, forward_4, inverse_4, last_4)
