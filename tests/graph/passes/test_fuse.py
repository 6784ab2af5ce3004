"""Fused nodes: what goes into one and what must not, what they cost, and how they print."""

import numpy as np
import pytest

from refvit import ops
from refvit.backends.numpy import compile_graph
from refvit.errors import GraphError
from refvit.graph import Graph, Node, trace
from refvit.graph.cost import node_cost, total_cost
from refvit.graph.ir import OPS, ShapeOnly, Step
from refvit.graph.passes import fuse
from refvit.graph.passes.fuse import HEAVY, UNARY

CONV = {"conv.weight": (3, 3, 3, 3), "conv.bias": (3,)}
MAP = (2, 3, 6, 4)


def conv(x, p, name="conv"):
    return ops.conv2d(x, **p[name], padding=1)


def up(x, size=(6, 4)):
    return ops.resize(x, size=size, mode="nearest", align_corners=False)


def down(x, p, name="down"):
    return ops.conv2d(x, **p[name], stride=2)


def text(graph):
    """The nodes as print(graph) shows them, without shapes."""
    return [line.rsplit(" ", 1)[0].strip() for line in str(graph).splitlines()[1:-1] if "#" not in line]


def check(net, shape, shapes, draw, expected):
    """Bit for bit: the steps are the ops as they were."""
    graph = trace(net, shape, draw(shapes))
    after = fuse(graph)
    assert text(after) == expected
    x = np.random.default_rng(0).standard_normal(shape)
    want, got = compile_graph(graph)(x), compile_graph(after)(x)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    assert total_cost(after).macs == total_cost(graph).macs
    assert total_cost(after).params == total_cost(graph).params
    if expected != text(graph):
        assert total_cost(after).bytes < total_cost(graph).bytes


ACTIVATIONS = {
    "relu": (ops.relu, "relu(_)"),
    "silu": (ops.silu, "silu(_)"),
    "gelu": (lambda x: ops.gelu(x, approximate="tanh"), "gelu(_, approximate='tanh')"),
    "hardswish": (ops.hardswish, "hardswish(_)"),
    "sigmoid": (ops.sigmoid, "sigmoid(_)"),
    "scale": (lambda x: x * 0.5, "scale(_, factor=0.5)"),
}


def test_every_activation_is_tested():
    assert set(ACTIVATIONS) == set(UNARY)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_products(name, draw):
    act, shown = ACTIVATIONS[name]
    conv_text = "conv2d(input, conv.weight, conv.bias, padding=1)"
    check(lambda x, p: act(conv(x, p)), MAP, CONV, draw, [f"{name} = {conv_text} -> {shown}"])
    check(lambda x, p: act(ops.linear(x, **p["fc"])), (2, 4), {"fc.weight": (3, 4)}, draw,
          [f"{name} = linear(input, fc.weight, -) -> {shown}"])  # fmt: skip
    alone = ["matmul = matmul(input, m)", f"{name} = {shown.replace('(_', '(matmul')}"]  # only written-out attention has it
    check(lambda x, p: act(ops.matmul(x, p["m"])), (2, 4), {"m": (4, 5)}, draw, alone)


def test_basic_block(draw):
    def block(x, p):
        return ops.relu(conv(ops.relu(conv(x, p)), p, "conv2") + x)

    check(block, MAP, CONV | {"conv2.weight": (3, 3, 3, 3)}, draw, [
        "relu = conv2d(input, conv.weight, conv.bias, padding=1) -> relu(_)",
        "relu_1 = conv2d(relu, conv2.weight, -, padding=1) -> add(_, input) -> relu(_)",
    ])  # fmt: skip


