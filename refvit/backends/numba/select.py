"""Which function lowers a node: one for each op, which reads places and emits instructions."""

from __future__ import annotations

from collections.abc import Callable

from refvit.backends.numba import pool, resize, rows
from refvit.backends.numba.convolutions import conv2d
from refvit.backends.numba.copy import copy
from refvit.backends.numba.copy import pad as padded
from refvit.backends.numba.layout import matrix
from refvit.backends.numba.lower import Lowering
from refvit.backends.numba.products import attend, linear_layer, matmul, matrix_of, shortcut, stripe
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
    x = low.place(node.sources[0]).transpose(order)
    if matrix(x.axes[:-1]) is None or (x.axes[-1] and x.stride(-1) != 1):
        x = low.copied(x, tuple(range(len(x.shape))))
    y = low.like(x, x.shape[-1])
    low.emit(rows.softmax(x, y))
    low.places[node.name] = y.transpose(tuple(order.index(i) for i in range(len(order))))


def resized(low: Lowering, node: Node) -> None:
    x = low.place(node.sources[0])
    if x.axes[1] and x.stride(1) != 1:
        x = low.copied(x)
    low.emit(resize.resize(x, low.result(node), **node.attrs))


def mean(low: Lowering, node: Node) -> None:
    x = low.place(node.sources[0])
    out = low.new(node.shape)
    low.places[node.name] = out
    low.emit(pool.mean(x, out, **node.attrs))


def adaptive(low: Lowering, node: Node) -> None:
    low.emit(pool.adaptive_avg_pool(low.place(node.sources[0]), low.result(node)))


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
    "attention": attend,
    "stripe_attention": stripe, "resize": resized, "mean": mean, "adaptive_avg_pool": adaptive, "concat": concat, "pad": pad,
    **dict.fromkeys(("relu", "silu", "gelu", "hardswish", "sigmoid", "add", "multiply", "scale"), elementwise),
}  # fmt: skip
