"""Dense convolutions and linear layers: weights packed into panels, work split into units, one kernel for all of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from refvit.backends.numba.cpu import target
from refvit.backends.numba.epilogue import ACT
from refvit.backends.numba.layout import Place, matrix
from refvit.backends.numba.program import Address, Argument, Buffer, Function, Instruction
from refvit.graph.ir import Array

UNIT_MACS = 8_000_000  # at most in a unit: about 80 microseconds
LEAST_MACS = 500_000  # splitting further costs more than it balances
UNITS = 16  # wanted of a large layer
MOST_UNITS = 64  # of a layer whose rows and weights are both too many for a cache: larger units read both less often
HEAVY_WEIGHTS = 1 << 19  # bytes: more are not read again for every run of rows
CACHE = 1 << 20  # bytes of rows, or of weights, that stay in L2 while they are used again
SUM = 384  # terms added in a row: longer sums are made of such, or their rounding would exceed that of a blocked product
FIELD_BYTES = 128


@dataclass(frozen=True)
class Packed:
    """Weights as the kernel reads them: panels of `vectors` registers of output channels, each (taps, c, width)."""

    weight: Buffer
    bias: Buffer | None
    taps: int
    depth: int  # input values of a tap
    columns: int  # output channels
    vectors: int
    panels: int
    last_vectors: int
    last_lanes: int


def panels(columns: int, taps: int, depth: int) -> Packed:
    """The form of weights for so many output channels, in memory that is still to be written."""
    lanes = target().lanes
    registers = -(-columns // lanes)
    vectors = min(registers, target().panel // lanes)
    count = -(-registers // vectors)
    last = registers - (count - 1) * vectors
    weight = Buffer(registers * lanes * taps * depth)
    return Packed(weight, None, taps, depth, columns, vectors, count, last, columns - (registers - 1) * lanes)


def pack(weight: Array, bias: Array | None) -> Packed:
    """weight (k, taps, c) float32, bias (k,)."""
    k, taps, depth = weight.shape
    form = panels(k, taps, depth)
    lanes = target().lanes
    padded = -(-k // lanes) * lanes
    packed = np.zeros(form.weight.size, np.float32)
    for start in range(0, padded, form.vectors * lanes):
        rows = weight[start : start + form.vectors * lanes].reshape(-1, taps * depth)
        width = min(form.vectors * lanes, padded - start)
        packed[start * taps * depth :][: width * taps * depth].reshape(taps * depth, width)[:, : len(rows)] = rows.T
    offsets = None
    if bias is not None:
        offsets = np.zeros(padded, np.float32)
        offsets[:k] = bias
    return replace(form, weight=constant(packed), bias=None if offsets is None else constant(offsets))


def constant(array: Array) -> Buffer:
    return Buffer(array.size, array=np.ascontiguousarray(array))


@functools.cache
def zeros(size: int) -> Buffer:
    """What taps outside of a map read."""
    return constant(np.zeros(size, np.float32))


@dataclass(frozen=True)
class Taps:
    """How a kernel's taps step over the map."""

    size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)  # padding above and to the left
    dilation: tuple[int, int] = (1, 1)


def conv(
    x: Place, packed: Packed, out: Place, taps: Taps, *, residual: Place | None = None, relu: bool = False, act: str = "none"
) -> list[Instruction]:
    """conv2d without groups. x (n, c, h, w), out and residual (n, k, p, q): channels of stride 1, pixels of out row by row.

    The residual is added before relu or act.
    """
    n, _, h, w = x.shape
    p, q = out.shape[2:]
    pixels = x.stride(0), x.stride(2), x.stride(3)
    return _dense((n, h, w), x.address, x.buffer, pixels, packed, taps, (p, q), _rows, out, residual, relu, act)


def linear(
    x: Place, packed: Packed, out: Place, *, residual: Place | None = None, relu: bool = False, act: str = "none"
) -> list[Instruction]:
    """x (..., d), out and residual (..., k): the last axis has stride 1, the others are rows in the same order of memory."""
    found = matrix(x.axes[:-1])
    rows, step = (1, 0) if found is None else found
    return _dense((1, 1, rows), x.address, x.buffer, (0, 0, step), packed, Taps(), (1, rows), _matrix, out,
                  residual, relu, act)  # fmt: skip


def _matrix(place: Place) -> tuple[int, int]:
    found = matrix(place.axes[:-1])
    if found is None:
        raise ValueError(f"no matrix: {place}")
    return 0, found[1]


