"""refvit's weights under other names: what was read is written, bit by bit, and what cannot be said is refused."""

import ast
import dataclasses
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import refvit
from refvit.errors import WeightsError
from refvit.models import ARCHITECTURES, architecture
from refvit.weights import store
from refvit.weights.readers.checkpoint import read_checkpoint
from weights_convert import convert, convert_file
from weights_convert.convert import LAYOUTS
from weights_convert.export import PROJECTS, export, export_file, first_convolution, layout_names, prepare
from weights_convert.layout import DROP, Layout, Rule
from weights_convert.vit_jax import axes, there_and_back

GOLDEN = Path(__file__).parent.parent / "golden"
VIT, DEIT, XXS = "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "mobilevit_xxs"
SEG = "hrnet_w18_small_v2_seg"
TRAINING = r"seg_head\.aux_head\..*"  # what fixtures hold and refvit drops
OPTIONS = ("gelu", "layer_norm_eps", "position_resize")


def size(name):
    arch = ARCHITECTURES[name]
    return sum(int(np.prod(shape)) for _, shape in arch.parameters(arch.config))


def smallest(layout):
    return min(layout.models, key=size)


def seeded(name, dtype=np.float32):
    """Parameters of a model, and variances that are above 0."""
    arch, rng = architecture(name), np.random.default_rng(5)
    values = {
        n: rng.random(s, np.float32).astype(dtype) + (0.5 if n.endswith("running_var") else -0.5) for n, s in shapes(arch)
    }
    return {n: a.astype(dtype) for n, a in values.items()}


def shapes(arch):
    return arch.parameters(arch.config)


def same(one, two):
    """The same names, and the same bits."""
    assert one.keys() == two.keys()
    for name, a in one.items():
        np.testing.assert_array_equal(a, two[name], strict=True)


