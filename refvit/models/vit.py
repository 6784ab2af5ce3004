"""ViT (Dosovitskiy et al. 2020, arXiv:2010.11929) and DeiT (Touvron et al. 2020, arXiv:2012.12877): an image is 16x16 words.

The image is cut into patches, each becomes a token, and a stack of transformer layers does the rest. Parameter names are
timm's. Facts are those of google-research/vision_transformer and facebookresearch/deit, checked against timm and transformers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from refvit.errors import ConfigError, ShapeError
from refvit.graph.ir import Array
from refvit.graph.trace import block
from refvit.models.layers import Named, affine, transformer_layer, transformer_parameters
from refvit.ops import broadcast, concat, conv2d, gelu, layer_norm, linear, resize
from refvit.weights.params import Params

# How a position embedding is resampled to another grid: arguments of `resize`, by the name that the config records.
POSITION_RESIZE: dict[str, dict[str, Any]] = {
    "bicubic_antialias": {"mode": "bicubic", "align_corners": False, "antialias": True},  # timm, from its own checkpoints
    "bicubic": {"mode": "bicubic", "align_corners": False},  # transformers, and DeiT's fine-tuning
    "bilinear": {"mode": "bilinear", "align_corners": False},  # timm, from Google's .npz files
    "bilinear_corners": {"mode": "bilinear", "align_corners": True},  # Google's own, scipy.ndimage.zoom(order=1)
}


MAX_HEADS = 64


@dataclass(frozen=True)
class ViTConfig:
    """Fields after `distilled` differ between published checkpoints of one architecture and are recorded with the weights."""

    image_size: int  # that the position embedding was trained for
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: int = 4
    num_classes: int = 1000
    distilled: bool = False  # a second token and a second head; the answer is the mean of both heads
    gelu: str = "none"  # the exact one; "tanh" in Google's own code
    layer_norm_eps: float = 1e-6  # 1e-12 in transformers
    position_resize: str = "bicubic_antialias"

    def __post_init__(self) -> None:
        if self.gelu not in ("none", "tanh") or self.position_resize not in POSITION_RESIZE:
            raise ConfigError(
                f'gelu "none" or "tanh" and position_resize one of {", ".join(POSITION_RESIZE)} expected, got {self.gelu!r} '
                f"and {self.position_resize!r}"
            )
        if self.num_heads > MAX_HEADS:  # no tensor has this size, and memory grows with it
            raise ConfigError(f"up to {MAX_HEADS} heads expected, got {self.num_heads}")

    @property
    def grid(self) -> int:
        """Patches along a side of the trained image size."""
        return self.image_size // self.patch_size

    @property
    def prefix(self) -> int:
        """Tokens before those of the patches."""
        return 2 if self.distilled else 1


# fmt: off
_SIZES = {
    #        width  depth  heads
    "tiny":  (192,   12,    3),
    "small": (384,   12,    6),
    "base":  (768,   12,   12),
    "large": (1024,  24,   16),
    "huge":  (1280,  32,   16),
}
_VIT = {  # size -> the published (patch, image)
    "tiny":  ((16, 224), (16, 384)),
    "small": ((16, 224), (16, 384), (32, 224), (32, 384)),
    "base":  ((8, 224), (16, 224), (16, 384), (32, 224), (32, 384)),
    "large": ((16, 224), (16, 384), (32, 224), (32, 384)),
    "huge":  ((14, 224),),
}
_DEIT = {"tiny": (224,), "small": (224,), "base": (224, 384)}
# fmt: on

VARIANTS = {
    f"vit_{size}_patch{patch}_{image}": ViTConfig(image, patch, *_SIZES[size])
    for size, published in _VIT.items()
    for patch, image in published
}
for _size, _images in _DEIT.items():
    for _image in _images:
        _plain = ViTConfig(_image, 16, *_SIZES[_size], position_resize="bicubic")
        VARIANTS[f"deit_{_size}_patch16_{_image}"] = _plain
        VARIANTS[f"deit_{_size}_distilled_patch16_{_image}"] = replace(_plain, distilled=True)


@block
def patch_embed(x: Array, p: Params, *, patch_size: int) -> Array:
    """One linear map of every patch, written as a convolution that does not overlap. x (n, 3, h, w) -> (n, h/p * w/p, d)."""
    if x.shape[2] % patch_size or x.shape[3] % patch_size:
        raise ShapeError(f"the image is {x.shape[2]}x{x.shape[3]}, both must be multiples of the patch size {patch_size}")
    x = conv2d(x, **p["proj"], stride=patch_size)  # (n, d, h/p, w/p)
    n, d, rows, columns = x.shape
    return x.reshape(n, d, rows * columns).transpose(0, 2, 1)


def position_embedding(table: Array, *, rows: int, columns: int, config: ViTConfig) -> Array:
    """The learned table (1, prefix + grid^2, d) for rows x columns patches, resampled if that is not the trained grid."""
    if (rows, columns) == (config.grid, config.grid):
        return table
    d = table.shape[2]
    grid = table[:, config.prefix :].reshape(1, config.grid, config.grid, d).transpose(0, 3, 1, 2)
    grid = resize(grid, size=(rows, columns), **POSITION_RESIZE[config.position_resize])
    return concat(table[:, : config.prefix], grid.transpose(0, 2, 3, 1).reshape(1, rows * columns, d), axis=1)


@block
def vit(x: Array, p: Params, *, config: ViTConfig) -> Array:
    """x (n, 3, h, w) -> logits (n, classes). Tokens: class, distillation if there is one, then the patches row by row."""
    n, _, h, w = x.shape
    x = patch_embed(x, p["patch_embed"], patch_size=config.patch_size)
    names = ("cls_token", "dist_token")[: config.prefix]
    tokens = [broadcast(p[name], shape=(n, 1, config.embed_dim)) for name in names]
    rows, columns = h // config.patch_size, w // config.patch_size
    x = concat(*tokens, x, axis=1) + position_embedding(p["pos_embed"], rows=rows, columns=columns, config=config)
    act = functools.partial(gelu, approximate=config.gelu)
    for i in range(config.depth):
        x = transformer_layer(x, p["blocks"][i], num_heads=config.num_heads, eps=config.layer_norm_eps, act=act)
    x = layer_norm(x, **p["norm"], eps=config.layer_norm_eps)  # (n, l, d)
    if not config.distilled:
        return linear(x[:, 0], **p["head"])
    return (linear(x[:, 0], **p["head"]) + linear(x[:, 1], **p["head_dist"])) * 0.5


def parameters(config: ViTConfig) -> Named:
    """Name and shape of every parameter."""
    d = config.embed_dim
    yield from ((name, (1, 1, d)) for name in ("cls_token", "dist_token")[: config.prefix])
    yield "pos_embed", (1, config.prefix + config.grid**2, d)
    yield from affine("patch_embed.proj", (d, 3, config.patch_size, config.patch_size))
    for i in range(config.depth):
        yield from transformer_parameters(f"blocks.{i}", d, d * config.mlp_ratio)
    yield from affine("norm", (d,))
    for head in ("head", "head_dist")[: config.prefix]:
        yield from affine(head, (config.num_classes, d))
