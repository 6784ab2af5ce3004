"""A graph of refvit's as a torch module: the same ops, each by torch's own function, so that torch can run any of the models.

`module(graph, params)` gives a torch.fx.GraphModule, which runs as straight Python code without refvit, drops a value after its
last use, and compiles with torch.compile. It is a peer of refvit in the benchmarks, and written to be as fast as torch allows.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from refvit.graph.ir import Array, Graph, Shape
from refvit.graph.passes import bind


def module(graph: Graph, params: Mapping[str, Array]) -> torch.nn.Module:
    """A module from one input to a dict of outputs by public name, in evaluation mode, with the dtype of `params`."""
    graph, bound = bind(graph, params)
    root, code = torch.nn.Module(), torch.fx.Graph()
    values: dict[str, Any] = {name: code.placeholder(name) for name in graph.inputs}
    for i, (name, a) in enumerate(bound.items()):
        root.register_parameter(f"p{i}", torch.nn.Parameter(torch.from_numpy(a.copy()), requires_grad=False))
        values[name] = code.get_attr(f"p{i}")
    for node in graph:
        inputs = [None if i is None else values[i] for i in node.inputs]
        values[node.name] = code.call_function(FUNCTIONS[node.op], tuple(inputs), dict(node.attrs))
    code.output({public: values[value] for public, value in graph.outputs.items()})
    return torch.fx.GraphModule(root, code).eval()


def _adaptive_avg_pool(x: Any, *, size: tuple[int, int]) -> Any:
    return F.adaptive_avg_pool2d(x, size)


def _attention(q: Any, k: Any, v: Any, *, scale: float) -> Any:
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, var: Any, *, eps: float) -> Any:
    return F.batch_norm(x, mean, var, weight, bias, eps=eps)


def _broadcast(x: Any, *, shape: Shape) -> Any:
    return x.expand(shape)


def _concat(*xs: Any, axis: int) -> Any:
    return torch.cat(xs, axis)


def _conv2d(x: Any, weight: Any, bias: Any, *, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    if isinstance(padding, tuple) and not isinstance(padding[0], int):
        (top, bottom), (left, right) = padding
        if top != bottom or left != right:
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        padding = (top, left)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _fold_patches(x: Any, *, patch: tuple[int, int], size: tuple[int, int]) -> Any:
    (ph, pw), c = patch, x.shape[2]
    rows, columns = -(-size[0] // ph), -(-size[1] // pw)
    x = x.reshape(-1, ph, pw, rows, columns, c).permute(0, 5, 3, 1, 4, 2).reshape(-1, c, rows * ph, columns * pw)
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def _gelu(x: Any, *, approximate: str) -> Any:
    return F.gelu(x, approximate=approximate)


def _getitem(x: Any, *, index: Any) -> Any:
    return x[index]


def _layer_norm(x: Any, weight: Any, bias: Any, *, eps: float) -> Any:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def _mean(x: Any, *, axes: tuple[int, ...], keepdims: bool) -> Any:
    return x.mean(axes, keepdim=keepdims)


def _pad(x: Any, *, widths: tuple[tuple[int, int], ...], value: float) -> Any:
    return F.pad(x, [w for pair in reversed(widths) for w in pair], value=value)


def _reshape(x: Any, *, shape: Shape) -> Any:
    return x.reshape(shape)


def _resize(x: Any, *, size: tuple[int, int], mode: str, align_corners: bool, antialias: bool) -> Any:
    return F.interpolate(x, size, mode=mode, align_corners=None if mode == "nearest" else align_corners, antialias=antialias)


def _scale(x: Any, *, factor: float) -> Any:
    return x * factor


def _softmax(x: Any, *, axis: int) -> Any:
    return x.softmax(axis)


def _stripe_attention(q: Any, k: Any, v: Any, *, stripe: int, num_heads: int, scale: float) -> Any:
    n, c, h, w = q.shape
    count = -(-h // stripe)
    missing = count * stripe - h
    mask = None
    if missing:
        mask = q.new_zeros(count, 1, 1, stripe * w)
        mask[-1, ..., (stripe - missing) * w :] = -100

    def windows(x: Any) -> Any:
        x = F.pad(x, (0, 0, 0, missing)) if missing else x
        return x.reshape(n, num_heads, c // num_heads, count, stripe * w).permute(0, 3, 1, 4, 2)

    y = F.scaled_dot_product_attention(windows(q), windows(k), windows(v), mask, scale=scale)
    return y.permute(0, 2, 4, 1, 3).reshape(n, c, count * stripe, w)[:, :, :h]


def _transpose(x: Any, *, axes: tuple[int, ...]) -> Any:
    return x.permute(axes)


def _unfold_patches(x: Any, *, patch: tuple[int, int]) -> Any:
    (ph, pw), (n, c, h, w) = patch, x.shape
    rows, columns = -(-h // ph), -(-w // pw)
    if (h, w) != (rows * ph, columns * pw):
        x = F.interpolate(x, (rows * ph, columns * pw), mode="bilinear", align_corners=False)
    return x.reshape(n, c, rows, ph, columns, pw).permute(0, 3, 5, 2, 4, 1).reshape(n * ph * pw, rows * columns, c)


FUNCTIONS = {
    "adaptive_avg_pool": _adaptive_avg_pool, "add": operator.add, "attention": _attention, "batch_norm": _batch_norm,
    "broadcast": _broadcast, "concat": _concat, "conv2d": _conv2d, "fold_patches": _fold_patches, "gelu": _gelu,
    "getitem": _getitem, "hardswish": F.hardswish, "layer_norm": _layer_norm, "linear": F.linear, "matmul": torch.matmul,
    "mean": _mean, "multiply": operator.mul, "pad": _pad, "relu": F.relu, "reshape": _reshape, "resize": _resize,
    "scale": _scale, "sigmoid": torch.sigmoid, "silu": F.silu, "softmax": _softmax, "stripe_attention": _stripe_attention,
    "transpose": _transpose, "unfold_patches": _unfold_patches,
}  # fmt: skip
