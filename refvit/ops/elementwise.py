"""Sums and products with NumPy's broadcasting; model code writes them as operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refvit.errors import ShapeError
from refvit.graph.ir import Array, HasShape, Shape
from refvit.graph.trace import op


def _broadcast(name: str) -> Callable[[HasShape, HasShape], Shape]:
    def shape(x: HasShape, y: HasShape) -> Shape:
        try:
            return np.broadcast_shapes(x.shape, y.shape)
        except ValueError:
            raise ShapeError(f"{name}: shapes {x.shape} and {y.shape} cannot be broadcast together") from None

    return shape


@op(shape=_broadcast("add"))
def add(x: Array, y: Array) -> Array:
    """x + y; the shapes broadcast."""
    return x + y


@op(shape=_broadcast("multiply"))
def multiply(x: Array, y: Array) -> Array:
    """x * y; the shapes broadcast."""
    return x * y


@op(shape=lambda x, *, factor: tuple(x.shape))
def scale(x: Array, *, factor: float) -> Array:
    """x times a Python number, which takes the dtype of x. Any shape."""
    return x * factor
