"""Mean over axes, with exactly rounded sums."""

import math

import numpy as np
import pytest

from refvit.ops import adaptive_avg_pool, mean

EXACT = 1e-12  # of max|expected|: what float64 may differ from the loops


def loops(x, axes, keepdims):
    axes = {a % x.ndim for a in axes}
    groups = {}
    for index in np.ndindex(x.shape):
        key = tuple(0 if a in axes else i for a, i in enumerate(index))
        groups.setdefault(key, []).append(float(x[index]))
    y = np.empty([1 if a in axes else s for a, s in enumerate(x.shape)])
    for key, values in groups.items():
        y[key] = math.fsum(values) / len(values)
    return y if keepdims else y.reshape([s for a, s in enumerate(x.shape) if a not in axes])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axes", [(2, 3), (-2, -1), (3, 2), (0,), (1,), (-1,), (1, 3), (0, 1, 2, 3)])
def test_mean(axes, keepdims, dtype):
    x = (1 + np.random.default_rng(0).standard_normal((2, 3, 5, 4))).astype(dtype)
    want = loops(x, axes, keepdims)
    got = mean(x, axes=axes, keepdims=keepdims)
    assert isinstance(got, np.ndarray) and got.dtype == dtype and got.shape == want.shape
    count = math.prod(x.shape[a] for a in axes)
    # `count` roundings of partial sums, each at most count * max|x|, divided by count; one for the division
    bound = EXACT * np.abs(want).max() if dtype is np.float64 else (count + 1) * np.finfo(np.float32).eps * np.abs(x).max()
    assert np.all(np.abs(got - want) <= bound)
    assert bound < 1e-4


def test_keepdims_is_off_by_default():
    assert mean(np.ones((2, 3, 4, 5)), axes=(2, 3)).shape == (2, 3)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2), (6, 6), (5, 7), (9, 10)])
def test_adaptive_avg_pool_equals_loops(size):
    x = np.random.default_rng(5).standard_normal((2, 3, 5, 7))
    y = adaptive_avg_pool(x, size=size)
    for i, j in np.ndindex(*size):
        rows = [r for r in range(5) if math.floor(i * 5 / size[0]) <= r < math.ceil((i + 1) * 5 / size[0])]
        columns = [c for c in range(7) if math.floor(j * 7 / size[1]) <= c < math.ceil((j + 1) * 7 / size[1])]
        expected = sum(x[:, :, r, c] for r in rows for c in columns) / (len(rows) * len(columns))
        np.testing.assert_allclose(y[:, :, i, j], expected, atol=1e-14)
