"""Ops that move values: every element is looked up by its index, and equality is exact."""

import itertools
import math

import numpy as np
import pytest

from refvit.errors import ShapeError
from refvit.ops import concat, getitem, pad, reshape, transpose

pytestmark = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def draw(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def same(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("shape", "target", "full"),
    [
        ((2, 3, 4), (4, 6), (4, 6)),
        ((2, 3, 4), (-1,), (24,)),
        ((2, 3, 4), (3, -1, 2), (3, 4, 2)),
        ((2, 3, 4), (2, 3, 2, 2), (2, 3, 2, 2)),
        ((1, 1), (), ()),
        ((6,), (1, 6, -1), (1, 6, 1)),
    ],
)
def test_reshape(shape, target, full, dtype):
    x = draw(shape, dtype)
    want = np.empty(full, dtype)
    for index in np.ndindex(full):  # row-major: the place in the flat order is the same on both sides
        place = sum(i * math.prod(full[a + 1 :]) for a, i in enumerate(index))
        want[index] = x[tuple(place // math.prod(shape[a + 1 :]) % s for a, s in enumerate(shape))]
    same(reshape(x, shape=target), want)


@pytest.mark.parametrize("target", [(-1, -2), (-2, -2, -1), (-4,), (0, -1), (-1, -1), (5, -1), (3,)])
def test_reshape_refuses(target, dtype):
    with pytest.raises(ShapeError, match="reshape"):
        reshape(draw((2, 2), dtype), shape=target)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_transpose(axes, dtype):
    x = draw((2, 3, 4), dtype)
    want = np.empty([x.shape[a] for a in axes], dtype)
    for index in np.ndindex(x.shape):
        want[tuple(index[a] for a in axes)] = x[index]
    same(transpose(x, axes=axes), want)


# index, then for every axis of x the positions read (an int drops the axis), then the result's shape
GETITEM = [
    (1, (1, range(5), range(4)), (5, 4)),
    (-1, (2, range(5), range(4)), (5, 4)),
    (slice(1, None), (range(1, 3), range(5), range(4)), (2, 5, 4)),
    ((slice(None), slice(None, None, -2)), (range(3), [4, 2, 0], range(4)), (3, 3, 4)),
    ((Ellipsis, slice(1, 3)), (range(3), range(5), [1, 2]), (3, 5, 2)),
    ((slice(None), None, 2, Ellipsis), (range(3), 2, range(4)), (3, 1, 4)),
    ((0, -1, 3), (0, 4, 3), ()),
    ((slice(2, 2),), (range(0), range(5), range(4)), (0, 5, 4)),
]


@pytest.mark.parametrize(("index", "read", "shape"), GETITEM, ids=[str(i) for i, _, _ in GETITEM])
def test_getitem(index, read, shape, dtype):
    x = draw((3, 5, 4), dtype)
    places = itertools.product(*[[r] if isinstance(r, int) else r for r in read])
    same(getitem(x, index=index), np.array([x[p] for p in places], dtype).reshape(shape))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("widths", [(2,), (1, 3), (2, 1, 4)])
def test_concat(axis, widths, dtype):
    xs = []
    for seed, width in enumerate(widths):
        shape = [2, 3, 4]
        shape[axis] = width
        xs.append(draw(shape, dtype, seed))
    shape[axis] = sum(widths)
    want, start = np.empty(shape, dtype), 0
    for x in xs:
        for index in np.ndindex(x.shape):
            target = list(index)
            target[axis] += start
            want[tuple(target)] = x[index]
        start += x.shape[axis]
    same(concat(*xs, axis=axis), want)


@pytest.mark.parametrize("value", [None, 1.5, -np.inf])
@pytest.mark.parametrize("widths", [((0, 0), (0, 0), (0, 0)), ((0, 0), (1, 2), (3, 0)), ((2, 1), (0, 1), (0, 3))])
def test_pad(widths, value, dtype):
    x = draw((2, 3, 4), dtype)
    want = np.full([s + a + b for s, (a, b) in zip(x.shape, widths, strict=True)], value or 0.0, dtype)
    for index in np.ndindex(x.shape):
        want[tuple(i + a for i, (a, _) in zip(index, widths, strict=True))] = x[index]
    same(pad(x, widths=widths) if value is None else pad(x, widths=widths, value=value), want)
