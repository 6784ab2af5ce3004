"""Where a value lies: views cost nothing, because an axis may be made of several strides.

A value of the graph has the axes of the definition, (n, c, h, w) or (n, l, d), while its memory has whatever order suits the
kernels: maps are channels-last. Transposes, slices, reshapes, unfolding to patches and folding back then only change how the
axes read the memory, as long as every axis stays a nest of (extent, stride) factors. MobileViT's l = rows x columns is two.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from refvit.backends.numba.program import Address, Buffer
from refvit.graph.ir import Shape

Factor = tuple[int, int]  # extent, stride in values
Axis = tuple[Factor, ...]  # outermost first; factors of extent 1 are left out


@dataclass(frozen=True)
class Place:
    """Memory of a value: `buffer`, first value, and how each axis runs through it."""

    buffer: Buffer
    offset: int
    axes: tuple[Axis, ...]

    @property
    def shape(self) -> Shape:
        return tuple(extent(axis) for axis in self.axes)

    @property
    def address(self) -> Address:
        """Of the first value."""
        return Address(self.buffer, 4 * self.offset)

    def stride(self, axis: int) -> int:
        """Of an axis of one factor; 0 where the axis has one element. ValueError if there are more factors."""
        factors = self.axes[axis]
        if len(factors) > 1:
            raise ValueError(f"axis {axis} of {self} has no single stride")
        return factors[0][1] if factors else 0

    def contiguous(self, axis: int = -1) -> bool:
        """Whether the values along an axis lie next to one another."""
        factors = self.axes[axis]
        return not factors or (len(factors) == 1 and factors[0][1] == 1)

    @property
    def channels_last(self) -> bool:
        """A map (n, c, h, w) with one stride an axis and each pixel's channels next to one another."""
        return len(self.axes) == 4 and all(len(a) <= 1 for a in self.axes) and self.contiguous(1)

    def transpose(self, order: Sequence[int]) -> Place:
        """The axes in another order."""
        return replace(self, axes=tuple(self.axes[i] for i in order))

    def reshape(self, shape: Shape) -> Place | None:
        """The same values in row-major order under another shape, or None if that needs other memory."""
        factors = list(merge([f for axis in self.axes for f in axis]))
        axes: list[Axis] = []
        for wanted in shape:
            axis: list[Factor] = []
            while wanted > 1:
                if not factors:
                    return None
                size, step = factors.pop(0)
                if wanted % size == 0:
                    axis.append((size, step))
                    wanted //= size
                elif size % wanted == 0:
                    axis.append((wanted, step * (size // wanted)))
                    factors.insert(0, (size // wanted, step))
                    wanted = 1
                else:
                    return None
            axes.append(merge(axis))
        return replace(self, axes=tuple(axes))

    def slice(self, axis: int, start: int, count: int, step: int = 1) -> Place | None:
        """`count` elements from `start` on along an axis; None if they cut through its factors."""
        factors = self.axes[axis]
        if count == extent(factors) and step == 1 and start == 0:
            return self
        if len(factors) > 1:
            return None
        stride = factors[0][1] if factors else 0
        axes = list(self.axes)
        axes[axis] = ((count, stride * step),) if count > 1 else ()
        return replace(self, offset=self.offset + start * stride, axes=tuple(axes))

    def squeeze(self, axis: int) -> Place:
        """Without an axis of extent 1."""
        return replace(self, axes=self.axes[:axis] + self.axes[axis + 1 :])

    def expand(self, axis: int) -> Place:
        """With a new axis of extent 1 before `axis`."""
        return replace(self, axes=(*self.axes[:axis], (), *self.axes[axis:]))

    def broadcast(self, shape: Shape) -> Place:
        """Axes of extent 1 repeated, with stride 0; axes that are missing in front are of extent 1."""
        pairs = zip([()] * (len(shape) - len(self.axes)) + list(self.axes), shape, strict=True)
        return replace(self, axes=tuple(axis if extent(axis) == size else ((size, 0),) for axis, size in pairs))

    def rows(self) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
        """For each axis but the last the number and extents of its factors: what a value must share to be added row by row."""
        return tuple(len(a) for a in self.axes[:-1]), tuple(tuple(e for e, _ in a) for a in self.axes[:-1])


def extent(axis: Axis) -> int:
    return math.prod(size for size, _ in axis)


def merge(axis: Sequence[Factor]) -> Axis:
    """Neighbouring factors that one stride covers as one."""
    merged: list[Factor] = []
    for size, step in axis:
        if size == 1:
            continue
        if merged and merged[-1][1] == size * step:
            merged[-1] = (merged[-1][0] * size, step)
        else:
            merged.append((size, step))
    return tuple(merged)


def dense(buffer: Buffer, shape: Shape, order: Sequence[int] | None = None, offset: int = 0) -> Place:
    """All of `shape` without gaps, the axes nested in memory in `order`, outermost first (default: row-major)."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(order if order is not None else range(len(shape))):
        strides[axis], step = step, step * shape[axis]
    return Place(buffer, offset, tuple(((size, step),) if size > 1 else () for size, step in zip(shape, strides, strict=True)))


def matrix(axes: Sequence[Axis]) -> tuple[int, int] | None:
    """(rows, stride) of these axes taken together as the rows of a matrix in the order of memory, or None if they are none."""
    factors = sorted((f for axis in axes for f in axis), key=lambda f: f[1])
    if not factors:
        return 1, 0
    rows, step = 1, factors[0][1]
    for size, stride in factors:
        if stride != rows * step or not stride:
            return None
        rows *= size
    return rows, step


def same_rows(x: Sequence[Axis], x_step: int, y: Sequence[Axis], y_step: int) -> bool:
    """Whether two matrices (stride of a row each) have their rows in the same order."""
    cut = [split_alike(a, b) for a, b in zip(x, y, strict=True)]
    if any(c is None for c in cut):
        return False
    pairs = itertools.chain.from_iterable(c for c in cut if c is not None)
    return all(a * y_step == b * x_step for a, b in pairs)


def split_alike(x: Axis, y: Axis) -> list[tuple[int, int]] | None:
    """Strides of x and y, factor by factor, after cutting both into the same extents; None if they do not nest."""
    left, right, pairs = list(x), list(y), []
    while left and right:
        (m, a), (n, b) = left.pop(), right.pop()  # innermost first
        size = min(m, n)
        if m % size or n % size:
            return None
        pairs.append((a, b))
        if m > size:
            left.append((m // size, a * size))
        if n > size:
            right.append((n // size, b * size))
    return None if left or right else pairs
