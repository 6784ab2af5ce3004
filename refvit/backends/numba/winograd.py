"""Winograd convolutions: weights transformed and packed once, maps cut into tiles and tiles into units, and when that pays."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np

from refvit.backends.numba.cpu import target
from refvit.backends.numba.layout import Place
from refvit.backends.numba.program import Address, Argument, Buffer, Function, Instruction, bits
from refvit.graph.ir import Array

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
TRANSFORM = {"f4": (54.0, 51.0), "f2": (22.0, 22.0), "s2": (30.0, 22.0)}
CALL = 12.0  # ns to enter and leave a register tile
GAIN = 0.95  # Winograd has to be that much faster
MOST_WEIGHTS = 1 << 23  # bytes: with more, memory decides


@dataclass(frozen=True)
class Form:
    """A way to compute a 3x3 convolution by tiles, as kernels/winograd.py does it."""

    name: str  # of the kernel
    stride: int
    size: int  # outputs in a line of a tile
    side: int  # pixels that they read
    points: tuple[float, ...] = ()  # of interpolation besides 0 and infinity

    @property
    def step(self) -> int:
        """Pixels from a tile to the next."""
        return self.size * self.stride

    @property
    def places(self) -> int:
        """Matrix products."""
        return self.side**2 if self.stride == 1 else 9

    @property
    def slots(self) -> int:
        """Values of V for each channel, and so multiplications of a tile."""
        return self.side**2

    @property
    def parts(self) -> int:
        """Values of a channel in one place, at most."""
        return 1 if self.stride == 1 else 4


F4 = Form("f4", 1, 4, 6, (0.625, -0.625, 1.5, -1.5))
F2 = Form("f2", 1, 2, 4, (1.0, -1.0))
S2 = Form("s2", 2, 2, 5)
FORMS = (F4, F2, S2)
SLOTS_OF_S2 = ((0, 1), (2,), (3, 4))  # of a line, by place


@dataclass(frozen=True)
class Packed:
    """Weights as the kernel reads them: panels of `vectors` registers of output channels, each (slots, c, width)."""

    form: Form
    weight: Buffer
    depth: int
    columns: int
    vectors: int
    panels: int
    last_vectors: int

    @property
    def registers(self) -> int:
        return (self.panels - 1) * self.vectors + self.last_vectors


def matrix(form: Form) -> Array:
    """G, (side, 3) float64: the transform of a kernel's columns."""
    if form is S2:  # what meets d0 - d2, d1, d2, d4 - d2 and d3
        return np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1], [0, 1, 0]], np.float64)
    points = (0.0, *form.points)  # a row is powers of a point over its distances
    rows = [[p**i / math.prod(p - q for q in points if q != p) for i in range(3)] for p in points]
    return np.array([*rows, [0.0, 0.0, 1.0]])


def matrix_of_slots(form: Form) -> Array:
    """(slots, 9) float64: what becomes of the nine taps, in the order of the places and of their parts."""
    g = matrix(form)
    both = np.einsum("ir,js->ijrs", g, g).reshape(len(g), len(g), 9)
    if form is not S2:
        return both.reshape(-1, 9)
    pairs = itertools.product(SLOTS_OF_S2, SLOTS_OF_S2)
    return np.array([both[i, j] for down, across in pairs for i in down for j in across])


def pack(weight: Array, form: Form) -> Packed:
    """weight (k, c, 3, 3) float32, transformed in float64."""
    k, c = weight.shape[:2]
    lanes = target().lanes
    vectors, panels, last = _panels(k)
    taps = weight.transpose(2, 3, 1, 0).reshape(9, c * k).astype(np.float64)
    u = (matrix_of_slots(form) @ taps).astype(np.float32).reshape(form.slots, c, k)
    packed = np.zeros(form.slots * c * (k + -k % lanes), np.float32)
    for i in range(panels):
        begin, end = i * vectors * lanes, k if i == panels - 1 else (i + 1) * vectors * lanes
        width = (last if i == panels - 1 else vectors) * lanes
        panel = packed[begin * form.slots * c :][: width * form.slots * c].reshape(form.slots, c, width)
        panel[:, :, : end - begin] = u[:, :, begin:end]
    return Packed(form, Buffer(packed.size, packed), c, k, vectors, panels, last)


