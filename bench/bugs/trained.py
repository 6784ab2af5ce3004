"""Random weights with the statistics of trained ones: values keep their size through the network, norms have real work to do.

Standard initialisation hides mistakes: biases are 0, norms are the identity, statistics are 0 and 1. Here they are drawn while
an image runs through the graph, each layer scaled by what it gives, batch norms with the mean and variance that they see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from refvit.graph.ir import OPS, Array, Graph, Node, Shape

WRITES_TO_RESIDUAL = ("attn.proj", "mlp.fc2", "ffn.fc2", "des.proj_left")
STARTS_RESIDUAL = ("patch_embed.proj", "1.conv_1x1", ".proj.1")
CONVOLUTIONS = ("conv2d", "linear")


def picture(rng: np.random.Generator, shape: Shape) -> Array:
    """Something like a normalised photograph (n, 3, h, w) in float32: smooth shapes, an edge, a little noise."""
    n, c, h, w = shape
    y, x = np.mgrid[0:h, 0:w] / max(h, w)
    out = np.zeros(shape)
    for i in range(n):
        for _ in range(6):
            angle, frequency, phase = rng.uniform(0, np.pi), rng.uniform(0.5, 12), rng.uniform(0, 2 * np.pi)
            wave = np.sin(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)
            out[i] += rng.normal(0, 0.4, (c, 1, 1)) * wave
        edge = np.cos(t := rng.uniform(0, np.pi)) * x + np.sin(t) * y > rng.uniform(0.2, 0.6)
        out[i] += rng.normal(0, 0.6, (c, 1, 1)) * edge + rng.normal(0.2, 0.4, (c, 1, 1))
        out[i] += rng.normal(0, 0.15, (c, h, w))
    return out.astype(np.float32)


def trained(graph: Graph, rng: np.random.Generator) -> dict[str, Array]:
    """A float32 array for every parameter that the graph reads. Of the graph's parameters only the shapes are used."""
    (name,) = graph.inputs
    values: dict[str, Array] = {name: picture(rng, graph.inputs[name].shape).astype(np.float64)}
    params: dict[str, Array] = {}
    users = graph.users()
    for node in graph:
        if node.op in CONVOLUTIONS and node.inputs[1] not in params:
            normalised = [graph.nodes[u].op for u in users.get(node.name, ()) if u in graph.nodes] == ["batch_norm"]
            params |= _linear_map(graph, node, values, rng, normalised)
        elif node.op == "batch_norm" and node.inputs[1] not in params:
            params |= _batch_norm(node, values[str(node.inputs[0])], rng)
        for source in node.sources:
            if source in graph.params and source not in params:
                params[source] = _leaf(node, source, tuple(graph.params[source].shape), rng)
        arguments = [None if i is None else values[i] if i in values else params[i].astype(np.float64) for i in node.inputs]
        values[node.name] = np.asarray(OPS[node.op].function(*arguments, **node.attrs))
    return {name: params[name].astype(np.float32) for name in graph.params if name in params}


def _linear_map(
    graph: Graph, node: Node, values: Mapping[str, Array], rng: np.random.Generator, normalised: bool
) -> dict[str, Array]:
    """Weight and bias of a convolution or linear layer, scaled so that its results have the size that is wanted."""
    x, (weight, bias) = values[str(node.inputs[0])], node.inputs[1:3]
    assert weight is not None
    shape = tuple(graph.params[weight].shape)
    w = rng.standard_normal(shape) * np.exp(rng.normal(0, 0.3, shape)) / np.prod(shape[1:]) ** 0.5
    w *= np.exp(rng.normal(0, 0.3, (shape[0], *[1] * (len(shape) - 1))))
    y = OPS[node.op].function(x, w, None, **node.attrs)
    size = float(np.exp(rng.normal(0, 0.3)))
    if normalised or node.name.endswith(WRITES_TO_RESIDUAL):
        size *= 0.4
    elif node.name.endswith(("qkv", "to_qkv")):
        size *= 1.4
    elif node.name.endswith(STARTS_RESIDUAL):  # what the first layer norms see may be small
        size *= 0.4 * float(np.exp(rng.normal(0, 0.7)))
    elif node.name in graph.outputs.values():
        size *= 2
    found = {weight: w * (size / max(float(y.std()), 1e-6))}
    if bias is not None:
        found[bias] = rng.normal(0, 0.3 * size, shape[0])
    return {name: a.astype(np.float32) for name, a in found.items()}


def _batch_norm(node: Node, x: Array, rng: np.random.Generator) -> dict[str, Array]:
    weight, bias, mean, var = (str(i) for i in node.inputs[1:])
    c = x.shape[1]
    axes = (0, *range(2, x.ndim))
    seen = x.var(axes)
    seen = 0.6 * seen + 0.3 * seen.mean() + 0.1 * (x * x).mean()  # maps of few pixels say little
    small = 0.4 if node.name.endswith((".bn2", ".bn3", "conv3_1x1.bn.batch_norm")) else 1.0  # what ends a residual branch
    return {
        weight: (small * np.exp(rng.normal(0, 0.35, c)) * np.where(rng.random(c) < 0.03, -1, 1)).astype(np.float32),
        bias: rng.normal(0, 0.35, c).astype(np.float32),
        mean: (x.mean(axes) + 0.1 * np.sqrt(seen) * rng.standard_normal(c)).astype(np.float32),
        var: (seen * np.exp(rng.normal(0, 0.2, c))).astype(np.float32),
    }


def _leaf(node: Node, source: str, shape: Shape, rng: np.random.Generator) -> Array:
    """Gains and shifts of layer norms; tokens and position embeddings."""
    if node.op == "layer_norm" and source == node.inputs[1]:
        return np.exp(rng.normal(0, 0.3, shape)).astype(np.float32)
    if node.op == "layer_norm":
        return rng.normal(0, 0.25, shape).astype(np.float32)
    return rng.normal(0, 0.15 * np.exp(rng.normal(0, 0.6)), shape).astype(np.float32)


def as_arrays(graph: Graph, params: Mapping[str, Array], dtype: str = "float64") -> Graph:
    """The graph with its parameters as arrays of `dtype`."""
    return dataclasses.replace(graph, params={n: np.asarray(params[n], dtype) for n in graph.params})
