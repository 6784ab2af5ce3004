"""Callables and refvit's own backends as candidates, and how a candidate is chosen."""

import dataclasses

import numpy as np
import pytest

import refvit
from refvit.crosscheck.candidates import candidate
from refvit.crosscheck.candidates.collect import as_array, leaves
from refvit.crosscheck.candidates.dumps import Dumps
from refvit.crosscheck.candidates.function import Function, RefvitModel
from refvit.crosscheck.candidates.onnx_file import OnnxFile
from refvit.errors import ConfigError

X = np.random.default_rng(31).standard_normal((2, 3, 32, 32)).astype(np.float32)


def test_an_array():
    seen = []
    observed = Function(lambda x: seen.append(x) or x.mean((2, 3)), name="means").run(X)
    assert observed.outputs == ("output",)
    np.testing.assert_array_equal(observed.values["output"], X.mean((2, 3)))
    assert observed.values["output"].dtype == np.float32
    np.testing.assert_array_equal(seen[0], X)
    assert seen[0].dtype == np.float32


def test_the_input_and_the_result_are_nobody_elses():
    buffer = np.zeros((2, 3), np.float32)

    def careless(x):
        x[:] = 7
        buffer[:] = x.mean((2, 3))
        return buffer

    before = X.copy()
    observed = Function(careless).run(X)
    buffer[:] = -1
    np.testing.assert_array_equal(X, before)
    np.testing.assert_array_equal(observed.values["output"], np.full((2, 3), 7, np.float32))


def test_dicts_lists_and_what_is_inside_them():
    @dataclasses.dataclass
    class Boxes:
        first: object
        second: object

    values = {
        "stem.conv": X[:, :1],
        "pair": (X[:, 1:2], [X[:, 2:]]),
        "boxes": Boxes(X + 1, None),
        "label": np.array([3, 5]),
        "name": "text",
    }
    observed = Function(lambda x: values, name="f").run(X)
    assert list(observed.values) == ["stem.conv", "pair[0]", "pair[1][0]", "boxes[first]"] == list(observed.outputs)
    np.testing.assert_array_equal(observed.values["pair[1][0]"], X[:, 2:])
    assert observed.notes == ("label (int64), name (str): no floating-point numbers, and not compared",)
    several = Function(lambda x: [x, x + 1]).run(X)
    assert list(several.values) == ["output[0]", "output[1]"]


def test_of_a_dict_the_usual_names_of_results_are_the_results():
    assert Function(lambda x: {"stem": x, "logits": x}).run(X).outputs == ("logits",)
    assert Function(lambda x: {"stem": x, "top": x}).run(X).outputs == ("stem", "top")


@pytest.mark.parametrize("wrong", ["logits", "head.fc"])
def test_of_two_names_of_one_value_with_other_numbers_each_is_judged(wrong):
    """The result, which a dict has under a usual name, and the layer; the cause is sought in the numbers of the wrong one."""
    model = refvit.load(backend="numpy")

    def answers(x):
        shown = model.intermediates(x, "head*")  # so that few steps are before it
        logits = shown["head.fc"]
        return shown | {"logits": logits, "head.fc": logits} | {wrong: np.exp(logits) / np.exp(logits).sum()}

    report = refvit.check(answers, model)
    assert not report.ok and [f.candidate for f in report.findings if f.verdict == "diverges"] == [wrong]
    assert {"logits", "head.fc"} <= {f.candidate for f in report.findings}
    assert report.cause == "output-activation"
    assert refvit.check(lambda x: {"head.fc": model(x), "logits": model(x)}, model).ok


def test_a_value_in_a_shape_that_it_cannot_have_is_a_mismatch():
    model = refvit.load(backend="numpy")
    report = refvit.check(lambda x: {"stages.3": model.intermediates(x, "stem.conv")["stem.conv"], "logits": model(x)}, model)
    assert not report.ok and report.missing == ["stages.3"] and [m.candidate for m in report.matching.matches] == ["logits"]
    assert "fits no layout of that" in " ".join(report.text().split())


def test_layout_in_memory_does_not_matter():
    turned = np.asfortranarray(X)
    a = Function(lambda x: turned).run(X).values["output"]
    np.testing.assert_array_equal(a, X)
    assert a.flags.c_contiguous


