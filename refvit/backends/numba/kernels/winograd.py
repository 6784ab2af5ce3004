"""Winograd convolutions F(4x4, 3x3) and F(2x2, 3x3): 36 or 16 matrix products over tiles in place of a 3x3 convolution.

A tile of 4x4 (2x2) output pixels needs 6x6 (4x4) pixels of the map. d, the pixels of a channel, become V = B' d B; every one of the
36 (16) places of V is a matrix of tiles x channels, multiplied with its own weights; the tile is A' M A of the products. This is 4
(2.25) times fewer multiplications. After Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016). The points of
interpolation of F(4x4) are 0, 5/8, -5/8, 3/2, -3/2 and infinity: 0, 1, -1, 2, -2 cost as much and have four times the error.

A unit takes a block of tiles and a group of panels of output channels: transform, then panel by panel products and inverse, so
that V stays in the second-level cache, M almost in the first, and the weights are read in the order in which they lie.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from refvit.backends.numba.kernels.elementary import activate_block
from refvit.backends.numba.microkernel import NUMBER
from refvit.backends.numba.simd import (
    LANES,
    arg,
    arg_f32,
    call_tile,
    fma,
    load,
    load_part,
    maximum,
    set_arg,
    splat,
    store,
    store_part,
)

f = np.float32
A1, A2, A3 = f(0.625), f(0.390625), f(0.244140625)  # 5/8 and its powers
B1, B2, B3 = f(1.5), f(2.25), f(3.375)
PRODUCT, SUM = f(0.87890625), f(2.640625)  # A2 B2, A2 + B2
TABLE, TAPS, DEPTH = NUMBER["table"], NUMBER["taps"], NUMBER["depth"]
WEIGHT, LDB, OUT, LDO = NUMBER["weight"], NUMBER["ldb"], NUMBER["out"], NUMBER["ldo"]
T_BIAS, T_RESIDUAL, T_RELU, T_LAST, SKIP = (NUMBER[i] for i in ("bias", "residual", "relu", "last", "skip"))


@njit
def part(p, n):
    """The first n lanes; masks cost nothing with AVX-512, and much elsewhere."""
    if LANES < 16 and n == LANES:
        return load(p)
    return load_part(p, n)


@njit
def put_part(p, v, n):
    if LANES < 16 and n == LANES:
        store(p, v)
    else:
        store_part(p, v, n)


@njit
def forward_6(d0, d1, d2, d3, d4, d5):
    """B' d of F(4, 3)."""
    a, b, a2, b2 = splat(A1), splat(B1), splat(-A2), splat(-B2)
    even_a, odd_a = fma(b2, d2, d4), fma(b2, d1, d3)
    even_b, odd_b = fma(a2, d2, d4), fma(a2, d1, d3)
    return (
        fma(splat(PRODUCT), d0, fma(splat(-SUM), d2, d4)),
        fma(a, odd_a, even_a),
        fma(splat(-A1), odd_a, even_a),
        fma(b, odd_b, even_b),
        fma(splat(-B1), odd_b, even_b),
        fma(splat(PRODUCT), d1, fma(splat(-SUM), d3, d5)),
    )


@njit
def inverse_6(m0, m1, m2, m3, m4, m5):
    """A' m of F(4, 3)."""
    sum_a, difference_a, sum_b, difference_b = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return (
        m0 + sum_a + sum_b,
        fma(splat(A1), difference_a, splat(B1) * difference_b),
        fma(splat(A2), sum_a, splat(B2) * sum_b),
        fma(splat(A3), difference_a, fma(splat(B3), difference_b, m5)),
    )


@njit
def row_6(p, step, n):
    return forward_6(
        part(p, n),
        part(p + step, n),
        part(p + 2 * step, n),
        part(p + 3 * step, n),
        part(p + 4 * step, n),
        part(p + 5 * step, n),
    )


@njit
def put_6(v, step, x):
    store(v, x[0])
    store(v + step, x[1])
    store(v + 2 * step, x[2])
    store(v + 3 * step, x[3])
    store(v + 4 * step, x[4])
    store(v + 5 * step, x[5])


