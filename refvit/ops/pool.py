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


def _adaptive_shape(x: HasShape, *, size: tuple[int, int]) -> Shape:
    if len(x.shape) != 4 or len(size) != 2 or min(size) < 1 or min(x.shape[2:]) < 1:
        raise ShapeError(f"adaptive_avg_pool: a map (n, c, h, w) and a size of at least 1x1 expected, got {x.shape}, {size}")
    return (*x.shape[:2], *size)


@op(shape=_adaptive_shape)
def adaptive_avg_pool(x: Array, *, size: tuple[int, int]) -> Array:
    """x (n, c, h, w) -> (n, c, *size), as torch.nn.AdaptiveAvgPool2d.

    Output row i is the mean of the rows from floor(i h / size) to ceil((i + 1) h / size), which may overlap; columns likewise.
    """
    n, c, h, w = x.shape
    y = np.empty((n, c, *size), x.dtype)
    for i, j in np.ndindex(*size):
        rows = slice(i * h // size[0], -(-(i + 1) * h // size[0]))
        columns = slice(j * w // size[1], -(-(j + 1) * w // size[1]))
        y[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    return y
