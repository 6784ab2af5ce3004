"""MobileViT (Mehta & Rastegari 2021, arXiv:2110.02178), version 1: convolutions for what is near, transformers for what is far.

The file reads from small to large: a convolution with its norm, the inverted residual, the MobileViT block, the network; the
transformer layer is that of `layers`, with SiLU. Parameter names are timm's. Facts are those of apple/ml-cvnets v0.1, checked
against timm and transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from refvit.errors import ConfigError
from refvit.graph.ir import Array, Shape
from refvit.graph.trace import block
from refvit.models.layers import Named, affine, batch_norm_parameters, transformer_layer, transformer_parameters
from refvit.ops import (
    batch_norm,
    concat,
    conv2d,
    fold_patches,
    layer_norm,
    linear,
    mean,
    silu,
    unfold_patches,
)
from refvit.weights.params import Params

MAX_RATE, MAX_PATCH, MAX_HEADS = 256, 64, 16  # no tensor's shape tells these, and memory grows with them


@dataclass(frozen=True)
class MobileViTConfig:
    """Widths are output channels; `dims` and `depths` are those of the transformers in stages 2, 3 and 4."""

    stem_width: int
    widths: tuple[int, int, int, int, int]  # of the stages
    head_width: int  # of the last 1x1 convolution
    expansion: int  # hidden over input channels in an inverted residual
    dims: tuple[int, int, int]
    depths: tuple[int, int, int] = (2, 4, 3)
    num_heads: int = 4
    mlp_ratio: int = 2
    patch: tuple[int, int] = (2, 2)
    batch_norm_eps: float = 1e-5
    layer_norm_eps: float = 1e-5
    num_classes: int = 1000
    head: str = "classification"  # "deeplabv3" or "ssdlite"
    output_stride: int = 32  # 16 and 8 keep the last stages' resolution, for segmentation
    dilation_rule: str = "cvnets"  # what widens instead, as published; "timm" also widens the 3x3 convolutions of its blocks
    aspp_width: int = 256  # of DeepLabv3's pyramid, and the dilations in it
    rates: tuple[int, int, int] = (6, 12, 18)
    align_corners: bool = False  # of the enlargement of its logits to the image, which is left to `infer`

    def __post_init__(self) -> None:
        if self.output_stride not in (8, 16, 32) or self.dilation_rule not in ("cvnets", "timm"):
            raise ConfigError(
                f'output_stride 8, 16 or 32 and dilation_rule "cvnets" or "timm" expected, got {self.output_stride} '
                f"and {self.dilation_rule!r}"
            )
        if max(self.rates) > MAX_RATE or max(self.patch) > MAX_PATCH or self.num_heads > MAX_HEADS:
            raise ConfigError(
                f"rates up to {MAX_RATE}, a patch up to {MAX_PATCH}x{MAX_PATCH} and up to {MAX_HEADS} heads expected, got "
                f"{self.rates}, {self.patch} and {self.num_heads}"
            )

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """Of the stages' inverted residuals. Stages 2, 3 and 4 end in a MobileViT block."""
        return (1,), (2, 1, 1), (2,), (1 if self.output_stride == 8 else 2,), (2 if self.output_stride == 32 else 1,)

    @property
    def dilations(self) -> tuple[int, ...]:
        """Of the stages' depthwise convolutions: only at stride 8, and only in the last, as published."""
        return 1, 1, 1, 1, 2 if self.output_stride == 8 else 1

    @property
    def block_dilations(self) -> tuple[int, ...]:
        """Of the 3x3 convolutions with which the MobileViT blocks begin."""
        if self.dilation_rule == "cvnets":
            return 1, 1, 1, 1, 1
        return 1, 1, 1, 2 if self.output_stride == 8 else 1, {32: 1, 16: 2, 8: 4}[self.output_stride]


# fmt: off
VARIANTS = {
    #                               stem  stages                   head  expansion  dims
    "mobilevit_xxs": MobileViTConfig(16, (16, 24, 48,  64,  80),   320,  2,        (64,   80,  96)),
    "mobilevit_xs":  MobileViTConfig(16, (32, 48, 64,  80,  96),   384,  4,        (96,  120, 144)),
    "mobilevit_s":   MobileViTConfig(16, (32, 64, 96, 128, 160),   640,  4,        (144, 192, 240)),
}
# fmt: on


@block
def norm_act(x: Array, p: Params, *, eps: float, act: bool) -> Array:
    """Batch norm and, unless it ends a linear bottleneck, SiLU."""
    x = batch_norm(x, **p, eps=eps)
    return silu(x) if act else x


@block
def conv_norm_act(
    x: Array, p: Params, *, eps: float, act: bool = True, stride: int = 1, dilation: int = 1, groups: int = 1
) -> Array:
    """Convolution without bias, padded so that stride 1 keeps the size; batch norm; SiLU. x (n, c, h, w) -> (n, k, p, q)."""
    padding = p["conv"]["weight"].shape[-1] // 2 * dilation
    x = conv2d(x, **p["conv"], stride=stride, padding=padding, dilation=dilation, groups=groups)
    return norm_act(x, p["bn"], eps=eps, act=act)


