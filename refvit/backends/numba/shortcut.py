"""HRViT's diversity-enhanced shortcut: its two small matrices as vectors of weights, tokens split into runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refvit.backends.numba.cpu import target
from refvit.backends.numba.epilogue import ACT
from refvit.backends.numba.layout import Place, matrix, same_rows
from refvit.backends.numba.program import Address, Argument, Buffer, Instruction
from refvit.graph.ir import Array

TOGETHER = 8  # tokens that the kernel takes at a time
UNIT_VALUES = 65536  # of a run of tokens: about 100 microseconds
LEAST_VALUES = 4096
UNITS = 16  # wanted of a large map


def shortcut(
    x: Place, right_w: Array, right_b: Array, left_w: Array, left_b: Array, out: Place, residuals: Sequence[Place] = ()
) -> list[Instruction]:
    """`models.hrvit.diversity_shortcut` plus the residuals.

    x, out and residuals (n, l, c), channels of stride 1; right_w (p, p), right_b (p,), left_w (k, k), left_b (k,), c = k p, p a
    power of two. out must not overlap the others. ValueError for other shapes.
    """
    n, l, c = x.shape
    p, k, lanes = len(right_b), len(left_b), target().lanes
    if k * p != c or p & (p - 1) or right_w.shape != (p, p) or left_w.shape != (k, k):
        raise ValueError(f"shortcut: tokens of {c} values cannot be k x p with weights {left_w.shape} and {right_w.shape}")
    turns, pieces = max(1, lanes // p), max(1, p // lanes)
    depth, vectors = max(p, lanes), -(-c // lanes)

    right = np.zeros((pieces, depth, lanes), np.float32)
    offset = np.tile(right_b.astype(np.float32), turns).reshape(pieces, lanes)
    for row in range(turns):  # of a vector; between different rows the weights are 0
        rows, columns = slice(row * p, (row + 1) * p), slice(row * p, (row + 1) * min(p, lanes))
        right[:, rows, columns] = right_w.T.reshape(p, pieces, -1).transpose(1, 0, 2)
    if turns == 1:
        left, left_offset = left_w, left_b
    else:
        left, left_offset = _turned(left_w, vectors, turns, p), np.zeros(vectors * lanes, np.float32)
        left_offset[:c] = np.repeat(left_b, p)
    constants = [Buffer(w.size, array=np.ascontiguousarray(w, np.float32)) for w in (right, offset, left, left_offset)]

    places = (x, out, *residuals)
    found = [matrix(place.axes[:-1]) for place in places]
    steps = [m[1] for m in found if m is not None]
    alike = (same_rows(x.axes[:-1], steps[0], y.axes[:-1], s) for y, s in zip(places, steps, strict=False))
    if len(steps) == len(places) and all(alike):
        n, l, strides = 1, n * l, [(0, 4 * s) for s in steps]  # any order of the tokens, as long as it is the same
    else:
        strides = [(4 * place.stride(0), 4 * place.stride(1)) for place in places]
    values = n * l * c
    units = min(max(UNITS, values // UNIT_VALUES), max(1, values // LEAST_VALUES))
    runs = max(1, min(-(-units // n), l // TOGETHER))
    run = -(-l // (runs * TOGETHER)) * TOGETHER
    runs = -(-l // run)
    args: list[Argument] = [
        x.address, *strides[0], out.address, *strides[1], l, c, runs, run,
        Address(constants[0]), Address(constants[1]), depth, pieces, Address(constants[2]), Address(constants[3]),
        turns, p, ACT["gelu"], len(residuals),
    ]  # fmt: skip
    for term, step in zip(residuals, strides[2:], strict=True):
        args += [term.address, *step]
    scratch = 4 * lanes * (vectors * turns * TOGETHER + 2)
    reads = [x.buffer, *constants, *(term.buffer for term in residuals)]
    return [Instruction("shortcut.shortcut", args, n * runs, reads, [out.buffer], scratch, macs=n * l * c * (p + k))]


def _turned(left: Array, vectors: int, turns: int, p: int) -> Array:
    """(vectors, turns x vectors, lanes): what lane j of vector i, turned by t rows, adds to lane j of vector v."""
    k = len(left)
    padded = np.zeros((vectors * turns, vectors * turns), np.float32)
    padded[:k, :k] = left
    weights = np.empty((vectors, turns, vectors, turns, p), np.float32)
    for turn in range(turns):
        for row in range(turns):
            weights[:, turn, :, row] = padded[row::turns, (row + turn) % turns :: turns, None]
    return weights.reshape(vectors, turns * vectors, turns * p)
