"""1x1 convolutions composed, split and moved: exact in every mode, only where it saves, and how much it saves."""

import numpy as np
import pytest

from refvit import ops
from refvit.errors import ShapeError
from refvit.graph import trace
from refvit.graph.cost import total_cost
from refvit.graph.passes import commute_linear, fold_batch_norm
from refvit.graph.passes.commute_linear import compose_bias, compose_weight
from refvit.model import architecture_graph


def pointwise(name, k, c, bias=True):
    return {f"{name}.weight": (k, c, 1, 1)} | ({f"{name}.bias": (k,)} if bias else {})


def macs(graph):
    return total_cost(graph).macs


def convs(graph):
    return [(n.shape[1], n.shape[2:]) for n in graph if n.op == "conv2d"]


def test_compose_ops_against_loops():
    rng = np.random.default_rng(0)
    outer, inner, b, c = (rng.standard_normal(s).astype(np.float32) for s in ((3, 4, 1, 1), (4, 5, 1, 1), (4,), (3,)))
    weight, bias, alone = compose_weight(outer, inner), compose_bias(outer, b, c), compose_bias(outer, b)
    assert weight.dtype == bias.dtype == np.float32 and weight.shape == (3, 5, 1, 1)
    ulp = np.finfo(np.float32).eps
    for k in range(3):
        for i in range(5):
            want = sum(float(outer[k, j, 0, 0]) * float(inner[j, i, 0, 0]) for j in range(4))
            assert abs(weight[k, i, 0, 0] - want) <= ulp * abs(want)  # one rounding, at the end
        want = sum(float(outer[k, j, 0, 0]) * float(b[j]) for j in range(4))
        assert abs(alone[k] - want) <= ulp * abs(want) and abs(bias[k] - want - float(c[k])) <= ulp * abs(want + c[k])


def test_compose_ops_refuse_other_shapes():
    with pytest.raises(ShapeError, match=r"\(3, 4, 1, 1\), \(5, 4, 1, 1\)"):
        compose_weight(np.ones((3, 4, 1, 1)), np.ones((5, 4, 1, 1)))
    with pytest.raises(ShapeError, match=r"\(4, 5, 3, 3\)"):
        compose_weight(np.ones((3, 4, 1, 1)), np.ones((4, 5, 3, 3)))
    with pytest.raises(ShapeError, match=r"\(3, 4, 1, 1\), \(3,\)"):
        compose_bias(np.ones((3, 4, 1, 1)), np.ones(3))
    with pytest.raises(ShapeError, match=r"\(4,\) and \(4,\)"):
        compose_bias(np.ones((3, 4, 1, 1)), np.ones(4), np.ones(4))


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True), (False, False)])
def test_two_become_one(biases, draw, prove):
    shapes = pointwise("a", 8, 3, biases[0]) | pointwise("b", 4, 8, biases[1])
    graph = trace(lambda x, p: ops.relu(ops.conv2d(ops.conv2d(x, **p["a"]), **p["b"])), (2, 3, 5, 4), draw(shapes))
    after = commute_linear(graph)
    assert convs(after) == [(4, (5, 4))] and after.nodes["b"].op == "conv2d"
    assert macs(after) == 2 * 20 * 3 * 4
    prove(graph, after)


def test_a_chain_becomes_one(draw, prove):
    def net(x, p):
        for name in "abc":
            x = ops.conv2d(x, **p[name])
        return x

    graph = trace(net, (1, 3, 5, 4), draw(pointwise("a", 6, 3) | pointwise("b", 7, 6) | pointwise("c", 2, 7)))
    after = commute_linear(graph)
    assert convs(after) == [(2, (5, 4))]
    prove(graph, after)


def test_a_bottleneck_is_not_undone(draw):
    """8 -> 2 -> 8 channels: 32 multiplications a pixel, 64 in one."""
    shapes = pointwise("a", 2, 8) | pointwise("b", 8, 2)
    graph = trace(lambda x, p: ops.conv2d(ops.conv2d(x, **p["a"]), **p["b"]), (1, 8, 5, 4), draw(shapes))
    assert commute_linear(graph) == graph


