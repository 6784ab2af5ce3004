"""One value of the reference after another gets the candidate's array that shows it."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from refvit.crosscheck.by_name import TAKEN, Hint
from refvit.crosscheck.by_value import Near, Values, filled
from refvit.crosscheck.layouts import candidates_for, check_layout
from refvit.crosscheck.maps import maps
from refvit.crosscheck.observed import Observed
from refvit.crosscheck.places import Places
from refvit.crosscheck.predicted import Predicted, distance
from refvit.errors import ConfigError
from refvit.graph.ir import Array, dims

TRUST = ("map", "path", "parameters", "value")
SURE = {"map": 1.0, "path": 1.0, "parameters": 0.95}  # confidence of what a name decides
NEAR = {"bfloat16": 0.1, "float16": 0.1, "int8": 0.2}  # distance of what is the same but for rounding, else NEAR_FLOAT
NEAR_FLOAT = 0.02
FUSED = ("batch_norm", "relu", "silu", "gelu", "hardswish", "sigmoid")  # what runtimes put into the layer before
LAYOUTS_OF_MAPS = ("as is", "batch dropped", "nhwc", "nlc", "ncl", "channel blocks")
EQUAL = 1e-6  # distance of what is shown twice


@dataclass(frozen=True)
class Assigned:
    """`parts`, the candidate's names, show `value`."""

    value: str
    parts: tuple[str, ...]
    layout: str
    how: str
    confidence: float
    array: Array
    name: str = ""


