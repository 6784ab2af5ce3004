"""Means against the definition in float64."""

import numpy as np
import pytest
from helpers.kernels import Memory, run

from refvit import ops
from refvit.backends.numba.copy import LayoutError
from refvit.backends.numba.layout import Place, dense
from refvit.backends.numba.pool import adaptive_avg_pool, mean
from refvit.backends.numba.program import Buffer

EPS = np.finfo(np.float32).eps


def nhwc(n, c, h, w, gap=0):
    ld = c + gap
    axes = tuple(((e, s),) if e > 1 else () for e, s in ((n, h * w * ld), (c, 1), (h, w * ld), (w, ld)))
    return Place(Buffer(n * h * w * ld), 0, axes)


def close(got, golden, reference):
    assert np.isfinite(got).all() and got.shape == golden.shape
    assert np.abs(got - golden).max() <= 4 * np.abs(reference - golden).max() + 4 * EPS * np.abs(golden).max()


def check_mean(x, place, axes, keepdims):
    golden = ops.mean(x.astype(np.float64), axes=axes, keepdims=keepdims)
    out = dense(Buffer(golden.size), golden.shape)
    memory = Memory()
    memory.fill(place, x)
    run(mean(place, out, axes=axes, keepdims=keepdims), memory)
    close(memory.view(out), golden, ops.mean(x, axes=axes, keepdims=keepdims))


@pytest.mark.parametrize("c", [1, 3, 17, 64, 100, 640])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("gap", [0, 4])
def test_mean_of_a_map(c, keepdims, gap):
    x = np.random.default_rng(c).standard_normal((2, c, 7, 9)).astype(np.float32)
    check_mean(x, nhwc(*x.shape, gap), (2, 3), keepdims)


@pytest.mark.parametrize("axes", [(2, 3), (-1,), (2,), (0, 2)])
def test_mean_with_a_bias(axes):
    """Values far from zero over long rows, where a single running sum would lose digits."""
    x = (np.random.default_rng(1).standard_normal((3, 33, 60, 500)) + 20).astype(np.float32)
    check_mean(x, nhwc(*x.shape, 1), axes, True)


def test_mean_of_tokens():
    x = np.random.default_rng(2).standard_normal((3, 197, 192)).astype(np.float32)
    for keepdims in (False, True):
        check_mean(x, dense(Buffer(x.size), x.shape), (1,), keepdims)
    h, w, d = 6, 8, 96  # tokens of patches, in the memory of a map
    place = Place(Buffer(h * w * d), 0, (((2, w * d), (2, d)), ((h // 2, 2 * w * d), (w // 2, 2 * d)), ((d, 1),)))
    check_mean(np.random.default_rng(3).standard_normal((4, 12, d)).astype(np.float32), place, (1,), False)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (6, 6), (5, 3), (7, 9), (10, 4)])
@pytest.mark.parametrize("c", [1, 19, 150])
def test_adaptive(size, c):
    x = np.random.default_rng(4).standard_normal((2, c, 7, 9)).astype(np.float32)
    golden = ops.adaptive_avg_pool(x.astype(np.float64), size=size)
    place, out = nhwc(*x.shape, 3), nhwc(*golden.shape, 2)
    memory = Memory()
    memory.fill(place, x)
    run(adaptive_avg_pool(place, out), memory)
    close(memory.view(out), golden, ops.adaptive_avg_pool(x, size=size))
    assert np.isnan(memory.values(out.buffer).reshape(-1, c + 2)[:, c:]).all()


def test_what_it_cannot_read():
    x = Place(Buffer(1000), 0, (((2, 100), (3, 30)), ((4, 1),), ((2, 10),)))
    with pytest.raises(LayoutError, match="two loops"):
        mean(x, dense(Buffer(4), (4,)), axes=(0, 2))
