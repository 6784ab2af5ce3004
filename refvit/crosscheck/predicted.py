"""What the reference expects of every value once some of the candidate's values are known.

Behind a bug nothing equals the golden values any more. What is right still equals what follows from the candidate's own
values, so that values can be told apart by their numbers there as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from refvit.crosscheck.golden import Bounded, Golden, between, border, sample
from refvit.crosscheck.segments import run
from refvit.graph.ir import Array, Graph

CLOSE = 1e-5  # so near, a value's users need not be computed again


class Predicted:
    """Expected values, float64, computed again only where a known value deviates from what was expected there."""

    def __init__(self, graph: Graph, golden: Mapping[str, Array]) -> None:
        self.graph = graph
        self.known: dict[str, Array] = {}
        self.version: dict[str, int] = {}  # how often an expected value changed
        self.changes = 0  # of any
        self._golden = golden
        self._users = graph.users()
        self._stale = {name for name in graph.nodes if name not in golden}
        self._computed = Bounded()

    def fork(self) -> Predicted:
        """A copy for a hypothesis."""
        other = Predicted.__new__(Predicted)
        other.__dict__.update(self.__dict__)
        other.known, other.version = dict(self.known), dict(self.version)
        other._stale, other._computed = set(self._stale), self._computed.fork()
        return other

    def __getitem__(self, value: str) -> Array:
        """Of a node: its operation on what is known or expected of its sources. Of the input: the golden one."""
        if value not in self._stale:
            return self._golden[value]
        if value not in self._computed:
            nodes = between(self.graph, value, lambda n: n not in self._stale or n in self.known or n in self._computed)
            start = {n: self.current(n) for n in border(self.graph, nodes)}
            with np.errstate(all="ignore"):
                for name, a in run(nodes, start, self.graph.params, {node.name for node in nodes}):
                    self._computed[name] = a
        return self._computed[value]

    def sample(self, value: str) -> Array:
        """Some elements of it."""
        if value not in self._stale and isinstance(self._golden, Golden):
            return self._golden.samples[value]
        return sample(self[value])

    def current(self, value: str) -> Array:
        """What the candidate showed, or else what is expected."""
        if value in self.graph.params:
            return np.asarray(self.graph.params[value], np.float64)
        known = self.known.get(value)
        return self[value] if known is None else known

    def observe(self, value: str, array: Array) -> None:
        """The candidate has this value. One with NaN or infinities says nothing about those behind it."""
        if not np.isfinite(array).all():
            return
        deviates = value in self.known or distance(array, self[value]) > CLOSE
        self.known[value] = array
        if deviates:
            for name in self.behind(value):
                self._stale.add(name)
                self._computed.drop(name)
                self.version[name] = self.version.get(name, 0) + 1
                self.changes += 1

    def behind(self, value: str) -> Iterator[str]:
        """Values that are computed from `value` and known ones, in no order; known ones end it."""
        pending, done = [value], {value}
        while pending:
            name = pending.pop()
            for user in self._users.get(name, ()):
                if user not in done:
                    done.add(user)
                    yield user
                    if user not in self.known:
                        pending.append(user)


def distance(a: Array, b: Array) -> float:
    """Root mean square of a - b over the standard deviation of b: 0 equal, about 1.4 unrelated; infinite if not finite."""
    with np.errstate(all="ignore"):
        found = float(np.sqrt(np.mean((a - b) ** 2)) / spread(b))
    return found if np.isfinite(found) else np.inf


def spread(a: Array) -> float:
    """Standard deviation; of a constant its value, of zeros 1."""
    with np.errstate(all="ignore"):
        return float(a.std()) or float(np.abs(a).max()) or 1.0
