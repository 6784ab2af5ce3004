"""From the graph as traced to the graph that a backend compiles: pure functions, proved by running the graph before and after.

A pass keeps the names and values of outputs. Of a value that is computed no longer, the names are gone.
"""

from __future__ import annotations

import functools

from refvit.graph.ir import Graph
from refvit.graph.passes.commute_linear import commute_linear
from refvit.graph.passes.constants import bind, constants
from refvit.graph.passes.dead import remove_dead
from refvit.graph.passes.fold_batch_norm import fold_batch_norm
from refvit.graph.passes.fuse import fuse
from refvit.graph.passes.lift_activations import lift_activations
from refvit.graph.passes.sink_slices import sink_slices
from refvit.graph.passes.views import cancel_views

PASSES = (
    remove_dead,
    fold_batch_norm,  # a norm between 1x1 convolutions would keep them apart
    cancel_views,  # two reshapes are left where HRViT's norm was
    commute_linear,
    sink_slices,
    lift_activations,  # makes epilogues for fuse
    fuse,  # last: no other pass looks into a fused node
)

__all__ = [
    "PASSES", "bind", "cancel_views", "commute_linear", "constants", "fold_batch_norm", "fuse", "lift_activations", "optimise",
    "remove_dead", "sink_slices",
]  # fmt: skip


def optimise(graph: Graph) -> Graph:
    """All passes in order; each verifies its result. Outputs keep their names and, up to rounding, their values.

    To keep an intermediate, make it an output first. Weights that passes compute are nodes, which `bind` turns into parameters.
    """
    return functools.reduce(lambda g, run: run(g), PASSES, graph)
