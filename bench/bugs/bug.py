"""What a mistake is, where it must be found, and whether it can be seen at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.bugs.effects import FLOAT32, Loss, effect
from bench.bugs.subjects import Reference
from refvit.graph.ir import Array

VISIBLE = 16.0  # a change of less than this many times the arithmetic's own error there is no mistake that anyone could see
NEAR = 0.1
EXACT = 1e-10  # two float64 runs of the same module differ by less, relative to the largest value


@dataclass(frozen=True)
class Done:
    """A mistake that has been made.

    detail: which of its variants, in words
    place: the values of the reference that the candidate no longer computes as the reference does
    """

    detail: str
    place: tuple[str, ...]


@dataclass(frozen=True)
class Bug:
    """A mistake that can be made in a candidate.

    sites: the values of the reference where it can be made
    inject: makes it at one of them, with variants and magnitudes drawn; None where that site does not allow it after all
    """

    name: str
    words: str
    sites: Callable[[Any], list[str]]
    inject: Callable[[Any, str, np.random.Generator], Done | None]


@dataclass(frozen=True)
class Expected:
    """first: the value, among those that the candidate shows, that is the first to be wrong. effect: see `effects`.

    last: the first that can be recognised though it is wrong, and compared: what has neither a name of the reference's nor
    weights is told by its numbers alone, and what has another shape than the reference's has no numbers to compare
    """

    place: tuple[str, ...]
    first: str
    last: str
    effect: float


def expected(
    reference: Reference,
    before: Mapping[str, Array],
    after: Mapping[str, Array],
    place: tuple[str, ...],
    recognisable: Collection[str],
    loss: Loss = FLOAT32,
) -> Expected | None:
    """From what a candidate shows in float64 before and after a mistake. None if nothing has changed."""
    wrong = [v for v in reference.graph.nodes if v in before and _differs(before[v], after.get(v))]
    if not wrong:
        return None
    first = wrong[0]
    known = [value for value in wrong if value in recognisable]
    last = next((value for value in known if value in after and after[value].shape == before[value].shape), wrong[-1])
    right, other = before[first], after.get(first)
    if other is None or other.shape != right.shape or not np.isfinite(other).all():
        return Expected(place, first, last, float("inf"))
    return Expected(place, first, last, effect(reference, before, first, other - right, loss))


def _differs(right: Array, wrong: Array | None) -> bool:
    if wrong is None or wrong.shape != right.shape or not np.isfinite(wrong).all():
        return True
    return bool(np.abs(wrong - right).max() > EXACT * np.abs(right).max())


def magnitude(rng: np.random.Generator, usual: Sequence[float], low: float, high: float, *, right: float = 0.0) -> float:
    """One of the usual numbers, or as often any between low and high, all orders alike; not within a tenth of the right one."""
    usual = [v for v in usual if abs(v - right) > NEAR * right]
    if usual and rng.random() < 0.5:
        return float(rng.choice(usual))
    while True:
        drawn = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        if abs(drawn - right) > NEAR * right:
            return drawn
