"""The weights that come with the package."""

import dataclasses
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from refvit.models import architecture, config_from_dict
from refvit.weights import embedded
from refvit.weights.embedded import DEFAULT, EMBEDDED, NOTICE, load_embedded
from refvit.weights.store import load

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def weights():
    return load_embedded(DEFAULT)


def test_file_is_small_and_float16():
    file = files("refvit.weights") / "data" / f"{DEFAULT}.safetensors"
    assert len(file.read_bytes()) < 3 * 2**20


def test_what_it_is(weights):
    assert (weights.model, weights.tag, weights.name) == ("mobilevit_xxs", "cifar10", DEFAULT)
    assert weights.labels == CIFAR10
    assert {a.dtype for a in weights.params.values()} == {np.dtype("float16")}
    assert all(np.isfinite(a).all() for a in weights.params.values())
    published = architecture("mobilevit_xxs").config
    assert config_from_dict(published, weights.config) == dataclasses.replace(published, num_classes=10)
    assert weights.params["head.fc.weight"].shape == (10, 320)
    assert weights.preprocess["channel_order"] == "rgb"
    assert set(weights.source) >= {"layout", "file", "sha256"}


def test_digest_is_the_same_for_every_load(weights):
    again = load_embedded(DEFAULT)
    assert again is not weights
    assert again.sha256 == weights.sha256
    assert len(weights.sha256) == 64


def test_notice_names_every_class():
    assert all(name in NOTICE for name in CIFAR10)
    assert "\n" not in NOTICE
    assert DEFAULT in EMBEDDED


def test_damaged_installation(monkeypatch, tmp_path):
    from safetensors.numpy import save_file

    (tmp_path / "data").mkdir()
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "data" / f"{DEFAULT}.safetensors")
    assert load(tmp_path / "data" / f"{DEFAULT}.safetensors") is None
    monkeypatch.setattr(embedded, "files", lambda package: tmp_path)
    with pytest.raises(embedded.WeightsError, match="install refvit again"):
        load_embedded(DEFAULT)


def test_it_sees_the_cat(demo):
    cat = Path(__file__).parents[2] / "examples" / "cat.jpg"
    best, second = demo.infer(cat).top(2)
    assert best.label == "cat" and best.probability > 2 * second.probability
