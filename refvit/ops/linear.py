"""Matrix products."""

from __future__ import annotations

import math

import numpy as np

from refvit.errors import ShapeError
from refvit.graph.ir import Array, HasShape, Shape
from refvit.graph.trace import op


def _linear_shape(x: HasShape, weight: HasShape, bias: HasShape | None = None) -> Shape:
    if len(weight.shape) != 2 or not x.shape or x.shape[-1] != weight.shape[1]:
        raise ShapeError(f"linear: x {x.shape} needs a weight (k, {x.shape[-1] if x.shape else 'd'}), got {weight.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"linear: weight {weight.shape} needs a bias {weight.shape[:1]}, got {bias.shape}")
    return (*x.shape[:-1], weight.shape[0])


@op(shape=_linear_shape, macs=lambda x, weight, bias=None: math.prod(x.shape) * weight.shape[0])
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x @ weight.T + bias, as torch.nn.Linear. x (..., d), weight (k, d), bias (k,) -> (..., k)."""
    y = x @ weight.T
    return y if bias is None else y + bias


def _matmul_shape(x: HasShape, y: HasShape) -> Shape:
    if len(x.shape) < 2 or len(y.shape) < 2 or x.shape[-1] != y.shape[-2]:
        raise ShapeError(f"matmul: (..., l, d) @ (..., d, m) expected, got {x.shape} @ {y.shape}")
    try:
        batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    except ValueError:
        raise ShapeError(f"matmul: the leading axes of {x.shape} and {y.shape} cannot be broadcast together") from None
    return (*batch, x.shape[-2], y.shape[-1])


@op(shape=_matmul_shape, macs=lambda x, y: math.prod(_matmul_shape(x, y)) * x.shape[-1])
def matmul(x: Array, y: Array) -> Array:
    """Matrix product of the last two axes, as torch.matmul. x (..., l, d), y (..., d, m) -> (..., l, m)."""
    return np.asarray(x @ y)
