"""Batch norm at inference is an affine map of each channel, and so part of the convolution or linear layer before it.

(x * w + b - mean) / sqrt(var + eps) * weight + bias = x * (w s) + (b - mean) s + bias, with s = weight / sqrt(var + eps).
"""

from __future__ import annotations

import numpy as np

from refvit.errors import ShapeError
from refvit.graph.ir import Array, Graph, HasShape, Node, Shape
from refvit.graph.passes.draft import Draft, uses
from refvit.graph.trace import op


def _weight_shape(weight: HasShape, bn_weight: HasShape, running_var: HasShape, *, eps: float) -> Shape:
    if not weight.shape or not bn_weight.shape == running_var.shape == tuple(weight.shape[:1]):
        raise ShapeError(
            f"fold_weight: weight (k, ...) and two vectors (k,) expected, got {weight.shape}, {bn_weight.shape} and "
            f"{running_var.shape}"
        )
    return tuple(weight.shape)


@op(shape=_weight_shape)
def fold_weight(weight: Array, bn_weight: Array, running_var: Array, *, eps: float) -> Array:
    """weight * s, s = bn_weight / sqrt(running_var + eps), in float64. weight (k, ...), the others (k,) -> (k, ...)."""
    scale = _scale(bn_weight, running_var, eps).reshape(-1, *[1] * (weight.ndim - 1))
    return (weight * scale).astype(weight.dtype)


def _bias_shape(
    bn_weight: HasShape, bn_bias: HasShape, running_mean: HasShape, running_var: HasShape, bias: HasShape | None = None, *,
    eps: float,
) -> Shape:  # fmt: skip
    vectors = [v.shape for v in (bn_weight, bn_bias, running_mean, running_var, bias) if v is not None]
    if len(vectors[0]) != 1 or len(set(vectors)) > 1:
        raise ShapeError(f"fold_bias: vectors (k,) expected, got {', '.join(map(str, vectors))}")
    return tuple(vectors[0])


@op(shape=_bias_shape)
def fold_bias(
    bn_weight: Array, bn_bias: Array, running_mean: Array, running_var: Array, bias: Array | None = None, *, eps: float
) -> Array:
    """(bias - running_mean) * s + bn_bias, s = bn_weight / sqrt(running_var + eps), in float64. All (k,) -> (k,)."""
    start = -running_mean.astype(np.float64) if bias is None else bias.astype(np.float64) - running_mean
    return (start * _scale(bn_weight, running_var, eps) + bn_bias).astype(bn_bias.dtype)


def _scale(bn_weight: Array, running_var: Array, eps: float) -> Array:
    return bn_weight / np.sqrt(running_var.astype(np.float64) + eps)


def fold_batch_norm(graph: Graph) -> Graph:
    """Every batch norm becomes part of the conv2d or linear whose result it alone reads.

    The folded weight and bias are nodes that depend on parameters only (`constants`). A reshape that joins the axes of tokens
    may stand between a linear layer and its norm.
    """
    draft, count = Draft(graph), uses(graph)
    for node in graph:
        found = _layer(graph, node) if node.op == "batch_norm" else None
        if found is None or count[found.name] > 1 or count[node.sources[0]] > 1:
            draft.keep(node)
            continue
        weight, bias, mean, var = node.inputs[1:]
        x, w, b = found.inputs
        eps = {"eps": node.attrs["eps"]}
        w = draft.new(f"{found.name}.folded_weight", "fold_weight", (w, weight, var), eps, found.scope)
        b = draft.new(f"{found.name}.folded_bias", "fold_bias", (weight, bias, mean, var, b), eps, found.scope)
        if found.name == node.inputs[0]:
            draft.stand_in(node, found.op, (x, w, b), found.attrs, found.scope)
        else:
            y = draft.new(f"{found.name}.folded", found.op, (x, w, b), found.attrs, found.scope)
            draft.stand_in(node, "reshape", (y,), {"shape": node.shape})
    return draft.finish()


def _layer(graph: Graph, norm: Node) -> Node | None:
    """The layer whose output channels are the channels of the norm's input."""
    node = graph.nodes.get(norm.sources[0])
    if node is not None and node.op == "conv2d":
        return node
    if node is not None and node.op == "reshape":
        node = graph.nodes.get(node.sources[0])
    fits = node is not None and node.op == "linear" and len(norm.shape) == 2 and node.shape[-1] == norm.shape[-1]
    return node if fits else None