def test_a_value_that_is_read_elsewhere_is_computed_anyway(draw, prove):
    def net(x, p):
        y = ops.conv2d(x, **p["a"])
        return {"y": ops.relu(y), "z": ops.conv2d(y, **p["b"])}

    graph = trace(net, (1, 6, 5, 4), draw(pointwise("a", 6, 6) | pointwise("b", 4, 6)))
    assert commute_linear(graph) == graph  # 24 multiplications a pixel either way
    graph = trace(net, (1, 3, 5, 4), draw(pointwise("a", 6, 3) | pointwise("b", 4, 6)))
    after = commute_linear(graph)
    assert macs(after) == 20 * (3 * 6 + 3 * 4)  # both from the input
    prove(graph, after)


RESIZES = [
    {"mode": "nearest", "align_corners": False},
    {"mode": "bilinear", "align_corners": False},
    {"mode": "bilinear", "align_corners": True},
    {"mode": "bicubic", "align_corners": False},
    {"mode": "bicubic", "align_corners": True},
    {"mode": "bilinear", "align_corners": False, "antialias": True},
    {"mode": "bicubic", "align_corners": False, "antialias": True},
]


@pytest.mark.parametrize("rule", RESIZES, ids=str)
@pytest.mark.parametrize("size", [(9, 8), (4, 11)])
def test_below_a_resize(rule, size, draw, prove):
    def net(x, p):
        return ops.relu(ops.conv2d(ops.resize(x, size=size, **rule), **p["a"]))

    graph = trace(net, (2, 3, 5, 4), draw(pointwise("a", 4, 3)))
    after = commute_linear(graph)
    assert [n.op for n in after] == ["conv2d", "resize", "relu"] and after.nodes["a"].op == "resize"
    prove(graph, after)


def test_not_below_a_resize_to_fewer_pixels(draw):
    def net(x, p):
        return ops.conv2d(ops.resize(x, size=(2, 9), **RESIZES[1]), **p["a"])

    graph = trace(net, (1, 3, 5, 4), draw(pointwise("a", 4, 3)))
    assert commute_linear(graph) == graph


def test_below_a_broadcast_of_pixels_but_not_of_images(draw, prove):
    graph = trace(
        lambda x, p: ops.conv2d(ops.broadcast(x, shape=(2, 3, 5, 4)), **p["a"]), (2, 3, 1, 1), draw(pointwise("a", 4, 3))
    )
    after = commute_linear(graph)
    assert convs(after) == [(4, (1, 1))]
    prove(graph, after)
    graph = trace(
        lambda x, p: ops.conv2d(ops.broadcast(x, shape=(2, 3, 5, 4)), **p["a"]), (1, 3, 1, 1), draw(pointwise("a", 4, 3))
    )
    assert commute_linear(graph) == graph


def head(x, p):
    """Four maps of other widths and sizes, one of them as it is, in the order that channels must not lose."""
    views = [
        ops.resize(ops.relu(x[:, :2, ::2, ::2]), size=(8, 6), **RESIZES[1]),
        ops.relu(x),
        ops.resize(ops.conv2d(x[:, :, ::4, ::3], **p["inner"]), size=(8, 6), **RESIZES[0]),
        ops.silu(x[:, :1]),
    ]
    return ops.relu(ops.conv2d(ops.concat(*views, axis=1), **p["mix"]))


@pytest.mark.parametrize("bias", [True, False])
def test_split_over_a_concat(bias, draw, prove):
    graph = trace(head, (2, 3, 8, 6), draw(pointwise("mix", 4, 2 + 3 + 5 + 1, bias) | pointwise("inner", 5, 3)))
    after = commute_linear(graph)
    # What has full resolution stays together, with the bias; the parts go below their resize, one composed with what it was.
    assert sorted(convs(after)) == [(4, (2, 2)), (4, (4, 3)), (4, (8, 6))]
    assert macs(after) == 2 * 4 * (48 * (3 + 1) + 12 * 2 + 4 * 3)
    assert [n.shape[1] for n in after if n.op == "concat" and len(n.shape) == 4 and n.shape[0] == 2] == [4]
    assert after.nodes["mix"].op == "add"
    prove(graph, after)


