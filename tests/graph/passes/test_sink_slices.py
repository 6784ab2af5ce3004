"""Rows that nobody reads: which ops drop them, which need all, and what ViT saves."""

import numpy as np
import pytest

from refvit import ops
from refvit.graph import trace
from refvit.graph.cost import total_cost
from refvit.graph.passes import sink_slices
from refvit.model import architecture_graph
from refvit.models.layers import self_attention, transformer_layer, transformer_parameters

D = 6


def dense(name, k=D, d=D):
    return {f"{name}.weight": (k, d), f"{name}.bias": (k,)}


SHAPES = {**dense("fc"), **dense("norm"), "norm.weight": (D,), "table": (1, 5, D), "row": (1, 1, D), "matrix": (5, D)}


def rows_of(graph, op):
    return [node.shape for node in graph if node.op == op]


def norm(x, p):
    return ops.layer_norm(x, **p["norm"], eps=1e-6)


ROW_WISE = {
    "relu": lambda x, p: ops.relu(x),
    "scale": lambda x, p: x * 0.5,
    "gelu": lambda x, p: ops.gelu(x, approximate="tanh"),
    "softmax": lambda x, p: ops.softmax(x, axis=-1),
    "layer_norm": norm,
    "linear": lambda x, p: ops.linear(x, **p["fc"]),
    "add": lambda x, p: x + p["table"],
    "add of fewer axes": lambda x, p: p["matrix"] + x,
    "multiply": lambda x, p: p["row"] * x,
    "transpose": lambda x, p: x.transpose(1, 0, 2).transpose(1, 0, 2),
    "reshape": lambda x, p: x.reshape(2, 5, 2, 3).reshape(2, 5, D),
    "matmul": lambda x, p: x @ p["fc"]["weight"],
}


@pytest.mark.parametrize("op", ROW_WISE)
@pytest.mark.parametrize("index", [0, -1, 3, slice(1, 3), slice(None, -2), slice(4, None)], ids=str)
def test_row_wise_ops(op, index, draw, prove):
    """sigmoid, the op, silu, and the selection: all that comes between it and the input sees the rows only."""
    graph = trace(lambda x, p: ops.silu(ROW_WISE[op](ops.sigmoid(x), p))[:, index], (2, 5, D), draw(SHAPES))
    after = sink_slices(graph)
    rows = len(range(5)[index]) if isinstance(index, slice) else 1
    assert rows_of(after, "silu") == rows_of(after, "sigmoid") == [(2, rows, D)]
    first = next(n for n in after if "input" in n.inputs)
    assert first.op == "getitem" and first.shape == (2, rows, D)
    assert "silu.rows" in after.nodes and "silu" not in after.nodes  # another value has another name
    prove(graph, after)


NOT_ROW_WISE = {
    "softmax over rows": lambda x, p: ops.softmax(x, axis=1),
    "mean": lambda x, p: ops.mean(x, axes=(1,), keepdims=True) + x,
    "concat": lambda x, p: ops.concat(x[:, 2:], x[:, :2], axis=1),
    "rows to columns": lambda x, p: x.reshape(2, D, 5).transpose(0, 2, 1),
    "rows of a matrix": lambda x, p: p["square"] @ x,
}


@pytest.mark.parametrize("name", NOT_ROW_WISE)
def test_other_ops_need_all_rows(name, draw, prove):
    graph = trace(lambda x, p: NOT_ROW_WISE[name](ops.sigmoid(x), p)[:, 0], (2, 5, D), draw({"square": (5, 5)}))
    after = sink_slices(graph)
    assert rows_of(after, "sigmoid") == [(2, 5, D)]
    prove(graph, after)


def test_features_are_no_rows_of_a_linear_layer(draw, prove):
    """Selecting features drops none of the ops that need them all."""
    graph = trace(lambda x, p: norm(ops.linear(x, **p["fc"]), p)[:, :, 2], (2, 5, D), draw(SHAPES))
    assert sink_slices(graph) == graph
    graph = trace(lambda x, p: ops.relu(ops.linear(x, **p["fc"]))[:, :, 2:4], (2, 5, D), draw(SHAPES))
    after = sink_slices(graph)
    assert rows_of(after, "relu") == [(2, 5, 2)] and rows_of(after, "linear") == [(2, 5, D)]
    prove(graph, after)


