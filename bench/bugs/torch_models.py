"""Right implementations in torch, with the weights of a reference: timm's, transformers' and our own modules."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
from torch import nn

from bench.bugs.subjects import Reference
from refvit.graph.ir import Array
from weights_convert.convert import LAYOUTS

TIMM = {"none": None, "tanh": "gelu_tanh"}


def build(reference: Reference, form: str) -> nn.Module:
    """In evaluation mode and float32; form is "timm", "transformers" or "own"."""
    module: nn.Module = {"timm": _timm, "transformers": _transformers, "own": _own}[form](reference)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


def load(module: nn.Module, state: dict[str, Array]) -> nn.Module:
    """Strictly, but for the counters of batch norms."""
    tensors = {name: torch.from_numpy(a.copy()) for name, a in state.items() if not name.endswith("num_batches_tracked")}
    found = module.load_state_dict(tensors, strict=False)
    missing = [name for name in found.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or found.unexpected_keys:
        raise ValueError(f"missing {missing[:3]}, unexpected {found.unexpected_keys[:3]}")
    return module


def _timm(reference: Reference) -> nn.Module:
    import_torchvision_without_operators()
    import timm
    from timm.layers import LayerNorm

    config, options = reference.subject.config, dict[str, Any](num_classes=reference.subject.config.num_classes)
    if "vit_tiny" in reference.subject.model or "deit" in reference.subject.model:
        options |= {"img_size": config.image_size, "depth": config.depth, "act_layer": TIMM[config.gelu]}
        options |= {"dynamic_img_size": True, "norm_layer": functools.partial(LayerNorm, eps=config.layer_norm_eps)}
    return load(timm.create_model(reference.subject.model, **options), dict(reference.weights.params))


def _transformers(reference: Reference) -> nn.Module:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import_torchvision_without_operators()
    import transformers

    config, model = reference.subject.config, reference.subject.model
    name = "mobilevit" if model.startswith("mobilevit") else "deit" if config.distilled else "vit"
    layout = f"{name}.transformers" + {"mobilevit": ""}.get(name, ".in_memory")
    layout += ".deeplabv3" if model.endswith("deeplabv3") else ""
    state = next(known for known in LAYOUTS if known.name == layout).export(reference.weights.params)
    if name != "mobilevit":
        options = transformers.ViTConfig if name == "vit" else transformers.DeiTConfig
        settings = options(
            image_size=config.image_size, patch_size=config.patch_size, hidden_size=config.embed_dim,
            num_hidden_layers=config.depth, num_attention_heads=config.num_heads,
            intermediate_size=config.embed_dim * config.mlp_ratio, layer_norm_eps=config.layer_norm_eps,
            hidden_act="gelu" if config.gelu == "none" else "gelu_pytorch_tanh", num_labels=config.num_classes,
        )  # fmt: skip
        kind = transformers.ViTForImageClassification if name == "vit" else transformers.DeiTForImageClassificationWithTeacher
    else:
        settings = transformers.MobileViTConfig(
            image_size=max(reference.subject.size), hidden_sizes=list(config.dims), num_labels=config.num_classes,
            neck_hidden_sizes=[config.stem_width, *config.widths, config.head_width], expand_ratio=float(config.expansion),
            output_stride=config.output_stride, aspp_out_channels=config.aspp_width, atrous_rates=list(config.rates),
        )  # fmt: skip
        deeplab = config.head == "deeplabv3"
        kind = transformers.MobileViTForSemanticSegmentation if deeplab else transformers.MobileViTForImageClassification
    module = load(kind(settings), state)
    if name != "mobilevit" and reference.subject.size != (config.image_size,) * 2:
        module.forward = functools.partial(module.forward, interpolate_pos_encoding=True)
    return module


def _own(reference: Reference) -> nn.Module:
    from bench.bugs import torch_hrnet, torch_hrvit

    family = torch_hrvit if reference.subject.model.startswith("hrvit") else torch_hrnet
    return load(family.build(reference.subject.config), dict(reference.weights.params))


@functools.cache
def import_torchvision_without_operators() -> None:
    """timm imports torchvision, whose compiled operators need the torch that it was built for. Nothing here calls them."""
    import importlib.util
    import re
    from pathlib import Path

    place = importlib.util.find_spec("torchvision")
    if place is None or place.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    text = (Path(place.origin).parent / "_meta_registrations.py").read_text()
    names = {*re.findall(r'torchvision::(\w+)"', text), *re.findall(r'register_meta\("(\w+)"', text)}
    library = torch.library.Library("torchvision", "DEF")
    for name in names:
        library.define(f"{name}(Tensor x) -> Tensor")
    globals()["_library"] = library  # it undoes its definitions when it is collected


def result(y: Any) -> torch.Tensor:
    """The answer in what a module returns."""
    return y if isinstance(y, torch.Tensor) else y.logits
