"""Winograd convolutions F(4x4, 3x3) and F(2x2, 3x3): 36 or 16 matrix products over tiles in place of a 3x3 convolution.

A tile of 4x4 (2x2) output pixels needs 6x6 (4x4) pixels of the map. d, the pixels of a channel, become V = B' d B. Each of the
36 (16) places of V is a matrix of tiles x channels, multiplied with its own weights to M, and the tile is A' M A. This takes 4
(2.25) times fewer multiplications. After Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016). The points
of interpolation of F(4x4) are 0, 5/8, -5/8, 3/2, -3/2 and infinity: 0, 1, -1, 2, -2 cost as much and have four times the error.

With stride 2 the pixels of even and of odd place are two maps, and a line of three taps is one of two over the even ones and
one of one over the odd ones. F(2, 2) of the former has three places, of which the outer two belong to one output each: there
the latter joins the sum. S(2x2) so has 9 places and 25 values for each channel, against 36 multiplications, and only adds.

A unit takes a run of tiles and a run of panels of output channels: transform, then panel by panel products and inverse, so that
V stays in the second-level cache, M of a panel mostly too, and the weights are read in the order in which they lie.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from refvit.backends.numba.kernels.elementary import activate_block
from refvit.backends.numba.kernels.transforms import (
    forward_4,
    forward_6,
    forward_strided,
    inverse_3,
    inverse_4,
    inverse_6,
    last_3,
    last_4,
    last_6,
)
from refvit.backends.numba.microkernel import NUMBER
from refvit.backends.numba.simd import LANES, arg, arg_f32, call_tile, load, load_part, set_arg, splat, store

f = np.float32
TABLE, TAPS, DEPTH = NUMBER["table"], NUMBER["taps"], NUMBER["depth"]
WEIGHT, LDB, OUT, LDO = NUMBER["weight"], NUMBER["ldb"], NUMBER["out"], NUMBER["ldo"]
T_BIAS, T_RESIDUAL, T_LDR, T_RELU = NUMBER["bias"], NUMBER["residual"], NUMBER["ldr"], NUMBER["relu"]
T_LAST, SKIP = NUMBER["last"], NUMBER["skip"]
AHEAD, PACE = NUMBER["ahead"], NUMBER["pace"]
DEEPEST = 128  # terms summed in one go: longer sums are cut, because their error grows and that of F(4x4) is large already
DEEPEST_SUM = 384  # where the transforms only add
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
V_TILE, V_PLACE, M_TILE = 33, 34, 35  # bytes from tile to tile, place to place, tile to tile of M
SIDE = 36  # places in a line
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
def patch_of(a, t, step, side, scratch):
    """Where the pixels of a tile are, from row to row, from pixel to pixel: in the map, or a copy with its border."""
    across, of_image, padding = arg(a, ACROSS), arg(a, OF_IMAGE), arg(a, PADDING)
    image = t // of_image
    place = t - image * of_image
    i = place // across
    y, x = i * step - padding, (place - i * across) * step - padding
    at = arg(a, X) + image * arg(a, X_IMAGE)
    if y >= 0 and x >= 0 and y + side <= arg(a, H) and x + side <= arg(a, W):
        row, pixel = arg(a, X_ROW), arg(a, X_PIXEL)
        return at + y * row + x * pixel, row, pixel
    patch, ld = scratch + arg(a, PATCH_AT), STEP * ((arg(a, C) + LANES - 1) // LANES)
    copy_patch(a, at, y, x, side, patch, ld)
    return patch, side * ld, ld


@njit
def forward(a, first, count, v, scratch, size, line):
    """V of `count` tiles."""
    c = arg(a, C)
    v_tile, v_place, lane = arg(a, V_TILE), arg(a, V_PLACE), scratch + arg(a, LANE_AT)
    # the same, but not to LLVM: the loops stay loops, and values go through memory unspilt
    side, sides = size + 2, arg(a, SIDE)
    for t in range(first, first + count):
        at, row, pixel = patch_of(a, t, size, side, scratch)
        for k in range(0, c, LANES):
            n = min(LANES, c - k)
            for i in range(sides):
                line(at + 4 * k + i * row, pixel, n, lane + i * side * STEP, STEP)
            for i in range(sides):
                line(lane + i * STEP, side * STEP, LANES, v + 4 * k + i * v_place, side * v_place)
        v += v_tile


@njit
def forward_of_stride_2(a, first, count, v, scratch):
    """V of `count` tiles of S(2x2)."""
    c = arg(a, C)
    v_tile, v_place = arg(a, V_TILE), arg(a, V_PLACE)
    for t in range(first, first + count):
        at, row, pixel = patch_of(a, t, 4, 5, scratch)
        for k in range(0, c, LANES):
            forward_strided(at + 4 * k, row, pixel, min(LANES, c - k), v + 4 * k, v_place, 4 * c)
        v += v_tile


@njit
def products(a, panel, count, v, scratch, places, slots, deepest):
    """M of `count` tiles, for a panel of output channels, place by place. slots: values of V for each channel and tile."""
    vectors, most, functions = arg(a, VECTORS), arg(a, MOST), FUNCTIONS
    weight = arg(a, WEIGHTS) + panel * slots * arg(a, C) * vectors * STEP
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
    v_tile, v_place = arg(a, V_TILE), arg(a, V_PLACE)
    m, m_tile = scratch + arg(a, M_AT), arg(a, M_TILE)
    blocks = (count + most - 1) // most
    pace = width // blocks
    set_arg(fields, PACE, pace)
    for place in range(places):
        depth = arg(a, C)
        if slots != places:
            depth *= (1 + (place // 3 != 1)) * (1 + (place % 3 != 1))
        pieces = (depth + deepest - 1) // deepest
        for piece in range(pieces):
            skip, stop = depth * piece // pieces, depth * (piece + 1) // pieces
            set_arg(fields, SKIP, skip)
            set_arg(fields, DEPTH, stop - skip)
            set_arg(fields, WEIGHT, weight + skip * width)
            for block in range(blocks):
                begin, end = count * block // blocks, count * (block + 1) // blocks
                row = v + begin * v_tile
                for i in range(end - begin):
                    set_arg(table, i, row)
                    row += v_tile
                out = m + begin * m_tile
                set_arg(fields, OUT, out)
                set_arg(fields, T_RESIDUAL, out if piece > 0 else 0)
                # of what lies behind this piece, another part for every block; behind the last place lies the next panel
                set_arg(fields, AHEAD, weight + stop * width + (stop - skip) * block * pace)
                call_tile(arg(a, functions + end - begin - 1), fields)
        v += v_place
        m += width
        weight += depth * width


@njit
def inverse(a, panel, first, count, scratch, size, side, line, last_line):
    """The output's pixels of `count` tiles, for a panel of output channels, from M."""
    across, of_image = arg(a, ACROSS), arg(a, OF_IMAGE)
    row, pixel = arg(a, Y_ROW), arg(a, Y_PIXEL)
    residual, q_row, q_pixel = arg(a, RESIDUAL), arg(a, RESIDUAL_ROW), arg(a, RESIDUAL_PIXEL)
    vectors = arg(a, LAST_VECTORS) if panel == arg(a, PANELS) - 1 else arg(a, VECTORS)
    least, act = splat(arg_f32(a, LEAST)), arg(a, ACT)
    channel = panel * arg(a, VECTORS) * LANES
    channels = min(vectors * LANES, arg(a, K) - channel)
    sides = arg(a, SIDE)
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
def part(a, unit):
    """First tile, number of tiles, first panel and the one behind the last of a unit."""
    runs, groups, tiles, panels = arg(a, RUNS), arg(a, GROUPS), arg(a, TILES), arg(a, PANELS)
    group = unit // runs
    run = unit - group * runs
    first = tiles * run // runs
    return first, tiles * (run + 1) // runs - first, panels * group // groups, panels * (group + 1) // groups


@njit
def convolution(a, unit, scratch, size, line, inverse_line, last_line):
    first, count, panel, stop = part(a, unit)
    v, side = scratch + arg(a, V_AT), size + 2
    forward(a, first, count, v, scratch, size, line)
    for k in range(panel, stop):
        products(a, k, count, v, scratch, side * side, side * side, DEEPEST)
        inverse(a, k, first, count, scratch, size, side, inverse_line, last_line)


def f4(a, unit, scratch):
    """F(4x4, 3x3)."""
    convolution(a, unit, scratch, 4, forward_6, inverse_6, last_6)


def f2(a, unit, scratch):
    """F(2x2, 3x3)."""
    convolution(a, unit, scratch, 2, forward_4, inverse_4, last_4)


def s2(a, unit, scratch):
    """S(2x2): stride 2."""
    first, count, panel, stop = part(a, unit)
    v = scratch + arg(a, V_AT)
    forward_of_stride_2(a, first, count, v, scratch)
    for k in range(panel, stop):
        products(a, k, count, v, scratch, 9, 25, DEEPEST_SUM)
        inverse(a, k, first, count, scratch, 2, 3, inverse_3, last_3)
