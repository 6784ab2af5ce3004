"""Attention against equation 1 of Vaswani et al., query by query."""

import math

import numpy as np
import pytest

from refvit.ops import attention

EXACT = 1e-12  # of max|expected|: what float64 may differ from the loops


def loops(q, k, v, scale):
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    y = np.empty((*q.shape[:-1], v.shape[-1]))
    for b in np.ndindex(q.shape[:-2]):
        for i in range(q.shape[-2]):
            scores = [scale * math.fsum(q[b][i] * key) for key in k[b]]
            e = [math.exp(s - max(scores)) for s in scores]
            for c in range(v.shape[-1]):
                y[b][i, c] = math.fsum(p * row[c] for p, row in zip(e, v[b], strict=True)) / math.fsum(e)
    return y


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("q_shape", "k_shape", "v_shape", "scale"),
    [
        ((4, 3), (4, 3), (4, 3), 3**-0.5),
        ((2, 5, 4), (2, 7, 4), (2, 7, 6), 0.5),
        ((2, 3, 5, 4), (2, 3, 1, 4), (2, 3, 1, 2), 1.0),
        ((2, 2, 9, 1), (2, 2, 6, 1), (2, 2, 6, 3), 2.5),
    ],
)
def test_attention(q_shape, k_shape, v_shape, scale, dtype):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(s).astype(dtype) for s in (q_shape, k_shape, v_shape))
    want = loops(q, k, v, scale)
    got = attention(q, k, v, scale=scale)
    assert got.dtype == dtype and got.shape == want.shape
    if dtype is np.float64:
        bound = EXACT * np.abs(want).max()
    else:  # scores: d + 2 roundings of sum |q k scale|, twice that as relative error of exp; then m + 4 of each weight
        d, m, eps = q_shape[-1], k_shape[-2], np.finfo(np.float32).eps
        scores = (np.abs(q) @ np.abs(k).swapaxes(-1, -2)).max() * scale
        bound = (2 * (d + 2) * scores + 2 * (m + 4)) * eps * np.abs(v).max()
    assert np.abs(got - want).max() <= bound


def test_large_scores_pick_one_value():
    rng = np.random.default_rng(1)
    k = np.eye(5)
    v = rng.standard_normal((5, 3))
    got = attention(1e4 * k[[3, 0]], k, v, scale=1.0)
    np.testing.assert_array_equal(got, v[[3, 0]])