def _rows(place: Place) -> tuple[int, int]:
    """(stride of an image, stride of a pixel) of a map whose pixels follow one another."""
    _, _, h, w = place.axes
    found = matrix((h, w))
    if found is None or (place.shape[2] > 1 and place.shape[3] > 1 and place.stride(2) < place.stride(3)):
        raise ValueError(f"no rows of pixels: {place}")
    return place.stride(0), found[1]


def _dense(
    size: tuple[int, int, int], address: Address, buffer: Buffer, strides: tuple[int, int, int], packed: Packed, taps: Taps,
    out_size: tuple[int, int], read: Callable[[Place], tuple[int, int]],
    out: Place, residual: Place | None, relu: bool, act: str,
) -> list[Instruction]:  # fmt: skip
    n, h, w = size
    rows = math.prod(out_size)
    runs, groups, rows_stay = split(n, rows, packed, 4 * h * w * packed.depth)
    most = target().rows
    out_rows, added = read(out), None if residual is None else read(residual)
    sizes = {(rows * (i + 1) // runs) - (rows * i // runs) for i in range(runs)}
    tiles: set[int] = set()
    for r in sizes:
        blocks = -(-r // most)
        tiles |= {r * (i + 1) // blocks - r * i // blocks for i in range(blocks)}
    args: list[Argument] = [
        address, 4 * strides[0], 4 * strides[1], 4 * strides[2], h, w, packed.depth,
        *taps.size, *taps.stride, *taps.before, *taps.dilation,
        out.address, 4 * out_rows[0], out_rows[1], *out_size,
        *((0, 0, 0) if residual is None or added is None else (residual.address, 4 * added[0], added[1])),
        Address(packed.weight), 0 if packed.bias is None else Address(packed.bias), Address(zeros(packed.depth)),
        int(relu or act == "relu"), ACT[act],
        runs, packed.panels, groups, *((groups, 1) if rows_stay else (1, n * runs)), n * runs,
        packed.vectors, target().lanes, packed.last_vectors, packed.last_lanes,
        *pieces(packed), most,
    ]  # fmt: skip
    for vectors, used in ((packed.vectors, packed.panels > 1), (packed.last_vectors, True)):
        args += [Function(f"tile_{m}x{vectors}") if m in tiles and used else 0 for m in range(1, most + 1)]
    reads = [buffer, packed.weight, zeros(packed.depth)]
    reads += [b for b in (packed.bias, None if residual is None else residual.buffer) if b is not None]
    scratch = FIELD_BYTES + 8 * packed.taps * max(sizes)
    macs = n * rows * packed.taps * packed.depth * packed.columns
    return [Instruction("conv.dense", args, n * runs * groups, reads, [out.buffer], scratch, macs=macs)]


def pieces(packed: Packed) -> tuple[int, int]:
    """(taps, values of a tap) that are summed in registers at a time: equal pieces of at most SUM terms."""
    depth = -(-packed.depth // -(-packed.depth // SUM))
    most = max(1, SUM // packed.depth)
    return -(-packed.taps // -(-packed.taps // most)), depth


def split(n: int, rows: int, packed: Packed, size: int) -> tuple[int, int, bool]:
    """(runs of rows in an image, runs of panels, whether units that follow one another share the rows, not the panels).

    size: bytes of an image. Units of some size, enough of them; what is too large for a cache is read as seldom as possible.
    """
    macs = n * rows * packed.taps * packed.depth * packed.columns
    units = min(max(UNITS, macs // UNIT_MACS), max(1, macs // LEAST_MACS))
    wanted = max(1, -(-units // n))
    most_runs = max(1, rows // target().rows)
    weights = 4 * packed.taps * packed.depth * packed.columns
    if weights < HEAVY_WEIGHTS:
        runs = min(most_runs, wanted)
        return runs, min(packed.panels, max(1, round(wanted / runs))), n * size > CACHE
    if n * size <= CACHE:
        groups = min(packed.panels, wanted)
        return min(most_runs, max(1, round(wanted / groups))), groups, False
    share = min(units, MOST_UNITS) / n
    runs = min(most_runs, -(-size // CACHE))
    groups = min(packed.panels, max(1, round(share / runs)))
    runs = min(most_runs, max(runs, round(share / groups)))
    parts = min(packed.panels, max(groups, -(-weights // CACHE)))
    rows_stay = n * size + weights * n * runs
    panels_stay = n * size * parts + weights
    return (runs, groups, True) if rows_stay <= panels_stay else (runs, parts, False)
