"""HRNet (Wang et al. 2019, arXiv:1908.07919; Sun et al. 2019, arXiv:1902.09212): high resolution all the way through.

Four branches at strides 4, 8, 16 and 32 run in parallel and exchange what they know in every module. This file has the
backbone and the classifier; pose, segmentation and OCR heads are in `hrnet_heads`. Parameter names are those of the official
repositories, which timm shares.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass

from refvit.errors import ShapeError
from refvit.graph.ir import Array, Shape
from refvit.graph.trace import block
from refvit.models.layers import Named, batch_norm_parameters
from refvit.ops import batch_norm, conv2d, linear, mean, relu, resize
from refvit.weights.params import Params


@dataclass(frozen=True)
class HRNetConfig:
    """`width` is that of the finest branch, the others double it. Fields after `blocks` differ by task and checkpoint."""

    width: int
    layer1: tuple[int, int]  # bottlenecks and their planes
    modules: tuple[int, int, int]  # in stages 2, 3 and 4
    blocks: int  # basic blocks of a branch in a module
    head: str = "classification"  # "pose", "segmentation" or "ocr"
    num_classes: int = 1000  # joints of a pose
    upsample: str = "nearest"  # between branches; in segmentation "bilinear", or "bilinear_twice" as in mmsegmentation
    align_corners: bool = False  # of the bilinear one
    head_bias: bool = True  # of the head's convolutions before a norm, where the original has one
    batch_norm_eps: float = 1e-5

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Channels of the branches."""
        return self.width, 2 * self.width, 4 * self.width, 8 * self.width


# fmt: off
#                          width  layer1   modules    blocks
SMALL_V1 = HRNetConfig(    16,    (1, 32), (1, 1, 1), 2)
SMALL_V2 = HRNetConfig(    18,    (2, 64), (1, 3, 2), 2)
VARIANTS = {"hrnet_w18_small": SMALL_V1, "hrnet_w18_small_v2": SMALL_V2} | {
    f"hrnet_w{width}": HRNetConfig(width, (4, 64), (1, 4, 3), 4) for width in (18, 30, 32, 40, 44, 48, 64)
}
# fmt: on
INCREASED = (32, 64, 128, 256)  # planes of the classification head's bottlenecks
EXPANSION = 4  # of a bottleneck


