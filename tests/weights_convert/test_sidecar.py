"""config.json and preprocessor_config.json of a folder: what they decide, and what they may not be."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import refvit
from refvit.errors import WeightsError
from weights_convert import convert_file
from weights_convert.export import export
from weights_convert.sidecar import read_sidecar


def folder(tmp_path, config=None, processor=None, state=None):
    for name, data in (("config.json", config), ("preprocessor_config.json", processor)):
        if data is not None:
            (tmp_path / name).write_text(data if isinstance(data, str) else json.dumps(data))
    if state is not None:
        save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, tmp_path / "model.safetensors")
    return tmp_path


PROCESSOR = {  # as google/vit-base-patch16-224 has it, but for the numbers
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6],
    "image_processor_type": "ViTFeatureExtractor", "resample": 3, "rescale_factor": 0.00392156862745098,
    "size": {"height": 240, "width": 256},
}  # fmt: skip


def test_nothing_there_is_nothing_said(tmp_path):
    found = read_sidecar(tmp_path)
    assert (found.labels, dict(found.config), dict(found.preprocess)) == (None, {}, {})


def test_what_transformers_writes_reaches_the_weights(tmp_path, golden):
    state = golden("vit_tiny_patch16_224.transformers").state()
    head = next(n for n in state if n.startswith("classifier.weight"))
    names = {str(i): f"class {i}" for i in range(len(state[head]))}
    config = {"model_type": "vit", "layer_norm_eps": 1e-6, "hidden_act": "gelu_new", "id2label": names}
    weights = convert_file(folder(tmp_path, config, PROCESSOR, state), model="vit_tiny_patch16_224")
    assert weights.labels == tuple(names.values())
    assert (weights.config["layer_norm_eps"], weights.config["gelu"]) == (1e-6, "tanh")
    assert weights.preprocess["resize"] == [240, 256] and weights.preprocess["interpolation"] == "bicubic"
    assert weights.preprocess["mean"] == [0.1, 0.2, 0.3] and weights.preprocess["std"] == [0.4, 0.5, 0.6]
    assert weights.source["file"] == "model.safetensors"
    given = refvit.load("vit_tiny_patch16_224", tmp_path, layer_norm_eps=1e-12, resize=(224, 224), labels=["x"] * len(names))
    assert given.config.layer_norm_eps == 1e-12 and given.config.gelu == "tanh"  # the caller goes first
    assert given.preprocess.resize == (224, 224) and given.labels[0] == "x"


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_attention_heads", 12), ("image_size", 384), ("num_hidden_layers", 3), ("hidden_size", 384), ("num_labels", 10)],
)
def test_a_configuration_of_another_model_is_refused(tmp_path, golden, field, value):
    state = golden("vit_tiny_patch16_224.transformers").state()
    config = {"model_type": "vit", "num_attention_heads": 3, "image_size": 224, "patch_size": 16, "num_hidden_layers": 12}
    convert_file(folder(tmp_path, config, None, state), model="vit_tiny_patch16_224")
    with pytest.raises(WeightsError, match="this is another model, or"):
        convert_file(folder(tmp_path, config | {field: value}), model="vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"size": 224, "image_processor_type": "ViTImageProcessor"}, {"resize": (224, 224)}),
        ({"size": 224, "feature_extractor_type": "MobileViTFeatureExtractor", "do_normalize": True}, {"resize": 224}),
        ({"size": {"shortest_edge": 288}, "crop_size": {"height": 256, "width": 250}}, {"resize": 288, "crop": (256, 250)}),
        ({"size": 288, "crop_size": 256}, {"resize": 288, "crop": (256, 256)}),
        ({"do_resize": False, "size": 3, "do_center_crop": False, "crop_size": 2}, {"resize": None, "crop": None}),
        ({"do_normalize": False, "image_mean": [1, 1, 1]}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
        (
            {"image_mean": [1, 1, 1], "image_std": [2, 2, 2], "image_processor_type": "MobileViTImageProcessor"},
            {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
        ),
        ({"image_mean": [1, 1, 1], "image_std": [2, 2, 2]}, {"mean": (1, 1, 1), "std": (2, 2, 2)}),
        ({"do_flip_channel_order": True}, {"channel_order": "bgr"}),
        ({"do_flip_channels": False}, {"channel_order": "rgb"}),
        ({"resample": 2}, {"interpolation": "bilinear"}),
    ],
)
def test_processors(tmp_path, values, expected):
    assert dict(read_sidecar(folder(tmp_path, {}, values)).preprocess) == expected


def test_timms_configuration(tmp_path, xxs):
    config = {
        "architecture": "mobilevit_xxs",
        "num_classes": 1000,
        "pretrained_cfg": {
            "tag": "x", "input_size": [3, 320, 320], "crop_pct": 0.95, "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25], "crop_mode": "center",
        },
    }  # fmt: skip
    weights = convert_file(folder(tmp_path, config, None, xxs))
    assert (weights.preprocess["resize"], weights.preprocess["crop"]) == (336, 320)  # floor(320 / 0.95)
    assert weights.preprocess["mean"] == [0.5] * 3 and weights.preprocess["interpolation"] == "bilinear"
    config["pretrained_cfg"]["crop_mode"] = "border"
    with pytest.raises(WeightsError, match="crop_mode 'border' is not among what refvit does"):
        read_sidecar(folder(tmp_path, config))


TIMM = {  # as timm 1.0.31 saves it, with what it states of every model
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 1000,
    "num_features": 192,
    "global_pool": "token",
    "model_args": {"num_classes": 1000, "img_size": [224, 224], "in_chans": 3, "global_pool": "token"},
    "pretrained_cfg": {
        "tag": "augreg_in21k_ft_in1k", "custom_load": False, "input_size": [3, 224, 224], "fixed_input_size": True,
        "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
        "num_classes": 1000, "pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head", "license": "apache-2.0",
    },
}  # fmt: skip


def timm(architecture="vit_tiny_patch16_224", *, pool="token", **args):
    return TIMM | {"architecture": architecture, "global_pool": pool, "model_args": {"in_chans": 3, "global_pool": pool} | args}


def test_timms_architecture_names_the_model(tmp_path, golden):
    """These tensors fit two models."""
    state = golden("vit_tiny_patch16_224.timm").state()
    assert convert_file(folder(tmp_path, TIMM, None, state)).model == "vit_tiny_patch16_224"
    weights = convert_file(folder(tmp_path, timm("deit_tiny_patch16_224.fb_in1k")))
    assert weights.model == "deit_tiny_patch16_224" and weights.config["gelu"] == "none"


def test_timms_arguments_that_refvit_has(tmp_path, golden):
    state = golden("vit_tiny_patch16_224.timm").state()
    args = {"act_layer": "gelu_tanh", "norm_layer": "LayerNorm", "drop_path_rate": 0.1, "init_values": None, "mlp_ratio": 4.0}
    weights = convert_file(folder(tmp_path, timm(**args), None, state))
    assert weights.config["gelu"] == "tanh" and weights.config["layer_norm_eps"] == 1e-6
    assert "gelu" not in weights.source["assumed"]
    assert convert_file(tmp_path, config={"gelu": "none"}).config["gelu"] == "none"  # the caller goes first


@pytest.mark.parametrize(
    ("config", "models"),
    [
        (timm(img_size=384), ("vit_tiny_patch16_384",)),
        (timm("vit_base_patch16_224", img_size=[384, 384], patch_size=32), ("vit_base_patch32_384",)),
        (timm("vit_small_patch16_224", embed_dim=192, num_heads=3), ("vit_tiny_patch16_224",)),
        (timm("vit_large_patch16_224_in21k"), ("vit_large_patch16_224",)),
        (timm("deit_base_distilled_patch16_224", img_size=384), ("deit_base_distilled_patch16_384",)),
        (timm("mobilevit_xxs", pool="avg", img_size=320, act_layer="SiLU"), ("mobilevit_xxs",)),
        (timm("hrnet_w48_ssld", pool="avg", head="classification"), ("hrnet_w48",)),
        ({"model_type": "deit"}, tuple(name for name in refvit.models.ARCHITECTURES if name.startswith("deit_"))),
        ({"model_type": "bert"}, ()),
        ({}, ()),
    ],
)
def test_the_models_that_it_can_be_of(tmp_path, config, models):
    assert read_sidecar(folder(tmp_path, config)).suggested == models


def test_an_argument_for_the_size_goes_before_an_old_input_size(tmp_path):
    found = read_sidecar(folder(tmp_path, timm(img_size=384)))
    assert (found.preprocess["resize"], found.preprocess["crop"]) == (426, 384)
    found = read_sidecar(folder(tmp_path, timm("mobilevit_s", pool="avg") | {"pretrained_cfg": {"input_size": [3, 256, 256]}}))
    assert (found.preprocess["resize"], found.preprocess["crop"]) == (256, 256)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (timm(act_layer="quick_gelu"), "argument act_layer is 'quick_gelu', and refvit's models have 'gelu' or 'gelu_tanh'"),
        (timm(norm_layer="rmsnorm"), "argument norm_layer is 'rmsnorm', and"),
        (timm(norm_eps=1e-5), "argument norm_eps is 1e-05, and refvit does not know it"),
        (timm(pool="avg"), "argument global_pool is 'avg', and refvit's models have 'token'"),
        (timm() | {"model_args": {}, "global_pool": "map"}, "argument global_pool is 'map'"),
        (timm(in_chans=1), "argument in_chans is 1, and refvit's models have 3"),
        (timm(qkv_bias=False), "argument qkv_bias is False"),
        (timm(reg_tokens=4), "argument reg_tokens is 4"),
        (timm(pre_norm=[1]), r"argument pre_norm is \[1\]"),
        (timm(img_size=512), "refvit has no vit_tiny_patch16_224 with timm's arguments img_size 512"),
        (timm(img_size=[224, 384]), r"arguments img_size \[224, 384\]"),
        (timm(depth=6), "arguments depth 6"),
        (timm("mobilevit_xs", pool="avg", act_layer="relu"), "argument act_layer is 'relu', and refvit's models have 'silu'"),
        (timm("mobilevit_xs", pool="avg", output_stride=16), "argument output_stride is 16"),
        (timm("mobilevit_xs", pool="avg", depth=6), "argument depth is 6, and refvit does not know it"),
        (timm("hrnet_w18", pool="avg", head="incre"), "argument head is 'incre'"),
    ],
)
def test_timms_arguments_that_refvit_has_not(tmp_path, config, message):
    with pytest.raises(WeightsError, match=rf"config\.json: .*{message}"):
        read_sidecar(folder(tmp_path, config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (timm() | {"num_classes": 10}, "config.json says num_classes 10, and vit_tiny_patch16_224 has 1000"),
        (timm(num_classes=7), "says num_classes 7, and"),
        (
            timm("mobilevit_xxs", pool="avg"),
            "config.json says that this is mobilevit_xxs, and the tensors are those of vit_tiny",
        ),
        (timm("vit_base_patch16_224"), "config.json says that this is vit_base_patch16_224, and"),
        (timm(img_size=384), "config.json says that this is vit_tiny_patch16_384, and"),
    ],
)
def test_what_timm_states_has_to_agree_with_the_tensors(tmp_path, golden, config, message):
    state = golden("vit_tiny_patch16_224.timm").state()
    with pytest.raises(WeightsError, match=message):
        convert_file(folder(tmp_path, config, None, state))


def test_timms_names_of_classes(tmp_path):
    for names in (["a", "b", "c"], {"2": "c", "0": "a", "1": "b"}):
        assert read_sidecar(folder(tmp_path, timm(num_classes=3) | {"label_names": names})).labels == ("a", "b", "c")


def test_segmentation_answers_for_whole_images_whatever_the_processor_crops(tmp_path, golden):
    state = golden("mobilevit_xxs_deeplabv3.cvnets").state()
    processor = {"size": {"shortest_edge": 544}, "crop_size": {"height": 512, "width": 512}, "do_flip_channel_order": True}
    model = refvit.load("mobilevit_xxs_deeplabv3", folder(tmp_path, {}, processor, state))
    assert model.preprocess.crop is None and model.preprocess.resize == (512, 512)
    assert {"resize", "crop"} <= set(model._weights.source["assumed"])
    assert "channel_order" not in model._weights.source["assumed"]


@pytest.mark.parametrize(
    ("config", "processor", "message"),
    [
        ("{", None, "not readable as JSON"),
        ("[1]", None, "a JSON object expected, got list"),
        ("[" * 100_000, None, "not readable as JSON"),
        ({"id2label": {"1": "a"}}, None, "id2label must name the classes 0 to n - 1"),
        ({"id2label": ["a"]}, None, "id2label must name"),
        ({"model_type": "vit", "id2label": {"0": "a"}, "num_labels": 2}, None, "id2label names 1 classes, and num_labels is 2"),
        ({"model_type": "vit", "hidden_act": "relu"}, None, "hidden_act 'relu'; refvit's ViT knows gelu"),
        ({"model_type": "vit", "qkv_bias": False}, None, "qkv_bias False"),
        ({"model_type": "mobilevit", "hidden_act": "relu"}, None, "MobileViT has silu"),
        ({"model_type": "vit", "hidden_act": []}, None, "a value of another kind"),
        ({"architecture": "mobilevit_s", "pretrained_cfg": None}, None, "a value of another kind"),
        ({"architecture": "mobilevit_s", "input_size": 224}, None, "a value of another kind"),
        ({"architecture": "mobilevit_s", "model_args": [1]}, None, "a value of another kind"),
        ({"architecture": "mobilevit_s", "label_names": 5}, None, "label_names must name the classes 0 to n - 1"),
        ({"architecture": "mobilevit_s", "label_names": {"0": "a", "7": "b"}}, None, "label_names must name the classes 0"),
        ({"pretrained_cfg": {}}, None, "architecture missing"),
        ({"architecture": "resnet50"}, None, "architecture 'resnet50' is no model that refvit has$"),
        (
            {"architecture": "vit_base_patch16_clip_224"},
            None,
            "no model that refvit has; the nearest that it has are vit_base_patch16_224",
        ),
        ({"architecture": 5}, None, "architecture 5 is no model"),
        ({"model_type": "vit", "problem_type": "regression"}, None, "problem_type 'regression'; refvit answers with the prob"),
        ({"model_type": "mobilevit", "problem_type": "multi_label_classification"}, None, "problem_type 'multi_label_class"),
        ('{"model_type": "vit", "model_type": "deit"}', None, "config.json: not readable as JSON .*key 'model_type' twice"),
        ('{"layer_norm_eps": NaN}', None, "not readable as JSON .*NaN"),
        ('{"layer_norm_eps": 1e999}', None, "not readable as JSON"),
        ('{"id2label": {"0": "\\ud800"}}', None, "not readable as JSON .*surrogates"),
        ('{"architecture": "mobilevit_s", "label_names": ["\\ud800"]}', None, "not readable as JSON .*surrogates"),
        ({}, '{"size": 3, "size": 4}', "preprocessor_config.json: not readable as JSON"),
        ({"architectures": 5}, None, "a value of another kind"),
        ({}, {"resample": []}, "a value of another kind"),
        ({}, {"image_mean": 5, "image_std": 5}, "a value of another kind"),
        ({}, {"rescale_factor": None}, "a value of another kind"),
        ({}, {"rescale_factor": 1}, "pixels are scaled by 1/255"),
        ({}, {"do_rescale": False}, "pixels are scaled by 1/255"),
        ({}, {"resample": 9}, "resample 9 is none of Pillow's"),
        ({}, {"size": {"longest_edge": 3}}, "a size with height and width, or shortest_edge"),
    ],
)
def test_what_cannot_be_honoured_is_said(tmp_path, config, processor, message):
    with pytest.raises(WeightsError, match=message):
        read_sidecar(folder(tmp_path, config, processor))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"patch_size": 4}, r"says patch \(4, 4\), and mobilevit_xxs has"), ({"output_stride": 16}, "says output_stride 16, and")],
)
def test_a_mobilevit_that_computes_otherwise(tmp_path, xxs, changes, message):
    state = export(refvit.load("mobilevit_xxs", xxs)._weights, "transformers")
    config = {
        "model_type": "mobilevit",
        "architectures": ["MobileViTForImageClassification"],
        "output_stride": 32,
        "patch_size": 2,
    }
    assert convert_file(folder(tmp_path, config, None, state)).model == "mobilevit_xxs"
    with pytest.raises(WeightsError, match=message):
        convert_file(folder(tmp_path, config | changes))


def test_names_that_nobody_gave_are_none(tmp_path):
    config = {"model_type": "vit", "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    assert read_sidecar(folder(tmp_path, config)).labels is None


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(WeightsError, match=r"a folder with none of model\.safetensors"):
        refvit.load("mobilevit_xxs", tmp_path)


# a file that is given alone


CONFIG = {"model_type": "vit", "num_attention_heads": 3, "image_size": 224, "patch_size": 16, "num_hidden_layers": 12}
NAMES = {str(i): f"class {i}" for i in range(1000)}


def test_the_configuration_beside_a_file_of_transformers_is_used(run, tmp_path, golden):
    state = golden("vit_tiny_patch16_224.transformers").state()
    folder(tmp_path, CONFIG | {"layer_norm_eps": 1e-6, "id2label": NAMES}, PROCESSOR, state)
    alone = convert_file(tmp_path / "model.safetensors", model="vit_tiny_patch16_224")
    whole = convert_file(tmp_path, model="vit_tiny_patch16_224")
    for field in ("config", "preprocess", "labels", "source", "sha256"):
        assert getattr(alone, field) == getattr(whole, field), field
    assert alone.labels == tuple(NAMES.values()) and alone.config["layer_norm_eps"] == 1e-6
    assert alone.source["configuration"] == ["config.json", "preprocessor_config.json"]
    code, out, _ = run("convert", tmp_path / "model.safetensors", "--model", "vit_tiny_patch16_224", "--no-check")
    assert code == 0 and "configuration: config.json, preprocessor_config.json" in out
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model.safetensors").rename(tmp_path / "elsewhere" / "model.safetensors")
    bare = convert_file(tmp_path / "elsewhere" / "model.safetensors", model="vit_tiny_patch16_224")
    assert "configuration" not in bare.source and bare.config["layer_norm_eps"] == 1e-12


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 12},
        {"image_size": 384},
        {"num_hidden_layers": 3},
        {"id2label": {"0": "cat", "1": "dog"}},
        {"model_type": "bert", "hidden_act": "relu"},
        {"model_type": "deit"},
        {"model_type": "mobilevit"},
        {"model_type": 5},
    ],
)
def test_a_configuration_of_something_else_says_how_to_go_on(tmp_path, golden, changes):
    folder(tmp_path, CONFIG | changes, None, golden("vit_tiny_patch16_224.transformers").state())
    for path in (tmp_path / "model.safetensors", tmp_path):
        with pytest.raises(WeightsError, match=r"config\.json .*put this file into a folder of its own") as caught:
            convert_file(path, model="vit_tiny_patch16_224")
        assert "model.safetensors: config.json says" in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [{"learning_rate": 1}, {"architecture": "vit", "pretrained_cfg": {}}, {}, {"model_type": "timm", "architecture": "x"}],
)
def test_a_configuration_that_is_none_of_transformers_is_left_alone(tmp_path, golden, config):
    folder(tmp_path, config, {"size": 100}, golden("vit_tiny_patch16_224.transformers").state())
    found = convert_file(tmp_path / "model.safetensors", model="vit_tiny_patch16_224")
    assert "configuration" not in found.source and found.preprocess["resize"] == [224, 224]


@pytest.mark.parametrize("config", [CONFIG, {"architecture": "mobilevit_s", "mean": [9, 9, 9]}, "{", "[1]"])
def test_the_configuration_beside_a_file_of_another_layout_is_left_alone(tmp_path, xxs, config):
    folder(tmp_path, config, {"size": "?"}, xxs)
    found = convert_file(tmp_path / "model.safetensors")
    assert found.sha256 == refvit.load("mobilevit_xxs", xxs)._weights.sha256 and "configuration" not in found.source


def test_a_configuration_that_cannot_be_read_is_said(tmp_path, golden):
    folder(tmp_path, "{", None, golden("vit_tiny_patch16_224.transformers").state())
    with pytest.raises(WeightsError, match=r"config\.json: not readable as JSON .*or move it away"):
        convert_file(tmp_path / "model.safetensors", model="vit_tiny_patch16_224")
