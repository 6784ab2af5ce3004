"""config.json and preprocessor_config.json of a folder: what they decide, and what they may not be."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import refvit
from refvit.errors import WeightsError
from weights_convert import convert_file
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


@pytest.mark.parametrize(("field", "value"), [("num_attention_heads", 12), ("image_size", 384), ("num_hidden_layers", 3)])
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
        ({"model_type": "vit", "hidden_act": "relu"}, None, "hidden_act 'relu'; refvit's ViT knows gelu"),
        ({"model_type": "vit", "qkv_bias": False}, None, "qkv_bias False"),
        ({"model_type": "mobilevit", "hidden_act": "relu"}, None, "MobileViT has silu"),
        ({"model_type": "vit", "hidden_act": []}, None, "a value of another kind"),
        ({"architecture": "x", "pretrained_cfg": None}, None, "a value of another kind"),
        ({"architecture": "x", "input_size": 224}, None, "a value of another kind"),
        ({"architecture": "x", "label_names": 5}, None, "a value of another kind"),
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


def test_names_that_nobody_gave_are_none(tmp_path):
    config = {"model_type": "vit", "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    assert read_sidecar(folder(tmp_path, config)).labels is None


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(WeightsError, match=r"a folder with none of model\.safetensors"):
        refvit.load("mobilevit_xxs", tmp_path)