def refused(weights, layout, **options):
    with pytest.raises(WeightsError) as caught:
        prepare(weights, layout, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# round trips


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.npz")), ids=lambda path: path.stem)
def test_a_checkpoint_comes_back_as_it_was(golden, path):
    state, model = golden(path.stem).state(), path.stem.split(".")[0]
    weights = convert(state, model=model)
    back = export(weights, weights.source["layout"])
    same(back, {key: a for key, a in state.items() if not re.fullmatch(TRAINING, key)})
    assert convert(back, model=model).sha256 == weights.sha256


@pytest.mark.parametrize("layout", [x for x in LAYOUTS if x.writable], ids=lambda layout: layout.name)
def test_every_layout_is_left_by_the_way_it_was_entered(layout):
    given = seeded(smallest(layout))
    params = {name: given[name] for name in kept(layout)}
    state = layout.export(params)
    same(layout.rename(state), params)
    assert [other.name for other in LAYOUTS if other.matches(state)] == [layout.name]
    weights = convert(state, model=smallest(layout), config=told(layout, params))
    same(export(weights, layout.name), state)


def kept(layout):
    """Names of the smallest model's parameters in this layout, which decides about biases before norms."""
    arch = architecture(smallest(layout))
    bias = layout.config({}).get("head_bias")
    config = arch.config if bias is None else dataclasses.replace(arch.config, head_bias=bias)
    return [name for name, _ in arch.parameters(config)]


def told(layout, params):
    """What the tensors of the smallest model leave open: the published value."""
    config = architecture(smallest(layout)).config
    return {field: getattr(config, field) for field, value in layout.config(params).items() if value is None}


def test_a_layout_that_is_told_apart_by_what_is_dropped_cannot_be_written():
    (layout,) = (layout for layout in LAYOUTS if not layout.writable)
    assert layout.name == "mobilevit.cvnets_v2"
    with pytest.raises(WeightsError, match=r"layout mobilevit\.cvnets_v2: not all of .*neural_augmentor"):
        layout.export(seeded(XXS))
    assert "mobilevit.cvnets_v2" not in layout_names(XXS)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_the_dtype_is_kept_and_the_arrays_are_copies(dtype):
    weights = convert(seeded(XXS, dtype))
    for layout in layout_names(XXS):
        state = export(weights, layout)
        for key, a in state.items():
            assert a.dtype == (np.int64 if key.endswith("num_batches_tracked") else dtype), key
            assert a.flags.c_contiguous and a.flags.writeable and a.base is None, key
            a[...] = 7
    assert convert(seeded(XXS, dtype)).sha256 == store.digest(weights.params)


# names by hand


def renamed(state, words):
    for old, new in words:
        state = {re.sub(old, new, key): a for key, a in state.items()}
    return state


LINEN = [("LayerNorm_2", "LayerNorm_1"), ("DotProductAttention_1", "DotProductAttention_0"), ("MlpBlock_3", "MlpBlock_0")]
ON_DISK = [
    (r"\.layers\.", ".encoder.layer."),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
]


def test_the_numberings_of_jax(golden):
    state = golden(f"{VIT}.jax").state()
    weights, linen = convert(state), renamed(state, LINEN)
    same(export(weights, "jax"), state)
    same(export(weights, "vit.jax.linen"), linen)
    expected = {key: a for key, a in linen.items() if "encoderblock" not in key}
    for key in (key for key in linen if "encoderblock_0/" in key):
        layers = [linen[key.replace("encoderblock_0/", f"encoderblock_{i}/")] for i in range(12)]
        expected[key.replace("encoderblock_0/", "encoderblock/")] = np.stack(layers)
    same(export(weights, "vit.jax.stacked"), expected)


def test_transformers_on_disk_and_in_memory(golden):
    memory = golden(f"{VIT}.transformers").state()
    weights = convert(memory, model=VIT)
    same(export(weights, "vit.transformers.in_memory"), memory)
    same(export(weights, "transformers"), renamed(memory, ON_DISK))


def test_deit_has_two_heads_and_two_tokens(golden):
    weights = convert(golden(DEIT).state())
    state = export(weights, "transformers", told=OPTIONS)
    same({"": state["cls_classifier.weight"]}, {"": weights.params["head.weight"]})
    same({"": state["distillation_classifier.bias"]}, {"": weights.params["head_dist.bias"]})
    same({"": state["deit.embeddings.distillation_token"]}, {"": weights.params["dist_token"]})
    assert not any(key.startswith("vit.") or key == "classifier.weight" for key in state)
    rows = weights.params["blocks.7.attn.qkv.bias"]
    for i, name in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(
            state[f"deit.encoder.layer.7.attention.attention.{name}.bias"], rows[i * 192 : i * 192 + 192]
        )


@pytest.mark.parametrize(
    ("fixture", "layout", "words"),
    [
        ("hrnet_w18_small_seg", "hrnet.segmentation.trained", [("^", "model.")]),
        ("hrnet_w32_pose", "mmpose", [("^", "backbone."), (r"^backbone\.final_layer", "head.final_layer")]),
        ("hrnet_w32_pose", "hrnet.mmpose.keypoint_head", [("^", "backbone."), (r"^backbone\.final", "keypoint_head.final")]),
    ],
)
def test_hrnet_below_a_prefix(golden, fixture, layout, words):
    state = golden(fixture).state()
    same(export(convert(state), layout), renamed(state, words))


def test_the_counters_of_batch_norms(golden):
    weights = convert(golden("hrnet_w18_small").state())
    state = export(weights, "timm")
    counters = [a for key, a in state.items() if key.endswith(".num_batches_tracked")]
    assert len(counters) == sum(name.endswith(".running_var") for name in weights.params) == 91
    assert all(a.dtype == np.int64 and a.shape == () and a == 0 for a in counters)
    following = list(state)[list(state).index("bn1.running_var") + 1]
    assert following == "bn1.num_batches_tracked"  # the order of PyTorch


# from one project to another


def reversed_stem(params):
    stem = first_convolution(params)
    return {**params, stem: params[stem][:, ::-1]}


@pytest.mark.parametrize("other", ["transformers", "cvnets"])
def test_rgb_to_bgr_and_back(golden, other):
    state = golden("mobilevit_xxs.timm").state()
    done = prepare(convert(state), other)
    assert "channel_order: bgr in this layout; the input channels of stem.conv.weight are reversed" in done.notes
    bgr = convert(done.state)
    assert bgr.preprocess["channel_order"] == "bgr"
    same(bgr.params, reversed_stem(convert(state).params))
    same(export(bgr, "timm"), state)


def test_bgr_to_rgb_gives_the_same_answers_for_reversed_channels(golden):
    case = golden("mobilevit_xxs.cvnets")
    state = export(convert(case.state()), "timm")
    model = refvit.load(XXS, state, dtype="float64", backend="numpy")
    assert model.preprocess.channel_order == "rgb"
    assert case.check({"output": model(case.input()[:, ::-1])}) < 1e-13
    assert case.check({"output": model(case.input())}) > 1e-3


def test_mean_and_std_follow_the_channels(golden):
    mean, std = (0.1, 0.2, 0.3), (0.7, 0.8, 0.9)
    weights = convert(golden("mobilevit_xxs.timm").state(), preprocess={"mean": mean, "std": std})
    assert prepare(weights, "timm").weights.preprocess["mean"] == list(mean)
    done = prepare(weights, "cvnets")
    assert (done.weights.preprocess["mean"], done.weights.preprocess["std"]) == ([0.3, 0.2, 0.1], [0.9, 0.8, 0.7])
    assert done.weights.preprocess["channel_order"] == "bgr"
    assert "mean: [0.3, 0.2, 0.1], in this layout [0.0, 0.0, 0.0] is published" in done.notes
    assert "resize: 284, in this layout 288 is published" in done.notes


def test_vit_through_transformers(golden):
    state = golden(f"{VIT}.timm").state()
    weights = convert(state, model=VIT)
    there = export(weights, "transformers", told=["layer_norm_eps", "position_resize"])
    config = {name: weights.config[name] for name in OPTIONS}
    back = convert(there, model=VIT, config=config)
    assert back.config == weights.config
    same(export(back, "timm"), state)


def test_a_bias_before_a_norm_becomes_part_of_its_mean(golden):
    case = golden("hrnet_w18_small_seg")
    weights = convert(case.state())
    done = prepare(weights, "mmseg", told=["upsample"])
    assert "head_bias: False in this layout; biases before a norm are part of its mean" in done.notes
    assert "upsample: the file does not tell that it is 'bilinear'" in done.notes
    bias, mean = weights.params["last_layer.0.bias"], weights.params["last_layer.1.running_mean"]
    np.testing.assert_array_equal(done.state["decode_head.convs.0.bn.running_mean"], mean - bias, strict=True)
    exact = dataclasses.replace(weights, params=weights.astype("float64"))
    found = convert(export(exact, "mmseg", told=["upsample"]))
    assert not found.config["head_bias"]
    once = {**found.config, "upsample": "bilinear"}  # mmsegmentation's own would differ: the fixture is no multiple of 32
    model = refvit.Model(dataclasses.replace(found, config=once), dtype="float64", backend="numpy")
    assert case.check({"output": model(case.input())}) < 1e-13


def test_a_bias_before_a_norm_that_is_expected_is_zero(golden):
    weights = convert(golden(f"{SEG}.mmseg").state())
    assert not weights.config["head_bias"]
    done = prepare(weights, "hrnet.segmentation", told=["upsample"])
    assert "head_bias: True in this layout; biases before a norm are 0" in done.notes
    assert not done.state["last_layer.0.bias"].any()
    back = convert(done.state).params
    same({name: a for name, a in back.items() if name != "last_layer.0.bias"}, weights.params)


def test_a_head_without_biases_stays_without():
    arch = architecture("hrnet_w18_small")
    params = {n: a for n, a in seeded(arch.name).items() if not re.search(r"(samp_modules\.\d|final_layer)\.0\.bias$", n)}
    weights = convert(params)
    assert not weights.config["head_bias"]
    done = prepare(weights, "timm")
    assert done.notes == ()
    assert "final_layer.0.bias" not in done.state


# what the layout implies otherwise


@pytest.mark.parametrize(
    ("fixture", "model", "layout", "expected", "others"),
    [
        (
            f"{VIT}.jax",
            VIT,
            "timm",
            ["gelu 'none' where these weights have 'tanh'", "position_resize 'bicubic_antialias'", 'act_layer="gelu_tanh"'],
            "vit.jax or vit.jax.linen or vit.jax.stacked",
        ),
        (
            f"{VIT}.timm",
            VIT,
            "transformers",
            ["layer_norm_eps 1e-12 where these weights have 1e-06", "say told=['layer_norm_eps', 'position_resize']"],
            "vit.timm",
        ),
        (
            f"{VIT}.transformers",
            VIT,
            "jax",
            ["gelu 'tanh' where these weights have 'none'", "layer_norm_eps 1e-06 where these weights have 1e-12"],
            "vit.transformers or vit.transformers.in_memory",
        ),
        (
            "hrnet_w18_small_seg",
            "hrnet_w18_small_seg",
            "mmseg",
            ["upsample 'bilinear_twice' where these weights have 'bilinear'", "no multiple of 32"],
            "hrnet.segmentation or hrnet.segmentation.trained",
        ),
        (
            "mobilevit_xxs_deeplabv3.cvnets_v2",
            "mobilevit_xxs_deeplabv3",
            "cvnets",
            ["align_corners False where these weights have True"],
            "mobilevit.cvnets_v2.deeplabv3",
        ),
    ],
)
def test_another_config_is_refused_with_both_values_and_a_way_out(golden, fixture, model, layout, expected, others):
    weights = convert(golden(fixture).state(), model=model)
    text = refused(weights, layout)
    assert text.startswith(f"{model}: layout {layout_names(model)[layout]} implies ")
    assert all(part in text for part in expected), text
    assert f"; write {others}, or, if whoever reads the file is told, say told=[" in text
    fields = ast.literal_eval(re.search(r"say told=(\[.*?\])", text)[1])
    assert prepare(weights, layout, told=fields).notes


def test_saying_some_is_not_enough_and_saying_too_much_does_no_harm(golden):
    weights = convert(golden(f"{VIT}.jax").state())
    text = refused(weights, "timm", told=["gelu"])
    assert "implies position_resize 'bicubic_antialias'" in text
    assert "gelu '" not in text
    assert "told=['gelu', 'position_resize']" in text
    done = prepare(weights, "timm", told=[*OPTIONS, "depth"])
    assert [note for note in done.notes if "does not tell" in note] == [
        "gelu: the file does not tell that it is 'tanh'",
        "position_resize: the file does not tell that it is 'bilinear_corners'",
    ]
    assert "told: gleu not in the config of vit_tiny_patch16_224: image_size," in refused(weights, "timm", told=["gleu"])


@pytest.mark.parametrize("corners", [False, True])
def test_what_no_layout_can_tell_is_noted(corners):
    params = seeded("hrnet_w18_small_seg")
    params["last_layer.3.weight"], params["last_layer.3.bias"] = (
        params["last_layer.3.weight"][:7],
        params["last_layer.3.bias"][:7],
    )
    weights = convert(params, config={"align_corners": corners})
    done = prepare(weights, "hrnet.segmentation")
    assert done.notes == (f"align_corners: the file does not tell that it is {corners}",)
    with pytest.raises(WeightsError, match="say align_corners="):
        convert(done.state)


def test_align_corners_that_the_number_of_classes_tells_otherwise():
    weights = convert(seeded("hrnet_w18_small_seg"), config={"align_corners": True})
    assert "align_corners False where these weights have True" in refused(weights, "official")


# names of layouts


def test_short_names():
    expected = {
        VIT: {"timm": "vit.timm", "transformers": "vit.transformers", "jax": "vit.jax", "official": "vit.jax"},
        "deit_tiny_patch16_224": {"timm": "vit.timm", "transformers": "vit.transformers", "official": "vit.timm"},
        DEIT: {"timm": "vit.timm", "transformers": "deit.transformers", "official": "vit.timm"},
        XXS: {
            "timm": "mobilevit.timm",
            "transformers": "mobilevit.transformers",
            "cvnets": "mobilevit.cvnets",
            "official": "mobilevit.cvnets",
        },
        "mobilevit_s_deeplabv3": {
            "transformers": "mobilevit.transformers.deeplabv3",
            "cvnets": "mobilevit.cvnets.deeplabv3",
            "cvnets_v2": "mobilevit.cvnets_v2.deeplabv3",
            "official": "mobilevit.cvnets.deeplabv3",
        },
        "mobilevit_s_ssdlite": {"cvnets": "mobilevit.cvnets.ssdlite", "official": "mobilevit.cvnets.ssdlite"},
        "hrnet_w18": {"timm": "hrnet.classification", "official": "hrnet.classification"},
        "hrnet_w48_seg": {"mmseg": "hrnet.mmseg", "official": "hrnet.segmentation.trained"},
        "hrnet_w48_ocr": {"official": "hrnet.ocr.trained"},
        "hrnet_w48_pose": {"mmpose": "hrnet.mmpose", "official": "hrnet.pose"},
        "hrvit_b2": {"official": "hrvit.classification"},
        "hrvit_b2_upernet": {"mmseg": "hrvit.mmseg", "official": "hrvit.mmseg"},
    }
    for model, names in expected.items():
        assert {short: full for short, full in layout_names(model).items() if short != full} == names, model


def test_a_short_name_means_one_layout():
    for model, short in itertools.product(ARCHITECTURES, PROJECTS):
        held = [name for name in layout_names(model) if short in name.split(".") and name != short]
        depths = sorted(name.count(".") for name in held)
        assert len(depths) < 2 or depths[0] < depths[1], (model, short, held)


def test_every_model_can_be_written_as_its_authors_do():
    assert all("official" in layout_names(model) for model in ARCHITECTURES)


@pytest.mark.parametrize("layout", ["jax", "mobilevit.transformers.deeplabv3", "hrnet.classification", "", "onnx"])
def test_a_layout_that_does_not_hold_the_model(layout):
    text = refused(convert(seeded(XXS)), layout)
    assert text.startswith(f"mobilevit_xxs cannot be written as {layout!r}; it can as timm, transformers, cvnets, official, ")


def test_the_image_is_read_by_one_convolution():
    for name, arch in ARCHITECTURES.items():
        found = first_convolution({n: np.broadcast_to(np.float32(0), s) for n, s in shapes(arch)})
        assert found in ("patch_embed.proj.weight", "stem.conv.weight", "conv1.weight", "stem.conv1.weight"), name


def test_what_does_not_come_back_is_not_written(monkeypatch):
    wrong = Rule(r"stem\.conv\.weight", r"\g<0>", None, np.negative)
    layout = next(layout for layout in LAYOUTS if layout.name == "mobilevit.timm")
    layout = dataclasses.replace(layout, rules=(wrong, *layout.rules))
    monkeypatch.setattr(sys.modules["weights_convert.export"], "LAYOUTS", (layout,))
    assert "layout mobilevit.timm does not give the same tensors back" in refused(convert(seeded(XXS)), "timm")


def test_incomplete_weights_are_no_checkpoint():
    weights = convert(seeded(XXS))
    params = {name: a for name, a in weights.params.items() if name != "stem.bn.bias"}
    text = refused(dataclasses.replace(weights, params=params), "cvnets")
    assert text == "weights mobilevit_xxs: missing stem.bn.bias (16,)"


# files


def test_a_file_and_what_the_tensors_do_not_tell(golden, tmp_path):
    weights = convert(golden("mobilevit_xxs.timm").state(), tag="mine", source={"file": "a.pth"})
    path = tmp_path / "new" / "model.safetensors"
    done = export_file(weights, "transformers", path)
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    same(load_file(path), done.state)
    assert store.load(path) is None  # not refvit's own format
    metadata = read_metadata(path)
    assert metadata["format"] == "pt"
    record = json.loads(metadata["refvit_export"])
    assert (record["layout"], record["model"], record["tag"]) == ("mobilevit.transformers", XXS, "mine")
    assert record["preprocess"] == done.weights.preprocess == {**weights.preprocess, "channel_order": "bgr"}
    assert record["labels"] == list(weights.labels)
    assert record["source"]["file"] == "a.pth"
    assert record["config"]["depths"] == [2, 4, 3]
    assert tuple(record["notes"]) == done.notes
    assert convert_file(path).sha256 == convert(done.state).sha256


def read_metadata(path):
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as f:
        return f.metadata()


def test_an_archive_of_numpy(golden, tmp_path):
    state = golden(f"{VIT}.jax").state()
    export_file(convert(state), "jax", tmp_path / "vit.npz")
    with np.load(tmp_path / "vit.npz", allow_pickle=False) as archive:
        same(dict(archive), state)
    assert read_checkpoint(tmp_path / "vit.npz").tensors.keys() == state.keys()


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({}, "source"),
        ({"labels": ["x"] * 1000}, "labels, source"),
        ({"tag": "mine", "preprocess": {"resize": 300, "crop": 280}}, "resize, crop, tag, source"),
    ],
)
def test_what_an_archive_lacks_is_said(golden, tmp_path, changes, lost):
    weights = convert(golden("mobilevit_xxs.timm").state(), **changes)
    done = export_file(weights, "timm", tmp_path / "a.npz")
    assert done.notes[-1] == f"an .npz holds tensors only: not in it are {lost}; write .safetensors to keep them"
    assert not any("npz" in note for note in export_file(weights, "timm", tmp_path / "a.safetensors").notes)


