"""The constants of the layer that makes the wrong value, held against those expected there.

Where a candidate's graph is known, the names of its constants need not say anything: what is read by the node that makes the
value is that layer's weight and bias. A batch norm that is no node of its own was folded into them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from refvit.crosscheck.arithmetic import ulp
from refvit.crosscheck.candidates.located import Layer
from refvit.crosscheck.causes.hypothesis import Change, Function, Scene, default
from refvit.crosscheck.causes.parameters import Difference, compare
from refvit.crosscheck.causes.weights import WEIGHTED
from refvit.crosscheck.segments import VIEWS
from refvit.graph.ir import Array, Graph, Node

ROUNDED = 8  # ulp of the terms of a folded bias, or of the largest weight, that folding may cost


@dataclass(frozen=True)
class Evidence:
    """differences: of the layer; change: the scene with its constants; about: the parameters of ours that it stands for."""

    differences: tuple[Difference, ...]
    change: Change | None
    about: frozenset[str]


def evidence(scene: Scene, layer: Layer, arithmetic: str) -> Evidence | None:
    """None if the scene's value is no layer's, or if integers stand for its weights."""
    node: Node | None = scene.nodes.get(scene.result)
    while node is not None and node.op in VIEWS:
        node = scene.producer(node.inputs[0])
    norm = node if node is not None and node.op == "batch_norm" else None
    product = scene.producer(norm.inputs[0]) if norm is not None else node
    if product is None or product.op not in WEIGHTED or product.inputs[1] not in scene.params or arithmetic == "int8":
        return None
    ours = dict(_expected(scene.graph, scene.params, product, norm))
    weight, bias = f"{product.name}.weight", f"{product.name}.bias"
    theirs = np.asarray(layer.weight, np.float64)
    if theirs.squeeze().shape == ours[weight].squeeze().shape:
        theirs = theirs.reshape(ours[weight].shape)
    added = np.zeros(len(theirs)) if layer.bias is None else np.asarray(layer.bias, np.float64)
    step = ROUNDED * ulp("float32" if arithmetic in ("float64", "tf32") else arithmetic)
    found = list[Difference]()
    if theirs.shape != ours[weight].shape or (np.abs(theirs - ours[weight]) > step * np.abs(ours[weight]).max()).any():
        found += [d for d in (compare(weight, ours, theirs),) if d]
    if added.shape != ours[bias].shape or (np.abs(added - ours[bias]) > step * _terms(scene, product, norm)).any():
        missing = Difference(bias, "bias", f"{bias} is missing")
        found += [missing] if layer.bias is None else [d for d in (compare(bias, ours, added),) if d]
    if norm is not None:
        found = [Difference(d.name, d.cause, f"{d.text} ({norm.name} folded into it)") for d in found]
    change = None
    if found and theirs.shape == ours[weight].shape:
        function: Function = partial(_product, function=default(product), weight=theirs, bias=added)
        nodes = scene.instead(product, function, product.inputs[:1]) | (scene.without(norm) if norm is not None else {})
        change = Change("shown", "the candidate's own weight and bias", (product.name,), nodes)
    about = {s for n in (product, norm) if n is not None for s in n.sources if s in scene.params}
    return Evidence(tuple(found), change, frozenset(about))


def _product(x: Array, function: Function, weight: Array, bias: Array) -> Array:
    return function(x, weight, bias)


def _expected(graph: Graph, params: dict[str, Array], product: Node, norm: Node | None) -> Iterator[tuple[str, Array]]:
    """Weight and bias of the layer and of others of its shape, each with the norm behind it folded in if its own is."""
    shape = params[str(product.inputs[1])].shape
    for node in graph:
        weight = params.get(str(node.inputs[1])) if node.op in WEIGHTED else None
        if weight is None or weight.shape != shape:
            continue
        bias = _param(params, node, 2, np.zeros(len(weight)))
        behind = next((n for n in graph if n.op == "batch_norm" and n.inputs[0] == node.name), None) if norm else None
        if behind is not None:
            factor, shift = _folded(params, behind)
            weight, bias = weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), bias * factor + shift
        yield f"{node.name}.weight", weight
        yield f"{node.name}.bias", bias


def _folded(params: dict[str, Array], norm: Node) -> tuple[Array, Array]:
    """(factor, shift): the norm computes x factor + shift."""
    weight, bias, mean, var = (params[str(i)] for i in norm.inputs[1:5])
    factor = weight / np.sqrt(var + norm.attrs["eps"])
    return factor, bias - mean * factor


def _terms(scene: Scene, product: Node, norm: Node | None) -> Array:
    """The size of what the bias is made of."""
    bias = np.abs(_param(scene.params, product, 2, np.zeros(product.shape[1 if product.op == "conv2d" else -1])))
    if norm is not None:
        factor, _ = _folded(scene.params, norm)
        bias = bias * np.abs(factor) + np.abs(scene.params[str(norm.inputs[2])])
        bias = bias + np.abs(scene.params[str(norm.inputs[3])] * factor)
    return np.maximum(bias, bias.max(initial=0.0))


def _param(params: dict[str, Array], node: Node, index: int, otherwise: Array) -> Array:
    name = node.inputs[index] if len(node.inputs) > index else None
    return otherwise if name is None else params[name]
