"""Ops that move values and compute none: reshape, transpose, slice, concatenate, pad."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refvit.errors import ShapeError
from refvit.graph.ir import Array, HasShape, Shape
from refvit.graph.trace import op


def _reshape_shape(x: HasShape, *, shape: Shape) -> Shape:
    shape = tuple(shape)
    total, known = math.prod(x.shape), math.prod(s for s in shape if s != -1)
    if shape.count(-1) == 1 and min(shape) == -1 and known > 0 and total % known == 0:
        return tuple(total // known if s == -1 else s for s in shape)
    if known != total or min(shape, default=0) < 0:
        raise ShapeError(f"reshape: {x.shape} with {total} elements does not fit {shape}")
    return shape


@op(shape=_reshape_shape)
def reshape(x: Array, *, shape: Shape) -> Array:
    """The same values, in row-major order, under another shape; one -1 is filled in."""
    return x.reshape(shape)


def _transpose_shape(x: HasShape, *, axes: tuple[int, ...]) -> Shape:
    if sorted(axes) != list(range(len(x.shape))):
        raise ShapeError(f"transpose: axes {axes} are no permutation of the {len(x.shape)} axes of {x.shape}")
    return tuple(x.shape[a] for a in axes)


@op(shape=_transpose_shape)
def transpose(x: Array, *, axes: tuple[int, ...]) -> Array:
    """The axes in another order, as torch.permute."""
    return x.transpose(axes)


def _getitem_shape(x: HasShape, *, index: Any) -> Shape:
    parts = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(i, (int, slice)) or i is None or i is Ellipsis for i in parts):
        raise ShapeError(f"getitem: integers, slices, None and ... expected, got {index!r}")
    try:
        return np.broadcast_to(np.float32(0), x.shape)[index].shape
    except (IndexError, TypeError, ValueError) as error:
        raise ShapeError(f"getitem: {index!r} does not fit {x.shape}: {error}") from None


@op(shape=_getitem_shape)
def getitem(x: Array, *, index: Any) -> Array:
    """x[index] for integers, slices, None and Ellipsis."""
    return np.asarray(x[index])


def _concat_shape(*xs: HasShape, axis: int) -> Shape:
    if not xs:
        raise ShapeError("concat: nothing to concatenate")
    first = xs[0].shape
    rank = len(first)
    if not -rank <= axis < rank:
        raise ShapeError(f"concat: axis {axis} of arrays with {rank} axes")
    axis %= rank
    for x in xs[1:]:
        if len(x.shape) != rank or any(a != b for i, (a, b) in enumerate(zip(first, x.shape, strict=True)) if i != axis):
            raise ShapeError(f"concat: shapes may differ on axis {axis} only, got {', '.join(str(x.shape) for x in xs)}")
    return (*first[:axis], sum(x.shape[axis] for x in xs), *first[axis + 1 :])


@op(shape=_concat_shape)
def concat(*xs: Array, axis: int) -> Array:
    """The arrays one after another along `axis`, as torch.cat."""
    return np.concatenate(xs, axis)


def _pad_shape(x: HasShape, *, widths: tuple[tuple[int, int], ...], value: float = 0.0) -> Shape:
    if not x.shape or len(widths) != len(x.shape) or any(len(w) != 2 or min(w) < 0 for w in widths):
        raise ShapeError(f"pad: {x.shape} needs {len(x.shape)} pairs (before, after) of at least 0, got {widths}")
    return tuple(s + a + b for s, (a, b) in zip(x.shape, widths, strict=True))


@op(shape=_pad_shape)
def pad(x: Array, *, widths: tuple[tuple[int, int], ...], value: float = 0.0) -> Array:
    """A border of `value`; `widths` holds (before, after) for every axis, in the order of the axes as numpy.pad has it."""
    return np.pad(x, widths, constant_values=value)


def _broadcast_shape(x: HasShape, *, shape: Shape) -> Shape:
    shape = tuple(shape)
    if len(x.shape) != len(shape) or any(a not in (1, b) for a, b in zip(x.shape, shape, strict=True)):
        raise ShapeError(f"broadcast: axes of length 1 can be repeated, {x.shape} cannot become {shape}")
    return shape


@op(shape=_broadcast_shape)
def broadcast(x: Array, *, shape: Shape) -> Array:
    """Axes of length 1 repeated to `shape`, which has as many axes, as torch.Tensor.expand."""
    return np.broadcast_to(x, shape)