@njit
def transform_6(p, row, pixel, n, v, step):
    """V of LANES channels of a tile of 6x6 pixels at p; V's places lie `step` bytes apart."""
    r0 = row_6(p, pixel, n)
    r1 = row_6(p + row, pixel, n)
    r2 = row_6(p + 2 * row, pixel, n)
    r3 = row_6(p + 3 * row, pixel, n)
    r4 = row_6(p + 4 * row, pixel, n)
    r5 = row_6(p + 5 * row, pixel, n)
    put_6(v, 6 * step, forward_6(r0[0], r1[0], r2[0], r3[0], r4[0], r5[0]))
    put_6(v + step, 6 * step, forward_6(r0[1], r1[1], r2[1], r3[1], r4[1], r5[1]))
    put_6(v + 2 * step, 6 * step, forward_6(r0[2], r1[2], r2[2], r3[2], r4[2], r5[2]))
    put_6(v + 3 * step, 6 * step, forward_6(r0[3], r1[3], r2[3], r3[3], r4[3], r5[3]))
    put_6(v + 4 * step, 6 * step, forward_6(r0[4], r1[4], r2[4], r3[4], r4[4], r5[4]))
    put_6(v + 5 * step, 6 * step, forward_6(r0[5], r1[5], r2[5], r3[5], r4[5], r5[5]))


@njit
def column_6(m, step):
    return inverse_6(
        load(m), load(m + 6 * step), load(m + 12 * step), load(m + 18 * step), load(m + 24 * step), load(m + 30 * step)
    )


@njit
def finish(p, residual, y, bias, least, n):
    """Store a pixel's outputs."""
    y = y + bias
    if residual != 0:
        y = y + part(residual, n)
    put_part(p, maximum(least, y), n)  # of NaN and `least` the second: NaN stays


@njit
def finish_4(p, pixel, residual, residual_pixel, columns, y, bias, least, n):
    finish(p, residual, y[0], bias, least, n)
    if columns > 1:
        finish(p + pixel, residual + residual_pixel, y[1], bias, least, n)
    if columns > 2:
        finish(p + 2 * pixel, residual + 2 * residual_pixel, y[2], bias, least, n)
    if columns > 3:
        finish(p + 3 * pixel, residual + 3 * residual_pixel, y[3], bias, least, n)


@njit
def inverse_4x4(m, step, p, row, pixel, q, q_row, q_pixel, rows, columns, bias, least, n):
    """A tile of the output from M at m, at most rows x columns of it; residual at q unless it is 0."""
    c0, c1, c2 = column_6(m, step), column_6(m + step, step), column_6(m + 2 * step, step)
    c3, c4, c5 = column_6(m + 3 * step, step), column_6(m + 4 * step, step), column_6(m + 5 * step, step)
    finish_4(p, pixel, q, q_pixel, columns, inverse_6(c0[0], c1[0], c2[0], c3[0], c4[0], c5[0]), bias, least, n)
    if rows > 1:
        y = inverse_6(c0[1], c1[1], c2[1], c3[1], c4[1], c5[1])
        finish_4(p + row, pixel, q + q_row, q_pixel, columns, y, bias, least, n)
    if rows > 2:
        y = inverse_6(c0[2], c1[2], c2[2], c3[2], c4[2], c5[2])
        finish_4(p + 2 * row, pixel, q + 2 * q_row, q_pixel, columns, y, bias, least, n)
    if rows > 3:
        y = inverse_6(c0[3], c1[3], c2[3], c3[3], c4[3], c5[3])
        finish_4(p + 3 * row, pixel, q + 3 * q_row, q_pixel, columns, y, bias, least, n)


@njit
def forward_4(d0, d1, d2, d3):
    """B' d of F(2, 3), points 0, 1, -1 and infinity."""
    return d2 - d0, d1 + d2, d2 - d1, d3 - d1


@njit
def row_4(p, step, n):
    return forward_4(part(p, n), part(p + step, n), part(p + 2 * step, n), part(p + 3 * step, n))


@njit
def put_4(v, step, x):
    store(v, x[0])
    store(v + step, x[1])
    store(v + 2 * step, x[2])
    store(v + 3 * step, x[3])


@njit
def transform_4(p, row, pixel, n, v, step):
    """V of LANES channels of a tile of 4x4 pixels."""
    r0 = row_4(p, pixel, n)
    r1 = row_4(p + row, pixel, n)
    r2 = row_4(p + 2 * row, pixel, n)
    r3 = row_4(p + 3 * row, pixel, n)
    put_4(v, 4 * step, forward_4(r0[0], r1[0], r2[0], r3[0]))
    put_4(v + step, 4 * step, forward_4(r0[1], r1[1], r2[1], r3[1]))
    put_4(v + 2 * step, 4 * step, forward_4(r0[2], r1[2], r2[2], r3[2]))
    put_4(v + 3 * step, 4 * step, forward_4(r0[3], r1[3], r2[3], r3[3]))


