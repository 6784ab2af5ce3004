"""Which value of the reference an array is, by its numbers: the nearest one, in any layout that fits."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from refvit.crosscheck.golden import positions
from refvit.crosscheck.layouts import LAYOUTS, PARTIAL, arranged, candidates_for
from refvit.crosscheck.places import Places
from refvit.crosscheck.predicted import Predicted, spread
from refvit.graph.ir import Array, Shape

CLEAR = 4.0  # times as far as the nearest must the next one be
ENOUGH = 4  # confirmations of a hypothesis
FEWEST = 4  # one number of so many has to be shown
MOVES = ("reshape", "transpose", "getitem", "broadcast")
MOVED = 1e-3  # distance that moving values, which computes nothing, never makes
RANK = {name: i for i, name in enumerate(LAYOUTS)}


@dataclass(frozen=True)
class Near:
    """A value of the reference, the layout in which the array is nearest to it, and how far it is (`predicted.distance`)."""

    value: str
    layout: str
    distance: float


@dataclass(frozen=True)
class Verdict:
    """best: the value that it is most likely; next: the distance of the nearest that is something else."""

    best: Near
    next: float

    @property
    def clear(self) -> bool:
        return self.best.distance * CLEAR <= self.next

    @property
    def confidence(self) -> float:
        """1: equal to this one, and to nothing else."""
        d = self.best.distance
        return max(0.0, (1 - d / self.next if self.next > 0 else 0.0) * (1 - min(d, 1.0)))


class Values:
    """Comparisons with what is expected of the reference's values."""

    def __init__(self, predicted: Predicted, places: Places) -> None:
        self.predicted, self.places = predicted, places
        by_shape: dict[Shape, list[str]] = {}
        for name in places.order:
            by_shape.setdefault(tuple(places.graph.value(name).shape), []).append(name)
        self._tables = {shape: _Table(names, predicted) for shape, names in by_shape.items()}
        self._fits: dict[tuple[Shape, Shape], list[str]] = {}
        self._fitting: dict[Shape, list[Shape]] = {}
        self._found: dict[tuple[int, Shape, str], tuple[int, list[Near], Array]] = {}
        self._alike: dict[str, frozenset[str]] = {}
        self.habit = ""  # the layout that most maps of this candidate have

    def layouts(self, array: Array, shape: Shape, declared: str = "") -> list[str]:
        """Those to try. An array of the reference's own shape is taken as it is, unless this candidate has another habit."""
        if declared:
            return [declared] if arranged(declared, array, shape) is not None else []
        key = (array.shape, shape)
        if key not in self._fits:
            self._fits[key] = candidates_for(shape, array)
        found = self._fits[key]
        if found[:1] == ["as is"]:
            return [self.habit] if len(shape) == 4 and self.habit in found else found[:1]
        return found

    def _shapes(self, array: Array, declared: str) -> list[Shape]:
        """Of the reference's values, those that the array fits."""
        if declared:
            return list(self._tables)
        if array.shape not in self._fitting:
            self._fitting[array.shape] = [shape for shape in self._tables if self.layouts(array, shape)]
        return self._fitting[array.shape]

    def nearest(self, array: Array, allowed: Collection[str] | None = None, declared: str = "") -> list[Near]:
        """Values it can be, the nearest first. Equally near ones: those of the same shape, then in the graph's order."""
        found: list[Near] = []
        for shape in self._shapes(array, declared):
            table = self._tables[shape]
            if allowed is not None and table.names.keys().isdisjoint(allowed):
                continue
            key = (id(array), shape, declared or self.habit)
            table.update()
            if key not in self._found or self._found[key][0] != table.stamp:
                self._found[key] = table.stamp, self._near(array, shape, declared), array  # which keeps its id
            found += [n for n in self._found[key][1] if allowed is None or n.value in allowed]
        return sorted(found, key=lambda n: (n.distance, RANK[n.layout], self.places.order[n.value]))

    def _near(self, array: Array, shape: Shape, declared: str) -> list[Near]:
        """Each value of that shape in the layout in which it is nearest; none where the distance is not finite."""
        best: dict[str, Near] = {}
        for layout in self.layouts(array, shape, declared):
            sample = sampled(layout, array, shape)
            for name, d in zip(self._tables[shape].names, self._tables[shape].distances(sample), strict=True):
                if np.isfinite(d) and (name not in best or d < best[name].distance):
                    best[name] = Near(name, layout, float(d))
        return list(best.values())

    def verdict(self, array: Array, allowed: Collection[str] | None = None, declared: str = "") -> Verdict | None:
        """None if no value has a shape that fits."""
        near = self.nearest(array, allowed, declared)
        if not near:
            return None
        views = self.views(near[0].value)
        alike = [n for n in near if n.value in views and n.distance <= max(CLEAR * near[0].distance, MOVED)]
        same = min(alike, key=lambda n: (RANK[n.layout], self.places.order[n.value]))
        others = [n.distance for n in near if n.value not in views and (n.layout not in PARTIAL or same.layout in PARTIAL)]
        return Verdict(same, min(others, default=np.sqrt(2.0)))

    def views(self, value: str) -> frozenset[str]:
        """The value, and those of the same numbers: through nodes that move all of it, or computed in the same way."""
        if value not in self._alike:
            nodes, users, size = self.places.graph.nodes, self.places.users, _size(self.places, value)
            found, pending = {value}, [value]
            while pending:
                name = pending.pop()
                forward = [u for u in users.get(name, ()) if nodes[u].op in MOVES]
                backward = list(nodes[name].sources) if name in nodes and nodes[name].op in MOVES else []
                near = [n for n in (*forward, *backward, *self.places.twins(name)) if n in self.places.order]
                new = [n for n in near if n not in found and _size(self.places, n) == size]
                found.update(new)
                pending += new
            self._alike |= dict.fromkeys(found, frozenset(found))
        return self._alike[value]

    def confirmations(self, value: str, array: Array, others: Pool, bounds: Sequence[float], horizon: int) -> list[int]:
        """How many of the candidate's other arrays, or of the known values, follow from `value` being this array.

        Within each of the bounds, which grow. Only those count that would not follow without it, and among the next `horizon`
        values. At most ENOUGH.
        """
        trial = self.predicted.fork()
        trial.observe(value, array)
        behind = sorted(trial.behind(value), key=self.places.order.__getitem__)[:horizon]
        own, telling, counts = {value, *behind}, set[str](), [0] * len(bounds)
        for name in behind:
            node = self.places.graph.nodes[name]
            # What is made of this array alone would be made of it anywhere.
            if not telling.intersection(node.sources) and own.issuperset(node.sources):
                continue
            telling.add(name)
            where = positions(node.shape)
            known = self.predicted.known.get(name)
            rows = others.rows(node.shape, self) if known is None else known[where].reshape(1, -1)
            now = from_rows(rows, trial[name][where])
            before = from_rows(rows, self.predicted[name][where])
            for i, bound in enumerate(bounds):
                counts[i] += bool(((now <= bound) & (now * 10 <= before)).any())
            if counts[0] == ENOUGH:
                break
        return [min(count, ENOUGH) for count in counts]


