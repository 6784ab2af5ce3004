"""A convolution is three steps: unfold, matrix product, fold. MobileViT's block keeps the first and the last.

Mehta & Rastegari (2021, section 3.1) introduce their block by this comparison, and this file is that comparison in code.

A convolution looks at the map through windows. *Unfold* (im2col, torch.nn.Unfold) writes each window into a column. The
*matrix product* makes every column k numbers: the kernels are its rows, and no column knows another. *Fold* puts the column
of each window back at its place in the map. What a pixel becomes thus depends on its window alone.

MobileViT's block does the same with patches that do not overlap, and puts a transformer where the matrix product was. But it
does not make a column of each patch: the pixels at one place of all patches (all upper left ones, say) form a sequence, and
there are as many sequences as a patch has pixels. Within a sequence attention mixes what is far apart, and as no sequence is
reordered, folding puts every pixel back where it was. Between the pixels of one patch there is no attention. It is the 3x3
convolution in front that tells a pixel of its neighbours, and so of the other sequences.

The steps are written as loops here, and nothing of what they are compared with is used in them.
"""

import math

import numpy as np
import pytest

from refvit.models import mobilevit
from refvit.ops import conv2d
from refvit.weights.params import Params

EXACT = 1e-12  # of max|expected|: what float64 may differ from the loops
EPS32 = np.finfo(np.float32).eps
EPS = 1e-3  # of the norms here: large, so that another one shows


def unfold(x, kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1)):
    """im2col: x (n, c, h, w) -> (n, c * r * s, windows), as torch.nn.Unfold.

    Column p * q_count + q is the window whose first tap is at row p * stride - padding. Its entries are in the order of the
    kernel's: channel, kernel row, kernel column. A tap beyond the border reads zero, `dilation` is the distance of two taps.
    """
    n, c, h, w = x.shape
    rows, columns = windows((h, w), kernel, stride, padding, dilation)
    y = np.zeros((n, c * kernel[0] * kernel[1], rows * columns), x.dtype)
    for p, q in np.ndindex(rows, columns):
        for entry, (channel, r, s) in enumerate(np.ndindex(c, *kernel)):
            row = p * stride[0] - padding[0] + r * dilation[0]
            column = q * stride[1] - padding[1] + s * dilation[1]
            if 0 <= row < h and 0 <= column < w:
                y[:, entry, p * columns + q] = x[:, channel, row, column]
    return y


