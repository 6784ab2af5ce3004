"""HRViT (Gu et al. 2021, arXiv:2111.01236): HRNet's parallel branches, made of cross-shaped window attention.

The file reads from small to large: the attention, the diversity-enhanced shortcut, MixCFN, the block, a stage of branches, the
fusion between them, the network. Segmentation heads are in `hrvit_heads`. Parameter names are those of the official repository.
Where paper and released code differ (order of Hardswish and projection, the shortcut's GELU, -100 for padded keys) this
follows the code.
"""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass

from refvit.errors import ConfigError, ShapeError
from refvit.graph.ir import Array
from refvit.graph.trace import block
from refvit.models.hrnet import classifier, classifier_parameters, conv_bn, conv_bn_parameters
from refvit.models.layers import Named, affine, batch_norm_parameters
from refvit.ops import batch_norm, concat, conv2d, gelu, hardswish, layer_norm, linear, relu, resize, stripe_attention
from refvit.weights.params import Params

Pyramid = tuple[int, int, int, int]


MAX_STRIPE = 32


@dataclass(frozen=True)
class HRViTConfig:
    """Four values are those of the branches at strides 4, 8, 16 and 32."""

    widths: Pyramid
    dim_head: int  # of the attention; halved with the channels where a branch has no more
    expansion: Pyramid  # of MixCFN
    last: tuple[Pyramid, Pyramid]  # blocks in the fifth and the sixth module; the others are the same in every variant
    stripes: Pyramid = (1, 2, 7, 7)
    stem_width: int = 64
    head: str = "classification"  # "segformer" or "upernet"
    head_width: int = 256  # channels of a segmentation head
    num_classes: int = 1000
    eps: float = 1e-5  # of every norm

    def __post_init__(self) -> None:
        if max(self.stripes) > MAX_STRIPE:  # no tensor has this size, and memory grows with it
            raise ConfigError(f"stripes up to {MAX_STRIPE} wide expected, got {self.stripes}")

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Blocks by module and branch."""
        return (1,), (1, 1), (1, 1, 6), (1, 1, 6), *self.last


# fmt: off
VARIANTS = {
    #                        widths               dim_head  expansion     blocks of the last two modules
    "hrvit_b1": HRViTConfig((32, 64, 128, 256),   32,       (4, 4, 4, 4), ((1, 1, 6, 2), (1, 1, 2, 2))),
    "hrvit_b2": HRViTConfig((48, 96, 240, 384),   24,       (2, 3, 3, 3), ((1, 1, 6, 2), (1, 1, 6, 2))),
    "hrvit_b3": HRViTConfig((64, 128, 256, 512),  32,       (2, 2, 2, 2), ((1, 1, 6, 3), (1, 1, 6, 3))),
}
# fmt: on


def to_map(x: Array, h: int, w: int) -> Array:
    """Tokens (n, h w, c) -> (n, c, h, w)."""
    return x.transpose(0, 2, 1).reshape(x.shape[0], x.shape[2], h, w)


def to_tokens(x: Array) -> Array:
    """(n, c, h, w) -> tokens (n, h w, c), row by row."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h * w).transpose(0, 2, 1)


