"""`refvit.check` as a whole: candidates of every kind that needs no framework, in and out."""

import functools
import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import refvit
from refvit.crosscheck import comparison
from refvit.crosscheck.by_value import MOVES
from refvit.crosscheck.causes.table import BY_NAME
from refvit.crosscheck.diagnose import diagnose
from refvit.crosscheck.page import page
from refvit.errors import ConfigError, RefvitError, ShapeError, UnknownModelError, WeightsError
from refvit.graph.ir import OPS

ROOT = Path(__file__).parents[2]
TEN = "mobilevit_xxs.cifar10"
RNG = np.random.default_rng(21)
PIXELS = RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """The module examples/port.py, made right: its one mistake is the default of an argument."""
    folder = tmp_path_factory.mktemp("port")
    refvit.convert(TEN, folder / "ten.npz", to="timm", check=False)
    spec = importlib.util.spec_from_file_location("port", ROOT / "examples" / "port.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def epsilon(port, monkeypatch):
    """epsilon(1e-5) sets the constant of the port's layer norms."""
    return lambda value: monkeypatch.setattr(port.normalised, "__defaults__", (value,))


@pytest.fixture
def hasty(monkeypatch):
    """Few hypotheses: for verdicts on candidates that show so little that most of the time goes into the cause."""
    monkeypatch.setattr(comparison, "diagnose", functools.partial(diagnose, budget=10**7))


def x_of(image):
    return refvit.load()._prepare(image, None, False)[1].inputs[0][None]


def test_a_right_port_matches(port, epsilon):
    epsilon(1e-5)
    report = refvit.check(port.mobilevit_xxs, TEN, image=PIXELS)
    report.assert_matches()
    assert report.ok and report.cause == "rounding only" and report.arithmetic == "float32" and not report.declared
    assert report.candidate == "mobilevit_xxs" and report.model == TEN and report.input == "<array>, 1x3x64x64"
    assert {m.candidate for m in report.matching.matches} == set(port.mobilevit_xxs(x_of(PIXELS)))
    assert report.weights_sha256 == refvit.load()._weights.sha256


@pytest.mark.parametrize("wrong", [1e-3, 1e-12])
def test_a_wrong_constant_is_found_and_named(port, epsilon, wrong):
    epsilon(wrong)
    report = refvit.check(port.mobilevit_xxs, TEN, image=PIXELS)
    assert not report.ok and report.cause == "layer-norm-eps"
    assert report.first_divergence.name == "stages.2.1.transformer.0.add"
    assert report.first_divergence.candidate == "encoder_2_0_attention"
    with pytest.raises(AssertionError, match="layer-norm-eps"):
        report.assert_matches()


def test_a_wrong_answer_is_not_hidden_by_showing_little(port, epsilon, hasty):
    epsilon(1e-3)
    report = refvit.check(lambda x: port.mobilevit_xxs(x)["logits"], TEN, image=PIXELS)
    assert not report.ok and len(report.findings) == 1 and report.findings[0].verdict == "diverges"
    epsilon(1e-5)
    assert refvit.check(lambda x: port.mobilevit_xxs(x)["logits"], TEN, image=PIXELS).ok


def test_dumps_are_candidates(port, epsilon, tmp_path):
    epsilon(1e-5)
    shown = port.mobilevit_xxs(x_of(PIXELS))
    assert refvit.check(shown, TEN, image=PIXELS).ok
    np.savez(tmp_path / "v.npz", **shown)
    assert refvit.check(tmp_path / "v.npz", TEN, image=PIXELS).ok
    shown["top"] = shown["top"] * np.float32(1.001)
    np.savez(tmp_path / "v.npz", **shown)
    report = refvit.check(str(tmp_path / "v.npz"), TEN, image=PIXELS, names={"top": "final_conv"})
    assert report.first_divergence.name == "final_conv"
    doubtful = refvit.check(str(tmp_path / "v.npz"), TEN, image=PIXELS)  # it need not be that: the answer is right
    assert doubtful.ok and "doubtful          top as final_conv: matched by numbers alone" in doubtful.text()
    assert 'class="verdict doubtful"' in page(doubtful)


@pytest.mark.parametrize("kind", ["dict", "npz"])
def test_dumps_without_their_input_are_not_held_against_noise(port, epsilon, tmp_path, kind):
    epsilon(1e-5)
    shown = port.mobilevit_xxs(x_of(PIXELS))
    np.savez(tmp_path / "v.npz", **shown)
    with pytest.raises(ConfigError, match="holds no input that it was made from; add it as 'input', or give image"):
        refvit.check(shown if kind == "dict" else tmp_path / "v.npz", TEN)
    assert refvit.check({**shown, "input": x_of(PIXELS)}, TEN).ok


def test_of_several_possible_inputs_the_preprocessed_one_counts(port, epsilon):
    epsilon(1e-5)
    shown = port.mobilevit_xxs(x_of(PIXELS))
    raw = PIXELS.transpose(2, 0, 1)[None].astype(np.float32)
    assert refvit.check({"image": raw, "pixel_values": x_of(PIXELS), **shown}, TEN).ok


@pytest.mark.parametrize(
    "form",
    [
        {"nodes": "*"},
        {"tile": (5, 9), "format": "bin"},
        {"format": "hex", "layout": "nhwc", "tile": (16, 16), "weights_too": True},
        {"dtype": "float64", "format": "bin", "weights_too": True, "layout": "nhwc"},
    ],
    ids=str,
)
def test_what_was_dumped_matches(tmp_path, form):
    """And the input is the one that the folder holds, whatever it was made from."""
    facts = refvit.dump(TEN, tmp_path / "d", image=PIXELS, **{"nodes": ["stem*", "stages.2.1*"], **form})
    report = refvit.check(tmp_path / "d", TEN)
    report.assert_matches()
    assert len(report.findings) == len(facts["values"])
    assert report.matching.unmatched_candidate == ()
    assert {m.how for m in report.matching.matches} == {"path"}
    assert report.arithmetic == form.get("dtype", "float32")


def test_a_dump_that_was_changed_does_not_match(tmp_path, hasty):
    refvit.dump(TEN, tmp_path / "d", image=PIXELS, nodes="stages.?")
    path = tmp_path / "d" / "stages.3.npy"
    a = np.load(path)
    a[0, 7] *= 1.01
    np.save(path, a)
    report = refvit.check(tmp_path / "d", TEN)
    assert report.first_divergence.name == "stages.3"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_refvit_itself_matches(dtype):
    report = refvit.check(refvit.load(backend="numpy", dtype=dtype), TEN, image=PIXELS)
    report.assert_matches()
    assert report.arithmetic == dtype and len(report.findings) > 300


def test_backends_match_by_their_names():
    for backend in ("numpy", "numba"):
        report = refvit.check(backend, TEN, image=PIXELS)
        report.assert_matches()
        assert any(f.name == "output" or f.value == "head.fc" for f in report.findings)


def test_other_weights_do_not_match(xxs, hasty):
    model = refvit.load("mobilevit_xxs", dict(xxs), backend="numpy")
    tuned = {name: a * 1.01 if name == "stages.4.0.conv3_1x1.conv.weight" else a for name, a in xxs.items()}
    other = refvit.load("mobilevit_xxs", tuned, backend="numpy")
    x = RNG.random((1, 3, 64, 64)).astype(np.float32)
    assert not refvit.check(lambda a: other(a), model, input=x).ok
    assert refvit.check(lambda a: other(a), other, input=x).ok


def test_without_an_input_it_is_seeded_and_said():
    seen = []
    model = refvit.load(backend="numpy")
    for _ in range(2):
        report = refvit.check(lambda x: (seen.append(x.copy()), model(x))[1], TEN)
        assert report.ok and "seeded" in report.input
    assert np.array_equal(seen[0], seen[-1]) and seen[0].dtype == np.float32 and seen[0].shape == (1, 3, 64, 64)


def test_several_images_at_once_are_an_input():
    x = RNG.random((2, 3, 96, 64)).astype(np.float64)
    model = refvit.load(backend="numpy")
    report = refvit.check(lambda a: model(a), TEN, input=x)
    assert report.ok and report.input == "the given array, 2x3x96x64"


def test_a_lower_precision_has_to_be_declared(port, epsilon):
    epsilon(1e-5)

    def half(x):
        return {n: a.astype(np.float16).astype(np.float32) for n, a in port.mobilevit_xxs(x).items()}

    assert not refvit.check(half, TEN, image=PIXELS).ok
    report = refvit.check(half, TEN, image=PIXELS, arithmetic="float16")
    assert report.ok and report.declared and "as exactly as float16 can" in report.text()


def test_a_narrow_array_that_is_none_of_its_values_allows_nothing(port, epsilon, hasty):
    """Nor does an input that is kept in half precision."""
    epsilon(1e-3)
    beside = {"timing": np.ones(3, np.float16), "counts": np.ones((2, 7), np.float16)}
    report = refvit.check(lambda x: {**port.mobilevit_xxs(x), **beside}, TEN, image=PIXELS)
    assert report.arithmetic == "float32" and not report.ok
    x = x_of(PIXELS).astype(np.float16)
    report = refvit.check({"input": x, **port.mobilevit_xxs(x.astype(np.float32))}, TEN)
    assert report.arithmetic == "float32" and not report.ok


def test_one_value_in_half_precision_allows_all_the_same_and_says_so(port, epsilon):
    epsilon(1e-5)

    def half(x, name):
        return {n: a.astype(np.float16) if n == name else a for n, a in port.mobilevit_xxs(x).items()}

    report = refvit.check(lambda x: half(x, "stem"), TEN, image=PIXELS)
    assert report.ok and report.arithmetic == "float16"
    assert "values are float16 and float32: all are allowed what float16 costs" in report.text().replace("\n" + " " * 20, " ")
    assert not refvit.check(lambda x: half(x, "stem"), TEN, image=PIXELS, arithmetic="float32").ok


def test_right_steps_that_add_up_to_a_wrong_output_are_a_mismatch():
    """Every operation that computes gives a few ulps too much, always in one direction."""
    truth = refvit.load(backend="numpy", dtype="float64")
    x = x_of(PIXELS)
    graph = truth.graph(x.shape, expand=True)

    def biased(share):
        values = {**{n: np.asarray(p, np.float64) for n, p in graph.params.items()}, "input": x.astype(np.float64)}
        for node in graph:
            y = OPS[node.op].function(*(None if i is None else values[i] for i in node.inputs), **node.attrs)
            kept = node.op in (*MOVES, "softmax", "layer_norm")
            values[node.name] = np.asarray(y * (1 if kept else 1 + share), np.float32).astype(np.float64)
        return {n: values[n].astype(np.float32) for n in graph.nodes}

    report = refvit.check({"input": x, **biased(3.6e-7)}, TEN)
    assert not report.ok and report.first_divergence is None and report.cause == "adds up"
    text = report.text()
    assert "what to do" in text and "at the output" in text and "values are off by more than 8 times" in text
    with pytest.raises(AssertionError, match="adds up"):
        report.assert_matches()
    assert refvit.check({"input": x, **biased(0)}, TEN).ok


def test_names_and_layouts_can_be_given(port, epsilon):
    epsilon(1e-5)
    names = {"mobilevit_3": "stages.3", "stem": "stem"}
    report = refvit.check(port.mobilevit_xxs, TEN, image=PIXELS, names=names, layouts={"mobilevit_*": "nhwc"})
    how = {m.candidate: m.how for m in report.matching.matches}
    assert report.ok and how["mobilevit_3"] == "map" and how["stem"] == "map" and how["top"] == "value"
    swapped = refvit.check(port.mobilevit_xxs, TEN, image=PIXELS, names={"encoder_2_0_attention": "stages.2.1.transformer.0"})
    assert not swapped.ok  # a map is believed


def test_fields_change_the_reference(port, epsilon):
    epsilon(1e-5)
    seen = []
    for value in (0.5, 0.25):
        report = refvit.check(
            lambda x: (seen.append(x), port.mobilevit_xxs(x))[1], TEN, image=PIXELS, mean=(value,) * 3, std=(value,) * 3
        )
        assert report.ok
    np.testing.assert_allclose(seen[-1], 2 * seen[0] + 1, atol=1e-6)  # x / 0.25 - 1, of x / 0.5 - 1


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (TEN, {"arithmetic": "float8"}, ConfigError, "arithmetic='float8': one of float64, float32, tf32"),
        (TEN, {"image": PIXELS, "input": np.zeros((1, 3, 64, 64))}, ConfigError, "image= and input=: one of them"),
        (TEN, {"input": np.zeros((3, 64, 64))}, ShapeError, r"\(n, 3, h, w\)"),
        (TEN, {"input": [1.0]}, ConfigError, "a floating-point ndarray"),
        (TEN, {"colour": 1}, ConfigError, "unknown option 'colour'"),
        (TEN, {"names": {"nothing": "stem"}}, ConfigError, "nothing"),
        (TEN, {"names": {"stem": "nothing"}}, ConfigError, "nothing"),
        ("mobilevit_x", {}, UnknownModelError, "mobilevit_x"),
        ("mobilevit_xxs", {"weights": "gone.npz"}, WeightsError, "gone.npz"),
        (None, {}, ConfigError, "the name of a model expected"),
    ],
    ids=str,
)
def test_arguments_are_refused(port, model, options, error, message):
    with pytest.raises(error, match=message):
        refvit.check(port.mobilevit_xxs, model, **options)


