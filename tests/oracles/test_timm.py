"""Against timm itself, where it is installed: any variant, input size and batch, and the evaluation transform."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import refvit
from weights_convert import convert

if not all(importlib.util.find_spec(m) for m in ("torch", "torchvision", "timm")):
    pytest.skip("timm, torch and torchvision are not installed: nothing to compare with", allow_module_level=True)

import timm
import torch
from timm.data import create_transform, resolve_data_config

ROOT = Path(__file__).parent.parent.parent
NAMES = ("mobilevit_xxs", "mobilevit_xs", "mobilevit_s")


def random_model(name, classes, seed=0, **options):
    """timm's model in float64 with statistics that are not the identity, and its checkpoint."""
    torch.manual_seed(seed)
    net = timm.create_model(name, num_classes=classes, **options).double().eval()
    for key, value in net.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif key.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
        elif value.ndim == 1:
            value.normal_(1, 0.1)
    return net, {k: v.numpy() for k, v in net.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_logits(name):
    net, state = random_model(name, classes=37)
    model = refvit.load(name, state, dtype="float64")
    for shape in ((1, 3, 192, 192), (2, 3, 131, 97), (1, 3, 230, 250), (3, 3, 33, 64)):
        x = np.random.default_rng(1).standard_normal(shape)
        with torch.inference_mode():
            expected = net(torch.from_numpy(x)).numpy()
        assert np.abs(model(x) - expected).max() < 1e-12 * np.abs(expected).max(), shape


@pytest.mark.parametrize("stride", [16, 8])
def test_timm_dilates_the_blocks_at_smaller_output_strides(stride):
    net, state = random_model("mobilevit_xxs", classes=5, output_stride=stride)
    found = convert(state, model="mobilevit_xxs")
    x = np.random.default_rng(2).standard_normal((1, 3, 128, 160))
    with torch.inference_mode():
        expected = net(torch.from_numpy(x)).numpy()
    for rule, near in (("timm", True), ("cvnets", False)):
        config = {**found.config, "output_stride": stride, "dilation_rule": rule}
        y = refvit.Model(dataclasses.replace(found, config=config), dtype="float64")(x)
        assert bool(np.abs(y - expected).max() < 1e-12 * np.abs(expected).max()) is near


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("vit_small_patch32_224", [(2, 3, 224, 224)]),
        ("vit_tiny_patch16_384", [(1, 3, 384, 384)]),
        ("deit_small_patch16_224", [(1, 3, 224, 224)]),
        ("deit_tiny_distilled_patch16_224", [(2, 3, 224, 224)]),
        ("hrnet_w18_small_v2", [(2, 3, 64, 96), (1, 3, 160, 128)]),
        ("hrnet_w18", [(1, 3, 96, 64)]),
        ("hrnet_w30", [(1, 3, 32, 64)]),
    ],
)
def test_other_variants_batches_and_sizes(name, shapes):
    net, state = random_model(name, classes=11)
    model = refvit.load(name, state, dtype="float64")
    for shape in shapes:
        x = np.random.default_rng(3).standard_normal(shape)
        with torch.inference_mode():
            expected = net(torch.from_numpy(x)).numpy()
        assert np.abs(model(x) - expected).max() < 1e-11 * np.abs(expected).max(), shape


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_vit_at_other_sizes_resamples_positions_as_timm_does(name):
    """timm's own rule, bicubic with antialiasing, which the layout of its checkpoints implies for both families."""
    net, state = random_model(name, classes=7, dynamic_img_size=True)
    model = refvit.load(name, state, dtype="float64", position_resize="bicubic_antialias")
    for shape in ((1, 3, 160, 320), (2, 3, 384, 384), (1, 3, 32, 48)):
        x = np.random.default_rng(4).standard_normal(shape)
        with torch.inference_mode():
            expected = net(torch.from_numpy(x)).numpy()
        # torch resamples the double table in float32
        assert np.abs(model(x) - expected).max() < 1e-5 * np.abs(expected).max(), shape


@pytest.mark.parametrize("turn", [lambda i: i, lambda i: i.rotate(90, expand=True), lambda i: i.resize((401, 333))])
@pytest.mark.parametrize("name", NAMES)
def test_evaluation_transform_is_the_same_bits(name, turn):
    net, state = random_model(name, classes=1000)
    image = turn(Image.open(ROOT / "examples" / "cat.jpg").convert("RGB"))
    expected = create_transform(**resolve_data_config({}, model=net))(image).numpy()
    np.testing.assert_array_equal(refvit.load(name, state).preprocess(np.asarray(image)), expected)
