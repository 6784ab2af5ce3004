"""MobileNetV2's inverted residual in one go: expand 1x1, depthwise, project 1x1. The wide map between never leaves the cache.

A unit is a band of output rows. It goes down the band two output rows at a time and keeps the rows of the expanded map under
their windows in scratch, padded with zeros; rows that the next two need as well are moved up, not computed again.
"""

from numba import njit

from refvit.backends.numba.kernels.depthwise import TILE_COLUMNS, TILE_ROWS, clear, pixel, tile
from refvit.backends.numba.kernels.elementary import activate_block
from refvit.backends.numba.microkernel import FIELDS, NUMBER
from refvit.backends.numba.simd import LANES, arg, call_tile, load, set_arg, store

# the arguments, in order: addresses; _IMAGE, _ROW and _COLUMN are bytes from one to the next
X, X_IMAGE, X_ROW, X_COLUMN, H, W = 0, 1, 2, 3, 4, 5
OUT, OUT_IMAGE, OUT_ROW, OUT_COLUMN, P, Q = 6, 7, 8, 9, 10, 11
RESIDUAL, RESIDUAL_IMAGE, RESIDUAL_ROW, RESIDUAL_COLUMN = 12, 13, 14, 15  # address 0: none
WEIGHT, BIAS, CHANNELS, LD = (
    16,
    17,
    18,
    19,
)  # of the depthwise layer: (taps, channels), whole vectors; values of a pixel in scratch
R, S, STRIDE_H, STRIDE_W, TOP, LEFT, DILATION_H, DILATION_W = 20, 21, 22, 23, 24, 25, 26, 27
KIND = 28  # as in `depthwise`
ACT = 29  # a code of `epilogue.ACT`, of the first two layers
BANDS, BAND, WIDTH = 30, 31, 32  # bands of rows, rows in each; columns of the expanded rows with their padding
TABLE_BYTES, MAP_BYTES = 33, 34  # of the parts of scratch
PROJECT = 35  # where the second product's arguments begin
EXPAND = 36  # and the first's: P_WEIGHT and so on, counted from there

P_WEIGHT, P_BIAS, P_DEPTH, P_PANELS, P_VECTORS, P_LAST_VECTORS, P_LAST_LANES, P_MOST = 0, 1, 2, 3, 4, 5, 6, 7
P_AT_ONCE = 8  # terms summed in registers; such partial sums are added up, which keeps rounding small
P_TILES = 9  # addresses of the tiles of 1 to P_MOST rows for a whole panel, then for the last one

TABLE, TAPS, DEPTH, SKIP, AHEAD = NUMBER["table"], NUMBER["taps"], NUMBER["depth"], NUMBER["skip"], NUMBER["ahead"]
PACE = NUMBER["pace"]
T_WEIGHT, LDB, T_OUT, T_LDO = NUMBER["weight"], NUMBER["ldb"], NUMBER["out"], NUMBER["ldo"]
T_BIAS, T_RESIDUAL, T_LDR, T_RELU, T_LAST = NUMBER["bias"], NUMBER["residual"], NUMBER["ldr"], NUMBER["relu"], NUMBER["last"]
FIELD_BYTES = 128
assert 8 * len(FIELDS) <= FIELD_BYTES


@njit
def product(p, fields, x, x_step, rows, out, ldo, residual, ldr, act):
    """out = act(x times the weights of the product whose arguments lie at p + residual), x_step bytes from row to row of x."""
    depth, panels, vectors, most, at_once = (
        arg(p, P_DEPTH),
        arg(p, P_PANELS),
        arg(p, P_VECTORS),
        arg(p, P_MOST),
        arg(p, P_AT_ONCE),
    )
    table = fields + FIELD_BYTES
    for m in range(rows):
        set_arg(table, m, x + m * x_step)
    blocks = (rows + most - 1) // most
    set_arg(fields, TAPS, 1)
    set_arg(fields, T_RELU, 0)
    set_arg(fields, T_LDO, ldo)
    for panel in range(panels):
        final = panel == panels - 1
        count = arg(p, P_LAST_VECTORS) if final else vectors
        last = arg(p, P_LAST_LANES) if final else LANES
        tiles = P_TILES + most if final else P_TILES
        column = 4 * panel * vectors * LANES
        weight = arg(p, P_WEIGHT) + column * depth
        set_arg(fields, LDB, count * LANES)
        set_arg(fields, T_LAST, last)
        for block in range(blocks):
            begin = rows * block // blocks
            size = rows * (block + 1) // blocks - begin
            target = out + 4 * begin * ldo + column
            set_arg(fields, TABLE, table + 8 * begin)
            set_arg(fields, T_OUT, target)
            set_arg(fields, T_BIAS, arg(p, P_BIAS) + column)
            set_arg(fields, T_RESIDUAL, residual + 4 * begin * ldr + column if residual != 0 else 0)
            set_arg(fields, T_LDR, ldr)
            for skip in range(0, depth, at_once):
                set_arg(fields, SKIP, skip)
                set_arg(fields, DEPTH, min(at_once, depth - skip))
                set_arg(fields, T_WEIGHT, weight + 4 * count * LANES * skip)
                set_arg(fields, AHEAD, weight)
                set_arg(fields, PACE, 0)
                call_tile(arg(p, tiles + size - 1), fields)
                set_arg(fields, T_BIAS, 0)
                set_arg(fields, T_RESIDUAL, target)
                set_arg(fields, T_LDR, ldo)
            if act != 0:
                activate_block(act, target, size, (count - 1) * LANES + last, ldo)


