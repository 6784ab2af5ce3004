"""What a hypothesis is: a change of one segment of the graph, and the machine that recomputes the segment under it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from refvit.crosscheck.arithmetic import PRODUCTS, apply, rounded
from refvit.crosscheck.segments import Segment
from refvit.graph.ir import OPS, Array, Graph, Node, size

NODE = 150_000  # operations that take as long as calling one of NumPy's functions a few times
KEPT = 2**31  # bytes of a segment's own values that are held, so that a change need not compute what it does not reach
Function = Callable[..., Array]


@dataclass(frozen=True)
class Call:
    """What stands in the place of a node: a function of arrays, and the names of the values that it reads."""

    function: Function
    inputs: tuple[str | None, ...]


@dataclass(frozen=True)
class Change:
    """One way in which a candidate may deviate.

    option: which of a cause's ways; the same option at several places can hold at all of them at once
    text: what the candidate does, in words, without the place
    places: names of the nodes, parameters or sources it is about
    nodes, params, sources: what stands instead of them; of a source, or of a large parameter, a function of what it was
    result: a function of the segment's value
    alone: never merged with the same option elsewhere; together: only of interest where it is so merged
    """

    option: str
    text: str
    places: tuple[str, ...]
    nodes: Mapping[str, Call] = field(default_factory=dict)
    params: Mapping[str, Array | Function] = field(default_factory=dict)
    sources: Mapping[str, Function] = field(default_factory=dict)
    result: Function | None = None
    alone: bool = False
    together: bool = False

    def merged(self, other: Change) -> Change | None:
        """Both at once, or None where they touch the same."""
        for mine, theirs in ((self.nodes, other.nodes), (self.params, other.params), (self.sources, other.sources)):
            if set(mine) & set(theirs):
                return None
        if self.alone or other.alone or self.result or other.result:
            return None
        return replace(
            self,
            places=(*self.places, *other.places),
            nodes={**self.nodes, **other.nodes},
            params={**self.params, **other.params},
            sources={**self.sources, **other.sources},
        )


@dataclass(frozen=True)
class Family:
    """Changes that differ in numbers which the candidate's value tells.

    make: numbers -> Change
    starts: where the search begins; logarithmic: the numbers are positive and are searched by their order of magnitude
    """

    option: str
    make: Callable[[tuple[float, ...]], Change]
    starts: tuple[tuple[float, ...], ...]
    logarithmic: bool = False

    def merged(self, other: Family) -> Family | None:
        if self.make(self.starts[0]).merged(other.make(self.starts[0])) is None:
            return None
        return replace(self, make=partial(_both, self.make, other.make))


def _both(a: Callable[[Any], Change], b: Callable[[Any], Change], numbers: tuple[float, ...]) -> Change:
    change = a(numbers).merged(b(numbers))
    assert change is not None  # checked when the families were merged
    return change


@dataclass(frozen=True)
class Cause:
    """A row of the table.

    name: stable id; sentence: what such a candidate does; advice: what to change in it
    changes: scene -> the ways in which that may have happened in this segment, place by place
    wide: it has so much freedom that it counts only where nothing else explains the value
    """

    name: str
    sentence: str
    advice: str
    changes: Callable[[Scene], Iterator[Change | Family]]
    wide: bool = False


class Scene:
    """A segment, the candidate's own values that it begins with, and everything computed from them in float64.

    known: candidate's values by reference name, in the reference's axis order; they must hold the segment's sources
    observed: the candidate's value of the segment
    """

    def __init__(self, graph: Graph, segment: Segment, known: Mapping[str, Array], observed: Array) -> None:
        self.graph, self.segment, self.result, self.observed = graph, segment, segment.value, observed
        self.nodes: dict[str, Node] = {node.name: node for node in segment.nodes}
        self.params: dict[str, Array] = {n: a for n, a in graph.params.items() if isinstance(a, np.ndarray)}
        self.sources = segment.sources or (segment.value,)
        self.values: dict[str, Array] = {s: np.asarray(known[s], np.float64) for s in self.sources}
        self.beside = {s: _beside(graph, s, known) for s in self.sources}  # source -> what may have been read in its place
        self.values.update({n: np.asarray(known[n], np.float64) for names in self.beside.values() for n in names})
        small = sum(8 * size(node) for node in segment.nodes) <= KEPT
        computed = self._compute(Change("", "", ()), keep=small)
        self.base: Array = computed.get(self.result, self.values.get(self.result, observed))  # the value without any change
        if small:
            self.values.update(computed)

    @cached_property
    def users(self) -> dict[str, list[Node]]:
        """Value -> the nodes of the segment that read it."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            for source in dict.fromkeys(node.sources):
                users.setdefault(source, []).append(node)
        return users

    @cached_property
    def costs(self) -> dict[str, int]:
        """Node -> operations to recompute it and everything behind it."""
        costs, total = {}, 0
        for node in reversed(self.segment.nodes):
            total += self.cost(node)
            costs[node.name] = total
        return costs

    def cost(self, node: Node) -> int:
        op = OPS[node.op]
        arguments = [None if i is None else self.graph.value(i) for i in node.inputs]
        return NODE + 20 * size(node) + (op.macs(*arguments, **node.attrs) if op.macs else 0)

    def cost_of(self, change: Change) -> int:
        """Upper bound of the operations that a change takes to compute."""
        costs = [self.costs.get(place, 0) for place in change.nodes]
        for name in (*change.params, *change.sources):
            costs += [self.costs[user.name] for user in self.users.get(name, ())]
        return max(costs, default=0) + math.prod(self.base.shape)

    def of(self, *ops: str) -> Iterator[Node]:
        """The segment's nodes of these ops, in order."""
        return (node for node in self.nodes.values() if node.op in ops)

    def param(self, node: Node, index: int) -> Array | None:
        """The parameter that a node reads as its tensor `index`, if that is one."""
        name = node.inputs[index] if index < len(node.inputs) else None
        return self.params.get(name) if name is not None else None

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.graph.value(name).shape)

    def producer(self, name: str | None) -> Node | None:
        """The node of the segment that computes a value."""
        return self.nodes.get(name or "")

    def run(self, change: Change | None = None, arithmetic: str = "float64", noise: Mapping[str, Array] | None = None) -> Array:
        """The segment's value under a change, in an arithmetic; noise: factors of the sources by name.

        Raises whatever the functions raise on arrays that do not fit.
        """
        change = change or Change("", "", ())
        y = self._compute(change, arithmetic, noise).get(self.result, self.base)
        with np.errstate(all="ignore"):
            return y if change.result is None else np.asarray(change.result(y))

    def _compute(
        self, change: Change, arithmetic: str = "float64", noise: Mapping[str, Array] | None = None, keep: bool = False
    ) -> dict[str, Array]:
        """All values that the change reaches and that are not held, dropped after their last use unless they are to be kept."""
        plain = arithmetic == "float64" and noise is None
        inputs = {n: change.nodes[n].inputs if n in change.nodes else node.inputs for n, node in self.nodes.items()}
        needed = {self.result}
        for name in reversed(self.nodes):
            if name in needed:
                needed.update(i for i in inputs[name] if i is not None)
        values: dict[str, Array] = {}
        for name in self.sources:
            if name in change.sources or not plain:
                source = self.values[name] if noise is None or name not in noise else self.values[name] * noise[name]
                values[name] = change.sources[name](source) if name in change.sources else source
        values.update({n: p(self.params[n]) if callable(p) else p for n, p in change.params.items()})
        left = Counter(i for name in self.nodes if name in needed for i in inputs[name] if i is not None)
        with np.errstate(all="ignore"):
            for name in (n for n in self.nodes if n in needed):
                changed = name in change.nodes or any(i in values for i in inputs[name] if i is not None)
                if changed or not plain or name not in self.values:
                    arguments = [self._value(i, values) for i in inputs[name]]
                    values[name] = emulated(self.nodes[name], change.nodes.get(name), arguments, arithmetic)
                left.subtract(i for i in inputs[name] if i is not None)
                for i in inputs[name]:
                    if i is not None and not keep and left[i] <= 0 and i not in self.sources and i not in self.params:
                        values.pop(i, None)
        return values

    def _value(self, name: str | None, values: Mapping[str, Array]) -> Array | None:
        if name is None:
            return None
        for table in (values, self.values, self.params):
            if name in table:
                return table[name]
        raise KeyError(name)

    # what hypotheses are put together from

    def with_attrs(self, node: Node, **attrs: Any) -> dict[str, Call]:
        """The node with other attributes."""
        return {node.name: Call(partial(OPS[node.op].function, **{**node.attrs, **attrs}), node.inputs)}

    def instead(self, node: Node, function: Function, inputs: Iterable[str | None] | None = None) -> dict[str, Call]:
        """Another function of the node's inputs, or of these."""
        return {node.name: Call(function, node.inputs if inputs is None else tuple(inputs))}

    def behind(self, node: Node, function: Function) -> dict[str, Call]:
        """The node, and a function of its value."""
        return {node.name: Call(_Chain(default(node), function), node.inputs)}

    def before(self, node: Node, function: Function, index: int = 0) -> dict[str, Call]:
        """The node, with a function of its tensor `index`."""
        return {node.name: Call(_First(default(node), function, index), node.inputs)}

    def without(self, node: Node, index: int = 0) -> dict[str, Call]:
        """The node hands on its tensor `index`."""
        return {node.name: Call(_same, (node.inputs[index],))}


