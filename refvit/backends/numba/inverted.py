"""MobileNetV2's inverted residual as one instruction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refvit.backends.numba.conv import SUM, Packed, pack
from refvit.backends.numba.cpu import target
from refvit.backends.numba.depthwise import KINDS, strides
from refvit.backends.numba.layout import Place
from refvit.backends.numba.program import Address, Argument, Buffer, Function, Instruction
from refvit.errors import UnsupportedError
from refvit.graph.ir import Array
from refvit.ops.conv import Padding, Pair, _borders, _pair

UNITS = 8  # wanted
LEAST_ROWS = 8  # of the input under a band: every band expands some rows of its neighbours again
LEAST_BYTES = 3 << 18  # of the expanded map: a smaller one stays in the cache anyway
FIELD_BYTES = 128


@dataclass(frozen=True)
class Layers:
    """The three layers' weights as the kernel reads them; channels between are padded to whole vectors."""

    expand: Packed
    weight: Buffer  # of the depthwise layer, (taps, channels)
    bias: Buffer
    size: tuple[int, int]
    hidden: int  # channels between, without the padding
    project: Packed


def pack_layers(w1: Array, b1: Array | None, w2: Array, b2: Array | None, w3: Array, b3: Array | None) -> Layers:
    """Expand (hidden, c, 1, 1), depthwise (hidden, 1, r, s), project (k, hidden, 1, 1), each with a bias or None.

    UnsupportedError for other shapes.
    """
    hidden, c = w1.shape[:2]
    k, _, r, s = w3.shape[0], *w2.shape[1:]
    if w1.shape != (hidden, c, 1, 1) or w2.shape != (hidden, 1, r, s) or w3.shape != (k, hidden, 1, 1):
        raise UnsupportedError(
            f"inverted: weights (m, c, 1, 1), (m, 1, r, s) and (k, m, 1, 1) expected, got {w1.shape}, {w2.shape} and {w3.shape}"
        )
    lanes = target().lanes
    wide = -(-hidden // lanes) * lanes
    first, middle = np.zeros((wide, 1, c), np.float32), np.zeros((r * s, wide), np.float32)
    first[:hidden, 0] = w1[:, :, 0, 0]
    middle[:, :hidden] = w2.reshape(hidden, r * s).T
    offsets = np.zeros((2, wide), np.float32)
    for offset, b in zip(offsets, (b1, b2), strict=True):
        offset[:hidden] = 0 if b is None else b
    weight, bias = Buffer(middle.size, array=middle), Buffer(wide, array=offsets[1].copy())
    last = pack(w3.reshape(k, 1, hidden), np.zeros(k, np.float32) if b3 is None else b3)
    return Layers(pack(first, offsets[0]), weight, bias, (r, s), hidden, last)


def worthwhile(n: int, h: int, w: int, hidden: int, stride: int) -> bool:
    """Whether one kernel is faster than three for n maps of h x w pixels.

    Where it is not, three make more and smaller units.
    """
    return n * split(n, -(-h // stride), stride)[0] >= UNITS and 4 * h * w * hidden >= LEAST_BYTES


def split(n: int, rows: int, stride: int) -> tuple[int, int]:
    """(bands, rows of the output in each)"""
    band = max(-(-LEAST_ROWS // stride), -(-rows // -(-UNITS // n)))
    band = min(rows, band + band % 2)
    return -(-rows // band), band


def inverted(
    x: Place, layers: Layers, out: Place, *, stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1, act: int = 0,
    residual: Place | None = None,
) -> list[Instruction]:  # fmt: skip
    """out = project(act(depthwise(act(expand(x))))) + residual.

    x (n, c, h, w), out and residual (n, k, p, q), channels of stride 1; stride, padding and dilation are those of the depthwise
    layer, act is a code of `epilogue.ACT`. out must not overlap x or residual.
    """
    n, _, h, w = x.shape
    p, q = out.shape[2:]
    r, s = layers.size
    (sh, sw), (dh, dw) = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    (top, _), (left, _) = _borders(padding)
    lanes, wide = target().lanes, layers.bias.size
    ld = wide + lanes if 4 * wide % 2048 == 0 else wide  # at a power of two, rows would compete for the same lines of the cache
    width = max((q - 1) * sw + (s - 1) * dw + 1, left + w)
    bands, band = split(n, p, sh)
    table = -(-(FIELD_BYTES + 8 * max(w, q)) // 64) * 64
    lines = 4 * ld * width * (sh + (r - 1) * dh + 1)
    args: list[Argument] = [
        *strides(x), h, w, *strides(out), p, q, *((0, 0, 0, 0) if residual is None else strides(residual)),
        Address(layers.weight), Address(layers.bias), wide, ld, r, s, sh, sw, top, left, dh, dw,
        KINDS.get((r, s, sh, sw, dh, dw), 0), act, bands, band, width, table, lines,
    ]  # fmt: skip
    first = _product(layers.expand, w)
    args += [len(args) + 1 + len(first), *first, *_product(layers.project, q)]
    reads = [x.buffer, layers.weight, layers.bias, layers.expand.weight, layers.project.weight]
    reads += [b for b in (layers.expand.bias, layers.project.bias) if b is not None]
    reads += [] if residual is None else [residual.buffer]
    macs = n * layers.hidden * (h * w * layers.expand.depth + p * q * (r * s + layers.project.columns))
    return [Instruction("inverted.inverted", args, n * bands, reads, [out.buffer], table + lines + 8 * ld * q, macs=macs)]


def _product(packed: Packed, rows: int) -> list[Argument]:
    """The arguments of a 1x1 layer over this many pixels at a time."""
    assert packed.bias is not None
    most = target().rows
    blocks = -(-rows // most)
    sizes = {rows * (i + 1) // blocks - rows * i // blocks for i in range(blocks)}
    args: list[Argument] = [
        Address(packed.weight), Address(packed.bias), packed.depth, packed.panels, packed.vectors, packed.last_vectors,
        packed.last_lanes, most, SUM,
    ]  # fmt: skip
    for vectors, used in ((packed.vectors, packed.panels > 1), (packed.last_vectors, True)):
        args += [Function(f"tile_{m}x{vectors}") if m in sizes and used else 0 for m in range(1, most + 1)]
    return args