def test_a_concat_in_a_concat(draw, prove):
    def net(x, p):
        up = [ops.resize(y, size=(8, 6), **RESIZES[2]) for y in (ops.relu(x), ops.silu(x))]
        return ops.conv2d(ops.concat(ops.concat(up[0], up[1], axis=1), up[1], axis=-3), **p["mix"])

    graph = trace(net, (1, 3, 4, 3), draw(pointwise("mix", 2, 9)))
    after = commute_linear(graph)
    assert macs(after) == 12 * 9 * 2 and set(convs(after)) == {(2, (4, 3))}
    prove(graph, after)


def test_a_concat_that_is_read_elsewhere(draw, prove):
    def net(x, p):
        y = ops.concat(x, ops.resize(x[:, :, ::2, ::2], size=(8, 6), **RESIZES[1]), axis=1)
        return {"y": ops.conv2d(y, **p["wide"], padding=1), "z": ops.conv2d(y, **p["mix"])}

    graph = trace(net, (1, 3, 8, 6), draw(pointwise("mix", 2, 6) | {"wide.weight": (2, 6, 3, 3)}))
    after = commute_linear(graph)
    assert macs(graph) - macs(after) == 36 * 3 * 2
    prove(graph, after)


def test_what_a_shared_resize_needs_is_not_saved(draw, prove):
    """8 -> 4 channels, enlarged for two; 4 -> 6 below the resize costs 24 a pixel, 8 -> 6 would cost 48 and save nothing."""

    def net(x, p):
        y = ops.resize(ops.conv2d(x, **p["a"]), size=(8, 6), **RESIZES[1])
        return {"y": ops.relu(y), "z": ops.conv2d(y, **p["b"])}

    graph = trace(net, (1, 8, 4, 3), draw(pointwise("a", 4, 8) | pointwise("b", 6, 4)))
    after = commute_linear(graph)
    assert macs(after) == 12 * (8 * 4 + 4 * 6)
    prove(graph, after)


@pytest.mark.parametrize("attrs", [{"padding": 1}, {"stride": 2}, {"groups": 3}, {"padding": ((0, 1), (0, 0))}], ids=str)
def test_other_convolutions_stay(attrs, draw):
    def net(x, p):
        y = ops.resize(x, size=(9, 7), **RESIZES[1])
        return ops.conv2d(y, **p["a"], **attrs)

    graph = trace(net, (1, 3, 3, 2), draw(pointwise("a", 3, 1 if "groups" in attrs else 3)))
    assert commute_linear(graph) == graph

    def inner(x, p):
        return ops.conv2d(ops.conv2d(x, **p["a"], **attrs), **p["b"])

    graph = trace(inner, (1, 3, 3, 2), draw(pointwise("a", 3, 1 if "groups" in attrs else 3) | pointwise("b", 1, 3)))
    assert commute_linear(graph) == graph


@pytest.mark.parametrize(
    ("model", "percent"),
    [
        ("hrvit_b1_segformer", 27),
        ("hrvit_b2_segformer", 14),
        ("hrvit_b3_segformer", 55),
        ("hrnet_w18_small_seg", 20),
        ("hrnet_w18_small_v2_seg", 11),
        ("hrnet_w48_seg", 8),
        ("hrnet_w48_ocr", 5),
        ("mobilevit_xxs_deeplabv3", 2),
    ],
)
def test_what_models_save(model, percent):
    graph = architecture_graph(model)
    after = commute_linear(fold_batch_norm(graph))
    assert round(100 * (1 - macs(after) / macs(graph))) == percent


def test_what_the_segformer_head_saves_to_the_last_multiplication():
    """The mixing convolution over four maps of 256 channels at stride 4 disappears in the four before it."""
    graph = architecture_graph("hrvit_b1_segformer")
    pixels, width = 128 * 128, 256
    assert macs(graph) - macs(commute_linear(fold_batch_norm(graph))) == pixels * width * 4 * width


@pytest.mark.parametrize("model", ["hrnet_w18_small", "hrvit_b1", "mobilevit_xxs", "mobilevit_xxs_ssdlite", "hrnet_w32_pose"])
def test_models_without_anything_to_save(model):
    graph = fold_batch_norm(architecture_graph(model, (64, 64)))
    assert commute_linear(graph) == graph
