"""Every invariant of a graph: one broken graph for each branch of `Graph.verify`."""

import dataclasses

import pytest

from refvit.errors import GraphError
from refvit.graph import Graph, Node
from refvit.graph.ir import ShapeOnly


def small(**changes):
    """x -> a = relu(x) -> b = linear(a, w), with one part replaced."""
    nodes = [Node("a", "relu", ("x",), {}, (2, 3), ""), Node("b", "linear", ("a", "w", None), {}, (2, 4), "")]
    parts = {
        "inputs": {"x": ShapeOnly((2, 3))}, "params": {"w": ShapeOnly((4, 3))}, "nodes": {n.name: n for n in nodes},
        "outputs": {"y": "b"}, "aliases": {"block": "b"},
    }  # fmt: skip
    return Graph(**parts | changes)


def with_node(key="b", **changes):
    nodes = dict(small().nodes)
    return small(nodes=nodes | {key: dataclasses.replace(nodes[key], **changes)})


BROKEN = [
    (lambda: small(params={"w": ShapeOnly((4, 3)), "x": ShapeOnly((2, 3))}), r"input and a parameter: \['x'\]"),
    (lambda: with_node(name="c"), "b: .* calls itself 'c'"),
    (lambda: small(params={"w": ShapeOnly((4, 3)), "a": ShapeOnly((2, 3))}), "a: two values have this name"),
    (lambda: with_node(op="conv5d"), "b: unknown op 'conv5d'; known are .*relu"),
    (lambda: with_node(inputs=("z", "w", None)), "b: reads 'z', which is not computed before it"),
    (lambda: small(nodes=dict(reversed(small().nodes.items()))), "b: reads 'a', which is not computed before it"),
    (lambda: with_node("a", inputs=("a",)), "a: reads 'a', which is not computed before it"),
    (lambda: with_node(inputs=("a", "w")), r"b: linear takes the tensors \('x', 'weight', 'bias'\), got \('a', 'w'\)"),
    (lambda: with_node(inputs=("a", "w", "x")), "b: linear: weight .* needs a bias"),
    (lambda: with_node(inputs=("a", None, None)), "b: .*"),  # a required tensor is left out
    (lambda: with_node(inputs=(None, "w", None)), "b: .+"),
    (lambda: with_node(attrs={"eps": 1.0}), "b: .*unexpected keyword argument 'eps'"),
    (lambda: with_node("a", op="softmax"), "a: .*'axis'"),
    (lambda: with_node(shape=(2, 5)), r"b: linear gives shape \(2, 4\), the node says \(2, 5\)"),
    (lambda: small(outputs={"y": "c"}), "output 'y' is the value 'c', which does not exist"),
    (lambda: small(aliases={"block": "c"}), "alias 'block' is the value 'c', which does not exist"),
    (lambda: small(outputs={}), "at least one output"),
]


@pytest.mark.parametrize(("build", "message"), BROKEN, ids=[m for _, m in BROKEN])
def test_verify(build, message):
    graph = small()
    assert graph.verify() is graph
    with pytest.raises(GraphError, match=message):
        build().verify()
