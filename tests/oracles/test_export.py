"""What is written loads strictly into timm's and transformers' own models, and they compute what refvit does."""

import functools
import importlib.util
import json

import numpy as np
import pytest

import refvit
from weights_convert import convert
from weights_convert.export import export, export_file

if not all(importlib.util.find_spec(m) for m in ("torch", "torchvision", "timm", "transformers")):
    pytest.skip("torch, torchvision, timm or transformers is not installed: nothing to load into", allow_module_level=True)

import timm
import torch
import transformers as hf

BOUND = 1e-10  # of the largest value; what is seen is below 1e-14
TINY = {  # "sdpa" because the softmax of the eager attention is float32
    "hidden_size": 192,
    "num_hidden_layers": 12,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "num_labels": 1000,
    "attn_implementation": "sdpa",
}
XXS = {"hidden_sizes": [64, 80, 96], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320], "expand_ratio": 2.0}
DEEPLAB = {**XXS, "num_labels": 21, "output_stride": 16, "aspp_out_channels": 256, "atrous_rates": [6, 12, 18]}
OPTIONS = ("gelu", "layer_norm_eps", "position_resize")
VIT, DEIT = "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"


def tensors(state):
    return {key: torch.from_numpy(a) for key, a in state.items()}


def read(golden, fixture):
    return convert(golden(fixture).state(), model=fixture.split(".")[0])


def compare(net, weights, size=(224, 224), turned=False):
    """turned: the network wants the channels in the other order."""
    x = np.random.default_rng(3).standard_normal((2, 3, *size))
    with torch.inference_mode():
        out = net(torch.from_numpy(x[:, ::-1].copy() if turned else x))
    theirs = (out if isinstance(out, torch.Tensor) else out.logits).numpy()
    assert theirs.dtype == np.float64
    ours = refvit.Model(weights, dtype="float64", backend="numpy")(x)
    assert np.abs(ours - theirs).max() < BOUND * np.abs(theirs).max()


# timm


def into_timm(name, state, **options):
    net = timm.create_model(name, **options).double().eval()
    expected = {key: (tuple(a.shape), a.dtype == torch.int64) for key, a in net.state_dict().items()}
    assert {key: (a.shape, a.dtype == np.int64) for key, a in state.items()} == expected
    net.load_state_dict(tensors(state), strict=True)
    return net


@pytest.mark.parametrize(
    ("fixture", "size"),
    [(f"{VIT}.timm", (224, 224)), (DEIT, (224, 224)), ("hrnet_w18_small", (64, 96)), ("mobilevit_xxs.timm", (96, 130))],
)
def test_timm_from_its_own_names(golden, fixture, size):
    weights = read(golden, fixture)
    compare(into_timm(weights.model, export(weights, "timm")), weights, size)


@pytest.mark.parametrize("fixture", ["mobilevit_xxs.cvnets", "mobilevit_xxs.transformers"])
def test_timm_from_weights_for_bgr(golden, fixture):
    weights = read(golden, fixture)
    net = into_timm(weights.model, export(weights, "timm"))
    compare(net, weights, (96, 64), turned=True)
    with pytest.raises(AssertionError):
        compare(net, weights, (96, 64))


def test_timm_from_jax_and_transformers(golden):
    """The options that have to be told are those of the refusal's hints."""
    for fixture, eps, act in ((f"{VIT}.jax", 1e-6, "gelu_tanh"), (f"{VIT}.transformers", 1e-12, "gelu")):
        weights = read(golden, fixture)
        norm = functools.partial(torch.nn.LayerNorm, eps=eps)
        compare(into_timm(VIT, export(weights, "timm", told=OPTIONS), act_layer=act, norm_layer=norm), weights)


def test_timm_reads_the_archive_of_jax(golden, tmp_path):
    weights = read(golden, f"{VIT}.jax")
    export_file(weights, "jax", tmp_path / "vit.npz")
    net = timm.create_model(VIT, act_layer="gelu_tanh").double().eval()
    for value in net.parameters():
        torch.nn.init.constant_(value, float("nan"))
    net.load_pretrained(str(tmp_path / "vit.npz"))
    compare(net, weights)


# transformers

CASES = {  # fixture: class, its config, whether it wants BGR where the weights want RGB
    f"{VIT}.transformers": (hf.ViTForImageClassification, hf.ViTConfig(**TINY), False),
    f"{VIT}.timm": (hf.ViTForImageClassification, hf.ViTConfig(**TINY, layer_norm_eps=1e-6), False),
    f"{VIT}.jax": (
        hf.ViTForImageClassification,
        hf.ViTConfig(**TINY, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh"),
        False,
    ),
    DEIT: (hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig(**TINY, layer_norm_eps=1e-6), False),
    "mobilevit_xxs.transformers": (hf.MobileViTForImageClassification, hf.MobileViTConfig(num_labels=1000, **XXS), False),
    "mobilevit_xxs.cvnets": (hf.MobileViTForImageClassification, hf.MobileViTConfig(num_labels=1000, **XXS), False),
    "mobilevit_xxs.timm": (hf.MobileViTForImageClassification, hf.MobileViTConfig(num_labels=1000, **XXS), True),
    "mobilevit_xxs_deeplabv3.cvnets": (hf.MobileViTForSemanticSegmentation, hf.MobileViTConfig(**DEEPLAB), False),
}


@pytest.mark.parametrize("fixture", CASES)
def test_transformers_reads_the_file(golden, tmp_path, fixture):
    kind, config, turned = CASES[fixture]
    weights = read(golden, fixture)
    export_file(weights, "transformers", tmp_path / "model.safetensors", told=told(weights))
    config.architectures = [kind.__name__]
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    attention = {"attn_implementation": "sdpa"} if "patch16" in fixture else {}
    net, info = kind.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float64, **attention)
    assert info.keys() >= {"missing_keys", "unexpected_keys", "mismatched_keys"} and not any(info.values()), info
    compare(net.eval(), weights, (224, 224) if "patch16" in fixture else (128, 160), turned)


def told(weights):
    return OPTIONS if "gelu" in weights.config else ()


@pytest.mark.parametrize("fixture", CASES)
def test_transformers_loads_strictly_in_memory(golden, fixture):
    kind, config, turned = CASES[fixture]
    weights = read(golden, fixture)
    layout = "transformers" if "mobilevit" in fixture else f"{'deit' if fixture == DEIT else 'vit'}.transformers.in_memory"
    state = export(weights, layout, told=told(weights))
    net = kind(config).double().eval()
    assert state.keys() == net.state_dict().keys()
    net.load_state_dict(tensors(state), strict=True)
    compare(net, weights, (224, 224) if "patch16" in fixture else (96, 64), turned)
