"""HRNet's blocks, each called alone, against loops over channels and pixels written from the papers."""

import functools

import numpy as np
import pytest
from helpers.blocks import EPS, check, draw, normal

from refvit.models import hrnet, hrnet_heads


def conv(x, p, stride=1):
    """Every output pixel is the sum of the window around it times the kernel; outside the map there are zeros."""
    n, _, h, w = x.shape
    k, _, r, s = p["weight"].shape
    x = np.pad(x, ((0, 0), (0, 0), (r // 2, r // 2), (s // 2, s // 2)))
    y = np.empty((n, k, (h - 1) // stride + 1, (w - 1) // stride + 1), x.dtype)
    for b, o, i, j in np.ndindex(y.shape):
        window = x[b, :, i * stride : i * stride + r, j * stride : j * stride + s]
        y[b, o, i, j] = (window * p["weight"][o]).sum() + (p["bias"][o] if "bias" in p else 0)
    return y


def norm(x, p):
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        y[:, c] = (x[:, c] - p["running_mean"][c]) / np.sqrt(p["running_var"][c] + EPS) * p["weight"][c] + p["bias"][c]
    return y


def relu(x):
    return x * (x > 0)


def softmax(scores):
    exps = [np.exp(s - max(scores)) for s in scores]
    return [e / sum(exps) for e in exps]


def basic_block(x, p):
    y = relu(norm(conv(x, p["conv1"]), p["bn1"]))
    y = norm(conv(y, p["conv2"]), p["bn2"])
    return relu(y + x)


def bottleneck(x, p):
    y = relu(norm(conv(x, p["conv1"]), p["bn1"]))
    y = relu(norm(conv(y, p["conv2"]), p["bn2"]))
    y = norm(conv(y, p["conv3"]), p["bn3"])
    return relu(y + (norm(conv(x, p["downsample"][0]), p["downsample"][1]) if "downsample" in p else x))


def transition(xs, p):
    ys = [relu(norm(conv(x, p[i][0]), p[i][1])) if i in p else x for i, x in enumerate(xs)]
    return [*ys, relu(norm(conv(xs[-1], p[len(xs)][0][0], stride=2), p[len(xs)][0][1]))]


def resize(x, size, rule):
    """Pixel by pixel. "nearest" is for whole factors; of "corners" the corners' centres meet, otherwise pixels are areas."""

    def source(i, old, new):
        if rule == "nearest":
            return i // (new // old), 0, 0.0
        s = max(0.0, (i + 0.5) * old / new - 0.5) if rule != "corners" else i * (old - 1) / max(1, new - 1)
        return int(s), min(int(s) + 1, old - 1), s - int(s)

    y = np.empty((*x.shape[:2], *size), x.dtype)
    for i, j in np.ndindex(size):
        above, below, u = source(i, x.shape[2], size[0])
        left, right, v = source(j, x.shape[3], size[1])
        upper = (1 - v) * x[:, :, above, left] + v * x[:, :, above, right]
        lower = (1 - v) * x[:, :, below, left] + v * x[:, :, below, right]
        y[:, :, i, j] = (1 - u) * upper + u * lower
    return y


def exchange(x, p, source, target, size, rule):
    if source > target:
        x = norm(conv(x, p[0]), p[1])
        if rule == "twice":
            factor = (1, 2, 4, 8)[source - target]
            x = resize(x, (factor * x.shape[2], factor * x.shape[3]), rule)
        return resize(x, size, rule)
    for step in range(target - source):
        x = norm(conv(x, p[step][0], stride=2), p[step][1])
        x = relu(x) if step + 1 < target - source else x  # the last step is only summed
    return x


def module(xs, p, outputs, rule):
    xs = [basic_block(basic_block(x, p["branches"][r][0]), p["branches"][r][1]) for r, x in enumerate(xs)]
    ys = []
    for i in range(outputs):
        y = np.zeros_like(xs[i])
        for j, x in enumerate(xs):
            y = y + (x if i == j else exchange(x, p["fuse_layers"][i][j], j, i, xs[i].shape[2:], rule))
        ys.append(relu(y))
    return ys


def backbone(x, p, rule, only_finest=False):
    x = relu(norm(conv(x, p["conv1"], stride=2), p["bn1"]))
    x = relu(norm(conv(x, p["conv2"], stride=2), p["bn2"]))
    xs = [bottleneck(bottleneck(x, p["layer1"][0]), p["layer1"][1])]
    for stage, modules in ((2, 1), (3, 1), (4, 2)):
        xs = transition(xs, p[f"transition{stage - 1}"])
        for m in range(modules):
            outputs = 1 if only_finest and (stage, m) == (4, 1) else stage
            xs = module(xs, p[f"stage{stage}"][m], outputs, rule)
    return xs


def classifier(xs, p):
    ys = [bottleneck(x, p["incre_modules"][r][0]) for r, x in enumerate(xs)]
    y = ys[0]
    for i in range(3):
        down = p["downsamp_modules"][i]
        y = ys[i + 1] + relu(norm(conv(y, down[0], stride=2), down[1]))
    y = relu(norm(conv(y, p["final_layer"][0]), p["final_layer"][1]))
    means = np.array([[channel.sum() / channel.size for channel in image] for image in y])
    return np.array([[(row * m).sum() for row in p["classifier"]["weight"]] for m in means]) + p["classifier"]["bias"]


def pixel_classifier(x, p):
    return conv(relu(norm(conv(x, p[0]), p[1])), p[3])


def region_representations(x, aux):
    """The feature of region k is the mean of the pixels' features, each as heavy as softmax over all pixels makes it."""
    n, c, h, w = x.shape
    y = np.zeros((n, c, aux.shape[1], 1), x.dtype)
    for b, k in np.ndindex(n, aux.shape[1]):
        weights = softmax(list(aux[b, k].flat))
        for m, (i, j) in enumerate(np.ndindex(h, w)):
            y[b, :, k, 0] += weights[m] * x[b, :, i, j]
    return y


def object_context(xs, p):
    """At every pixel: which regions am I like, and what are they worth?"""
    x, regions = xs

    def twice(x, p):
        x = relu(norm(conv(x, p[0]), p[1][0]))
        return relu(norm(conv(x, p[2]), p[3][0]))

    query, key = twice(x, p["f_pixel"]), twice(regions, p["f_object"])
    value = relu(norm(conv(regions, p["f_down"][0]), p["f_down"][1][0]))
    y = np.zeros_like(query)
    for b, i, j in np.ndindex(len(x), *x.shape[2:]):
        scores = [(query[b, :, i, j] * key[b, :, k, 0]).sum() / 16 for k in range(key.shape[2])]  # 16 = sqrt(256)
        for k, weight in enumerate(softmax(scores)):
            y[b, :, i, j] += weight * value[b, :, k, 0]
    return relu(norm(conv(y, p["f_up"][0]), p["f_up"][1][0]))


def features(x, p, rule):
    xs = backbone(x, p, rule)
    return np.concatenate([xs[0], *[resize(x, xs[0].shape[2:], rule) for x in xs[1:]]], 1)


def ocr(x, p, rule):
    x = features(x, p, rule)
    aux = pixel_classifier(x, p["aux_head"])
    x = relu(norm(conv(x, p["conv3x3_ocr"][0]), p["conv3x3_ocr"][1]))
    context = object_context([x, region_representations(x, aux)], p["ocr_distri_head"]["object_context_block"])
    last = p["ocr_distri_head"]["conv_bn_dropout"]
    return conv(relu(norm(conv(np.concatenate([context, x], 1), last[0]), last[1][0])), p["cls_head"])


def config(rule, head="ocr"):
    """Branches of 2, 4, 8 and 16 channels, two blocks in each module, two modules in the last stage."""
    fields = {"layer1": (2, 2), "modules": (1, 1, 2), "blocks": 2, "num_classes": 3, "batch_norm_eps": EPS}
    upsample = {"nearest": "nearest", "twice": "bilinear_twice"}.get(rule, "bilinear")
    fields |= {"upsample": upsample, "align_corners": rule == "corners", "head_bias": rule != "twice"}
    return hrnet.HRNetConfig(width=2, head=head, **fields)


ALL = draw(hrnet_heads.ocr_parameters(config("corners")))


def part(prefix):
    """The parameters of one block."""
    return {name.removeprefix(prefix): a for name, a in ALL.items() if name.startswith(prefix)}


BLOCKS = [  # below this name, ours, the loops, the shapes of the maps
    ("stage3.0.branches.0.1.", hrnet.basic_block, basic_block, (2, 2, 5, 4)),
    ("stage3.0.branches.1.1.", hrnet.basic_block, basic_block, (1, 4, 1, 7)),
    ("layer1.0.", hrnet.bottleneck, bottleneck, (2, 64, 5, 7)),  # projected, 64 channels become 8
    ("layer1.1.", hrnet.bottleneck, bottleneck, (2, 8, 5, 7)),
    ("transition1.", hrnet.transition, transition, [(2, 8, 7, 6)]),  # projects the old branch
    ("transition2.", hrnet.transition, transition, [(2, 2, 9, 6), (2, 4, 5, 3)]),  # leaves the old ones alone
    ("aux_head.", hrnet_heads.pixel_classifier, pixel_classifier, (2, 30, 3, 5)),
]


@pytest.mark.parametrize(("name", "ours", "loops", "shape"), BLOCKS, ids=[b[0][:-1] for b in BLOCKS])
def test_block(name, ours, loops, shape):
    x = [normal(*s, seed=s[1]) for s in shape] if isinstance(shape, list) else normal(*shape)
    check(functools.partial(ours, eps=EPS), loops, x, part(name))


UP = {"nearest": ((1, (2, 3), (4, 6)), (2, (1, 2), (4, 8)), (3, (2, 1), (16, 8)))}
UP["half"] = UP["corners"] = ((1, (3, 4), (5, 7)), (2, (2, 3), (5, 9)), (3, (2, 1), (11, 8)))
UP["twice"] = (*UP["half"], (1, (3, 4), (6, 8)), (2, (2, 3), (8, 9)))  # the second step changes both sides, none, or one
DOWN = ((2, 3, (5, 6)), (1, 3, (7, 8)), (0, 3, (9, 5)), (0, 1, (4, 3)))  # all but the last step keep the width and end in ReLU
CASES = [*((rule, s, 0, old, new) for rule in UP for s, old, new in UP[rule]), *(("half", *down, (0, 0)) for down in DOWN)]


@pytest.mark.parametrize(("rule", "source", "target", "old", "new"), CASES)
def test_exchange(rule, source, target, old, new):
    attrs = {"source": source, "target": target, "size": new}
    ours = functools.partial(hrnet.exchange, config=config(rule), **attrs)
    flat = part(f"stage4.0.fuse_layers.{target}.{source}.")
    check(ours, functools.partial(exchange, rule=rule, **attrs), normal(2, 2 << source, *old), flat)


ODD_SIZES = ((9, 5), (5, 3), (3, 2))


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize(
    ("rule", "sizes"), [("nearest", ((8, 4), (4, 2), (2, 1))), ("corners", ODD_SIZES), ("twice", ODD_SIZES)]
)
def test_module(rule, sizes, outputs):
    xs = [normal(2, 2 << r, *size, seed=r) for r, size in enumerate(sizes)]
    ours = functools.partial(hrnet.module, config=config(rule), outputs=outputs)
    check(ours, functools.partial(module, outputs=outputs, rule=rule), xs, part("stage3.0."))


@pytest.mark.parametrize("bias", [False, True])
def test_classifier(bias):
    """Its widths are fixed in the models, not in the block; here they are 4, 8, 12 and 16."""
    names = [("classifier.weight", (5, 10)), ("classifier.bias", (5,))]
    for r, planes in enumerate((1, 2, 3, 4)):
        shapes = {"conv1": (planes, 3, 1, 1), "conv2": (planes, planes, 3, 3), "conv3": (4 * planes, planes, 1, 1)}
        for conv, shape in (shapes | {"downsample.0": (4 * planes, 3, 1, 1)}).items():
            bn = conv.replace("conv", "bn").replace(".0", ".1")
            names += hrnet.conv_bn_parameters(f"incre_modules.{r}.0.{conv}", f"incre_modules.{r}.0.{bn}", shape)
    for i, c in enumerate((4, 8, 12)):
        names += hrnet.conv_bn_parameters(f"downsamp_modules.{i}.0", f"downsamp_modules.{i}.1", (c + 4, c, 3, 3), bias)
    names += hrnet.conv_bn_parameters("final_layer.0", "final_layer.1", (10, 16, 1, 1), bias)
    xs = [normal(2, 3, *size, seed=r) for r, size in enumerate(((9, 16), (5, 8), (3, 4), (2, 2)))]
    check(functools.partial(hrnet.classifier, eps=EPS), classifier, xs, draw(names))


def test_region_representations():
    """The regions of an image are made of its own pixels; of every class the weights add up to 1."""
    x, aux = normal(2, 5, 3, 4), 4 * normal(2, 4, 3, 4, seed=2)
    check(lambda xs, p: hrnet_heads.region_representations(*xs), lambda xs, p: region_representations(*xs), [x, aux], {})
    np.testing.assert_allclose(hrnet_heads.region_representations(np.ones_like(x), aux), np.ones((2, 5, 4, 1)), rtol=1e-14)


def test_object_context():
    flat, xs = part("ocr_distri_head.object_context_block."), [normal(2, 512, 2, 3), 4 * normal(2, 512, 4, 1, seed=2)]
    check(lambda xs, p: hrnet_heads.object_context(xs[0], p, regions=xs[1], eps=EPS), object_context, xs, flat)


WHOLE = {
    "pose": lambda x, p, rule: conv(backbone(x, p, rule, only_finest=True)[0], p["final_layer"]),
    "segmentation": lambda x, p, rule: pixel_classifier(features(x, p, rule), p["last_layer"]),
    "ocr": ocr,
}
ODD = [
    *(("segmentation", rule, 21, 38) for rule in ("half", "corners", "twice")),
    ("ocr", "corners", 14, 21),
    ("ocr", "twice", 14, 21),
]


@pytest.mark.parametrize(("name", "rule", "h", "w"), [("pose", "nearest", 32, 64), *ODD])
def test_whole_model(name, rule, h, w):
    c = config(rule, head=name)
    ours, parameters = getattr(hrnet_heads, f"hrnet_{name}"), getattr(hrnet_heads, f"{name}_parameters")
    loops = functools.partial(WHOLE[name], rule=rule)
    check(functools.partial(ours, config=c), loops, normal(1, 3, h, w), draw(parameters(c), seed=3))