def test_what_lies_between_the_wanted_rows_is_computed_once(draw, prove):
    """Two heads read rows 1 and 3: rows 1 to 3 of their common norm, and each reads its own of them."""

    def net(x, p):
        y = norm(ops.sigmoid(x), p)
        return ops.linear(y[:, 1], **p["fc"]) + ops.relu(y[:, 3])

    graph = trace(net, (2, 5, D), draw(SHAPES))
    after = sink_slices(graph)
    assert rows_of(after, "layer_norm") == rows_of(after, "sigmoid") == [(2, 3, D)]
    prove(graph, after)


def test_a_value_that_is_wanted_as_a_whole(draw, prove):
    def net(x, p):
        y = ops.sigmoid(x)
        z = norm(y, p)
        return {"row": ops.relu(z)[:, 0], "all": y, "sum": ops.mean(z, axes=(1,))}

    graph = trace(net, (2, 5, D), draw(SHAPES))
    after = sink_slices(graph)
    assert rows_of(after, "sigmoid") == rows_of(after, "layer_norm") == [(2, 5, D)]
    assert rows_of(after, "relu") == [(2, 1, D)]
    assert after.outputs["all"] == "sigmoid"
    prove(graph, after)


def test_other_axes_and_other_indices(draw, prove):
    def net(x, p):
        y, z = ops.relu(x), ops.silu(x)
        return {
            "strided": y[:, 1::2],
            "first axis": z[1],
            "new axis": ops.sigmoid(x)[:, None, 0],
            "both": ops.hardswish(x)[1, 2:],
        }

    graph = trace(net, (2, 5, D), draw(SHAPES))
    after = sink_slices(graph)
    assert rows_of(after, "silu") == [(1, 5, D)]
    assert rows_of(after, "relu") == rows_of(after, "sigmoid") == rows_of(after, "hardswish") == [(2, 5, D)]
    prove(graph, after)


def test_rows_of_two_axes(draw, prove):
    """One image here, one token there: neither axis can be cut."""

    def net(x, p):
        y = ops.relu(x)
        return {"image": y[1], "token": y[:, 2]}

    graph = trace(net, (2, 5, D), draw(SHAPES))
    assert sink_slices(graph) == graph


def test_ops_that_want_different_rows_of_one_value(draw, prove):
    def net(x, p):
        y = norm(x, p)
        return ops.relu(y)[:, 1] + ops.silu(y)[:, 3] + ops.sigmoid(y)[:, 2]

    graph = trace(net, (2, 5, D), draw(SHAPES))
    after = sink_slices(graph)
    assert rows_of(after, "layer_norm") == [(2, 3, D)]
    assert rows_of(after, "relu") == rows_of(after, "silu") == rows_of(after, "sigmoid") == [(2, 1, D)]
    prove(graph, after)


def test_a_slice_of_a_slice(draw, prove):
    graph = trace(lambda x, p: ops.silu(ops.relu(x)[:, 1:4])[:, 1:], (2, 5, D), draw(SHAPES))
    after = sink_slices(graph)
    assert rows_of(after, "silu") == [(2, 2, D)] and rows_of(after, "relu") == [(2, 3, D)]
    prove(graph, after)


@pytest.mark.parametrize("index", [None, ..., (..., 2), (0, None), (slice(None), ..., 1)], ids=str)
def test_new_axes_and_ellipses_are_left_alone(index, draw):
    graph = trace(lambda x, p: ops.relu(x)[index], (2, 5, D), draw(SHAPES))
    assert sink_slices(graph) == graph


@pytest.mark.parametrize("index", [1, (slice(None), slice(None), 2)], ids=str)
def test_products_keep_all_but_their_rows(index, draw, prove):
    """A selected image or feature of a product is no reason to cut its first factor's rows."""

    def net(x, p):
        y = ops.relu(x)
        return {"matmul": (y @ p["square"])[index], "attention": ops.attention(y, ops.silu(x), x, scale=0.5)[index]}

    graph = trace(net, (2, D, D), draw({"square": (D, D)}))
    after = sink_slices(graph)
    assert after == graph
    prove(graph, after)


def attend(x, p):
    return self_attention(x, p["attn"], num_heads=3)


ATTENTION = {**dense("attn.qkv", 3 * D), **dense("attn.proj")}


@pytest.mark.parametrize("expand", [False, True], ids=["composite", "expanded"])
def test_queries_are_dropped_but_no_keys_and_values(expand, draw, prove):
    graph = trace(lambda x, p: attend(x, p)[:, 0], (2, 5, D), draw(ATTENTION), expand=expand)
    after = sink_slices(graph)
    assert rows_of(after, "linear") == [(2, 1, D), (2, 5, D), (2, 5, D), (2, 1, D)]
    assert rows_of(after, "attention") == ([] if expand else [(2, 3, 1, 2)])
    assert rows_of(after, "softmax") == ([(2, 3, 1, 5)] if expand else [])
    prove(graph, after)


