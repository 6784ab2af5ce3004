"""Normalisations, one value at a time with exactly rounded sums."""

import math

import numpy as np
import pytest

from refvit.ops import batch_norm, layer_norm

EXACT = 1e-12  # of max|expected|: what float64 may differ from the loops
EPS32 = np.finfo(np.float32).eps
DTYPES = [np.float64, np.float32]


def check(got, want, dtype, bound32):
    assert got.dtype == dtype and got.shape == want.shape
    bound = EXACT * np.abs(want).max() if dtype is np.float64 else bound32
    assert np.all(np.abs(got - want) <= bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e-5, 1e-2, 1.0])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 4, 4, 4), (1, 1, 1, 1), (3, 5), (3, 3), (2, 3, 4)])
def test_batch_norm(shape, eps, dtype):
    rng = np.random.default_rng(0)
    c = shape[1]
    x, weight, bias, mean = (rng.standard_normal(s).astype(dtype) for s in (shape, c, c, c))
    var = rng.uniform(1e-3, 2, c).astype(dtype)
    want, size = np.empty(shape), np.empty(shape)
    for index in np.ndindex(shape):
        v, w, b, m, s = (float(a) for a in (x[index], *(p[index[1]] for p in (weight, bias, mean, var))))
        want[index] = (v - m) / math.sqrt(s + eps) * w + b
        size[index] = (abs(v) + abs(m)) / math.sqrt(s + eps) * abs(w) + abs(b)
    check(batch_norm(x, weight, bias, mean, var, eps=eps), want, dtype, 6 * EPS32 * size)  # six roundings


def layer_norm_loops(x, weight, bias, eps):
    y = np.empty(x.shape)
    d = x.shape[-1]
    for index in np.ndindex(x.shape[:-1]):
        row = [float(v) for v in x[index]]
        mean = math.fsum(row) / d
        var = math.fsum((v - mean) ** 2 for v in row) / d
        y[index] = [(v - mean) / math.sqrt(var + eps) * float(w) + float(b) for v, w, b in zip(row, weight, bias, strict=True)]
    return y


def row_bound(x, weight, bias, eps):
    """Mean: NumPy adds d values in 8 strands, so d / 8 + 4 roundings of max|x|; all else is relative to the spread."""
    d = x.shape[-1]
    std = np.sqrt(x.astype(np.float64).var(-1) + eps).min()
    spread = np.abs(x - x.mean(-1, keepdims=True, dtype=np.float64)).max() / std
    mean_error = (d / 8 + 4) * EPS32 * np.abs(x).max() / std
    return (2 * mean_error * (1 + spread) + (d / 8 + 10) * EPS32 * spread) * np.abs(weight).max() + EPS32 * np.abs(bias).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.5])
@pytest.mark.parametrize("shape", [(7,), (2, 5), (4, 4), (2, 3, 17), (1, 2, 2, 64)])
def test_layer_norm(shape, eps, dtype):
    rng = np.random.default_rng(1)
    x = (3 + 2 * rng.standard_normal(shape)).astype(dtype)
    weight, bias = (rng.standard_normal(shape[-1]).astype(dtype) for _ in range(2))
    bound = row_bound(x, weight, bias, eps)
    assert bound < 1e-3  # or it would allow anything
    check(layer_norm(x, weight, bias, eps=eps), layer_norm_loops(x, weight, bias, eps), dtype, bound)


def test_layer_norm_far_from_zero():
    """Mean 1e4, deviation 1: in float32 E[x^2] - mean^2 has an error of 1e8 eps = 12 in a variance of 1."""
    rng = np.random.default_rng(2)
    x = (1e4 + rng.standard_normal((4, 64))).astype(np.float32)
    weight, bias = np.ones(64, np.float32), np.full(64, 0.25, np.float32)
    want = layer_norm_loops(x, weight, bias, 1e-6)
    error = np.abs(layer_norm(x, weight, bias, eps=1e-6) - want).max()
    mean_error = (64 / 8 + 4) * EPS32 * 1e4  # 0.014; what it adds to the variance is its square
    assert error <= 1.1 * mean_error / x.astype(np.float64).std(-1).min()


def test_layer_norm_of_a_constant_row_is_the_bias():
    bias = np.random.default_rng(3).standard_normal(8)
    got = layer_norm(np.full((2, 8), 3.0), np.ones(8), bias, eps=1e-5)
    np.testing.assert_array_equal(got, np.stack([bias, bias]))
