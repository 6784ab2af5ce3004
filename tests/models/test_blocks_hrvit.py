"""HRViT's blocks, each called alone, against loops over pixels, heads and channels written from the paper and its code."""

import functools
import itertools
import math

import numpy as np
import pytest
from helpers.blocks import EPS, check, draw, normal

from refvit.models import hrvit, hrvit_heads


def each(function, x):
    return np.array([function(v) for v in x.flat], x.dtype).reshape(x.shape)


gelu = functools.partial(each, lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2)
hardswish = functools.partial(each, lambda v: v * min(max(v + 3, 0), 6) / 6)


def linear(x, p):
    features = zip(p["weight"], p["bias"], strict=True)
    return np.stack([(x * row).sum(-1) + bias for row, bias in features], axis=-1)


def layer_norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPS) * p["weight"] + p["bias"]


def norm(x, p):
    """Batch norm of tokens or maps: channels are axis 1."""
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        y[:, c] = (x[:, c] - p["running_mean"][c]) / np.sqrt(p["running_var"][c] + EPS) * p["weight"][c] + p["bias"][c]
    return y


def conv(x, p, stride=1):
    """The windows of a map times the kernel, half a kernel of zeros around the map; a weight of one channel is depthwise."""
    k, depth, r, _ = p["weight"].shape
    x = np.pad(x, ((0, 0), (0, 0), (r // 2, r // 2), (r // 2, r // 2)))
    y = np.empty((len(x), k, (x.shape[2] - r) // stride + 1, (x.shape[3] - r) // stride + 1), x.dtype)
    for b, o, i, j in np.ndindex(y.shape):
        channels = slice(o, o + 1) if depth == 1 else slice(None)
        window = x[b, channels, i * stride : i * stride + r, j * stride : j * stride + r]
        y[b, o, i, j] = (window * p["weight"][o]).sum() + (p["bias"][o] if "bias" in p else 0)
    return y


def to_map(x, h, w):
    return np.moveaxis(x.reshape(len(x), h, w, -1), 3, 1)


def to_tokens(x):
    return np.stack([x[:, :, i, j] for i, j in np.ndindex(x.shape[2:])], axis=1)


def attention(x, p, size, dim_head, stripe):
    """Pixel by pixel and head by head: heads of the first half look along rows, those of the second along columns."""
    (n, _, c), (h, w) = x.shape, size
    qv = linear(x, p["to_qkv"])
    q, v = to_map(qv[:, :, :c], h, w), to_map(qv[:, :, c:], h, w)
    d = min(dim_head, c // 2)
    y = conv(hardswish(v), p["parallel_conv"][1])
    for b, head, i, j in np.ndindex(n, c // d, h, w):
        own = slice(head * d, (head + 1) * d)
        if own.start < c // 2:
            seen = [(r, s) for r in range(i - i % stripe, i - i % stripe + stripe) for s in range(w)]
        else:
            seen = [(r, s) for s in range(j - j % stripe, j - j % stripe + stripe) for r in range(h)]
        scores, values = [], []
        for r, s in seen:
            inside = r < h and s < w  # beyond the last row or column there are zeros whose score is -100
            scores.append((q[b, own, i, j] * v[b, own, r, s]).sum() / math.sqrt(d) if inside else x.dtype.type(-100))
            values.append(v[b, own, r, s] if inside else np.zeros(d, x.dtype))
        exps = [np.exp(score - max(scores)) for score in scores]
        y[b, own, i, j] += sum(e / sum(exps) * value for e, value in zip(exps, values, strict=True))
    y = linear(hardswish(to_tokens(y)), p["to_out"][0])
    return norm(y.transpose(0, 2, 1), p["attn_bn"]).transpose(0, 2, 1)


def diversity_shortcut(x, p):
    """Entry (row, column) of the k x p matrix is channel row * p + column."""
    rows, columns = len(p["proj_left"]["weight"]), len(p["proj_right"]["weight"])
    y = np.empty_like(x)
    for i in np.ndindex(x.shape[:2]):
        m = gelu(linear(x[i].reshape(rows, columns), p["proj_right"]))  # mixes the columns of every row
        for column in range(columns):
            y[i][column::columns] = linear(m[:, column], p["proj_left"])  # and the rows of every column
    return y


def mix_cfn(x, p, size):
    y = to_map(linear(x, p["fc1"]), *size)
    half = y.shape[1] // 2
    near, far = conv(y[:, :half], p["conv"]["conv_3"]), conv(y[:, half:], p["conv"]["conv_5"])
    return linear(gelu(to_tokens(np.concatenate([near, far], 1))), p["fc2"])


def hrvit_block(x, p, size, dim_head, stripe):
    x = x + attention(layer_norm(x, p["attn_norm"]), p["attn"], size, dim_head, stripe) + diversity_shortcut(x, p["des"])
    return x + mix_cfn(layer_norm(x, p["ffn_norm"]), p["ffn"], size)


def patch_embed(x, p):
    return layer_norm(to_tokens(conv(conv(x, p["proj"][0]), p["proj"][1])), p["norm"])


def exchange(x, p, source, target):
    factor = 2 ** abs(source - target)
    if source < target:
        return norm(conv(norm(conv(x, p[0], stride=factor), p[1]), p[2]), p[3])
    return norm(conv(x, p[0]), p[1]).repeat(factor, 2).repeat(factor, 3)


def fuse(xs, p, outputs):
    ys = []
    for i in range(outputs):
        terms = [x if i == j else exchange(x, p["blocks"][i][j], j, i) for j, x in enumerate(xs)]
        ys.append(gelu(sum(terms[1:], terms[0])))
    return ys


def upsample(x, size):
    """Bilinear between the two nearest rows and columns; pixels are areas, the border is repeated."""

    def two(i, old, new):
        s = max(0.0, (i + 0.5) * old / new - 0.5)
        return (int(s), 1 - s % 1), (min(int(s) + 1, old - 1), s % 1)

    y = np.zeros((*x.shape[:2], *size), x.dtype)
    for i, j in np.ndindex(size):
        for (r, u), (s, v) in itertools.product(two(i, x.shape[2], size[0]), two(j, x.shape[3], size[1])):
            y[:, :, i, j] += u * v * x[:, :, r, s]
    return y


def pool(x, side):
    """Means of side x side areas that cover the map, rounded outwards."""
    y = np.empty((*x.shape[:2], side, side), x.dtype)
    h, w = x.shape[2:]
    for i, j in np.ndindex(side, side):
        rows = range(i * h // side, math.ceil((i + 1) * h / side))
        columns = range(j * w // side, math.ceil((j + 1) * w / side))
        y[:, :, i, j] = sum(x[:, :, r, s] for r in rows for s in columns) / (len(rows) * len(columns))
    return y


def conv_module(x, p):
    return np.maximum(norm(conv(x, p["conv"]), p["bn"]), 0)


def segformer_head(xs, p):
    ys = [upsample(conv(x, p["convs"][r]["conv"]), xs[0].shape[2:]) for r, x in enumerate(xs)]
    return conv(conv_module(np.concatenate(ys, 1), p["fusion_conv"]), p["conv_seg"])


def upernet_head(xs, p):
    sizes = [x.shape[2:] for x in xs]
    pooled = [upsample(conv_module(pool(xs[3], side), p["psp_modules"][i][1]), sizes[3]) for i, side in enumerate((1, 2, 3, 6))]
    y3 = conv_module(np.concatenate([xs[3], *pooled], 1), p["bottleneck"])
    y2 = conv_module(xs[2], p["lateral_convs"][2]) + upsample(y3, sizes[2])
    y1 = conv_module(xs[1], p["lateral_convs"][1]) + upsample(y2, sizes[1])
    y0 = conv_module(xs[0], p["lateral_convs"][0]) + upsample(y1, sizes[0])
    ys = [upsample(conv_module(y, p["fpn_convs"][i]), sizes[0]) for i, y in enumerate((y0, y1, y2))]
    return conv(conv_module(np.concatenate([*ys, upsample(y3, sizes[0])], 1), p["fpn_bottleneck"]), p["conv_seg"])


FIELDS = {"stem_width": 6, "head_width": 5, "num_classes": 3, "eps": EPS}
SMALL = hrvit.HRViTConfig((8, 16, 16, 32), 8, expansion=(2, 3, 1, 2), last=((1, 1, 1, 1), (1, 1, 1, 1)), **FIELDS)
ALL = draw(hrvit_heads.upernet_parameters(SMALL))


def part(prefix, flat=ALL):
    """The parameters of one block."""
    return {name.removeprefix(prefix): a for name, a in flat.items() if name.startswith(prefix)}


def both(ours, loops, **attrs):
    return functools.partial(ours, eps=EPS, **attrs), functools.partial(loops, **attrs)


# stripes that divide, do not, exceed the map; heads of 2, of 4, and of 4 because half of the channels is less than 8
FITTING = [((4, 6), 2, 4), ((7, 7), 7, 4), ((3, 5), 1, 2)]
PADDED = [((5, 3), 2, 4), ((3, 4), 2, 2), ((9, 8), 7, 4), ((2, 3), 7, 8), ((1, 1), 7, 8)]


@pytest.mark.parametrize(("size", "stripe", "dim_head"), FITTING + PADDED)
def test_attention(size, stripe, dim_head):
    functions = both(hrvit.attention, attention, size=size, stripe=stripe, dim_head=dim_head)
    check(*functions, 2 * normal(2, size[0] * size[1], 8), part("features.1.branches.0.0.attn."))


def test_padded_keys_are_masked_by_minus_a_hundred():
    """Biases push every score of a real key to about -100, so that the zeros beyond the border weigh as much as a pixel."""
    flat = part("features.1.branches.0.0.attn.") | {"to_qkv.bias": np.repeat([10.0, -5.0], 8)}
    check(*both(hrvit.attention, attention, size=(3, 3), stripe=2, dim_head=4), normal(2, 9, 8) / 8, flat)


FOLDS = {32: 8, 64: 8, 128: 16, 256: 16, 48: 8, 96: 8, 240: 16, 384: 16, 512: 32}  # of every width of b1, b2 and b3


@pytest.mark.parametrize("c", FOLDS)
def test_diversity_shortcut(c):
    p, k = FOLDS[c], c // FOLDS[c]
    names = [("proj_right.weight", (p, p)), ("proj_right.bias", (p,)), ("proj_left.weight", (k, k)), ("proj_left.bias", (k,))]
    check(hrvit.diversity_shortcut, diversity_shortcut, normal(2, 2, c), draw(names))
    assert {c for config in hrvit.VARIANTS.values() for c in config.widths} == set(FOLDS)


@pytest.mark.parametrize("size", [(4, 3), (1, 6), (2, 2)])
def test_mix_cfn(size):
    ours, loops = (functools.partial(f, size=size) for f in (hrvit.mix_cfn, mix_cfn))
    check(ours, loops, normal(2, size[0] * size[1], 8), part("features.1.branches.0.0.ffn."))


@pytest.mark.parametrize(("size", "stripe"), [((3, 4), 2), ((4, 3), 1)])
def test_hrvit_block(size, stripe):
    functions = both(hrvit.hrvit_block, hrvit_block, size=size, stripe=stripe, dim_head=4)
    check(*functions, 2 * normal(2, 12, 16), part("features.3.branches.1.0."))


def test_patch_embed():
    check(*both(hrvit.patch_embed, patch_embed), normal(2, 6, 3, 5), part("features.1.patch_embed.0."))


def test_stage():
    """Every branch has its own embedding, blocks, stripe width and norm."""

    def loops(xs, p):
        ys = [patch_embed(x, p["patch_embed"][r]) for r, x in enumerate(xs)]
        for r, b in [(0, 0), (1, 0), *((2, b) for b in range(6))]:
            ys[r] = hrvit_block(ys[r], p["branches"][r][b], xs[r].shape[2:], 8, (1, 2, 7)[r])
        return [to_map(layer_norm(y, p["norm"][r]), *xs[r].shape[2:]) for r, y in enumerate(ys)]

    xs = [normal(1, c, *size, seed=c) for c, size in ((8, (4, 8)), (16, (2, 4)), (16, (1, 2)))]
    check(functools.partial(hrvit.stage, blocks=(1, 1, 6), config=SMALL), loops, xs, part("features.5."))


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(range(4), 2)))
def test_exchange(source, target):
    x = normal(2, SMALL.widths[source], *((2, 3) if source > target else (9, 16)))
    functions = both(hrvit.exchange, exchange, source=source, target=target)
    check(*functions, x, part(f"features.10.blocks.{target}.{source}."))


@pytest.mark.parametrize(("module", "branches", "outputs"), [(0, 1, 1), (1, 1, 2), (2, 2, 3), (5, 4, 4)])
def test_fuse(module, branches, outputs):
    """The first has one branch and no parameters: the GELU of the stem."""
    flat = part(f"features.{2 * module}.")
    assert bool(flat) == (module > 0)
    xs = [normal(2, SMALL.widths[r], 8 >> r, 16 >> r, seed=r) for r in range(branches)]
    check(*both(hrvit.fuse, fuse, outputs=outputs), xs, flat)


@pytest.mark.parametrize("loops", [segformer_head, upernet_head])
@pytest.mark.parametrize("sizes", [((13, 18), (7, 9), (4, 5), (2, 3)), ((8, 16), (4, 8), (2, 4), (1, 2))], ids=["odd", "even"])
def test_heads(loops, sizes):
    xs = [normal(2, c, *size, seed=r) for r, (c, size) in enumerate(zip(SMALL.widths, sizes, strict=True))]
    flat = ALL if loops is upernet_head else draw(hrvit_heads.segformer_parameters(SMALL))
    check(*both(getattr(hrvit_heads, loops.__name__), loops), xs, part("decode_head.", flat))
