"""Winograd convolutions: weights transformed and packed once, maps cut into tiles and tiles into units, and when that pays."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from refvit.backends.numba.cpu import target
from refvit.backends.numba.layout import Place
from refvit.backends.numba.program import Address, Argument, Buffer, Function, Instruction, bits
from refvit.graph.ir import Array

POINTS = {4: (0.625, -0.625, 1.5, -1.5), 2: (1.0, -1.0)}  # of interpolation besides 0 and infinity, as in kernels/winograd.py
LINE = 64  # bytes
TABLES = 512  # bytes at the beginning of scratch: arguments of the register tiles
RUN = 28  # tiles: twice the rows of the largest register tile
LEAST_RUN = 14
FEW_RUNS = 4  # fewer share the panels as well
HEAVY_WEIGHTS = 1 << 20  # bytes: more do not stay in the second-level cache, and no run of tiles reads them again
HEAVY_V = 1 << 20  # bytes of V that a run may have beside heavy weights

# measured on one core with AVX-512 (3.4 GHz): products and direct convolutions in GFLOP/s, weights from memory in bytes a ns,
# the transforms of a register of channels of a tile in ns, forward and inverse
RATE, DIRECT_RATE, STREAM = 195.0, 190.0, 22.0
TRANSFORM = {4: (77.0, 73.0), 2: (31.0, 31.0)}
CALL = 24.0  # ns to enter and leave a register tile
GAIN = 0.95  # Winograd has to be that much faster


@dataclass(frozen=True)
class Packed:
    """Weights of F(tile x tile, 3x3) as the kernel reads them: panels of `vectors` registers of output channels, each
    (places, c, width)."""

    tile: int
    weight: Buffer
    depth: int
    columns: int
    vectors: int
    panels: int
    last_vectors: int

    @property
    def registers(self) -> int:
        return (self.panels - 1) * self.vectors + self.last_vectors


def matrix(tile: int) -> Array:
    """G, (tile + 2, 3) float64: the transform of a kernel's columns. A row is powers of a point over its distances."""
    points = (0.0, *POINTS[tile])
    rows = [[p**i / math.prod(p - q for q in points if q != p) for i in range(3)] for p in points]
    return np.array([*rows, [0.0, 0.0, 1.0]])


def pack(weight: Array, tile: int) -> Packed:
    """weight (k, c, 3, 3) float32, transformed in float64. tile: 4 or 2."""
    k, c = weight.shape[:2]
    lanes = target().lanes
    vectors, panels, last = _panels(k)
    g = matrix(tile)
    u = np.einsum("ir,kcrs,js->ijck", g, weight.astype(np.float64), g, optimize=True).astype(np.float32)
    u = np.pad(u.reshape(len(g) ** 2, c, k), ((0, 0), (0, 0), (0, -k % lanes)))
    pieces = np.split(u, [i * vectors * lanes for i in range(1, panels)], axis=2)
    packed = np.concatenate([piece.reshape(-1) for piece in pieces])
    return Packed(tile, Buffer(packed.size, packed), c, k, vectors, panels, last)


