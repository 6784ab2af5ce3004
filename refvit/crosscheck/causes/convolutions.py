"""Convolutions that look at other places: padding, stride, dilation and what lies beyond the border."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from refvit.crosscheck.causes.hypothesis import Cause, Change, Family, Scene
from refvit.graph.ir import Array, Node
from refvit.ops.conv import _borders, _pair, conv2d

Borders = tuple[tuple[int, int], tuple[int, int]]
BEYOND = {
    "reflect": "the image mirrored at its border", "edge": "the border repeated",
    "symmetric": "the image mirrored with its border",
    "wrap": "the other side of the image",
}  # fmt: skip


def borders(node: Node) -> Borders:
    return _borders(node.attrs.get("padding", 0))


def _padded(x: Array, weight: Array, bias: Array | None = None, *, borders: Borders, how: dict[str, Any], attrs: Any) -> Array:
    x = np.pad(x, ((0, 0), (0, 0), *borders), **how)
    return conv2d(x, weight, bias, **{**attrs, "padding": 0})


def _call(scene: Scene, node: Node, to: Borders, **how: Any) -> dict[str, Any]:
    return scene.instead(node, partial(_padded, borders=to, how=how, attrs=dict(node.attrs)))


def _same(node: Node, size: tuple[int, int], kernel: tuple[int, int], rule: str) -> Borders:
    """The padding of TensorFlow's SAME (what is odd goes behind) or of SAME_LOWER (it goes before)."""
    strides, dilations = _pair("stride", node.attrs["stride"], 1), _pair("dilation", node.attrs["dilation"], 1)
    sides = []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        less, more = total // 2, total - total // 2
        sides.append((less, more) if rule == "upper" else (more, less))
    return sides[0], sides[1]


def _sides(scene: Scene) -> Iterator[Change]:
    for node in scene.of("conv2d"):
        own = borders(node)
        weight, size = scene.shape(str(node.inputs[1])), scene.shape(str(node.inputs[0]))[2:]
        if own == ((0, 0), (0, 0)):
            continue
        for rule, name in (("upper", "SAME of TensorFlow"), ("lower", "SAME_LOWER of ONNX")):
            to = _same(node, (size[0], size[1]), (weight[2], weight[3]), rule)
            if to != own:
                text = f"padding {to[0]} rows and {to[1]} columns ({name}) where {own[0]} and {own[1]} are expected"
                yield Change(f"same {rule}", text, (node.name,), _call(scene, node, to))
        for i, j in itertools.product((-1, 0, 1), repeat=2):
            moved = tuple((a + m, b - m) for (a, b), m in zip(own, (i, j), strict=True))
            if (i or j) and min(min(pair) for pair in moved) >= 0:
                to = (moved[0], moved[1])
                text = f"padding {to[0]} rows and {to[1]} columns where {own[0]} and {own[1]} are expected"
                yield Change(f"moved {i} {j}", text, (node.name,), _call(scene, node, to))


def _amount(scene: Scene) -> Iterator[Change]:
    """Another padding that gives the same size (where the stride leaves rows over), or another size later brought back."""
    for node in scene.of("conv2d"):
        own, attrs = borders(node), dict(node.attrs)
        for less in (0, 1, 2):
            for side in ("both", "before", "behind"):
                to = tuple((a - less if side != "behind" else a, b - less if side != "before" else b) for a, b in own)
                if less and min(min(pair) for pair in to) >= 0:
                    text = f"padding {to[0]} rows and {to[1]} columns where {own[0]} and {own[1]} are expected"
                    yield Change(f"less {less} {side}", text, (node.name,), _call(scene, node, (to[0], to[1])))
        more = tuple((a + 1, b + 1) for a, b in own)
        text = f"padding {more[0]} rows and {more[1]} columns where {own[0]} and {own[1]} are expected"
        yield Change("more", text, (node.name,), _call(scene, node, (more[0], more[1])))
        if own == ((1, 1), (1, 1)) and _pair("stride", attrs["stride"], 1) == (1, 1):
            yield Change("cropped", "no padding, and the lost border filled with zeros afterwards", (node.name,),
                         scene.instead(node, partial(_refilled, attrs=attrs)))  # fmt: skip


