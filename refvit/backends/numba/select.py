"""Which function lowers a node: one for each op, which reads places and emits instructions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refvit.backends.numba import pool, resize, rows
from refvit.backends.numba.convolutions import conv2d
from refvit.backends.numba.copy import LayoutError, copy
from refvit.backends.numba.copy import pad as padded
from refvit.backends.numba.layout import Place, dense, matrix
from refvit.backends.numba.lower import Lowering
from refvit.backends.numba.products import attend, linear_layer, matmul, matrix_of, rows_of, shortcut, stripe
from refvit.backends.numba.program import Buffer
from refvit.backends.numba.tail import combined
from refvit.graph.ir import Node, Step

__all__ = ["KERNELS", "shortcut"]


def elementwise(low: Lowering, node: Node) -> None:
    """Activations, sums, products, and fused sums."""
    steps = node.attrs["steps"] if node.op == "fused" else (Step(node.op, tuple(range(len(node.inputs))), node.attrs),)
    inputs = [low.place(i) for i in node.sources]
    first = next((x for x in inputs if x.shape == node.shape and x.buffer.array is None), None)
    if node.name not in low.targets and first is not None and len(node.shape) != 4 and matrix(first.axes[:-1]) is not None:
        low.places[node.name] = out = low.like(first, node.shape[-1])  # tokens keep their order in memory
    else:
        out = low.result(node)
    combined(low, steps, inputs, out)


def layer_norm(low: Lowering, node: Node) -> None:
    """Each row on its own."""
    x = matrix_of(low, node.inputs[0])  # type: ignore[arg-type]
    low.places[node.name] = out = low.like(x, node.shape[-1])
    weight, bias = (low.place(i) for i in node.inputs[1:] if i is not None)
    low.emit(rows.layer_norm(x, weight, bias, node.attrs["eps"], out))


def softmax(low: Lowering, node: Node) -> None:
    """Along the last axis; other axes are brought there by a view."""
    axis = node.attrs["axis"] % len(node.shape)
    order = (*(i for i in range(len(node.shape)) if i != axis), axis)
    x = rows_of(low, low.place(node.sources[0]).transpose(order))
    y = low.like(x, x.shape[-1])
    low.emit(rows.softmax(x, y))
    low.places[node.name] = y.transpose(tuple(order.index(i) for i in range(len(order))))


def resized(low: Lowering, node: Node) -> None:
    low.emit(resize.resize(low.as_map(low.place(node.sources[0])), low.result(node, _is_map), **node.attrs))


def mean(low: Lowering, node: Node) -> None:
    x = low.place(node.sources[0])
    out = low.new(node.shape)
    low.places[node.name] = out
    try:
        low.emit(pool.mean(x, out, **node.attrs))
    except LayoutError:
        low.emit(pool.mean(low.copied(x, tuple(range(len(x.shape)))), out, **node.attrs))


def adaptive(low: Lowering, node: Node) -> None:
    low.emit(pool.adaptive_avg_pool(low.as_map(low.place(node.sources[0])), low.result(node, _is_map)))


def batch_norm(low: Lowering, node: Node) -> None:
    """A norm that nothing could take in: of each channel a factor and an offset, rounded once."""
    weight, bias, running_mean, running_var = (low.constants.array(i).astype(np.float64) for i in node.sources[1:])
    factor = weight / np.sqrt(running_var + node.attrs["eps"])
    shape = (factor.size, *(1 for _ in node.shape[2:]))
    terms = [dense(Buffer(a.size, array=a.astype(np.float32)), shape) for a in (factor, bias - running_mean * factor)]
    steps = (Step("multiply", (0, 1), {}), Step("add", (3, 2), {}))
    combined(low, steps, [low.place(node.sources[0]), *terms], low.result(node))


def mask_tail(low: Lowering, node: Node) -> None:
    """As the sum with a constant: only graphs whose attention is written out have it."""
    x = low.place(node.sources[0])
    mask = np.zeros((x.shape[1], x.shape[-1]), np.float32)
    mask[-1, node.attrs["valid"] :] = node.attrs["value"]
    term = dense(Buffer(mask.size, array=mask), (1, x.shape[1], 1, 1, x.shape[-1]))
    combined(low, (Step("add", (0, 1), {}),), [x, term], low.result(node))


def _is_map(place: Place) -> bool:
    return place.channels_last


def concat(low: Lowering, node: Node) -> None:
    """Parts that are not in their places already are copied there."""
    for part, wanted in zip(node.inputs, low.parts[node.name], strict=True):
        assert part is not None
        here = low.place(part)
        if here != wanted:
            low.emit(copy(here, wanted))
    low.places[node.name] = low.wholes[node.name]


def pad(low: Lowering, node: Node) -> None:
    """A border of one value."""
    low.emit(padded(low.place(node.sources[0]), low.result(node), node.attrs["widths"], node.attrs.get("value", 0.0)))


KERNELS: dict[str, Callable[[Lowering, Node], None]] = {
    "conv2d": conv2d, "linear": linear_layer, "matmul": matmul, "layer_norm": layer_norm, "softmax": softmax,
    "attention": attend, "batch_norm": batch_norm, "mask_tail": mask_tail,
    "stripe_attention": stripe, "resize": resized, "mean": mean, "adaptive_avg_pool": adaptive, "concat": concat, "pad": pad,
    **dict.fromkeys(("relu", "silu", "gelu", "hardswish", "sigmoid", "add", "multiply", "scale"), elementwise),
}  # fmt: skip
