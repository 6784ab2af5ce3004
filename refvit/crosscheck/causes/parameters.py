"""The parameters that a candidate shows, held against the reference's: which differ, and in which way."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from refvit.crosscheck.arithmetic import rounded, ulp
from refvit.crosscheck.causes.weights import misread, quantised
from refvit.graph.ir import Array

SAME = 4 * ulp("float32")  # of the largest value: rounded to float32, or written in decimals
UNRELATED = 0.3  # correlation of weights below which one was not made from the other
SMALLEST = 2.0**-14  # normal number of float16: below it the numbers are as far apart as at it
MOST = 4096  # rows whose permutation is looked for


@dataclass(frozen=True)
class Difference:
    """One parameter that is not the reference's: its name, the cause of the table ("" if none), and what it is in words."""

    name: str
    cause: str
    text: str


def differences(ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> list[Difference]:
    """Of every parameter that both have. theirs: the candidate's under our names, as it has them."""
    found = [compare(name, ours, theirs[name]) for name in ours if name in theirs]
    return [d for d in found if d is not None]


def compare(name: str, ours: Mapping[str, Array], their: Array) -> Difference | None:
    """None if it is the reference's parameter up to float32's rounding."""
    mine, their = np.asarray(ours[name], np.float64), np.asarray(their, np.float64)
    if close(mine, their):
        return None
    if mine.shape == their.shape and not np.isfinite(their).all():
        return Difference(name, "", f"{name} holds NaN or infinite values")
    for cause, text in _ways(name, ours, mine, their):
        return Difference(name, cause, f"{name} {text}")
    if mine.shape != their.shape:
        return Difference(name, "", f"{name} has the shape {their.shape} where {mine.shape} is expected")
    if close(np.sort(mine, axis=None), np.sort(their, axis=None)):
        return Difference(name, "", f"{name} holds the file's numbers in another order")
    alike = correlation(mine, their)
    largest = np.abs(their - mine).max() / (np.abs(mine).max() or 1.0)
    if mine.size >= 16 and abs(alike) < UNRELATED:
        return Difference(name, "weights-not-loaded", f"{name} has nothing in common with the file's (correlation {alike:.2f})")
    return Difference(name, "", f"{name} differs from the file's by up to {largest:.2g} of its largest value")


def close(a: Array, b: Array, tolerance: float = SAME) -> bool:
    return a.shape == b.shape and bool(np.abs(a - b).max(initial=0.0) <= tolerance * (np.abs(a).max(initial=0.0) or 1.0))


def correlation(a: Array, b: Array) -> float:
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    lengths = math.sqrt(np.vdot(a, a)) * math.sqrt(np.vdot(b, b))
    return float(np.vdot(a, b) / lengths) if lengths else 0.0


def _ways(name: str, ours: Mapping[str, Array], mine: Array, their: Array) -> Iterator[tuple[str, str]]:
    """(cause, text) of what it may be, the likeliest first."""
    for kind in ("float16", "bfloat16", "tf32"):
        if _narrow(mine, their, kind):
            yield "weights-rounded", f"is rounded to {kind}"
    if mine.shape == their.shape:
        yield from _values(name, mine, their)
    if mine.ndim in (2, 4):
        for option, text, function in misread(mine):
            if close(function(mine), their):
                yield "weight-transposed", "is transposed" if option == "axes io" else f"lies otherwise: {text}"
        if mine.ndim == 4 and mine.shape == their.shape:
            for axes, text in (((2, 3), "rotated by 180 degrees"), ((2,), "upside down"), ((3,), "mirrored left to right")):
                if close(np.flip(mine, axes), their):
                    yield "kernel-flipped", f"is {text}"
    if mine.ndim == 2 and their.shape == mine.T.shape and close(mine.T, their):
        yield "weight-transposed", "is transposed"
    if mine.shape == their.shape:
        yield from _moved(mine, their)
    path, _, leaf = name.rpartition(".")
    for other, array in ours.items():
        if other != name and array.shape == their.shape and close(np.asarray(array, np.float64), their):
            their_path, _, their_leaf = other.rpartition(".")
            yield _exchanged(path == their_path, leaf, their_leaf), f"is what {other} should be"


def _narrow(mine: Array, their: Array, kind: str) -> bool:
    """Whether theirs are numbers of that kind, and the next to ours, or those beside them: what is folded is rounded before."""
    if mine.shape != their.shape or not np.array_equal(rounded(their, kind), their):
        return False
    smallest = SMALLEST if kind == "float16" else 0.0
    return bool((np.abs(their - mine) <= ulp(kind) * np.maximum(np.abs(mine), smallest)).all())


def _exchanged(same_module: bool, leaf: str, other: str) -> str:
    if not same_module:
        return "weights-of-another-layer"
    return "batch-norm-swapped" if {leaf, other} == {"running_mean", "running_var"} else "norm-affine"


def _values(name: str, mine: Array, their: Array) -> Iterator[tuple[str, str]]:
    leaf = name.rpartition(".")[2]
    if np.ptp(their) == 0:
        value = float(their.flat[0])
        statistics = leaf.startswith("running")
        norm = mine.ndim == 1 and leaf == "weight"
        cause = (
            "batch-norm-statistics" if statistics else "norm-affine" if norm else "bias" if leaf == "bias" and not value else ""
        )
        yield cause or "weights-not-loaded", f"is {value:g} everywhere"
    factor = float(np.vdot(mine, their) / (np.vdot(mine, mine) or 1.0))
    if abs(factor - 1) > 1e-4 and close(mine * factor, their):
        yield "weight-scaled", f"is multiplied by {factor:.4g}"
    if mine.ndim > 1:
        for levels, channelwise, asymmetric in itertools.product((127, 128, 255, 7), (False, True), (False, True)):
            if close(quantised(mine, levels, channelwise, asymmetric), their):
                yield "quantised-weights", f"is quantised to {levels} steps {'a channel' if channelwise else 'in all'}"


def _moved(mine: Array, their: Array) -> Iterator[tuple[str, str]]:
    """The same slices in another order."""
    for axis, what in ((0, "rows"), (1, "columns")):
        if axis >= mine.ndim or not 1 < mine.shape[axis] <= MOST:
            continue
        order = permutation(np.moveaxis(mine, axis, 0), np.moveaxis(their, axis, 0))
        if order is None:
            continue
        k = len(order)
        if np.array_equal(order, np.arange(k)[::-1]):
            yield "channels-reversed", f"has its {what} in reversed order"
        elif axis == 0 and k % 3 == 0 and (thirds := _thirds(order)) == [0, 1, 2]:
            yield "head-order", "has the features of queries, of keys and of values in another order"
        elif axis == 0 and k % 3 == 0 and thirds:
            yield "qkv-order", "has queries, keys and values packed in another order"
        else:
            yield "head-order" if axis == 1 else "qkv-order" if k % 3 == 0 and mine.shape[0] == 3 * mine.shape[-1] else "", \
                  f"has its {what} in another order, {', '.join(map(str, order[:6]))} ..."  # fmt: skip


def _thirds(order: Array) -> list[int]:
    """From which third each third comes, as a whole; nothing if they are mixed."""
    found = order.reshape(3, -1) // (len(order) // 3)
    return [int(row[0]) for row in found] if (found == found[:, :1]).all() else []


def permutation(mine: Array, their: Array) -> Array | None:
    """The order of mine's slices along the first axis that gives theirs, if there is one that is not the identity."""
    a, b = mine.reshape(len(mine), -1), their.reshape(len(their), -1)
    key = np.random.default_rng(0).standard_normal(a.shape[1])
    first, second = np.argsort(a @ key), np.argsort(b @ key)
    order = np.empty(len(a), np.int64)
    order[second] = first
    moved = bool((order != np.arange(len(a))).any())
    return order if moved and close(a[order], b) else None
