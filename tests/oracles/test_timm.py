"""Against timm itself, where it is installed: any variant, input size and batch, and the evaluation transform."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import refvit

if not all(importlib.util.find_spec(m) for m in ("torch", "torchvision", "timm")):
    pytest.skip("timm, torch and torchvision are not installed: nothing to compare with", allow_module_level=True)

import timm
import torch
from timm.data import create_transform, resolve_data_config

ROOT = Path(__file__).parent.parent.parent
NAMES = ("mobilevit_xxs", "mobilevit_xs", "mobilevit_s")


def random_model(name, classes, seed=0):
    """timm's model in float64 with statistics that are not the identity, and its checkpoint."""
    torch.manual_seed(seed)
    net = timm.create_model(name, num_classes=classes).double().eval()
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


@pytest.mark.parametrize("turn", [lambda i: i, lambda i: i.rotate(90, expand=True), lambda i: i.resize((401, 333))])
@pytest.mark.parametrize("name", NAMES)
def test_evaluation_transform_is_the_same_bits(name, turn):
    net, state = random_model(name, classes=1000)
    image = turn(Image.open(ROOT / "examples" / "cat.jpg").convert("RGB"))
    expected = create_transform(**resolve_data_config({}, model=net))(image).numpy()
    np.testing.assert_array_equal(refvit.load(name, state).preprocess(np.asarray(image)), expected)
