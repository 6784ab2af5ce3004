"""ONNX files as candidates, run by onnxruntime: right ones match under any names, a wrong attribute is found and named."""

import numpy as np
import pytest

import refvit
from refvit.errors import ConfigError
from refvit.graph.onnx import to_onnx

onnx = pytest.importorskip("onnx", reason="onnx is not installed: no model can be changed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: nothing runs the model")

MODEL = "mobilevit_xxs.cifar10"
NORM = "stages.3.1.transformer.1.norm1"


@pytest.fixture(scope="module")
def exported():
    graph = refvit.load(MODEL, backend="numpy").graph((1, 3, 64, 64), expand=True)
    return to_onnx(graph, graph.params)


def check(tmp_path, model, **options):
    path = tmp_path / "port.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return refvit.check(path, MODEL, **options)


def layer_norm(model, path):
    """The node that normalises, by the reference's name of its value."""
    return next(n for n in model.graph.node if n.op_type == "LayerNormalization" and n.output[0].startswith(path))


def without_names(model):
    """The same with names that say nothing, and no order in them."""
    numbers = iter(np.random.default_rng(3).permutation(10_000))
    new = {}
    for node in model.graph.node:
        node.name = ""
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name:
                    names[i] = new.setdefault(name, f"t{next(numbers)}")
    for value in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        value.name = new.get(value.name, value.name)
    return model


def test_a_right_one_matches_in_every_value(tmp_path, exported):
    report = check(tmp_path, exported)
    assert report.ok
    assert report.cause == "rounding only"
    assert len(report.findings) > 150
    assert {m.how for m in report.matching.matches} == {"path"}


def test_names_that_say_nothing(tmp_path, exported):
    report = check(tmp_path, without_names(onnx.load_from_string(exported)))
    assert report.ok
    assert len(report.findings) > 150


def test_what_it_answers_alone(tmp_path, exported):
    report = check(tmp_path, exported, outputs_only=True)
    assert report.ok
    assert [f.name for f in report.findings] == ["output"]


@pytest.mark.parametrize("named", [True, False])
def test_another_eps_is_found_where_it_is_and_named(tmp_path, exported, named):
    model = onnx.load_from_string(exported)
    (eps,) = (a for a in layer_norm(model, NORM).attribute if a.name == "epsilon")
    eps.f = 3e-4
    report = check(tmp_path, model if named else without_names(model))
    assert not report.ok
    assert report.first_divergence.value.startswith(NORM)
    assert report.cause == "layer-norm-eps"
    assert "eps 3.00e-04 where 1e-05" in report.diagnosis.sentence


def test_a_wrong_answer_of_the_file_as_it_is_run(tmp_path, exported):
    """Looking at values makes a runtime fuse less: what it answers without a look counts."""
    model = onnx.load_from_string(exported)
    head = next(n for n in model.graph.node if n.output[0] == model.graph.output[0].name)
    head.output[0] = "right"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1.02), "factor"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["right", "factor"], [model.graph.output[0].name]))
    report = check(tmp_path, model)
    assert not report.ok
    assert report.first_divergence.name == "output"


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"port\.onnx"):
        check(tmp_path, b"not a model")


def test_another_size_is_said(tmp_path, exported):
    x = np.random.default_rng(0).standard_normal((1, 3, 96, 96)).astype(np.float32)
    with pytest.raises(ConfigError, match="64"):
        check(tmp_path, exported, input=x)


def test_half_precision_between_floats(tmp_path, exported):
    """What converters that keep the types of inputs and outputs write: floats outside, half precision within."""
    model = onnx.load_from_string(exported)
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for tensor in model.graph.initializer:
        if tensor.data_type == single:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for node in model.graph.node:
        for names, old, new in ((node.input, "input", "input.half"), (node.output, "output", "output.half")):
            names[:] = [new if name == old else name for name in names]
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["input"], ["input.half"], to=half))
    model.graph.node.append(onnx.helper.make_node("Cast", ["output.half"], ["output"], to=single))
    report = check(tmp_path, model)
    assert report.ok, report.text()
    assert report.arithmetic == "float16"
