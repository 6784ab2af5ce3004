"""Depthwise convolutions: a vector is some channels of one pixel, each with its own kernel.

The interior of a map, where whole windows lie inside, is cut into tiles of output pixels whose sums stay in registers: every
input vector is loaded once for all the outputs of a tile that it reaches. Pixels whose window leaves the map, and kernels that
have no tile, go one by one over the taps that count. Both write plain sums; the residual and the activation follow row by row
while those are in cache.
"""

from numba import njit
from numba.core import types

from refvit.backends.numba.cpu import target
from refvit.backends.numba.kernels.elementary import activate_block
from refvit.backends.numba.simd import (
    I64,
    LANES,
    _fma,
    _instruction,
    _load,
    _load_part,
    _store,
    _store_part,
    arg,
    fma,
    load,
    load_part,
    splat,
    store,
    store_part,
)

# the arguments, in order: addresses; _IMAGE, _ROW and _COLUMN are bytes from one to the next
X, X_IMAGE, X_ROW, X_COLUMN, H, W, C = 0, 1, 2, 3, 4, 5, 6
R, S, STRIDE_H, STRIDE_W, TOP, LEFT, DILATION_H, DILATION_W = 7, 8, 9, 10, 11, 12, 13, 14
OUT, OUT_IMAGE, OUT_ROW, OUT_COLUMN, P, Q = 15, 16, 17, 18, 19, 20
RESIDUAL, RESIDUAL_IMAGE, RESIDUAL_ROW, RESIDUAL_COLUMN = 21, 22, 23, 24  # address 0: none
WEIGHT, BIAS, WEIGHT_TAP = 25, 26, 27  # (taps, c) and (c,), channels padded to whole vectors; bytes from a tap to the next
PRE_ACT, ACT = 28, 29  # codes of `epilogue.ACT`: of what is read, of the result
KIND = 30  # 0 none, or the tile: 1 for 3x3, 2 for 3x3 of stride 2, 3 for 5x5
BANDS, BAND, FIRST = 31, 32, 33  # bands of rows; rows in each, but the first has FIRST rows more
BLOCKS, BLOCK = 34, 35  # blocks of channels, channels in each

TILE_ROWS = 2
TILE_COLUMNS = 6 if target().rows > 6 else 4  # where there are 32 registers; otherwise, and for stride 2, 4


def _tile(size, stride, whole):
    """The sums of TILE_ROWS rows of outputs for a size x size kernel, as an intrinsic

    (x, bytes of a row, of a column, weight, bytes of a tap, bias, out, bytes of a row, of a column, lanes).
    """
    rows, columns = TILE_ROWS, TILE_COLUMNS if stride == 1 else 4

    def write(b, x, x_row, x_column, weight, weight_tap, bias, out, out_row, out_column, n):
        def at(base, *steps):
            for count, step in steps:
                base = b.add(base, b.mul(step, I64(count))) if count else base
            return base

        def value(address):
            return _load(b, address) if whole else _load_part(b, address, n)

        start = _load(b, bias)
        sums = {(i, j): start for i in range(rows) for j in range(columns)}
        for iy in range((rows - 1) * stride + size):
            line = [value(at(x, (iy, x_row), (ix, x_column))) for ix in range((columns - 1) * stride + size)]
            for i in range(rows):
                r = iy - i * stride
                if not 0 <= r < size:
                    continue
                for s in range(size):
                    w = _load(b, at(weight, (r * size + s, weight_tap)))
                    for j in range(columns):
                        sums[i, j] = _fma(b, line[j * stride + s], w, sums[i, j])
        for (i, j), total in sums.items():
            address = at(out, (i, out_row), (j, out_column))
            if whole:
                _store(b, address, total)
            else:
                _store_part(b, address, total, n)

    return _instruction((types.int64,) * 10, types.void, write)


near, near_part = _tile(3, 1, True), _tile(3, 1, False)
down, down_part = _tile(3, 2, True), _tile(3, 2, False)
far, far_part = _tile(5, 1, True), _tile(5, 1, False)


