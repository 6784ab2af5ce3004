"""Which constants make which value of an ONNX graph, and what they say of the layer that is wrong."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers.injections import Bug, build, findings, run

from refvit.crosscheck.candidates.located import Layer
from refvit.crosscheck.candidates.onnx_file import CHANGED, OnnxFile, _changes
from refvit.crosscheck.candidates.onnx_layers import layers
from refvit.crosscheck.diagnose import diagnose
from refvit.graph.ir import OPS

RNG = np.random.default_rng(3)
CONSTANTS = {
    "w": RNG.standard_normal((4, 6)), "b": RNG.standard_normal(4), "k": RNG.standard_normal((4, 2, 3, 3)), "one": np.ones(1),
    "column": RNG.standard_normal((4, 1)), "hidden": None,
}  # fmt: skip


def node(op, inputs, output, **attributes):
    """As onnx has it."""
    listed = [SimpleNamespace(name=n, type=2 if isinstance(v, int) else 1, i=v, f=v) for n, v in attributes.items()]
    return SimpleNamespace(op_type=op, input=inputs, output=[output], attribute=listed)


@pytest.mark.parametrize(
    ("nodes", "weight", "bias"),
    [
        ([node("Conv", ["x", "k", "b"], "y", group=1)], CONSTANTS["k"], CONSTANTS["b"]),
        ([node("Conv", ["x", "k"], "y")], CONSTANTS["k"], None),
        ([node("Gemm", ["x", "w", "b"], "y", transB=1)], CONSTANTS["w"], CONSTANTS["b"]),
        ([node("Gemm", ["x", "w"], "y", alpha=0.5)], 0.5 * CONSTANTS["w"].T, None),
        ([node("MatMul", ["x", "w"], "y")], CONSTANTS["w"].T, None),
        ([node("MatMul", ["x", "w"], "p"), node("Add", ["one", "p"], "y")], CONSTANTS["w"].T, np.ones(6)),
        ([node("Gemm", ["x", "w"], "p", transB=1), node("Reshape", ["p", "shape"], "y")], CONSTANTS["w"], None),
        ([node("MatMul", ["x", "w"], "p"), node("Relu", ["p"], "y")], None, None),
        ([node("MatMul", ["x", "w"], "p"), node("Add", ["p", "column"], "y")], None, None),
        ([node("MatMul", ["x", "hidden"], "y")], None, None),
        ([node("Conv", ["x", "k", "hidden"], "y")], None, None),
        ([node("MatMul", ["w", "x"], "y")], None, None),
    ],
)
def test_the_layer_of_a_value(nodes, weight, bias):
    found = layers(nodes, CONSTANTS).get("y")
    if weight is None:
        assert found is None
        return
    assert np.array_equal(found.weight, weight)
    assert found.bias is None if bias is None else np.array_equal(found.bias, bias)


def answer(model, value, weight, bias, hidden=(), seed=5):
    """What is said of a layer with these constants, where they are known and where not. hidden: values that are not shown."""
    graph, x = build(model, seed)
    made = graph.nodes[value]
    product = graph.nodes[made.inputs[0]] if made.op == "batch_norm" else made
    layer = Layer(weight.astype(np.float32), None if bias is None else bias.astype(np.float32))
    added = np.zeros(len(weight)) if bias is None else bias

    def wrong(*arguments):
        a = np.asarray(values[product.inputs[0]], np.float64)
        return OPS[product.op].function(a, weight, added, **product.attrs)

    values = {**run(graph, x), next(iter(graph.inputs)): x}
    found, known = findings(graph, x, run(graph, x, Bug({value: wrong})), set(graph.nodes) - set(hidden))
    first = next(f for f in found if f.verdict == "diverges")
    assert first.value == value
    return tuple(diagnose(graph, first, found, known, x, "float32", {}, layer=given) for given in (layer, None))


def test_a_linear_layer_that_was_not_loaded():
    graph, _ = build("vit", 5)
    bias = graph.params["blocks.0.mlp.fc1.bias"]
    weight = 0.2 * RNG.standard_normal(graph.params["blocks.0.mlp.fc1.weight"].shape)
    seen, blind = answer("vit", "blocks.0.mlp.fc1", weight, bias)
    assert (seen.cause, blind.cause) == ("weights-not-loaded", "unknown")
    assert "blocks.0.mlp.fc1.weight has nothing in common" in seen.sentence
    seen, _ = answer("vit", "blocks.0.mlp.fc1", graph.params["blocks.0.mlp.fc1.weight"], None)
    assert seen.cause == "bias"
    assert "blocks.0.mlp.fc1.bias is missing" in seen.sentence


def folded(graph, norm):
    """Weight and bias of the convolution before it, with it folded in."""
    weight, bias, mean, var = (graph.params[i] for i in graph.nodes[norm].inputs[1:])
    factor = weight / np.sqrt(var + graph.nodes[norm].attrs["eps"])
    return graph.params[graph.nodes[graph.nodes[norm].inputs[0]].inputs[1]] * factor[:, None, None, None], bias - mean * factor


def square(graph):
    """A norm behind a convolution of as many channels as it takes."""
    shapes = {n.name: graph.params[graph.nodes[n.inputs[0]].inputs[1]].shape for n in graph if n.op == "batch_norm"}
    return next(name for name, shape in shapes.items() if shape[0] == shape[1] and shape[2] == 3)


def test_a_folded_convolution():
    """What was done to it behind the folding is no convention of the convolution alone."""
    graph, _ = build("hrnet pose", 5)
    norm = square(graph)
    before = graph.nodes[norm].inputs[0]
    weight, bias = folded(graph, norm)
    for (w, b), cause, text in (
        ((weight, None), "bias", f"{before}.bias is missing ({norm} folded into it)"),
        ((weight.swapaxes(0, 1), bias), "weight-transposed", f"{before}.weight lies otherwise"),
        ((RNG.standard_normal(weight.shape), bias), "weights-not-loaded", f"{before}.weight has nothing in common"),
    ):
        seen, blind = answer("hrnet pose", norm, w, b, hidden=[before])
        assert seen.cause == cause, seen
        assert text in seen.sentence
        assert blind.cause != cause


def test_right_constants_leave_the_layer_out_of_it():
    """The file shows that weight and bias are right, so what explains the value is something else."""
    graph, _ = build("hrnet pose", 5)
    norm = square(graph)
    before = graph.nodes[norm].inputs[0]
    weight, bias = folded(graph, norm)
    graph, x = build("hrnet pose", 5)
    found, known = findings(graph, x, run(graph, x, Bug({norm: lambda y, *_: y})), set(graph.nodes) - {before})
    first = next(f for f in found if f.verdict == "diverges")
    said = diagnose(
        graph, first, found, known, x, "float32", {}, layer=Layer(weight.astype(np.float32), bias.astype(np.float32))
    )
    assert said.cause == "batch-norm-missing"
    assert not said.notes


# the run with every value shown, and the one as it is


def test_outputs_that_showing_inner_values_changes_by_more_than_rounding():
    a = RNG.standard_normal((2, 5)).astype(np.float32)
    bad = a.copy()
    bad[0, 0] = np.nan
    step = CHANGED * np.finfo(np.float32).eps
    plain = {"same": a, "rounded": a * np.float32(1 + 0.5 * step), "other": a * np.float32(1.2), "lost": bad, "nan": bad}
    found = dict(_changes({"nan": bad, **dict.fromkeys(("same", "rounded", "other", "lost"), a)}, plain))
    assert found.keys() == {"other", "lost"} and found["other"] == pytest.approx(0.2 / 1.2, rel=1e-3)


@pytest.mark.parametrize("factor", [1.0, 1.2])
def test_what_is_judged_is_what_the_model_gives_as_it_runs(monkeypatch, factor):
    """A mistake of what a runtime fuses is in that run alone."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["inner"]), onnx.helper.make_node("Sigmoid", ["inner"], ["y"])],
        "two steps",
        [tensor("x", 1, [1, 3, 4, 4])],
        [tensor("y", 1, [1, 3, 4, 4])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    opened = OnnxFile._session

    def session(self, data, level=None):
        made = opened(self, data, level)
        if len(made.get_outputs()) > 1:
            return made
        run = lambda names, feed: [a * np.float32(factor) for a in made.run(names, feed)]  # noqa: E731
        return SimpleNamespace(get_inputs=made.get_inputs, get_outputs=made.get_outputs, run=run)

    monkeypatch.setattr(OnnxFile, "_session", session)
    x = RNG.standard_normal((1, 3, 4, 4)).astype(np.float32)
    observed = OnnxFile(model).run(x)
    np.testing.assert_allclose(observed.values["y"], factor / (1 + np.exp(-np.maximum(x, 0))), rtol=1e-5)
    assert list(observed.values) == ["x", "inner", "y"] and observed.outputs == ("y",)
    assert observed.apart == ({"y"} if factor > 1 else set())
    assert any("judged as it is without that" in note for note in observed.notes) == (factor > 1)
