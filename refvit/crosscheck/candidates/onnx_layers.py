"""The layers of an ONNX graph: with which weight and which bias each value is made, by the nodes and not by names.

Exporters rename, fold and number constants. What a constant is, its place among a node's inputs tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refvit.crosscheck.candidates.located import Layer
from refvit.graph.ir import Array

MOVES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast")  # what they give, the same layer made


def layers(nodes: Any, constants: Mapping[str, Array | None]) -> dict[str, Layer]:
    """Value -> the layer that makes it. nodes: in order of execution; constants: by name, None where the numbers are unknown"""
    found: dict[str, Layer] = {}
    for node in nodes:
        found.update((node.output[0], layer) for layer in _layer(node, constants, found))
    return found


def _layer(node: Any, constants: Mapping[str, Array | None], found: Mapping[str, Layer]) -> Iterator[Layer]:
    given = [constants.get(i) for i in node.input]
    weight = given[1] if len(given) > 1 and node.input[0] not in constants else None
    attributes = {a.name: a.i if a.type == 2 else a.f for a in node.attribute if a.type in (1, 2)}  # whole numbers or floats
    if node.op_type == "Conv" and weight is not None:
        if len(node.input) < 3 or not node.input[2] or given[2] is not None:
            yield Layer(weight, given[2] if len(given) > 2 else None)
    elif node.op_type == "Gemm" and weight is not None and weight.ndim == 2 and not attributes.get("transA"):
        bias = given[2] if len(given) > 2 else None
        if len(node.input) < 3 or not node.input[2] or bias is not None:
            weight = attributes.get("alpha", 1.0) * (weight if attributes.get("transB") else weight.T)
            yield Layer(weight, None if bias is None else _along(attributes.get("beta", 1.0) * bias, len(weight)))
    elif node.op_type == "MatMul" and weight is not None and weight.ndim == 2:
        yield Layer(weight.T, None)
    elif node.op_type == "Add" and len(given) == 2:
        product = next((found[i] for i in node.input if i in found), None)
        bias = next((g for g in given if g is not None), None)
        if product is None or product.bias is not None or bias is None or product.weight.ndim > 2:
            return
        if bias.size == max(bias.shape[-1:], default=1) and bias.size in (1, len(product.weight)):
            yield Layer(product.weight, _along(bias, len(product.weight)))
    elif node.op_type in MOVES and node.input[0] in found:
        yield found[node.input[0]]


def _along(bias: Array, length: int) -> Array:
    return np.broadcast_to(np.reshape(bias, -1), (length,))
