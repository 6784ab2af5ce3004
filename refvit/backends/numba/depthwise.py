"""Depthwise convolutions: weights with channels innermost, work split into bands of rows and blocks of channels."""

from __future__ import annotations

import numpy as np

from refvit.backends.numba.cpu import target
from refvit.backends.numba.layout import Place
from refvit.backends.numba.program import Address, Argument, Buffer, Instruction
from refvit.errors import UnsupportedError
from refvit.graph.ir import Array
from refvit.ops.conv import Padding, Pair, _borders, _pair

UNIT_MACS = 4_000_000  # at most in a unit: about 100 microseconds
LEAST_MACS = 200_000  # splitting further costs more than it balances
UNITS = 16  # wanted of a large layer
LEAST_ROWS = 4  # of a band: every band reads some rows of its neighbours
LEAST_CHANNELS = 64  # of a block: shorter runs of memory are slower to read
KINDS = {
    (3, 3, 1, 1, 1, 1): 1,
    (3, 3, 2, 2, 1, 1): 2,
    (5, 5, 1, 1, 1, 1): 3,
}  # kernel, stride, dilation with tiles of their own


def depthwise(
    x: Place, weight: Array, bias: Array | None, out: Place, stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1, *,
    act: int = 0, pre_act: int = 0, residual: Place | None = None,
) -> list[Instruction]:  # fmt: skip
    """conv2d with as many groups as channels: out = act(conv2d(pre_act(x)) + residual).

    x (n, c, h, w), weight (c, 1, r, s) float32, bias (c,), out and residual (n, c, p, q); channels have stride 1. act and
    pre_act are codes of `epilogue.ACT`. out must not overlap x or residual. UnsupportedError for several outputs per channel.
    """
    n, c, h, w = x.shape
    k, per_group, r, s = weight.shape
    if k != c or per_group != 1:
        raise UnsupportedError(f"depthwise: a weight ({c}, 1, r, s) expected, one kernel for each channel, got {weight.shape}")
    (sh, sw), (dh, dw) = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    (top, _), (left, _) = _borders(padding)
    p, q = out.shape[2:]
    lanes = target().lanes
    padded = -(-c // lanes) * lanes
    weights, offsets = np.zeros((r * s, padded), np.float32), np.zeros(padded, np.float32)
    weights[:, :c] = weight.reshape(c, r * s).T
    if bias is not None:
        offsets[:c] = bias
    kernel, start = Buffer(weights.size, array=weights), Buffer(padded, array=offsets)
    kind = KINDS.get((r, s, sh, sw, dh, dw), 0)

    macs = n * p * q * c * r * s
    bands, band, first, blocks, block = split(n, p, c, macs, -(-top // sh))
    scratch = 0
    if pre_act:
        rows = (max(band, min(band + first, p), p - first - (bands - 1) * band) - 1) * sh + (r - 1) * dh + 1
        scratch = 4 * rows * ((q - 1) * sw + (s - 1) * dw + 1) * -(-min(block, c) // lanes) * lanes
    args: list[Argument] = [
        *strides(x), h, w, c, r, s, sh, sw, top, left, dh, dw, *strides(out), p, q,
        *((0, 0, 0, 0) if residual is None else strides(residual)),
        Address(kernel), Address(start), 4 * padded, pre_act, act, kind, bands, band, first, blocks, block,
    ]  # fmt: skip
    reads = [x.buffer, kernel, start] + ([] if residual is None else [residual.buffer])
    return [Instruction("depthwise.depthwise", args, n * bands * blocks, reads, [out.buffer], scratch, macs=macs)]


def strides(place: Place) -> tuple[Address, int, int, int]:
    """The address of a map and the bytes from image to image, row to row, column to column."""
    return place.address, 4 * place.stride(0), 4 * place.stride(2), 4 * place.stride(3)


def split(n: int, rows: int, c: int, macs: int, border: int) -> tuple[int, int, int, int, int]:
    """(bands, rows in each, rows more in the first, blocks, channels in each) of n maps.

    The first band also has the odd row of the `border` rows whose windows begin outside: tiles of two rows fill the others.
    """
    units = min(max(UNITS, macs // UNIT_MACS), max(1, macs // LEAST_MACS))
    wanted = max(1, -(-units // n))
    first = border % 2
    band = max(LEAST_ROWS, -(-rows // wanted))
    band += band % 2
    bands = max(1, -(-(rows - first) // band))
    blocks = max(1, min(wanted // bands, c // LEAST_CHANNELS))
    lanes = target().lanes
    block = -(-c // (blocks * lanes)) * lanes
    return bands, band, first if bands > 1 else 0, -(-c // block), block