class Board:
    """The state of the search.

    parameters: names of ours that the candidate shows
    assigned: by value; repeats: value -> names that show it as well
    again: what names say is a value that is assigned, with other numbers
    misfits: name -> the value that it names, in a shape that fits no layout of that
    reasons: name -> why it is left, or how it differs from what it repeats
    """

    def __init__(
        self,
        places: Places,
        golden: Mapping[str, Array],
        observed: Observed,
        hints: Mapping[str, Hint | None],
        layouts: Mapping[str, str],
        parameters: Collection[str] = (),
    ) -> None:
        self.places, self.observed, self.hints = places, observed, hints
        self.parameters = frozenset(parameters)
        self.predicted = Predicted(places.graph, golden)
        self.values = Values(self.predicted, places)
        self.assigned: dict[str, Assigned] = {}
        self.repeats: dict[str, list[str]] = {}
        self.again: list[Assigned] = []
        self.misfits: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.declared = dict(self._layouts(layouts))
        self.near = NEAR.get(observed.arithmetic or "", NEAR_FLOAT)
        self.done: set[str] = set()
        self.rank = {name: i for i, name in enumerate(observed.values)}

    def _layouts(self, given: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        for layout in (*given.values(), *self.observed.layouts.values()):
            check_layout(layout)
        fitting = {n: [p for p in given if n == p or fnmatch.fnmatchcase(n, p)] for n in self.observed.values}
        if unused := given.keys() - {p for patterns in fitting.values() for p in patterns}:
            few = ", ".join(list(fitting)[:3])
            raise ConfigError(f"layouts: the candidate has no value {min(unused)!r:.80}; there are {few} and others")
        for name in self.observed.values:
            pattern = next(iter(fitting[name]), None)
            layout = given[pattern] if pattern is not None else self.observed.layouts.get(name, "")
            yield name, layout

    def left(self) -> tuple[str, ...]:
        return tuple(n for n in self.observed.values if n not in self.done)

    # by name

    def by_name(self) -> None:
        """What names decide alone, in the graph's order, so that what follows from each is known before the next."""
        exact: dict[str, list[str]] = {}
        parts: dict[tuple[str, int], dict[int, str]] = {}
        for name in self.observed.values:
            hint = self.hints[name]
            if hint is None or not hint.exact:
                continue
            if hint.part:
                parts.setdefault((hint.values[0], hint.part[1]), {})[hint.part[0]] = name
            else:
                exact.setdefault(hint.values[0], []).append(name)
        self.values.habit = self._habit(exact)
        stacks = {value: [found[i] for i in sorted(found)] for (value, n), found in parts.items() if len(found) == n}
        for value in sorted(exact.keys() | stacks.keys(), key=self.places.order.__getitem__):
            names = sorted(exact.get(value, ()), key=self._trust, reverse=True)
            if value in stacks and not names:
                self._stack(value, stacks[value])
            for name in names:
                self._take(value, name, exact)

    def _habit(self, exact: Mapping[str, list[str]]) -> str:
        """The layout of most maps whose shape leaves no choice, for those that have as many channels as rows and columns."""
        found: Counter[str] = Counter()
        for value in exact.keys() & maps(self.places.graph):
            shape = tuple(self.places.graph.value(value).shape)
            for array in (self.observed.values[name] for name in exact[value]):
                ways = [way for way in candidates_for(shape, array) if way in LAYOUTS_OF_MAPS]
                found.update(ways if len(ways) == 1 else ())
        return found.most_common(1)[0][0] if found else ""

    def _trust(self, name: str) -> tuple[bool, int, bool, int]:
        """Results first, since they are what is asked for; of equals the later."""
        hint = self.hints[name]
        how = hint.how if hint else "value"
        return name in self.observed.outputs, -TRUST.index(how), not name.startswith(TAKEN), self.rank[name]

    def _take(self, value: str, name: str, exact: Mapping[str, list[str]]) -> None:
        hint = self.hints[name]
        assert hint is not None
        array = self.observed.values[name]
        verdict = self.values.verdict(array, {value}, self.declared[name])
        near = verdict.best if verdict else self._unlike(value, array, self.declared[name])
        if near is None:
            shape = dims(self.places.graph.value(value).shape)
            reason = f"called like {hint.name}, which is {shape}, and {dims(array.shape)} fits no layout of that"
            if hint.how == "map":
                raise ConfigError(f"names: {name} is {reason}")
            self.reasons[name] = reason
            named = hint.name in name or value not in self.places.graph.outputs.values()  # not only as the one result
            if hint.how == "path" and named and value in self.places.graph.nodes and not name.startswith(TAKEN):
                self.misfits[name] = value
            return
        public = hint.name
        if hint.how != "map" and (behind := self._fused(value, array, near.distance, self.declared[name], exact)):
            near, public = behind, ""
        self.assign(near, (name,), hint.how, SURE[hint.how], public)

    def _unlike(self, value: str, array: Array, declared: str) -> Near | None:
        """As it is, for an array with NaN or infinities, which is near to nothing."""
        layouts = self.values.layouts(array, tuple(self.places.graph.value(value).shape), declared)
        return Near(value, layouts[0], np.inf) if layouts else None

    def _fused(self, value: str, array: Array, d: float, declared: str, exact: Mapping[str, list[str]]) -> Near | None:
        """The norm or activation behind a layer, where the layer shows that because they are folded or fused into it.

        Not where something else is called like that value, and shows other numbers.
        """
        chain, last = list[str](), value
        while len(users := self.places.users.get(last, [])) == 1 and self.places.graph.nodes[users[0]].op in FUSED:
            last = users[0]
            others = [self.observed.values[n] for n in exact.get(last, ())]
            if all(o.shape == array.shape and distance(o, array) <= EQUAL for o in others):
                chain.append(last)
        near = [v.best for v in (self.values.verdict(array, {c}, declared) for c in chain) if v is not None]
        best = min(near, key=lambda n: n.distance, default=None)
        if best and best.distance <= self.near and best.distance * 4 <= d:
            return best
        return near[0] if near and d > self.near and self._folded(near[0].value) else None

    def _folded(self, value: str) -> bool:
        """Whether it is a norm, and a candidate that shows its parameters has none of this."""
        node = self.places.graph.nodes[value]
        return node.op == "batch_norm" and bool(self.observed.parameters) and not self.parameters.intersection(node.sources)

    def _stack(self, value: str, names: list[str]) -> None:
        """Parts side by side on the axis that they are parts of."""
        arrays, shape = [self.observed.values[n] for n in names], tuple(self.places.graph.value(value).shape)
        hint = self.hints[names[0]]
        if len({a.shape for a in arrays}) > 1 or hint is None:
            return
        for axis in reversed(range(arrays[0].ndim)):
            whole = np.concatenate(arrays, axis)
            verdict = self.values.verdict(whole, {value}, self.declared[names[0]])
            if verdict and verdict.best.layout != "reshaped" and whole.size == np.prod(shape):
                self.assign(verdict.best, tuple(names), hint.how, SURE[hint.how], hint.name, whole)
                return

    def assign(
        self, near: Near, names: tuple[str, ...], how: str, sure: float, public: str = "", array: Array | None = None
    ) -> None:
        if near.value in self.assigned:
            self.repeat(near.value, list(names))
            return
        given = self.observed.values[names[0]] if array is None else array
        for others in self.repeats.values():
            others[:] = [n for n in others if n not in names]
        whole = filled(near.layout, given, self.predicted[near.value])
        self.assigned[near.value] = Assigned(near.value, names, near.layout, how, sure, whole, public)
        self.done.update(names)
        self.predicted.observe(near.value, whole)

    def repeat(self, value: str, names: list[str]) -> None:
        """Names that show an assigned value again; a reason says how far they are from it.

        What is that value by its name, and not by its numbers, is kept to be judged as well if it differs.
        """
        shown = self.assigned[value]
        for name in names:
            self.done.add(name)
            self.reasons.pop(name, None)
            self.repeats.setdefault(value, []).append(name)
            a = self.observed.values[name]
            layouts = self.values.layouts(a, shown.array.shape, self.declared[name])
            views = [(layout, filled(layout, a, shown.array)) for layout in layouts]
            d, layout, view = min(
                ((distance(v, shown.array), layout, v) for layout, v in views), key=lambda v: v[0], default=(np.inf, "", a)
            )
            if d > EQUAL:
                public = shown.name or self.places.public(value)
                self.reasons[name] = f"is {public} as {shown.parts[0]} is, and differs from it by {d:.1e}"
                hint = self.hints[name]
                if layout and hint and hint.exact and hint.values[0] == value and not name.startswith(TAKEN):
                    self.again.append(Assigned(value, (name,), layout, hint.how, SURE[hint.how], view, hint.name))
