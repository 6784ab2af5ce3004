"""ViT, DeiT and MobileViT as transformers names them, on disk and in memory."""

import re

import numpy as np
import pytest

import refvit
from refvit import ops
from refvit.errors import WeightsError
from refvit.models import architecture
from weights_convert import convert

BOUND = 1e-10  # of the largest value; what is seen is below 2e-15
FLOAT32 = 1e-6  # the original rounds to float32 somewhere; the other GELU differs by 1e-4, the other eps by 1.2e-6
VIT, DEIT = "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"


WORDS = {  # in memory -> on disk
    ".layers.": ".encoder.layer.",
    ".attention.q_proj.": ".attention.attention.query.",
    ".attention.k_proj.": ".attention.attention.key.",
    ".attention.v_proj.": ".attention.attention.value.",
    ".attention.o_proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}


def on_disk(state):
    """The names that save_pretrained writes, from those in memory."""
    for old, new in WORDS.items():
        state = {key.replace(old, new): a for key, a in state.items()}
    return state


def in_memory(state):
    for new, old in WORDS.items():
        state = {key.replace(old, new): a for key, a in state.items()}
    return state


def separate(key, a):
    """Our fused qkv as three tensors, anything else as it is; rows are queries, keys, values."""
    if ".attn.qkv." not in key:
        return [(key, a)]
    d = len(a) // 3
    names = ("query", "key", "value")
    return [(key.replace(".attn.qkv.", f".attention.attention.{n}."), a[i * d : i * d + d]) for i, n in enumerate(names)]


def renamed(params, words):
    """Our tensors under the names of transformers: (pattern, replacement) pairs, each applied to every name."""
    state = {}
    for name, a in params.items():
        for key, part in separate(name, a):
            for old, new in words:
                key = re.sub(old, new, key)
            state[key] = part
    return state


LAYER_WORDS = [
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
]
DEIT_WORDS = [
    *LAYER_WORDS,
    (r"^cls_token", "deit.embeddings.cls_token"),
    (r"^dist_token", "deit.embeddings.distillation_token"),
    (r"^pos_embed", "deit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj", "deit.embeddings.patch_embeddings.projection"),
    (r"^blocks\.", "deit.encoder.layer."),
    (r"^norm\.", "deit.layernorm."),
    (r"^head\.", "cls_classifier."),
    (r"^head_dist\.", "distillation_classifier."),
]
MOBILEVIT_WORDS = [
    *LAYER_WORDS,
    (r"\.conv\.weight$", ".convolution.weight"),
    (r"\.bn\.", ".normalization."),
    (r"^stages\.([234])\.1\.norm\.", r"stages.\1.1.layernorm."),
    (r"^stages\.([234])\.1\.conv_1x1\.weight", r"stages.\1.1.conv_1x1.convolution.weight"),
    (r"\.transformer\.", ".transformer.layer."),
    (r"\.conv_proj\.", ".conv_projection."),
    (r"\.conv_fusion\.", ".fusion."),
    (r"\.conv1_1x1\.", ".expand_1x1."),
    (r"\.conv2_kxk\.", ".conv_3x3."),
    (r"\.conv3_1x1\.", ".reduce_1x1."),
    (r"^stages\.([01])\.", r"mobilevit.encoder.layer.\1.layer."),
    (r"^stages\.([234])\.0\.", r"mobilevit.encoder.layer.\1.downsampling_layer."),
    (r"^stages\.([234])\.1\.", r"mobilevit.encoder.layer.\1."),
    (r"^stem\.", "mobilevit.conv_stem."),
    (r"^final_conv\.", "mobilevit.conv_1x1_exp."),
    (r"^head\.fc\.", "classifier."),
    (r"\.block\.conv(olution)?\.", ".convolution."),
    (r"\.block\.norm\.", ".normalization."),
    (r"\.aspp_pool\.", "."),
    (r"^seg_head\.aspp\.aspp_layer\.", "segmentation_head.aspp."),
    (r"^seg_head\.classifier\.classifier\.", "segmentation_head.classifier."),
]


@pytest.fixture(scope="module")
def memory(golden):
    """A seeded vit_tiny checkpoint with the names in memory."""
    return golden(f"{VIT}.transformers").state()


@pytest.fixture(scope="module")
def disk(memory):
    return on_disk(memory)


@pytest.fixture(scope="module")
def deit(golden):
    """A seeded distilled deit_tiny, our tensors; and the same under the names that transformers writes."""
    params = convert(golden(DEIT).state()).params
    return params, renamed(params, DEIT_WORDS)


def told(state, **options):
    with pytest.raises(WeightsError) as caught:
        convert(state, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(state, *names):
    assert set(names) <= set(state)
    return {n: a for n, a in state.items() if n not in names}


# what fits


@pytest.mark.parametrize("names", [dict, on_disk])
@pytest.mark.parametrize(("fixture", "bound"), [("transformers.float64", BOUND), ("transformers", FLOAT32)])
def test_vit_equals_the_original(golden, names, fixture, bound):
    """The second case is transformers' eager attention, whose softmax is always float32: 4e-8 seen."""
    case = golden(f"{VIT}.{fixture}")
    model = refvit.load(VIT, names(case.state()), dtype="float64", backend="numpy")
    assert case.check({"output": model(case.input())}) < bound


def test_mobilevit_equals_the_original(golden):
    case = golden("mobilevit_xxs.transformers")
    model = refvit.load(None, case.state(), dtype="float64", backend="numpy")
    assert model.name == "mobilevit_xxs"
    assert case.check({"output": model(case.input())}) < BOUND


def test_deeplabv3_under_the_names_of_transformers_equals_the_original(golden):
    case = golden("mobilevit_xxs_deeplabv3.cvnets")
    state = renamed(convert(case.state()).params, MOBILEVIT_WORDS)
    model = refvit.load(None, state, dtype="float64", backend="numpy")
    assert model.name == "mobilevit_xxs_deeplabv3"
    assert (
        case.check({"output": ops.resize(model(case.input()), size=(256, 256), mode="bilinear", align_corners=False)}) < BOUND
    )


def test_vit_tensor_by_tensor(memory, disk):
    params = dict(convert(disk, model=VIT).params)
    expected = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
        "norm.weight": "vit.layernorm.weight",
        "norm.bias": "vit.layernorm.bias",
        "head.weight": "classifier.weight",
        "head.bias": "classifier.bias",
    }
    parts = (("norm1", "layernorm_before"), ("attn.proj", "attention.o_proj"), ("norm2", "layernorm_after"))
    for i in range(12):
        for ours, theirs in (*parts, ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            for leaf in ("weight", "bias"):
                expected[f"blocks.{i}.{ours}.{leaf}"] = f"vit.layers.{i}.{theirs}.{leaf}"
        for leaf in ("weight", "bias"):
            qkv = params.pop(f"blocks.{i}.attn.qkv.{leaf}")
            for rows, name in ((slice(0, 192), "q"), (slice(192, 384), "k"), (slice(384, 576), "v")):
                np.testing.assert_array_equal(qkv[rows], memory[f"vit.layers.{i}.attention.{name}_proj.{leaf}"], strict=True)
    assert params.keys() == expected.keys()
    for ours, theirs in expected.items():
        np.testing.assert_array_equal(params[ours], memory[theirs], strict=True)


def test_both_sets_of_names_in_any_order_give_the_same_weights(memory, disk):
    one, two = convert(memory, model=VIT), convert(dict(reversed(disk.items())), model=VIT)
    assert one.sha256 == two.sha256
    assert (one.source["layout"], two.source["layout"]) == ("vit.transformers.in_memory", "vit.transformers")
    assert one.config == two.config
    assert (one.config["layer_norm_eps"], one.config["gelu"], one.config["position_resize"]) == (1e-12, "none", "bicubic")


def test_eps_is_assumed_unless_it_is_said(disk):
    assert convert(disk, model=VIT).source["layer_norm_eps"] == "1e-12, the default of transformers, assumed"
    said = convert(disk, model=VIT, config={"layer_norm_eps": 1e-6})
    assert said.config["layer_norm_eps"] == 1e-6
    assert "layer_norm_eps" not in said.source


def test_vit_and_deit_share_tensors_but_not_the_evaluation(disk):
    assert "vit_tiny_patch16_224 and deit_tiny_patch16_224; say which by model=" in told(disk)
    vit, plain = (convert(disk, model=name).preprocess for name in (VIT, "deit_tiny_patch16_224"))
    assert (vit["resize"], vit["crop"], vit["interpolation"]) == ([224, 224], None, "bilinear")
    assert vit["mean"] == vit["std"] == [0.5, 0.5, 0.5]
    assert (plain["resize"], plain["crop"], plain["interpolation"]) == ([256, 256], 224, "bicubic")
    assert plain["mean"] == [0.485, 0.456, 0.406]
    assert convert(disk, model="deit_tiny_patch16_224").config["layer_norm_eps"] == 1e-12


def test_another_size_and_number_of_classes_are_found(disk):
    table = np.random.default_rng(0).standard_normal((1, 1 + 24 * 24, 192)).astype(np.float32)
    few = {**disk, "classifier.weight": disk["classifier.weight"][:3], "classifier.bias": disk["classifier.bias"][:3]}
    weights = convert({**few, "vit.embeddings.position_embeddings": table})
    assert (weights.model, weights.config["num_classes"]) == ("vit_tiny_patch16_384", 3)
    assert weights.preprocess["resize"] == [384, 384]


def test_the_pooler_is_dropped(disk):
    pooler = {"vit.pooler.dense.weight": np.ones((192, 192), np.float32), "vit.pooler.dense.bias": np.ones(192, np.float32)}
    weights = convert({**disk, **pooler}, model=VIT)
    assert weights.sha256 == convert(disk, model=VIT).sha256
    assert weights.source["left_out"] == {"of the model without a head": list(pooler)}
    assert "left_out" not in convert(disk, model=VIT).source
    assert "belongs to no tensor" in told({**disk, "vit.pooler.dense.scale": np.ones(192, np.float32)}, model=VIT)


@pytest.mark.parametrize(("names", "layout"), [(dict, "deit.transformers"), (in_memory, "deit.transformers.in_memory")])
def test_deit_with_teacher_is_the_distilled_one(deit, names, layout):
    params, state = deit
    weights = convert(names(state))
    assert weights.model == DEIT
    assert weights.source["layout"] == layout
    assert weights.config["layer_norm_eps"] == 1e-12
    assert (weights.preprocess["resize"], weights.preprocess["crop"]) == ([256, 256], 224)
    assert list(weights.params) == list(params)
    for name, a in params.items():
        np.testing.assert_array_equal(weights.params[name], a, strict=True)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevit_xs", "mobilevit_s", "mobilevit_s_deeplabv3"])
def test_every_mobilevit(name):
    rng, arch = np.random.default_rng(4), architecture(name)
    params = {n: rng.standard_normal(s).astype(np.float32) for n, s in arch.parameters(arch.config)}
    state = renamed(params, MOBILEVIT_WORDS)
    state["mobilevit.conv_stem.normalization.num_batches_tracked"] = np.zeros((), np.int64)
    weights = convert(state)
    assert weights.model == name
    for n, a in params.items():
        np.testing.assert_array_equal(weights.params[n], a, strict=True)
    assert weights.preprocess["channel_order"] == "bgr"
    assert (weights.preprocess["mean"], weights.preprocess["std"]) == ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    sizes = weights.preprocess["resize"], weights.preprocess["crop"], weights.preprocess["interpolation"]
    assert sizes == (([512, 512], None, "bilinear") if "deeplab" in name else (288, 256, "bilinear"))


# what does not fit


def test_a_missing_part_of_qkv_is_named_as_in_the_source(disk, memory):
    key = "vit.encoder.layer.3.attention.attention.key.weight"
    text = told(without(disk, key), model=VIT)
    assert text == f"layout vit.transformers: missing {key} (192, 192)"
    value = "vit.encoder.layer.0.attention.attention.value.bias"
    text = told(without(disk, key, value), model=VIT)
    assert f"missing {key} (192, 192)" in text and f"missing {value} (192,)" in text
    text = told(without(memory, "vit.layers.0.attention.q_proj.bias"), model=VIT)
    assert text == "layout vit.transformers.in_memory: missing vit.layers.0.attention.q_proj.bias (192,)"
    many = [f"vit.layers.{i}.attention.{name}_proj.bias" for i in range(12) for name in "qk"]
    text = told(without(memory, *many), model=VIT)
    assert text.count("missing") == 8 and text.endswith("; and 16 more")


def test_a_missing_part_in_mobilevit(golden):
    state = golden("mobilevit_xxs.transformers").state()
    key = "mobilevit.encoder.layer.4.transformer.layer.2.attention.attention.query.weight"
    assert told(without(state, key)) == f"layout mobilevit.transformers: missing {key} (96, 96)"


def test_all_three_missing_is_a_missing_tensor(memory):
    names = [f"vit.layers.7.attention.{name}_proj.weight" for name in "qkv"]
    assert "missing blocks.7.attn.qkv.weight (576, 192)" in told(without(memory, *names), model=VIT)


def test_parts_of_other_shapes_are_refused_even_if_their_sum_fits(disk):
    name = "vit.encoder.layer.1.attention.attention.{}.weight"
    both = np.zeros((384, 192), np.float32)
    state = {**disk, name.format("query"): both[:200], name.format("key"): both[200:]}
    text = told(state, model=VIT)
    assert "one shape and dtype expected of" in text
    assert f"{name.format('query')} (200, 192) float32, {name.format('key')} (184, 192) float32" in text
    text = told({**disk, name.format("value"): disk[name.format("value")].astype(np.int64)}, model=VIT)
    assert f"{name.format('value')} (192, 192) int64" in text
    state = {**disk, **{name.format(n): both for n in ("query", "key", "value")}}
    assert "blocks.1.attn.qkv.weight is (1152, 192), (576, 192) expected" in told(state, model=VIT)
    scalars = {name.format(n): np.zeros((), np.float32) for n in ("query", "key", "value")}
    assert f"{name.format('query')} and {name.format('key')}" in told({**disk, **scalars}, model=VIT)
    whole = {name.format(n): np.zeros((192, 192), np.int32) for n in ("query", "key", "value")}
    assert told({**disk, **whole}, model=VIT) == "blocks.1.attn.qkv.weight: floating-point values expected, got int32"


def test_missing_surplus_and_misshapen_tensors_are_listed(disk):
    state = without(disk, "vit.layernorm.bias")
    state["vit.encoder.layer.12.layernorm_before.weight"] = np.zeros(192, np.float32)
    state["vit.encoder.layer.4.layernorm_after.weight"] = np.zeros(191, np.float32)
    text = told(state, model=VIT)
    assert text.startswith(f"no {VIT} checkpoint: ")
    assert "missing norm.bias (192,)" in text
    assert "unexpected blocks.12.norm1.weight (192,)" in text
    assert "blocks.4.norm2.weight is (191,), (192,) expected" in text


@pytest.mark.parametrize("key", ["vit.embeddings.mask_token", "decoder.weight", "vit.encoder.layer.0.attention.q_proj.weight"])
def test_a_key_of_another_model(disk, key):
    assert f"{key!r} belongs to no tensor of it" in told({**disk, key: np.zeros(1, np.float32)}, model=VIT)


def test_names_on_disk_and_in_memory_are_not_mixed(disk, memory, deit):
    assert "have the names of 2 layouts, vit.transformers (by " in told({**disk, **memory}, model=VIT)
    assert "have the names of 2 layouts, vit.transformers (by " in told({**disk, **deit[1]}, model=VIT)
    assert "the layout is not one of" in told({key.removeprefix("vit."): a for key, a in disk.items()}, model=VIT)


@pytest.mark.parametrize("names", [dict, in_memory])
def test_deit_with_one_head_is_refused_with_the_reason(deit, names):
    state = without(deit[1], "distillation_classifier.weight", "distillation_classifier.bias")
    state["classifier.weight"], state["classifier.bias"] = state.pop("cls_classifier.weight"), state.pop("cls_classifier.bias")
    text = told(names(state))
    assert "is the only head of a model with a distillation token (DeiTForImageClassification)" in text
    assert "only DeiTForImageClassificationWithTeacher can be converted" in text


def test_a_missing_head_of_two(deit):
    text = told(without(deit[1], "distillation_classifier.weight"))
    assert text == f"no {DEIT} checkpoint: missing head_dist.weight (1000, 192)"
