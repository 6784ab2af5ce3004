"""HRNet's other answers: joints of a person, classes of pixels, and classes of pixels seen through object regions (OCR).

Pose: Sun et al. 2019 (arXiv:1902.09212). Segmentation: Wang et al. 2019 (HRNetV2). OCR: Yuan et al. 2020 (arXiv:1909.11065).
Outputs have stride 4 and are neither resized nor normalised. Parameter names are those of the official repositories.
"""

from __future__ import annotations

from dataclasses import replace

from refvit.graph.ir import Array
from refvit.graph.trace import block
from refvit.models.hrnet import SMALL_V1, SMALL_V2, VARIANTS, HRNetConfig, backbone, backbone_parameters, conv_bn
from refvit.models.hrnet import conv_bn_parameters as conv_bn_names
from refvit.models.layers import Named, affine
from refvit.ops import batch_norm, concat, conv2d, relu, resize, softmax
from refvit.weights.params import Params

REGION_WIDTH, KEY_WIDTH = 512, 256  # of OCR's pixel features and of its queries, keys and values
CITYSCAPES, COCO_JOINTS = 19, 17

POSE_VARIANTS = {f"hrnet_w{w}_pose": replace(VARIANTS[f"hrnet_w{w}"], head="pose", num_classes=COCO_JOINTS) for w in (32, 48)}
SEGMENTATION_VARIANTS = {
    f"{name}_seg": replace(config, head="segmentation", num_classes=CITYSCAPES, upsample="bilinear")
    for name, config in {
        "hrnet_w18_small": SMALL_V1,
        "hrnet_w18_small_v2": SMALL_V2,
        "hrnet_w18": VARIANTS["hrnet_w18"],
        "hrnet_w48": VARIANTS["hrnet_w48"],
    }.items()
}
OCR_VARIANTS = {"hrnet_w48_ocr": replace(SEGMENTATION_VARIANTS["hrnet_w48_seg"], head="ocr", align_corners=True)}


@block
def hrnet_pose(x: Array, p: Params, *, config: HRNetConfig) -> Array:
    """x (n, 3, h, w), sides multiples of 32 -> heatmaps (n, joints, h/4, w/4)."""
    return conv2d(backbone(x, p, config=config)[0], **p["final_layer"])


def features(x: Array, p: Params, *, config: HRNetConfig) -> Array:
    """All branches at the finest resolution, side by side. x (n, 3, h, w) -> (n, 15 width, h/4, w/4)."""
    xs = backbone(x, p, config=config)
    size = xs[0].shape[2:]
    ups = [resize(x, size=size, mode="bilinear", align_corners=config.align_corners) for x in xs[1:]]
    return concat(xs[0], *ups, axis=1)


@block
def pixel_classifier(x: Array, p: Params, *, eps: float) -> Array:
    """1x1 convolution, norm, ReLU, 1x1 convolution to classes. x (n, c, h, w) -> (n, classes, h, w)."""
    x = relu(batch_norm(conv2d(x, **p[0]), **p[1], eps=eps))
    return conv2d(x, **p[3])


@block
def hrnet_segmentation(x: Array, p: Params, *, config: HRNetConfig) -> Array:
    """x (n, 3, h, w) of any size -> logits (n, classes, h/4, w/4)."""
    return pixel_classifier(features(x, p, config=config), p["last_layer"], eps=config.batch_norm_eps)


@block
def conv_bn_relu(x: Array, p: Params, *, eps: float, names: tuple[tuple[str, ...], ...] = (("0",), ("1", "0"))) -> Array:
    """A chain of convolution, norm and ReLU; `names` are the paths of convolution and norm in turn."""
    for conv, bn in zip(names[::2], names[1::2], strict=True):
        x = relu(conv_bn(x, _walk(p, conv), _walk(p, bn), eps=eps))
    return x


def _walk(p: Params, path: tuple[str, ...]) -> Params:
    for key in path:
        p = p[key]
    return p


TWICE = (("0",), ("1", "0"), ("2",), ("3", "0"))