def test_projections_stay_together_where_all_rows_are_wanted(draw):
    graph = trace(attend, (2, 5, D), draw(ATTENTION))
    assert sink_slices(graph) == graph


def test_projections_that_are_read_elsewhere_stay_together(draw, prove):
    """The queries' rows are taken from the whole then."""

    def net(x, p):
        qkv = ops.linear(x, **p["attn"]["qkv"])
        parts = qkv.reshape(2, 5, 3, 3, 2).transpose(2, 0, 3, 1, 4)
        y = ops.attention(parts[0], parts[1], parts[2], scale=0.5)
        return {"y": y[:, :, 0], "qkv": qkv}

    graph = trace(net, (2, 5, D), draw(ATTENTION))
    after = sink_slices(graph)
    assert rows_of(after, "linear") == [(2, 5, 3 * D)] and rows_of(after, "attention") == [(2, 3, 1, 2)]
    prove(graph, after)


def test_projections_that_are_interleaved_stay_together(draw, prove):
    """Head by head queries, keys and values: none of them is a run of rows of the weight."""

    def net(x, p):
        qkv = ops.linear(x, **p["attn"]["qkv"]).reshape(2, 5, 3, 3, 2).transpose(3, 0, 2, 1, 4)
        return ops.attention(qkv[0], qkv[1], qkv[2], scale=0.5)[:, :, 0]

    graph = trace(net, (2, 5, D), draw(ATTENTION))
    after = sink_slices(graph)
    assert rows_of(after, "linear") == [(2, 5, 3 * D)] and rows_of(after, "attention") == [(2, 3, 1, 2)]
    prove(graph, after)


def test_only_the_last_layer_computes_fewer_rows(draw, prove):
    def net(x, p):
        for i in range(2):
            x = transformer_layer(x, p["blocks"][i], num_heads=3, eps=1e-6, act=ops.relu)
        return x[:, 0]

    shapes = {name: shape for i in range(2) for name, shape in transformer_parameters(f"blocks.{i}", D, 4 * D)}
    graph = trace(net, (2, 5, D), draw(shapes))
    after = sink_slices(graph)
    assert [n.shape[1] for n in after if n.op == "linear"] == [5, 5, 5, 5, 1, 5, 5, 1, 1, 1]
    assert [n.shape[1] for n in after if n.op == "layer_norm"] == [5, 5, 5, 1]
    prove(graph, after)


@pytest.mark.parametrize(
    ("model", "tokens", "d", "read", "saved"),
    [
        ("vit_base_patch16_224", 197, 768, 1, 0.069),
        ("vit_tiny_patch16_224", 197, 192, 1, 0.069),
        ("vit_large_patch16_384", 577, 1024, 1, 0.035),
        ("deit_base_distilled_patch16_224", 198, 768, 2, 0.069),
    ],
)
def test_what_vit_saves(model, tokens, d, read, saved):
    """In the last block queries, projection, perceptron (4 d wide) and both products of attention see `read` tokens only."""
    graph = architecture_graph(model)
    before, after = total_cost(graph).macs, total_cost(sink_slices(graph)).macs
    assert before - after == (tokens - read) * ((1 + 1 + 4 + 4) * d * d + 2 * tokens * d)
    assert (before - after) / before == pytest.approx(saved, abs=5e-4)


@pytest.mark.parametrize("model", ["mobilevit_xxs", "hrnet_w18_small", "hrvit_b1"])
def test_models_that_read_all_they_compute(model):
    graph = architecture_graph(model, (64, 64))
    assert sink_slices(graph) == graph


def test_results_are_those_of_the_rows_alone(draw):
    """Against NumPy, without any interpreter: a linear layer of row 2."""
    params = draw(dense("fc"))
    graph = sink_slices(trace(lambda x, p: ops.linear(x, **p["fc"])[:, 2], (2, 5, D), params))
    from refvit.backends.numpy import compile_graph

    x = np.random.default_rng(5).standard_normal((2, 5, D))
    want = np.array([[sum(a * b for a, b in zip(row, w, strict=True)) for w in params["fc.weight"]] for row in x[:, 2]])
    np.testing.assert_allclose(compile_graph(graph)(x)["output"], want + params["fc.bias"], rtol=1e-13, atol=1e-14)
