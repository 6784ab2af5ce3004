"""Graphs as ONNX models, run by onnxruntime: the interpreter in float64 says what they must give."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from helpers.blocks import draw
from helpers.small import SMALL, small_graph

from refvit import ops
from refvit.backends.numpy import compile_graph
from refvit.errors import ConfigError, GraphError, UnsupportedError
from refvit.graph import trace
from refvit.graph.ir import OPS
from refvit.graph.onnx import RULES, to_onnx
from refvit.graph.passes import commute_linear, fold_batch_norm, fuse, sink_slices

EPS32 = np.finfo(np.float32).eps


def narrow(graph):
    """The same graph with parameters in float32."""
    return replace(graph, params={name: a.astype(np.float32) for name, a in graph.params.items()})


def run(model, x):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: nothing runs the exported model")
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("input", list(x.shape))]
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, {"input": x}), strict=True))


def check(graph, *exported, slack=4):
    """Every graph, exported, loses at most `slack` times what the reference loses in float32, and four ulps."""
    x = np.random.default_rng(5).standard_normal(graph.inputs["input"].shape, np.float32)
    golden, single = compile_graph(graph)(x.astype(np.float64)), compile_graph(narrow(graph))(x)
    for g in exported or (graph,):
        got = run(to_onnx(narrow(g), narrow(g).params), x)
        assert list(got) == list(golden)
        for name, want in golden.items():
            assert got[name].shape == want.shape and got[name].dtype == np.float32
            assert np.ptp(want) > 0, f"{name} shows nothing"
            own, error = np.abs(single[name] - want).max(), np.abs(got[name] - want).max()
            assert error <= slack * own + 4 * EPS32 * np.abs(want).max(), f"{name}: {error:.1e}, the reference {own:.1e}"


@pytest.mark.parametrize("model", SMALL)
def test_every_architecture(model):
    graph = small_graph(model, draw)
    folded = fold_batch_norm(graph)
    check(graph, graph, folded, sink_slices(commute_linear(folded)))


def one(function, size, weights=(), /, **attrs):
    """The graph of a single op on the input and `weights`, arrays that become parameters."""

    def forward(x, p):
        return function(x, *(p[f"w{i}"] for i in range(len(weights))), **attrs)

    return trace(forward, size, {f"w{i}": w for i, w in enumerate(weights)})


def normal(*shape, seed=2):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(np.float64)


@pytest.mark.parametrize(
    "index",
    [
        0, -1, (slice(None), 2), (slice(None), slice(1, -1)), (Ellipsis, 3), (slice(None), None, slice(2, None)),
        (1, Ellipsis, 0), (Ellipsis, slice(None, None, -1)), (slice(None), slice(4, 0, -2), Ellipsis), slice(None),
        (Ellipsis, None), (None, -2, 3, slice(1, None)),
    ],
)  # fmt: skip
def test_getitem(index):
    check(one(ops.getitem, (3, 5, 6), index=index))


@pytest.mark.parametrize(
    ("size", "mode", "align_corners", "antialias"),
    [
        ((14, 12), "nearest", False, False),
        ((28, 3), "nearest", False, False),
        ((5, 13), "nearest", False, False),
        ((14, 12), "bilinear", False, False),
        ((13, 3), "bilinear", False, False),
        ((13, 1), "bilinear", True, False),
        ((7, 6), "bilinear", True, False),
        ((9, 16), "bicubic", False, False),
        ((9, 4), "bicubic", True, False),
        ((3, 9), "bilinear", False, True),
        ((5, 2), "bicubic", False, True),
    ],
)
def test_resize(size, mode, align_corners, antialias):
    check(one(ops.resize, (2, 3, 7, 6), size=size, mode=mode, align_corners=align_corners, antialias=antialias))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 3), (5, 4), (9, 7)])
def test_adaptive_pooling_whether_or_not_the_sizes_divide(size):
    check(one(ops.adaptive_avg_pool, (2, 3, 6, 9), size=size))


@pytest.mark.parametrize(("axes", "keepdims"), [((2, 3), True), ((-1, -2), False), ((1,), True), ((0, 3), False)])
def test_mean(axes, keepdims):
    check(one(ops.mean, (2, 3, 4, 5), axes=axes, keepdims=keepdims))


@pytest.mark.parametrize(
    ("function", "attrs"),
    [
        (ops.gelu, {"approximate": "none"}),
        (ops.gelu, {"approximate": "tanh"}),
        (ops.hardswish, {}),
        (ops.sigmoid, {}),
        (ops.silu, {}),
        (ops.relu, {}),
        (ops.softmax, {"axis": 1}),
        (ops.scale, {"factor": 0.3}),
        (ops.pad, {"widths": ((0, 1), (2, 0), (0, 0), (3, 4)), "value": 1.5}),
        (ops.broadcast, {"shape": (2, 3, 4, 5)}),
        (ops.unfold_patches, {"patch": (2, 3)}),
        (ops.mask_tail, {"valid": 3, "value": -5.0}),
    ],
)
def test_ops_of_one_tensor(function, attrs):
    shape = {ops.broadcast: (2, 1, 4, 1), ops.mask_tail: (2, 3, 2, 4, 5)}.get(function, (2, 3, 4, 5))
    check(one(function, shape, **attrs))


@pytest.mark.parametrize(
    ("function", "shape", "weights", "attrs"),
    [
        (ops.conv2d, (2, 6, 9, 8), [(4, 3, 3, 2)], {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": 2, "groups": 2}),
        (ops.conv2d, (1, 6, 5, 5), [(6, 1, 3, 3), (6,)], {"padding": 1, "groups": 6}),
        (ops.linear, (2, 6), [(4, 6), (4,)], {}),
        (ops.linear, (2, 6), [(4, 6)], {}),
        (ops.linear, (2, 5, 6), [(4, 6)], {}),
        (ops.matmul, (2, 5, 6), [(6, 3)], {}),
        (ops.concat, (2, 5), [(2, 3)], {"axis": -1}),
        (ops.multiply, (2, 5, 3), [(5, 1)], {}),
        (ops.batch_norm, (2, 5), [(5,)] * 4, {"eps": 0.1}),
        (ops.layer_norm, (2, 3, 5), [(5,)] * 2, {"eps": 0.1}),
        (ops.attention, (2, 3, 5), [(2, 4, 5), (2, 4, 6)], {"scale": 0.7}),
        (ops.stripe_attention, (1, 4, 5, 3), [(1, 4, 5, 3)] * 2, {"stripe": 2, "num_heads": 2, "scale": 0.7}),
    ],
)
def test_ops_with_weights(function, shape, weights, attrs):
    values = [np.abs(normal(*w, seed=i)) + 0.1 for i, w in enumerate(weights)]
    check(one(function, shape, values, **attrs))


def test_every_op_that_models_use_has_a_translation():
    used = {node.op for model in SMALL for node in small_graph(model, dict_of_shapes, expand=True)}
    assert not used - set(RULES)
    assert {name for name, entry in OPS.items() if not entry.composite and name in ops.__all__} == set(RULES)


def dict_of_shapes(named):
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in named}


def test_intermediates_may_be_outputs_twice_and_unchanged_inputs_too():
    graph = small_graph("vit", draw)
    check(
        graph.with_outputs({"output": graph.outputs["output"], "again": graph.outputs["output"], "blocks": "blocks.0.attn.qkv"})
    )
    got = run(to_onnx(graph.with_outputs({"same": "input"}), {}), x := normal(2, 3, 32, 32).astype(np.float32))
    assert np.array_equal(got["same"], x)


def fields(message):
    """Number -> values of a protobuf message, by the format's description: an oracle that shares nothing with the writer."""
    found, at = {}, 0

    def integer():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        number, kind = divmod(integer(), 8)
        if kind == 0:
            value = integer()
        else:
            length = integer() if kind == 2 else {1: 8, 5: 4}[kind]
            value = message[at : at + length]
            at += length
        found.setdefault(number, []).append(value)
    return found


