"""Dense convolutions and linear layers: rows of the output are pixels or tokens, columns are channels in panels of weights.

A unit is a run of rows of one image times a run of panels. It first writes down where the taps of its rows lie, then walks the
panels, so that a panel of weights is read once for all the rows of the unit, from L2 after the first of them. Units that follow
one another have the panels in common, or the rows.
"""

from numba import njit

from refvit.backends.numba.kernels.elementary import activate_block
from refvit.backends.numba.microkernel import NUMBER
from refvit.backends.numba.simd import arg, call_tile, set_arg

# the arguments, in order; addresses, and strides named _bytes, are in bytes, ld in values
X, X_IMAGE, X_ROW, X_COLUMN = 0, 1, 2, 3  # address, bytes from image to image, row to row, pixel to pixel
H, W, C = 4, 5, 6
R, S, STRIDE_H, STRIDE_W, TOP, LEFT, DILATION_H, DILATION_W = 7, 8, 9, 10, 11, 12, 13, 14
OUT, OUT_IMAGE, LDO, P, Q = 15, 16, 17, 18, 19
RESIDUAL, RESIDUAL_IMAGE, LDR = 20, 21, 22
WEIGHT, BIAS, ZEROS = 23, 24, 25  # panels; their biases; c zeros
RELU, ACT = 26, 27  # in the tile; a code of `epilogue.ACT` to apply to the finished rows
RUNS, PANELS, GROUPS = 28, 29, 30  # runs of rows in an image, panels of weights, runs of panels
RUN_STEP, GROUP_STEP, ALL_RUNS = 31, 32, 33  # units from one run, and one group, to the next; runs of all images
VECTORS, LANES, LAST_VECTORS, LAST_LANES = 34, 35, 36, 37  # of a panel, of a vector; of the last panel, of its last vector
TAPS_AT_ONCE, DEPTH_AT_ONCE = 38, 39  # summed in registers; such partial sums are added up, which keeps rounding small
MOST = 40  # rows of the largest tile
TILES = 41  # addresses of the tiles of 1 to MOST rows for a whole panel, then for the last one

TABLE, TAPS, DEPTH = NUMBER["table"], NUMBER["taps"], NUMBER["depth"]
T_WEIGHT, LDB, T_OUT, T_LDO = NUMBER["weight"], NUMBER["ldb"], NUMBER["out"], NUMBER["ldo"]
T_BIAS, T_RESIDUAL, T_LDR = NUMBER["bias"], NUMBER["residual"], NUMBER["ldr"]
T_RELU, T_LAST, SKIP = NUMBER["relu"], NUMBER["last"], NUMBER["skip"]
AHEAD, PACE = NUMBER["ahead"], NUMBER["pace"]
FIELD_BYTES = 128


@njit
def block_rows(rows, blocks, i):
    """First row of block i of `blocks`, which are as equal as can be."""
    return rows * i // blocks


@njit
def write_table(a, image, first, rows, blocks, table):
    """For every block of rows the addresses of its taps, tap by tap; outside of the map they lie in the zeros."""
    x = arg(a, X) + image * arg(a, X_IMAGE)
    row_bytes, column_bytes = arg(a, X_ROW), arg(a, X_COLUMN)
    h, w, q = arg(a, H), arg(a, W), arg(a, Q)
    r, s, zeros = arg(a, R), arg(a, S), arg(a, ZEROS)
    stride_h, stride_w, top, left = arg(a, STRIDE_H), arg(a, STRIDE_W), arg(a, TOP), arg(a, LEFT)
    dilation_h, dilation_w = arg(a, DILATION_H), arg(a, DILATION_W)
    taps = r * s
    y = first // q
    column = first - y * q
    for block in range(blocks):
        begin, end = block_rows(rows, blocks, block), block_rows(rows, blocks, block + 1)
        size = end - begin
        at = table + 8 * taps * begin
        for m in range(size):
            entry = at + 8 * m
            iy = y * stride_h - top
            ix0 = column * stride_w - left
            for _ in range(r):
                ix = ix0
                inside = iy >= 0 and iy < h
                line = x + iy * row_bytes
                for _ in range(s):
                    if inside and ix >= 0 and ix < w:
                        set_arg(entry, 0, line + ix * column_bytes)
                    else:
                        set_arg(entry, 0, zeros)
                    entry += 8 * size
                    ix += dilation_w
                iy += dilation_h
            column += 1
            if column == q:
                column = 0
                y += 1