@njit
def tile(kind, x, x_row, x_column, weight, weight_tap, bias, out, out_row, out_column, channels):
    """All channels of a tile."""
    c = 0
    while c < channels:
        n = min(LANES, channels - c)
        if n == LANES:
            if kind == 1:
                near(x, x_row, x_column, weight, weight_tap, bias, out, out_row, out_column, n)
            elif kind == 2:
                down(x, x_row, x_column, weight, weight_tap, bias, out, out_row, out_column, n)
            else:
                far(x, x_row, x_column, weight, weight_tap, bias, out, out_row, out_column, n)
        elif kind == 1:
            near_part(x, x_row, x_column, weight, weight_tap, bias, out, out_row, out_column, n)
        elif kind == 2:
            down_part(x, x_row, x_column, weight, weight_tap, bias, out, out_row, out_column, n)
        else:
            far_part(x, x_row, x_column, weight, weight_tap, bias, out, out_row, out_column, n)
        c += LANES
        x += 4 * LANES
        weight += 4 * LANES
        bias += 4 * LANES
        out += 4 * LANES


@njit
def pixel(x, x_row, x_column, weight, weight_row, weight_tap, bias, rows, columns, out, channels):
    """One output: rows x columns taps from the addresses x and weight on; strides in bytes."""
    c = 0
    while c + 4 * LANES <= channels:
        s0, s1, s2, s3 = load(bias), load(bias + 4 * LANES), load(bias + 8 * LANES), load(bias + 12 * LANES)
        line, kernel = x, weight
        for _ in range(rows):
            v, w = line, kernel
            for _ in range(columns):
                s0 = fma(load(v), load(w), s0)
                s1 = fma(load(v + 4 * LANES), load(w + 4 * LANES), s1)
                s2 = fma(load(v + 8 * LANES), load(w + 8 * LANES), s2)
                s3 = fma(load(v + 12 * LANES), load(w + 12 * LANES), s3)
                v += x_column
                w += weight_tap
            line += x_row
            kernel += weight_row
        store(out, s0)
        store(out + 4 * LANES, s1)
        store(out + 8 * LANES, s2)
        store(out + 12 * LANES, s3)
        c += 4 * LANES
        x += 16 * LANES
        weight += 16 * LANES
        bias += 16 * LANES
        out += 16 * LANES
    while c < channels:
        n = min(LANES, channels - c)
        total = load(bias)
        line, kernel = x, weight
        for _ in range(rows):
            v, w = line, kernel
            for _ in range(columns):
                total = fma(load_part(v, n), load(w), total)
                v += x_column
                w += weight_tap
            line += x_row
            kernel += weight_row
        store_part(out, total, n)
        c += LANES
        x += 4 * LANES
        weight += 4 * LANES
        bias += 4 * LANES
        out += 4 * LANES


