"""The public functions and Model: every kind of input, options, caches, threads, errors."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import refvit
from refvit import api
from refvit.errors import BackendError, ConfigError, ImageError, ShapeError, UnknownModelError, WeightsError
from refvit.models import architecture
from refvit.weights.embedded import load_embedded
from refvit.weights.store import save

RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 256, (41, 53, 3), dtype=np.uint8)
OTHER = np.full((30, 20, 3), (200, 30, 60), np.uint8)


@pytest.fixture(scope="module")
def xxs(golden):
    return golden("mobilevit_xxs.timm").state()


@pytest.fixture
def photos(tmp_path):
    """Two good images of different content, and a broken one between them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(PIXELS).save(folder / "a1.png")
    (folder / "a2.png").write_bytes(b"broken")
    Image.fromarray(OTHER).save(folder / "a10.png")
    return folder


def x_of(n=1, size=32, dtype=np.float32):
    return RNG.random((n, 3, size, size)).astype(dtype)


# images in, answers out


def test_every_kind_of_one_image_gives_the_same_answer(demo, photos):
    path = photos / "a1.png"
    bgr = np.ascontiguousarray(PIXELS[:, :, ::-1])
    kinds = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), Image.open(path), PIXELS, bgr[:, :, ::-1]]
    expected = demo(demo.preprocess(PIXELS)[None])[0]
    for kind in kinds:
        result = refvit.infer(kind)
        assert isinstance(result, refvit.Result)
        np.testing.assert_array_equal(result.logits, expected)
        assert result.error is None
        assert result.picture.size == (53, 41)
    assert not np.array_equal(refvit.infer(bgr).logits, expected)


def test_every_kind_of_many_images_gives_an_iterator(demo, photos):
    (photos / "a2.png").unlink()
    expected = [demo.infer(PIXELS).logits, demo.infer(OTHER).logits]
    files = [photos / "a1.png", photos / "a10.png"]
    kinds = [photos, str(photos), f"{photos}/*.png", files, tuple(files), (f for f in files), np.array([str(f) for f in files])]
    kinds += [[PIXELS, OTHER], [PIXELS, str(files[1])], map(Image.open, files)]
    for kind in kinds:
        results = refvit.infer(kind)
        assert iter(results) is results
        np.testing.assert_allclose([r.logits for r in results], expected, rtol=1e-4, atol=1e-4)
    batch = refvit.infer(np.stack([PIXELS, PIXELS[::-1]]))
    assert [r.error for r in batch] == [None, None]
    assert list(refvit.infer([])) == []


@pytest.mark.parametrize("batch_size", [1, 3, 8, None])
def test_order_is_kept_with_failures_in_between(demo, batch_size):
    images = [np.full((8, 8 + k % 3, 3), 20 * k, np.uint8) for k in range(10)]
    alone = [demo.infer(image).logits for image in images]
    images[0], images[4], images[9] = b"", "gone.png", None
    results = list(demo.infer(images, batch_size=batch_size))
    assert [k for k, r in enumerate(results) if r.error is not None] == [0, 4, 9]
    for k, result in enumerate(results):
        if result.error is None:
            np.testing.assert_allclose(result.logits, alone[k], rtol=1e-5, atol=1e-5)
        else:
            assert isinstance(result.error, ImageError)
            assert result.provenance["model"] == demo.name
    assert "gone.png" in str(results[4].error)


def test_images_are_read_as_the_answers_are_asked_for(demo):
    asked = []

    def images():
        for k in range(100):
            asked.append(k)
            yield OTHER

    results = demo.infer(images(), batch_size=3)
    assert asked == []
    next(results)
    assert asked == [0, 1, 2]
    next(results), next(results), next(results)
    assert asked == list(range(6))
    refvit.infer(iter(asked.append, 5), demo)  # endless: not walked either


