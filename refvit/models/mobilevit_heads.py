"""MobileViT for segmentation (DeepLabv3, Chen et al. 2017) and detection (SSDLite, Liu et al. 2016, Sandler et al. 2018).

As published with cvnets v0.1: the backbone keeps SiLU, the heads have ReLU. Outputs are raw: segmentation logits at the
backbone's stride, class logits and box offsets before softmax and decoding. Parameter names of the heads are those of cvnets.
"""

from __future__ import annotations

from dataclasses import replace

from refvit.graph.ir import Array, Shape
from refvit.graph.trace import block
from refvit.models.layers import Named, affine, batch_norm_parameters
from refvit.models.mobilevit import VARIANTS, MobileViTConfig, backbone, backbone_parameters
from refvit.ops import batch_norm, broadcast, concat, conv2d, mean, relu
from refvit.weights.params import Params

VOC, COCO = 21, 81  # classes, background included
PROJECTED = (512, 256, 256, 128, 128, 64)  # channels of the six maps that SSD looks at
ANCHORS = (6, 6, 6, 6, 6, 4)  # at each of their pixels

DEEPLABV3_VARIANTS = {
    f"{name}_deeplabv3": replace(config, head="deeplabv3", output_stride=16, num_classes=VOC)
    for name, config in VARIANTS.items()
}
SSDLITE_VARIANTS = {f"{name}_ssdlite": replace(config, head="ssdlite", num_classes=COCO) for name, config in VARIANTS.items()}


@block
def conv_layer(
    x: Array, p: Params, *, eps: float, act: bool = True, stride: int = 1, dilation: int = 1, groups: int = 1
) -> Array:
    """cvnets' ConvLayer: convolution, padded so that stride 1 keeps the size; batch norm if `p` has one; ReLU."""
    conv = p["block"]["conv"]
    padding = conv["weight"].shape[-1] // 2 * dilation
    x = conv2d(x, **conv, stride=stride, padding=padding, dilation=dilation, groups=groups)
    if "norm" in p["block"]:
        x = batch_norm(x, **p["block"]["norm"], eps=eps)
    return relu(x) if act else x


@block
def separable(x: Array, p: Params, *, eps: float, act: bool, stride: int = 1) -> Array:
    """Depthwise 3x3 with norm and no activation, then 1x1."""
    x = conv_layer(x, p["dw_conv"], eps=eps, act=False, stride=stride, groups=x.shape[1])
    return conv_layer(x, p["pw_conv"], eps=eps, act=act)


@block
def aspp(x: Array, p: Params, *, rates: tuple[int, ...], eps: float) -> Array:
    """Atrous spatial pyramid pooling: five views of the map, from a pixel to the whole. (n, c, h, w) -> (n, k, h, w)"""
    n, _, h, w = x.shape
    convs = p["convs"]
    views = [conv_layer(x, convs[0], eps=eps)]
    views += [conv_layer(x, convs[i + 1], eps=eps, dilation=rate) for i, rate in enumerate(rates)]
    pooled = conv_layer(mean(x, axes=(2, 3), keepdims=True), convs[4]["aspp_pool"]["conv_1x1"], eps=eps)
    views.append(broadcast(pooled, shape=(n, pooled.shape[1], h, w)))  # what resizing a single pixel gives
    return conv_layer(concat(*views, axis=1), p["project"], eps=eps)


@block
def mobilevit_deeplabv3(x: Array, p: Params, *, config: MobileViTConfig) -> Array:
    """x (n, 3, h, w) -> logits (n, classes, h/s, w/s) for output stride s."""
    x = backbone(x, p, config=config)[-1]
    x = aspp(x, p["seg_head"]["aspp"]["aspp_layer"], rates=config.rates, eps=config.batch_norm_eps)
    return conv_layer(x, p["seg_head"]["classifier"]["classifier"], eps=config.batch_norm_eps, act=False)