def test_the_report_says_what_an_archive_lacks(run, golden, tmp_path):
    state = golden(f"{VIT}.timm").state()
    source = store.save(convert(state, model=VIT, config={"gelu": "tanh"}), tmp_path / "own.safetensors")
    code, out, _ = run("convert", source, "--to", "timm", "--told", "gelu", "-o", tmp_path / "a.npz", "--no-check")
    assert code == 0 and "tensors only: not in it are gelu, source; write .safetensors" in out


# what is left out


def test_what_is_left_out_is_told_by_its_reason():
    layout = toy(Rule("x", "x"), DROP, Rule(r"loss\..*", None, reason="for training only"), Rule("p", None, reason="other"))
    state = dict.fromkeys(("x", "a.num_batches_tracked", "loss.b", "b.num_batches_tracked", "p", "loss.a"), ONE)
    assert layout.left_out(state) == {
        "counters of training": ["2 of *.num_batches_tracked"],
        "for training only": ["loss.b", "loss.a"],
        "other": ["p"],
    }
    assert layout.left_out({"x": ONE}) == {}


def test_every_rule_without_a_target_has_a_reason():
    dropped = [(layout.name, rule) for layout in LAYOUTS for rule in layout.rules if rule.target is None and not rule.refusal]
    assert len(dropped) > 20
    assert [(name, rule.pattern) for name, rule in dropped if not rule.reason] == []


