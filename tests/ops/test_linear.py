"""Matrix products, one exactly rounded sum per element."""

import math

import numpy as np
import pytest

from refvit.ops import linear, matmul

EXACT = 1e-12  # of max|expected|: what float64 may differ from the loops


def check(got, want, size, terms):
    """size: the same sum of absolute values; a sum of `terms` float32 products is off by at most terms * eps of it."""
    assert got.shape == want.shape
    bound = EXACT * np.abs(want).max() if got.dtype == np.float64 else terms * np.finfo(np.float32).eps * size
    assert np.all(np.abs(got - want) <= bound)


def linear_loops(x, weight, bias):
    y = np.empty((*x.shape[:-1], len(weight)))
    for *index, o in np.ndindex(y.shape):
        products = [float(a) * float(b) for a, b in zip(x[tuple(index)], weight[o], strict=True)]
        y[(*index, o)] = math.fsum(products + ([] if bias is None else [float(bias[o])]))
    return y


def matmul_loops(x, y):
    batch = tuple(np.broadcast_shapes(x.shape[:-2], y.shape[:-2]))
    x, y = np.broadcast_to(x, batch + x.shape[-2:]), np.broadcast_to(y, batch + y.shape[-2:])
    z = np.empty((*batch, x.shape[-2], y.shape[-1]))
    for *b, i, j in np.ndindex(z.shape):
        row, column = x[(*b, i)], y[tuple(b)][:, j]
        z[(*b, i, j)] = math.fsum(float(u) * float(v) for u, v in zip(row, column, strict=True))
    return z


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("shape", "k"), [((6,), 4), ((1, 1), 1), ((3, 17), 5), ((2, 5, 3), 7), ((2, 1, 3, 4), 4)])
def test_linear(shape, k, with_bias, dtype):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal(shape).astype(dtype), rng.standard_normal((k, shape[-1])).astype(dtype)
    bias = rng.standard_normal(k).astype(dtype) if with_bias else None
    got = linear(x, weight, bias)
    assert got.dtype == dtype
    size = linear_loops(np.abs(x), np.abs(weight), None if bias is None else np.abs(bias))
    check(got, linear_loops(x, weight, bias), size, shape[-1] + 1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("x_shape", "y_shape"),
    [
        ((3, 4), (4, 5)),
        ((1, 1), (1, 1)),
        ((2, 3, 4), (2, 4, 5)),
        ((2, 3, 4), (4, 2)),
        ((3, 4), (2, 4, 5)),
        ((2, 1, 3, 17), (1, 3, 17, 2)),
    ],
)
def test_matmul(x_shape, y_shape, dtype):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal(x_shape).astype(dtype), rng.standard_normal(y_shape).astype(dtype)
    got = matmul(x, y)
    assert got.dtype == dtype
    check(got, matmul_loops(x, y), matmul_loops(np.abs(x), np.abs(y)), x_shape[-1])
