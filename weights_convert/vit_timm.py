"""ViT and DeiT as timm publishes them, and DeiT's official files, which have the same names.

timm's ViTs expect mean and std 0.5, shorter side floor(224 / 0.9) = 248 by bicubic and crop 224, or 384 as it is; DeiTs the
mean and std of ImageNet.
"""

from __future__ import annotations

from typing import Any

from refvit.models.vit import VARIANTS
from weights_convert.layout import IMAGENET_MEAN, IMAGENET_STD, Layout, Rule, classes_of, evaluation

HALF = (0.5, 0.5, 0.5)


def _preprocess(model: str, config: Any) -> dict[str, Any]:
    size = config.image_size
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if model.startswith("deit") else (HALF, HALF)
    return evaluation(size, size if size >= 384 else int(size / 0.9), "bicubic", mean, std)


LAYOUT = Layout(
    name="vit.timm",
    models=tuple(VARIANTS),
    signature=frozenset({"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"}),
    rules=(Rule(r"(cls_token|dist_token|pos_embed)|(patch_embed|blocks|norm|head|head_dist)\..*", r"\g<0>"),),
    config=classes_of("head.weight"),
    preprocess=_preprocess,
)