def _panels(k: int) -> tuple[int, int, int]:
    """(registers in a panel, panels, registers in the last panel): pairs, and three where one would be left."""
    registers = -(-k // target().lanes)
    vectors = min(2, registers)
    panels = max(1, registers // vectors)
    return vectors if panels > 1 else registers, panels, registers - (panels - 1) * vectors


def _most(vectors: int) -> int:
    """Rows of the largest register tile with that many vectors."""
    return target().rows * 2 // max(2, vectors)


def winograd(
    x: Place, packed: Packed, bias: Array | None, out: Place, padding: int, *, tile: int,
    residual: Place | None = None, relu: bool = False, act: int = 0,
) -> list[Instruction]:  # fmt: skip
    """conv2d with a 3x3 kernel and stride 1. x (n, c, h, w), out and residual (n, k, p, q): channels of stride 1; bias (k,).

    padding: rows and columns of zeros on every side. tile: that of `packed`. The residual is added before relu or act, a
    code of `epilogue.ACT`.
    """
    n, c, h, w = x.shape
    _, k, p, q = out.shape
    side, step = tile + 2, 4 * target().lanes
    places = side * side
    down, across = -(-p // tile), -(-q // tile)
    tiles = n * down * across
    runs, groups = split(tiles, packed)
    wide, last = packed.vectors, packed.last_vectors
    offsets = np.zeros(packed.registers * target().lanes, np.float32)
    if bias is not None:
        offsets[:k] = bias
    biases = Buffer(offsets.size, offsets)

    longest = -(-tiles // runs)
    row = step * -(-c // target().lanes)
    v_place = odd_lines(row * (longest if groups == 1 else tiles))
    m_tile = odd_lines(places * step * max(wide, last))
    patch = TABLES + places * step
    m = patch + places * row
    v = m + longest * m_tile
    scratch = v + (places * v_place if groups == 1 else 0)
    v_buffer = Buffer(places * v_place // 4) if groups > 1 else None

    def strides(place: Place | None) -> tuple[Argument, ...]:
        return (0, 0, 0, 0) if place is None else (place.address, *(4 * place.stride(i) for i in (0, 2, 3)))

    def args(runs: int, panels: int, groups: int) -> list[Argument]:
        return [
            *strides(x), *strides(out), *strides(residual), Address(packed.weight), Address(biases),
            h, w, c, p, q, k, padding, tiles, across, down * across, runs, panels, groups,
            wide, last, _most(wide), _most(last), bits(0.0 if relu or act == 1 else -math.inf), act,
            0 if v_buffer is None else Address(v_buffer), row, v_place, m_tile, side, TABLES, patch, m, v,
        ]  # fmt: skip

    functions: list[Argument] = []
    for vectors, used in ((wide, packed.panels > 1), (last, True)):
        rows = register_tiles(tiles, runs, _most(vectors)) if used else set()
        functions += [Function(f"tile_{r}x{vectors}") if r in rows else 0 for r in range(1, _most(vectors) + 1)]
    kernel = f"winograd.f{tile}"
    reads = [packed.weight, biases, *([] if residual is None else [residual.buffer])]
    macs = n * p * q * 9 * c * k  # of the convolution that it stands for
    if v_buffer is None:
        alone = args(runs, packed.panels, 1) + functions
        return [Instruction(kernel, alone, runs, [x.buffer, *reads], [out.buffer], scratch, macs=macs)]
    pieces = -(-tiles // LEAST_RUN)
    shared = args(runs, packed.panels, groups) + functions
    return [
        Instruction(kernel, args(pieces, 0, 1), pieces, [x.buffer], [v_buffer], m),
        Instruction(kernel, shared, runs * groups, [v_buffer, *reads], [out.buffer], scratch, macs=macs),
    ]


def odd_lines(size: int) -> int:
    """At least `size` bytes, an odd number of cache lines: with such strides lines do not meet in one set of the cache."""
    return LINE * (-(-size // LINE) | 1)


def register_tiles(tiles: int, runs: int, most: int) -> set[int]:
    """The numbers of rows of register tiles that the kernel calls."""
    rows = set()
    for count in {tiles // runs, -(-tiles // runs)}:
        blocks = -(-count // most)
        rows |= {count // blocks, -(-count // blocks)}
    return rows


def split(tiles: int, packed: Packed) -> tuple[int, int]:
    """(runs of tiles, runs of panels): units enough to share, light weights read by every run, heavy ones once if V allows."""
    if packed.weight.size * 4 > HEAVY_WEIGHTS and packed.panels > 1:
        v = 4 * (packed.tile + 2) ** 2 * packed.depth * tiles
        return min(tiles, -(-v // HEAVY_V)), packed.panels
    runs = max(1, round(tiles / RUN))
    if runs >= FEW_RUNS:
        return runs, 1
    if packed.panels > 1:
        return runs, packed.panels
    return max(1, round(tiles / LEAST_RUN)), 1


def cost(c: int, k: int, h: int, w: int, n: int, tile: int) -> float:
    """Nanoseconds on one core for an output of n images of h x w pixels, weights from memory. tile: 4, 2, or 0 for direct."""
    lanes = target().lanes
    inputs, outputs = -(-c // lanes), -(-k // lanes)
    if tile == 0:
        macs = n * h * w * 9 * c * outputs * lanes
        return 2 * macs / DIRECT_RATE + 36 * c * outputs * lanes / STREAM
    places = (tile + 2) ** 2
    tiles = n * -(-h // tile) * -(-w // tile)
    weights = places * c * outputs * lanes
    forward, inverse = TRANSFORM[tile]
    calls = places * -(-tiles // target().rows) * -(-outputs // 2) * CALL
    return 2 * tiles * weights / RATE + 4 * weights / STREAM + tiles * (inputs * forward + outputs * inverse) + calls


@functools.cache
def choose(c: int, k: int, h: int, w: int, n: int) -> int:
    """The fastest way for a 3x3 convolution with an output of n images of h x w pixels: 4, 2, or 0 for a direct convolution."""
    best = min((4, 2), key=lambda tile: cost(c, k, h, w, n, tile))
    return best if cost(c, k, h, w, n, best) < GAIN * cost(c, k, h, w, n, 0) else 0