def windows(size, kernel, stride, padding, dilation):
    """How many windows fit, from top to bottom and from left to right."""
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    return [(length + 2 * p - r) // s + 1 for length, p, r, s in zip(size, padding, reach, stride, strict=True)]


def fold(y, size):
    """Columns back to places: y (n, k, windows) -> (n, k, *size). Each window now holds one pixel, so nothing overlaps."""
    x = np.empty((*y.shape[:2], *size), y.dtype)
    for p, q in np.ndindex(*size):
        x[:, :, p, q] = y[:, :, p * size[1] + q]
    return x


def convolution(x, weight, bias, stride, padding, dilation, groups):
    """The three steps. With groups the channels are dealt out in runs, and each run is a convolution of its own."""
    size = windows(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    maps = []
    for part, kernels in zip(np.split(x, groups, axis=1), np.split(weight, groups), strict=True):
        columns = unfold(part, weight.shape[2:], stride, padding, dilation)  # (n, c / g * r * s, windows)
        product = kernels.reshape(len(kernels), -1) @ columns  # (n, k / g, windows)
        maps.append(fold(product, size))
    return np.concatenate(maps, axis=1) + bias.reshape(-1, 1, 1)


@pytest.mark.parametrize(("c", "k", "groups"), [(3, 5, 1), (4, 6, 2), (4, 4, 4), (3, 6, 3)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (3, 2)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (2, 3)])
def test_a_convolution_is_unfold_product_fold(kernel, stride, padding, dilation, c, k, groups):
    rng = np.random.default_rng([*kernel, *stride, *padding, *dilation, groups])
    x, weight, bias = (rng.standard_normal(s, np.float32) for s in ((2, c, 7, 8), (k, c // groups, *kernel), (k,)))
    steps = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    exact = [a.astype(np.float64) for a in (x, weight, bias)]
    want = convolution(*exact, **steps)
    assert np.abs(conv2d(*exact, **steps) - want).max() <= EXACT * np.abs(want).max()
    # in float32 each of the c / g * r * s products and as many sums, in whatever order, is rounded once
    low, size = conv2d(x, weight, bias, **steps), convolution(*map(np.abs, exact), **steps)
    assert low.dtype == np.float32
    assert np.all(np.abs(low - want) <= (weight[0].size + 1) * EPS32 * size)


def test_the_columns_of_a_numbered_map():
    """Two channels of 2x3 pixels in windows of 2x2: the columns of torch.nn.Unfold(2), and two of those with padding=1."""
    x = np.arange(1.0, 13).reshape(1, 2, 2, 3)
    want = [[1, 2], [2, 3], [4, 5], [5, 6], [7, 8], [8, 9], [10, 11], [11, 12]]
    np.testing.assert_array_equal(unfold(x, (2, 2))[0], want)
    padded = unfold(x, (2, 2), padding=(1, 1))
    assert padded.shape == (1, 8, 3 * 4)
    np.testing.assert_array_equal(padded[0, :, 0], [0, 0, 0, 1, 0, 0, 0, 7])
    np.testing.assert_array_equal(padded[0, :, 7], [3, 0, 6, 0, 9, 0, 12, 0])


# The block. Unfold and fold keep their names and their purpose, but cut differently.


def unfold_patches(x, patch):
    """x (n, c, h, w) -> sequences[image][place in the patch][patch] = c features; patches and places row by row."""
    n, _, h, w = x.shape
    ph, pw = patch
    return [
        [[x[b, :, row + i, column + j] for row in range(0, h, ph) for column in range(0, w, pw)] for i, j in np.ndindex(ph, pw)]
        for b in range(n)
    ]


def fold_patches(sequences, patch, size):
    """The way back: token m of sequence (i, j) is pixel (i, j) of patch m."""
    ph, pw = patch
    x = np.empty((len(sequences), len(sequences[0][0][0]), *size), sequences[0][0][0].dtype)
    for b, i, j in np.ndindex(len(sequences), ph, pw):
        for m, token in enumerate(sequences[b][i * pw + j]):
            row, column = divmod(m, size[1] // pw)
            x[b, :, row * ph + i, column * pw + j] = token
    return x


def linear(t, p):
    return p["weight"] @ t + p["bias"]


def layer_norm(t, p):
    return (t - t.mean()) / np.sqrt(((t - t.mean()) ** 2).mean() + EPS) * p["weight"] + p["bias"]


def silu(x):
    return x / (1 + np.exp(-x))


def attention(tokens, p, heads):
    """Every token asks all tokens of its own sequence."""
    d = len(tokens[0])
    qkv = [linear(t, p["qkv"]) for t in tokens]
    answers = [np.empty_like(t) for t in tokens]
    for head in range(heads):
        own = slice(head * d // heads, (head + 1) * d // heads)
        q, k, v = ([a[part * d : (part + 1) * d][own] for a in qkv] for part in range(3))
        for i in range(len(tokens)):
            weights = [np.exp((q[i] * key).sum() / math.sqrt(d // heads)) for key in k]
            answers[i][own] = sum(a * value for a, value in zip(weights, v, strict=True)) / sum(weights)
    return [linear(t, p["proj"]) for t in answers]


def transformer(tokens, p, depth, heads):
    for layer in (p["transformer"][i] for i in range(depth)):
        mixed = attention([layer_norm(t, layer["norm1"]) for t in tokens], layer["attn"], heads)
        tokens = [t + m for t, m in zip(tokens, mixed, strict=True)]
        hidden = [silu(linear(layer_norm(t, layer["norm2"]), layer["mlp"]["fc1"])) for t in tokens]
        tokens = [t + linear(h, layer["mlp"]["fc2"]) for t, h in zip(tokens, hidden, strict=True)]
    return [layer_norm(t, p["norm"]) for t in tokens]


def conv_norm_silu(x, p):
    weight, bn = p["conv"]["weight"], p["bn"]
    half = weight.shape[2] // 2
    x = convolution(x, weight, np.zeros(len(weight), x.dtype), (1, 1), (half, half), (1, 1), 1)
    mean, var, gain, shift = (bn[n].reshape(-1, 1, 1) for n in ("running_mean", "running_var", "weight", "bias"))
    return silu((x - mean) / np.sqrt(var + EPS) * gain + shift)


def resize(x, size):
    """Bilinear, pixels are areas: only for maps that the patches do not tile."""

    def two(i, old, new):
        s = max(0.0, (i + 0.5) * old / new - 0.5)
        return (int(s), 1 - s % 1), (min(int(s) + 1, old - 1), s % 1)

    y = np.zeros((*x.shape[:2], *size), x.dtype)
    for i, j in np.ndindex(*size):
        for r, u in two(i, x.shape[2], size[0]):
            for s, v in two(j, x.shape[3], size[1]):
                y[:, :, i, j] += u * v * x[:, :, r, s]
    return y


def three_steps(x, p, patch, depth, heads):
    """Figure 1b from left to right."""
    y = conv_norm_silu(x, p["conv_kxk"])  # local: what is in the 3x3 window
    weight = p["conv_1x1"]["weight"]
    y = convolution(y, weight, np.zeros(len(weight), x.dtype), (1, 1), (0, 0), (1, 1), 1)  # c channels become d
    tiled = [math.ceil(s / side) * side for s, side in zip(x.shape[2:], patch, strict=True)]
    sequences = unfold_patches(resize(y, tiled), patch)
    sequences = [[transformer(tokens, p, depth, heads) for tokens in image] for image in sequences]  # global
    y = resize(fold_patches(sequences, patch, tiled), x.shape[2:])
    y = conv_norm_silu(y, p["conv_proj"])  # d become c again
    return conv_norm_silu(np.concatenate([x, y], axis=1), p["conv_fusion"])  # the input first


def block(c, d, patch, seed=0):
    """A configuration whose block in stage 2 has c channels, d features, 2 heads and depth 2, and that block's parameters."""
    config = mobilevit.MobileViTConfig(
        4, (4, 4, c, 4, 4), 4, 2, (d, 8, 8), (2, 1, 1), num_heads=2, patch=patch, batch_norm_eps=EPS, layer_norm_eps=EPS
    )
    rng, flat = np.random.default_rng(seed), {}
    for name, shape in mobilevit.parameters(config):
        a = rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5
        a = (0.25 + a * a if name.endswith("running_var") else a).astype(np.float32).astype(np.float64)
        if name.startswith("stages.2.1."):
            flat[name.removeprefix("stages.2.1.")] = a
    return config, flat


@pytest.mark.parametrize(
    ("size", "patch"),
    [((4, 6), (2, 2)), ((6, 4), (3, 2)), ((2, 8), (1, 4)), ((5, 7), (2, 2)), ((4, 3), (2, 2)), ((1, 1), (2, 2))],
)
def test_mobilevits_block_is_unfold_transformer_fold(size, patch):
    config, flat = block(3, 8, patch)
    x = np.random.default_rng(1).standard_normal((2, 3, *size), np.float32)
    steps = {"patch": patch, "depth": 2, "heads": 2}
    ours, theirs = {}, {}
    for dtype in (np.float64, np.float32):
        p = Params({name: a.astype(dtype) for name, a in flat.items()})
        ours[dtype] = mobilevit.mobilevit_block(x.astype(dtype), p, depth=2, config=config)
        theirs[dtype] = three_steps(x.astype(dtype), p, **steps)
        assert ours[dtype].dtype == theirs[dtype].dtype == dtype
    want = theirs[np.float64]
    assert np.abs(ours[np.float64] - want).max() <= EXACT * np.abs(want).max()
    # what the loops themselves lose in float32; another order of the same sums may lose four times as much
    lost = np.abs(theirs[np.float32] - want).max()
    assert np.abs(ours[np.float32] - want).max() <= 4 * lost + 4 * EPS32 * np.abs(want).max()


def reached(function, x, pixel):
    """The pixels whose output changes with one pixel of the input."""
    other = x.copy()
    other[0, :, *pixel] += 1
    return np.any(function(x) != function(other), axis=1)[0]


def test_what_a_pixel_reaches():
    """A window; all pixels of its own place, and no other; with the convolution in front, every pixel."""
    x = np.random.default_rng(2).standard_normal((1, 3, 8, 8))
    weight = np.random.default_rng(3).standard_normal((3, 3, 3, 3))
    window = np.zeros((8, 8), bool)
    window[2:5, 4:7] = True
    np.testing.assert_array_equal(reached(lambda x: conv2d(x, weight, padding=1), x, (3, 5)), window)

    config, flat = block(3, 8, (2, 2), seed=4)

    def whole(x):
        return mobilevit.mobilevit_block(x, Params(flat), depth=2, config=config)

    for name in ("conv_kxk.conv.weight", "conv_fusion.conv.weight"):  # only the middle tap: no neighbours
        flat[name] *= np.arange(9).reshape(3, 3) == 4
    same_place = np.zeros((8, 8), bool)
    same_place[1::2, 1::2] = True
    np.testing.assert_array_equal(reached(whole, x, (3, 5)), same_place)

    flat["conv_kxk.conv.weight"] = block(3, 8, (2, 2), seed=4)[1]["conv_kxk.conv.weight"]
    assert reached(whole, x, (3, 5)).all()