@pytest.mark.parametrize("result", [None, "text", 3, [], np.array([1, 2]), np.array([1j]), {"a": object()}, np.empty((0, 3))])
def test_a_result_without_numbers_is_refused(result):
    with pytest.raises(ConfigError, match="f: an array of floating-point numbers, or a dict of them, expected, it returned"):
        Function(lambda x: result, name="f").run(X)


def test_what_it_raises_is_said():
    def broken(x):
        raise ZeroDivisionError("by nothing")

    with pytest.raises(ConfigError, match=r"broken failed for an input of 2x3x32x32: ZeroDivisionError: by nothing") as info:
        Function(broken, name="broken").run(X)
    assert isinstance(info.value.__cause__, ZeroDivisionError)


def test_containers_that_contain_themselves_end():
    ring = []
    ring.append(ring)
    assert list(leaves(ring, "a")) == []


def test_arrays_of_other_libraries_are_asked_for_their_numbers():
    class Tensor:
        def __init__(self, a):
            self.a = a

        def numpy(self):
            return self.a

    class OnDevice:
        dtype = "other.float32"

        def detach(self):
            return self

        def cpu(self):
            return Tensor(X)

        numpy = None

    np.testing.assert_array_equal(as_array(Tensor(X)), X)
    np.testing.assert_array_equal(as_array(X.tolist()), X.astype(np.float64))

    class Host(Tensor):
        dtype = "other.float32"

    OnDevice.cpu = lambda self: Host(X)
    np.testing.assert_array_equal(as_array(OnDevice()), X)


# refvit itself


def test_a_backend_shows_its_blocks_its_outputs_and_the_parameters(demo):
    model = refvit.Model(demo._weights, backend="numba")
    observed = RefvitModel(model).run(X)
    assert observed.values.keys() == {*model.graph(X.shape).aliases, "output"} and observed.outputs == ("output",)
    np.testing.assert_array_equal(observed.values["output"], model(X))
    want = model.intermediates(X)["stages.2.1"]
    np.testing.assert_allclose(observed.values["stages.2.1"], want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert observed.arithmetic == "float32" and observed.apart == {"output"}
    assert observed.parameters.keys() == demo._weights.params.keys()
    assert list(RefvitModel(model, outputs_only=True).run(X).values) == ["output"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_numpy_backend_shows_everything(demo, dtype):
    model = refvit.Model(demo._weights, backend="numpy", dtype=dtype)
    observed = RefvitModel(model).run(X)
    wanted = model.intermediates(X)
    assert observed.values.keys() == wanted.keys() | {"output"}
    np.testing.assert_array_equal(observed.values["stages.2.1"], wanted["stages.2.1"])
    assert observed.arithmetic == dtype
    assert list(RefvitModel(model, outputs_only=True).run(X).values) == ["output"]


# the choice


def test_what_is_which_candidate(demo, tmp_path):
    np.savez(tmp_path / "a.npz", stem=X)
    (tmp_path / "b.onnx").write_bytes(b"\x08\x07")
    assert isinstance(candidate(demo), RefvitModel)
    assert isinstance(candidate(tmp_path / "a.npz"), Dumps)
    assert isinstance(candidate(str(tmp_path / "a.npz"), outputs_only=True), Dumps)
    assert isinstance(candidate({"stem": X}), Dumps)
    assert isinstance(candidate(tmp_path / "b.onnx"), OnnxFile)
    assert isinstance(candidate(b"\x08\x07"), OnnxFile)
    own = candidate(lambda x: x, name="mine")
    assert isinstance(own, Function) and own.name == "mine"
    assert candidate(own) is own


@pytest.mark.parametrize(
    ("x", "message"),
    [(3, "candidate: a torch.nn.Module, an .onnx file, .* expected, got int"), ("w.pth", r"w.pth: a .pth file is not run")],
)
def test_what_is_none(x, message):
    with pytest.raises(ConfigError, match=message):
        candidate(x)


def test_an_option_that_it_does_not_have():
    with pytest.raises(ConfigError, match=r"Function has no option of that name: .*level"):
        candidate(lambda x: x, level="all")
