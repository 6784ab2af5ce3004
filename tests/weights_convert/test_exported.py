"""What refvit writes into the metadata of another project's layout is read back, and never believed against the tensors."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import refvit
from refvit.errors import WeightsError
from refvit.models import architecture
from refvit.weights import store
from weights_convert import convert, convert_file
from weights_convert.export import export, export_file, layout_names
from weights_convert.exported import KEY, read_record

GOLDEN = Path(__file__).parent.parent / "golden"
VIT, XXS = "vit_tiny_patch16_224", "mobilevit_xxs"
ODD = {"mean": (0.11, 0.22, 0.33), "std": (0.7, 0.8, 0.9), "interpolation": "box", "enlarge": None}
POST = {
    "classification": {},
    "segmentation": {"flip": True, "scales": (0.5, 1.25)},
    "pose": {"oks_threshold": 0.7, "padding": 1.5},
    "detection": {"score_threshold": 0.123},
}
CONFIG = {
    "gelu": "tanh",
    "layer_norm_eps": 3e-5,
    "position_resize": "bilinear_corners",
    "align_corners": True,
    "rates": (5, 11, 17),
}


def plain(value):
    return json.loads(json.dumps(value))


def same(one, two):
    """In everything that an answer depends on."""
    assert (one.model, one.tag, one.labels) == (two.model, two.tag, two.labels)
    for field in ("config", "preprocess", "postprocess"):
        assert plain(getattr(one, field)) == plain(getattr(two, field)), field
    assert one.params.keys() == two.params.keys()
    for name, a in one.params.items():
        np.testing.assert_array_equal(a, two.params[name], strict=True)


@pytest.mark.parametrize("fixture", sorted(path.stem for path in GOLDEN.glob("*.npz")))
def test_to_each_layout_and_back(golden, tmp_path, fixture):
    """Nothing is as published here, so that whatever were taken from there would be seen."""
    state, model = golden(fixture).state(), fixture.split(".")[0]
    arch = architecture(model)
    config = {field: value for field, value in CONFIG.items() if field in arch.options}
    weights = convert(state, model=model, tag="mine", config=config, preprocess=ODD, postprocess=POST[arch.task])
    count = weights.config["num_classes"]
    weights = dataclasses.replace(weights, labels=tuple(f"kind {i}" for i in range(count)))
    if sum(a.size for a in weights.params.values()) > 20_000_000:  # for the time that the disk takes
        weights = dataclasses.replace(weights, params=weights.astype("float16"))
    told = [field.name for field in dataclasses.fields(arch.config)]
    full = set(layout_names(model).values())
    assert full
    for i, layout in enumerate(sorted(full)):
        path = tmp_path / f"{i}.safetensors"
        done = export_file(weights, layout, path, told=told)
        again = convert_file(path)  # which model it is, is told as well
        same(again, done.weights)
        assert again.source["layout"] == layout and again.source["file"] == path.name
        assert plain(again.source["exported_from"]) == plain(weights.source)
        assert again.source["assumed"] == weights.source["assumed"]
        changed = [
            note for note in done.notes if note.startswith(("channel_order: bgr in", "channel_order: rgb in", "head_bias: "))
        ]
        if not changed:
            same(again, weights)
        if i == 0:
            same(store.load(store.save(again, tmp_path / "kept.safetensors")), again)
        path.unlink()


def test_there_and_back_again_gives_the_first_bits(golden, tmp_path):
    """Through a layout with the other channel order, with options that it cannot tell."""
    state = golden("mobilevit_xxs.timm").state()
    weights = convert(state, labels=[f"c{i}" for i in range(1000)], preprocess={"resize": 300})
    export_file(weights, "cvnets", tmp_path / "a.safetensors")
    bgr = convert_file(tmp_path / "a.safetensors")
    assert bgr.preprocess["channel_order"] == "bgr" and bgr.preprocess["resize"] == 300
    export_file(bgr, "timm", tmp_path / "b.safetensors")
    back = convert_file(tmp_path / "b.safetensors")
    same(back, weights)
    assert back.source["exported_from"] == weights.source  # the first one, however often
    again = load_file(tmp_path / "b.safetensors")
    assert again.keys() == export(weights, "timm").keys()


def test_no_labels_stay_none(golden, tmp_path):
    weights = dataclasses.replace(convert(golden("mobilevit_xxs.timm").state()), labels=None)
    export_file(weights, "timm", tmp_path / "a.safetensors")
    assert convert_file(tmp_path / "a.safetensors").labels is None


def test_what_was_assumed_stays_assumed_until_somebody_tells(golden, tmp_path):
    weights = convert(golden(f"{VIT}.transformers").state(), model=VIT)
    assert {"layer_norm_eps", "resize"} <= set(weights.source["assumed"])
    export_file(weights, "transformers", tmp_path / "a.safetensors")
    again = convert_file(tmp_path / "a.safetensors", preprocess={"resize": 200})
    assert set(weights.source["assumed"]) - set(again.source["assumed"]) == {"resize"}
    assert again.source["layer_norm_eps"] == weights.source["layer_norm_eps"]
    assert again.preprocess["resize"] == 200


def test_the_caller_goes_before_it_and_it_goes_before_the_folder(golden, tmp_path):
    weights = convert(golden(f"{VIT}.transformers").state(), model=VIT, config={"gelu": "tanh"}, preprocess={"resize": 250})
    export_file(weights, "transformers", tmp_path / "model.safetensors", told=["gelu"])
    names = {str(i): f"x{i}" for i in range(1000)}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_act": "gelu", "id2label": names}))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        again = convert_file(path)
        assert again.config["gelu"] == "tanh" and again.labels == weights.labels and again.preprocess["resize"] == 250
        given = refvit.load(None, path, gelu="none", crop=200, labels=["l"] * 1000)
        assert given.config.gelu == "none" and given.preprocess.crop == 200 and given.preprocess.resize == 250
        assert given.labels[0] == "l"


def test_the_model_is_told(golden, tmp_path):
    """These tensors fit two models."""
    state = golden(f"{VIT}.timm").state()
    with pytest.raises(WeightsError, match="say which by model="):
        convert(state)
    export_file(convert(state, model="deit_tiny_patch16_224"), "timm", tmp_path / "a.safetensors")
    assert convert_file(tmp_path / "a.safetensors").model == "deit_tiny_patch16_224"
    with pytest.raises(WeightsError, match=f"says that it holds deit_tiny_patch16_224, not {VIT}"):
        convert_file(tmp_path / "a.safetensors", model=VIT)


def test_in_shards_and_on_the_command_line(run, golden, tmp_path):
    weights = convert(golden("mobilevit_xxs.timm").state(), tag="mine", preprocess={"resize": 301})
    source = store.save(weights, tmp_path / "own.safetensors")
    out = tmp_path / "cvnets.safetensors"
    assert run("convert", source, "--to", "cvnets", "-o", out, "--no-check")[0] == 0
    code, text, _ = run("convert", out, "--no-check")
    assert (
        code == 0 and "mobilevit_xxs.mine" in text and "resize: 301" in text and "exported_from: layout mobilevit.timm" in text
    )
    state, metadata = load_file(out), metadata_of(out)
    names, weight_map = sorted(state), {}
    for i, part in enumerate((names[:50], names[50:])):
        shard = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, tmp_path / shard, metadata)
        weight_map |= dict.fromkeys(part, shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    same(convert_file(index), convert_file(out))


# not believed


def metadata_of(path):
    with safe_open(path, framework="numpy") as f:
        return f.metadata()


@pytest.fixture
def exported(golden, tmp_path):
    """A file of refvit's in transformers' layout: (path, state, record)."""
    weights = convert(golden(f"{VIT}.transformers").state(), model=VIT)
    path = tmp_path / "a.safetensors"
    export_file(weights, "transformers", path)
    return path, load_file(path), json.loads(metadata_of(path)[KEY])


def refused(exported, record, state=None):
    path, first, _ = exported
    text = record if isinstance(record, str) else json.dumps(record)
    save_file(first if state is None else state, path, {KEY: text})
    with pytest.raises(WeightsError) as caught:
        convert_file(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    return str(caught.value)


def test_other_tensors_under_its_metadata(exported):
    _, state, record = exported
    for name, a in (("classifier.bias", state["classifier.bias"] + 1), ("classifier.bias", state["classifier.bias"][:999])):
        assert "its tensors are not those that refvit wrote" in refused(exported, record, {**state, name: a})
    half = {name: a.astype(np.float16) for name, a in state.items()}
    assert "save them without these metadata" in refused(exported, record, half)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "vit_small_patch16_224"}, "vit_small_patch16_224"),
        ({"model": "mobilevit_xxs"}, "damaged"),
        ({"model": "vit_tiny"}, "damaged .*unknown model"),
        ({"model": 5}, "damaged .*model is 5"),
        ({"labels": ["a"] * 999}, "damaged .*1000 classes, got 999 labels"),
        ({"labels": [1] * 1000}, "must be text"),
        ({"labels": "abc"}, "damaged"),
        ({"told": "gelu"}, "damaged"),
        ({"sha256": "0" * 64}, "not those that refvit wrote"),
        ({"sha256": None}, "damaged"),
        ({"format_version": 2}, "format 2; this refvit reads up to 1: upgrade refvit"),
        ({"format_version": "1"}, "damaged"),
        ({"source": []}, "damaged"),
        ({"source": {"assumed": 5}}, "damaged"),
        ({"source": {"assumed": ["layout"], "layout": "mine"}}, "damaged .*assumed names 'layout', which is no field"),
        ({"source": {"assumed": ["sha256"], "sha256": "0"}}, "damaged .*assumed names 'sha256'"),
        ({"source": {"assumed": [["resize"]]}}, "damaged"),
        ({"source": {"assumed": "resize"}}, "damaged .*must be a list"),
        ({"source": {"assumed": ["resize"], "resize": {"file": "x"}}}, "damaged .*assumed names 'resize'"),
        ({"source": {"exported_from": 5}}, "damaged .*an object"),
        ({"preprocess": {}}, "damaged .*missing"),
        ({"preprocess": {"resize": "big"}}, "damaged"),
        ({"postprocess": {"flip": True}}, "damaged .*unknown flip"),
    ],
)
def test_metadata_that_do_not_fit(exported, changes, message):
    text = refused(exported, exported[2] | changes)
    assert re.search(message, text), text


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_heads", 6, f"{KEY} in the metadata says num_heads 6, and {VIT} has 3"),
        ("image_size", 384, "says image_size 384"),
        ("num_classes", 10, "the model has 10 classes, got 1000 labels"),
        ("depth", 3, "says depth 3"),
        ("gelu", 5, "damaged"),
        ("layer_norm_eps", -1.0, "damaged"),
        ("colour", 1, "damaged (ViTConfig: unknown colour"),
    ],
)
def test_a_config_that_the_tensors_contradict(exported, field, value, message):
    record = exported[2]
    record["config"][field] = value
    assert message in refused(exported, record)


def test_a_number_of_classes_that_the_tensors_contradict(exported):
    record = exported[2]
    record["config"]["num_classes"], record["labels"] = 10, [str(i) for i in range(10)]
    assert "says num_classes 10, and" in refused(exported, record)


def test_json_that_parsers_read_differently(exported):
    text = json.dumps(exported[2])
    assert "the key 'tag' twice" in refused(exported, text.replace('"tag": ""', '"tag": "a", "tag": ""'))
    assert "NaN" in refused(exported, text.replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": NaN'))
    labels = exported[2]["labels"]
    assert "surrogates" in refused(exported, exported[2] | {"labels": ["\ud800", *labels[1:]]})


def test_own_facts_of_the_source_cannot_be_replaced(exported):
    """Whatever a file says of where it came from is below exported_from."""
    path, state, record = exported
    record["source"] |= {
        "layout": "mine",
        "sha256": "0",
        "file": "b",
        "key": "c",
        "exported_from": {"layout": "d", "file": "e"},
    }
    save_file(state, path, {KEY: json.dumps(record)})
    source = convert_file(path).source
    assert (source["layout"], source["file"]) == ("vit.transformers", path.name) and "key" not in source
    assert source["sha256"] == convert_file(path, source={}).source["sha256"] != "0"
    assert source["exported_from"] == {"layout": "d", "file": "e"}


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "{", "5", '{"format_version": 1}', "[" * 100_000])
def test_metadata_that_are_none(exported, text):
    assert "metadata are damaged" in refused(exported, text)


def test_shapes_that_are_said_to_be_told_have_to_fit_all_the_same(exported):
    record = exported[2]
    record["config"]["depth"], record["told"] = 3, ["depth"]
    assert "no vit_tiny_patch16_224 checkpoint: unexpected blocks.10" in refused(exported, record)


def test_2000_random_changes_of_the_metadata(exported):
    """Refused, or weights that can be kept; never another error."""
    _, state, record = exported
    small = {name: a for name, a in state.items() if a.size < 2000}
    raw = json.dumps(record | {"sha256": store.digest(small)}).encode()
    chance, read = np.random.default_rng(5), 0
    for _ in range(2000):
        damaged = bytearray(raw)
        for _ in range(chance.integers(1, 4)):
            damaged[chance.integers(len(damaged))] = chance.choice([*b'{}[]",:0159ae', chance.integers(32, 127)])
        try:
            read_record({KEY: damaged.decode()}, small)
            read += 1
        except WeightsError:
            pass
    assert 100 < read < 1990