@pytest.mark.parametrize("candidate", [None, 3, [1, 2], "gone.onnx", "gone.npz", "gone", {}], ids=str)
def test_what_is_no_candidate_is_refused(candidate):
    with pytest.raises(RefvitError) as caught:
        refvit.check(candidate, TEN, image=PIXELS)
    assert len(str(caught.value)) > 20


def test_a_candidate_that_fails_says_so():
    def broken(x):
        raise KeyError("conv7")

    with pytest.raises(ConfigError, match=r"broken.*1x3x64x64.*KeyError: 'conv7'") as caught:
        refvit.check(broken, TEN, image=PIXELS)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_candidate_without_the_output_is_a_mismatch(port, epsilon):
    epsilon(1e-5)
    report = refvit.check(lambda x: {"top": port.mobilevit_xxs(x)["top"]}, TEN, image=PIXELS)
    assert not report.ok and report.missing == ["output"] and report.cause == "missing output"
    assert [f.name for f in report.findings] == ["final_conv", "output"]  # being its only result does not make it the output


def test_an_output_of_another_shape_is_said_to_be_so():
    model = refvit.load(backend="numpy")
    report = refvit.check(lambda x: np.tile(model(x), 7), TEN, image=PIXELS)
    assert not report.ok and report.cause == "wrong shape" and "rounding" not in repr(report)
    said = " ".join(report.text().split())
    assert "wrong shape output (called like output, which is 1x10, and 1x70 fits no layout of that)" in said
    assert "what to do" in said and "not compared 1 of the candidate" not in said
    report = refvit.check(lambda x: {"odd": np.tile(model(x), 7)}, TEN, image=PIXELS)
    assert not report.ok and report.cause == "missing output"
    assert "1 of the candidate: odd (called like output, which is 1x10, and 1x70 fits" in " ".join(report.text().split())