@njit
def move(target, source, vectors):
    for _ in range(vectors):
        store(target, load(source))
        target += 4 * LANES
        source += 4 * LANES


@njit
def filter_rows(a, x, x_row, x_column, out, out_row, count):
    """The depthwise layer: `count` rows of the result, activated, from the window of expanded rows at x."""
    r, s, sh, sw, dh, dw = arg(a, R), arg(a, S), arg(a, STRIDE_H), arg(a, STRIDE_W), arg(a, DILATION_H), arg(a, DILATION_W)
    q, kind, act, channels = arg(a, Q), arg(a, KIND), arg(a, ACT), arg(a, CHANNELS)
    weight, bias = arg(a, WEIGHT), arg(a, BIAS)
    step = 4 if kind == 2 else TILE_COLUMNS
    column = 0
    if kind != 0 and count == TILE_ROWS and q >= step:
        while column < q:
            column = min(column, q - step)  # the last tile overlaps the one before
            at = out + column * x_column
            tile(kind, x + column * sw * x_column, x_row, x_column, weight, 4 * channels, bias, at, out_row, x_column, channels)
            for i in range(count):
                activate_block(act, at + i * out_row, step, channels, x_column // 4)
            column += step
    while column < q:
        for i in range(count):
            at = out + i * out_row + column * x_column
            pixel(x + i * sh * x_row + column * sw * x_column, dh * x_row, dw * x_column, weight, 4 * s * channels,
                  4 * channels, bias, r, s, at, channels)  # fmt: skip
            activate_block(act, at, 1, channels, 0)
        column += 1


def inverted(a, unit, scratch):
    """A band of rows of project(act(depthwise(act(expand(x))))) + residual."""
    bands, band_rows = arg(a, BANDS), arg(a, BAND)
    band, image = unit % bands, unit // bands
    row, stop = band * band_rows, min(arg(a, P), (band + 1) * band_rows)
    h, w, q, ld, act = arg(a, H), arg(a, W), arg(a, Q), arg(a, LD), arg(a, ACT)
    sh, top, left, width = arg(a, STRIDE_H), arg(a, TOP), arg(a, LEFT), arg(a, WIDTH)
    x, out, residual = arg(a, X) + image * arg(a, X_IMAGE), arg(a, OUT) + image * arg(a, OUT_IMAGE), arg(a, RESIDUAL)
    if residual != 0:
        residual += image * arg(a, RESIDUAL_IMAGE)
    lines = scratch + arg(a, TABLE_BYTES)  # rows of the expanded map, then two rows of the filtered one
    filtered = lines + arg(a, MAP_BYTES)
    column_bytes, line_bytes, filtered_bytes = 4 * ld, 4 * ld * width, 4 * ld * q
    vectors = ld // LANES
    window = (arg(a, R) - 1) * arg(a, DILATION_H) + 1
    known = 0  # lines that are there already
    while row < stop:
        count = min(TILE_ROWS, stop - row)
        needed = (count - 1) * sh + window
        for i in range(known, needed):
            line, y = lines + i * line_bytes, row * sh - top + i
            if y < 0 or y >= h:
                clear(line, width * vectors)
            else:
                clear(line, left * vectors)
                product(
                    a + 8 * EXPAND,
                    scratch,
                    x + y * arg(a, X_ROW),
                    arg(a, X_COLUMN),
                    w,
                    line + left * column_bytes,
                    ld,
                    0,
                    0,
                    act,
                )
                clear(line + (left + w) * column_bytes, (width - left - w) * vectors)
        filter_rows(a, lines, line_bytes, column_bytes, filtered, filtered_bytes, count)
        for i in range(count):
            added = residual + (row + i) * arg(a, RESIDUAL_ROW) if residual != 0 else 0
            product(a + 8 * arg(a, PROJECT), scratch, filtered + i * filtered_bytes, column_bytes, q,
                    out + (row + i) * arg(a, OUT_ROW), arg(a, OUT_COLUMN) // 4,
                    added, arg(a, RESIDUAL_COLUMN) // 4, 0)  # fmt: skip
        row += count
        known = max(0, needed - count * sh)
        move(lines, lines + (needed - known) * line_bytes, known * width * vectors)
