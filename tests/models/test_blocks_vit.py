"""ViT's blocks, each called alone, against loops over patches, tokens, heads and features written from the papers."""

import functools
import math

import numpy as np
import pytest
from helpers.blocks import EPS, check, draw, normal
from scipy.ndimage import zoom

from refvit.errors import ShapeError
from refvit.models import layers, vit
from refvit.ops import gelu, silu
from refvit.weights.params import Params

RULES = ("bicubic_antialias", "bicubic", "bilinear", "bilinear_corners")


def linear(x, p):
    y = np.empty((*x.shape[:-1], len(p["weight"])), x.dtype)
    for i in np.ndindex(x.shape[:-1]):
        for k, row in enumerate(p["weight"]):
            y[*i, k] = (row * x[i]).sum() + p["bias"][k]
    return y


def layer_norm(x, p):
    y = np.empty_like(x)
    for i in np.ndindex(x.shape[:-1]):
        mean = x[i].sum() / len(x[i])
        variance = ((x[i] - mean) ** 2).sum() / len(x[i])
        y[i] = (x[i] - mean) / math.sqrt(variance + EPS) * p["weight"] + p["bias"]
    return y


def self_attention(x, p, heads):
    """Feature f of a token belongs to head f // size, in its query, its key and its value."""
    n, l, d = x.shape
    size = d // heads
    qkv = linear(x, p["qkv"])
    queries, keys, values = qkv[:, :, :d], qkv[:, :, d : 2 * d], qkv[:, :, 2 * d :]
    y = np.zeros_like(x)
    for b, i, head in np.ndindex(n, l, heads):
        own = slice(head * size, (head + 1) * size)
        scores = [(queries[b, i, own] * keys[b, j, own]).sum() / math.sqrt(size) for j in range(l)]
        exps = [np.exp(score - max(scores)) for score in scores]
        for j in range(l):
            y[b, i, own] += exps[j] / sum(exps) * values[b, j, own]
    return linear(y, p["proj"])


def each(function, x):
    return np.array([function(v) for v in x.flat], x.dtype).reshape(x.shape)


ACTIVATIONS = {  # ours, and the formula of one value
    "exact": (functools.partial(gelu, approximate="none"), lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2),
    "tanh": (
        functools.partial(gelu, approximate="tanh"),
        lambda v: v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2,
    ),
    "silu": (silu, lambda v: v / (1 + math.exp(-v))),
}


def mlp(x, p, act):
    return linear(each(act, linear(x, p["fc1"])), p["fc2"])


def transformer_layer(x, p, heads, act):
    x = x + self_attention(layer_norm(x, p["norm1"]), p["attn"], heads)
    return x + mlp(layer_norm(x, p["norm2"]), p["mlp"], act)


