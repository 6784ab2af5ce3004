"""Linear layers, products of two values, attention: everything that works on rows of tokens."""

from __future__ import annotations

import math

from refvit.backends.numba import attention, stripes
from refvit.backends.numba import shortcut as shortcuts
from refvit.backends.numba.conv import linear, panels
from refvit.backends.numba.convolutions import packed_once
from refvit.backends.numba.copy import copy
from refvit.backends.numba.cpu import target
from refvit.backends.numba.layout import Place, matrix, same_rows
from refvit.backends.numba.lower import Lowering
from refvit.backends.numba.program import Buffer
from refvit.backends.numba.tail import Tail, finish, in_tile
from refvit.errors import UnsupportedError
from refvit.graph.ir import Node


def linear_layer(low: Lowering, node: Node) -> None:
    """A linear layer: rows in whatever order they lie."""
    tail = Tail(node)
    if node.name in low.merged:  # the shortcut has the other term in it
        tail.residual, tail.rest = low.merged[node.name], ()
    name, weight, bias = tail.operand(0), tail.operand(1), tail.operand(2)
    assert name is not None and weight is not None
    x = matrix_of(low, name)
    k = node.shape[-1]
    wanted = low.targets.get(node.name)
    if wanted is not None and not tail.rest and _alike(x, wanted):
        out = wanted
    else:
        out = low.like(x, k)
    residual = None if tail.residual is None else low.place(tail.residual)
    if residual is not None and (residual.shape != node.shape or not _alike(residual, out)):
        own = low.like(x, k)
        low.emit(copy(residual.broadcast(node.shape), own))
        residual = own
    packed = packed_once(low, tail, weight, bias, "rows", lambda a: a.reshape(k, 1, -1))
    low.emit(linear(x, packed, out, residual=residual, **in_tile(tail)))
    if tail.rest:
        value, out = out, low.like(x, k)
        finish(low, node, tail, value, out)
    if wanted is not None and out is not wanted:
        low.emit(copy(out, wanted))
        out = wanted
    low.places[node.name] = out


def matrix_of(low: Lowering, name: str) -> Place:
    """A value by its name, as `rows_of`."""
    return rows_of(low, low.place(name))


def rows_of(low: Lowering, x: Place) -> Place:
    """A value whose rows are a matrix in memory, copied if they are not."""
    return x if x.contiguous() and matrix(x.axes[:-1]) is not None else low.copied(x, tuple(range(len(x.shape))))


def _alike(x: Place, y: Place) -> bool:
    """Whether two values have their rows in the same order of memory."""
    a, b = matrix(x.axes[:-1]), matrix(y.axes[:-1])
    one = x.contiguous() and y.contiguous()
    return a is not None and b is not None and one and same_rows(x.axes[:-1], a[1] or 1, y.axes[:-1], b[1] or 1)


def shortcut(low: Lowering, node: Node) -> None:
    """HRViT's diversity shortcut, a token at a time."""
    found = low.shortcuts[node.name]
    x = matrix_of(low, found.x)
    low.places[node.name] = out = low.like(x, node.shape[-1])
    right, right_bias, left, left_bias = (low.constants.array(name) for name in (*found.right, *found.left))
    low.emit(shortcuts.shortcut(x, right, right_bias, left, left_bias, out, [x] if found.plus else []))


def matmul(low: Lowering, node: Node) -> None:
    """A product of two computed matrices, (..., l, d) and (..., d, m): the second is brought into panels on the way."""
    *lead, _, m = node.shape
    left, right = (low.place(name) for name in node.sources)
    d, count = left.shape[-1], math.prod(lead)
    out = low.new(node.shape, tuple(range(len(node.shape))))
    operands = [place.broadcast((*lead, *place.shape[-2:])) for place in (left, right)]
    xs, ys, outs = (_flat(low, place, count) for place in (*operands, out))
    for x, y, to in zip(xs, ys, outs, strict=True):
        if not _alike(x, to):
            x = low.copied(x, (0, 1))
        shape = panels(m, 1, d)
        for i in range(shape.panels):
            start, width = i * shape.vectors * target().lanes, (shape.vectors if i < shape.panels - 1 else shape.last_vectors)
            columns, lanes = min(m - start, width * target().lanes), width * target().lanes
            axes = (((d, lanes),) if d > 1 else (), ((columns, 1),) if columns > 1 else ())
            part = y.slice(1, start, columns)
            assert part is not None
            low.emit(copy(part, Place(shape.weight, start * d, axes)))
        low.emit(linear(x, shape, to))
    low.places[node.name] = out


def _flat(low: Lowering, place: Place, count: int) -> list[Place]:
    """The matrices of a stack, one by one."""
    shape = (count, *place.shape[-2:])
    stack = place.reshape(shape)
    if stack is None or len(stack.axes[0]) > 1:
        stack = low.copied(place, tuple(range(len(place.shape)))).reshape(shape)
        assert stack is not None
    parts = [stack.slice(0, i, 1) for i in range(count)]
    return [p.squeeze(0) for p in parts if p is not None]  # None: not of a dense stack


def attend(low: Lowering, node: Node) -> None:
    """Scaled dot-product attention; the result's tokens lie in the order of the queries', heads side by side in each."""
    q, k, v = (low.place(i) for i in node.sources)
    out = _heads(low, q, node)
    try:
        made = attention.attention(q, k, v, out, node.attrs["scale"])
    except UnsupportedError:  # a way to read memory that no model has
        q, k, v = (low.copied(x, tuple(range(len(x.shape)))) for x in (q, k, v))
        out = _heads(low, q, node)
        made = attention.attention(q, k, v, out, node.attrs["scale"])
    low.places[node.name] = out
    low.emit(made)


def _heads(low: Lowering, q: Place, node: Node) -> Place:
    """Memory for (..., heads, l, d) that reads as rows of heads * d values."""
    if len(node.shape) < 3:
        return low.new(node.shape)
    *lead, heads, _, d = node.shape
    outer = [*q.axes[: len(lead)], q.axes[-2]]
    found = matrix(outer)
    if found is None:
        return low.new(node.shape, (*range(len(lead)), len(lead) + 1, len(lead), len(lead) + 2))
    count, step = found
    axes = [tuple((e, s // step * heads * d) for e, s in axis) for axis in outer]
    head, inner = (((size, stride),) if size > 1 else () for size, stride in ((heads, d), (d, 1)))
    return Place(Buffer(count * heads * d), 0, (*axes[:-1], head, axes[-1], inner))


def stripe(low: Lowering, node: Node) -> None:
    """Window attention; the result's pixels lie in the order of the queries'."""
    q, k, v = (low.as_map(low.place(i)) for i in node.sources)
    out = low.targets.get(node.name)
    if out is None or not out.channels_last:
        upright = not q.axes[2] or not q.axes[3] or q.stride(2) >= q.stride(3)
        out = low.new(node.shape, (0, 2, 3, 1) if upright else (0, 3, 2, 1))
    low.places[node.name] = out
    low.emit(stripes.stripe_attention(q, k, v, out, **node.attrs))
