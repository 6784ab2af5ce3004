"""Nodes that depend on parameters alone: computed once, when weights are loaded, and parameters from then on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from refvit.errors import GraphError
from refvit.graph.ir import OPS, Array, Graph, Node
from refvit.graph.passes.draft import uses


def constants(graph: Graph) -> dict[str, Node]:
    """The nodes that read parameters or such nodes only, in execution order, by name."""
    known: dict[str, Node] = {}
    for node in graph:
        if all(source in graph.params or source in known for source in node.sources):
            known[node.name] = node
    return known


def bind(graph: Graph, params: Mapping[str, Array]) -> tuple[Graph, dict[str, Array]]:
    """The graph without its constant nodes, and the parameters that it then reads, with the constants' values among them.

    params: an array for every parameter that the graph reads, all of one floating dtype, which is the dtype of the result.
    A constant may depend on the size of the image: a resampled position embedding does, a folded weight does not.
    GraphError if a parameter is missing or has another shape.
    """
    values: dict[str, Array] = {}
    for name in (n for n in uses(graph) if n in graph.params):
        if name not in params or params[name].shape != tuple(graph.params[name].shape):
            given = f"one of shape {params[name].shape}" if name in params else "none"
            raise GraphError(f"{name}: an array of shape {tuple(graph.params[name].shape)} expected, got {given}")
        values[name] = params[name]
    known = constants(graph)
    for name, node in known.items():
        arguments = [None if i is None else values[i] for i in node.inputs]
        values[name] = np.asarray(OPS[node.op].function(*arguments, **node.attrs))
    nodes = {name: node for name, node in graph.nodes.items() if name not in known}
    rest = replace(graph, params=values, nodes=nodes)
    bound = {name: values[name] for name in uses(rest) if name in values}
    here = {*graph.inputs, *bound, *nodes}
    aliases = {path: value for path, value in graph.aliases.items() if value in here}
    return replace(rest, params=bound, aliases=aliases).verify(), bound