def test_the_weights_and_the_report_name_what_was_left_out(run, golden, tmp_path):
    state = golden("mobilevit_xxs_deeplabv3.cvnets_v2").state()
    weights = convert(state)
    names = [key for key in state if re.fullmatch(TRAINING, key) and "num_batches" not in key]
    counters = sum(key.endswith("num_batches_tracked") for key in state)
    assert names and counters
    expected = {"counters of training": [f"{counters} of *.num_batches_tracked"], "for training only": names}
    assert weights.source["left_out"] == expected
    assert counters + len(names) + len(weights.params) == len(state)
    save_file(state, tmp_path / "a.safetensors")
    code, out, _ = run("convert", tmp_path / "a.safetensors", "--no-check")
    assert code == 0 and names[0] in out and "for training only" in out


def test_what_is_refused_leaves_no_file(golden, tmp_path):
    weights = convert(golden(f"{VIT}.timm").state(), model=VIT)
    path = tmp_path / "old.safetensors"
    path.write_bytes(b"as it was")
    with pytest.raises(WeightsError, match="implies"):
        export_file(weights, "jax", path)
    with pytest.raises(WeightsError, match=r"model\.pth: a name that ends in \.safetensors or \.npz expected"):
        export_file(weights, "timm", tmp_path / "model.pth")
    assert path.read_bytes() == b"as it was"
    assert list(tmp_path.iterdir()) == [path]


