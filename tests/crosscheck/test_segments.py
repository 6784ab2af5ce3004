"""Cutting a graph at what is shown: every piece computes its value from its sources, whatever is shown."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from helpers.small import SMALL, small_graph

from refvit import ops
from refvit.backends import numpy as backend
from refvit.crosscheck.segments import Segment, golden, recompute, run, segments
from refvit.errors import ConfigError, GraphError
from refvit.graph import trace
from refvit.graph.ir import OPS, ShapeOnly

MODELS = ["vit", "mobilevit", "hrnet segmentation", "hrvit"]


def weights(shapes):
    rng = np.random.default_rng(3)
    return {n: np.abs(rng.standard_normal(s)) + 0.5 if n.endswith("running_var") else rng.standard_normal(s) for n, s in shapes}


def image(graph, seed=0):
    return np.random.default_rng(seed).standard_normal(graph.inputs["input"].shape)


@pytest.fixture(scope="module")
def case():
    """case(model) -> graph, input, every value of a float64 run; once for each model."""
    kept = {}

    def make(model):
        if model not in kept:
            graph = small_graph(model, weights, expand=True)
            x = image(graph)
            kept[model] = graph, x, {"input": x, **golden(graph, x, keep=list(graph.nodes))}
        return kept[model]

    return make


def traced(function, shape, **params):
    return trace(lambda x, p: function(x, p), shape, params)


def close(a, b):
    return a.shape == b.shape and np.abs(a - b).max() <= 1e-12 * np.abs(b).max()


@pytest.mark.parametrize("model", MODELS)
def test_golden_is_the_interpreter(model, case):
    graph, x, values = case(model)
    every = graph.with_outputs({n: n for n in graph.nodes})
    want = backend.compile_graph(every)(x)
    assert all(np.array_equal(values[n], a) for n, a in want.items())
    outputs = golden(graph, x)
    assert list(outputs) == list(graph.outputs)
    assert all(np.array_equal(a, values[graph.outputs[n]]) for n, a in outputs.items())
    block = next(iter(graph.aliases))
    few = golden(graph, x, keep=[block, "input"])
    assert np.array_equal(few[block], values[graph.aliases[block]]) and few["input"] is not None
    narrow = golden(graph, x, "float32")
    for name, a in narrow.items():
        assert np.array_equal(a, a.astype(np.float32)) and not np.array_equal(a, outputs[name])
        assert np.abs(a - outputs[name]).max() < 1e-3 * np.abs(outputs[name]).max()


def test_what_golden_cannot_give_is_said(case):
    graph, x, _ = case("vit")
    with pytest.raises(ConfigError, match=r"'blocks\.9' is no value of the graph; the first are"):
        golden(graph, x, keep=["blocks.9"])
    with pytest.raises(GraphError, match="input of shape"):
        golden(graph, x[:1])
    with pytest.raises(ConfigError, match=r"'blocks\.0' is no value of the graph"):
        segments(graph, ["blocks.0"])
    shapes = {n: ShapeOnly(a.shape) for n, a in graph.params.items()}
    with pytest.raises(GraphError, match=r"patch_embed\.proj\.weight: only its shape is known"):
        golden(dataclasses.replace(graph, params=shapes), x)


@pytest.mark.parametrize("model", MODELS)
def test_where_every_value_is_shown_a_segment_is_one_node_and_views(model, case):
    graph, _, values = case(model)
    cut = segments(graph, graph.nodes)
    assert [s.value for s in cut] == list(graph.nodes)
    for segment in cut:
        node = graph.nodes[segment.value]
        assert segment.nodes[-1] == node
        assert all(n.op in ("reshape", "transpose") for n in segment.nodes[:-1])
        assert all(OPS[graph.nodes[s].op].name not in ("reshape", "transpose") for s in segment.sources if s != "input")
        assert np.array_equal(recompute(graph, segment, values), values[segment.value])


@pytest.mark.parametrize("model", MODELS)
def test_where_outputs_are_shown_a_segment_reaches_back_to_the_input(model, case):
    graph, x, values = case(model)
    for segment in segments(graph, graph.outputs.values()):
        assert segment.sources == ("input",)
        needed = graph.with_outputs({"y": segment.value})
        assert {n.name: n for n in segment.nodes} == dict(needed.nodes)
        assert close(recompute(graph, segment, {"input": x}), values[segment.value])


def evaluate(graph, name, stops, known, fresh):
    """The value called name from the known ones at which to stop, by plain recursion."""
    if name in stops and name != fresh:
        return known[name]
    if name in graph.params:
        return graph.params[name]
    node = graph.nodes[name]
    arguments = [None if i is None else evaluate(graph, i, stops, known, fresh) for i in node.inputs]
    return OPS[node.op].function(*arguments, **node.attrs)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("model", ["vit", "hrnet segmentation"])
def test_any_values_shown(model, seed, case):
    """What is shown are other numbers than golden ones, so that a piece that reached too far back would show."""
    graph, _, values = case(model)
    rng = np.random.default_rng(seed)
    roots = [n.name for n in graph if n.op not in ("reshape", "transpose")]  # views: see below
    shown = {n for n in roots if rng.random() < (0.05, 0.3, 0.7)[seed % 3]} | set(graph.outputs.values())
    known = {n: a + 0.1 * rng.standard_normal(a.shape) for n, a in values.items() if n in shown or n == "input"}
    for segment in segments(graph, shown):
        assert set(segment.sources) <= {*shown, "input"} and segment.value not in segment.sources
        want = evaluate(graph, segment.value, {*shown, "input"}, known, segment.value)
        assert close(recompute(graph, segment, known), want)
        mine = {k: known[k] for k in segment.sources}
        assert close(recompute(graph, segment, mine), want)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("model", ["vit", "mobilevit", "hrvit"])
def test_golden_values_give_golden_values(model, seed, case):
    graph, _, values = case(model)
    rng = np.random.default_rng(100 + seed)
    shown = {n for n in graph.nodes if rng.random() < (0.02, 0.3)[seed % 2]} | set(graph.outputs.values())
    for segment in segments(graph, shown):
        assert close(recompute(graph, segment, {n: values[n] for n in segment.sources}), values[segment.value])


def branches(x, p):
    """A value a, its view b, and two readers of a: only the view is shown."""
    a = ops.conv2d(x, p["weight"])  # (1, 4, 5, 6)
    b = a.transpose(0, 2, 3, 1).reshape(1, 30, 4)
    return {"b": b, "c": ops.relu(a), "d": a.reshape(4, 30)}


def test_a_view_stands_for_what_it_is_a_view_of():
    weight = np.random.default_rng(0).standard_normal((4, 3, 1, 1))
    graph = traced(branches, (1, 3, 5, 6), weight=weight)
    view, relu, other = (graph.outputs[n] for n in "bcd")
    x = image(graph)
    a = OPS["conv2d"].function(x, weight)
    shown = np.random.default_rng(1).standard_normal((1, 30, 4))  # what the candidate has there instead
    ours = np.ascontiguousarray(shown.reshape(1, 5, 6, 4).transpose(0, 3, 1, 2))
    by_value = {s.value: s for s in segments(graph, [view, relu, other])}
    assert by_value[view].sources == ("input",)
    assert np.array_equal(recompute(graph, by_value[view], {"input": x}), a.transpose(0, 2, 3, 1).reshape(1, 30, 4))
    assert by_value[relu].sources == by_value[other].sources == (view,)
    assert np.array_equal(recompute(graph, by_value[relu], {view: shown}), np.maximum(ours, 0))
    assert np.array_equal(recompute(graph, by_value[other], {view: shown}), ours.reshape(4, 30))
    undone = [n for n in by_value[relu].nodes if n.name in graph.nodes and graph.nodes[n.name] != n]
    assert [n.op for n in undone] == ["reshape", "transpose"] and {n.name for n in undone} < set(graph.nodes)
    only = segments(graph, [relu])[0]
    assert only.sources == ("input",) and [n.op for n in only.nodes] == ["conv2d", "relu"]


def test_the_first_of_several_views_stands_for_all():
    """Otherwise two wrong views of one value could vouch for one another."""
    graph = traced(branches, (1, 3, 5, 6), weight=np.ones((4, 3, 1, 1)))
    view, _, other = (graph.outputs[n] for n in "bcd")
    first, second = segments(graph, [other, view])
    assert first.value == view and first.sources == ("input",)
    assert second.value == other and second.sources == (view,)


def test_a_slice_is_no_view_of_the_whole():
    def function(x, p):
        a = ops.relu(x)
        return {"left": a[:, :, :2], "both": ops.sigmoid(a)}

    graph = traced(function, (1, 3, 4))
    cut = {s.value: s for s in segments(graph, graph.outputs.values())}
    assert cut[graph.outputs["both"]].sources == ("input",)


def test_views_of_the_input_are_the_input():
    graph = traced(lambda x, p: {"y": ops.relu(x.reshape(3, 20).transpose(1, 0))}, (1, 3, 4, 5))
    names = list(graph.nodes)
    cut = segments(graph, ["input", *names])
    assert [s.value for s in cut] == ["input", *names] and cut[0] == Segment("input", (), ())
    assert all(s.sources == ("input",) for s in cut[1:])
    x = image(graph)
    assert recompute(graph, cut[0], {"input": x}) is x
    assert np.array_equal(recompute(graph, cut[-1], {"input": x}), np.maximum(x.reshape(3, 20).T, 0))


def test_hypotheses_change_parameters_and_nodes(case):
    graph, _, values = case("vit")
    names = [n.name for n in graph if n.name.startswith("blocks.0.mlp") or n.name == "blocks.0.norm2"]
    segment = next(s for s in segments(graph, ["blocks.0.add", "blocks.0.mlp.fc2"]) if s.value == "blocks.0.mlp.fc2")
    assert [n.name for n in segment.nodes] == names and segment.sources == ("blocks.0.add",)
    norm, fc1, gelu, fc2 = segment.nodes
    known = {"blocks.0.add": values["blocks.0.add"], "input": values["input"]}
    h = recompute(graph, segment, known)

    tanh = dataclasses.replace(gelu, attrs={"approximate": "tanh"})
    by_name, whole = (recompute(graph, segment, known, nodes=n) for n in ({gelu.name: tanh}, [norm, fc1, tanh, fc2]))
    assert np.array_equal(by_name, whole) and 1e-6 < np.abs(whole - h).max() / np.abs(h).max() < 1e-2

    bias = graph.params["blocks.0.mlp.fc2.bias"]
    shifted = recompute(graph, segment, known, params={"blocks.0.mlp.fc2.bias": bias + 1.0})
    assert close(shifted, h + 1.0)
    missing = dataclasses.replace(fc2, inputs=(fc1.name, *fc2.inputs[1:]))
    assert not close(recompute(graph, segment, known, nodes=[norm, fc1, missing]), h)
    extra = dataclasses.replace(fc2, inputs=(gelu.name, "ours", fc2.inputs[2]))
    swapped = recompute(
        graph, segment, known, params={"ours": graph.params["blocks.0.mlp.fc2.weight"] * 2}, nodes=[norm, fc1, gelu, extra]
    )
    assert close(swapped, 2 * (h - bias) + bias)

    with pytest.raises(GraphError, match=r"the nodes given do not compute it"):
        recompute(graph, segment, known, nodes=[norm, fc1])
    with pytest.raises(GraphError, match=r"blocks\.0\.mlp\.gelu: reads 'blocks\.0\.mlp\.fc1', which is neither"):
        recompute(graph, segment, known, nodes=[norm, gelu, fc2])


def test_a_run_lets_go_of_what_it_has_used():
    def function(x, p):
        for _ in range(30):
            x = ops.relu(x)
        return {"y": x}

    graph = traced(function, (1, 3, 200, 200))
    x = image(graph)
    tracemalloc.start()
    golden(graph, x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * x.nbytes


def test_a_run_gives_values_as_they_come(case):
    graph, x, values = case("hrnet segmentation")
    keep = {"conv1", "bn1", next(iter(graph.outputs.values()))}
    found = run(graph, {"input": x}, graph.params, keep)
    assert next(found)[0] == "conv1"
    name, a = next(found)
    assert name == "bn1" and np.array_equal(a, values["bn1"])
    assert len(list(found)) == 1


def test_small_models_are_all_cut(case):
    """Every published kind of graph goes through; blocks are what most candidates show."""
    for model in SMALL:
        graph = small_graph(model, weights, expand=True)
        shown = set(graph.aliases.values()) | set(graph.outputs.values())
        cut = segments(graph, shown)
        assert {s.value for s in cut} == shown and all(s.sources for s in cut)
