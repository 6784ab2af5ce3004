"""refvit's own files: what is recorded in them is found again by every way that reads them, and only believed where it fits."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

import refvit
from refvit.errors import ConfigError, RefvitError, WeightsError
from refvit.stored import of_checkpoint
from refvit.weights import store
from refvit.weights.embedded import load_embedded
from refvit.weights.readers.checkpoint import Checkpoint
from weights_convert import convert, convert_file
from weights_convert.report import lines, report

XXS = "mobilevit_xxs"


@pytest.fixture(scope="module")
def tuned(golden):
    """Weights of which nothing is as published, in tensors that have the names of timm's."""
    weights = convert(
        golden("mobilevit_xxs.timm").state(),
        tag="tuned",
        labels=[f"kind {i}" for i in range(1000)],
        preprocess={"resize": 301, "crop": 250, "mean": (0.1, 0.2, 0.3), "channel_order": "bgr"},
    )
    return dataclasses.replace(weights, config={**weights.config, "layer_norm_eps": 3e-5}, source={"who": "me"})


@pytest.fixture(scope="module")
def path(tuned, tmp_path_factory):
    return store.save(tuned, tmp_path_factory.mktemp("own") / "model.safetensors")


def as_recorded(found, tuned):
    for field in ("model", "tag", "labels", "sha256"):
        assert getattr(found, field) == getattr(tuned, field), field
    for field in ("config", "preprocess", "postprocess", "source"):
        assert json.dumps(getattr(found, field)) == json.dumps(getattr(tuned, field)), field


def test_a_file_and_a_folder_give_what_was_recorded(path, tuned, tmp_path):
    as_recorded(convert_file(path), tuned)
    as_recorded(convert_file(path, model=XXS), tuned)
    shutil.copy(path, tmp_path / "model.safetensors")
    other = {"model_type": "mobilevit", "id2label": {str(i): f"other {i}" for i in range(1000)}, "hidden_act": "relu"}
    for config in (None, other):  # what belongs to another checkpoint says nothing about this one
        if config:
            (tmp_path / "config.json").write_text(json.dumps(config))
        as_recorded(convert_file(tmp_path), tuned)
        as_recorded(refvit.load(None, tmp_path)._weights, tuned)


def test_the_caller_goes_before_what_was_recorded(path, tuned):
    labels = [f"other {i}" for i in range(1000)]
    found = convert_file(path, tag="mine", labels=labels, preprocess={"resize": 260}, source={"note": "n"})
    assert (found.name, found.labels) == (f"{XXS}.mine", tuple(labels))
    assert found.preprocess == {**tuned.preprocess, "resize": 260}
    assert found.source == {"who": "me", "note": "n"}
    with pytest.raises(WeightsError, match=r"holds the weights of mobilevit_xxs\.tuned, not of mobilevit_s"):
        convert_file(path, model="mobilevit_s")
    with pytest.raises(ConfigError, match="gelu: no option of mobilevit_xxs"):
        convert_file(path, config={"gelu": "tanh"})
    with pytest.raises(ConfigError, match="1000 classes, got 1 labels"):
        convert_file(path, labels=["a"])
    assert refvit.convert(path, model=XXS, tag="mine", check=False).to_dict()["model"] == f"{XXS}.mine"
    with pytest.raises(WeightsError, match=r"not of mobilevit_xxs\.other"):
        refvit.load(f"{XXS}.other", path)


def test_what_is_told_is_no_longer_assumed(tuned, tmp_path):
    source = {"assumed": ["resize", "labels", "crop"], "resize": "a reason"}
    path = store.save(dataclasses.replace(tuned, source=source), tmp_path / "a.safetensors")
    found = convert_file(path, preprocess={"resize": 260}, labels=list(tuned.labels))
    assert found.source == {"assumed": ["crop"]}


# crafted files


@pytest.mark.parametrize(
    "source",
    [
        {"left_out": 3},
        {"left_out": {"a": 3}},
        {"left_out": {"a": [3]}},
        {"left_out": {"a": "text"}},
        {"left_out": []},
        {"assumed": {"a": 1}},
        {"assumed": "resize"},
        {"assumed": [["resize"]]},
        {"deep": functools.reduce(lambda inner, _: [inner], range(100), 0)},
    ],
    ids=lambda source: str(source)[:40],
)
def test_a_source_of_another_kind_is_damage(run, tmp_path, source):
    path = store.save(dataclasses.replace(load_embedded("mobilevit_xxs.cifar10"), source=source), tmp_path / "a.safetensors")
    code, _, err = run("convert", path, "--no-check")
    assert code == 2 and f"{path}: its refvit metadata is damaged (" in err
    with pytest.raises(WeightsError, match="damaged"):
        convert_file(path)


