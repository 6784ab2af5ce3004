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

POINTS = {4: (0.625, -0.625, 1.5, -1.5), 2: (1.0, -1.0)}  # of interpolation besides 0 and infinity
LINE = 64  # bytes
TABLES = 512  # bytes for the microkernel's arguments
PATCH, V, M = 34, 35, 37


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


def matrix(tile: int) -> Array:
    """G, (tile + 2, 3) float64: the transform of a kernel's columns. Row i is a point's powers over its distance to the others."""
    points = (0.0, *POINTS[tile])
    rows = [[p**i / math.prod(p - q for q in points if q != p) for i in range(3)] for p in points]
    return np.array([*rows, [0.0, 0.0, 1.0]])


def pack(weight: Array, tile: int) -> Packed:
    """weight (k, c, 3, 3) float32; tile: 4 or 2."""
    k, c = weight.shape[:2]
    lanes = target().lanes
    registers = -(-k // lanes)
    vectors = min(2, registers)
    panels = max(1, registers // vectors)
    last = registers - (panels - 1) * vectors
    g = matrix(tile)
    u = np.einsum("ir,kcrs,js->ijck", g, weight.astype(np.float64), g).astype(np.float32)
    u = np.pad(u.reshape(len(g) ** 2, c, k), ((0, 0), (0, 0), (0, registers * lanes - k)))
    pieces = np.split(u, [i * vectors * lanes for i in range(1, panels)], axis=2)
    packed = np.concatenate([piece.reshape(-1) for piece in pieces])
    return Packed(tile, Buffer(packed.size, packed), c, k, vectors, panels, last)


def winograd(
    x: Place, packed: Packed, bias: Array | None, out: Place, padding: int, *, tile: int,
    residual: Place | None = None, relu: bool = False, act: int = 0,
) -> list[Instruction]:
    """conv2d with a 3x3 kernel, stride 1. x (n, c, h, w), out and residual (n, k, p, q): channels of stride 1.

    padding: rows and columns of zeros on every side. The residual is added before relu or act.
    """
    n, c, h, w = x.shape
    _, k, p, q = out.shape
    size, lanes = tile, target().lanes
    side = size + 2
    down, across = -(-p // size), -(-q // size)
    tiles = n * down * across
    blocks, groups = split(tiles, packed)
    ldc = 4 * lanes * -(-c // lanes)
    most = {2: target().rows, 1: target().rows, 3: target().rows * 2 // 3}
    registers = (packed.panels - 1) * packed.vectors + packed.last_vectors
    offsets = np.zeros(registers * lanes, np.float32)
    if bias is not None:
        offsets[:k] = bias
    biases = Buffer(offsets.size, offsets)
    biggest = -(-tiles // blocks)
    wide, last = packed.vectors, packed.last_vectors
    v_place, v_tile = v_strides(side * side, ldc, biggest)
    m_tile = odd_lines(side * side * 4 * lanes * max(wide, last))
    v = TABLES + side * side * ldc
    m = v + v_place * side * side + v_tile * biggest
    scratch = m + m_tile * biggest

    def strides(place: Place) -> tuple[Address, int, int, int]:
        return place.address, 4 * place.stride(0), 4 * place.stride(2), 4 * place.stride(3)

    rows = {v: register_tiles(tiles, blocks, most[v]) for v in {wide, last}}
    args: list[Argument] = [
        *strides(x), *strides(out), *((0, 0, 0, 0) if residual is None else strides(residual)),
        Address(packed.weight), Address(biases),
        h, w, c, p, q, k, padding, padding,
        tiles, across, down * across, blocks, packed.panels, groups,
        wide, last, most[wide], most[last],
        bits(0.0 if relu or act == 1 else -math.inf), act,
        TABLES, v, v_tile, v_place, m, m_tile,
    ]  # fmt: skip
    for vectors, used in ((wide, packed.panels > 1), (last, True)):
        args += [Function(f"tile_{r}x{vectors}") if used and r in rows[vectors] else 0 for r in range(1, most[vectors] + 1)]
    reads = [x.buffer, packed.weight, biases, *([] if residual is None else [residual.buffer])]
    macs = tiles * side * side * c * k
    return [Instruction(f"winograd.f{size}", args, blocks * groups, reads, [out.buffer], scratch, macs=macs)]


def odd_lines(size: int) -> int:
    """At least `size` bytes, an odd number of cache lines: strides that do not meet in the same set of the cache."""
    return LINE * (-(-size // LINE) | 1)


def v_strides(places: int, row: int, tiles: int) -> tuple[int, int]:
    """Bytes from place to place and from tile to tile of V."""
    if LAYOUT:
        return row, odd_lines(places * row)
    return odd_lines(row * tiles), row


LAYOUT = 1
BLOCK = 28


def register_tiles(tiles: int, blocks: int, most: int) -> set[int]:
    """The numbers of rows of register tiles that the kernel will call."""
    rows = set()
    for count in {tiles // blocks, -(-tiles // blocks)}:
        pieces = -(-count // most)
        rows |= {count // pieces, -(-count // pieces)}
    return rows


def split(tiles: int, packed: Packed) -> tuple[int, int]:
    """Runs of tiles and runs of panels."""
    blocks = max(1, round(tiles / BLOCK))
    return blocks, (packed.panels if blocks < 4 else 1)