def dense(a, unit, scratch):
    """conv2d or linear, bias, one residual and an activation."""
    runs, groups, panels = arg(a, RUNS), arg(a, GROUPS), arg(a, PANELS)
    group = unit // arg(a, GROUP_STEP) % groups
    run = unit // arg(a, RUN_STEP) % arg(a, ALL_RUNS)
    image = run // runs
    run -= image * runs
    pixels = arg(a, P) * arg(a, Q)
    first = pixels * run // runs
    rows = pixels * (run + 1) // runs - first
    most = arg(a, MOST)
    blocks = (rows + most - 1) // most
    fields, table = scratch, scratch + FIELD_BYTES
    write_table(a, image, first, rows, blocks, table)

    taps, depth = arg(a, R) * arg(a, S), arg(a, C)
    lanes, vectors = arg(a, LANES), arg(a, VECTORS)
    ldo, ldr = arg(a, LDO), arg(a, LDR)
    out = arg(a, OUT) + image * arg(a, OUT_IMAGE) + 4 * first * ldo
    residual = arg(a, RESIDUAL)
    if residual != 0:
        residual += image * arg(a, RESIDUAL_IMAGE) + 4 * first * ldr
    taps_at_once, depth_at_once = arg(a, TAPS_AT_ONCE), arg(a, DEPTH_AT_ONCE)
    relu, act = arg(a, RELU), arg(a, ACT)
    set_arg(fields, T_LDO, ldo)
    width = vectors * lanes
    for panel in range(panels * group // groups, panels * (group + 1) // groups):
        final = panel == panels - 1
        count = arg(a, LAST_VECTORS) if final else vectors
        last = arg(a, LAST_LANES) if final else lanes
        tiles = TILES + most if final else TILES
        column = 4 * panel * width
        set_arg(fields, LDB, count * lanes)
        set_arg(fields, T_LAST, last)
        weight = arg(a, WEIGHT) + column * taps * depth
        bias = arg(a, BIAS) + column if arg(a, BIAS) != 0 else 0
        for tap in range(0, taps, taps_at_once):
            now = min(taps_at_once, taps - tap)
            for skip in range(0, depth, depth_at_once):
                # a piece of the sum for all rows of the unit: its weights stay in the first cache meanwhile
                deep = min(depth_at_once, depth - skip)
                begins = tap + skip == 0
                ends = tap + now == taps and skip + deep == depth
                here = weight + 4 * count * lanes * (tap * depth + skip)
                # the piece after this one lies behind it: each block of rows asks memory for its share of it
                pace = 4 * count * lanes // blocks
                ahead, share = here + 4 * count * lanes * now * deep, pace * now * deep
                if ends and final:
                    ahead, share, pace = here, 0, 0
                set_arg(fields, PACE, pace)
                set_arg(fields, TAPS, now)
                set_arg(fields, DEPTH, deep)
                set_arg(fields, SKIP, skip)
                set_arg(fields, T_WEIGHT, here)
                set_arg(fields, T_BIAS, bias if begins else 0)
                set_arg(fields, T_LDR, ldr if begins else ldo)
                set_arg(fields, T_RELU, relu if ends else 0)
                for block in range(blocks):
                    begin, end = block_rows(rows, blocks, block), block_rows(rows, blocks, block + 1)
                    size = end - begin
                    target = out + 4 * begin * ldo + column
                    set_arg(fields, TABLE, table + 8 * (taps * begin + tap * size))
                    set_arg(fields, T_OUT, target)
                    if not begins:
                        set_arg(fields, T_RESIDUAL, target)
                    elif residual != 0:
                        set_arg(fields, T_RESIDUAL, residual + 4 * begin * ldr + column)
                    else:
                        set_arg(fields, T_RESIDUAL, 0)
                    set_arg(fields, AHEAD, ahead)
                    call_tile(arg(a, tiles + size - 1), fields)
                    ahead += share
                    if ends and act > 1:
                        activate_block(act, target, size, (count - 1) * lanes + last, ldo)