def patch_embed(x, p, size):
    """Token row * columns + column is every pixel of that patch times every weight."""
    n, _, h, w = x.shape
    weight, bias = p["proj"]["weight"], p["proj"]["bias"]
    y = np.empty((n, h // size * (w // size), len(weight)), x.dtype)
    for b, row, column, k in np.ndindex(n, h // size, w // size, len(weight)):
        patch = x[b, :, row * size : (row + 1) * size, column * size : (column + 1) * size]
        y[b, row * (w // size) + column, k] = (patch * weight[k]).sum() + bias[k]
    return y


def cubic(t, a):
    """Keys' kernel (1981); with a < 0 it is negative between 1 and 2."""
    t = abs(t)
    if t >= 2:
        return 0.0
    return (a + 2) * t**3 - (a + 3) * t**2 + 1 if t < 1 else a * (t**3 - 5 * t**2 + 8 * t - 4)


def taps(rule, i, size, out):
    """[(source pixel, weight)] of output pixel i: a kernel around its centre, laid over the pixels of the source."""
    centre = (i + 0.5) * size / out - 0.5
    if rule == "bicubic_antialias":  # the kernel grows with the step, and what lies outside does not exist
        stretch = max(1.0, size / out)
        weights = [cubic((j - centre) / stretch, a=-0.5) for j in range(size)]
        return [(j, v / sum(weights)) for j, v in enumerate(weights)]
    kernel = functools.partial(cubic, a=-0.75) if rule == "bicubic" else lambda t: max(0.0, 1 - abs(t))
    return [(min(max(j, 0), size - 1), kernel(j - centre)) for j in range(-2, size + 2)]  # the border is repeated


def position_embedding(table, config, rows, columns):
    """The prefix tokens as they are, then the grid at rows x columns, row by row."""
    prefix, g, d = 2 if config.distilled else 1, config.image_size // config.patch_size, table.shape[2]
    grid = table[0, prefix:].reshape(g, g, d)
    if config.position_resize == "bilinear_corners":
        new = zoom(grid, (rows / g, columns / g, 1), order=1)
    else:
        new = np.zeros((rows, columns, d), table.dtype)
        for i, j in np.ndindex(rows, columns):
            for u, a in taps(config.position_resize, i, g, rows):
                for v, b in taps(config.position_resize, j, g, columns):
                    new[i, j] += a * b * grid[u, v]
    return np.concatenate([table[:, :prefix], new.reshape(1, rows * columns, d)], 1)


def tiny(**fields):
    """A grid of 4x4 patches of 2x2 pixels, 8 features, 2 heads, 5 classes."""
    sizes = {"image_size": 8, "patch_size": 2, "embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 3, "num_classes": 5}
    return vit.ViTConfig(**{**sizes, "layer_norm_eps": EPS, **fields})


def whole(x, p, config):
    patches = patch_embed(x, p["patch_embed"], 2)
    prefix = [p["cls_token"], p["dist_token"]] if config.distilled else [p["cls_token"]]
    tokens = [np.concatenate([t[0] for t in prefix] + [image]) for image in patches]
    x = np.array(tokens) + position_embedding(p["pos_embed"], config, x.shape[2] // 2, x.shape[3] // 2)
    for i in range(config.depth):
        x = transformer_layer(x, p["blocks"][i], 2, ACTIVATIONS["tanh" if config.gelu == "tanh" else "exact"][1])
    x = layer_norm(x, p["norm"])
    if config.distilled:
        return (linear(x[:, 0], p["head"]) + linear(x[:, 1], p["head_dist"])) / 2
    return linear(x[:, 0], p["head"])


@pytest.mark.parametrize(("patch", "size"), [(2, (4, 6)), (3, (9, 3)), (4, (4, 4)), (1, (2, 3))])
def test_patch_embed(patch, size):
    flat = draw([("proj.weight", (5, 3, patch, patch)), ("proj.bias", (5,))])
    ours = functools.partial(vit.patch_embed, patch_size=patch)
    check(ours, functools.partial(patch_embed, size=patch), normal(2, 3, *size), flat)


def test_patches_that_do_not_tile_are_refused():
    p = Params(draw([("proj.weight", (5, 3, 2, 2)), ("proj.bias", (5,))]))
    with pytest.raises(ShapeError, match="4x5, both must be multiples of the patch size 2"):
        vit.patch_embed(normal(1, 3, 4, 5), p, patch_size=2)


@pytest.mark.parametrize(("l", "d", "heads"), [(5, 8, 2), (1, 6, 3), (7, 12, 4), (4, 6, 1), (3, 4, 4)])
def test_self_attention(l, d, heads):
    flat = draw([("qkv.weight", (3 * d, d)), ("qkv.bias", (3 * d,)), ("proj.weight", (d, d)), ("proj.bias", (d,))])
    x = 2 * normal(2, l, d)
    check(functools.partial(layers.self_attention, num_heads=heads), functools.partial(self_attention, heads=heads), x, flat)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_mlp(name):
    ours, loops = ACTIVATIONS[name]
    flat = draw([("fc1.weight", (11, 6)), ("fc1.bias", (11,)), ("fc2.weight", (6, 11)), ("fc2.bias", (6,))])
    check(functools.partial(layers.mlp, act=ours), functools.partial(mlp, act=loops), 4 * normal(2, 4, 6), flat)


@pytest.mark.parametrize("far", [0, 4096])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_transformer_layer(name, far):
    """Far from zero as well, where a variance taken as E[x^2] - E[x]^2 has no digits left in float32."""
    ours, loops = ACTIVATIONS[name]
    names = layers.transformer_parameters("", 8, 12)
    flat = draw([(n.removeprefix("."), s) for n, s in names])
    check(
        functools.partial(layers.transformer_layer, num_heads=2, eps=EPS, act=ours),
        functools.partial(transformer_layer, heads=2, act=loops),
        far + np.round(16 * normal(2, 5, 8)) / 16,
        flat,
    )


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("grid", [(6, 3), (2, 5), (8, 8), (4, 7), (3, 4), (1, 1), (16, 2), (2, 8), (4, 4)], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_position_embedding(rule, grid, distilled):
    config = tiny(position_resize=rule, distilled=distilled)
    rows, columns = grid
    check(
        lambda table, p: vit.position_embedding(table, rows=rows, columns=columns, config=config),
        lambda table, p: position_embedding(table, config, rows, columns),
        normal(1, config.prefix + 16, 3),
        {},
    )


def spike(rule, grid, new, at):
    """The response to a single column: patch column `at` of the trained grid is 1, the others 0, and `new` columns come out."""
    table = np.zeros((1, 1 + grid * grid, 1))
    table[0, 1 + at :: grid] = 1
    config = tiny(image_size=2 * grid, position_resize=rule)
    return vit.position_embedding(table, rows=grid, columns=new, config=config)[0, 1 : 1 + new, 0]


def test_both_cubics_have_negative_lobes_of_different_depth():
    """Twice as many patches: the taps lie at 1/4 and 3/4. Worked by hand for a = -3/4 and a = -1/2, in 256ths."""
    lobes = [-9, -27, 67, 225, 225, 67, -27, -9]  # a = -3/4, outputs 5 to 12
    np.testing.assert_allclose(256 * spike("bicubic", 8, 16, at=4)[5:13], lobes, rtol=0, atol=1e-11)
    lobes = [-6, -18, 58, 222, 222, 58, -18, -6]  # a = -1/2
    np.testing.assert_allclose(256 * spike("bicubic_antialias", 8, 16, at=4)[5:13], lobes, rtol=0, atol=1e-11)
    assert spike("bilinear", 8, 16, at=4).min() == 0


def test_only_the_antialiased_rule_reads_every_patch():
    """12 patches become 2, at 2.5 and 8.5: four taps end at 1 and 4, the widened kernel reaches everything."""
    assert not spike("bicubic", 12, 2, at=5).any()
    assert not spike("bilinear", 12, 2, at=0).any()
    assert np.all(np.abs(spike("bicubic_antialias", 12, 2, at=5)) > 1e-3)


@pytest.mark.parametrize("size", [(8, 8), (6, 10)], ids=["trained", "other"])
@pytest.mark.parametrize(("rule", "approximate"), [*zip(RULES, ("none", "tanh", "none", "tanh"), strict=True)])
@pytest.mark.parametrize("distilled", [False, True])
def test_whole_vit(distilled, rule, approximate, size):
    config = tiny(distilled=distilled, gelu=approximate, position_resize=rule)
    flat = draw(vit.parameters(config), seed=2)
    ours, loops = functools.partial(vit.vit, config=config), functools.partial(whole, config=config)
    check(ours, loops, normal(2, 3, *size), flat)


def test_without_layers_the_answer_is_in_the_first_tokens():
    """A norm and the heads are left: of the class token, or the mean of what class and distillation token say."""
    flat = draw(vit.parameters(tiny(distilled=True)), seed=3)
    p = Params(flat)
    x, position = normal(2, 3, 8, 8), flat["pos_embed"]
    one = linear(layer_norm(flat["cls_token"][:, 0] + position[:, 0], p["norm"]), p["head"])
    other = linear(layer_norm(flat["dist_token"][:, 0] + position[:, 1], p["norm"]), p["head_dist"])
    got = vit.vit(x, p, config=tiny(distilled=True, depth=0))
    np.testing.assert_allclose(got, np.repeat((one + other) / 2, 2, 0), rtol=0, atol=1e-14)
    del flat["dist_token"], flat["head_dist.weight"], flat["head_dist.bias"]
    plain = Params({**flat, "pos_embed": np.delete(position, 1, axis=1)})
    np.testing.assert_allclose(vit.vit(x, plain, config=tiny(depth=0)), np.repeat(one, 2, 0), rtol=0, atol=1e-14)