@pytest.mark.parametrize(
    "config",
    [{"patch": [10**6, 10**6]}, {"patch": [4096, 4096]}, {"patch": [2, 65]}, {"rates": [3000, 6, 12]}, {"num_heads": 64}],
    ids=str,
)
def test_a_config_that_would_take_all_memory_is_refused(run, tmp_path, config):
    whole = load_embedded("mobilevit_xxs.cifar10")
    path = store.save(dataclasses.replace(whole, config={**whole.config, **config}), tmp_path / "a.safetensors")
    code, _, err = run("convert", path)
    assert code == 2 and "rates up to 256, a patch up to 64x64 and up to 16 heads expected" in err
    with pytest.raises(ConfigError, match="rates up to 256"):
        refvit.load(None, path)


def test_rates_of_a_configuration_that_would_take_all_memory_are_refused(run, golden, tmp_path):
    state = refvit.load("mobilevit_xxs_deeplabv3", golden("mobilevit_xxs_deeplabv3.cvnets").state())._weights
    from weights_convert import export

    save_file(export(state, "transformers"), tmp_path / "model.safetensors")
    config = {"model_type": "mobilevit", "architectures": ["MobileViTForSemanticSegmentation"], "atrous_rates": [3000] * 3}
    for rates, code in (([3000] * 3, 2), ([6, 12, 257], 2), ([6, 12, 24], 0)):
        (tmp_path / "config.json").write_text(json.dumps(config | {"atrous_rates": rates}))
        found, _, err = run("convert", tmp_path, "--model", "mobilevit_xxs_deeplabv3", "--no-check")
        assert found == code, err
        assert ("rates up to 256" in err) == (code == 2)


def damaged_metadata(header, chance):
    """JSON text with a few characters changed, under the digest that belongs to it, so that this alone refuses nothing."""
    text = bytearray(json.dumps(header).encode())
    for _ in range(chance.integers(1, 4)):
        text[chance.integers(len(text))] = chance.choice([*b'{}[]",:0159ae', chance.integers(32, 127)])
    try:
        found = json.loads(text)
        found["header_sha256"] = store._header_digest(found)
        return json.dumps(found)
    except (ValueError, TypeError):
        return text.decode()


def test_2000_random_changes_of_the_metadata(tmp_path):
    """Refused, or weights that can be reported and kept; never another error."""
    params = {"a": np.arange(3, dtype=np.float32)}
    source = {"assumed": ["resize", "labels"], "resize": "why", "left_out": {"for training": ["x", "y"]}, "n": {"a": [1]}}
    config, preprocess = {"widths": [1, 2], "eps": 1e-5}, {"resize": 8, "mean": [0.1, 0.2, 0.3]}
    written = store.Weights("toy", "tag", config, preprocess, ("Katze", "猫"), source, params)
    header = json.loads(metadata_of(store.save(written, tmp_path / "a.safetensors")))
    chance, read = np.random.default_rng(6), 0
    for _ in range(2000):
        try:
            found = store.parse("a", params, {store.KEY: damaged_metadata(header, chance)})
        except WeightsError:
            continue
        read += 1
        assert all(line.isprintable() for line in lines(report(found, check=False)))
        json.dumps(store._header_digest(dataclasses.asdict(found) | {"params": None}), allow_nan=False)
    assert 100 < read < 1900


def test_300_random_changes_of_the_metadata_of_a_model():
    """Refused, or a model whose weights can be reported."""
    whole, chance, read = load_embedded("mobilevit_xxs.cifar10"), np.random.default_rng(7), 0
    fields = {name: getattr(whole, name) for name in ("model", "tag", "config", "preprocess", "postprocess", "source")}
    header = {"format_version": 1, **fields, "labels": list(whole.labels), "sha256": whole.sha256}
    for _ in range(300):
        metadata = {store.KEY: damaged_metadata(header, chance)}
        try:
            found = of_checkpoint(Checkpoint("a", "safetensors", whole.params, metadata), preprocess={"resize": 20})
        except RefvitError:
            continue
        read += 1
        lines(report(found, check=False))
    assert 10 < read < 290


def metadata_of(path):
    return store.read_safetensors(path)[1][store.KEY]
