"""An activation behind a view moves before it, next to the layer whose epilogue it can be.

HRViT's GELU follows a concat of two convolutions and a transposed linear layer, its Hardswish a map seen as tokens. An
activation looks at one value at a time, so it may be applied before values are moved.
"""

from __future__ import annotations

from collections.abc import Mapping

from refvit.graph.ir import Graph, Node
from refvit.graph.passes.draft import Draft, uses
from refvit.graph.passes.fuse import HEAVY, UNARY

VIEWS = ("reshape", "transpose", "concat")


def lift_activations(graph: Graph) -> Graph:
    """Activations of reshapes, transposes and concats move up to the layers and sums, if nothing else reads what these show."""
    draft, count = Draft(graph), uses(graph)

    def lift(act: Node, x: str) -> str:
        view = graph.nodes[x]
        if view.op not in VIEWS:
            return draft.new(f"{x}.{act.op}", act.op, (x,), act.attrs, act.scope)
        inputs = tuple(lift(act, source) for source in view.sources)
        return draft.new(f"{x}.{act.op}", view.op, inputs, view.attrs, view.scope)

    for node in graph:
        view = graph.nodes.get(node.sources[0])
        if node.op in UNARY and view is not None and view.op in VIEWS and _ends_in_layers(graph, count, view.name):
            inputs = tuple(lift(node, source) for source in view.sources)
            draft.stand_in(node, view.op, inputs, view.attrs)
        else:
            draft.keep(node)
    return draft.finish()


def _ends_in_layers(graph: Graph, count: Mapping[str, int], x: str) -> bool:
    """All that the view shows comes from layers and sums, and nothing else reads it on the way."""
    node = graph.nodes.get(x)
    if node is None or count[x] > 1:
        return False
    if node.op in VIEWS:
        return all(_ends_in_layers(graph, count, source) for source in node.sources)
    return node.op in (*HEAVY, "add")