# rules, read backwards


def toy(*rules, signature=("x",), prefixes=("",)):
    return Layout("toy", (), frozenset(signature), rules, lambda params: {}, lambda model, config: {}, prefixes=prefixes)


ONE = np.ones(1)


def keys(layout, *names):
    state = layout.export(dict.fromkeys(names, ONE))
    assert layout.rename(state).keys() == set(names)
    return list(state)


def test_literals_groups_and_whole_keys():
    layout = toy(
        Rule("x", "y"),
        Rule(r"a\.(\d+)\.(?P<leaf>weight|bias)", r"b.\g<leaf>.\1"),
        Rule(r"(same|other)\..*", r"\g<0>"),
        Rule(r"deep\.((\w)\.\d)\.(.*)", r"\3:\2:\1"),
        Rule(r"(twice)\..*", r"\1/\g<0>"),
    )
    names = ("y", "b.bias.12", "same.c", "other.x.y", "w.z:p:p.3", "twice/twice.u")
    assert keys(layout, *names) == ["x", "a.12.bias", "same.c", "other.x.y", "deep.p.3.w.z", "twice.u"]


@pytest.mark.parametrize("name", ["c", "b.gain.1", "b.bias.one", "samec", "b.bias.1.2"])
def test_a_name_that_no_rule_makes(name):
    layout = toy(Rule("x", "y"), Rule(r"a\.(\d+)\.(weight|bias)", r"b.\2.\1"), Rule(r"same\..*", r"\g<0>"))
    with pytest.raises(WeightsError, match=f"layout toy has no place for {re.escape(name)}$"):
        layout.export({"y": ONE, name: ONE})


