"""Reductions over axes."""

from __future__ import annotations

import numpy as np

from refvit.errors import ShapeError
from refvit.graph.ir import Array, HasShape, Shape
from refvit.graph.trace import op


def _mean_shape(x: HasShape, *, axes: tuple[int, ...], keepdims: bool = False) -> Shape:
    rank = len(x.shape)
    if not axes or any(not -rank <= a < rank for a in axes) or len({a % rank for a in axes}) < len(axes):
        raise ShapeError(f"mean: axes {axes} of an array with {rank} axes")
    reduced = {a % rank for a in axes}
    if any(x.shape[a] == 0 for a in reduced):
        raise ShapeError(f"mean: nothing to average over axes {axes} of {x.shape}")
    return tuple(1 if i in reduced else s for i, s in enumerate(x.shape) if keepdims or i not in reduced)


@op(shape=_mean_shape)
def mean(x: Array, *, axes: tuple[int, ...], keepdims: bool = False) -> Array:
    """Arithmetic mean over `axes`; over (2, 3) of a map it is torch.nn.AdaptiveAvgPool2d(1). Any shape."""
    return np.asarray(x.mean(axes, keepdims=keepdims))