def _panels(k: int) -> tuple[int, int, int]:
    """(registers in a panel, panels, registers in the last panel): pairs, and three where one would be left."""
    registers = -(-k // target().lanes)
    vectors = min(2, registers)
    panels = max(1, registers // vectors)
    return vectors if panels > 1 else registers, panels, registers - (panels - 1) * vectors


def winograd(
    x: Place, packed: Packed, bias: Array | None, out: Place, padding: int, *, threads: int,
    residual: Place | None = None, relu: bool = False, act: int = 0,
) -> list[Instruction]:  # fmt: skip
    """conv2d with a 3x3 kernel and the form's stride. x (n, c, h, w), out and residual (n, k, p, q), bias (k,).

    Channels have stride 1.
    padding: rows and columns of zeros before the map, and as many as it takes behind it. threads: how many will share the
    work. The residual is added before relu or act, a code of `epilogue.ACT`.
    """
    n, c, h, w = x.shape
    _, k, p, q = out.shape
    form, step = packed.form, 4 * target().lanes
    places = form.places
    down, across = -(-p // form.size), -(-q // form.size)
    tiles = n * down * across
    runs, groups = split(tiles, packed, threads)
    wide, last = packed.vectors, packed.last_vectors
    offsets = np.zeros(packed.registers * target().lanes, np.float32)
    if bias is not None:
        offsets[:k] = bias
    biases = Buffer(offsets.size, offsets)

    longest = -(-tiles // runs)
    row = odd_lines(step * -(-form.parts * c // target().lanes))
    v_place = odd_lines(row * longest)
    m_tile = odd_lines(places * step * max(wide, last))
    patch = TABLES + places * step
    m = patch + form.side**2 * step * -(-c // target().lanes)
    v = m + longest * m_tile

    def strides(place: Place | None) -> tuple[Argument, ...]:
        return (0, 0, 0, 0) if place is None else (place.address, *(4 * place.stride(i) for i in (0, 2, 3)))

    args: list[Argument] = [
        *strides(x), *strides(out), *strides(residual), Address(packed.weight), Address(biases),
        h, w, c, p, q, k, padding, tiles, across, down * across, runs, packed.panels, groups,
        wide, last, target().tiles[wide], target().tiles[last], bits(0.0 if relu or act == 1 else -math.inf), act,
        row, v_place, m_tile, math.isqrt(places), TABLES, patch, m, v,
    ]  # fmt: skip
    for vectors, used in ((wide, packed.panels > 1), (last, True)):
        rows = register_tiles(tiles, runs, target().tiles[vectors]) if used else set()
        args += [Function(f"tile_{r}x{vectors}") if r in rows else 0 for r in range(1, target().tiles[vectors] + 1)]
    reads = [x.buffer, packed.weight, biases, *([] if residual is None else [residual.buffer])]
    macs = n * p * q * 9 * c * k  # of the convolution that it stands for
    return [Instruction(f"winograd.{form.name}", args, runs * groups, reads, [out.buffer], v + places * v_place, macs=macs)]


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
    longest, twice = RUN, 2
    if packed.weight.size * 4 > HEAVY_WEIGHTS:
        longest, twice = max(RUN, HEAVY_V // (4 * packed.form.slots * packed.depth)), 1
    runs = -(-tiles // longest)
    for least, of in ((LEAST_RUN, twice * threads), (SHORTEST_RUN, threads)):
        if tiles >= least * of * -(-runs // of):
            return of * -(-runs // of), 1
    runs = max(runs, tiles // SHORTEST_RUN, 1)
    return runs, min(packed.panels, -(-threads // runs))


def cost(c: int, k: int, h: int, w: int, n: int, form: Form | None) -> float:
    """Nanoseconds for an output of n images of h x w pixels, weights from memory. form: None for a direct convolution."""
    lanes = target().lanes
    inputs, outputs = -(-c // lanes), -(-k // lanes)
    if form is None:
        macs = n * h * w * 9 * c * outputs * lanes
        return 2 * macs / DIRECT_RATE + 36 * c * outputs * lanes / STREAM
    tiles = n * -(-h // form.size) * -(-w // form.size)
    weights = form.slots * c * outputs * lanes
    forward, inverse = TRANSFORM[form.name]
    calls = form.places * -(-tiles // target().rows) * -(-outputs // 2) * CALL
    return 2 * tiles * weights / RATE + 4 * weights / STREAM + tiles * (inputs * forward + outputs * inverse) + calls


@functools.lru_cache(4096)
def choose(c: int, k: int, h: int, w: int, n: int, stride: int) -> Form | None:
    """The fastest form of a 3x3 convolution with an output of n images of h x w pixels; None for a direct convolution."""
    forms = [form for form in FORMS if form.stride == stride and 4 * form.slots * c * k <= MOST_WEIGHTS]
    best = min(forms, key=lambda form: cost(c, k, h, w, n, form), default=None)
    return best if best and cost(c, k, h, w, n, best) < GAIN * cost(c, k, h, w, n, None) else None