@pytest.mark.parametrize("signature", ["x", "m.x", "m.n.x"])
def test_the_signature_decides_about_optional_parts(signature):
    layout = toy(Rule(r"(?:m\.(n\.)?)?(x|y)", r"\2"), signature=[signature])
    prefix = signature.removesuffix("x")
    assert keys(layout, "x", "y") == [f"{prefix}x", f"{prefix}y"]


def test_without_a_sign_the_first_alternative_is_taken():
    assert keys(toy(Rule("x", "x"), Rule(r"(new\.|old\.)?(z)", r"\2")), "x", "z") == ["x", "new.z"]
    assert keys(toy(Rule("x|old", "x"), Rule(r"(?:old|new)(z)", r"\1")), "x", "z") == ["x", "oldz"]


def test_an_optional_part_that_the_target_takes_over():
    layout = toy(Rule("x", "x"), Rule(r"(m\.)?(a)", r"\1b"))
    assert keys(layout, "x", "b", "m.b") == ["x", "a", "m.a"]


def test_the_rule_that_says_most_about_a_name_is_meant():
    layout = toy(Rule("x", "x"), Rule(r"backbone\.(.*)", r"\1"), Rule(r"neck\.head\.(weight|bias)", r"head.\1"))
    assert keys(layout, "x", "conv.weight", "head.weight", "head.other") == [
        "x",
        "backbone.conv.weight",
        "neck.head.weight",
        "backbone.head.other",
    ]
    layout = toy(Rule("x", "x"), Rule(r"one\.(.*)", r"\1"), Rule(r"two\.(.*)", r"\1"))
    with pytest.raises(WeightsError, match=r"layout toy: 'a' comes from '(one|two)\.a' or '(one|two)\.a'"):
        layout.export({"x": ONE, "a": ONE})


