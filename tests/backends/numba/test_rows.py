"""Layer norm and softmax of rows against the definition in float64."""

import numpy as np
import pytest
from helpers.kernels import Memory, run

from refvit import ops
from refvit.backends.numba.copy import LayoutError
from refvit.backends.numba.layout import Place, dense
from refvit.backends.numba.program import Buffer
from refvit.backends.numba.rows import layer_norm, softmax

EPS = np.finfo(np.float32).eps


def tokens(n, l, d, ld):
    """Rows `ld` apart, images after one another."""
    axes = tuple(((e, s),) if e > 1 else () for e, s in ((n, l * ld), (l, ld), (d, 1)))
    return Place(Buffer(n * l * ld + 3), 3, axes)


def close(got, golden, reference):
    assert np.isfinite(got).all()
    assert np.abs(got - golden).max() <= 4 * np.abs(reference - golden).max() + 4 * EPS * np.abs(golden).max()


def constant(values):
    return Place(Buffer(values.size, array=values), 0, (((values.size, 1),),) if values.size > 1 else ((),))


@pytest.mark.parametrize("d", [1, 3, 16, 17, 31, 36, 64, 65, 144, 192, 240, 768, 1023, 4096])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_layer_norm(d, offset):
    rng = np.random.default_rng(d)
    n, l = 2, 7
    x = (rng.standard_normal((n, l, d)) * 3 + offset).astype(np.float32)
    weight, bias = (rng.standard_normal(d).astype(np.float32) for _ in range(2))
    place, out = tokens(n, l, d, d + 5), tokens(n, l, d, d + 2)
    memory = Memory()
    memory.fill(place, x)
    run(layer_norm(place, constant(weight), constant(bias), 1e-6, out), memory)
    golden = ops.layer_norm(*(a.astype(np.float64) for a in (x, weight, bias)), eps=1e-6)
    close(memory.view(out), golden, ops.layer_norm(x, weight, bias, eps=1e-6))
    gaps = memory.values(out.buffer)[3:].reshape(-1, d + 2)[:, d:]
    assert np.isnan(gaps).all()


def test_layer_norm_of_patches():
    """MobileViT's tokens: n and l of several factors, in the memory of a map; the result elsewhere in another order."""
    rng = np.random.default_rng(0)
    h, w, d = 6, 8, 96
    x = rng.standard_normal((4, h * w // 4, d)).astype(np.float32)
    place = Place(Buffer(h * w * d), 0, (((2, w * d), (2, d)), ((h // 2, 2 * w * d), (w // 2, 2 * d)), ((d, 1),)))
    out = dense(Buffer(x.size), x.shape)
    weight, bias = (rng.standard_normal(d).astype(np.float32) for _ in range(2))
    memory = Memory()
    memory.fill(place, x)
    run(layer_norm(place, constant(weight), constant(bias), 1e-5, out), memory)
    golden = ops.layer_norm(*(a.astype(np.float64) for a in (x, weight, bias)), eps=1e-5)
    close(memory.view(out), golden, ops.layer_norm(x, weight, bias, eps=1e-5))


@pytest.mark.parametrize("d", [1, 3, 16, 17, 49, 197, 1000, 4097])
@pytest.mark.parametrize("size", [1.0, 40.0])
def test_softmax(d, size):
    rng = np.random.default_rng(d)
    x = (rng.standard_normal((3, 5, d)) * size - 7).astype(np.float32)
    place, out = tokens(3, 5, d, d + 1), tokens(3, 5, d, d + 4)
    memory = Memory()
    memory.fill(place, x)
    run(softmax(place, out), memory)
    close(memory.view(out), ops.softmax(x.astype(np.float64), axis=-1), ops.softmax(x, axis=-1))


def test_nan_fills_its_row_only():
    x = np.random.default_rng(1).standard_normal((4, 40)).astype(np.float32)
    x[2, 39] = np.nan
    for make in (
        softmax,
        lambda a, b: layer_norm(a, constant(np.ones(40, np.float32)), constant(np.ones(40, np.float32)), 1e-5, b),
    ):
        place, out = dense(Buffer(160), (4, 40)), dense(Buffer(160), (4, 40))
        memory = Memory()
        memory.fill(place, x)
        run(make(place, out), memory)
        np.testing.assert_array_equal(np.isnan(memory.view(out)).all(1), [False, False, True, False])
        assert np.isfinite(memory.view(out)[[0, 1, 3]]).all()


def test_what_it_cannot_read():
    with pytest.raises(LayoutError, match="contiguous rows"):
        softmax(dense(Buffer(12), (3, 4), (1, 0)), dense(Buffer(12), (3, 4)))
