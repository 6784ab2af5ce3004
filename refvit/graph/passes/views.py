"""Reshapes, transposes and resizes that cancel."""

from __future__ import annotations

from refvit.graph.ir import Graph, Node
from refvit.graph.passes.draft import Draft


def cancel_views(graph: Graph) -> Graph:
    """Chains of reshapes become one, chains of transposes too, and what changes nothing goes, a resize to the same size too."""
    draft = Draft(graph)
    for node in graph:
        if node.op not in ("reshape", "transpose", "resize"):
            draft.keep(node)
            continue
        x = draft.same.get(node.sources[0], node.sources[0])
        attrs = dict(node.attrs)
        before = draft.nodes.get(x)
        if before is not None and before.op == node.op != "resize":
            x = before.sources[0]
            if node.op == "reshape":
                attrs["shape"] = node.shape
            else:
                attrs["axes"] = tuple(before.attrs["axes"][a] for a in node.attrs["axes"])
        if _is_identity(node, attrs, draft.value(x).shape):
            draft.same[node.name] = x
        else:
            draft.stand_in(node, node.op, (x,), attrs)
    return draft.finish()


def _is_identity(node: Node, attrs: dict[str, object], before: tuple[int, ...]) -> bool:
    unmoved = node.op != "transpose" or attrs["axes"] == tuple(range(len(before)))
    return unmoved and node.shape == tuple(before)