def test_a_key_that_another_rule_takes_is_no_way_back():
    layout = toy(Rule("x", "x"), Rule(r"dropped\..*", None), Rule(r"(dropped|kept)\.(a)", r"\2"))
    assert keys(layout, "x", "a") == ["x", "kept.a"]
    with pytest.raises(WeightsError, match=r"layout toy has no place for a$"):
        toy(Rule("x", "x"), Rule(r"dropped\..*", None), Rule(r"dropped\.(a)", r"\1")).export({"x": ONE, "a": ONE})


def test_a_layout_whose_signature_is_dropped_or_refused_is_not_writable():
    assert not toy(Rule("x", None)).writable
    assert not toy(Rule("x", None, refusal="no")).writable
    assert toy(Rule("x", "x")).writable


def test_lookahead_and_classes_of_characters():
    layout = toy(Rule("x", "x"), Rule(r"m\.(?!head)([a-z]+[0-9])\.(?P<leaf>\w+)", r"\1/\g<leaf>"))
    assert keys(layout, "x", "conv1/weight") == ["x", "m.conv1.weight"]
    with pytest.raises(WeightsError, match="no place for head1/weight"):
        layout.export({"x": ONE, "head1/weight": ONE})


def test_what_varies_outside_of_groups_cannot_be_spelled():
    with pytest.raises(WeightsError, match="no place for a"):
        toy(Rule("x", "x"), Rule(r"m\..*\.(a)", r"\1")).export({"x": ONE, "a": ONE})


