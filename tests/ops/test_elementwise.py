"""Sums, products and scaling with broadcasting, index by index."""

import numpy as np
import pytest

from refvit.ops import add, multiply, scale

SHAPES = [
    ((2, 3, 4), (2, 3, 4)),
    ((2, 3, 4), (4,)),
    ((2, 3, 4), (3, 1)),
    ((1, 3, 1), (2, 1, 4)),
    ((5,), (2, 1)),
    ((1, 1), (3, 4, 1, 2)),
]


def at(a, index):
    """The element that broadcasting reads: trailing axes line up, an axis of 1 is repeated."""
    tail = index[len(index) - a.ndim :]
    return a[tuple(0 if size == 1 else i for i, size in zip(tail, a.shape, strict=True))]


def shape_of(x, y):
    rank = max(x.ndim, y.ndim)
    return tuple(max(a, b) for a, b in zip((1,) * (rank - x.ndim) + x.shape, (1,) * (rank - y.ndim) + y.shape, strict=True))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("x_shape", "y_shape"), SHAPES)
@pytest.mark.parametrize(("op", "plain"), [(add, lambda a, b: a + b), (multiply, lambda a, b: a * b)], ids=["add", "multiply"])
def test_binary(op, plain, x_shape, y_shape, dtype):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(x_shape).astype(dtype), rng.standard_normal(y_shape).astype(dtype)
    want = np.empty(shape_of(x, y), dtype)
    for index in np.ndindex(want.shape):
        want[index] = plain(float(at(x, index)), float(at(y, index)))  # exact or rounded once, so equal to the bit
    got = op(x, y)
    assert got.dtype == dtype and got.shape == want.shape
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("factor", [3, -0.5, 0.1, 1e-3])
def test_scale(factor, dtype):
    x = np.random.default_rng(1).standard_normal((3, 5)).astype(dtype)
    want = np.array([[float(v) * factor for v in row] for row in x])
    got = scale(x, factor=factor)
    assert got.dtype == dtype
    bound = 2 * np.finfo(dtype).eps * np.abs(want)  # the factor and the product are each rounded to the dtype
    assert np.all(np.abs(got - want) <= bound)
