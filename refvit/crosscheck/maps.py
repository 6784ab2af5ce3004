"""Which values are maps (n, c, h, w), and not some other array of four axes, such as the attention of several heads."""

from __future__ import annotations

from collections.abc import Sequence

from refvit.graph.ir import Graph, Node

MAPS = ("conv2d", "batch_norm", "resize", "adaptive_avg_pool")  # their first tensor is a map (n, c, h, w)
ALIKE = ("relu", "sigmoid", "silu", "hardswish", "gelu", "add", "multiply", "scale", "concat", "pad", "getitem", "mask_tail")


def maps(graph: Graph) -> set[str]:
    """The values that are maps (n, c, h, w), and not some other array of four axes, such as attention of several heads."""

    def four(names: Sequence[str]) -> set[str]:
        return {n for n in names if n not in graph.params and len(graph.value(n).shape) == 4}

    def alike(node: Node) -> set[str]:
        return four([node.name, *node.sources]) if node.op in ALIKE and len(node.shape) == 4 else set()

    found = four(list(graph.inputs))
    for node in graph:
        if node.op in MAPS:
            found |= four([node.name, node.sources[0]])
    before = -1
    while len(found) > before:  # along elementwise ops in both directions: both sides of an addition are maps, or neither is
        before = len(found)
        for node in graph:
            found |= alike(node) if alike(node) & found else set()
    return found
