"""The reference's values in float64, of which only so many are held at once as fit into a limit.

All values of a large model at its own size are tens of gigabytes. To tell what a candidate's value is a sample of each is
enough; the few that are wanted whole are computed again from the nearest ones that are at hand.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from refvit.crosscheck.segments import run
from refvit.graph.ir import Array, Graph, Node, Shape

SAMPLE = 1024  # elements that stand for an array
LIMIT = 2**29  # bytes of whole arrays: of most models all that there are


class Bounded(dict[str, Array]):
    """Arrays of up to `limit` bytes together: what was used longest ago goes first."""

    def __init__(self, limit: int = LIMIT) -> None:
        super().__init__()
        self.limit, self._bytes = limit, 0

    def fork(self) -> Bounded:
        other = Bounded(self.limit)
        other.update(self)  # the arrays are shared
        other._bytes = self._bytes
        return other

    def __getitem__(self, name: str) -> Array:
        a = super().pop(name)
        super().__setitem__(name, a)
        return a

    def __setitem__(self, name: str, a: Array) -> None:
        self.drop(name)
        super().__setitem__(name, a)
        self._bytes += a.nbytes
        while self._bytes > self.limit and len(self) > 1:
            self.drop(next(iter(self)))

    def drop(self, name: str) -> None:
        if name in self:
            self._bytes -= super().pop(name).nbytes


class Golden(Mapping[str, Array]):
    """Value -> float64, for the input and every node, on x (n, 3, h, w); `samples` has some elements of each at hand."""

    def __init__(self, graph: Graph, x: Array, limit: int = LIMIT) -> None:
        (source,) = graph.inputs
        self._graph = graph
        self._always = {source: np.asarray(x, np.float64)}  # and the outputs, which every candidate shows
        self._others = Bounded(limit)
        self.samples = {source: sample(self._always[source])}
        outputs = set(graph.outputs.values())
        for name, a in run(graph, self._always, graph.params, graph.nodes):
            self.samples[name] = sample(a)
            (self._always if name in outputs else self._others)[name] = a

    def __getitem__(self, name: str) -> Array:
        if name in self._always:
            return self._always[name]
        if name not in self._others:
            nodes = between(self._graph, name, lambda n: n in self._always or n in self._others)
            start = {n: self[n] for n in border(self._graph, nodes)}
            for n, a in run(nodes, start, self._graph.params, {node.name for node in nodes}):
                self._others[n] = a
        return self._others[name]

    def __contains__(self, name: object) -> bool:
        return name in self.samples

    def __iter__(self) -> Iterator[str]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)


def between(graph: Graph, value: str, there: Callable[[str], bool]) -> list[Node]:
    """The nodes that `value` is computed by from what is there, in the order of the graph."""
    found, pending = {value}, [value]
    while pending:
        for name in graph.nodes[pending.pop()].sources:
            if name in graph.nodes and name not in found and not there(name):
                found.add(name)
                pending.append(name)
    return [node for node in graph if node.name in found]


def border(graph: Graph, nodes: list[Node]) -> list[str]:
    """What these nodes read that is neither computed by them nor a parameter."""
    inside = {node.name for node in nodes}
    return list(dict.fromkeys(s for node in nodes for s in node.sources if s not in inside and s not in graph.params))


def sample(a: Array) -> Array:
    return np.asarray(a[positions(a.shape)])


@functools.lru_cache(1024)
def positions(shape: Shape) -> tuple[Array, ...]:
    """Indices of up to SAMPLE elements of an array of that shape, always the same ones."""
    size = math.prod(shape)
    chosen = np.arange(size) if size <= SAMPLE else np.random.default_rng(size).choice(size, SAMPLE, replace=False)
    return np.unravel_index(chosen, shape)