class _Table:
    """Samples of what is expected of all values of one shape."""

    def __init__(self, names: list[str], predicted: Predicted) -> None:
        self.names = dict.fromkeys(names)
        self.stamp = self._seen = -1
        self._predicted = predicted
        self._versions = [-1] * len(names)
        self._rows = np.empty(0)
        self._spread = np.empty(0)

    def update(self) -> None:
        if self._seen == self._predicted.changes:
            return
        self._seen = self._predicted.changes
        versions = [self._predicted.version.get(name, 0) for name in self.names]
        if versions == self._versions:
            return
        for i, name in enumerate(self.names):
            if versions[i] != self._versions[i]:
                row = self._predicted.sample(name)
                if not self._rows.size:
                    self._rows, self._spread = np.empty((len(versions), row.size)), np.empty(len(versions))
                self._rows[i], self._spread[i] = row, spread(row)
        self._versions, self.stamp = versions, sum(versions)

    def distances(self, sample: Array) -> Array:
        """By what is a number there, whether a layout hides the rest or it is NaN; infinite if that is too little."""
        shown = ~np.isnan(sample)
        if FEWEST * np.count_nonzero(shown) < shown.size:
            return np.full(len(self._rows), np.inf)
        rows = self._rows if shown.all() else self._rows[:, shown]
        with np.errstate(all="ignore"):
            return np.asarray(np.sqrt(np.mean((sample[shown] - rows) ** 2, axis=1)) / self._spread)


class Pool:
    """Arrays of the candidate, sampled in every way in which they fit a shape."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self._arrays = arrays
        self._rows: dict[Shape, Array] = {}

    def rows(self, shape: Shape, values: Values) -> Array:
        if shape not in self._rows:
            ways = [(a, layout) for a in self._arrays for layout in values.layouts(a, shape) if layout not in PARTIAL]
            samples = [sampled(layout, a, shape) for a, layout in ways]
            self._rows[shape] = np.stack(samples) if samples else np.empty((0, 0))
        return self._rows[shape]


def sampled(layout: str, array: Array, shape: Shape) -> Array:
    """Elements of an array that fits, in the reference's axes; NaN where it shows none."""
    view = arranged(layout, array, shape)
    assert view is not None
    return np.asarray(view[positions(shape)], np.float64)


def from_rows(rows: Array, expected: Array) -> Array:
    """`predicted.distance` of each row from what is expected."""
    if not rows.size:
        return np.empty(0)
    with np.errstate(all="ignore"):
        return np.asarray(np.sqrt(np.mean((rows - expected) ** 2, axis=1)) / spread(expected))


def _size(places: Places, value: str) -> int:
    return math.prod(places.graph.value(value).shape)


def filled(layout: str, array: Array, expected: Array) -> Array:
    """An array that fits, float64, in the reference's axes; what the layout leaves out is as expected, its own NaN stays."""
    a = np.array(arranged(layout, array, expected.shape), np.float64)
    if layout in PARTIAL:
        hidden = np.isnan(np.asarray(arranged(layout, np.zeros(array.shape), expected.shape)))
        a[hidden] = expected[hidden]
    return a
