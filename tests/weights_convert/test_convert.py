"""Public checkpoints become refvit's weights exactly, or are refused with the reason."""

import hashlib
import json

import numpy as np
import pytest
from helpers import handmade
from helpers.files import shard_files
from safetensors.numpy import save_file

import refvit
from refvit.errors import ConfigError, WeightsError
from refvit.models import architecture
from refvit.weights.readers import shards
from refvit.weights.readers.checkpoint import read_checkpoint
from refvit.weights.store import load, save
from weights_convert import convert, convert_file
from weights_convert.convert import LAYOUTS
from weights_convert.layout import Layout, Rule
from weights_convert.report import lines, report
from weights_convert.sidecar import Sidecar

RNG = np.random.default_rng(2)


def seeded(name, dtype=np.float32):
    arch = architecture(name)
    return {n: (RNG.standard_normal(s) * 0.1).astype(dtype) for n, s in arch.parameters(arch.config)}


def with_classes(state, classes):
    return {**state, "head.fc.weight": state["head.fc.weight"][:classes], "head.fc.bias": state["head.fc.bias"][:classes]}


def told(state, **options):
    with pytest.raises(WeightsError) as caught:
        convert(state, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# what fits


def test_the_published_checkpoint(xxs):
    weights = convert(xxs, tag="cvnets_in1k")
    assert weights.name == "mobilevit_xxs.cvnets_in1k"
    for name, value in weights.params.items():
        np.testing.assert_array_equal(value, xxs[name], strict=True)
    dropped = set(xxs) - set(weights.params)
    assert dropped
    assert all(name.endswith(".num_batches_tracked") for name in dropped)
    assert len(weights.labels) == 1000
    assert weights.labels[:2] == ("tench, Tinca tinca", "goldfish, Carassius auratus")
    assert weights.source["layout"] == "mobilevit.timm"
    assert {"labels", "resize", "mean", "channel_order"} <= set(weights.source["assumed"])
    # timm's default_cfg of these checkpoints: crop_pct 0.9 of 256, bicubic, mean 0, std 1, RGB
    assert weights.preprocess == {
        "resize": 284,
        "crop": 256,
        "enlarge": None,
        "interpolation": "bicubic",
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "channel_order": "rgb",
        "longest": None,
    }


FOUND = ("mobilevit_xxs", "mobilevit_xs", "mobilevit_s", "vit_tiny_patch16_384", "deit_tiny_distilled_patch16_224")
FOUND += ("hrnet_w18_small", "hrnet_w18_small_seg", "hrnet_w32_pose", "hrvit_b1")


@pytest.mark.parametrize("name", FOUND)
def test_each_model_is_found_by_its_shapes(name):
    state = seeded(name)
    weights = convert(dict(reversed(state.items())))
    assert weights.model == name
    assert weights.tag == ""
    order = [n for n, _ in architecture(name).parameters(architecture(name).config)]
    assert list(weights.params) == order
    assert convert(state, model=name).sha256 == weights.sha256


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_the_dtype_of_the_source_is_kept(dtype):
    state = seeded("mobilevit_xxs", dtype)
    assert {a.dtype.name for a in convert(state).params.values()} == {dtype}


def test_the_state_is_not_written_to_and_may_be_read_only(xxs):
    before = {n: a.copy() for n, a in xxs.items()}
    for a in before.values():
        a.flags.writeable = False
    convert(before)
    assert all(np.array_equal(before[n], xxs[n]) for n in xxs)


def test_number_of_classes_follows_the_checkpoint(xxs):
    few = with_classes(xxs, 3)
    weights = convert(few)
    assert weights.config["num_classes"] == 3
    assert weights.labels is None
    assert "labels" not in weights.source
    named = convert(few, labels=["a", "b", "c"])
    assert named.labels == ("a", "b", "c")
    model = refvit.load("mobilevit_xxs", few, resize=32, crop=32)
    answer = model.infer(np.zeros((40, 40, 3), np.uint8))
    assert answer.logits.shape == (3,)
    assert answer.label in ("0", "1", "2")
    one = convert(with_classes(xxs, 1))
    assert one.config["num_classes"] == 1


def test_own_labels_for_1000_classes(xxs):
    names = [f"class {i}" for i in range(1000)]
    weights = convert(xxs, labels=names)
    assert weights.labels == tuple(names)
    assert "labels" not in weights.source


@pytest.mark.parametrize("labels", [["a", "b"], ["a", "b", "c", "d"], [], "abc", [1, 2, 3]])
def test_labels_that_do_not_fit(xxs, labels):
    with pytest.raises(ConfigError, match="labels"):
        convert(with_classes(xxs, 3), labels=labels)


def test_preprocess_replaces_single_fields(xxs):
    weights = convert(xxs, preprocess={"crop": (192, 224), "channel_order": "bgr"})
    assert weights.preprocess["crop"] == [192, 224]
    assert weights.preprocess["channel_order"] == "bgr"
    assert weights.preprocess["resize"] == 284
    with pytest.raises(ConfigError, match="unknown field 'sise'"):
        convert(xxs, preprocess={"sise": 3})


def test_converted_saved_and_loaded_is_the_same_model(xxs, tmp_path):
    path = save(convert(xxs, tag="mine"), tmp_path / "a.safetensors")
    x = RNG.random((1, 3, 32, 32)).astype(np.float32)
    np.testing.assert_array_equal(refvit.load(weights=path)(x), refvit.load("mobilevit_xxs", xxs)(x))
    assert load(path).name == refvit.load(weights=path).name == "mobilevit_xxs.mine"


# what does not fit


def test_missing_surplus_and_misshapen_tensors_are_listed_by_name(xxs):
    state = dict(xxs)
    del state["stages.0.0.conv2_kxk.conv.weight"]
    del state["final_conv.bn.bias"]
    state["head.extra"] = np.zeros(3, np.float32)
    state["stages.3.1.norm.weight"] = np.zeros(81, np.float32)
    text = told(state)
    assert text.startswith("no mobilevit_xxs checkpoint: ")
    assert "missing stages.0.0.conv2_kxk.conv.weight (32, 1, 3, 3)" in text
    assert "missing final_conv.bn.bias (320,)" in text
    assert "unexpected head.extra (3,)" in text
    assert "stages.3.1.norm.weight is (81,), (80,) expected" in text


@pytest.mark.parametrize("shape", [(), (320,), (1000, 320, 1), (0, 320), (1000, 321)])
def test_a_head_of_another_shape(xxs, shape):
    assert "head.fc" in told({**xxs, "head.fc.weight": np.zeros(shape, np.float32)})


def test_a_key_that_belongs_to_no_tensor(xxs):
    assert "'backbone.x' belongs to no tensor" in told({**xxs, "backbone.x": np.zeros(1, np.float32)})
    assert "belongs to no tensor" in told({**xxs, "module.stem.conv.weight": xxs["stem.conv.weight"]})


def test_two_keys_that_become_one():
    layout = Layout("toy", (), frozenset({"a"}), (Rule(r"(module\.)?(a|b)", r"\g<2>"), Rule("drop", None)), lambda p: {}, {})
    one, two = np.zeros(1), np.ones(1)
    assert layout.rename({"a": one, "module.b": two, "drop": one}) == {"a": one, "b": two}
    with pytest.raises(WeightsError, match=r"toy: 'a' and 'module\.a' both become 'a'"):
        layout.rename({"a": one, "module.a": two})
    assert layout.matches({"a": one, "z": one})
    assert not layout.matches({"b": one})


@pytest.mark.parametrize("dtype", ["int64", "int8", "bool", "complex64"])
def test_integers_are_refused(xxs, dtype):
    text = told({**xxs, "stem.conv.weight": xxs["stem.conv.weight"].astype(dtype)})
    assert text == f"stem.conv.weight: floating-point values expected, got {dtype}"


def test_tensors_of_two_layouts_name_both_and_what_decides(xxs, golden):
    other = golden("hrnet_w18_small.timm").state()
    own = [next(layout for layout in LAYOUTS if layout.matches(state)) for state in (xxs, other)]
    for prefix in ("", "module."):
        text = told({prefix + name: a for name, a in {**xxs, **other}.items()})
        assert "have the names of 2 layouts" in text and "keep those of one model in a file of their own" in text
        for layout, foreign in zip(own, own[::-1], strict=True):
            listed = text.partition(f"{layout.name} (by ")[2].partition(")")[0].split(", ")
            assert set(listed) <= layout.signature - foreign.signature and listed
        assert "not one of" not in text


# which of several models that fit


@pytest.fixture(scope="module")
def tiny(golden):
    """Seeded tensors that are those of a ViT and of a DeiT."""
    return golden("vit_tiny_patch16_224.timm").state()


VIT, DEIT = "vit_tiny_patch16_224", "deit_tiny_patch16_224"


def test_equal_fits_are_decided_by_the_caller_then_by_what_is_beside_the_tensors(tiny):
    assert f"these tensors fit {VIT} and {DEIT}; say which by model=" in told(tiny)
    assert f"these tensors fit {VIT} and {DEIT}; say which by model=" in told(tiny, beside=Sidecar(suggested=(DEIT, VIT)))
    assert convert(tiny, beside=Sidecar(suggested=(VIT, "vit_base_patch16_224"))).model == VIT
    assert convert(tiny, beside=Sidecar(suggested=(DEIT,))).model == DEIT
    assert convert(tiny, model=VIT, beside=Sidecar(suggested=(DEIT,))).model == VIT


def test_what_is_beside_the_tensors_is_not_believed_against_them(tiny):
    beside = Sidecar(origin="x/config.json", suggested=("vit_small_patch16_224",))
    for options in ({}, {"model": VIT}):
        text = told(tiny, beside=beside, **options)
        assert text.startswith(
            f"x/config.json says that this is vit_small_patch16_224, and the tensors are those of {VIT} or {DEIT}"
        )
    many = Sidecar(suggested=("hrnet_w18", "hrnet_w30", "hrnet_w32", "hrnet_w40"))
    assert "is hrnet_w18 or hrnet_w30 or hrnet_w32 or another, and" in told(tiny, beside=many)
    few = {name: a for name, a in tiny.items() if name != "norm.weight"}
    assert told(few, beside=Sidecar(suggested=(DEIT,))).startswith(f"no {DEIT} checkpoint: missing norm.weight")


@pytest.mark.parametrize("state", [{}, {"patch_embed.proj.weight": np.zeros(1)}, {"module.stem.conv.weight": np.zeros(1)}])
def test_an_unknown_layout_names_the_known_ones(state):
    text = told(state)
    assert "nearest is vit.timm, which has blocks.0.attn.qkv.weight" in text or "deit, hrnet, hrvit, mobilevit, vit" in text
    assert f"{len(state)} tensors" in text
    assert all(name in text for name in state)


def test_a_model_that_disagrees(xxs):
    text = told({k: v for k, v in xxs.items() if k != "stem.bn.bias"}, model="mobilevit_s")
    assert text.startswith("no mobilevit_s checkpoint: missing stem.bn.bias")
    assert "stages.0.0.conv1_1x1.conv.weight is (32, 16, 1, 1), (64, 16, 1, 1) expected" in text
    assert text.count(";") <= 8
    assert "more" in text
    assert "mobilevit_xxs, mobilevit_xs, mobilevit_s, not vit_base" in told(xxs, model="vit_base")


def test_a_model_that_disagrees_is_told_what_it_is(xxs):
    assert "mobilevit_xxs" in told(xxs, model="mobilevit_s")


@pytest.mark.parametrize("entry", [{"stem.conv.weight": [[1.0]]}, {5: np.zeros(1, np.float32)}], ids=["list", "key"])
def test_values_that_are_no_arrays(xxs, entry):
    told({**xxs, **entry})


# files


def test_a_file_and_its_sha256(xxs, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(xxs, path)
    weights = convert_file(str(path), tag="mine", source={"url": "https://example.org"})
    assert weights.source["file"] == "model.safetensors"
    assert weights.source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.source["url"] == "https://example.org"
    assert weights.sha256 == convert(xxs).sha256
    assert refvit.load(weights=path).name == "mobilevit_xxs"
    assert refvit.load("mobilevit_xxs.mine", path).name == "mobilevit_xxs.mine"


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_the_sha256_of_shards_is_that_of_index_and_shards(xxs, tmp_path, suffix):
    files = shard_files(xxs, suffix)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    listed = sorted(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    assert len(listed) == 3
    expected = hashlib.sha256("".join(listed).encode()).hexdigest()
    index = next(name for name in files if name.endswith(".json"))
    for path in (tmp_path, tmp_path / index):
        weights = convert_file(path)
        assert (weights.source["file"], weights.source["sha256"]) == (index, expected)
    other = shard_files({**xxs, "head.fc.bias": xxs["head.fc.bias"] + 1}, suffix)
    changed = [name for name in files if other[name] != files[name]]
    assert len(changed) == 1 and changed[0] != index  # the index is the same
    handmade.put(tmp_path / changed[0], other[changed[0]])
    assert convert_file(tmp_path).source["sha256"] != expected


def test_what_shards_may_repeat_is_bounded_in_all(tmp_path, monkeypatch):
    """Each holds one number that stands for 16 KiB: one of them is let through, eight are not."""

    def folder(count):
        names = [f"pytorch_model-{i}.bin" for i in range(count)]
        for i, name in enumerate(names):
            body = handmade.mapping([(f"a{i}", handmade.tensor(handmade.storage("0", 1), (4096,), (0,)))])
            (tmp_path / name).write_bytes(handmade.torch_zip(handmade.pickle(body), {"0": bytes(4)}))
        weight_map = {f"a{i}": name for i, name in enumerate(names)}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return tmp_path

    monkeypatch.setattr(shards, "FREE_BYTES", 40_000)
    assert read_checkpoint(folder(2)).tensors.keys() == {"a0", "a1"}
    with pytest.raises(WeightsError, match="its tensors would take 16384 bytes, but only 4 are stored"):
        read_checkpoint(folder(3))


def test_what_was_left_out_is_recorded_and_said(golden, tmp_path):
    state = golden("vit_tiny_patch16_224.transformers").state()
    state |= {"vit.pooler.dense.weight": np.ones((2, 2), np.float32), "vit.pooler.dense.bias": np.ones(2, np.float32)}
    save_file(state, tmp_path / "a.safetensors")
    weights = convert_file(tmp_path / "a.safetensors", model=VIT)
    (why, names), *others = weights.source["left_out"].items()
    assert sorted(names) == ["vit.pooler.dense.bias", "vit.pooler.dense.weight"] and why and not others
    said = [line for line in lines(report(weights, check=False)) if "left" in line]
    assert len(said) == 1 and said[0].split()[:2] == ["left", "out"] and said[0].endswith(f": {why}")
    assert all(name in said[0] for name in names)
    loaded = load(save(weights, tmp_path / "b.safetensors"))
    assert dict(loaded.source["left_out"]) == weights.source["left_out"]
    del state["vit.pooler.dense.weight"], state["vit.pooler.dense.bias"]
    assert "left_out" not in convert(state, model=VIT).source


def test_a_long_list_of_what_was_left_out_is_cut(xxs):
    weights = convert(xxs)
    assert "left_out" in weights.source  # the counters of batch norms
    found = report(weights, check=False)
    found["source"] = {"left_out": {"one reason": list("abcde"), "another": ["f"]}}
    said = [line.strip() for line in lines(found) if "reason" in line or "another" in line]
    assert [line.removeprefix("left out").strip() for line in said] == ["a, b, c and 2 more: one reason", "f: another"]


def test_errors_name_the_file(xxs, tmp_path):
    path = tmp_path / "vit.safetensors"
    save_file({"a": np.zeros(1, np.float32)}, path)
    with pytest.raises(WeightsError, match=r"vit\.safetensors: the layout is not one of the \d+ known"):
        convert_file(path)
    with pytest.raises(WeightsError, match=r"none\.safetensors: no such weights file"):
        convert_file(tmp_path / "none.safetensors")
