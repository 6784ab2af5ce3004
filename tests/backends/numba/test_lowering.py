"""Graphs that were once lowered wrongly or not at all, each the smallest that shows it."""

import numpy as np
import pytest
from helpers.blocks import draw
from helpers.rule import Rule, same_bits
from helpers.small import SMALL, small_graph

from refvit import ops
from refvit.backends import numba
from refvit.backends.numba import inverted
from refvit.graph.trace import trace
from refvit.ops import conv2d, hardswish, linear, relu, silu, softmax


def drawn(shapes):
    return {name: a.astype(np.float32) for name, a in draw(shapes).items()}


def held(graph):
    """Outputs within the rule for three inputs, the same bits on three threads."""
    (x,) = graph.inputs.values()
    inputs = [np.random.default_rng(seed).standard_normal(x.shape).astype(np.float32) for seed in range(3)]
    one, three = (numba.compile_graph(graph, threads) for threads in (1, 3))
    Rule(graph, inputs).hold(one)
    assert all(same_bits(three(x), one(x)) for x in inputs)


def tokens(x):
    n, c, h, w = x.shape
    return x.reshape(n, c, h * w).transpose(0, 2, 1)


def norm(x, p):
    return ops.batch_norm(x, **p, eps=1e-3)


def norm_shapes(c):
    return {f"bn.{name}": (c,) for name in ("weight", "bias", "running_mean", "running_var")}


def irb(x, p):
    """An inverted residual without its sum."""
    y = silu(conv2d(x, p["expand"]))
    return conv2d(silu(conv2d(y, p["middle"], padding=1, groups=y.shape[1])), p["project"])


def irb_shapes(c, hidden, k, prefix=""):
    shapes = {"expand": (hidden, c, 1, 1), "middle": (hidden, 1, 3, 3), "project": (k, hidden, 1, 1)}
    return {prefix + name: shape for name, shape in shapes.items()}


def enlarged(x):
    return ops.resize(x, size=(9, 10), mode="nearest", align_corners=False)


