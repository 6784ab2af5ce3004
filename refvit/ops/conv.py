"""The golden convolution: every window of the padded input times every kernel, nothing else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from refvit.errors import ShapeError
from refvit.graph.ir import Array, HasShape, Shape
from refvit.graph.trace import op

Pair = int | tuple[int, int]
Padding = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]

BLOCK = 1 << 24  # gathered values at a time: 64 MB in float32, however large the map


def _pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise ShapeError(f"conv2d: {name} must be one or two integers of at least {least}, got {value!r}")
    return pair[0], pair[1]


def _borders(padding: Padding) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, bottom), (left, right))"""
    if isinstance(padding, (tuple, list)) and len(padding) == 2 and not isinstance(padding[0], int):
        return _pair("padding", padding[0], 0), _pair("padding", padding[1], 0)
    rows, columns = _pair("padding", padding, 0)
    return (rows, rows), (columns, columns)


def _conv2d_shape(
    x: HasShape, weight: HasShape, bias: HasShape | None = None, *,
    stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1, groups: int = 1,
) -> Shape:  # fmt: skip
    if len(x.shape) != 4 or len(weight.shape) != 4:
        raise ShapeError(f"conv2d: x (n, c, h, w) and weight (k, c/g, r, s) expected, got {x.shape} and {weight.shape}")
    n, c, h, w = x.shape
    k, c_group, r, s = weight.shape
    if groups < 1 or k % groups or c != c_group * groups or not min(weight.shape):
        raise ShapeError(
            f"conv2d: x {x.shape} has {c} channels, weight {weight.shape} with groups={groups} wants {c_group * groups} "
            "(and groups must divide the output channels)"
        )
    if bias is not None and bias.shape != (k,):
        raise ShapeError(f"conv2d: weight {weight.shape} needs a bias ({k},), got {bias.shape}")
    (sh, sw), (dh, dw) = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    (top, bottom), (left, right) = _borders(padding)
    p = (h + top + bottom - dh * (r - 1) - 1) // sh + 1
    q = (w + left + right - dw * (s - 1) - 1) // sw + 1
    if p < 1 or q < 1:
        raise ShapeError(f"conv2d: x {x.shape} with padding {padding} is smaller than the kernel {(r, s)}, dilation {dilation}")
    return n, k, p, q


def _conv2d_macs(x: HasShape, weight: HasShape, bias: HasShape | None = None, **attrs: Any) -> int:
    n, _, p, q = _conv2d_shape(x, weight, bias, **attrs)
    return n * p * q * math.prod(weight.shape)


@op(shape=_conv2d_shape, macs=_conv2d_macs)
def conv2d(
    x: Array, weight: Array, bias: Array | None = None, *,
    stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1, groups: int = 1,
) -> Array:  # fmt: skip
    """2-D cross-correlation with zero padding, as torch.nn.Conv2d.

    x (n, c, h, w), weight (k, c/g, r, s), bias (k,) -> (n, k, p, q). stride, padding and dilation are one number or (rows,
    columns); padding may also be ((top, bottom), (left, right)).
    p = floor((h + top + bottom - dilation (r - 1) - 1) / stride) + 1, q likewise.
    """
    n, k, p, q = _conv2d_shape(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
    _, c_group, r, s = weight.shape
    (sh, sw), (dh, dw) = _pair("stride", stride, 1), _pair("dilation", dilation, 1)

    padded = np.pad(x, ((0, 0), (0, 0), *_borders(padding)))
    windows = sliding_window_view(padded, (dh * (r - 1) + 1, dw * (s - 1) + 1), axis=(2, 3))
    windows = windows[:, :, ::sh, ::sw, ::dh, ::dw]  # (n, c, p, q, r, s), a view
    y = np.empty((n, k, p, q), x.dtype)
    if c_group == 1:  # depthwise: output channel i reads input channel i // (k / g) alone
        y[:] = 0
        for i, j in np.ndindex(r, s):
            y += np.repeat(windows[..., i, j], k // groups, axis=1) * weight[:, 0, i, j].reshape(k, 1, 1)
    else:
        rows = max(1, BLOCK // max(1, n * c_group * q * r * s))
        for g in range(groups):
            channels, kernels = slice(g * c_group, (g + 1) * c_group), slice(g * (k // groups), (g + 1) * (k // groups))
            for top in range(0, p, rows):
                block = windows[:, channels, top : top + rows]
                y[:, kernels, top : top + rows] = np.einsum("ncpqrs,kcrs->nkpq", block, weight[kernels], optimize=True)
    return y if bias is None else y + bias.reshape(k, 1, 1)
