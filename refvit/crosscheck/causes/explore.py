"""Hypotheses tried on a segment: each at its places one by one and at all of them at once, the cheap ones first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from refvit.crosscheck.arithmetic import ulp
from refvit.crosscheck.causes.hypothesis import Cause, Change, Family, Scene
from refvit.crosscheck.measure import FACTOR, Error, errors, ratio, scaled, worst
from refvit.errors import RefvitError
from refvit.graph.ir import Array

BUDGET = 150_000_000_000  # operations for all hypotheses together: about 40 seconds
RUNS = 3  # of a yardstick, as in `locate`
NEAR = 16.0  # what is further off than this many times the bound by the segment's own yardstick is not measured by its own
ENOUGH = 8  # values for each number that is searched for
STEPS = 12  # of the search for a number
MISFITS = (RefvitError, ValueError, IndexError, KeyError, ZeroDivisionError, TypeError, OverflowError)


@dataclass(frozen=True)
class Found:
    """A hypothesis that was tried: what is left of the difference, in units of the yardstick, and its value."""

    cause: Cause
    change: Change
    left: float
    value: Array | None = field(repr=False, default=None, compare=False)
    fitted: int = 0  # numbers that were searched for

    @property
    def fits(self) -> bool:
        return self.left <= FACTOR


class Meter:
    """Measures how far hypotheses are from the candidate's value, in units of what the arithmetic costs."""

    def __init__(self, scene: Scene, yardstick: Error, arithmetic: str) -> None:
        self.scene, self.yardstick, self.arithmetic = scene, yardstick, arithmetic
        self.narrow = "float32" if arithmetic in ("float64", "int8") else arithmetic
        self.base = self.far(scene.base)

    def far(self, y: Array, yardstick: Error | None = None) -> float:
        """The ratio of the candidate's distance from y."""
        observed = self.scene.observed
        if y.shape != observed.shape:
            return np.inf
        both = ~np.isfinite(y) & ~np.isfinite(observed)
        if both.any():
            y, observed = np.where(both, 0, y), np.where(both, 0, observed)
        if not np.isfinite(y).all():
            return np.inf
        return ratio(errors(observed, y, words=False), yardstick or self.yardstick, self.arithmetic)

    def left(self, change: Change, y: Array) -> float:
        """The ratio by what the hypothesis itself costs, or the segment as it is if that is more."""
        rough = self.far(y)
        if not rough <= max(NEAR * FACTOR, self.base / 20) or self.arithmetic == "int8":
            return rough
        return self.far(y, worst([*self._costs(change, y), self.yardstick]) if y.shape == self.scene.base.shape else None)

    def _costs(self, change: Change, y: Array) -> Iterator[Error]:
        step = ulp("float32" if self.narrow == "tf32" else self.narrow)
        y = np.where(np.isfinite(y), y, 0)
        for i in range(RUNS):
            rng = np.random.default_rng(i)
            noise = {n: 1 + step * rng.uniform(-1, 1, self.scene.values[n].shape) for n in self.scene.sources} if i else {}
            got = self.scene.run(change, self.narrow, noise)
            cost = errors(np.where(np.isfinite(got), got, y), y, words=False)
            yield scaled(cost, ulp("float64") / ulp("float32")) if self.arithmetic == "float64" else cost


def everything(scene: Scene, causes: Iterable[Cause]) -> list[tuple[Cause, Change | Family]]:
    """All hypotheses: place by place, and one option at all its places, or at all that are called alike, at once."""
    found: list[tuple[Cause, Change | Family]] = []
    for cause in causes:
        single = list(cause.changes(scene))
        found += [(cause, change) for change in single if isinstance(change, Family) or not change.together]
        by_option: dict[tuple[str, bool], list[Change | Family]] = {}
        for change in single:
            by_option.setdefault((change.option, isinstance(change, Family)), []).append(change)
        for group in by_option.values():
            found += [(cause, merged) for merged in _merged(group)]
    return found


def _merged(group: list[Change | Family]) -> Iterator[Change | Family]:
    if len(group) < 2:
        return
    alike: dict[str, list[Change | Family]] = {}
    for change in group:
        places = change.make(change.starts[0]).places if isinstance(change, Family) else change.places
        alike.setdefault(re.sub(r"(^|\.)\d+(?=\.|$)", r"\1#", places[0]), []).append(change)
    for part in [group, *(alike.values() if len(alike) > 1 else ())]:
        whole: Change | Family | None = part[0]
        for other in part[1:]:
            if whole is not None:
                whole = whole.merged(other)
        if whole is not None and len(part) > 1:
            yield whole


