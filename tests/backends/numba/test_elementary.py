"""The activations of a vector against the definition in float64, as passes over a map (`combine`) use them."""

import numpy as np
import pytest
from helpers.kernels import Memory, run

from refvit import ops
from refvit.backends.numba.combine import combine
from refvit.backends.numba.layout import Place, dense
from refvit.backends.numba.program import Buffer
from refvit.graph.ir import Step

EPS = np.finfo(np.float32).eps
ACTIVATIONS = {
    "relu": ("relu", {}), "silu": ("silu", {}), "gelu": ("gelu", {"approximate": "none"}),
    "gelu_tanh": ("gelu", {"approximate": "tanh"}), "hardswish": ("hardswish", {}), "sigmoid": ("sigmoid", {}),
}  # fmt: skip


def apply(name, x):
    op, attrs = ACTIVATIONS[name]
    place, out = dense(Buffer(x.size), x.shape), dense(Buffer(x.size), x.shape)
    memory = Memory()
    memory.fill(place, x)
    run(combine((Step(op, (0,), attrs),), [place], out), memory)
    return memory.view(out).copy()


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("size", [1e-3, 0.1, 1.0, 4.0, 30.0, 1000.0])
def test_activation(name, size):
    op, attrs = ACTIVATIONS[name]
    x = (np.random.default_rng(5).standard_normal((37, 1001)) * size).astype(np.float32)
    definition = getattr(ops, op)
    golden, reference = definition(x.astype(np.float64), **attrs), definition(x, **attrs)
    error = np.abs(apply(name, x) - golden).max()
    assert error <= 4 * np.abs(reference - golden).max() + 4 * EPS * np.abs(golden).max()


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "sigmoid"])
def test_small_errors_everywhere(name):
    """Also where the values are small: absolute 2e-7, or relative to the result where that is above 1."""
    op, attrs = ACTIVATIONS[name]
    x = np.linspace(-12, 12, 300_003, dtype=np.float32).reshape(3, -1)
    golden = getattr(ops, op)(x.astype(np.float64), **attrs)
    assert (np.abs(apply(name, x) - golden) <= 2e-7 * np.maximum(1, np.abs(golden))).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_stays(name):
    x = np.random.default_rng(6).standard_normal((3, 50)).astype(np.float32)
    x[1, 3] = x[2, 49] = np.nan
    y = apply(name, x)
    assert np.isnan(y[1, 3]) and np.isnan(y[2, 49]) and np.isnan(y).sum() == 2


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_far_out(name):
    x = np.array([[0.0, 1e30, -1e30, 1e-30, 88.0, -88.0, 104.0, -104.0]], np.float32)
    op, attrs = ACTIVATIONS[name]
    with np.errstate(all="ignore"):
        golden = getattr(ops, op)(x.astype(np.float64), **attrs)
    np.testing.assert_allclose(apply(name, x), golden, rtol=3e-7, atol=2e-8)


def test_outside_is_left_alone():
    """Rows of 19 values 24 apart: the gaps belong to somebody else."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((6, 19)).astype(np.float32)
    out = Place(Buffer(6 * 24), 0, (((6, 24),), ((19, 1),)))
    place = dense(Buffer(x.size), x.shape)
    memory = Memory()
    memory.fill(place, x)
    run(combine((Step("silu", (0,), {}),), [place], out), memory)
    assert np.isnan(memory.values(out.buffer).reshape(6, 24)[:, 19:]).all() and np.isfinite(memory.view(out)).all()
