"""Views that cancel, activations that move before views, and nodes that nobody needs."""

import numpy as np
import pytest

from refvit import ops
from refvit.backends.numpy import compile_graph
from refvit.graph import Graph, block, trace
from refvit.graph.passes import cancel_views, fuse, lift_activations, remove_dead

SHAPE = (2, 3, 4, 5)


def same(graph, after):
    """Bit for bit: the passes of this file only move values."""
    after.verify()
    x = np.random.default_rng(0).standard_normal(graph.inputs["input"].shape)
    want, got = compile_graph(graph)(x), compile_graph(after)(x)
    assert list(got) == list(want)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def views(net, shape=SHAPE, params=None):
    graph = trace(net, shape, params or {})
    after = cancel_views(graph)
    same(graph, after)
    return [(n.op, dict(n.attrs)) for n in after], after


def resize(x, *size):
    return ops.resize(x, size=size, mode="bilinear", align_corners=False)


def test_chains_become_one():
    found, _ = views(lambda x, p: x.reshape(6, 20).reshape(2, -1, 10).reshape(3, 40))
    assert found == [("reshape", {"shape": (3, 40)})]
    found, _ = views(lambda x, p: x.transpose(1, 2, 3, 0).transpose(0, 2, 1, 3).transpose(3, 0, 1, 2))
    assert found == [("transpose", {"axes": (0, 1, 3, 2)})]


def test_what_changes_nothing_goes():
    for net in (
        lambda x, p: ops.relu(x.reshape(6, 20).reshape(*SHAPE)),
        lambda x, p: ops.relu(x.reshape(*SHAPE)),
        lambda x, p: ops.relu(x.transpose(0, 2, 3, 1).transpose(0, 3, 1, 2)),
        lambda x, p: ops.relu(resize(x, 4, 5)),
        lambda x, p: ops.relu(x.transpose(0, 1, 2, 3)),
    ):
        found, after = views(net)
        assert found == [("relu", {})] and after.nodes["relu"].inputs == ("input",)


def test_from_tokens_to_a_map_and_back():
    def net(x, p):
        y = ops.relu(x).reshape(2, 3, 20).transpose(0, 2, 1)
        return y.transpose(0, 2, 1).reshape(*SHAPE)

    found, after = views(net)
    assert found == [("relu", {})] and after.outputs == {"output": "relu"}


def test_a_block_that_ends_in_such_a_view_keeps_its_name():
    @block
    def inner(x, p):
        return ops.linear(x, **p).reshape(6, 24).reshape(2, 3, 4, 6)

    after = cancel_views(trace(lambda x, p: ops.relu(inner(x, p["fc"])), SHAPE, FC))
    assert after.aliases == {"fc": "fc.linear"} and [n.op for n in after] == ["linear", "relu"]


def test_what_is_not_the_identity_stays():
    kept = (
        lambda x, p: x.reshape(2, 3, 5, 4),
        lambda x, p: x.transpose(0, 1, 3, 2).reshape(*SHAPE),
        lambda x, p: resize(resize(x, 2, 3), 4, 5),
        lambda x, p: ops.relu(x).reshape(2, 4, 3, 5).transpose(0, 2, 1, 3),
    )
    for net in kept:
        _, after = views(net)
        assert after == trace(net, SHAPE, {})
    _, after = views(lambda x, p: x.transpose(1, 0, 2), (3, 3, 2))  # the same shape, other values
    assert [n.op for n in after] == ["transpose"]


def test_views_that_are_read_elsewhere_or_outputs():
    def net(x, p):
        a = x.reshape(6, 20)
        b = a.reshape(*SHAPE)
        return {"a": a, "b": b, "c": ops.relu(b), "d": ops.silu(a)}

    _, after = views(net)
    assert after.outputs == {"a": "reshape", "b": "input", "c": "relu", "d": "silu"}
    assert after.nodes["relu"].inputs == ("input",)


def layer(x, p):
    return ops.linear(x, **p["fc"])


FC = {"fc.weight": np.random.default_rng(1).standard_normal((6, 5)), "fc.bias": np.random.default_rng(2).standard_normal(6)}
CONV = {f"{n}.weight": np.random.default_rng(i).standard_normal((3, 3, 3, 3)) for i, n in enumerate("ab")}


def lifted(net, params=FC):
    graph = trace(net, SHAPE, params)
    after = lift_activations(graph)
    same(graph, after)
    return graph, after


@pytest.mark.parametrize("act", [ops.relu, ops.hardswish, lambda x: ops.gelu(x, approximate="none"), lambda x: x * 0.5])
def test_an_activation_moves_before_views(act):
    graph, after = lifted(lambda x, p: act(layer(x, p).transpose(0, 1, 3, 2).reshape(2, 18, 4)) * 2.0)
    name = list(graph.nodes)[3]
    assert [n.op for n in after] == ["linear", graph.nodes[name].op, "transpose", "reshape", "scale"]
    assert after.nodes[name].op == "reshape"  # its value keeps its name
    assert [n.op for n in fuse(after)] == ["fused", "transpose", "reshape", "scale"]


def test_an_activation_moves_before_a_concat():
    def net(x, p):
        ys = [ops.conv2d(x, **p[n], padding=1) for n in "ab"]
        return ops.gelu(ops.concat(ys[0], (ys[1] + x).transpose(0, 1, 2, 3), axis=1), approximate="tanh")

    _, after = lifted(net, CONV)
    assert [n.op for n in after] == ["conv2d", "conv2d", "add", "gelu", "gelu", "transpose", "concat"]
    assert all(n.attrs == {"approximate": "tanh"} for n in after if n.op == "gelu")


def read_twice(x, p):
    y = layer(x, p)
    return ops.relu(y.reshape(6, 24)) + y.reshape(6, 24)


def view_read_twice(x, p):
    y = layer(x, p).reshape(6, 24)
    return ops.relu(y) + y


def half_of_it_no_layer(x, p):
    return ops.relu(ops.concat(layer(x, p), ops.softmax(x, axis=-1), axis=-1))


def view_is_an_output(x, p):
    y = layer(x, p).reshape(6, 24)
    return {"y": y, "relu": ops.relu(y)}


def test_activations_that_stay():
    for net in (
        read_twice,
        view_read_twice,
        half_of_it_no_layer,
        view_is_an_output,
        lambda x, p: ops.relu(x.reshape(6, 20)),
        lambda x, p: ops.relu(ops.softmax(x, axis=1).reshape(6, 20)),
        lambda x, p: ops.softmax(layer(x, p).reshape(6, 24), axis=0),
        lambda x, p: ops.relu(layer(x, p)[:, 1:]),
    ):
        graph, after = lifted(net)
        assert after == graph


def test_dead_nodes():
    def net(x, p):
        ops.silu(ops.relu(x))
        y = ops.relu(x)
        ops.conv2d(y, **p["a"])
        return y

    graph = trace(net, SHAPE, CONV)
    after = remove_dead(graph)
    assert list(after.nodes) == ["relu_1"] and len(graph) == 4
    assert after.outputs == graph.outputs and after.params == graph.params and isinstance(after, Graph)
    assert remove_dead(after) == after
    same(graph, after)
