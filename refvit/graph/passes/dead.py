"""Nodes that no output needs."""

from __future__ import annotations

from refvit.graph.ir import Graph


def remove_dead(graph: Graph) -> Graph:
    """The graph without the nodes that no output needs; its outputs, inputs and parameters stay."""
    return graph.with_outputs(graph.outputs)
