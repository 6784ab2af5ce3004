"""Normalisations with the statistics of training (batch norm) or of the token itself (layer norm)."""

from __future__ import annotations

import numpy as np

from refvit.errors import ShapeError
from refvit.graph.ir import Array, HasShape, Shape
from refvit.graph.trace import op


def _batch_norm_shape(
    x: HasShape, weight: HasShape, bias: HasShape, running_mean: HasShape, running_var: HasShape, *, eps: float
) -> Shape:
    if len(x.shape) < 2:
        raise ShapeError(f"batch_norm: x (n, c, ...) expected, got {x.shape}")
    for name, a in (("weight", weight), ("bias", bias), ("running_mean", running_mean), ("running_var", running_var)):
        if a.shape != x.shape[1:2]:
            raise ShapeError(f"batch_norm: x {x.shape} needs {name} {x.shape[1:2]}, got {a.shape}")
    return tuple(x.shape)


@op(shape=_batch_norm_shape)
def batch_norm(x: Array, weight: Array, bias: Array, running_mean: Array, running_var: Array, *, eps: float) -> Array:
    """(x - running_mean) / sqrt(running_var + eps) * weight + bias, as torch.nn.BatchNorm2d in eval mode.

    x (n, c, ...), the parameters (c,) each (Ioffe & Szegedy 2015, algorithm 2).
    """
    weight, bias, running_mean, running_var = (
        a.reshape(-1, *[1] * (x.ndim - 2)) for a in (weight, bias, running_mean, running_var)
    )
    return (x - running_mean) / np.sqrt(running_var + eps) * weight + bias


def _layer_norm_shape(x: HasShape, weight: HasShape, bias: HasShape, *, eps: float) -> Shape:
    for name, a in (("weight", weight), ("bias", bias)):
        if not x.shape or a.shape != x.shape[-1:]:
            raise ShapeError(f"layer_norm: x {x.shape} needs {name} {x.shape[-1:]}, got {a.shape}")
    return tuple(x.shape)


@op(shape=_layer_norm_shape)
def layer_norm(x: Array, weight: Array, bias: Array, *, eps: float) -> Array:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis, as torch.nn.LayerNorm (Ba et al. 2016).

    x (..., d), weight and bias (d,). The variance is the biased one, from the centred values.
    """
    centred = x - x.mean(-1, keepdims=True)
    var = (centred * centred).mean(-1, keepdims=True)
    return centred / np.sqrt(var + eps) * weight + bias
