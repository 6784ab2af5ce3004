"""Tracing, the graph, its cost and its drawing."""

from refvit.graph.ir import Graph, Node, Op
from refvit.graph.trace import block, op, trace

__all__ = ["Graph", "Node", "Op", "block", "op", "trace"]
