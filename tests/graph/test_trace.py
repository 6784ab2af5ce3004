"""Tracing, the names it gives, its errors, and the reference interpreter."""

import dataclasses

import numpy as np
import pytest

from refvit import ops
from refvit.backends.numpy import compile_graph
from refvit.errors import GraphError, ShapeError, TraceError, WeightsError
from refvit.graph import Graph, Node, block, op, trace
from refvit.graph.ir import ShapeOnly, size
from refvit.weights.params import Params


@block
def norm_act(x, p, *, act):
    x = ops.batch_norm(x, **p, eps=1e-5)
    return ops.relu(x) if act else x


@block
def conv_norm_act(x, p, *, act=True):
    return norm_act(ops.conv2d(x, **p["conv"], padding=1), p["bn"], act=act)


@block
def mlp(x, p):
    return ops.linear(ops.relu(ops.linear(x, **p["fc1"])), **p["fc2"])


@block
def layer(x, p):
    x = x + mlp(x, p["mlp"])
    return ops.scale(ops.scale(x, factor=2.0), factor=0.5)


def network(x, p):
    x = conv_norm_act(x, p["stem"])
    x = conv_norm_act(x, p["last"], act=False)
    x = ops.mean(x, axes=(2, 3))
    for i in range(2):
        x = layer(x, p["layers"][i])
    return {"features": x, "logits": ops.linear(x, **p["head"])}