# an image, and what is seen of it without a copy, lies plane by plane
VIEWS = {
    "image": (lambda x: x, 3),
    "some channels": (lambda x: x[:, 1:3], 2),
    "one channel": (lambda x: x[:, 2:], 1),
    "transposed": (lambda x: x.transpose(0, 1, 3, 2), 3),
    "rows joined": (lambda x: x.reshape(x.shape[0], 3, -1, 2), 3),
}
LAYERS = {
    "1x1": (lambda c: (8, c, 1, 1), {}),
    "1x1 strided": (lambda c: (8, c, 1, 1), {"stride": 2}),
    "1x1 padded": (lambda c: (8, c, 1, 1), {"padding": 1}),
    "dilated": (lambda c: (8, c, 3, 3), {"padding": 2, "dilation": 2}),
    "depthwise": (lambda c: (c, 1, 3, 3), {"padding": 1, "groups": "c"}),
    "depthwise dilated": (lambda c: (c, 1, 3, 3), {"padding": 2, "dilation": 2, "groups": "c"}),
    "two of each": (lambda c: (2 * c, 1, 3, 3), {"padding": 1, "groups": "c"}),
    "3x3": (lambda c: (8, c, 3, 3), {"padding": 1}),
    "1x3": (lambda c: (8, c, 1, 3), {"padding": (0, 1), "stride": (1, 2)}),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("view", VIEWS)
def test_first_layers(view, layer):
    (see, c), (weight, attrs) = VIEWS[view], LAYERS[layer]
    attrs = {name: c if value == "c" else value for name, value in attrs.items()}
    shapes = {"w": weight(c), "b": weight(c)[:1]}
    held(trace(lambda x, p: conv2d(see(x), p["w"], p["b"], **attrs), (2, 3, 8, 10), drawn(shapes.items())))


def beside(x, p):
    """A softmax over tokens that lie plane by plane, and a layer that the result is added to."""
    y = softmax(tokens(conv2d(x, p["w"], padding=1)), axis=1)
    return y + linear(y, p["m"])


def early(x, p):
    y = hardswish(enlarged(conv2d(x, p["w"], padding=1)))
    return conv2d(y, p["d"], padding=1, groups=8) + y


def shortcut(bias):
    """HRViT's, as it is not in the published models."""

    def model(x, p):
        y = tokens(conv2d(x, p["w"]))
        n, l, c = y.shape
        k = p["right"].shape[0]
        z = linear(y.reshape(n, l, c // k, k), p["right"], p["b"] if bias else None).swapaxes(-1, -2)
        z = linear(ops.gelu(z, approximate="none"), p["left"], p["c"] if bias else None).swapaxes(-1, -2)
        return z.reshape(n, l, c) + y

    return model


def shortcut_shapes(c, k):
    return {"w": (c, 3, 1, 1), "right": (k, k), "b": (k,), "left": (c // k, c // k), "c": (c // k,)}


def product(after):
    return lambda x, p: after(tokens(conv2d(x, p["w"])) @ tokens(conv2d(x, p["v"])).transpose(0, 2, 1))


def read_twice(x, p):
    y = conv2d(x, p["w"], padding=1)
    return norm(y, p["bn"]) + relu(y)


def also_output(x, p):
    y = conv2d(x, p["w"], padding=1)
    return {"norm": norm(y, p["bn"]), "conv": y}


def folded(x, p):
    """Patches that do not tile the map, of tokens that lie plane by plane."""
    y = ops.unfold_patches(x, patch=(3, 2))
    return ops.fold_patches(ops.layer_norm(y, p["a"], p["b"], eps=0.1), patch=(3, 2), size=x.shape[2:])


CONV = {"w": (8, 3, 3, 3)}
MATRICES = {"w": (17, 3, 1, 1), "v": (17, 3, 1, 1)}
GRAPHS = {
    "a softmax over tokens and a linear layer of it": (beside, {**CONV, "m": (8, 8)}, (3, 4, 4)),
    "a depthwise layer of an activation that is added to it": (early, {**CONV, "d": (8, 1, 3, 3)}, (3, 4, 4)),
    "one channel, activated": (
        lambda x, p: conv2d(hardswish(enlarged(conv2d(x, p["w"], padding=1))), p["d"], padding=1),
        {"w": (1, 3, 3, 3), "d": (1, 1, 3, 3)}, (3, 4, 4),
    ),
    "an image, activated": (
        lambda x, p: conv2d(hardswish(x), p["d"], padding=1, groups=3), {"d": (3, 1, 3, 3)}, (3, 6, 5),
    ),
    "an activation of a product": (product(relu), MATRICES, (3, 5, 4)),
    "a gate on a product": (product(lambda y: y * ops.sigmoid(y)), MATRICES, (3, 5, 4)),
    "a sum with a product": (product(lambda y: y * 0.25 + y), MATRICES, (3, 5, 4)),
    "a map plus channels": (
        lambda x, p: conv2d(x, p["w"], padding=1) + p["e"], {**CONV, "e": (8, 1, 1)}, (3, 7, 5),
    ),
    "channels plus a map": (
        lambda x, p: relu(p["e"] + conv2d(x, p["w"], padding=1)), {**CONV, "e": (1, 8, 1, 1)}, (3, 7, 5),
    ),
    "an image plus channels": (lambda x, p: x * p["e"] + p["e"], {"e": (3, 1, 1)}, (3, 7, 5)),
    "tokens plus features": (
        lambda x, p: linear(tokens(x), p["m"]) + p["e"], {"m": (17, 3), "e": (17,)}, (3, 7, 5),
    ),
    "tokens plus a number each": (
        lambda x, p: relu(linear(tokens(x), p["m"]) + p["e"]), {"m": (17, 3), "e": (35, 1)}, (3, 7, 5),
    ),
    "the columns of a map plus features": (
        lambda x, p: hardswish(p["e"] + linear(conv2d(x, p["w"], padding=1), p["m"])),
        {**CONV, "m": (17, 5), "e": (8, 1, 1)}, (3, 7, 5),
    ),
    "a pool of an image": (lambda x, p: ops.adaptive_avg_pool(x, size=(2, 3)) + p["e"], {"e": (3, 1, 1)}, (3, 7, 5)),
    "a pool of an image turned over": (
        lambda x, p: ops.adaptive_avg_pool(x.transpose(0, 1, 3, 2), size=(4, 2)) * p["e"], {"e": (3, 1, 1)}, (3, 7, 5),
    ),
    "a resize of an image": (
        lambda x, p: ops.resize(x, size=(5, 9), mode="bicubic", align_corners=False) + p["e"], {"e": (3, 1, 1)}, (3, 7, 5),
    ),
    "a norm of an image": (lambda x, p: norm(x, p["bn"]), norm_shapes(3), (3, 7, 5)),
    "a norm of an activation": (
        lambda x, p: norm(relu(conv2d(x, p["w"], padding=1)), p["bn"]), CONV | norm_shapes(8), (3, 7, 5),
    ),
    "a norm of a layer that is read twice": (read_twice, CONV | norm_shapes(8), (3, 7, 5)),
    "a norm of a layer that is an output": (also_output, CONV | norm_shapes(8), (3, 7, 5)),
    "a norm of tokens": (
        lambda x, p: silu(norm(tokens(x).reshape(-1, 3), p["bn"])), norm_shapes(3), (3, 7, 5),
    ),
    "patches that do not tile an image": (folded, {"a": (3,), "b": (3,)}, (3, 7, 5)),
    "an image in rows of another length": (
        lambda x, p: x.reshape(-1, 3, 5, 6) + p["e"], {"e": (3, 1, 1)}, (3, 6, 5),
    ),
    "a shortcut without biases": (shortcut(False), shortcut_shapes(16, 4), (3, 4, 5)),
    "a shortcut of odd width": (shortcut(True), shortcut_shapes(33, 33), (3, 4, 5)),
    "a shortcut of three": (shortcut(True), shortcut_shapes(12, 3), (3, 4, 5)),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name, batch):
    model, shapes, size = GRAPHS[name]
    held(trace(model, (batch, *size), drawn(shapes.items())))


# inverted residuals of any size as one kernel

RESIDUALS = {
    "what it is of": lambda x, y: y,
    "the same turned over": lambda x, y: y.transpose(0, 1, 3, 2),
    "a part of a larger map": lambda x, y: ops.concat(relu(y), y, axis=1)[:, 4:12],
    "planes": lambda x, y: x,
    "planes turned over": lambda x, y: x.transpose(0, 1, 3, 2),
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_added_to_an_inverted_residual(residual, batch, whole, monkeypatch):
    monkeypatch.setattr(inverted, "worthwhile", lambda *_: whole)

    def model(x, p):
        y = conv2d(x, p["w"], padding=1)
        return irb(y, p) + RESIDUALS[residual](x, y)

    graph = trace(model, (batch, 8, 16, 16), drawn(({"w": (8, 8, 3, 3)} | irb_shapes(8, 24, 8)).items()))
    kernels = [i.kernel for i in numba.compile_graph(graph, 1).plan.instructions]
    assert ("inverted.inverted" in kernels) == (whole and "planes" not in residual)  # which the three kernels copy first
    held(graph)


@pytest.mark.parametrize("whole", [False, True])
def test_an_inverted_residual_of_an_image(whole, monkeypatch):
    monkeypatch.setattr(inverted, "worthwhile", lambda *_: whole)
    held(trace(lambda x, p: irb(x, p) + x, (2, 3, 16, 12), drawn(irb_shapes(3, 24, 3).items())))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("hidden", [12, 96])
def test_two_inverted_residuals(hidden, whole, monkeypatch):
    """The second's first layer may become one with the first's last, which then is no inverted residual any more."""
    monkeypatch.setattr(inverted, "worthwhile", lambda *_: whole)
    shapes = CONV | irb_shapes(8, 16, 24, "a.") | irb_shapes(24, hidden, 8, "b.")
    held(trace(lambda x, p: irb(irb(conv2d(x, p["w"], padding=1), p["a"]), p["b"]), (1, 3, 16, 16), drawn(shapes.items())))


# composite ops taken apart


@pytest.mark.parametrize("name", SMALL)
def test_expanded(name):
    held(small_graph(name, drawn, expand=True))