def pyramid(x: Array, p: Params, *, config: MobileViTConfig) -> list[Array]:
    """The maps at strides 16, 32, 64, 128, 256 and the mean of the last, for an image (n, 3, h, w)."""
    eps, extra = config.batch_norm_eps, p["extra_layers"]
    xs = backbone(x, p, config=config)[-2:]
    for name in ("os_64", "os_128", "os_256"):
        xs.append(separable(xs[-1], extra[name], eps=eps, act=True, stride=2))
    xs.append(conv_layer(mean(xs[-1], axes=(2, 3), keepdims=True), extra["os_-1"][1], eps=eps))
    return xs


@block
def ssd_head(x: Array, p: Params, *, eps: float, classes: int) -> Array:
    """x (n, c, h, w) -> (n, h w anchors, 4 + classes), pixels row by row, the anchors of a pixel together."""
    if "proj_layer" in p:
        x = conv_layer(x, p["proj_layer"], eps=eps)
    last = p["loc_cls_layer"]
    x = separable(x, last, eps=eps, act=False) if "dw_conv" in last else conv_layer(x, last, eps=eps, act=False)
    n, c, h, w = x.shape
    return x.transpose(0, 2, 3, 1).reshape(n, h * w * c // (4 + classes), 4 + classes)


@block
def mobilevit_ssdlite(x: Array, p: Params, *, config: MobileViTConfig) -> dict[str, Array]:
    """x (n, 3, h, w) -> {"scores": class logits (n, anchors, classes), "boxes": offsets (n, anchors, 4)}."""
    eps = config.batch_norm_eps
    maps = pyramid(x, p, config=config)
    found = [ssd_head(y, p["ssd_heads"][i], eps=eps, classes=config.num_classes) for i, y in enumerate(maps)]
    y = concat(*found, axis=1)
    return {"scores": y[:, :, 4:], "boxes": y[:, :, :4]}


def deeplabv3_parameters(config: MobileViTConfig) -> Named:
    """Name and shape of every parameter."""
    yield from backbone_parameters(config)
    c, width, name = config.widths[-1], config.aspp_width, "seg_head.aspp.aspp_layer"
    yield from _conv_layer(f"{name}.convs.0", (width, c, 1, 1))
    for i in range(len(config.rates)):
        yield from _conv_layer(f"{name}.convs.{i + 1}", (width, c, 3, 3))
    yield from _conv_layer(f"{name}.convs.4.aspp_pool.conv_1x1", (width, c, 1, 1))
    yield from _conv_layer(f"{name}.project", (width, 5 * width, 1, 1))
    yield from affine("seg_head.classifier.classifier.block.conv", (config.num_classes, width, 1, 1))


def ssdlite_parameters(config: MobileViTConfig) -> Named:
    """Name and shape of every parameter."""
    yield from backbone_parameters(config)
    c = config.widths[-1]
    for name, out in zip(("os_64", "os_128", "os_256"), PROJECTED[2:5], strict=True):
        yield from _conv_layer(f"extra_layers.{name}.dw_conv", (c, 1, 3, 3))
        yield from _conv_layer(f"extra_layers.{name}.pw_conv", (out, c, 1, 1))
        c = out
    yield "extra_layers.os_-1.1.block.conv.weight", (PROJECTED[5], c, 1, 1)
    for i, (c, anchors) in enumerate(zip(PROJECTED, ANCHORS, strict=True)):
        name, k = f"ssd_heads.{i}", anchors * (4 + config.num_classes)
        if i < 2:
            yield from _conv_layer(f"{name}.proj_layer", (c, config.widths[i - 2], 1, 1))
        if i < 5:
            yield from _conv_layer(f"{name}.loc_cls_layer.dw_conv", (c, 1, 3, 3))
        last = f"{name}.loc_cls_layer" + (".pw_conv" if i < 5 else "")
        yield from affine(f"{last}.block.conv", (k, c, 1, 1))


def _conv_layer(name: str, shape: Shape) -> Named:
    yield f"{name}.block.conv.weight", shape
    yield from batch_norm_parameters(f"{name}.block.norm", shape[0])