@njit
def inverse_4(m0, m1, m2, m3):
    """A' m of F(2, 3)."""
    return m0 + m1 + m2, m1 - m2 + m3


@njit
def column_4(m, step):
    return inverse_4(load(m), load(m + 4 * step), load(m + 8 * step), load(m + 12 * step))


@njit
def inverse_2x2(m, step, p, row, pixel, q, q_row, q_pixel, rows, columns, bias, least, n):
    """As inverse_4x4, of F(2x2, 3x3)."""
    c0, c1, c2, c3 = column_4(m, step), column_4(m + step, step), column_4(m + 2 * step, step), column_4(m + 3 * step, step)
    y = inverse_4(c0[0], c1[0], c2[0], c3[0])
    finish(p, q, y[0], bias, least, n)
    if columns > 1:
        finish(p + pixel, q + q_pixel, y[1], bias, least, n)
    if rows > 1:
        y = inverse_4(c0[1], c1[1], c2[1], c3[1])
        finish(p + row, q + q_row, y[0], bias, least, n)
        if columns > 1:
            finish(p + row + pixel, q + q_row + q_pixel, y[1], bias, least, n)


# the arguments, in order; addresses, strides in bytes
X, X_IMAGE, X_ROW, X_PIXEL = 0, 1, 2, 3
P_OUT, OUT_IMAGE, OUT_ROW, OUT_PIXEL = 4, 5, 6, 7
RESIDUAL, RESIDUAL_IMAGE, RESIDUAL_ROW, RESIDUAL_PIXEL = 8, 9, 10, 11
WEIGHTS, BIAS = 12, 13  # panels (place, c, width); a bias for every lane of the panels
H, W, C, P, Q, K, TOP, LEFT = 14, 15, 16, 17, 18, 19, 20, 21
TILES, ACROSS, OF_IMAGE = 22, 23, 24  # tiles in all, in a row of tiles, in an image
BLOCKS, PANELS, GROUPS = 25, 26, 27  # runs of tiles, panels, runs of panels
VECTORS, LAST_VECTORS, MOST, LAST_MOST = 28, 29, 30, 31  # of a panel and of the last panel: registers, rows of the largest register tile
LEAST, ACT = 32, 33  # outputs are at least that, float32; a code of `epilogue.ACT` to apply to finished tiles
PATCH, V, V_TILE, V_PLACE, M, M_TILE = 34, 35, 36, 37, 38, 39  # offsets in scratch, bytes from tile to tile, place to place
FUNCTIONS = 40  # register tiles of 1 to MOST rows for a panel, then of 1 to LAST_MOST rows for the last one
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
                    store(to + 4 * k, part(at + 4 * k, min(LANES, c - k)))
            else:
                for k in range(0, c, LANES):
                    store(to + 4 * k, splat(f(0.0)))