@block
def attention(x: Array, p: Params, *, size: tuple[int, int], dim_head: int, stripe: int, eps: float) -> Array:
    """Cross-shaped window attention whose keys are its values, with a parallel depthwise path. x (n, h w, c) -> same.

    Half of the channels attends within horizontal stripes, the other within vertical ones (section 3.2).
    """
    n, l, c = x.shape
    half = c // 2
    d = min(dim_head, half)
    qv = linear(x, **p["to_qkv"])
    q, v = to_map(qv[:, :, :c], *size), to_map(qv[:, :, c:], *size)
    path = conv2d(hardswish(v), **p["parallel_conv"][1], padding=1, groups=c)
    rows = stripe_attention(q[:, :half], v[:, :half], v[:, :half], stripe=stripe, num_heads=half // d, scale=d**-0.5)
    q, v = q[:, half:].transpose(0, 1, 3, 2), v[:, half:].transpose(0, 1, 3, 2)  # (n, c / 2, w, h)
    columns = stripe_attention(q, v, v, stripe=stripe, num_heads=half // d, scale=d**-0.5).transpose(0, 1, 3, 2)
    y = linear(hardswish(to_tokens(concat(rows, columns, axis=1) + path)), **p["to_out"][0])
    return batch_norm(y.reshape(n * l, c), **p["attn_bn"], eps=eps).reshape(n, l, c)


def fold_width(c: int) -> int:
    """p of the diversity-enhanced shortcut: the power of two next to sqrt(c)."""
    return 1 << math.ceil(math.floor(math.log2(c)) / 2)


@block
def diversity_shortcut(x: Array, p: Params) -> Array:
    """Diversity-enhanced shortcut: a token as a k x p matrix, projected from both sides, GELU between. x (n, l, c) -> same."""
    n, l, c = x.shape
    width = fold_width(c)
    y = linear(x.reshape(n, l, c // width, width), **p["proj_right"]).swapaxes(-1, -2)  # (n, l, p, k)
    return linear(gelu(y, approximate="none"), **p["proj_left"]).swapaxes(-1, -2).reshape(n, l, c)


@block
def mix_cfn(x: Array, p: Params, *, size: tuple[int, int]) -> Array:
    """Mixed-scale feed-forward: half the hidden channels see 3x3 pixels, the others 5x5. x (n, h w, c) -> same."""
    y = to_map(linear(x, **p["fc1"]), *size)
    half = y.shape[1] // 2
    near = conv2d(y[:, :half], **p["conv"]["conv_3"], padding=1, groups=half)
    far = conv2d(y[:, half:], **p["conv"]["conv_5"], padding=2, groups=half)
    return linear(to_tokens(gelu(concat(near, far, axis=1), approximate="none")), **p["fc2"])


@block
def hrvit_block(x: Array, p: Params, *, size: tuple[int, int], dim_head: int, stripe: int, eps: float) -> Array:
    """Attention and shortcut added to the tokens, then MixCFN (figure 3). x (n, h w, c) -> same."""
    y = attention(layer_norm(x, **p["attn_norm"], eps=eps), p["attn"], size=size, dim_head=dim_head, stripe=stripe, eps=eps)
    x = x + y + diversity_shortcut(x, p["des"])
    return x + mix_cfn(layer_norm(x, **p["ffn_norm"], eps=eps), p["ffn"], size=size)


@block
def patch_embed(x: Array, p: Params, *, eps: float) -> Array:
    """1x1 and depthwise 3x3 convolutions, then a norm of the tokens. x (n, c, h, w) -> (n, h w, k)."""
    x = conv2d(x, **p["proj"][0])
    x = conv2d(x, **p["proj"][1], padding=1, groups=x.shape[1])
    return layer_norm(to_tokens(x), **p["norm"], eps=eps)


@block
def stage(xs: list[Array], p: Params, *, blocks: tuple[int, ...], config: HRViTConfig) -> list[Array]:
    """The blocks of every branch. Maps in, maps out."""
    ys = []
    for r, (x, count) in enumerate(zip(xs, blocks, strict=True)):
        size = x.shape[2:]
        y = patch_embed(x, p["patch_embed"][r], eps=config.eps)
        for b in range(count):
            branch = p["branches"][r][b]
            y = hrvit_block(y, branch, size=size, dim_head=config.dim_head, stripe=config.stripes[r], eps=config.eps)
        ys.append(to_map(layer_norm(y, **p["norm"][r], eps=config.eps), *size))
    return ys


@block
def exchange(x: Array, p: Params, *, source: int, target: int, eps: float) -> Array:
    """Branch `source` as branch `target` takes it: 1x1 and nearest upsampling, or one wide depthwise step down and 1x1."""
    factor = 2 ** abs(source - target)
    if source > target:
        x = conv_bn(x, p[0], p[1], eps=eps)
        return resize(x, size=(x.shape[2] * factor, x.shape[3] * factor), mode="nearest", align_corners=False)
    x = conv2d(x, **p[0], stride=factor, padding=factor // 2, groups=x.shape[1])
    return conv_bn(batch_norm(x, **p[1], eps=eps), p[2], p[3], eps=eps)


def fuse(xs: list[Array], p: Params, *, outputs: int, eps: float) -> list[Array]:
    """Every branch becomes the GELU of the sum of all (dense fusion, figure 2). With one branch that is the GELU alone."""
    ys = []
    for i in range(outputs):
        terms = [x if i == j else exchange(x, p["blocks"][i][j], source=j, target=i, eps=eps) for j, x in enumerate(xs)]
        ys.append(gelu(functools.reduce(operator.add, terms), approximate="none"))
    return ys


@block
def stem(x: Array, p: Params, *, eps: float) -> Array:
    """Two convolutions of stride 2. x (n, 3, h, w) -> (n, 64, h/4, w/4)."""
    x = relu(conv_bn(x, p["conv1"], p["bn1"], eps=eps, stride=2))
    return relu(conv_bn(x, p["conv2"], p["bn2"], eps=eps, stride=2))


def backbone(x: Array, p: Params, *, config: HRViTConfig) -> list[Array]:
    """x (n, 3, h, w), sides multiples of 32 -> four maps at strides 4, 8, 16 and 32."""
    if x.shape[2] % 32 or x.shape[3] % 32:
        raise ShapeError(f"the image is {x.shape[2]}x{x.shape[3]}, both must be multiples of 32")
    xs = [stem(x, p["stem"], eps=config.eps)]
    for m, blocks in enumerate(config.blocks):
        fusion = p["features"][2 * m] if len(blocks) > 1 else p
        xs = fuse(xs, fusion, outputs=len(blocks), eps=config.eps)
        xs = stage(xs, p["features"][2 * m + 1], blocks=blocks, config=config)
    return xs


@block
def hrvit(x: Array, p: Params, *, config: HRViTConfig) -> Array:
    """x (n, 3, h, w), sides multiples of 32 -> logits (n, classes)."""
    return classifier(backbone(x, p, config=config), p["head"], eps=config.eps)


def parameters(config: HRViTConfig) -> Named:
    """Name and shape of every parameter of the classifier."""
    yield from backbone_parameters(config)
    yield from classifier_parameters(config.widths, config.num_classes, bias=True, prefix="head.")


def backbone_parameters(config: HRViTConfig) -> Named:
    """Name and shape of every parameter of the backbone."""
    middle = config.stem_width // 2
    yield from conv_bn_parameters("stem.conv1", "stem.bn1", (middle, 3, 3, 3), bias=True)
    yield from conv_bn_parameters("stem.conv2", "stem.bn2", (config.stem_width, middle, 3, 3), bias=True)
    widths: tuple[int, ...] = (config.stem_width,)
    for m, blocks in enumerate(config.blocks):
        outputs = len(blocks)
        targets = (*widths, *config.widths[len(widths) : outputs])
        for i in range(outputs):
            for j, c in enumerate(widths):
                yield from _exchange(f"features.{2 * m}.blocks.{i}.{j}", c, targets[i], i - j)
        for r, count in enumerate(blocks):
            yield from _stage_branch(f"features.{2 * m + 1}", r, targets[r], count, config)
        widths = config.widths[:outputs]


def _exchange(name: str, c: int, k: int, down: int) -> Named:
    if down > 0:
        kernel = 2**down + 1
        yield from conv_bn_parameters(f"{name}.0", f"{name}.1", (c, 1, kernel, kernel))
        yield from conv_bn_parameters(f"{name}.2", f"{name}.3", (k, c, 1, 1), bias=True)
    elif down < 0:
        yield from conv_bn_parameters(f"{name}.0", f"{name}.1", (k, c, 1, 1), bias=True)


def _stage_branch(name: str, r: int, c_in: int, count: int, config: HRViTConfig) -> Named:
    c = config.widths[r]
    yield from affine(f"{name}.patch_embed.{r}.proj.0", (c, c_in, 1, 1))
    yield from affine(f"{name}.patch_embed.{r}.proj.1", (c, 1, 3, 3))
    yield from affine(f"{name}.patch_embed.{r}.norm", (c,))
    hidden, width = c * config.expansion[r], fold_width(c)
    for b in range(count):
        inner = f"{name}.branches.{r}.{b}"
        yield from affine(f"{inner}.attn_norm", (c,))
        yield from affine(f"{inner}.attn.to_qkv", (2 * c, c))
        yield from affine(f"{inner}.attn.parallel_conv.1", (c, 1, 3, 3))
        yield from affine(f"{inner}.attn.to_out.0", (c, c))
        yield from batch_norm_parameters(f"{inner}.attn.attn_bn", c)
        yield from affine(f"{inner}.des.proj_right", (width, width))
        yield from affine(f"{inner}.des.proj_left", (c // width, c // width))
        yield from affine(f"{inner}.ffn_norm", (c,))
        yield from affine(f"{inner}.ffn.fc1", (hidden, c))
        yield from affine(f"{inner}.ffn.conv.conv_3", (hidden // 2, 1, 3, 3))
        yield from affine(f"{inner}.ffn.conv.conv_5", (hidden // 2, 1, 5, 5))
        yield from affine(f"{inner}.ffn.fc2", (c, hidden))
    yield from affine(f"{name}.norm.{r}", (c,))