def parameters(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = {}
    for name, c in (("stem", 3), ("last", 4)):
        shapes[f"{name}.conv.weight"] = (4, c, 3, 3)
        shapes |= {f"{name}.bn.{leaf}": (4,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    for i in range(2):
        shapes |= {f"layers.{i}.mlp.fc1.weight": (6, 4), f"layers.{i}.mlp.fc1.bias": (6,)}
        shapes |= {f"layers.{i}.mlp.fc2.weight": (4, 6), f"layers.{i}.mlp.fc2.bias": (4,)}
    shapes |= {"head.weight": (5, 4), "head.bias": (5,)}
    return {n: np.abs(rng.standard_normal(s)).astype(dtype) for n, s in shapes.items()}


def graph_of_network(**changes):
    return trace(network, (2, 3, 6, 6), parameters() | changes)


NODES = [
    "stem.conv", "stem.bn.batch_norm", "stem.bn.relu",
    "last.conv", "last.bn.batch_norm",
    "mean",
    "layers.0.mlp.fc1", "layers.0.mlp.relu", "layers.0.mlp.fc2", "layers.0.add", "layers.0.scale", "layers.0.scale_1",
    "layers.1.mlp.fc1", "layers.1.mlp.relu", "layers.1.mlp.fc2", "layers.1.add", "layers.1.scale", "layers.1.scale_1",
    "head",
]  # fmt: skip


def test_names():
    """The module of the weights, else block and op; a block that is the module itself keeps its path for its result."""
    graph = graph_of_network()
    assert list(graph.nodes) == NODES
    assert graph.aliases == {
        "stem": "stem.bn.relu", "stem.bn": "stem.bn.relu",
        "last": "last.bn.batch_norm", "last.bn": "last.bn.batch_norm",
        "layers.0.mlp": "layers.0.mlp.fc2", "layers.0": "layers.0.scale_1",
        "layers.1.mlp": "layers.1.mlp.fc2", "layers.1": "layers.1.scale_1",
    }  # fmt: skip
    assert graph.outputs == {"features": "layers.1.scale_1", "logits": "head"}
    scopes = {n.name: n.scope for n in graph}
    assert scopes["stem.conv"] == "stem" and scopes["stem.bn.relu"] == "stem.bn" and scopes["mean"] == ""
    assert scopes["layers.1.mlp.relu"] == "layers.1.mlp" and scopes["layers.1.add"] == "layers.1"


def test_names_in_execution_order_with_the_blocks_they_end():
    names = graph_of_network().names()
    assert list(names)[:9] == [
        "stem.conv", "stem.bn.batch_norm", "stem.bn.relu", "stem.bn", "stem",
        "last.conv", "last.bn.batch_norm", "last.bn", "last",
    ]  # fmt: skip
    assert names["stem"] == "stem.bn.relu" and names["layers.1"] == "layers.1.scale_1" and names["head"] == "head"
    identity = block(lambda x, p: x)
    graph = trace(lambda x, p: ops.relu(identity(x, p["a"])), (2,), {"a.weight": ShapeOnly((1,))})
    assert list(graph.names().items()) == [("a", "input"), ("relu", "relu")]


def test_a_node_is_never_called_like_a_parameter():
    graph = trace(lambda x, p: x * 0.5 + p["scale"] + p["scale"], (3,), {"scale": ShapeOnly((3,))})
    assert list(graph.nodes) == ["scale_1", "add", "add_1"]


def test_a_node_is_never_called_like_the_input_or_a_block():
    two = block(lambda x, p: ops.linear(ops.relu(x), **p))
    graph = trace(lambda x, p: ops.linear(two(x, p["a"]), **p["a"]), (3,), {"a.weight": ShapeOnly((3, 3))})
    assert list(graph.nodes) == ["a.relu", "a.linear", "a_1"]
    graph = trace(lambda x, p: ops.linear(x, **p["input"]), (3,), {"input.weight": ShapeOnly((3, 3))})
    assert list(graph.nodes) == ["input_1"]


def test_nodes():
    graph = graph_of_network()
    assert graph.nodes["stem.conv"].inputs == ("input", "stem.conv.weight", None)
    assert graph.nodes["stem.conv"].sources == ("input", "stem.conv.weight")
    assert graph.nodes["stem.conv"].attrs == {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}
    assert graph.nodes["layers.0.add"].inputs == ("mean", "layers.0.mlp.fc2")
    assert graph.nodes["stem.conv"].shape == (2, 4, 6, 6) and graph.nodes["head"].shape == (2, 5)
    assert len(graph) == len(NODES) and [n.name for n in graph] == NODES
    assert graph.value("mean") is graph.nodes["mean"] and graph.value("input").shape == (2, 3, 6, 6)
    assert graph.value("head.bias").shape == (5,) and size(graph.value("head")) == 10
    with pytest.raises(GraphError, match="'nothing'"):
        graph.value("nothing")


def test_users():
    graph = trace(lambda x, p: ops.relu(x) * ops.relu(x) + x, (2,), {})
    assert graph.users() == {
        "input": ["relu", "relu_1", "add"],
        "relu": ["multiply"],
        "relu_1": ["multiply"],
        "multiply": ["add"],
    }
    assert trace(lambda x, p: x + x, (2,), {}).users() == {"input": ["add", "add"]}


def test_shapes_are_enough():
    params = {n: ShapeOnly(p.shape) for n, p in parameters().items()}
    assert str(trace(network, (2, 3, 6, 6), params)) == str(graph_of_network())


@pytest.mark.parametrize(
    ("write", "op", "attrs", "shape"),
    [
        (lambda x: x * 2.5, "scale", {"factor": 2.5}, (2, 3, 4)),
        (lambda x: 3 * x, "scale", {"factor": 3}, (2, 3, 4)),
        (lambda x: x + x, "add", {}, (2, 3, 4)),
        (lambda x: x * x, "multiply", {}, (2, 3, 4)),
        (lambda x: x[:, None, 1:], "getitem", {"index": (slice(None), None, slice(1, None))}, (2, 1, 2, 4)),
        (lambda x: x.reshape(6, -1), "reshape", {"shape": (6, -1)}, (6, 4)),
        (lambda x: x.reshape((6, 4)), "reshape", {"shape": (6, 4)}, (6, 4)),
        (lambda x: x.transpose(2, 0, 1), "transpose", {"axes": (2, 0, 1)}, (4, 2, 3)),
        (lambda x: x.transpose((2, 0, 1)), "transpose", {"axes": (2, 0, 1)}, (4, 2, 3)),
        (lambda x: x.swapaxes(-1, 0), "transpose", {"axes": (2, 1, 0)}, (4, 3, 2)),
    ],
)
def test_operators(write, op, attrs, shape):
    """Each is one node, and the graph computes what NumPy computes."""
    graph = trace(lambda x, p: write(x), (2, 3, 4), {})
    (node,) = graph
    assert (node.op, dict(node.attrs), node.shape) == (op, attrs, shape)
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    np.testing.assert_array_equal(compile_graph(graph)(x)["output"], write(x))


def test_matmul_and_unpacking():
    def function(x, p):
        a, b = x
        return a @ b.swapaxes(0, 1)

    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    graph = trace(function, x.shape, {})
    assert [n.op for n in graph] == ["getitem", "getitem", "transpose", "matmul"]
    np.testing.assert_array_equal(compile_graph(graph)(x)["output"], x[0] @ x[1].T)


CANNOT = {
    "exp": lambda x, p: np.exp(x),
    "maximum": lambda x, p: np.maximum(x, 0),
    "concatenate": lambda x, p: np.concatenate([x, x]),
    "mean": lambda x, p: np.mean(x),
    "asarray": lambda x, p: np.asarray(x),
    "if": lambda x, p: ops.relu(x) if x else x,
    "not": lambda x, p: not x,
    "tensor + array": lambda x, p: x + np.ones((2, 3)),
    "array + tensor": lambda x, p: np.ones((2, 3)) + x,
    "tensor * array": lambda x, p: x * np.ones((2, 3)),
    "array * tensor": lambda x, p: np.ones((2, 3)) * x,
    "tensor @ array": lambda x, p: x @ np.ones((3, 2)),
    "array @ tensor": lambda x, p: np.ones((4, 2)) @ x,
    "add": lambda x, p: ops.add(np.ones((2, 3)), x),
    "weight": lambda x, p: ops.linear(x, np.ones((4, 3)), p["bias"]),
    "tensor + number": lambda x, p: x + 1.0,
}


@pytest.mark.parametrize("what", CANNOT)
def test_what_a_graph_cannot_hold_is_a_trace_error(what):
    with pytest.raises(TraceError):
        trace(CANNOT[what], (2, 3), {"bias": ShapeOnly((4,))})


def test_missing_parameter():
    params = parameters()
    del params["layers.1.mlp.fc2.weight"], params["layers.1.mlp.fc2.bias"]
    message = "layers.1.mlp.fc2"
    with pytest.raises(WeightsError, match=message):
        trace(network, (2, 3, 6, 6), params)
    with pytest.raises(WeightsError, match=message):
        network(np.ones((2, 3, 6, 6), np.float32), Params(params))


@pytest.mark.parametrize("leaf", ["surplus", "missing"])
def test_surplus_or_missing_tensor_is_an_error_of_the_call(leaf):
    params = parameters()
    if leaf == "surplus":
        params["head.gamma"] = np.ones(5, np.float32)
    else:
        del params["head.weight"]
    name = "gamma" if leaf == "surplus" else "weight"
    with pytest.raises(TypeError, match=name):
        network(np.ones((2, 3, 6, 6), np.float32), Params(params))
    with pytest.raises(TypeError, match=name):
        trace(network, (2, 3, 6, 6), params)


@pytest.mark.parametrize("name", ["layers.1.mlp.fc2.weight", "stem.bn.running_var"])
def test_shape_errors_say_where(name):
    params = parameters()
    params[name] = np.ones((*params[name].shape[:-1], 9), np.float32)
    with pytest.raises(ShapeError) as eager:
        network(np.ones((2, 3, 6, 6), np.float32), Params(params))
    with pytest.raises(ShapeError) as traced:
        trace(network, (2, 3, 6, 6), params)
    path = {"layers.1.mlp.fc2.weight": "layers.1.mlp: linear: ", "stem.bn.running_var": "stem.bn: batch_norm: "}[name]
    assert str(eager.value) == str(traced.value)
    assert str(eager.value).startswith(path)  # the innermost block, once


def test_expanded_composites_keep_their_name_as_an_alias():
    @block
    def attn(x, p):
        q, k, v = (ops.linear(x, **p[name]) for name in "qkv")
        return ops.linear(ops.attention(q, k, v, scale=0.5), **p["proj"])

    params = {f"attn.{n}.weight": ShapeOnly((4, 4)) for n in ("q", "k", "v", "proj")}
    short = trace(lambda x, p: attn(x, p["attn"]), (2, 3, 4), params)
    long = trace(lambda x, p: attn(x, p["attn"]), (2, 3, 4), params, expand=True)
    assert "attn.attention" in short.nodes and short.nodes["attn.attention"].op == "attention"
    assert [n.op for n in long] == ["linear"] * 3 + ["scale", "transpose", "matmul", "softmax", "matmul", "linear"]
    assert long.aliases["attn.attention"] == long.nodes["attn.proj"].inputs[0]
    assert list(short.names()) == [n for n in long.names() if n in short.names()]
    inner = [n for n in long.names() if n.startswith("attn.attention.")]
    assert inner == [f"attn.attention.{op}" for op in ("scale", "transpose", "matmul", "softmax", "matmul_1")]


def test_a_block_may_take_and_return_lists():
    @block
    def swap(xs, p):
        return [ops.linear(xs[1], **p["0"]), ops.relu(xs[0])]

    params = {f"s.{i}.weight": ShapeOnly((4, 4)) for i in range(2)}
    graph = trace(lambda x, p: swap([x, x], p["s"])[0] + x, (2, 4), params)
    assert [n.name for n in graph] == ["s.0", "s.relu", "add"]
    assert graph.aliases == {"s:0": "s.0", "s:1": "s.relu"}


def test_a_block_that_runs_twice_has_two_names():
    @block
    def twice(x, p):
        return ops.relu(ops.linear(x, **p["fc"]))

    graph = trace(lambda x, p: twice(twice(x, p["b"]), p["b"]), (2, 4), {"b.fc.weight": ShapeOnly((4, 4))})
    assert graph.aliases == {"b": "b.relu", "b_1": "b.relu_1"}


def test_an_op_takes_named_tensors_or_any_number():
    for wrong in (lambda *, factor: None, lambda x, *rest: None):
        with pytest.raises(TypeError, match="an op takes named tensors"):
            op(shape=lambda *xs, **attrs: ())(wrong)


def test_config_reaches_the_function():
    graph = trace(lambda x, p, *, times: x * float(times), (2,), {}, times=3)
    assert graph.nodes["scale"].attrs == {"factor": 3.0}


SNAPSHOT = """\
graph(input: 2x3x6x6)
  # stem
  .conv = conv2d(input, .conv.weight, -, padding=1){}2x4x6x6
  # model
  mean = mean(stem.conv, axes=(2, 3)){}2x4
  # tail
  .fc = linear(mean, .fc.weight, .fc.bias){}2x5
  return output=tail.fc"""


def test_str():
    conv = block(lambda x, p: ops.conv2d(x, **p["conv"], padding=1))
    tail = block(lambda x, p: ops.linear(x, **p["fc"]))
    shapes = {"stem.conv.weight": (4, 3, 3, 3), "tail.fc.weight": (5, 4), "tail.fc.bias": (5,)}
    params = {n: ShapeOnly(s) for n, s in shapes.items()}
    text = str(trace(lambda x, p: tail(ops.mean(conv(x, p["stem"]), axes=(2, 3)), p["tail"]), (2, 3, 6, 6), params))
    lines = [line.split("{}") for line in SNAPSHOT.splitlines()]
    assert text.splitlines() == [f"{line[0]:<100} {line[1]}" if len(line) > 1 else line[0] for line in lines]


def test_graph_is_immutable():
    graph = graph_of_network()
    node = graph.nodes["stem.conv"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.nodes = {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        node.op = "relu"
    for table in (graph.inputs, graph.params, graph.nodes, graph.outputs, graph.aliases, node.attrs):
        with pytest.raises(TypeError, match="does not support item assignment"):
            table["stride"] = 2
    attrs, nodes = {"factor": 2.0}, {}
    nodes["a"] = Node("a", "scale", ("x",), attrs, (2,), "")
    copy = Graph({"x": ShapeOnly((2,))}, {}, nodes, {"y": "a"}, {})
    attrs["factor"], nodes["b"] = 3.0, None
    assert copy.nodes["a"].attrs == {"factor": 2.0} and list(copy.nodes) == ["a"]


def test_with_outputs():
    graph = graph_of_network()
    other = graph.with_outputs({"stem": graph.names()["stem"], "x": "input"})
    assert other.outputs == {"stem": "stem.bn.relu", "x": "input"} and graph.outputs["logits"] == "head"
    assert list(other.nodes) == ["stem.conv", "stem.bn.batch_norm", "stem.bn.relu"]  # what no output needs is left out
    assert set(other.aliases) == {"stem", "stem.bn"} and len(graph.nodes) > 3
    with pytest.raises(GraphError, match="'nothing'"):
        graph.with_outputs({"y": "nothing"})


def test_interpreter_computes_what_the_eager_call_computes():
    x = np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32)
    want = network(x, Params(parameters()))
    graph = graph_of_network()
    run = compile_graph(graph.with_outputs({**graph.outputs, "x": "input", "again": "head", "w": "head.weight"}))
    for _ in range(2):
        got = run(x)
        assert list(got) == ["features", "logits", "x", "again", "w"]
        for name in ("features", "logits"):
            np.testing.assert_array_equal(got[name], want[name])
        np.testing.assert_array_equal(got["again"], want["logits"])
        assert got["x"] is x and got["w"] is graph.params["head.weight"]
    assert not np.array_equal(want["logits"][0], want["logits"][1])


def test_interpreter_drops_values_after_their_last_use(monkeypatch):
    """A long chain keeps two maps alive, not all of them; unused nodes are dropped at once."""
    import weakref

    from refvit.graph.ir import OPS

    alive, most = weakref.WeakSet(), 0

    class Tracked(np.ndarray):
        __hash__ = object.__hash__

    def relu(x):
        nonlocal most
        y = (np.maximum(x, 0) + 1).view(Tracked)
        alive.add(y)
        most = max(most, len(alive))
        return y

    monkeypatch.setitem(OPS, "relu", dataclasses.replace(OPS["relu"], function=relu))

    def chain(x, p):
        for _ in range(10):
            ops.relu(x)
            x = ops.relu(x)
        return x

    run = compile_graph(trace(chain, (3,), {}))
    np.testing.assert_array_equal(run(np.zeros(3))["output"], np.full(3, 10.0))
    assert most <= 3


def test_interpreter_refuses_other_inputs():
    run = compile_graph(graph_of_network())
    with pytest.raises(GraphError, match=r"\(2, 3, 6, 6\), got \(1, 3, 6, 6\)"):
        run(np.zeros((1, 3, 6, 6), np.float32))
    with pytest.raises(GraphError, match="the input is float16, the parameters are float32"):
        run(np.zeros((2, 3, 6, 6), np.float16))