def test_a_sum_of_branches_and_their_upsampling_is_one_node(draw):
    def finest(x, p):
        return ops.relu(ops.relu(x) + up(down(x, p)) + up(down(x, p, "further")))

    shapes = {"down.weight": (3, 3, 2, 2), "further.weight": (3, 3, 3, 3)}
    check(finest, MAP, shapes, draw, [
        "relu = relu(input)",
        "down = conv2d(input, down.weight, -, stride=2)",
        "further = conv2d(input, further.weight, -, stride=2)",
        "relu_1 = resize(down, size=(6, 4), mode='nearest', align_corners=False) -> add(relu, _) -> "
        "add(_, resize(further, size=(6, 4), mode='nearest', align_corners=False)) -> relu(_)",
    ])  # fmt: skip

    def middle(x, p):
        return ops.gelu(conv(x, p) + x + up(down(x, p)), approximate="none")

    check(middle, MAP, shapes | CONV, draw, [
        "down = conv2d(input, down.weight, -, stride=2)",
        "gelu = conv2d(input, conv.weight, conv.bias, padding=1) -> add(_, input) -> "
        "add(_, resize(down, size=(6, 4), mode='nearest', align_corners=False)) -> gelu(_, approximate='none')",
    ])  # fmt: skip


def test_of_two_products_the_later_takes_the_sum(draw):
    check(lambda x, p: conv(x, p) + conv(x, p, "conv2"), MAP, CONV | {"conv2.weight": (3, 3, 3, 3)}, draw, [
        "conv = conv2d(input, conv.weight, conv.bias, padding=1)",
        "add = conv2d(input, conv2.weight, -, padding=1) -> add(conv, _)",
    ])  # fmt: skip


def test_a_product_takes_the_sum_before_another_sum(draw):
    def net(x, p):
        y = conv(x, p)
        return y + (x + p["shift"])

    check(net, MAP, CONV | {"shift": (3, 1, 1)}, draw, [
        "add = add(input, shift)",
        "add_1 = conv2d(input, conv.weight, conv.bias, padding=1) -> add(_, add)",
    ])  # fmt: skip


def test_a_broadcast_term(draw):
    def net(x, p):
        return conv(x, p) + ops.broadcast(ops.mean(x, axes=(2, 3), keepdims=True), shape=MAP)

    check(net, MAP, CONV, draw, [
        "mean = mean(input, keepdims=True, axes=(2, 3))",
        "add = conv2d(input, conv.weight, conv.bias, padding=1) -> add(_, broadcast(mean, shape=(2, 3, 6, 4)))",
    ])  # fmt: skip


def kept_as_output(x, p):
    y = conv(x, p)
    return {"y": ops.relu(y), "conv": y}


def read_twice(x, p):
    y = conv(x, p)
    return ops.relu(y) + ops.silu(y)


def doubled(x, p):
    y = conv(x, p)
    return y + y


def grown(x, p):
    return ops.conv2d(x, **p["conv"], stride=(6, 4), padding=1) + x


def enlarged_for_two(x, p):
    y = up(down(x, p))
    return ops.softmax(y, axis=1) + (conv(x, p) + y)


def of_parameters(x, p):
    return ops.relu(p["table"] @ p["square"]) + (up(p["small"]) + conv(x, p))


CONV_TEXT = "conv = conv2d(input, conv.weight, conv.bias, padding=1)"


def test_what_depends_on_parameters_alone_is_not_computed_with_the_rest(draw):
    shapes = CONV | {"table": (6, 5), "square": (5, 4), "small": (1, 3, 3, 2)}
    check(of_parameters, MAP, shapes, draw, [
        "matmul = matmul(table, square)",
        "relu = relu(matmul)",
        "resize = resize(small, size=(6, 4), mode='nearest', align_corners=False)",
        "add_1 = conv2d(input, conv.weight, conv.bias, padding=1) -> add(resize, _) -> add(relu, _)",
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (kept_as_output, [CONV_TEXT, "relu = relu(conv)"]),
        (read_twice, [CONV_TEXT, "relu = relu(conv)", "silu = silu(conv)", "add = add(relu, silu)"]),
        (doubled, [CONV_TEXT, "add = add(conv, conv)"]),
        (grown, ["conv = conv2d(input, conv.weight, conv.bias, stride=(6, 4), padding=1)", "add = add(conv, input)"]),
        (lambda x, p: ops.softmax(conv(x, p), axis=1), [CONV_TEXT, "softmax = softmax(conv, axis=1)"]),
        (lambda x, p: ops.relu(ops.mean(x, axes=(2, 3))), ["mean = mean(input, axes=(2, 3))", "relu = relu(mean)"]),
        (
            enlarged_for_two,
            [
                "down = conv2d(input, down.weight, -, stride=2)",
                "resize = resize(down, size=(6, 4), mode='nearest', align_corners=False)",
                "softmax = softmax(resize, axis=1)",
                "add_1 = conv2d(input, conv.weight, conv.bias, padding=1) -> add(_, resize) -> add(softmax, _)",
            ],
        ),
    ],
)
def test_what_stays_apart(net, expected, draw):
    check(net, MAP if net is not grown else (2, 3, 5, 3), CONV | {"down.weight": (3, 3, 2, 2)}, draw, expected)


