"""What a graph costs: parameters, multiply-accumulates (MACs) and bytes, per node and per block."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from refvit.graph.ir import OPS, Graph, Node, Shape, dims, size

BUFFERS = ("running_mean", "running_var")  # statistics, which nobody counts as parameters


@dataclass(frozen=True)
class Cost:
    """Of a node, a block or a model. `bytes` is what is read and written, weights included, at 4 bytes a value."""

    name: str
    params: int
    macs: int
    bytes: int
    shape: Shape  # of the result


def parameter_count(names_and_shapes: Iterable[tuple[str, Shape]]) -> int:
    """Number of trained values: all but the running statistics of batch norm."""
    return sum(math.prod(shape) for name, shape in names_and_shapes if not name.endswith(BUFFERS))


def node_cost(graph: Graph, node: Node) -> Cost:
    """Cost of one node. A convolution counts the MACs of its padding, attention those of both its products."""
    return _cost(graph, node.name, [node])


def total_cost(graph: Graph) -> Cost:
    """Cost of the whole graph; the shape is that of its first output."""
    first = graph.value(next(iter(graph.outputs.values())))
    return replace(_cost(graph, "total", list(graph)), shape=tuple(first.shape))


def _cost(graph: Graph, name: str, nodes: list[Node]) -> Cost:
    macs = moved = 0
    for node in nodes:
        rule = OPS[node.op].macs
        values = [None if i is None else graph.value(i) for i in node.inputs]
        macs += 0 if rule is None else rule(*values, **node.attrs)
        moved += size(node) + sum(size(v) for v in values if v is not None)
    read = dict.fromkeys(s for node in nodes for s in node.sources if s in graph.params)  # a shared parameter counts once
    params = parameter_count((s, tuple(graph.params[s].shape)) for s in read)
    return Cost(name, params, macs, 4 * moved, nodes[-1].shape)


def block_of(node: Node, depth: int) -> str:
    """The outer block that a node belongs to: the first `depth` names of its path, each with the indices that follow it.

    stages.2.1.transformer.0.attn.qkv belongs to stages.2.1 at depth 1, to stages.2.1.transformer.0 at depth 2.
    """
    parts: list[str] = []
    for part in node.name.split("."):
        depth -= not part.isdigit()
        if depth < 0:
            break
        parts.append(part)
    return ".".join(parts)


def block_costs(graph: Graph, depth: int = 1) -> list[Cost]:
    """Costs of the blocks (see `block_of`), in the order of execution."""
    blocks: dict[str, list[Node]] = {}
    for node in graph:
        blocks.setdefault(block_of(node, depth), []).append(node)
    return [_cost(graph, name, nodes) for name, nodes in blocks.items()]


@dataclass(frozen=True)
class Summary:
    """A model at one input shape, block by block; `str` gives the table."""

    name: str
    input_shape: Shape
    blocks: list[Cost]
    total: Cost

    def __str__(self) -> str:
        head = ("block", "output", "parameters", "MACs", "MB moved")
        rows = [(c.name, dims(c.shape), f"{c.params:,}", f"{c.macs:,}", f"{c.bytes / 1e6:.1f}") for c in self.blocks]
        t = self.total
        rows.append(("total", dims(t.shape), f"{t.params:,}", f"{t.macs:,}", f"{t.bytes / 1e6:.1f}"))
        widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
        lines = [_line(head, widths), "  ".join("-" * w for w in widths), *(_line(r, widths) for r in rows)]
        lines.insert(-1, lines[1])
        return "\n".join([f"{self.name}, input {dims(self.input_shape)}", "", *lines])

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "blocks": [vars(c) | {"shape": list(c.shape)} for c in self.blocks],
            "total": vars(self.total) | {"shape": list(self.total.shape)},
        }


def summarise(name: str, graph: Graph, depth: int = 1) -> Summary:
    """The summary of a graph with one input."""
    (value,) = graph.inputs.values()
    return Summary(name, tuple(value.shape), block_costs(graph, depth), total_cost(graph))


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    left = [c.ljust(w) for c, w in zip(cells[:2], widths, strict=False)]
    return "  ".join(left + [c.rjust(w) for c, w in zip(cells[2:], widths[2:], strict=True)]).rstrip()
