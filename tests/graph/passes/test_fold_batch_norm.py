"""Batch norm folded into the layer before it: the two ops by hand, what is folded and what must not be."""

import math

import numpy as np
import pytest

from refvit import ops
from refvit.errors import ShapeError
from refvit.graph import trace
from refvit.graph.passes import constants, fold_batch_norm
from refvit.graph.passes.fold_batch_norm import fold_bias, fold_weight

EPS = 1e-2  # large enough to be seen


def vectors(k, dtype, seed=0):
    """weight, bias, mean, var and a layer's bias."""
    a = np.random.default_rng(seed).standard_normal((5, k))
    a[3] = 0.1 + np.abs(a[3])
    return [v.astype(dtype) for v in a]


K = 40  # enough for roundings to differ


@pytest.mark.parametrize("shape", [(K, 3, 3, 3), (K, 1, 5, 1), (K, 6)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arithmetic_is_that_of_float64(shape, dtype):
    """Python's floats give the same bits; float32 alone would not."""
    weight, bias, mean, var, own = vectors(K, dtype)
    layer = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    got_weight = fold_weight(layer, weight, var, eps=EPS)
    got_bias = fold_bias(weight, bias, mean, var, own, eps=EPS)
    got_without = fold_bias(weight, bias, mean, var, None, eps=EPS)
    assert got_weight.dtype == got_bias.dtype == got_without.dtype == dtype
    for k in range(K):
        scale = float(weight[k]) / math.sqrt(float(var[k]) + EPS)
        for index in np.ndindex(*shape[1:]):
            assert got_weight[k, *index] == dtype(float(layer[k, *index]) * scale)
        assert got_bias[k] == dtype((float(own[k]) - float(mean[k])) * scale + float(bias[k]))
        assert got_without[k] == dtype(-float(mean[k]) * scale + float(bias[k]))
    if dtype is np.float32:
        assert ((own - mean) * (weight / np.sqrt(var + np.float32(EPS))) + bias != got_bias).any()
        in_float32 = layer * (weight / np.sqrt(var + np.float32(EPS))).reshape(-1, *[1] * (len(shape) - 1))
        assert (in_float32 != got_weight).any()


def test_wrong_shapes():
    w, v, u = np.ones((4, 3)), np.ones(4), np.ones(3)
    with pytest.raises(ShapeError, match=r"fold_weight: .*\(4, 3\), \(3,\) and \(4,\)"):
        fold_weight(w, u, v, eps=EPS)
    with pytest.raises(ShapeError, match=r"fold_weight: .*\(4, 3\), \(4,\) and \(3,\)"):
        fold_weight(w, v, u, eps=EPS)
    with pytest.raises(ShapeError, match=r"fold_bias: .*\(4,\), \(4,\), \(4,\), \(4,\), \(3,\)"):
        fold_bias(v, v, v, v, u, eps=EPS)
    with pytest.raises(ShapeError, match="fold_bias"):
        fold_bias(w, w, w, w, eps=EPS)


def norm(k, name="bn"):
    return {f"{name}.{leaf}": (k,) for leaf in ("weight", "bias", "running_mean", "running_var")}


def conv_bn(x, p):
    return ops.batch_norm(ops.conv2d(x, **p["conv"], padding=1), **p["bn"], eps=EPS)


CONV = {"conv.weight": (4, 3, 3, 3), "bn.weight": (4,), **norm(4)}


@pytest.mark.parametrize("bias", [{}, {"conv.bias": (4,)}], ids=["no bias", "bias"])
def test_conv2d(bias, draw, prove):
    graph = trace(lambda x, p: ops.relu(conv_bn(x, p)), (2, 3, 5, 6), draw(CONV | bias))
    after = fold_batch_norm(graph)
    assert [n.op for n in after] == ["fold_weight", "fold_bias", "conv2d", "relu"]
    conv = after.nodes["bn"]  # the value of the norm keeps its name
    assert conv.op == "conv2d" and conv.inputs == ("input", "conv.folded_weight", "conv.folded_bias")
    assert list(constants(after)) == ["conv.folded_weight", "conv.folded_bias"]
    assert after.params == graph.params
    prove(graph, after)


def test_every_attribute_and_eps_of_its_own(draw, prove):
    def net(x, p):
        x = ops.batch_norm(ops.conv2d(x, **p["a"], stride=2, padding=(2, 1), groups=3), **p["bn"], eps=1e-1)
        return ops.batch_norm(ops.conv2d(x, **p["b"], dilation=2, padding=2), **p["bn2"], eps=1e-5)

    shapes = {"a.weight": (6, 1, 3, 3), "b.weight": (4, 6, 3, 3), "b.bias": (4,), **norm(6), **norm(4, "bn2")}
    graph = trace(net, (1, 3, 9, 8), draw(shapes))
    after = fold_batch_norm(graph)
    assert [n.op for n in after].count("batch_norm") == 0
    assert [n.attrs for n in after if n.op == "conv2d"] == [n.attrs for n in graph if n.op == "conv2d"]
    assert [n.attrs["eps"] for n in after if "fold" in n.op] == [1e-1, 1e-1, 1e-5, 1e-5]
    prove(graph, after)


LINEAR = {"fc.weight": (5, 4), "fc.bias": (5,), **norm(5)}


def test_linear(draw, prove):
    graph = trace(lambda x, p: ops.batch_norm(ops.linear(x, **p["fc"]), **p["bn"], eps=EPS), (3, 4), draw(LINEAR))
    after = fold_batch_norm(graph)
    assert [n.op for n in after] == ["fold_weight", "fold_bias", "linear"]
    prove(graph, after)


def test_linear_whose_tokens_are_joined_for_the_norm(draw, prove):
    def net(x, p):
        y = ops.linear(x, **p["fc"]).reshape(6, 5)
        return ops.batch_norm(y, **p["bn"], eps=EPS).reshape(2, 3, 5)

    graph = trace(net, (2, 3, 4), draw(LINEAR))
    after = fold_batch_norm(graph)
    assert [n.op for n in after] == ["fold_weight", "fold_bias", "linear", "reshape", "reshape"]
    assert after.nodes["bn"].op == "reshape" and after.nodes["fc.folded"].shape == (2, 3, 5)
    assert "fc" not in after.nodes  # another value has another name
    prove(graph, after)


def two_outputs(x, p):
    y = ops.conv2d(x, **p["conv"], padding=1)
    return {"conv": y, "bn": ops.batch_norm(y, **p["bn"], eps=EPS)}


def read_twice(x, p):
    y = ops.conv2d(x, **p["conv"], padding=1)
    return ops.batch_norm(y, **p["bn"], eps=EPS) + ops.relu(y)


def tokens_are_not_channels(x, p):
    return ops.batch_norm(ops.linear(x, **p["fc"]), **p["bn"], eps=EPS)


def joined_with_channels(x, p):
    return ops.batch_norm(ops.linear(x, **p["fc"]).reshape(6, 5), **p["bn"], eps=EPS)


def joined_and_read(x, p):
    y = ops.linear(x, **p["fc"])
    return ops.batch_norm(y.reshape(10, 5), **p["bn"], eps=EPS) + y.reshape(10, 5)


def reshape_is_read(x, p):
    y = ops.linear(x, **p["fc"]).reshape(10, 5)
    return ops.batch_norm(y, **p["bn"], eps=EPS) + y


def columns_are_not_channels(x, p):
    """As many columns as channels, by chance."""
    return ops.batch_norm(ops.conv2d(x, **p["conv"], padding=1).reshape(40, 4), **p["bn"], eps=EPS)


@pytest.mark.parametrize(
    ("net", "shape", "shapes"),
    [
        (two_outputs, (2, 3, 5, 6), CONV),
        (read_twice, (2, 3, 5, 6), CONV),
        (tokens_are_not_channels, (2, 5, 4), {"fc.weight": (5, 4), **norm(5)}),
        (joined_with_channels, (5, 4), {"fc.weight": (6, 4), **norm(5)}),
        (joined_and_read, (2, 5, 4), {"fc.weight": (5, 4), **norm(5)}),
        (reshape_is_read, (2, 5, 4), {"fc.weight": (5, 4), **norm(5)}),
        (columns_are_not_channels, (2, 3, 5, 4), CONV),
        (lambda x, p: ops.batch_norm(x, **p["bn"], eps=EPS), (2, 3, 4, 4), norm(3)),
        (lambda x, p: ops.batch_norm(ops.relu(x), **p["bn"], eps=EPS), (2, 3, 4, 4), norm(3)),
    ],
)
def test_what_is_left_alone(net, shape, shapes, draw):
    graph = trace(net, shape, draw(shapes))
    assert fold_batch_norm(graph) == graph


def test_one_weight_in_two_places(draw, prove):
    """Shared weights under two norms: two foldings, under two names."""

    def net(x, p):
        y = ops.batch_norm(ops.conv2d(x, **p["conv"], padding=1), **p["a"], eps=EPS)
        return ops.batch_norm(ops.conv2d(y, **p["conv"], padding=1), **p["b"], eps=EPS)

    graph = trace(net, (1, 3, 4, 4), draw({"conv.weight": (3, 3, 3, 3), **norm(3, "a"), **norm(3, "b")}))
    after = fold_batch_norm(graph)
    assert [n.op for n in after].count("fold_weight") == 2 and "batch_norm" not in {n.op for n in after}
    prove(graph, after)
