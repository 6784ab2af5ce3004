"""How far one array is from another, and how that compares with what the arithmetic itself costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from refvit.crosscheck.arithmetic import ulp
from refvit.crosscheck.where import describe
from refvit.errors import ShapeError
from refvit.graph.ir import Array

FACTOR = 8.0  # a value diverges if it is this many times further off than the arithmetic explains; the same for all tensors

# Floors of the yardstick in ulps: of the largest golden value for the largest error, of its root mean square for the others.
LARGEST, RMS = 1.0, 0.25
SHARE = 0.25  # of the tensor's yardstick is the least of a slice: noise wakes up channels that a ReLU has silenced
FEWEST = 16  # numbers in a slice that is looked at on its own: fewer say too little about what the arithmetic costs there
NEAR_ZERO = 1e-3  # of the largest golden value


@dataclass(frozen=True)
class Error:
    """The difference of an array from its golden value.

    largest, rms: of |got - golden|, relative to the largest |golden| (as they are where golden is all zero)
    cosine: of the angle between both
    ulps_near_zero, ulps_elsewhere: the largest difference in float32 ulps of golden where it is below 1/1000 of its largest
        value, and elsewhere
    where: in which channels, tokens, border ... it sits, in words
    bad: how many values are NaN or infinite where golden is finite; they count in nothing else
    top, size: the largest |golden|, and the root mean square of golden
    slices, levels: for every axis the root mean square of the difference, and of golden, at each index of it; None for an axis
        whose slices are too small to tell anything
    """

    largest: float
    rms: float
    cosine: float = 1.0
    ulps_near_zero: float = 0.0
    ulps_elsewhere: float = 0.0
    where: str = ""
    bad: int = 0
    top: float = 1.0
    size: float = 1.0
    slices: tuple[Array | None, ...] = field(default=(), repr=False, compare=False)
    levels: tuple[Array | None, ...] = field(default=(), repr=False, compare=False)


def errors(got: Array, golden: Array, axes: Sequence[str] | None = None, words: bool = True) -> Error:
    """The error of got against golden, two real arrays of one shape. Values that are not finite in golden count in nothing.

    axes: what the axes are, such as ("image", "channel", "row", "column")
    words: False leaves out what a yardstick has no use for, the cosine, the ulps and the words
    """
    if got.shape != golden.shape:
        raise ShapeError(f"errors: arrays of one shape expected, got {got.shape} and {golden.shape}")
    got, golden = np.asarray(got, np.float64), np.asarray(golden, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = got - golden
        bad = np.zeros(0, bool)
        if not math.isfinite(difference.sum()) and not (finite := np.isfinite(difference)).all():
            bad = ~finite & np.isfinite(golden)
            got, golden, difference = (np.where(finite, a, 0.0) for a in (got, golden, difference))
        size, absolute, squares = np.abs(golden), np.abs(difference), difference * difference
        top, count = float(size.max(initial=0.0)), max(1, golden.size)
        relative = 1 / top if top else 1.0
        error = Error(
            largest=float(absolute.max(initial=0.0)) * relative,
            rms=math.sqrt(squares.sum() / count) * relative,
            bad=int(np.count_nonzero(bad)),
            top=top,
            size=math.sqrt(np.vdot(golden, golden) / count),
            slices=_slices(squares),
            levels=_slices(golden * golden),
        )
        if not words:
            return error
        ulps = absolute / np.spacing(np.maximum(size, np.finfo(np.float32).tiny).astype(np.float32))
        near = size < NEAR_ZERO * top
        return replace(
            error,
            cosine=_cosine(got, golden),
            ulps_near_zero=float(ulps.max(where=near, initial=0.0)),
            ulps_elsewhere=float(ulps.max(where=~near, initial=0.0)),
            where=describe(bad, axes, "of the NaN or infinite values") if error.bad else describe(squares, axes),
        )


def scaled(error: Error, factor: float) -> Error:
    """The same error so many times larger; the cosine stays."""
    return replace(
        error,
        largest=error.largest * factor,
        rms=error.rms * factor,
        ulps_near_zero=error.ulps_near_zero * factor,
        ulps_elsewhere=error.ulps_elsewhere * factor,
        slices=tuple(None if s is None else s * factor for s in error.slices),
    )


def worst(found: Iterable[Error]) -> Error:
    """The yardstick of several runs: the largest of each figure, absolute ones against the same largest golden value."""
    first, *others = found
    for other in others:
        scale = other.top / first.top if first.top and other.top else 1.0
        first = replace(
            first,
            largest=max(first.largest, other.largest * scale),
            rms=max(first.rms, other.rms * scale),
            cosine=min(first.cosine, other.cosine),
            ulps_near_zero=max(first.ulps_near_zero, other.ulps_near_zero),
            ulps_elsewhere=max(first.ulps_elsewhere, other.ulps_elsewhere),
            bad=max(first.bad, other.bad),
            slices=tuple(
                a if b is None or a is None else np.maximum(a, b) for a, b in zip(first.slices, other.slices, strict=True)
            ),
        )
    return first


def ratio(error: Error, yardstick: Error, arithmetic: str) -> float:
    """How many times larger the error is than what the arithmetic costs: the largest of these comparisons.

    The largest and the root mean square difference of the whole tensor, and the root mean square difference of each slice at an
    index of an axis, so that one wrong channel shows among a thousand right ones. The yardstick is never below a part of an ulp
    of the tensor, because what is exact in one implementation may be rounded in another, and that of a slice never relatively
    below that of the tensor. NaN or infinite values that neither golden nor the yardstick has make it inf.
    """
    if error.bad > FACTOR * yardstick.bad:
        return math.inf
    unit = ulp("float32" if arithmetic == "tf32" else arithmetic)  # what is no product is float32 there
    lost, rms = yardstick.largest * (yardstick.top or 1.0), yardstick.rms * (yardstick.top or 1.0)
    floor = RMS * unit * error.size
    found = [
        _quotient(error.largest * (error.top or 1.0), lost + LARGEST * unit * error.top),
        _quotient(error.rms * (error.top or 1.0), rms + floor),
    ]
    relative = rms / yardstick.size if yardstick.size else 0.0
    for mine, level, usual in zip(error.slices, error.levels, yardstick.slices, strict=True):
        if mine is not None and level is not None and usual is not None:
            allowed = np.maximum(usual, relative * level) + SHARE * rms + floor
            found.append(max(map(_quotient, mine, allowed)))
    return max(found)


def _quotient(a: float, b: float) -> float:
    return math.inf if not math.isfinite(a) else float(a / b) if b else math.inf if a else 0.0


def _cosine(a: Array, b: Array) -> float:
    a, b = (v / (np.abs(v).max(initial=0.0) or 1.0) for v in (a, b))  # so that nothing overflows
    lengths = math.sqrt(np.vdot(a, a) * np.vdot(b, b))
    return float(np.vdot(a, b) / lengths) if lengths else float(not (a.any() or b.any()))


def _slices(squares: Array) -> tuple[Array | None, ...]:
    found: list[Array | None] = []
    for axis, length in enumerate(squares.shape):
        others = tuple(a for a in range(squares.ndim) if a != axis)
        count = squares.size // max(1, length)
        found.append(np.sqrt(squares.sum(others) / count) if length > 1 and count >= FEWEST else None)
    return tuple(found)