@njit
def forward(a, first, count, scratch, size, transform):
    """V of `count` tiles."""
    c, h, w = arg(a, C), arg(a, H), arg(a, W)
    across, of_image = arg(a, ACROSS), arg(a, OF_IMAGE)
    top, left = arg(a, TOP), arg(a, LEFT)
    v, v_tile, v_place = scratch + arg(a, V), arg(a, V_TILE), arg(a, V_PLACE)
    patch, ld, side = scratch + arg(a, PATCH), 4 * ((c + LANES - 1) // LANES * LANES), size + 2
    for t in range(count):
        image = (first + t) // of_image
        place = (first + t) - image * of_image
        i = place // across
        y, x = i * size - top, (place - i * across) * size - left
        at = arg(a, X) + image * arg(a, X_IMAGE)
        row, pixel = arg(a, X_ROW), arg(a, X_PIXEL)
        if y < 0 or x < 0 or y + side > h or x + side > w:
            copy_patch(a, at, y, x, side, patch, ld)
            at, row, pixel = patch, side * ld, ld
        else:
            at += y * row + x * pixel
        for k in range(0, c, LANES):
            transform(at + 4 * k, row, pixel, min(LANES, c - k), v + 4 * k, v_place)
        v += v_tile


@njit
def products(a, panel, count, scratch, places):
    """M of `count` tiles, for a panel of output channels, place by place."""
    final = panel == arg(a, PANELS) - 1
    vectors, most, functions = arg(a, VECTORS), arg(a, MOST), FUNCTIONS
    weight = arg(a, WEIGHTS) + 4 * panel * places * arg(a, C) * vectors * LANES
    if final:
        functions += most
        vectors, most = arg(a, LAST_VECTORS), arg(a, LAST_MOST)
    width = 4 * vectors * LANES
    fields, table = scratch + FIELDS_AT, scratch + TABLE_AT
    set_arg(fields, TABLE, table)
    set_arg(fields, TAPS, 1)
    set_arg(fields, DEPTH, arg(a, C))
    set_arg(fields, LDB, vectors * LANES)
    set_arg(fields, LDO, arg(a, M_TILE) // 4)
    set_arg(fields, T_BIAS, 0)
    set_arg(fields, T_RESIDUAL, 0)
    set_arg(fields, T_RELU, 0)
    set_arg(fields, T_LAST, LANES)
    set_arg(fields, SKIP, 0)
    v, v_tile, v_place = scratch + arg(a, V), arg(a, V_TILE), arg(a, V_PLACE)
    m, m_tile = scratch + arg(a, M), arg(a, M_TILE)
    blocks = (count + most - 1) // most
    for place in range(places):
        set_arg(fields, WEIGHT, weight)
        for block in range(blocks):
            begin, end = count * block // blocks, count * (block + 1) // blocks
            row = v + begin * v_tile
            for i in range(end - begin):
                set_arg(table, i, row)
                row += v_tile
            set_arg(fields, OUT, m + begin * m_tile)
            call_tile(arg(a, functions + end - begin - 1), fields)
        v += v_place
        m += width
        weight += arg(a, C) * width


@njit
def backward(a, panel, first, count, scratch, size, inverse):
    """The output's pixels of `count` tiles, for a panel of output channels, from M."""
    p_most, q_most, k_most = arg(a, P), arg(a, Q), arg(a, K)
    across, of_image = arg(a, ACROSS), arg(a, OF_IMAGE)
    row, pixel = arg(a, OUT_ROW), arg(a, OUT_PIXEL)
    residual, q_row, q_pixel = arg(a, RESIDUAL), arg(a, RESIDUAL_ROW), arg(a, RESIDUAL_PIXEL)
    vectors = arg(a, LAST_VECTORS) if panel == arg(a, PANELS) - 1 else arg(a, VECTORS)
    least, act = splat(arg_f32(a, LEAST)), arg(a, ACT)
    channel = panel * arg(a, VECTORS) * LANES
    m = scratch + arg(a, M)
    for t in range(count):
        image = (first + t) // of_image
        place = (first + t) - image * of_image
        i = place // across
        y, x = i * size, (place - i * across) * size
        rows, columns = min(size, p_most - y), min(size, q_most - x)
        out = arg(a, P_OUT) + image * arg(a, OUT_IMAGE) + y * row + x * pixel + 4 * channel
        q = residual
        if residual != 0:
            q += image * arg(a, RESIDUAL_IMAGE) + y * q_row + x * q_pixel + 4 * channel
        for j in range(vectors):
            k = j * LANES
            n = min(LANES, k_most - channel - k)
            bias = load(arg(a, BIAS) + 4 * (channel + k))
            to = out + 4 * k
            fro = q + 4 * k if residual != 0 else 0
            inverse(m + 4 * k, 4 * vectors * LANES, to, row, pixel, fro, q_row, q_pixel, rows, columns, bias, least, n)
        if act > 1:
            for i in range(rows):
                activate_block(act, out + i * row, columns, min(vectors * LANES, k_most - channel), pixel // 4)
        m += arg(a, M_TILE)


@njit
def block(a, unit, scratch, size, transform, inverse):
    blocks, groups, tiles, panels = arg(a, BLOCKS), arg(a, GROUPS), arg(a, TILES), arg(a, PANELS)
    run = unit // groups
    group = unit - run * groups
    first = tiles * run // blocks
    count = tiles * (run + 1) // blocks - first
    forward(a, first, count, scratch, size, transform)
    for panel in range(panels * group // groups, panels * (group + 1) // groups):
        products(a, panel, count, scratch, (size + 2) * (size + 2))
        backward(a, panel, first, count, scratch, size, inverse)


def f4(a, unit, scratch):
    """F(4x4, 3x3)."""
    block(a, unit, scratch, 4, transform_6, inverse_4x4)


def f2(a, unit, scratch):
    """F(2x2, 3x3)."""
    block(a, unit, scratch, 2, transform_4, inverse_2x2)
