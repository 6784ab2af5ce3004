"""Rows that nobody reads are not computed.

A head that reads the class token alone needs one row of the last layer norm, so one row of the perceptron before it, and one
query of the attention before that, but all its keys and values. What is wanted of each value is found from the outputs upwards.
Then every op that works row by row gets the wanted rows only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from refvit.graph.ir import Graph, Node, Shape
from refvit.graph.passes.dead import remove_dead
from refvit.graph.passes.draft import Draft, uses
from refvit.graph.passes.fuse import UNARY


@dataclass(frozen=True)
class Rows:
    """Indices from `start` up to `stop` of one axis; of the other axes all."""

    axis: int
    start: int
    stop: int


Wanted = Rows | None  # None: the whole value


def sink_slices(graph: Graph) -> Graph:
    """Every row-wise op computes only the rows that are read. A value that is an output is wanted as a whole.

    Where one linear layer gives queries, keys and values together, and of the queries fewer rows are wanted, it becomes three.
    """
    graph = _split_projections(remove_dead(graph))
    wanted, draft = _wanted(graph), Draft(graph)
    parts: dict[tuple[str, Rows], str] = {}  # rows of an old value -> their name in the draft

    def take(name: str, rows: Wanted) -> str:
        """The wanted rows of an old value, which the draft has as a whole or as far as any node wants it."""
        if rows is None:
            return name
        if (name, rows) not in parts:
            have = wanted.get(name)
            source, start = (name, 0) if have is None else (parts[name, have], have.start)
            index = (*[slice(None)] * rows.axis, slice(rows.start - start, rows.stop - start))
            scope = graph.nodes[name].scope if name in graph.nodes else ""
            parts[name, rows] = draft.new(f"{name}.rows", "getitem", (source,), {"index": index}, scope)
        return parts[name, rows]

    for node in graph:
        rows, attrs = wanted[node.name], dict(node.attrs)
        have = wanted.get(node.sources[0])
        if rows is not None:
            reads = _reads(graph, node, rows) or []
            inputs = tuple(None if i is None else take(i, r) for i, r in zip(node.inputs, reads, strict=True))
            if node.op == "reshape":
                attrs["shape"] = (*node.shape[: rows.axis], rows.stop - rows.start, *node.shape[rows.axis + 1 :])
            parts[node.name, rows] = draft.new(f"{node.name}.rows", node.op, inputs, attrs, node.scope)
        elif node.op == "getitem" and have is not None:
            attrs["index"] = _shifted(graph, node, have)
            draft.stand_in(node, "getitem", (parts[node.sources[0], have],), attrs)
        else:
            draft.keep(node)
    return draft.finish()


def _wanted(graph: Graph) -> dict[str, Wanted]:
    """What of each node's result somebody reads."""
    wanted: dict[str, Wanted] = dict.fromkeys(graph.outputs.values())
    for node in reversed(list(graph)):
        reads = _reads(graph, node, wanted[node.name])
        if reads is None:
            wanted[node.name] = None
            reads = _reads(graph, node, None) or []
        for source, rows in zip(node.inputs, reads, strict=True):
            if source is not None and source in graph.nodes:
                wanted[source] = _both(wanted[source], rows, graph.nodes[source].shape) if source in wanted else rows
    return wanted


def _both(a: Wanted, b: Wanted, shape: Shape) -> Wanted:
    if a is None or b is None or a.axis != b.axis:
        return None
    start, stop = min(a.start, b.start), max(a.stop, b.stop)
    return None if stop - start == shape[a.axis] else Rows(a.axis, start, stop)


def _reads(graph: Graph, node: Node, rows: Wanted) -> list[Wanted] | None:
    """What the node reads of each input to give `rows`; None if it can only be computed as a whole."""
    everything: list[Wanted] = [None] * len(node.inputs)
    if rows is None:
        return [_selected(node, graph.value(node.sources[0]).shape)] if node.op == "getitem" else everything
    last, shapes = len(node.shape) - 1, [None if i is None else graph.value(i).shape for i in node.inputs]
    x = shapes[0] or ()
    if node.op in UNARY or (node.op == "softmax" and node.attrs["axis"] % len(x) != rows.axis):
        return [rows]
    if node.op in ("layer_norm", "linear") and rows.axis < last:
        return [rows, *everything[1:]]
    if node.op in ("attention", "matmul") and rows.axis == last - 1:
        return [Rows(len(x) - 2, rows.start, rows.stop), *everything[1:]]
    if node.op in ("add", "multiply"):
        return [_aligned(rows, shape or (), node.shape) for shape in shapes]
    if node.op == "transpose":
        return [Rows(node.attrs["axes"][rows.axis], rows.start, rows.stop)]
    if node.op == "reshape":
        before = math.prod(node.shape[: rows.axis])
        axes = [a for a, s in enumerate(x) if s == node.shape[rows.axis] and math.prod(x[:a]) == before]
        return [Rows(axes[0], rows.start, rows.stop)] if axes else None
    if node.op == "getitem" and (index := _index(node, x)):
        axis = [a for a, part in enumerate(index) if isinstance(part, slice)][rows.axis]
        return [Rows(axis, rows.start, rows.stop)] if index[axis] == slice(None) else None
    return None