@njit
def inside(first, size, step, taps):
    """(start, stop) of the taps at first, first + step, ... that lie in 0 to size - 1."""
    start, stop = 0, taps
    if first < 0:
        start = min(taps, (-first + step - 1) // step)
    if first + (taps - 1) * step >= size:
        stop = max(start, (size - 1 - first) // step + 1)
    return start, stop


@njit
def add_rows(out, out_column, residual, residual_column, pixels, channels):
    """out += residual for a row of pixels."""
    for _ in range(pixels):
        c = 0
        while c < channels:
            n = min(LANES, channels - c)
            store_part(out + 4 * c, load_part(out + 4 * c, n) + load_part(residual + 4 * c, n), n)
            c += LANES
        out += out_column
        residual += residual_column


@njit
def clear(address, vectors):
    """Zeros."""
    for _ in range(vectors):
        store(address, splat(types.float32(0.0)))
        address += 4 * LANES


@njit
def gather(a, x, first, rows, columns, channels, scratch):
    """`rows` input rows from row `first` on, `columns` wide with their padding and activated, whole vectors for every pixel."""
    h, w, left, x_column = arg(a, H), arg(a, W), arg(a, LEFT), arg(a, X_COLUMN)
    vectors = (channels + LANES - 1) // LANES
    ahead, count = min(left, columns), max(0, min(w, columns - left))
    for iy in range(first, first + rows):
        if iy < 0 or iy >= h:
            clear(scratch, columns * vectors)
            scratch += 4 * LANES * columns * vectors
            continue
        clear(scratch, ahead * vectors)
        scratch += 4 * LANES * ahead * vectors
        begin, source = scratch, x + iy * arg(a, X_ROW)
        for _ in range(count):
            for c in range(0, channels, LANES):
                store(scratch, load_part(source + 4 * c, min(LANES, channels - c)))
                scratch += 4 * LANES
            source += x_column
        activate_block(arg(a, PRE_ACT), begin, count, channels, vectors * LANES)
        clear(scratch, (columns - ahead - count) * vectors)
        scratch += 4 * LANES * (columns - ahead - count) * vectors


def depthwise(a, unit, scratch):
    """conv2d of as many groups as channels, a bias, one residual, an activation."""
    bands, blocks = arg(a, BANDS), arg(a, BLOCKS)
    block = unit % blocks
    rest = unit // blocks
    band = rest % bands
    image = rest // bands
    skip = block * arg(a, BLOCK)
    channels = min(arg(a, BLOCK), arg(a, C) - skip)
    p, q = arg(a, P), arg(a, Q)
    row = 0 if band == 0 else band * arg(a, BAND) + arg(a, FIRST)
    stop = p if band == bands - 1 else (band + 1) * arg(a, BAND) + arg(a, FIRST)

    r, s, sh, sw = arg(a, R), arg(a, S), arg(a, STRIDE_H), arg(a, STRIDE_W)
    dh, dw, h, w, top, left = arg(a, DILATION_H), arg(a, DILATION_W), arg(a, H), arg(a, W), arg(a, TOP), arg(a, LEFT)
    x, x_row, x_column = arg(a, X) + image * arg(a, X_IMAGE) + 4 * skip, arg(a, X_ROW), arg(a, X_COLUMN)
    out = arg(a, OUT) + image * arg(a, OUT_IMAGE) + 4 * skip
    out_row, out_column = arg(a, OUT_ROW), arg(a, OUT_COLUMN)
    weight, bias, weight_tap = arg(a, WEIGHT) + 4 * skip, arg(a, BIAS) + 4 * skip, arg(a, WEIGHT_TAP)
    residual, act, kind = arg(a, RESIDUAL), arg(a, ACT), arg(a, KIND)
    if residual != 0:
        residual += image * arg(a, RESIDUAL_IMAGE) + 4 * skip
    if arg(a, PRE_ACT) != 0:  # the band becomes a map of its own, padding included
        h, w = (stop - row - 1) * sh + (r - 1) * dh + 1, (q - 1) * sw + (s - 1) * dw + 1
        gather(a, x, row * sh - top, h, w, channels, scratch)
        x_column = (channels + LANES - 1) // LANES * LANES * 4
        x, x_row = scratch, w * x_column
        top, left = row * sh, 0

    # outputs whose windows lie inside
    first_row, last_row = (top + sh - 1) // sh, min(stop, (h - 1 - (r - 1) * dh + top) // sh + 1)
    first, last = (left + sw - 1) // sw, min(q, (w - 1 - (s - 1) * dw + left) // sw + 1)
    step = 4 if kind == 2 else TILE_COLUMNS
    while row < stop:
        count, begin, end = 1, 0, 0  # of rows; columns that tiles cover
        if kind != 0 and row >= first_row and row + TILE_ROWS <= last_row and last - first >= step:
            count, begin, end = TILE_ROWS, first, last
            corner = x + (row * sh - top) * x_row - left * x_column
            column = begin
            while column < end:
                column = min(column, end - step)  # the last tile overlaps the one before
                tile(kind, corner + column * sw * x_column, x_row, x_column, weight, weight_tap, bias,
                     out + row * out_row + column * out_column, out_row, out_column, channels)  # fmt: skip
                column += step
        for y in range(row, row + count):
            iy = y * sh - top
            r0, r1 = inside(iy, h, dh, r)
            line = x + (iy + r0 * dh) * x_row
            column = 0
            while column < q:
                if column == begin:
                    column = end
                    if column == q:
                        break
                ix = column * sw - left
                s0, s1 = inside(ix, w, dw, s)
                taps, at = weight + (r0 * s + s0) * weight_tap, line + (ix + s0 * dw) * x_column
                pixel(at, dh * x_row, dw * x_column, taps, s * weight_tap, weight_tap, bias, r1 - r0, s1 - s0,
                      out + y * out_row + column * out_column, channels)  # fmt: skip
                column += 1
            if residual != 0:
                add_rows(
                    out + y * out_row, out_column, residual + y * arg(a, RESIDUAL_ROW), arg(a, RESIDUAL_COLUMN), q, channels
                )
            if act != 0:
                activate_block(act, out + y * out_row, q, channels, out_column // 4)
        row += count