def test_nan_is_a_mismatch_without_a_warning(port, epsilon):
    epsilon(1e-5)

    def spoiled(x):
        shown = port.mobilevit_xxs(x)
        shown["encoder_3_2_mlp"] = shown["encoder_3_2_mlp"] * np.where(np.arange(80) == 5, np.nan, 1)
        return shown

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = refvit.check(spoiled, TEN, image=PIXELS, names={"encoder_3_2_mlp": "stages.3.1.transformer.2"})
        unmatched = refvit.check(lambda x: {"odd": np.full((3, 5), np.nan), "logits": port.mobilevit_xxs(x)["logits"]}, TEN)
    assert report.first_divergence.candidate == "encoder_3_2_mlp"
    assert "values are NaN or infinite" in report.text()
    assert "odd: not compared, and it holds NaN" in " ".join(unmatched.notes)


def test_an_image_file_is_read_as_infer_does(port, epsilon, tmp_path):
    epsilon(1e-5)
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    seen = []
    report = refvit.check(lambda x: (seen.append(x), port.mobilevit_xxs(x))[1], TEN, image=tmp_path / "a.png")
    assert report.ok and report.input == f"{tmp_path / 'a.png'}, 1x3x64x64"
    assert np.array_equal(seen[0], x_of(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("done", "cause"),
    [
        (lambda x: x[:, ::-1], "input-channel-order"),
        (lambda x: x * 2 - 1, "input-normalisation"),
        (lambda x: x[:, ::-1] * 2 - 1, "input-channel-order"),
    ],
    ids=["channels", "mean and std", "both"],
)
def test_an_input_that_was_made_otherwise_is_explained_from_the_image(done, cause):
    """The candidate shows its own input, as dumps do; all that follows from it is right."""
    model = refvit.load(backend="numpy")
    own = np.ascontiguousarray(done(x_of(PIXELS)))
    report = refvit.check({"input": own, "logits": model(own)}, TEN, image=PIXELS)
    assert not report.ok and report.first_divergence.name == "input"
    assert report.cause == cause in BY_NAME and "resize 32, crop 32, enlarge 64" in report.diagnosis.advice
    both = cause == "input-channel-order" and not np.array_equal(own, x_of(PIXELS)[:, ::-1])
    assert [t.cause for t in report.diagnosis.trials] == [cause, *["input-normalisation"] * both]
    assert (" And " in report.diagnosis.sentence) == both and "grey levels" in report.diagnosis.trials[0].text
    assert [f.verdict for f in report.findings] == ["diverges", "inherited"]
    assert "MISMATCH" in page(report)
