"""How a pass writes its result: the next graph, node by node, in the order of execution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from refvit.graph.ir import OPS, Graph, HasShape, Node


def uses(graph: Graph) -> Counter[str]:
    """How often each value is wanted: once for every node that reads it, times it reads it, and for every output that it is."""
    counts = Counter(source for node in graph for source in node.sources)
    counts.update(graph.outputs.values())
    return counts


class Draft:
    """The graph that a pass is writing, beside the one that it reads.

    A name belongs to a value: a node that stands in for an old one computes what that one computed, and whatever computes
    something else gets a name that the old graph has not. Old values that the draft lacks and that equal another are in `same`.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: dict[str, Node] = {}
        self.same: dict[str, str] = {}

    def value(self, name: str) -> HasShape:
        """The node of the draft, the parameter or the input called `name`."""
        return self.nodes[name] if name in self.nodes else self.graph.value(name)

    def keep(self, node: Node) -> None:
        """Copy an old node."""
        self.nodes[node.name] = replace(node, inputs=self._now(node.inputs))

    def stand_in(
        self, node: Node, op: str, inputs: tuple[str | None, ...], attrs: Mapping[str, Any], scope: str | None = None
    ) -> str:
        """Compute an old node's value in another way; its name."""
        return self._write(node.name, op, inputs, attrs, node.scope if scope is None else scope)

    def new(self, name: str, op: str, inputs: tuple[str | None, ...], attrs: Mapping[str, Any], scope: str) -> str:
        """A value that the old graph has not. It is called `name`, with a number if there is one of that name."""
        unique, i = name, 0
        old = self.graph
        while any(unique in table for table in (self.nodes, old.nodes, old.params, old.inputs, old.aliases)):
            i += 1
            unique = f"{name}_{i}"
        return self._write(unique, op, inputs, attrs, scope)

    def finish(self) -> Graph:
        """The new graph, without what no output needs any more and without the names of values that are gone; verified."""
        old = self.graph
        outputs = {public: self.same.get(value, value) for public, value in old.outputs.items()}
        aliases = {path: self.same.get(value, value) for path, value in old.aliases.items()}
        return Graph(old.inputs, old.params, self.nodes, outputs, aliases).with_outputs(outputs)

    def _write(self, name: str, op: str, inputs: tuple[str | None, ...], attrs: Mapping[str, Any], scope: str) -> str:
        inputs = self._now(inputs)
        shape = OPS[op].shape(*[None if i is None else self.value(i) for i in inputs], **attrs)
        self.nodes[name] = Node(name, op, inputs, attrs, shape, scope)
        return name

    def _now(self, inputs: tuple[str | None, ...]) -> tuple[str | None, ...]:
        return tuple(None if i is None else self.same.get(i, i) for i in inputs)