def _beside(graph: Graph, name: str, known: Mapping[str, Array]) -> tuple[str, ...]:
    """Other parts of the same value, of the same shape, that the candidate shows."""
    part = graph.nodes.get(name)
    if part is None or part.op != "getitem":
        return ()
    parts = (n for n in graph if n.op == "getitem" and n.inputs == part.inputs and n.shape == part.shape and n.name != name)
    return tuple(n.name for n in parts if n.name in known)


@dataclass(frozen=True)
class _Chain:
    first: Function
    second: Function

    def __call__(self, *arguments: Array) -> Array:
        return self.second(self.first(*arguments))


@dataclass(frozen=True)
class _First:
    function: Function
    change: Function
    index: int

    def __call__(self, *arguments: Array) -> Array:
        changed = list(arguments)
        changed[self.index] = self.change(changed[self.index])
        return self.function(*changed)


def _same(x: Array) -> Array:
    return x


def default(node: Node) -> Function:
    """What the node computes."""
    return partial(OPS[node.op].function, **node.attrs)


def emulated(node: Node, call: Call | None, arguments: list[Array | None], arithmetic: str) -> Array:
    """A node, or what stands in its place, in an arithmetic: float64 in, float64 out, as `arithmetic.apply` does it."""
    if call is None:
        return apply(node, arguments, arithmetic)
    if arithmetic == "float64":
        return np.asarray(call.function(*arguments))
    if arithmetic in ("bfloat16", "float16"):
        arguments = [a if a is None else rounded(a, arithmetic) for a in arguments]
    elif arithmetic == "tf32" and node.op in PRODUCTS:  # the bias is added to the float32 sum
        arguments = [a if a is None else rounded(a, arithmetic) for a in arguments[:2]] + arguments[2:]
    narrow: list[Any] = [a if a is None else a.astype(np.float32) for a in arguments]
    y = np.asarray(call.function(*narrow)).astype(np.float64)
    return rounded(y, arithmetic) if arithmetic in ("bfloat16", "float16") else rounded(y, "float32")
