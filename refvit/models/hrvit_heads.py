"""HRViT for segmentation: the SegFormer head (Xie et al. 2021) and the UPerNet head (Xiao et al. 2018) on its four maps.

Outputs have stride 4 and are not resized. Parameter names are those of mmsegmentation below `decode_head.`, the backbone's are
the classifier's. UPerNet's auxiliary head is for training only and has no place here.
"""

from __future__ import annotations

from dataclasses import replace

from refvit.graph.ir import Array
from refvit.graph.trace import block
from refvit.models.hrnet import conv_bn, conv_bn_parameters
from refvit.models.hrvit import VARIANTS, HRViTConfig, backbone, backbone_parameters
from refvit.models.layers import Named, affine
from refvit.ops import adaptive_avg_pool, concat, conv2d, relu, resize
from refvit.weights.params import Params

ADE20K = 150
POOLED = (1, 2, 3, 6)  # sides of UPerNet's pyramid pooling

SEGFORMER_VARIANTS = {
    f"{name}_segformer": replace(config, head="segformer", num_classes=ADE20K, head_width=768 if name == "hrvit_b3" else 256)
    for name, config in VARIANTS.items()
}
UPERNET_VARIANTS = {
    f"{name}_upernet": replace(config, head="upernet", num_classes=ADE20K, head_width=512) for name, config in VARIANTS.items()
}


def upsample(x: Array, size: tuple[int, int]) -> Array:
    """Bilinear with half-pixel centres, as everywhere in these heads."""
    return resize(x, size=size, mode="bilinear", align_corners=False)


@block
def conv_module(x: Array, p: Params, *, eps: float) -> Array:
    """Convolution without bias, norm, ReLU."""
    return relu(conv_bn(x, p["conv"], p["bn"], eps=eps))


@block
def segformer_head(xs: list[Array], p: Params, *, eps: float) -> Array:
    """A linear map of each branch, all at stride 4 side by side, mixed by one 1x1 convolution. -> (n, classes, h/4, w/4)"""
    size = xs[0].shape[2:]
    ys = [upsample(conv2d(x, **p["convs"][r]["conv"]), size) for r, x in enumerate(xs)]
    return conv2d(conv_module(concat(*ys, axis=1), p["fusion_conv"], eps=eps), **p["conv_seg"])


@block
def upernet_head(xs: list[Array], p: Params, *, eps: float) -> Array:
    """Pyramid pooling on the coarsest map, then a feature pyramid down to the finest. -> (n, classes, h/4, w/4)"""
    last = xs[-1]
    pooled = [adaptive_avg_pool(last, size=(side, side)) for side in POOLED]
    pooled = [conv_module(x, p["psp_modules"][i][1], eps=eps) for i, x in enumerate(pooled)]
    y = concat(last, *[upsample(z, last.shape[2:]) for z in pooled], axis=1)
    ys = [conv_module(x, p["lateral_convs"][i], eps=eps) for i, x in enumerate(xs[:-1])]
    ys.append(conv_module(y, p["bottleneck"], eps=eps))
    for i in range(len(ys) - 1, 0, -1):
        ys[i - 1] = ys[i - 1] + upsample(ys[i], ys[i - 1].shape[2:])
    ys[:-1] = [conv_module(y, p["fpn_convs"][i], eps=eps) for i, y in enumerate(ys[:-1])]
    together = concat(ys[0], *[upsample(y, ys[0].shape[2:]) for y in ys[1:]], axis=1)
    return conv2d(conv_module(together, p["fpn_bottleneck"], eps=eps), **p["conv_seg"])


@block
def hrvit_segmentation(x: Array, p: Params, *, config: HRViTConfig) -> Array:
    """x (n, 3, h, w), sides multiples of 32 -> logits (n, classes, h/4, w/4)."""
    head = segformer_head if config.head == "segformer" else upernet_head
    return head(backbone(x, p, config=config), p["decode_head"], eps=config.eps)


def segformer_parameters(config: HRViTConfig) -> Named:
    """Name and shape of every parameter."""
    yield from backbone_parameters(config)
    width = config.head_width
    for r, c in enumerate(config.widths):
        yield from affine(f"decode_head.convs.{r}.conv", (width, c, 1, 1))
    yield from _conv_module("decode_head.fusion_conv", width, 4 * width, 1)
    yield from affine("decode_head.conv_seg", (config.num_classes, width, 1, 1))


def upernet_parameters(config: HRViTConfig) -> Named:
    """Name and shape of every parameter."""
    yield from backbone_parameters(config)
    width, last = config.head_width, config.widths[3]
    for i in range(len(POOLED)):
        yield from _conv_module(f"decode_head.psp_modules.{i}.1", width, last, 1)
    yield from _conv_module("decode_head.bottleneck", width, last + len(POOLED) * width, 3)
    for r, c in enumerate(config.widths[:3]):
        yield from _conv_module(f"decode_head.lateral_convs.{r}", width, c, 1)
        yield from _conv_module(f"decode_head.fpn_convs.{r}", width, width, 3)
    yield from _conv_module("decode_head.fpn_bottleneck", width, 4 * width, 3)
    yield from affine("decode_head.conv_seg", (config.num_classes, width, 1, 1))


def _conv_module(name: str, k: int, c: int, kernel: int) -> Named:
    yield from conv_bn_parameters(f"{name}.conv", f"{name}.bn", (k, c, kernel, kernel))
