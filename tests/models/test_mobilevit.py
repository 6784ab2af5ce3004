"""MobileViT: the logits of timm in float64, the published counts, and the blocks. Every module: test_modules_mobilevit.py."""

import dataclasses

import numpy as np
import pytest

import refvit
from refvit.errors import ConfigError
from refvit.graph import trace
from refvit.graph.cost import parameter_count, total_cost
from refvit.model import architecture_graph
from refvit.models import ARCHITECTURES, architecture, layers, mobilevit
from refvit.weights.params import Params

BOUND = 1e-10  # of the largest value; what is seen is below 1e-14


@pytest.fixture(scope="module")
def case(golden):
    return golden("mobilevit_xxs.timm")


@pytest.fixture(scope="module")
def model(case):
    return refvit.load("mobilevit_xxs", case.state(), dtype="float64", backend="numpy")


def test_logits_equal_the_original(case, model):
    assert case.check({"output": model(case.input())}) < BOUND


def test_float32_is_as_near_as_float32_allows(case):
    model = refvit.load("mobilevit_xxs", case.state(), dtype="float32", backend="numpy")
    assert case.check({"output": model(case.input())}) < 2e-6


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("mobilevit_xxs", 1_272_024, 407_364_096),
        ("mobilevit_xs", 2_317_848, 1_025_911_808),
        ("mobilevit_s", 5_578_632, 2_000_831_488),
    ],
)
def test_counts_are_the_published_ones(name, params, macs):
    entry = architecture(name)
    assert parameter_count(entry.parameters(entry.config)) == params
    cost = total_cost(architecture_graph(name))
    assert (cost.params, cost.macs) == (params, macs)


def random_params(config, dtype, seed=0):
    rng = np.random.default_rng(seed)
    flat = {}
    for name, shape in mobilevit.parameters(config):
        a = rng.standard_normal(shape) / max(1, np.prod(shape[1:])) ** 0.5
        flat[name] = (1 + 0.1 * np.abs(a) if name.endswith("running_var") else a).astype(dtype)
    return flat


SMALL = mobilevit.MobileViTConfig(4, (4, 6, 8, 8, 8), 12, 2, (8, 12, 16), depths=(1, 1, 1), num_heads=2, num_classes=5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 3, 33, 47), (3, 3, 1, 1), (1, 3, 96, 32), (1, 3, 250, 7)])
@pytest.mark.parametrize("expand", [False, True])
def test_eager_and_interpreted_are_the_same_bits(shape, dtype, expand):
    from refvit.backends.numpy import compile_graph

    flat = random_params(SMALL, dtype)
    x = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    eager = mobilevit.mobilevit(x, Params(flat), config=SMALL)
    graph = trace(mobilevit.mobilevit, shape, flat, config=SMALL, expand=expand)
    np.testing.assert_array_equal(compile_graph(graph)(x)["output"], eager)
    assert eager.dtype == dtype and eager.shape == (shape[0], 5)


def test_a_batch_is_its_images():
    flat = random_params(SMALL, "float64")
    x = np.random.default_rng(2).standard_normal((3, 3, 40, 56))
    together = mobilevit.mobilevit(x, Params(flat), config=SMALL)
    alone = [mobilevit.mobilevit(x[i : i + 1], Params(flat), config=SMALL)[0] for i in range(3)]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-12 * np.abs(together).max())


def loop_attention(x, p, num_heads):
    """Self-attention written from equation 1 of Vaswani et al. with an explicit loop over sequences, heads and queries."""
    n, l, d = x.shape
    size = d // num_heads
    y = np.zeros_like(x)
    for b in range(n):
        qkv = np.array([p["qkv"]["weight"] @ t + p["qkv"]["bias"] for t in x[b]])
        for h in range(num_heads):
            q, k, v = (qkv[:, part * d + h * size : part * d + (h + 1) * size] for part in range(3))
            for i in range(l):
                scores = np.array([np.dot(q[i], k[j]) / size**0.5 for j in range(l)])
                weights = np.exp(scores - scores.max())
                y[b, i, h * size : (h + 1) * size] = sum(w * r for w, r in zip(weights / weights.sum(), v, strict=True))
    return np.array([[p["proj"]["weight"] @ t + p["proj"]["bias"] for t in s] for s in y])