@block
def inverted_residual(x: Array, p: Params, *, stride: int, eps: float, dilation: int = 1) -> Array:
    """MobileNetV2's block: expand, filter each channel on its own, project linearly (Sandler et al. 2018, figure 4d)."""
    y = conv_norm_act(x, p["conv1_1x1"], eps=eps)  # (n, hidden, h, w)
    y = conv_norm_act(y, p["conv2_kxk"], eps=eps, stride=stride, dilation=dilation, groups=y.shape[1])
    y = conv_norm_act(y, p["conv3_1x1"], eps=eps, act=False)  # (n, k, h / stride, w / stride)
    return x + y if x.shape == y.shape else y


@block
def mobilevit_block(x: Array, p: Params, *, depth: int, config: MobileViTConfig, dilation: int = 1) -> Array:
    """Local features, unfold, a transformer over the patches, fold, fuse with the input (figure 1b). x (n, c, h, w) -> same.

    Attention runs between pixels of the same place in different patches; with the 3x3 convolution before it, every
    pixel sees the whole map.
    """
    eps = config.batch_norm_eps
    y = conv_norm_act(x, p["conv_kxk"], eps=eps, dilation=dilation)
    y = conv2d(y, **p["conv_1x1"])  # (n, d, h, w), neither norm nor activation
    y = unfold_patches(y, patch=config.patch)  # (n * 4, l, d)
    for i in range(depth):
        y = transformer_layer(y, p["transformer"][i], num_heads=config.num_heads, eps=config.layer_norm_eps, act=silu)
    y = layer_norm(y, **p["norm"], eps=config.layer_norm_eps)
    y = fold_patches(y, patch=config.patch, size=x.shape[2:])  # (n, d, h, w)
    y = conv_norm_act(y, p["conv_proj"], eps=eps)  # (n, c, h, w)
    return conv_norm_act(concat(x, y, axis=1), p["conv_fusion"], eps=eps)


@block
def stage(x: Array, p: Params, *, index: int, config: MobileViTConfig) -> Array:
    """Inverted residuals, then in stages 2, 3 and 4 a MobileViT block."""
    strides, dilation = config.strides[index], config.dilations[index]
    for i, stride in enumerate(strides):
        x = inverted_residual(x, p[i], stride=stride, dilation=dilation, eps=config.batch_norm_eps)
    if index < 2:
        return x
    widened = config.block_dilations[index]
    return mobilevit_block(x, p[len(strides)], depth=config.depths[index - 2], config=config, dilation=widened)


def backbone(x: Array, p: Params, *, config: MobileViTConfig) -> list[Array]:
    """x (n, 3, h, w) -> the outputs of the five stages, at strides 2, 4, 8, 16 and 32 unless the output stride is smaller."""
    x = conv_norm_act(x, p["stem"], eps=config.batch_norm_eps, stride=2)
    xs = []
    for i in range(len(config.widths)):
        x = stage(x, p["stages"][i], index=i, config=config)
        xs.append(x)
    return xs


@block
def head(x: Array, p: Params) -> Array:
    """Mean over the map, then a linear classifier. x (n, c, h, w) -> (n, classes)."""
    return linear(mean(x, axes=(2, 3)), **p["fc"])


@block
def mobilevit(x: Array, p: Params, *, config: MobileViTConfig) -> Array:
    """x (n, 3, h, w) -> logits (n, classes)."""
    x = backbone(x, p, config=config)[-1]
    return head(conv_norm_act(x, p["final_conv"], eps=config.batch_norm_eps), p["head"])


def parameters(config: MobileViTConfig) -> Named:
    """Name and shape of every parameter of the classifier, in the order of execution."""
    yield from backbone_parameters(config)
    yield from _conv_norm("final_conv", (config.head_width, config.widths[-1], 1, 1))
    yield from affine("head.fc", (config.num_classes, config.head_width))


def backbone_parameters(config: MobileViTConfig) -> Named:
    """Name and shape of every parameter of stem and stages."""
    yield from _conv_norm("stem", (config.stem_width, 3, 3, 3))
    width = config.stem_width
    for i, (out, strides) in enumerate(zip(config.widths, config.strides, strict=True)):
        for j in range(len(strides)):
            name, hidden = f"stages.{i}.{j}", width * config.expansion
            yield from _conv_norm(f"{name}.conv1_1x1", (hidden, width, 1, 1))
            yield from _conv_norm(f"{name}.conv2_kxk", (hidden, 1, 3, 3))
            yield from _conv_norm(f"{name}.conv3_1x1", (out, hidden, 1, 1))
            width = out
        if i >= 2:
            yield from _block_parameters(f"stages.{i}.{len(strides)}", out, config.dims[i - 2], config.depths[i - 2], config)


def _block_parameters(name: str, c: int, d: int, depth: int, config: MobileViTConfig) -> Named:
    yield from _conv_norm(f"{name}.conv_kxk", (c, c, 3, 3))
    yield f"{name}.conv_1x1.weight", (d, c, 1, 1)
    for i in range(depth):
        yield from transformer_parameters(f"{name}.transformer.{i}", d, d * config.mlp_ratio)
    yield from affine(f"{name}.norm", (d,))
    yield from _conv_norm(f"{name}.conv_proj", (c, d, 1, 1))
    yield from _conv_norm(f"{name}.conv_fusion", (c, 2 * c, 3, 3))


def _conv_norm(name: str, shape: Shape) -> Named:
    yield f"{name}.conv.weight", shape
    yield from batch_norm_parameters(f"{name}.bn", shape[0])