def _refilled(x: Array, weight: Array, bias: Array | None = None, *, attrs: Any) -> Array:
    y = conv2d(x, weight, bias, **{**attrs, "padding": 0})
    return np.pad(y, ((0, 0), (0, 0), (1, 1), (1, 1)))


def _beyond(scene: Scene) -> Iterator[Change | Family]:
    for node in scene.of("conv2d"):
        own = borders(node)
        if own == ((0, 0), (0, 0)):
            continue
        for mode, words in BEYOND.items():
            text = f"beyond the border lies {words} ({mode} padding) instead of zeros"
            yield Change(mode, text, (node.name,), _call(scene, node, own, mode=mode))

        def make(numbers: tuple[float, ...], node: Node = node, own: Borders = own) -> Change:
            text = f"beyond the border lies the value {numbers[0]:.3g} instead of zeros"
            return Change("value", text, (node.name,), _call(scene, node, own, constant_values=numbers[0]))

        yield Family("value", make, ((0.5,),))


def _dilation(scene: Scene) -> Iterator[Change]:
    for node in scene.of("conv2d"):
        own, kernel = _pair("dilation", node.attrs["dilation"], 1), scene.shape(str(node.inputs[1]))[2:]
        for dilation in (1, 2, 3, 4, 6, 12, 18, 24):
            if max(kernel) > 1 and own != (dilation, dilation):
                pads = [
                    tuple(side + (dilation - d) * (k - 1) // 2 for side in pair)
                    for pair, d, k in zip(borders(node), own, kernel, strict=True)
                ]
                if min(min(p) for p in pads) >= 0:
                    text = f"dilation {dilation} where {own[0]} is expected"
                    call = scene.with_attrs(node, dilation=dilation, padding=tuple(pads))
                    yield Change(f"dilation {dilation}", text, (node.name,), call)


def _stride(scene: Scene) -> Iterator[Change]:
    for node in scene.of("conv2d"):
        stride = _pair("stride", node.attrs["stride"], 1)
        if stride == (1, 1):
            continue
        for i, j in itertools.product(range(stride[0]), range(stride[1])):
            if i or j:
                text = f"every {stride[0]}th value is taken from row {i} and column {j} on instead of the first"
                call = scene.instead(node, partial(_offset, attrs=dict(node.attrs), offset=(i, j), stride=stride))
                yield Change(f"offset {i} {j}", text, (node.name,), call)
        if stride[0] == 2 and max(scene.shape(str(node.inputs[1]))[2:]) > 1:
            text = "stride 1 and a mean over 2x2 values instead of stride 2"
            call = scene.instead(node, partial(_averaged, attrs=dict(node.attrs)))
            yield Change("averaged", text, (node.name,), call)
            text = "a mean over 2x2 values before and stride 1 instead of stride 2"
            call = scene.instead(node, partial(_averaged_before, attrs=dict(node.attrs)))
            yield Change("averaged before", text, (node.name,), call)


def _offset(
    x: Array, weight: Array, bias: Array | None = None, *, attrs: Any, offset: tuple[int, int], stride: tuple[int, int]
) -> Array:
    return conv2d(x, weight, bias, **{**attrs, "stride": 1})[:, :, offset[0] :: stride[0], offset[1] :: stride[1]]


def _mean2(x: Array) -> Array:
    x = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def _averaged(x: Array, weight: Array, bias: Array | None = None, *, attrs: Any) -> Array:
    return _mean2(conv2d(x, weight, bias, **{**attrs, "stride": 1}))


def _averaged_before(x: Array, weight: Array, bias: Array | None = None, *, attrs: Any) -> Array:
    return conv2d(_mean2(x), weight, bias, **{**attrs, "stride": 1})


CAUSES = (
    Cause(
        "padding-side",
        "pads more on one side of the image than on the other",
        "pad as torch.nn.Conv2d does, both sides alike, by an explicit pad before a VALID convolution",
        _sides,
    ),
    Cause("padding-amount", "pads by another number of rows and columns", "take the padding of the reference", _amount),
    Cause("padding-mode", "pads with something else than zeros", "pad with zeros", _beyond),
    Cause("dilation", "uses another dilation", "take the dilation of the reference", _dilation),
    Cause("stride-offset", "takes other positions of a strided convolution", "begin at the first position", _stride),
)
