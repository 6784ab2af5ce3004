"""Activations against the formulas of their docstrings, one Python float at a time."""

import math
import warnings

import numpy as np
import pytest

from refvit.ops import gelu, hardswish, relu, sigmoid, silu, softmax

EXACT = 1e-12  # of max|expected|: what float64 may differ from the scalar formula
DTYPES = [np.float64, np.float32]


def check(got, want, dtype, bound32):
    """float64 within EXACT, float32 within `bound32` of the value computed in float64 from the same inputs."""
    assert got.dtype == dtype and got.shape == want.shape
    error = np.abs(got.astype(np.float64) - want)
    bound = EXACT * np.abs(want).max() if dtype is np.float64 else bound32
    assert np.all(error <= bound), error.max()


def sample(dtype, seed=0):
    """Normal values, a wide range and the corners of the piecewise functions."""
    rng = np.random.default_rng(seed)
    special = [-80.0, -20.0, -10.0, -3.0, -1e-3, 0.0, 1e-3, 3.0, 10.0, 20.0, 80.0, -5.5, 2.75, -2.9999]
    x = np.concatenate([rng.standard_normal(30), 6 * rng.standard_normal(20), special]).astype(dtype)
    return x.reshape(4, 1, 16)


def each(function, x):
    return np.array([function(float(v)) for v in x.ravel()]).reshape(x.shape)


def sigmoid_of(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def hardswish_of(x):
    if x <= -3:
        return 0.0
    return x if x >= 3 else x * (x + 3) / 6


def gelu_of(x):
    return x * 0.5 * math.erfc(-x / math.sqrt(2))


def gelu_tanh_of(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    (
        "call",
        "formula",
        "steps",
    ),  # steps: roundings on the way, each at most eps of |x| (of 3 |x| in hardswish's x + 3)
    [
        (relu, lambda x: x if x > 0 else 0.0, 0),
        (sigmoid, sigmoid_of, 6),
        (silu, lambda x: x * sigmoid_of(x), 6),
        (hardswish, hardswish_of, 6),
        (lambda x: gelu(x, approximate="none"), gelu_of, 6),
        (lambda x: gelu(x, approximate="tanh"), gelu_tanh_of, 10),
    ],
    ids=["relu", "sigmoid", "silu", "hardswish", "gelu_none", "gelu_tanh"],
)
def test_formula(call, formula, steps, dtype):
    x = sample(dtype)
    check(call(x), each(formula, x), dtype, steps * np.finfo(np.float32).eps * np.maximum(np.abs(x), 1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_relu_keeps_nan_and_infinities(dtype):
    got = relu(np.array([np.nan, -np.inf, np.inf, -1, 2], dtype))
    np.testing.assert_array_equal(got, np.array([np.nan, 0, np.inf, 0, 2], dtype))


@pytest.mark.parametrize("call", [sigmoid, silu, hardswish], ids=["sigmoid", "silu", "hardswish"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_far_values_reach_the_limits_without_warning(call, dtype):
    limits = [0, 1] if call is sigmoid else [0, 1000]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = call(np.array([-1000, 1000], dtype))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.array(limits, dtype))


def test_gelu_has_no_cancellation_in_the_tail():
    x = np.linspace(-30, -4, 53)
    want = each(gelu_of, x)
    got = gelu(x, approximate="none")
    # -x / sqrt 2 is rounded once, which erfc turns into a relative error of x^2 eps
    assert np.all(np.abs(got - want) <= 4 * np.finfo(np.float64).eps * (x * x + 1) * np.abs(want))


def test_gelu_forms_differ_by_what_the_docstring_says():
    x = np.linspace(-6, 6, 24001)
    largest = np.abs(gelu(x, approximate="none") - gelu(x, approximate="tanh")).max()
    assert 4.65e-4 < largest < 4.75e-4


def softmax_of(x, axis):
    rows = np.moveaxis(x.astype(np.float64), axis, -1)
    want = np.empty(rows.shape)
    for i in np.ndindex(rows.shape[:-1]):
        top = max(rows[i])
        e = [math.exp(v - top) for v in rows[i]]
        want[i] = [v / math.fsum(e) for v in e]
    return np.moveaxis(want, -1, axis)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_softmax(axis, dtype):
    x = (4 * np.random.default_rng(1).standard_normal((3, 5, 7))).astype(dtype)
    want = softmax_of(x, axis)
    # the difference x - max is off by eps/2 of its size (< 40 here), exp, the sum and the division by an eps each
    check(softmax(x, axis=axis), want, dtype, (20 + x.shape[axis] + 3) * np.finfo(np.float32).eps * want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_of_extreme_rows(dtype):
    big = np.finfo(dtype).max / 4
    rows = np.array(
        [[big, big, -big, 0], [1e4, 1e4, 1e4, 1e4], [-np.inf, 0, -np.inf, 0], [-np.inf, -np.inf, 5, -np.inf]], dtype
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = softmax(rows, axis=1)
    want = np.array([[0.5, 0.5, 0, 0], [0.25] * 4, [0, 0.5, 0, 0.5], [0, 0, 1, 0]], dtype)
    np.testing.assert_array_equal(got, want)
