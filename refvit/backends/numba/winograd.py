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
LEAST_RUN = 10
SHORTEST_RUN = 6
HEAVY_WEIGHTS = 1 << 20  # bytes: more do not stay in the second-level cache from one run of tiles to the next
HEAVY_V = 1 << 20  # bytes of V that a run may have beside heavy weights

# fitted to what two cores with AVX-512 took for eleven layers of HRNet and HRViT: products and direct convolutions of a core in
# GFLOP/s, weights from memory in bytes a ns, the transforms of a register of channels of a tile in ns, forward and inverse
RATE, DIRECT_RATE, STREAM = 195.0, 180.0, 30.0
TRANSFORM = {4: (54.0, 51.0), 2: (22.0, 22.0)}
CALL = 12.0  # ns to enter and leave a register tile
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
    x: Place, packed: Packed, bias: Array | None, out: Place, padding: int, *, tile: int, threads: int,
    residual: Place | None = None, relu: bool = False, act: int = 0,
) -> list[Instruction]:  # fmt: skip
    """conv2d with a 3x3 kernel and stride 1. x (n, c, h, w), out and residual (n, k, p, q): channels of stride 1; bias (k,).

    padding: rows and columns of zeros on every side. tile: that of `packed`. threads: how many will share the work. The
    residual is added before relu or act, a code of `epilogue.ACT`.
    """
    n, c, h, w = x.shape
    _, k, p, q = out.shape
    side, step = tile + 2, 4 * target().lanes
    places = side * side
    down, across = -(-p // tile), -(-q // tile)
    tiles = n * down * across
    runs, groups = split(tiles, packed, threads)
    wide, last = packed.vectors, packed.last_vectors
    offsets = np.zeros(packed.registers * target().lanes, np.float32)
    if bias is not None:
        offsets[:k] = bias
    biases = Buffer(offsets.size, offsets)

    longest = -(-tiles // runs)
    row = step * -(-c // target().lanes)
    v_place = odd_lines(row * longest)
    m_tile = odd_lines(places * step * max(wide, last))
    patch = TABLES + places * step
    m = patch + places * row
    v = m + longest * m_tile

    def strides(place: Place | None) -> tuple[Argument, ...]:
        return (0, 0, 0, 0) if place is None else (place.address, *(4 * place.stride(i) for i in (0, 2, 3)))

    args: list[Argument] = [
        *strides(x), *strides(out), *strides(residual), Address(packed.weight), Address(biases),
        h, w, c, p, q, k, padding, tiles, across, down * across, runs, packed.panels, groups,
        wide, last, _most(wide), _most(last), bits(0.0 if relu or act == 1 else -math.inf), act,
        row, v_place, m_tile, side, TABLES, patch, m, v,
    ]  # fmt: skip
    for vectors, used in ((wide, packed.panels > 1), (last, True)):
        rows = register_tiles(tiles, runs, _most(vectors)) if used else set()
        args += [Function(f"tile_{r}x{vectors}") if r in rows else 0 for r in range(1, _most(vectors) + 1)]
    reads = [x.buffer, packed.weight, biases, *([] if residual is None else [residual.buffer])]
    macs = n * p * q * 9 * c * k  # of the convolution that it stands for
    return [Instruction(f"winograd.f{tile}", args, runs * groups, reads, [out.buffer], v + places * v_place, macs=macs)]


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


def split(tiles: int, packed: Packed, threads: int) -> tuple[int, int]:
    """(runs of tiles, runs of panels); how the work is cut changes no bit of the result.

    Every run reads all weights, and every run of panels makes V again, which costs less than to hand V from core to core.
    Every thread gets as many runs, two where they stay long enough. Few tiles are shared by panels as well.
    """
    longest = RUN
    if packed.weight.size * 4 > HEAVY_WEIGHTS:
        longest = max(RUN, HEAVY_V // (4 * (packed.tile + 2) ** 2 * packed.depth))
    runs = -(-tiles // longest)
    for least, of in ((LEAST_RUN, 2 * threads), (SHORTEST_RUN, threads)):
        if tiles >= least * of * -(-runs // of):
            return of * -(-runs // of), 1
    runs = max(runs, tiles // SHORTEST_RUN, 1)
    return runs, min(packed.panels, -(-threads // runs))


def cost(c: int, k: int, h: int, w: int, n: int, tile: int) -> float:
    """Nanoseconds for an output of n images of h x w pixels, weights from memory. tile: 4, 2, or 0 for direct."""
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