@pytest.mark.parametrize(("dtype", "code"), [("float16", 10), ("float32", 1), ("float64", 11)])
def test_the_file_by_hand(dtype, code):
    """A layer norm and a linear layer: every field of the message, without any library."""
    params = {"n.weight": normal(300), "n.bias": normal(300, seed=3), "fc.weight": normal(2, 300, seed=4)}
    params = {name: a.astype(dtype) for name, a in params.items()}
    graph = trace(lambda x, p: ops.linear(ops.layer_norm(x, **p["n"], eps=0.5), **p["fc"]), (1, 3, 300), params)
    model = fields(to_onnx(graph, params))
    assert model[1] == [8] and fields(model[8][0]) == {2: [17]}  # IR version, operator set
    body = fields(model[7][0])
    norm, product = map(fields, body[1])
    assert norm[1] == [b"input", b"n.weight", b"n.bias"] and norm[2] == [b"n"] and norm[4] == [b"LayerNormalization"]
    assert fields(norm[5][0]) == {1: [b"epsilon"], 2: [struct.pack("<f", 0.5)], 20: [1]}
    assert product[1][0] == b"n" and product[2] == [b"output"] and product[3] == [b"fc"] and product[4] == [b"MatMul"]
    stored = {t[8][0].decode(): t for t in map(fields, body[5])}
    assert stored.keys() == {"n.weight", "n.bias", product[1][1].decode()}
    for name, want in (("n.weight", params["n.weight"]), (product[1][1].decode(), params["fc.weight"].T)):
        t = stored[name]
        assert tuple(t[1]) == want.shape and t[2] == [code]
        assert np.array_equal(np.frombuffer(t[9][0], np.dtype(dtype).newbyteorder("<")).reshape(want.shape), want)
    kinds = [fields(fields(fields(body[n][0])[2][0])[1][0]) for n in (11, 12)]
    assert [k[1] for k in kinds] == [[code], [code]]
    assert [[fields(d)[1][0] for d in fields(k[2][0])[1]] for k in kinds] == [[1, 3, 300], [1, 3, 2]]
    assert [fields(body[n][0])[1] for n in (11, 12)] == [[b"input"], [b"output"]]


def test_what_cannot_be_exported():
    graph = narrow(small_graph("hrnet", draw))
    with pytest.raises(UnsupportedError, match=r"fused has no translation.*fuse"):
        to_onnx(fuse(graph), graph.params)
    mixed = {**graph.params, "conv1.weight": graph.params["conv1.weight"].astype(np.float64)}
    with pytest.raises(ConfigError, match="one floating dtype expected, got float32, float64"):
        to_onnx(graph, mixed)
    rest = {name: a for name, a in graph.params.items() if name != "conv1.weight"}
    with pytest.raises(GraphError, match=r"conv1.weight: an array of shape .* got none"):
        to_onnx(graph, rest)
    with pytest.raises(GraphError, match="'conv1' has the name of another value"):
        to_onnx(graph.with_outputs({"conv1": graph.outputs["output"], "c": "conv1"}), graph.params)


def test_a_message_holds_less_than_two_gibibytes():
    """Zeros that take no memory: the size is known before a byte is written."""
    huge = np.broadcast_to(np.float32(0), (2**15, 2**14 + 1))
    graph = trace(lambda x, p: ops.linear(x, p["w"]), (1, 2**14 + 1), {"w": huge})
    with pytest.raises(UnsupportedError, match="less than 2 GiB"):
        to_onnx(graph, {"w": huge})