def test_rows_are_split_in_the_order_of_the_pattern():
    layout = toy(Rule("x", "x"), Rule(r"(m|n)\.(?P<rows>second|first)\.(w)", r"\1.both.\3"))
    both = np.arange(12.0).reshape(4, 3)
    state = layout.export({"x": ONE, "m.both.w": both})
    assert state["m.second.w"].tolist() == both[:2].tolist()
    assert state["m.first.w"].tolist() == both[2:].tolist()
    with pytest.raises(WeightsError, match=r"layout toy: m\.both\.w of shape \(3, 2\): "):
        layout.export({"x": ONE, "m.both.w": np.ones((3, 2))})


def test_layers_are_stacked_by_number():
    layout = toy(Rule("x", "x"), Rule(r"a/(?P<rows>q|k)", "blocks.*.qk", np.transpose, np.transpose))
    params = {f"blocks.{i}.qk": np.arange(12.0).reshape(6, 2) + 100 * i for i in (10, 3, 0, 1, 2, 9, 8, 7, 6, 5, 4)}
    state = layout.export({"x": ONE, **params})
    assert (state["a/q"].shape, state["a/k"].shape) == ((11, 2, 3), (11, 2, 3))
    assert state["a/k"][10].tolist() == params["blocks.10.qk"][3:].T.tolist()
    same(layout.rename(state), {"x": ONE, **params})
    del params["blocks.4.qk"]
    with pytest.raises(WeightsError, match=r"layout toy: a/q holds all layers, here are 10, 3, 0"):
        layout.export({"x": ONE, **params})


def test_a_change_without_a_way_back():
    with pytest.raises(WeightsError, match=r"layout toy: x of shape \(1,\): there is no way back"):
        toy(Rule("x", "x", np.negative)).export({"x": ONE})


def test_a_prefix_is_written_before_every_key():
    assert keys(toy(Rule("x|y", r"\g<0>"), prefixes=("p/", "q/")), "x", "y") == ["p/x", "p/y"]


def test_counters_are_written_where_the_layout_has_them():
    norm, names = Rule(r"n\.(running_var|running_mean)", r"bn.\1"), ("x", "bn.running_var", "bn.running_mean")
    assert "n.num_batches_tracked" in toy(Rule("x", "x"), DROP, norm).export(dict.fromkeys(names, ONE))
    assert len(toy(Rule("x", "x"), norm).export(dict.fromkeys(names, ONE))) == 3
    refusing = toy(Rule("x", "x"), Rule(r".*\.num_batches_tracked", None, refusal="is not wanted"), norm)
    assert len(refusing.export(dict.fromkeys(names, ONE))) == 3


@pytest.mark.parametrize(
    ("order", "shape"),
    [
        ("i o -> o i", (5, 3)),
        ("h w i o -> o i h w", (2, 3, 4, 5)),
        ("d heads e -> (heads e) d", (384, 6, 64)),
        ("heads e d -> d (heads e)", (16, 64, 1024)),
        ("heads e -> (heads e)", (16, 80)),
    ],
)
def test_axes_there_and_back(order, shape):
    a = np.random.default_rng(0).standard_normal(shape)
    change, inverse = there_and_back(order)
    np.testing.assert_array_equal(inverse(change(a)), a, strict=True)


def test_a_width_of_unknown_heads_is_not_split():
    with pytest.raises(ValueError, match="one of the widths 192, 384, 768, 1024, 1280 expected"):
        axes("(heads e) d -> d heads e")(np.zeros((200, 200)))
    with pytest.raises(ValueError, match=r"axes \(heads e, d\) expected"):
        axes("(heads e) d -> d heads e")(np.zeros(192))