def test_self_attention_equals_loops():
    rng = np.random.default_rng(3)
    flat = {"qkv.weight": rng.standard_normal((24, 8)), "qkv.bias": rng.standard_normal(24)}
    flat |= {"proj.weight": rng.standard_normal((8, 8)), "proj.bias": rng.standard_normal(8)}
    x = rng.standard_normal((2, 5, 8))
    got = layers.self_attention(x, Params(flat), num_heads=2)
    np.testing.assert_allclose(got, loop_attention(x, Params(flat), 2), atol=1e-12)


def test_shortcut_only_where_nothing_changes_shape():
    """Stride 1 and equal widths add the input: with the last norm's scale at zero the block is the identity."""
    names = {n: s for n, s in mobilevit.parameters(SMALL) if n.startswith("stages.0.0.")}
    flat = {n.removeprefix("stages.0.0."): np.full(s, 0.5) for n, s in names.items()}
    for leaf in ("weight", "bias"):
        flat[f"conv3_1x1.bn.{leaf}"] = np.zeros_like(flat[f"conv3_1x1.bn.{leaf}"])
    x = np.random.default_rng(4).standard_normal((1, 4, 6, 6))
    np.testing.assert_array_equal(mobilevit.inverted_residual(x, Params(flat), stride=1, eps=1e-5), x)
    assert not mobilevit.inverted_residual(x, Params(flat), stride=2, eps=1e-5).any()


@pytest.mark.parametrize("stride", [16, 8])
def test_timms_rule_widens_the_blocks(stride):
    """A dilated 3x3 kernel is a wider one with zeros between."""
    config = dataclasses.replace(SMALL, output_stride=stride, dilation_rule="timm")
    flat = random_params(config, "float64")
    wide = dict(flat)
    for index, dilation in {16: {4: 2}, 8: {3: 2, 4: 4}}[stride].items():
        name = f"stages.{index}.1.conv_kxk.conv.weight"
        side = 2 * dilation + 1
        wide[name] = np.zeros((*flat[name].shape[:2], side, side))
        wide[name][:, :, ::dilation, ::dilation] = flat[name]
    x = np.random.default_rng(6).standard_normal((1, 3, 64, 96))
    expected = mobilevit.mobilevit(x, Params(wide), config=dataclasses.replace(config, dilation_rule="cvnets"))
    found = mobilevit.mobilevit(x, Params(flat), config=config)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def test_a_stride_or_rule_that_is_none_is_said():
    for fields in ({"output_stride": 4}, {"dilation_rule": "torch"}):
        with pytest.raises(ConfigError, match="output_stride 8, 16 or 32 and dilation_rule"):
            dataclasses.replace(SMALL, **fields)


@pytest.mark.parametrize("field", ["batch_norm_eps", "layer_norm_eps", "num_heads"])
def test_config_values_reach_the_numbers(field):
    flat = random_params(SMALL, "float64")
    x = np.random.default_rng(5).standard_normal((1, 3, 64, 64))
    other = dataclasses.replace(SMALL, **{field: 4 if field == "num_heads" else 1e-2})
    before, after = (mobilevit.mobilevit(x, Params(flat), config=c) for c in (SMALL, other))
    assert np.abs(before - after).max() > 1e-6 * np.abs(before).max()


def test_every_registered_model_traces_and_describes_its_parameters():
    for name, entry in ARCHITECTURES.items():
        graph = architecture_graph(name)
        used = {s for node in graph for s in node.sources if s in graph.params}
        assert used == {n for n, _ in entry.parameters(entry.config)}, name
