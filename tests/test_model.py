"""Model: numbers in and out, threads, looking inside."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import refvit
from refvit.errors import ConfigError, ShapeError, WeightsError
from refvit.models import architecture

RNG = np.random.default_rng(3)


def x_of(n=1, size=32, dtype=np.float32):
    return RNG.random((n, 3, size, size)).astype(dtype)


# numbers in, numbers out


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("own", ["float16", "float32", "float64"])
def test_input_of_any_float_dtype(dtype, own):
    model = refvit.load(dtype=own)
    x = x_of(dtype=np.float16)
    logits = model(x.astype(dtype))
    assert logits.dtype == own
    assert logits.shape == (1, 10)
    np.testing.assert_array_equal(logits, model(x))
    np.testing.assert_allclose(logits, refvit.load(dtype="float64")(x), rtol=0, atol=0.05 if own == "float16" else 1e-4)


@pytest.mark.parametrize("x", [np.zeros((1, 3, 8, 8), int), np.zeros((1, 3, 8, 8), np.uint8), [[[[0.5]]]], None, 3.0], ids=repr)
def test_input_that_is_no_float_array(demo, x):
    with pytest.raises(ConfigError, match=r"floating-point ndarray \(n, 3, h, w\) expected.*\.infer"):
        demo(x)


@pytest.mark.parametrize(
    "shape", [(3, 8, 8), (1, 8, 8, 3), (1, 1, 8, 8), (1, 4, 8, 8), (0, 3, 8, 8), (1, 3, 0, 8), (), (1,) * 5]
)
def test_input_of_another_shape(demo, shape):
    for call in (demo, demo.intermediates):
        with pytest.raises(ShapeError, match=r"\(n, 3, h, w\)"):
            call(np.zeros(shape, np.float32))
    with pytest.raises(ShapeError):
        demo.graph(shape)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf(demo, bad):
    x = x_of()
    x[0, 1, 2, 3] = x[0, 0, 0, 0] = bad
    for call in (demo, demo.intermediates):
        with pytest.raises(ConfigError, match="2 of the 3072 input values are NaN or infinite"):
            call(x)


@pytest.mark.parametrize(("own", "value"), [("float16", 1e6), ("float32", 1e300)])
def test_input_that_overflows_in_the_dtype_of_the_model(own, value):
    with pytest.raises(ConfigError, match=r"float16|float32"):
        refvit.load(dtype=own)(np.full((1, 3, 32, 32), value))


def test_weights_that_overflow_in_float16(xxs):
    with pytest.raises((ConfigError, WeightsError), match="running_var"):
        refvit.load("mobilevit_xxs", {**xxs, "stem.bn.running_var": xxs["stem.bn.running_var"] * 1e6}, dtype="float16")


def test_a_batch_equals_single_calls(demo):
    x = x_of(5, 40)
    together = demo(x)
    alone = np.concatenate([demo(x[i : i + 1]) for i in range(5)])
    assert np.abs(together - alone).max() <= 1e-5 * np.abs(alone).max()
    assert np.abs(np.diff(alone, axis=0)).max() > 0.01  # they do differ


def test_the_input_is_not_modified(demo):
    x = x_of(2)
    before = x.copy()
    demo(x)
    x.flags.writeable = False
    demo(x)
    demo.intermediates(x)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(demo(np.asfortranarray(x)), demo(x))
    np.testing.assert_array_equal(demo(x[::-1]), demo(np.ascontiguousarray(x[::-1])))


def test_threads_share_a_model():
    model = refvit.load()
    inputs = [x_of(1 + k % 2, 32 + 8 * (k % 3)) for k in range(24)]
    alone = refvit.load()
    serial = [alone(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for got, expected in zip(pool.map(model, inputs), serial, strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevit_xs", "mobilevit_s"])
def test_odd_and_tiny_sizes(name):
    arch = architecture(name)
    params = {n: RNG.standard_normal(s).astype(np.float32) * 0.1 for n, s in arch.parameters(arch.config)}
    params = {n: np.abs(a) + 0.5 if n.endswith("running_var") else a for n, a in params.items()}
    model = refvit.load(name, params)
    for h, w in ((1, 1), (2, 3), (33, 47), (64, 31), (1, 90)):
        logits = model(RNG.random((1, 3, h, w)).astype(np.float32))
        assert logits.shape == (1, 1000)
        assert np.isfinite(logits).all()
        assert np.ptp(logits) > 0


# looking inside


def test_intermediates(demo):
    x = x_of(2, 64)
    values = demo.intermediates(x)
    np.testing.assert_allclose(values["head"], demo(x), rtol=1e-5, atol=1e-5)
    assert list(values) == list(demo.graph(x.shape, expand=True).names())
    assert next(iter(values)) == "stem.conv"
    assert values["stem"].shape == (2, 16, 32, 32)
    softmax = demo.intermediates(x, "*.softmax")
    assert len(softmax) == 2 + 4 + 3
    assert all(name.startswith("stages.") and name.endswith("attn.attention.softmax") for name in softmax)
    for name, value in softmax.items():
        np.testing.assert_allclose(value.sum(-1), 1, atol=1e-5, err_msg=name)
        assert value.min() >= 0
    assert list(demo.intermediates(x, "stages.?")) == [f"stages.{i}" for i in range(5)]
    assert list(demo.intermediates(x, "head")) == ["head"]
    assert all(v.dtype == np.float32 for v in values.values())


def test_no_intermediate_matches(demo):
    with pytest.raises(ConfigError, match=r"no name matches 'layer9\*'; the first are stem\.conv"):
        demo.intermediates(x_of(), "layer9*")


def test_summary_and_graph(demo):
    summary = demo.summary()
    assert summary.input_shape == (1, 3, 64, 64)
    assert summary.total.params == sum(b.params for b in summary.blocks)
    double = demo.summary((2, 3, 64, 64)).total
    assert double.macs == 2 * summary.total.macs
    assert double.params == summary.total.params
    assert len(demo.summary(depth=2).blocks) > len(summary.blocks)
    assert demo.summary((1, 3, 33, 47)).input_shape == (1, 3, 33, 47)
    graph = demo.graph((1, 3, 96, 64))
    assert next(iter(graph.inputs.values())).shape == (1, 3, 96, 64)
    expanded = demo.graph(expand=True).names()
    assert any(name.endswith("softmax") for name in expanded)
    assert not any(name.endswith("softmax") for name in demo.graph().names())


def test_repr_and_attributes(demo):
    assert repr(demo) == "Model(mobilevit_xxs.cifar10, backend=numba, dtype=float32)"
    assert demo.task == "classification"
    assert demo.config.num_classes == len(demo.labels) == 10