def cost(scene: Scene, change: Change | Family) -> int:
    if isinstance(change, Family):
        return scene.cost_of(change.make(change.starts[0])) * 3 * (len(change.starts[0]) + 1) * len(change.starts)
    return scene.cost_of(change)


def explore(
    scene: Scene, meter: Meter, hypotheses: list[tuple[Cause, Change | Family]], budget: int = BUDGET
) -> tuple[list[Found], int]:
    """What was tried, the best fit first, and how many hypotheses the budget did not reach.

    Where it does not reach all, those that hold everywhere at once, or for the input, come first, the likelier ones before.
    """
    costs = [cost(scene, change) for _, change in hypotheses]
    order = sorted(range(len(hypotheses)), key=costs.__getitem__)
    if sum(costs) > budget:
        wide = {i for i, (_, change) in enumerate(hypotheses) if len(_example(change).places) > 1 or _example(change).sources}
        order = [*sorted(wide), *(i for i in order if i not in wide)]
    found, spent, missed = [], 0, 0
    for i in order:
        if spent + costs[i] > budget:
            missed += 1
            continue
        spent += costs[i]
        cause, change = hypotheses[i]
        result = fitted(scene, meter, cause, change) if isinstance(change, Family) else tried(scene, meter, cause, change)
        if result is not None:
            found.append(result)
    found.sort(key=lambda f: f.left)
    return found, missed


def _example(change: Change | Family) -> Change:
    return change.make(change.starts[0]) if isinstance(change, Family) else change


def tried(scene: Scene, meter: Meter, cause: Cause, change: Change) -> Found | None:
    """The hypothesis with what it leaves; None where it cannot be computed or changes nothing."""
    try:
        y = scene.run(change)
        if y.shape != scene.observed.shape or (y.shape == scene.base.shape and np.array_equal(y, scene.base, equal_nan=True)):
            return None
        left = meter.left(change, y)
    except MISFITS:
        return None
    return Found(cause, change, left, y if left <= FACTOR else None)


def fitted(scene: Scene, meter: Meter, cause: Cause, family: Family) -> Found | None:
    """The numbers of a family that bring it nearest to the candidate, by Gauss and Newton's method."""
    if not np.isfinite(scene.observed).all() or scene.observed.size < ENOUGH * len(family.starts[0]):
        return None
    best: Found | None = None
    for start in family.starts:
        try:
            numbers = _search(scene, family, np.asarray(start, np.float64))
            result = None if numbers is None else tried(scene, meter, cause, family.make(numbers))
        except (*MISFITS, np.linalg.LinAlgError):
            continue
        if result is not None and (best is None or result.left < best.left):
            best = Found(result.cause, result.change, result.left, result.value, len(start))
    return best


def _search(scene: Scene, family: Family, t: Array) -> tuple[float, ...] | None:
    t = np.log(t) if family.logarithmic else t
    run = partial(_at, scene, family)
    y = run(t)
    distance = _distance(scene, y)
    for _ in range(STEPS):
        steps = np.where(np.abs(t) > 1e-3, np.abs(t) * 1e-4, 1e-4)
        slopes = np.stack(
            [(run(t + step * unit) - y).ravel() / step for step, unit in zip(steps, np.eye(len(t)), strict=True)], 1
        )
        if not np.isfinite(slopes).all() or not slopes.any():
            return None
        move = np.linalg.lstsq(slopes, (scene.observed - y).ravel(), rcond=None)[0]
        if family.logarithmic:
            move = np.clip(move, -3, 3)
        for shrink in (1.0, 0.5, 0.25, 0.0625):
            closer = run(t + shrink * move)
            if _distance(scene, closer) < distance:
                break
        else:
            break
        gained = 1 - _distance(scene, closer) / distance
        t, y, distance = t + shrink * move, closer, _distance(scene, closer)
        if gained < 1e-3 or (np.abs(move) <= 1e-12 * np.abs(t)).all():
            break
    if distance > 0.5 * _distance(scene, scene.base):
        return None
    return tuple(float(n) for n in (np.exp(t) if family.logarithmic else t))


def _at(scene: Scene, family: Family, t: Array) -> Array:
    y = scene.run(family.make(tuple(np.exp(t) if family.logarithmic else t)))
    if y.shape != scene.observed.shape:
        raise ValueError("another shape")
    return y


def _distance(scene: Scene, y: Array) -> float:
    return float(np.sqrt(np.mean((scene.observed - y) ** 2)))
