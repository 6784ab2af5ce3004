"""Against timm itself, where it is installed: any variant, input size and batch, and the evaluation transform.

Every model is built with random weights and saved, by torch.save or by timm, and refvit reads the file.
"""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import refvit
from weights_convert import convert_file

if not all(importlib.util.find_spec(m) for m in ("torch", "torchvision", "timm")):
    pytest.skip("timm, torch and torchvision are not installed: nothing to compare with", allow_module_level=True)

import timm
import torch
from timm.data import create_transform, resolve_data_config

ROOT = Path(__file__).parent.parent.parent
NAMES = ("mobilevit_xxs", "mobilevit_xs", "mobilevit_s")


def random_model(name, folder, classes, seed=0, **options):
    """timm's model in float64 with statistics that are not the identity, and its checkpoint, a file of torch.save."""
    torch.manual_seed(seed)
    net = timm.create_model(name, num_classes=classes, **options).double().eval()
    for key, value in net.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif key.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
        elif value.ndim == 1:
            value.normal_(1, 0.1)
    torch.save(net.state_dict(), folder / f"{name}.pth")
    return net, folder / f"{name}.pth"


@pytest.mark.parametrize("name", NAMES)
def test_logits(name, tmp_path):
    net, path = random_model(name, tmp_path, classes=37)
    model = refvit.load(name, path, dtype="float64")
    for shape in ((1, 3, 192, 192), (2, 3, 131, 97), (1, 3, 230, 250), (3, 3, 33, 64)):
        x = np.random.default_rng(1).standard_normal(shape)
        with torch.inference_mode():
            expected = net(torch.from_numpy(x)).numpy()
        assert np.abs(model(x) - expected).max() < 1e-12 * np.abs(expected).max(), shape


@pytest.mark.parametrize("stride", [16, 8])
def test_timm_dilates_the_blocks_at_smaller_output_strides(stride, tmp_path):
    net, path = random_model("mobilevit_xxs", tmp_path, classes=5, output_stride=stride)
    found = convert_file(path, model="mobilevit_xxs")
    x = np.random.default_rng(2).standard_normal((1, 3, 128, 160))
    with torch.inference_mode():
        expected = net(torch.from_numpy(x)).numpy()
    for rule, near in (("timm", True), ("cvnets", False)):
        config = {**found.config, "output_stride": stride, "dilation_rule": rule}
        y = refvit.Model(dataclasses.replace(found, config=config), dtype="float64")(x)
        assert bool(np.abs(y - expected).max() < 1e-12 * np.abs(expected).max()) is near


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_a_folder_as_timm_saves_it_says_its_model(name, safe, tmp_path):
    """The two have the same names and shapes."""
    net, _ = random_model(name, tmp_path, classes=11)
    folder = tmp_path / "saved"
    timm.models.save_for_hf(net, folder, safe_serialization=safe)
    report = refvit.convert(folder, tmp_path / "a.safetensors", check=False).to_dict()
    assert report["model"] == name
    assert report["source"]["file"] == ("model.safetensors" if safe else "pytorch_model.bin")
    x = np.random.default_rng(5).standard_normal((2, 3, 224, 224))
    with torch.inference_mode():
        expected = net(torch.from_numpy(x)).numpy()
    image = Image.open(ROOT / "examples" / "cat.jpg").convert("RGB")
    pixels = create_transform(**resolve_data_config({}, model=net))(image).numpy()
    for weights in (folder, tmp_path / "a.safetensors"):
        model = refvit.load(None, weights, dtype="float64", backend="numpy")
        assert model.name == name
        assert np.abs(model(x) - expected).max() < 1e-11 * np.abs(expected).max()
        np.testing.assert_array_equal(model.preprocess(np.asarray(image)), pixels)


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
def test_other_variants_batches_and_sizes(name, shapes, tmp_path):
    net, path = random_model(name, tmp_path, classes=11)
    model = refvit.load(name, path, dtype="float64")
    for shape in shapes:
        x = np.random.default_rng(3).standard_normal(shape)
        with torch.inference_mode():
            expected = net(torch.from_numpy(x)).numpy()
        assert np.abs(model(x) - expected).max() < 1e-11 * np.abs(expected).max(), shape


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_vit_at_other_sizes_resamples_positions_as_timm_does(name, tmp_path):
    """timm's own rule, bicubic with antialiasing, which the layout of its checkpoints implies for both families."""
    net, path = random_model(name, tmp_path, classes=7, dynamic_img_size=True)
    model = refvit.load(name, path, dtype="float64", position_resize="bicubic_antialias")
    for shape in ((1, 3, 160, 320), (2, 3, 384, 384), (1, 3, 32, 48)):
        x = np.random.default_rng(4).standard_normal(shape)
        with torch.inference_mode():
            expected = net(torch.from_numpy(x)).numpy()
        # torch resamples the double table in float32
        assert np.abs(model(x) - expected).max() < 1e-5 * np.abs(expected).max(), shape


@pytest.mark.parametrize("turn", [lambda i: i, lambda i: i.rotate(90, expand=True), lambda i: i.resize((401, 333))])
@pytest.mark.parametrize("name", NAMES)
def test_evaluation_transform_is_the_same_bits(name, turn, tmp_path):
    net, path = random_model(name, tmp_path, classes=1000)
    image = turn(Image.open(ROOT / "examples" / "cat.jpg").convert("RGB"))
    expected = create_transform(**resolve_data_config({}, model=net))(image).numpy()
    np.testing.assert_array_equal(refvit.load(name, path).preprocess(np.asarray(image)), expected)