def conv_bn(x: Array, conv: Params, bn: Params, *, eps: float, stride: int = 1) -> Array:
    """Convolution, padded so that stride 1 keeps the size, and batch norm."""
    x = conv2d(x, **conv, stride=stride, padding=conv["weight"].shape[-1] // 2)
    return batch_norm(x, **bn, eps=eps)


@block
def basic_block(x: Array, p: Params, *, eps: float) -> Array:
    """Two 3x3 convolutions and the input (He et al. 2015, figure 5 left). x (n, c, h, w) -> same."""
    y = relu(conv_bn(x, p["conv1"], p["bn1"], eps=eps))
    return relu(conv_bn(y, p["conv2"], p["bn2"], eps=eps) + x)


@block
def bottleneck(x: Array, p: Params, *, eps: float) -> Array:
    """1x1, 3x3, 1x1 to four times the planes, and the input, projected where the width changes (figure 5 right)."""
    y = relu(conv_bn(x, p["conv1"], p["bn1"], eps=eps))
    y = relu(conv_bn(y, p["conv2"], p["bn2"], eps=eps))
    y = conv_bn(y, p["conv3"], p["bn3"], eps=eps)
    shortcut = conv_bn(x, p["downsample"][0], p["downsample"][1], eps=eps) if "downsample" in p else x
    return relu(y + shortcut)


@block
def transition(xs: list[Array], p: Params, *, eps: float) -> list[Array]:
    """One more branch, at half the last one's resolution; the others keep theirs, projected where `p` says so."""
    ys = [relu(conv_bn(x, p[i][0], p[i][1], eps=eps)) if str(i) in p else x for i, x in enumerate(xs)]
    new = p[len(xs)][0]
    return [*ys, relu(conv_bn(xs[-1], new[0], new[1], eps=eps, stride=2))]


@block
def exchange(x: Array, p: Params, *, source: int, target: int, size: tuple[int, int], config: HRNetConfig) -> Array:
    """Branch `source` as branch `target` takes it: 1x1 and upsampling to `size`, or 3x3 convolutions of stride 2.

    "bilinear_twice" enlarges by a power of two and then, where that is another size, resizes to `size`.
    """
    eps = config.batch_norm_eps
    if source > target:
        x = conv_bn(x, p[0], p[1], eps=eps)
        if config.upsample == "bilinear_twice":
            factor = 2 ** (source - target)
            x = resize(x, size=(x.shape[2] * factor, x.shape[3] * factor), mode="bilinear", align_corners=False)
            return x if x.shape[2:] == size else resize(x, size=size, mode="bilinear", align_corners=False)
        return resize(x, size=size, mode=config.upsample, align_corners=config.align_corners)
    for k in range(target - source):
        x = conv_bn(x, p[k][0], p[k][1], eps=eps, stride=2)
        x = relu(x) if k < target - source - 1 else x
    return x


@block
def module(xs: list[Array], p: Params, *, config: HRNetConfig, outputs: int) -> list[Array]:
    """Basic blocks in every branch, then each of the first `outputs` branches becomes the sum of all (figure 3)."""
    xs = [branch(x, p["branches"][r], config=config) for r, x in enumerate(xs)]
    ys = []
    for i in range(outputs):
        size = xs[i].shape[2:]
        terms = [
            x if i == j else exchange(x, p["fuse_layers"][i][j], source=j, target=i, size=size, config=config)
            for j, x in enumerate(xs)
        ]
        ys.append(relu(functools.reduce(operator.add, terms)))
    return ys


@block
def branch(x: Array, p: Params, *, config: HRNetConfig) -> Array:
    """The basic blocks of one branch in one module."""
    for b in range(config.blocks):
        x = basic_block(x, p[b], eps=config.batch_norm_eps)
    return x


def backbone(x: Array, p: Params, *, config: HRNetConfig) -> list[Array]:
    """x (n, 3, h, w) -> four maps at strides 4, 8, 16 and 32; only the first for a pose."""
    eps = config.batch_norm_eps
    if config.upsample == "nearest" and (x.shape[2] % 32 or x.shape[3] % 32):
        raise ShapeError(f"the image is {x.shape[2]}x{x.shape[3]}, both must be multiples of 32")
    x = relu(conv_bn(x, p["conv1"], p["bn1"], eps=eps, stride=2))
    x = relu(conv_bn(x, p["conv2"], p["bn2"], eps=eps, stride=2))
    for b in range(config.layer1[0]):
        x = bottleneck(x, p["layer1"][b], eps=eps)
    xs = [x]
    for stage, modules in zip((2, 3, 4), config.modules, strict=True):
        xs = transition(xs, p[f"transition{stage - 1}"], eps=eps)
        for m in range(modules):
            only_finest = config.head == "pose" and stage == 4 and m == modules - 1
            xs = module(xs, p[f"stage{stage}"][m], config=config, outputs=1 if only_finest else stage)
    return xs


@block
def classifier(xs: list[Array], p: Params, *, eps: float) -> Array:
    """Widen the branches, walk down adding each to the next, average, classify (HRNetV2-C). Four maps -> (n, classes)."""
    xs = [bottleneck(x, p["incre_modules"][r][0], eps=eps) for r, x in enumerate(xs)]
    y = xs[0]
    for i, x in enumerate(xs[1:]):
        down = p["downsamp_modules"][i]
        y = x + relu(conv_bn(y, down[0], down[1], eps=eps, stride=2))
    y = relu(conv_bn(y, p["final_layer"][0], p["final_layer"][1], eps=eps))
    return linear(mean(y, axes=(2, 3)), **p["classifier"])


@block
def hrnet(x: Array, p: Params, *, config: HRNetConfig) -> Array:
    """x (n, 3, h, w), sides multiples of 32 -> logits (n, classes)."""
    return classifier(backbone(x, p, config=config), p, eps=config.batch_norm_eps)


def parameters(config: HRNetConfig) -> Named:
    """Name and shape of every parameter of the classifier."""
    yield from backbone_parameters(config)
    yield from classifier_parameters(config.widths, config.num_classes, bias=config.head_bias)


def classifier_parameters(widths: tuple[int, ...], classes: int, *, bias: bool, prefix: str = "") -> Named:
    """Of the classification head on branches of these widths."""
    for r, (c, planes) in enumerate(zip(widths, INCREASED, strict=True)):
        yield from _bottleneck(f"{prefix}incre_modules.{r}.0", c, planes)
    for i in range(3):
        name = f"{prefix}downsamp_modules.{i}"
        below, above = INCREASED[i] * EXPANSION, INCREASED[i + 1] * EXPANSION
        yield from conv_bn_parameters(f"{name}.0", f"{name}.1", (above, below, 3, 3), bias)
    yield from conv_bn_parameters(f"{prefix}final_layer.0", f"{prefix}final_layer.1", (2048, 1024, 1, 1), bias)
    yield f"{prefix}classifier.weight", (classes, 2048)
    yield f"{prefix}classifier.bias", (classes,)


def backbone_parameters(config: HRNetConfig) -> Named:
    """Name and shape of every parameter of the backbone."""
    yield from conv_bn_parameters("conv1", "bn1", (64, 3, 3, 3))
    yield from conv_bn_parameters("conv2", "bn2", (64, 64, 3, 3))
    c, (count, planes) = 64, config.layer1
    for b in range(count):
        yield from _bottleneck(f"layer1.{b}", c, planes)
        c = planes * EXPANSION
    widths = config.widths
    for stage, modules in zip((2, 3, 4), config.modules, strict=True):
        name = f"transition{stage - 1}"
        if stage == 2:  # the only one whose old branch changes its width
            yield from conv_bn_parameters(f"{name}.0.0", f"{name}.0.1", (widths[0], c, 3, 3))
        last = c if stage == 2 else widths[stage - 2]
        new = f"{name}.{stage - 1}.0"
        yield from conv_bn_parameters(f"{new}.0", f"{new}.1", (widths[stage - 1], last, 3, 3))
        for m in range(modules):
            only_finest = config.head == "pose" and stage == 4 and m == modules - 1
            yield from _module(f"stage{stage}.{m}", widths[:stage], 1 if only_finest else stage, config.blocks)


def _module(name: str, widths: tuple[int, ...], outputs: int, blocks: int) -> Named:
    for r, c in enumerate(widths):
        for b in range(blocks):
            for k in (1, 2):
                yield from conv_bn_parameters(
                    f"{name}.branches.{r}.{b}.conv{k}", f"{name}.branches.{r}.{b}.bn{k}", (c, c, 3, 3)
                )
    for i in range(outputs):
        for j in range(len(widths)):
            fuse = f"{name}.fuse_layers.{i}.{j}"
            if j > i:
                yield from conv_bn_parameters(f"{fuse}.0", f"{fuse}.1", (widths[i], widths[j], 1, 1))
            for k in range(i - j):
                out = widths[i] if k == i - j - 1 else widths[j]
                yield from conv_bn_parameters(f"{fuse}.{k}.0", f"{fuse}.{k}.1", (out, widths[j], 3, 3))


def _bottleneck(name: str, c: int, planes: int) -> Named:
    out = planes * EXPANSION
    yield from conv_bn_parameters(f"{name}.conv1", f"{name}.bn1", (planes, c, 1, 1))
    yield from conv_bn_parameters(f"{name}.conv2", f"{name}.bn2", (planes, planes, 3, 3))
    yield from conv_bn_parameters(f"{name}.conv3", f"{name}.bn3", (out, planes, 1, 1))
    if c != out:
        yield from conv_bn_parameters(f"{name}.downsample.0", f"{name}.downsample.1", (out, c, 1, 1))


def conv_bn_parameters(conv: str, bn: str, shape: Shape, bias: bool = False) -> Named:
    """Of one convolution and the norm behind it."""
    yield f"{conv}.weight", shape
    if bias:
        yield f"{conv}.bias", shape[:1]
    yield from batch_norm_parameters(bn, shape[0])
