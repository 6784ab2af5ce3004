"""The graph cut at the values that a candidate shows, so that each piece can be computed from the candidate's own numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refvit.crosscheck.arithmetic import Scales, apply
from refvit.errors import ConfigError, GraphError
from refvit.graph.ir import Array, Graph, Node

VIEWS = ("reshape", "transpose")  # the moves that can be undone


@dataclass(frozen=True)
class Segment:
    """What lies between a value and the nearest known values that it is computed from.

    value: the reference's name of it
    sources: names of the known values that it reads, the input among them; none for the input itself
    nodes: in order of execution, the last one is `value`. Where only the reshaped or transposed form of a value is known, the
        node of that name is the view undone, not the graph's own.
    """

    value: str
    sources: tuple[str, ...]
    nodes: tuple[Node, ...]


def segments(graph: Graph, observed_values: Iterable[str]) -> list[Segment]:
    """One segment for each of the observed values (names of nodes or of the input, not of blocks), in graph order.

    A value and its reshaped or transposed forms are one thing: the first of them that is observed stands for all.
    """
    observed = set(observed_values)
    if unknown := observed - {*graph.nodes, *graph.inputs}:
        raise ConfigError(f"{min(unknown)!r} is no value of the graph; names of nodes or of the input expected")
    roots = view_roots(graph)
    anchors: dict[str, str] = {name: name for name in graph.inputs}
    for name in graph.nodes:
        if name in observed:
            anchors.setdefault(roots[name], name)
    undone = {v.name: v for root, anchor in anchors.items() for v in _undone(graph, root, anchor)}
    ordered = [n for n in (*graph.inputs, *graph.nodes) if n in observed]
    return [_segment(graph, name, roots, anchors, undone) for name in ordered]


def view_roots(graph: Graph) -> dict[str, str]:
    """Value -> the value that it is a view of, after any number of views."""
    roots = {name: name for name in graph.inputs}
    for node in graph:
        source = node.inputs[0]
        roots[node.name] = roots[source] if node.op in VIEWS and source in roots else node.name
    return roots


def _undone(graph: Graph, root: str, anchor: str) -> Iterator[Node]:
    """The views from the root to the anchor backwards: nodes that compute each value from the one after it."""
    name = anchor
    while name != root:
        node = graph.nodes[name]
        (before,) = node.sources
        shape = graph.value(before).shape
        if node.op == "reshape":
            attrs: dict[str, Any] = {"shape": shape}
        else:
            attrs = {"axes": tuple(int(a) for a in np.argsort(node.attrs["axes"]))}
        yield Node(before, node.op, (name,), attrs, shape, node.scope)
        name = before


def _segment(
    graph: Graph, value: str, roots: Mapping[str, str], anchors: Mapping[str, str], undone: Mapping[str, Node]
) -> Segment:
    """Backwards from the value to anchors. The value that is an anchor itself is computed by the graph's own nodes."""
    if value in graph.inputs:
        return Segment(value, (), ())
    own = value if anchors.get(roots[value]) == value else None
    nodes: dict[str, Node] = {}
    sources: dict[str, None] = {}
    todo = [value]
    while todo:
        name = todo[-1]
        if name in graph.params or name in nodes or name in sources:
            todo.pop()
            continue
        mine = own is not None and roots[name] == roots[own]
        if name in graph.inputs or (anchors.get(roots[name]) == name and not mine):
            sources[name] = None
            continue
        node = graph.nodes[name] if mine else undone.get(name, graph.nodes[name])
        if missing := [s for s in node.sources if s not in nodes and s not in sources and s not in graph.params]:
            todo += reversed(missing)
            continue
        nodes[name] = node
    return Segment(value, tuple(sources), tuple(nodes.values()))


def run(
    nodes: Iterable[Node],
    start: Mapping[str, Array],
    params: Mapping[str, Any],
    keep: Collection[str],
    arithmetic: str = "float64",
    scales: Scales | None = None,
    form: str = "usual",
) -> Iterator[tuple[str, Array]]:
    """Run nodes from the values of `start`; gives the name and the float64 array of each one in `keep` as it is computed.

    scales, form: as in `arithmetic.apply`

    A value is dropped after its last use, so that several runs can go side by side through a large graph.
    """
    nodes = tuple(nodes)
    left = Counter(source for node in nodes for source in node.sources)
    values: dict[str, Array] = {}
    for node in nodes:
        arguments = [None if i is None else _argument(i, values, start, params, node) for i in node.inputs]
        values[node.name] = apply(node, arguments, arithmetic, scales, form)
        if node.name in keep:
            yield node.name, values[node.name]
        for source in (*node.sources, node.name):
            left[source] -= source != node.name
            if left[source] <= 0:
                values.pop(source, None)


def _argument(
    name: str, values: Mapping[str, Array], start: Mapping[str, Array], params: Mapping[str, Any], node: Node
) -> Array:
    for table in (values, start, params):
        if name in table:
            if not isinstance(table[name], np.ndarray):
                raise GraphError(f"{name}: only its shape is known; trace with the arrays to run a graph")
            return np.asarray(table[name], np.float64)
    raise GraphError(f"{node.name}: reads {name!r}, which is neither computed, known nor a parameter")


def recompute(
    graph: Graph,
    segment: Segment,
    known: Mapping[str, Array],
    arithmetic: str = "float64",
    params: Mapping[str, Array] | None = None,
    nodes: Mapping[str, Node] | Sequence[Node] | None = None,
    scales: Scales | None = None,
    form: str = "usual",
) -> Array:
    """The segment's value, float64, computed from `known`: at least its sources, the input under its own name.

    params: parameters to take instead of the graph's, or beside them, by name
    nodes: what to run instead of the segment's nodes: a mapping replaces single ones by name, a sequence all of them; they may
        read any value of `known`
    scales: of int8; form: as in `arithmetic.apply`
    """
    steps = segment.nodes
    if isinstance(nodes, Mapping):
        steps = tuple(nodes.get(node.name, node) for node in steps)
    elif nodes is not None:
        steps = tuple(nodes)
    if not steps:
        return np.asarray(known[segment.value], np.float64)
    tables = graph.params if params is None else {**graph.params, **params}
    for _, y in run(steps, known, tables, {segment.value}, arithmetic, scales, form):
        return y
    raise GraphError(f"{segment.value}: the nodes given do not compute it")


def golden(
    graph: Graph, x: Array, arithmetic: str = "float64", keep: Iterable[str] | None = None, scales: Scales | None = None
) -> dict[str, Array]:
    """The values of the whole graph on x (n, 3, h, w) in an arithmetic, float64, by the names asked for.

    keep: names of nodes, blocks, outputs or of the input, as in `graph.names()` and `graph.outputs`; None for the outputs.
    """
    (source,) = graph.inputs
    if x.shape != graph.inputs[source].shape:
        raise GraphError(f"the graph is for an input of shape {graph.inputs[source].shape}, got {x.shape}")
    names = {source: source, **graph.names(), **graph.outputs}
    wanted = list(graph.outputs if keep is None else keep)
    if unknown := [name for name in wanted if name not in names]:
        raise ConfigError(f"{unknown[0]!r} is no value of the graph; the first are {', '.join(list(names)[:5])}")
    needed = replace(graph, aliases={}).with_outputs({name: names[name] for name in wanted} or dict(graph.outputs))
    found = {source: np.asarray(x, np.float64)}
    found |= run(needed, found, graph.params, {names[name] for name in wanted}, arithmetic, scales)
    return {name: found[names[name]] for name in wanted}
