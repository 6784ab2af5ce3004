"""What depends on parameters alone is computed once: which nodes that is, and the graph without them."""

import numpy as np
import pytest

from refvit import ops
from refvit.backends.numpy import compile_graph
from refvit.errors import GraphError
from refvit.graph import trace
from refvit.graph.ir import ShapeOnly
from refvit.graph.passes import bind, constants

SHAPES = {"a": (4, 3), "b": (3,), "c": (2, 4), "unused": (7,)}


def net(x, p):
    weight = ops.transpose(ops.relu(p["a"]), axes=(1, 0)) @ p["a"]  # (3, 3), two users
    y = ops.linear(x, weight) + p["b"]
    return {"y": y + ops.mean(weight, axes=(0,)), "w": weight, "b": p["b"]}


def graph_of(params):
    return trace(net, (2, 3), params)


def test_constants():
    graph = graph_of({n: ShapeOnly(s) for n, s in SHAPES.items()})
    assert list(constants(graph)) == ["relu", "transpose", "matmul", "mean"]
    assert all(node is graph.nodes[name] for name, node in constants(graph).items())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bound_graph(dtype, draw):
    params = {n: a.astype(dtype) for n, a in draw(SHAPES).items()}
    graph = graph_of({n: ShapeOnly(s) for n, s in SHAPES.items()})  # arrays come with bind
    bound, values = bind(graph, params)
    assert list(bound.nodes) == ["linear", "add", "add_1"] and not constants(bound)
    assert set(values) == {"matmul", "mean", "b"} and bound.params == values  # not a, which only constants read
    assert values["b"] is params["b"] and all(a.dtype == dtype for a in values.values())
    relu = np.maximum(params["a"], 0)
    np.testing.assert_allclose(values["matmul"], relu.T @ params["a"], rtol=1e-6)
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(dtype)
    want, got = compile_graph(graph_of(params))(x), compile_graph(bound)(x)
    assert list(got) == list(want) == ["y", "w", "b"]
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def test_names_of_blocks_stay_with_their_values():
    params = {n: np.ones(s) for n, s in SHAPES.items()}
    graph = graph_of(params)
    named = type(graph)(graph.inputs, params, graph.nodes, graph.outputs, {"kept": "matmul", "gone": "relu", "sum": "add"})
    assert bind(named, params)[0].aliases == {"kept": "matmul", "sum": "add"}


def test_missing_and_wrong_parameters():
    graph = graph_of({n: ShapeOnly(s) for n, s in SHAPES.items()})
    params = {n: np.ones(s) for n, s in SHAPES.items()}
    with pytest.raises(GraphError, match=r"b: an array of shape \(3,\) expected, got none"):
        bind(graph, {n: a for n, a in params.items() if n != "b"})
    with pytest.raises(GraphError, match=r"a: an array of shape \(4, 3\) expected, got one of shape \(3, 4\)"):
        bind(graph, params | {"a": np.ones((3, 4))})