def test_images_of_different_sizes_without_a_crop(demo):
    model = refvit.load(resize=None, crop=None, enlarge=None)
    images = [OTHER, PIXELS, OTHER[:25], PIXELS[:, :50], OTHER + 1]
    for image, result in zip(images, model.infer(images, batch_size=5), strict=True):
        np.testing.assert_allclose(result.logits, model(model.preprocess(image)[None])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_must_be_positive(demo, batch_size):
    with pytest.raises(ConfigError, match="batch_size"):
        demo.infer([OTHER], batch_size=batch_size)


def test_urls_need_permission(demo):
    with pytest.raises(ImageError, match="allow_url=True"):
        refvit.infer("https://example.org/cat.jpg")
    (result,) = demo.infer(["https://example.org/cat.jpg"])
    assert "allow_url=True" in str(result.error)


def test_provenance(demo, photos):
    facts = refvit.infer(photos / "a1.png").provenance
    assert facts["model"] == "mobilevit_xxs.cifar10"
    assert facts["weights_sha256"] == load_embedded("mobilevit_xxs.cifar10").sha256
    assert facts["backend"] == "numpy"
    assert facts["dtype"] == "float32"
    assert facts["preprocess"] == demo.preprocess.to_dict()
    assert facts["versions"]["numpy"] == np.__version__
    json.dumps(facts)


# the cache of infer


def test_recent_models_are_kept(monkeypatch, tmp_path, xxs):
    monkeypatch.setattr(api, "_recent", type(api._recent)())
    loads = []
    load = api.load
    monkeypatch.setattr(api, "load", lambda *args, **options: loads.append(args) or load(*args, **options))
    path = save(load_embedded("mobilevit_xxs.cifar10"), tmp_path / "a.safetensors")
    for _ in range(3):
        refvit.infer(OTHER, weights=path)
        refvit.infer(OTHER, weights=str(path))
        refvit.infer(OTHER, resize=[32, 32])
    assert len(loads) == 2
    refvit.infer(OTHER, dtype="float64")
    assert len(loads) == 3
    os.utime(path, ns=(1, 1))
    refvit.infer(OTHER, weights=path)
    assert len(loads) == 4
    for _ in range(2):  # never kept
        refvit.infer(OTHER, "mobilevit_xxs", weights=xxs, resize=32, crop=32)
    assert len(loads) == 6
    for size in range(32, 32 + 3 * api.RECENT):
        refvit.infer(OTHER, resize=size)
    assert len(api._recent) == api.RECENT


def test_a_file_that_changed_is_loaded_again(tmp_path):
    weights = load_embedded("mobilevit_xxs.cifar10")
    path = save(weights, tmp_path / "a.safetensors")
    before = refvit.infer(OTHER, weights=path)
    params = {**weights.params, "head.fc.bias": weights.params["head.fc.bias"] + np.float16(1)}
    save(dataclasses.replace(weights, params=params), path)
    after = refvit.infer(OTHER, weights=path)
    np.testing.assert_allclose(after.logits, before.logits + 1, rtol=1e-2)
    assert after.provenance["weights_sha256"] != before.provenance["weights_sha256"]


def test_a_labels_file_that_changed_is_read_again(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join("abcdefghij"))
    assert refvit.infer(OTHER, labels=path).labels == tuple("abcdefghij")
    path.write_text("\n".join("klmnopqrst"))
    assert refvit.infer(OTHER, labels=path).labels == tuple("klmnopqrst")


def test_a_loaded_model_is_used_as_it_is(demo):
    assert np.array_equal(refvit.infer(OTHER, demo).logits, demo.infer(OTHER).logits)
    given = {"weights": "a", "backend": "numpy", "dtype": "float64", "device": "cpu", "threads": 2, "labels": [], "resize": 3}
    for name, value in given.items():
        with pytest.raises(ConfigError, match=f"{name} cannot be changed on a loaded model"):
            refvit.infer(OTHER, demo, **{name: value})


def test_no_crop_on_a_loaded_model_is_refused_too(demo):
    with pytest.raises(ConfigError, match="crop"):
        refvit.infer(OTHER, demo, crop=None)


# numbers in, numbers out


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("own", ["float16", "float32", "float64"])
def test_input_of_any_float_dtype(dtype, own):
    model = refvit.load(dtype=own)
    x = x_of(dtype=np.float16)
    logits = model(x.astype(dtype))
    assert logits.dtype == own
    assert logits.shape == (1, 10)
    np.testing.assert_array_equal(logits, model(x))
    np.testing.assert_allclose(logits, refvit.load(dtype="float64")(x), rtol=0, atol=0.05 if own == "float16" else 1e-4)


@pytest.mark.parametrize("x", [np.zeros((1, 3, 8, 8), int), np.zeros((1, 3, 8, 8), np.uint8), [[[[0.5]]]], None, 3.0], ids=repr)
def test_input_that_is_no_float_array(demo, x):
    with pytest.raises(ConfigError, match=r"floating-point ndarray \(n, 3, h, w\) expected.*\.infer"):
        demo(x)


@pytest.mark.parametrize(
    "shape", [(3, 8, 8), (1, 8, 8, 3), (1, 1, 8, 8), (1, 4, 8, 8), (0, 3, 8, 8), (1, 3, 0, 8), (), (1,) * 5]
)
def test_input_of_another_shape(demo, shape):
    for call in (demo, demo.intermediates):
        with pytest.raises(ShapeError, match=r"\(n, 3, h, w\)"):
            call(np.zeros(shape, np.float32))
    with pytest.raises(ShapeError):
        demo.graph(shape)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf(demo, bad):
    x = x_of()
    x[0, 1, 2, 3] = x[0, 0, 0, 0] = bad
    for call in (demo, demo.intermediates):
        with pytest.raises(ConfigError, match="2 of the 3072 input values are NaN or infinite"):
            call(x)


@pytest.mark.parametrize(("own", "value"), [("float16", 1e6), ("float32", 1e300)])
def test_input_that_overflows_in_the_dtype_of_the_model(own, value):
    with pytest.raises(ConfigError, match=r"float16|float32"):
        refvit.load(dtype=own)(np.full((1, 3, 32, 32), value))


def test_weights_that_overflow_in_float16(xxs):
    with pytest.raises((ConfigError, WeightsError), match="running_var"):
        refvit.load("mobilevit_xxs", {**xxs, "stem.bn.running_var": xxs["stem.bn.running_var"] * 1e6}, dtype="float16")


def test_a_batch_equals_single_calls(demo):
    x = x_of(5, 40)
    together = demo(x)
    alone = np.concatenate([demo(x[i : i + 1]) for i in range(5)])
    assert np.abs(together - alone).max() <= 1e-5 * np.abs(alone).max()
    assert np.abs(np.diff(alone, axis=0)).max() > 0.01  # they do differ


def test_the_input_is_not_modified(demo):
    x = x_of(2)
    before = x.copy()
    demo(x)
    x.flags.writeable = False
    demo(x)
    demo.intermediates(x)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(demo(np.asfortranarray(x)), demo(x))
    np.testing.assert_array_equal(demo(x[::-1]), demo(np.ascontiguousarray(x[::-1])))


def test_threads_share_a_model():
    model = refvit.load()
    inputs = [x_of(1 + k % 2, 32 + 8 * (k % 3)) for k in range(24)]
    alone = refvit.load()
    serial = [alone(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for got, expected in zip(pool.map(model, inputs), serial, strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevit_xs", "mobilevit_s"])
def test_odd_and_tiny_sizes(name):
    arch = architecture(name)
    params = {n: RNG.standard_normal(s).astype(np.float32) * 0.1 for n, s in arch.parameters(arch.config)}
    params = {n: np.abs(a) + 0.5 if n.endswith("running_var") else a for n, a in params.items()}
    model = refvit.load(name, params)
    for h, w in ((1, 1), (2, 3), (33, 47), (64, 31), (1, 90)):
        logits = model(RNG.random((1, 3, h, w)).astype(np.float32))
        assert logits.shape == (1, 1000)
        assert np.isfinite(logits).all()
        assert np.ptp(logits) > 0


# looking inside


def test_intermediates(demo):
    x = x_of(2, 64)
    values = demo.intermediates(x)
    np.testing.assert_allclose(values["head"], demo(x), rtol=1e-5, atol=1e-5)
    assert list(values) == list(demo.graph(x.shape, expand=True).names())
    assert next(iter(values)) == "stem.conv"
    assert values["stem"].shape == (2, 16, 32, 32)
    softmax = demo.intermediates(x, "*.softmax")
    assert len(softmax) == 2 + 4 + 3
    assert all(name.startswith("stages.") and name.endswith("attn.attention.softmax") for name in softmax)
    for name, value in softmax.items():
        np.testing.assert_allclose(value.sum(-1), 1, atol=1e-5, err_msg=name)
        assert value.min() >= 0
    assert list(demo.intermediates(x, "stages.?")) == [f"stages.{i}" for i in range(5)]
    assert list(demo.intermediates(x, "head")) == ["head"]
    assert all(v.dtype == np.float32 for v in values.values())


def test_no_intermediate_matches(demo):
    with pytest.raises(ConfigError, match=r"no name matches 'layer9\*'; the first are stem\.conv"):
        demo.intermediates(x_of(), "layer9*")


def test_summary_and_graph(demo):
    summary = demo.summary()
    assert summary.input_shape == (1, 3, 64, 64)
    assert summary.total.params == sum(b.params for b in summary.blocks)
    double = demo.summary((2, 3, 64, 64)).total
    assert double.macs == 2 * summary.total.macs
    assert double.params == summary.total.params
    assert len(demo.summary(depth=2).blocks) > len(summary.blocks)
    assert demo.summary((1, 3, 33, 47)).input_shape == (1, 3, 33, 47)
    graph = demo.graph((1, 3, 96, 64))
    assert next(iter(graph.inputs.values())).shape == (1, 3, 96, 64)
    expanded = demo.graph(expand=True).names()
    assert any(name.endswith("softmax") for name in expanded)
    assert not any(name.endswith("softmax") for name in demo.graph().names())


def test_repr_and_attributes(demo):
    assert repr(demo) == "Model(mobilevit_xxs.cifar10, backend=numpy, dtype=float32)"
    assert demo.task == "classification"
    assert demo.config.num_classes == len(demo.labels) == 10


# load


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resize", 40),
        ("crop", (24, 28)),
        ("enlarge", 48),
        ("interpolation", "nearest"),
        ("mean", [0.5, 0.4, 0.3]),
        ("std", (0.2, 0.3, 0.4)),
        ("channel_order", "bgr"),
    ],
)
def test_each_field_of_the_preprocessing_can_be_replaced(demo, field, value):
    model = refvit.load(**{field: value})
    given = tuple(value) if isinstance(value, list) else value
    assert getattr(model.preprocess, field) == given
    before, after = demo.preprocess.to_dict(), model.preprocess.to_dict()
    assert [name for name in before if before[name] != after[name]] == [field]
    assert not np.array_equal(model.infer(PIXELS).logits, demo.infer(PIXELS).logits)
    assert np.array_equal(refvit.infer(PIXELS, **{field: value}).logits, model.infer(PIXELS).logits)


def test_a_misspelled_field_is_told(demo):
    with pytest.raises(ConfigError, match="unknown option 'interpolatoin'; did you mean interpolation"):
        refvit.load(interpolatoin="box")
    with pytest.raises(ConfigError, match="unknown option 'resise'; did you mean resize"):
        refvit.infer(OTHER, resise=3)


@pytest.mark.parametrize(("wrong", "right"), [("batchsize", "batch_size"), ("label", "labels"), ("wieghts", "weights")])
def test_a_misspelled_option_is_told(wrong, right):
    with pytest.raises((ConfigError, TypeError), match=f"did you mean {right}"):
        refvit.infer(OTHER, **{wrong: None})


def test_labels(tmp_path):
    names = tuple("abcdefghij")
    (tmp_path / "a.txt").write_text("\n".join(names))
    (tmp_path / "a.json").write_text(json.dumps({"id2label": dict(enumerate(names))}))
    for labels in (list(names), names, tmp_path / "a.txt", str(tmp_path / "a.json")):
        assert refvit.load(labels=labels).labels == names
        assert refvit.infer(OTHER, labels=labels).label in names
    with pytest.raises(ConfigError, match="10 classes, got 3 labels"):
        refvit.load(labels=["a", "b", "c"])


@pytest.mark.parametrize("labels", [5, iter("abcdefghij"), set("abcdefghij")], ids=["int", "iterator", "set"])
def test_labels_of_another_kind(labels):
    with pytest.raises(ConfigError, match="labels"):
        refvit.load(labels=labels)


@pytest.mark.parametrize("call", [refvit.load, lambda *args: refvit.infer(OTHER, *args)])
def test_unknown_names(call):
    with pytest.raises(UnknownModelError, match=r"'mobilevit_x'; did you mean .*mobilevit_xs"):
        call("mobilevit_x")
    with pytest.raises(UnknownModelError, match="known are mobilevit_xxs, mobilevit_xs, mobilevit_s"):
        call("zzz")
    with pytest.raises(
        UnknownModelError, match=r"mobilevit_xxs\.imagenet: .* do not come with refvit \(mobilevit_xxs\.cifar10 does\)"
    ):
        call("mobilevit_xxs.imagenet")
    with pytest.raises(WeightsError, match=r"mobilevit_s: .*timm/mobilevit_s\.cvnets_in1k: download it"):
        call("mobilevit_s")


def test_weights_of_another_model(xxs, tmp_path):
    arch = architecture("mobilevit_xs")
    xs = {n: np.ones(s, np.float32) for n, s in arch.parameters(arch.config)}
    with pytest.raises(WeightsError, match=r"this is a complete mobilevit_xs checkpoint, not one of mobilevit_xxs"):
        refvit.load("mobilevit_xxs", xs)
    path = save(load_embedded("mobilevit_xxs.cifar10"), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"holds the weights of mobilevit_xxs\.cifar10, not of mobilevit_s"):
        refvit.load("mobilevit_s", path)
    assert refvit.load(weights=path).name == "mobilevit_xxs.cifar10"
    with pytest.raises(WeightsError, match="no such weights file"):
        refvit.infer(OTHER, weights=tmp_path / "gone.safetensors")


def test_unknown_backend_dtype_device_threads():
    with pytest.raises(BackendError, match="unknown backend 'tpu'; known are auto, numpy"):
        refvit.load(backend="tpu")
    with pytest.raises(ConfigError, match="float16, float32, float64, got 'bfloat16'"):
        refvit.load(dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"device.*'cuda:0'"):
        refvit.load(device="cuda:0")
    with pytest.raises(ConfigError, match="OPENBLAS_NUM_THREADS"):
        refvit.infer(OTHER, threads=4)
    assert refvit.load(backend="numpy", device="cpu").backend == "numpy"


@pytest.mark.parametrize("dtype", [np.dtype("float32"), np.float32])
def test_dtype_as_numpy_spells_it(dtype):
    assert refvit.load(dtype=dtype).infer(OTHER).to_json() == refvit.load(dtype="float32").infer(OTHER).to_json()


def test_a_model_can_go_to_another_process(demo):
    import pickle

    np.testing.assert_array_equal(pickle.loads(pickle.dumps(demo)).infer(OTHER).logits, demo.infer(OTHER).logits)


# tables


def test_list_models_counts():
    rows = {m.name: (m.params, m.macs, m.input_size, m.task) for m in refvit.list_models()}
    assert rows == {
        "mobilevit_xxs": (1_272_024, 407_364_096, (256, 256), "classification"),
        "mobilevit_xs": (2_317_848, 1_025_911_808, (256, 256), "classification"),
        "mobilevit_s": (5_578_632, 2_000_831_488, (256, 256), "classification"),
    }


def test_list_models_patterns():
    def names(*args):
        return [m.name for m in refvit.list_models(*args)]

    assert names("mobilevit_x*") == ["mobilevit_xxs", "mobilevit_xs"]
    assert names("*_s") == ["mobilevit_s"]
    assert names("vit*") == []
    assert names("*", "classification") == names()
    assert names("*", "pose") == []
    assert [m.weights for m in refvit.list_models("*xs")] == [("cifar10",), ()]


def test_info():
    facts = refvit.info()
    assert set(facts) == {"refvit", "python", "platform", "processors", "libraries", "backends", "embedded"}
    assert facts["refvit"] == refvit.__version__
    assert facts["backends"] == {"numpy": "usable"}
    assert facts["libraries"]["numpy"] == np.__version__
    assert facts["processors"] >= 1
    json.dumps(facts)


# in a process of its own


def python(code, *options):
    env = {**os.environ, "PYTHONPATH": str(Path(refvit.__file__).parent.parent)}
    done = subprocess.run([sys.executable, *options, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_import_is_light_and_offline():
    python(
        """
        import sys
        sys.addaudithook(lambda event, args: event.startswith("socket.") and sys.exit(f"{event} {args}"))
        import refvit
        refvit.list_models()
        heavy = {"numba", "cupy", "torch", "scipy", "safetensors", "urllib.request", "matplotlib", "tqdm", "weights_convert"}
        sys.exit(", ".join(heavy & set(sys.modules)) or 0)
        """
    )


def test_the_warning_comes_once_a_process():
    file = io.BytesIO()
    Image.fromarray(OTHER).save(file, "PNG")
    done = python(
        f"""
        import refvit
        image = {file.getvalue()!r}
        refvit.infer(image, "mobilevit_xxs.cifar10")
        for _ in range(3):
            refvit.infer(image)
        """,
        "-Walways",
    )
    assert done.stderr.count("DemonstrationWarning") == 1
    assert done.stderr.startswith("<string>:4: ")  # the caller's line, not one of refvit's


# what one image, one caller or one file must not do to another


def test_an_image_the_network_cannot_take_fails_alone(monkeypatch):
    model = refvit.load(resize=None, crop=None, enlarge=None)
    monkeypatch.setattr("refvit.model.LONGEST", 100)
    long = np.zeros((3, 101, 3), np.uint8)
    results = list(model.infer([PIXELS, long, PIXELS]))
    assert [r.error is None for r in results] == [True, False, True]
    assert "<array>" in str(results[1].error) and "101" in str(results[1].error)
    with pytest.raises(ShapeError):
        model.infer(long)


def test_too_little_memory_fails_alone(demo, monkeypatch):
    def compile_graph(graph):
        if graph.inputs["input"].shape[0] > 1:
            raise MemoryError
        return run(graph)

    model = refvit.load()
    run = model._backend.compile_graph
    monkeypatch.setattr(model._backend, "compile_graph", compile_graph)
    assert [r.label for r in model.infer([PIXELS, OTHER])] == [demo.infer(PIXELS).label, demo.infer(OTHER).label]
    monkeypatch.setattr(model._backend, "compile_graph", lambda graph: (_ for _ in ()).throw(MemoryError()))
    results = list(refvit.load().infer([PIXELS, OTHER]))
    assert all("not enough memory" in str(r.error) for r in results)


def test_weights_are_not_shared_with_the_caller(xxs):
    state = {name: a.copy() for name, a in xxs.items()}
    model = refvit.load("mobilevit_xxs", state)
    x = x_of(1, 32)
    before = model(x)
    state["head.fc.bias"][:] += 5
    np.testing.assert_array_equal(model(x), before)


def test_the_tag_must_be_that_of_the_file(xxs, tmp_path):
    path = save(load_embedded("mobilevit_xxs.cifar10"), tmp_path / "a.safetensors")
    assert refvit.load("mobilevit_xxs.cifar10", path).name == "mobilevit_xxs.cifar10"
    with pytest.raises(WeightsError, match=r"holds the weights of mobilevit_xxs\.cifar10, not of mobilevit_xxs\.other"):
        refvit.load("mobilevit_xxs.other", path)
    with pytest.raises(WeightsError, match="the name of weights that come with refvit"):
        refvit.load("mobilevit_xxs.cifar10", xxs)


def test_a_result_keeps_a_preview_only(demo):
    large = np.random.default_rng(0).integers(0, 256, (700, 1400, 3), np.uint8)
    result = demo.infer(large)
    assert result.picture.size == (1400, 700) and result.picture.pixels.shape == (240, 480, 3)
    assert result.to_dict()["size"] == [1400, 700]
    np.testing.assert_array_equal(result.logits, demo(demo.preprocess(large)[None])[0])


def test_names_mean_the_same_with_composites_expanded(demo):
    """A kernel that computes attention whole, and the reference that shows its softmax, can be compared by name."""
    from refvit.backends.numpy import compile_graph

    x = x_of(2, 64)
    short, long = demo.graph(x.shape), demo.graph(x.shape, expand=True)
    assert set(short.names()) < set(long.names())
    ours, expanded = (compile_graph(g.with_outputs(dict(g.names())))(x) for g in (short, long))
    for name, value in ours.items():
        np.testing.assert_array_equal(value, expanded[name], err_msg=name)
