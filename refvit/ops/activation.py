"""Activations, one value at a time, and softmax along an axis."""

from __future__ import annotations

import math

import numpy as np

from refvit.errors import ConfigError, ShapeError
from refvit.graph.ir import Array, HasShape, Shape
from refvit.graph.trace import op


def _same(x: HasShape) -> Shape:
    return tuple(x.shape)


@op(shape=_same)
def relu(x: Array) -> Array:
    """max(x, 0), as torch.nn.ReLU; NaN stays NaN. Any shape."""
    return np.maximum(x, 0)


@op(shape=_same)
def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), as torch.nn.Sigmoid. Any shape."""
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right limit, 0
        return 1 / (1 + np.exp(-x))


@op(shape=_same)
def silu(x: Array) -> Array:
    """x * sigmoid(x), as torch.nn.SiLU, also called swish. Any shape."""
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


@op(shape=_same)
def hardswish(x: Array) -> Array:
    """x * min(max(x + 3, 0), 6) / 6, as torch.nn.Hardswish (Howard et al. 2019, section 5.2). Any shape."""
    with np.errstate(invalid="ignore"):  # -inf * 0 is NaN, as in torch
        return x * np.clip(x + 3, 0, 6) / 6


def _gelu_shape(x: HasShape, *, approximate: str) -> Shape:
    if approximate not in ("none", "tanh"):
        raise ConfigError(f'gelu: approximate is "none" or "tanh", got {approximate!r}')
    return tuple(x.shape)


@op(shape=_gelu_shape)
def gelu(x: Array, *, approximate: str) -> Array:
    """As torch.nn.GELU(approximate=...) (Hendrycks & Gimpel 2016). Any shape.

    "none": x * Phi(x), Phi the Gaussian distribution function; it does not cancel where 1 + erf(x / sqrt 2) loses digits.
    "tanh": 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))). The two differ by up to 4.7e-4.
    """
    if approximate == "none":
        from scipy.special import ndtr  # 0.1 s that nothing else needs

        return x * ndtr(x).astype(x.dtype)
    with np.errstate(over="ignore"):  # x^3 = inf gives the right limits of tanh
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))


def _softmax_shape(x: HasShape, *, axis: int) -> Shape:
    rank = len(x.shape)
    if not -rank <= axis < rank:
        raise ShapeError(f"softmax: axis {axis} of an array with {rank} axes")
    if x.shape[axis] == 0:
        raise ShapeError(f"softmax: axis {axis} of {x.shape} has no values")
    return tuple(x.shape)


@op(shape=_softmax_shape)
def softmax(x: Array, *, axis: int) -> Array:
    """exp(x - max) / sum(exp(x - max)) along `axis`, as torch.softmax. Any shape."""
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)