def test_steps_number_their_inputs(draw):
    graph = trace(lambda x, p: ops.relu(conv(x, p) + x), MAP, draw(CONV))
    (node,) = fuse(graph)
    assert (node.name, node.op, node.inputs) == ("relu", "fused", ("input", "conv.weight", "conv.bias"))
    attrs = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}
    assert node.attrs["steps"] == (Step("conv2d", (0, 1, 2), attrs), Step("add", (3, 0), {}), Step("relu", (4,), {}))
    with pytest.raises(TypeError, match="does not support item assignment"):
        node.attrs["steps"][0].attrs["stride"] = 2


def test_at_most_one_product_and_it_is_the_first(draw):
    def net(x, p):
        for i in range(3):
            x = ops.relu(conv(x, p, f"c{i}") + up(down(x, p, f"d{i}")) + x) * 0.5
        return x

    shapes = {f"{n}{i}.weight": (3, 3, s, s) for n, s in (("c", 3), ("d", 2)) for i in range(3)}
    for node in fuse(trace(net, MAP, draw(shapes))):
        if node.op == "fused":
            assert [s.op in HEAVY for s in node.attrs["steps"]] == [True] + [False] * 5


def test_cost_of_a_fused_node(draw):
    graph = fuse(trace(lambda x, p: ops.relu(conv(x, p) + x), MAP, draw(CONV)))
    cost = node_cost(graph, graph.nodes["relu"])
    assert cost.macs == 2 * 3 * 6 * 4 * 27 and cost.params == 3 * 27 + 3
    assert cost.bytes == 4 * (2 * 2 * 3 * 6 * 4 + 81 + 3)  # input read once, result written once


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((), "at least one step"),
        ((Step("conv5d", (0,), {}),), "conv5d"),
        ((Step("add", (0, 2), {}),), r"inputs below 2 expected, got 'add' and \(0, 2\)"),
        ((Step("relu", (0,), {}), Step("relu", (-1,), {})), r"below 3 expected, got 'relu' and \(-1,\)"),
        ((Step("matmul", (0, 1), {}),), r"matmul: .*\(2, 3\) @ \(4, 3\)"),
        ((Step("linear", (0, 1, None), {}), Step("softmax", (2,), {"axis": 5})), "axis 5"),
        ((Step("linear", (0, 1, None), {"eps": 1.0}),), "eps"),
        ((Step("relu", (0,), {}),), r"gives shape \(2, 3\), the node says \(2, 4\)"),
    ],
)
def test_verify_looks_into_fused_nodes(steps, message):
    def graph(steps):
        node = Node("y", "fused", ("x", "w"), {"steps": steps}, (2, 4), "")
        return Graph({"x": ShapeOnly((2, 3))}, {"w": ShapeOnly((4, 3))}, {"y": node}, {"output": "y"}, {})

    graph((Step("linear", (0, 1, None), {}), Step("relu", (2,), {}))).verify()
    with pytest.raises(GraphError, match=f"^y: .*{message}"):
        graph(steps).verify()


def test_macs_are_those_of_the_steps():
    steps = (Step("linear", (0, 1, None), {}), Step("relu", (3,), {}), Step("matmul", (4, 2), {}))
    shapes = [ShapeOnly(s) for s in ((2, 3), (4, 3), (4, 5))]
    assert OPS["fused"].macs(*shapes, steps=steps) == 2 * 3 * 4 + 2 * 4 * 5
