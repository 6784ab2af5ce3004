"""`load`, `list_models` and `info`: names, options, errors, and what importing costs."""

import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import refvit
from refvit.errors import BackendError, ConfigError, UnknownModelError, WeightsError
from refvit.models import architecture
from refvit.weights.embedded import load_embedded
from refvit.weights.store import save

RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 256, (41, 53, 3), dtype=np.uint8)
OTHER = np.full((30, 20, 3), (200, 30, 60), np.uint8)


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
    with pytest.raises(UnknownModelError, match=r"list_models\(\) or .* name all"):
        call("zzz")
    with pytest.raises(
        UnknownModelError, match=r"mobilevit_xxs\.imagenet: refvit knows no such weights; .* mobilevit_xxs\.cvnets_in1k"
    ):
        call("mobilevit_xxs.imagenet")
    with pytest.raises(WeightsError, match=r"mobilevit_s: its weights do not come with refvit; .* mobilevit_s\.cvnets_in1k"):
        call("mobilevit_s")


def test_only_known_repositories_are_named():
    for name in ("hrvit_b1", "mobilevit_s_ssdlite", "hrnet_w48_ocr"):
        with pytest.raises(WeightsError, match=rf"{name}: .*; give a file by weights=FILE"):
            refvit.load(name)
    with pytest.raises(WeightsError, match=r"vit_base_patch16_224\.\w+, .* or another of \d+ tags in list_models\(\)"):
        refvit.load("vit_base_patch16_224")


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
    with pytest.raises(BackendError, match="unknown backend 'tpu'; known are auto, numba, numpy"):
        refvit.load(backend="tpu")
    with pytest.raises(ConfigError, match="float16, float32, float64, got 'bfloat16'"):
        refvit.load(dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"device.*'cuda:0'"):
        refvit.load(device="cuda:0")
    with pytest.raises(ConfigError, match="OPENBLAS_NUM_THREADS"):
        refvit.infer(OTHER, backend="numpy", threads=4)
    with pytest.raises(ConfigError, match="threads"):
        refvit.infer(OTHER, backend="numba", threads=0)
    assert refvit.load(backend="numpy", device="cpu").backend == "numpy"


@pytest.mark.parametrize("dtype", [np.dtype("float32"), np.float32])
def test_dtype_as_numpy_spells_it(dtype):
    assert refvit.load(dtype=dtype).infer(OTHER).to_json() == refvit.load(dtype="float32").infer(OTHER).to_json()


def test_a_model_can_go_to_another_process(demo):
    import pickle

    np.testing.assert_array_equal(pickle.loads(pickle.dumps(demo)).infer(OTHER).logits, demo.infer(OTHER).logits)


# tables


def test_list_models_counts():
    rows = {m.name: (m.params, m.macs, m.input_size, m.task) for m in refvit.list_models("mobilevit_*s")}
    assert rows == {
        "mobilevit_xxs": (1_272_024, 407_364_096, (256, 256), "classification"),
        "mobilevit_xs": (2_317_848, 1_025_911_808, (256, 256), "classification"),
        "mobilevit_s": (5_578_632, 2_000_831_488, (256, 256), "classification"),
    }


def test_list_models_patterns():
    def names(*args):
        return [m.name for m in refvit.list_models(*args)]

    assert names("mobilevit_x*s") == ["mobilevit_xxs", "mobilevit_xs"]
    assert names("*_s") == ["mobilevit_s"] and len(names()) == len(set(names())) == 58
    assert names("resnet*") == []
    assert names("*", "pose") == ["hrnet_w32_pose", "hrnet_w48_pose"]
    assert names("hrnet_w48*", "segmentation") == ["hrnet_w48_seg", "hrnet_w48_ocr"]
    assert [m.weights[0] for m in refvit.list_models("*xs")] == ["cifar10", "cvnets_in1k"]
    assert refvit.list_models("hrvit_b1")[0].weights == ()


def test_info():
    facts = refvit.info()
    assert set(facts) == {"refvit", "python", "platform", "processors", "libraries", "backends", "numba", "embedded"}
    assert facts["refvit"] == refvit.__version__
    assert facts["backends"] == {"numba": "usable", "numpy": "usable"}
    assert facts["libraries"]["numpy"] == np.__version__
    assert facts["processors"] >= facts["numba"]["threads"] >= 1
    assert facts["numba"]["lanes"] in (4, 8, 16)
    assert Path(facts["numba"]["kernels"]).name
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