@block
def object_context(x: Array, p: Params, *, regions: Array, eps: float) -> Array:
    """Every pixel asks the object regions (n, 512, k, 1) what it is part of (equations 2 to 4). x (n, 512, h, w) -> same."""
    n, _, h, w = x.shape
    query = conv_bn_relu(x, p["f_pixel"], eps=eps, names=TWICE).reshape(n, KEY_WIDTH, h * w).transpose(0, 2, 1)
    key = conv_bn_relu(regions, p["f_object"], eps=eps, names=TWICE).reshape(n, KEY_WIDTH, -1)  # (n, 256, k)
    value = conv_bn_relu(regions, p["f_down"], eps=eps).reshape(n, KEY_WIDTH, -1).transpose(0, 2, 1)  # (n, k, 256)
    similarity = softmax((query @ key) * KEY_WIDTH**-0.5, axis=-1)  # (n, h w, k)
    context = (similarity @ value).transpose(0, 2, 1).reshape(n, KEY_WIDTH, h, w)
    return conv_bn_relu(context, p["f_up"], eps=eps)


def region_representations(x: Array, aux: Array) -> Array:
    """The mean feature of every class, weighted by where the auxiliary head sees it (equation 1). -> (n, 512, k, 1)"""
    n, c, h, w = x.shape
    weights = softmax(aux.reshape(n, aux.shape[1], h * w), axis=-1)  # over the pixels
    regions = weights @ x.reshape(n, c, h * w).transpose(0, 2, 1)  # (n, k, 512)
    return regions.transpose(0, 2, 1).reshape(n, c, aux.shape[1], 1)


@block
def hrnet_ocr(x: Array, p: Params, *, config: HRNetConfig) -> Array:
    """x (n, 3, h, w) of any size -> logits (n, classes, h/4, w/4). The auxiliary head's are the intermediate "aux_head"."""
    eps = config.batch_norm_eps
    x = features(x, p, config=config)
    aux = pixel_classifier(x, p["aux_head"], eps=eps)
    x = relu(conv_bn(x, p["conv3x3_ocr"][0], p["conv3x3_ocr"][1], eps=eps))
    head = p["ocr_distri_head"]
    context = object_context(x, head["object_context_block"], regions=region_representations(x, aux), eps=eps)
    x = conv_bn_relu(concat(context, x, axis=1), head["conv_bn_dropout"], eps=eps)
    return conv2d(x, **p["cls_head"])


def pose_parameters(config: HRNetConfig) -> Named:
    """Name and shape of every parameter."""
    yield from backbone_parameters(config)
    yield from affine("final_layer", (config.num_classes, config.width, 1, 1))


def segmentation_parameters(config: HRNetConfig) -> Named:
    """Name and shape of every parameter."""
    yield from backbone_parameters(config)
    yield from _pixel_classifier("last_layer", config)


def ocr_parameters(config: HRNetConfig) -> Named:
    """Name and shape of every parameter."""
    yield from backbone_parameters(config)
    yield from _pixel_classifier("aux_head", config)
    wide, narrow = REGION_WIDTH, KEY_WIDTH
    yield from conv_bn_names("conv3x3_ocr.0", "conv3x3_ocr.1", (wide, sum(config.widths), 3, 3), config.head_bias)
    context = "ocr_distri_head.object_context_block"
    for name in ("f_pixel", "f_object"):
        yield from conv_bn_names(f"{context}.{name}.0", f"{context}.{name}.1.0", (narrow, wide, 1, 1))
        yield from conv_bn_names(f"{context}.{name}.2", f"{context}.{name}.3.0", (narrow, narrow, 1, 1))
    yield from conv_bn_names(f"{context}.f_down.0", f"{context}.f_down.1.0", (narrow, wide, 1, 1))
    yield from conv_bn_names(f"{context}.f_up.0", f"{context}.f_up.1.0", (wide, narrow, 1, 1))
    yield from conv_bn_names("ocr_distri_head.conv_bn_dropout.0", "ocr_distri_head.conv_bn_dropout.1.0", (wide, 2 * wide, 1, 1))
    yield from affine("cls_head", (config.num_classes, wide, 1, 1))


def _pixel_classifier(name: str, config: HRNetConfig) -> Named:
    total = sum(config.widths)
    yield from conv_bn_names(f"{name}.0", f"{name}.1", (total, total, 1, 1), config.head_bias)
    yield from affine(f"{name}.3", (config.num_classes, total, 1, 1))