def _aligned(rows: Rows, shape: Shape, result: Shape) -> Wanted:
    """The rows of an input that is broadcast to `result`."""
    axis = rows.axis - (len(result) - len(shape))
    return Rows(axis, rows.start, rows.stop) if axis >= 0 and shape[axis] == result[rows.axis] else None


def _index(node: Node, shape: Shape) -> tuple[int | slice, ...]:
    """The index of a getitem, one part for every axis; nothing if it makes new axes."""
    index = node.attrs["index"]
    index = index if isinstance(index, tuple) else (index,)
    if any(part is None or part is Ellipsis for part in index):
        return ()
    return (*index, *[slice(None)] * (len(shape) - len(index)))


def _selected(node: Node, shape: Shape) -> Wanted:
    """What a getitem reads, if it selects along one axis without gaps."""
    chosen = [(axis, part) for axis, part in enumerate(_index(node, shape)) if part != slice(None)]
    if len(chosen) != 1:
        return None
    axis, part = chosen[0]
    length = shape[axis]
    start, stop, step = part.indices(length) if isinstance(part, slice) else (part % length, part % length + 1, 1)
    return Rows(axis, start, stop) if step == 1 and 0 < stop - start < length else None


def _shifted(graph: Graph, node: Node, have: Rows) -> tuple[int | slice, ...]:
    """The index of a getitem into `have` of its source."""
    shape = graph.value(node.sources[0]).shape
    index, rows = list(_index(node, shape)), _selected(node, shape)
    assert rows is not None  # or the source would be wanted as a whole
    start, stop = rows.start - have.start, rows.stop - have.start
    index[have.axis] = slice(start, stop) if isinstance(index[have.axis], slice) else start
    return tuple(index)


def _split_projections(graph: Graph) -> Graph:
    """Where not the same rows of queries, keys and values are wanted, one linear layer that gives all three becomes three."""
    wanted, users, draft = _wanted(graph), graph.users(), Draft(graph)
    split: dict[str, tuple[Node, Node, Node]] = {}
    for chain in _projections(graph):
        items = users[chain[-1].name]
        if len({wanted[name] for name in items}) > 1:
            split |= dict.fromkeys(items, chain)
    for node in graph:
        if node.name not in split:
            draft.keep(node)
            continue
        linear, reshape, transpose = split[node.name]
        first, *axes = transpose.attrs["axes"]
        i, d = node.attrs["index"] % reshape.shape[first], linear.shape[-1] // reshape.shape[first]
        name, features = f"{linear.name}.{i}", {"index": slice(i * d, (i + 1) * d)}
        x, *params = linear.inputs
        own = [
            p and draft.new(f"{name}.{part}", "getitem", (p,), features, node.scope)
            for p, part in zip(params, ("weight", "bias"), strict=True)
        ]
        y = draft.new(name, "linear", (x, *own), {}, node.scope)
        shape = tuple(s for a, s in enumerate(reshape.shape) if a != first)
        y = draft.new(f"{name}.reshape", "reshape", (y,), {"shape": shape}, node.scope)
        draft.stand_in(node, "transpose", (y,), {"axes": tuple(a - (a > first) for a in axes)})
    return draft.finish()


def _projections(graph: Graph) -> Iterator[tuple[Node, Node, Node]]:
    """linear, reshape (..., m, ...) and transpose (m, ...), each read by the next alone, the last by integer getitems alone."""
    count, users = uses(graph), graph.users()
    for transpose in graph:
        if transpose.op != "transpose":
            continue
        reshape = graph.nodes.get(transpose.sources[0])
        linear = graph.nodes.get(reshape.sources[0]) if reshape and reshape.op == "reshape" else None
        if not reshape or not linear or linear.op != "linear" or count[reshape.name] > 1 or count[linear.name] > 1:
            continue
        outer = transpose.attrs["axes"][0]
        fits = reshape.shape[:outer] == linear.shape[:-1]
        readers = [graph.nodes[name] for name in users[transpose.name]]
        if fits and count[transpose.name] == len(readers) and all(_is_item(r) for r in readers):
            yield linear, reshape, transpose


def _is_item(node: Node) -> bool:
    return node.op == "getitem" and isinstance(node.attrs["index"], int)
