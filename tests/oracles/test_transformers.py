"""Against transformers itself, where it is installed: what save_pretrained writes, what state_dict() gives, and other sizes."""

import importlib.util

import numpy as np
import pytest

import refvit
from refvit.errors import WeightsError

if not all(importlib.util.find_spec(m) for m in ("torch", "transformers")):
    pytest.skip("torch and transformers are not installed: nothing to compare with", allow_module_level=True)

import torch
import transformers as hf

BOUND = 1e-13  # of the largest value; what is seen is below 2e-15
TINY = {  # "sdpa" because the softmax of the eager attention is float32
    "hidden_size": 192,
    "num_hidden_layers": 12,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "num_labels": 11,
    "attn_implementation": "sdpa",
}
XXS = {
    "hidden_sizes": [64, 80, 96],
    "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320],
    "expand_ratio": 2.0,
}
MODELS = {
    "vit_tiny_patch16_224": lambda: hf.ViTForImageClassification(hf.ViTConfig(**TINY)),
    "deit_tiny_distilled_patch16_224": lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**TINY)),
    "mobilevit_xxs": lambda: hf.MobileViTForImageClassification(hf.MobileViTConfig(num_labels=7, **XXS)),
    "mobilevit_s": lambda: hf.MobileViTForImageClassification(hf.MobileViTConfig(num_labels=7)),
    "mobilevit_s_deeplabv3": lambda: hf.MobileViTForSemanticSegmentation(hf.MobileViTConfig(num_labels=21, output_stride=16)),
}


def random_model(make):
    """In float64, with norms and statistics that are not the identity."""
    torch.manual_seed(0)
    net = make()
    for key, value in net.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.ndim == 1:
            value.normal_(1.0 if "norm" in key and key.endswith("weight") else 0.0, 0.1)
        elif value.ndim > 1:
            value.normal_(0, 0.2 if "embeddings" in key and value.ndim == 3 else value[0].numel() ** -0.5)
    return net.double().eval()


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_and_its_state_dict(name, tmp_path):
    net = random_model(MODELS[name])
    net.save_pretrained(tmp_path)
    memory = {key: value.numpy() for key, value in net.state_dict().items()}
    sizes = ((224, 224),) if "patch16" in name else ((256, 256), (230, 250))
    for weights in (tmp_path / "model.safetensors", memory):
        model = refvit.load(name, weights, dtype="float64", backend="numpy")
        for h, w in sizes:
            x = np.random.default_rng(1).standard_normal((2, 3, h, w))
            with torch.inference_mode():
                expected = net(torch.from_numpy(x)).logits.numpy()
            assert np.abs(model(x) - expected).max() < BOUND * np.abs(expected).max(), (type(weights), h, w)


def test_positions_are_resampled_in_the_same_way():
    net = random_model(MODELS["vit_tiny_patch16_224"])
    memory = {key: value.numpy() for key, value in net.state_dict().items()}
    model = refvit.load("vit_tiny_patch16_224", memory, dtype="float64", backend="numpy")
    for h, w in ((160, 320), (384, 384)):
        x = np.random.default_rng(2).standard_normal((1, 3, h, w))
        with torch.inference_mode():
            expected = net(torch.from_numpy(x), interpolate_pos_encoding=True).logits.numpy()
        assert np.abs(model(x) - expected).max() < BOUND * np.abs(expected).max(), (h, w)


def test_deit_with_one_head_is_refused(tmp_path):
    random_model(lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**TINY))).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="only DeiTForImageClassificationWithTeacher can be converted"):
        refvit.load(None, tmp_path / "model.safetensors")
