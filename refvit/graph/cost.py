"""What a graph costs: parameters, multiply-accumulates (MACs) and bytes, per node and per block."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

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
    rule = OPS[node.op].macs
    values = [None if i is None else graph.value(i) for i in node.inputs]
    macs = 0 if rule is None else rule(*values, **node.attrs)
    params = parameter_count((s, tuple(graph.params[s].shape)) for s in node.sources if s in graph.params)
    moved = size(node) + sum(size(v) for v in values if v is not None)
    return Cost(node.name, params, macs, 4 * moved, node.shape)


def total_cost(graph: Graph) -> Cost:
    """Cost of the whole graph; the shape is that of its first output."""
    first = graph.value(next(iter(graph.outputs.values())))
    return _sum("total", [node_cost(graph, n) for n in graph], tuple(first.shape))


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
    blocks: dict[str, list[Cost]] = {}
    for node in graph:
        blocks.setdefault(block_of(node, depth), []).append(node_cost(graph, node))
    return [_sum(name, costs, costs[-1].shape) for name, costs in blocks.items()]


def _sum(name: str, costs: list[Cost], shape: Shape) -> Cost:
    return Cost(name, sum(c.params for c in costs), sum(c.macs for c in costs), sum(c.bytes for c in costs), shape)


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
