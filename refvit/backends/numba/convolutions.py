"""Convolutions: depthwise, Winograd, dense, or three layers at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refvit.backends.numba import depthwise, inverted, winograd
from refvit.backends.numba.conv import Packed, Taps, conv, pack
from refvit.backends.numba.copy import copy, fill
from refvit.backends.numba.epilogue import ACT
from refvit.backends.numba.layout import Place, matrix
from refvit.backends.numba.lower import Lowering
from refvit.backends.numba.tail import Tail, finish, in_tile
from refvit.graph.ir import Array, Node
from refvit.ops.conv import _borders, _pair

FEW_CHANNELS = 4  # of an image: the taps of a row are read as one run


def conv2d(low: Lowering, node: Node) -> None:
    """Depthwise, Winograd or dense, whichever suits the layer."""
    tail = Tail(node)
    if node.name in low.residuals:
        if _inverted(low, node, tail):
            return
        for layer in low.residuals[node.name]:
            conv2d(low, layer)
    attrs: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **tail.first.attrs}
    name, weight_name, bias_name = tail.operand(0), tail.operand(1), tail.operand(2)
    assert name is not None and weight_name is not None
    early = name in low.early
    x, shape = low.place(low.early.get(name, name)), low.graph.value(weight_name).shape
    k, _, r, s = shape
    n, c = x.shape[:2]
    stride, dilation = _pair("stride", attrs["stride"], 1), _pair("dilation", attrs["dilation"], 1)
    (top, bottom), (left, right) = _borders(attrs["padding"])
    groups = attrs["groups"]
    few = c <= FEW_CHANNELS and groups == 1 and dilation == (1, 1) and (r, s) != (1, 1)
    x = x if few else low.as_map(x)
    out = low.result(node, _pixels_in_rows)
    # what is left of the tail reads whole maps: the product then has memory of its own
    value = low.new(node.shape) if tail.rest else out
    residual = None if tail.residual is None else low.place(tail.residual)
    if residual is not None and (residual.shape != node.shape or not _pixels_in_rows(residual)):
        residual = low.copied(residual.broadcast(node.shape))
    if groups == c and k == c and groups > 1:
        weight, bias = _arrays(low, tail, weight_name, bias_name)
        low.emit(depthwise.depthwise(
            x, weight, bias, value, attrs["stride"], attrs["padding"], attrs["dilation"],
            act=ACT[tail.act], pre_act=ACT["hardswish" if early else "none"], residual=residual,
        ))  # fmt: skip
    elif groups > 1:
        _grouped(low, tail, x, value, weight_name, bias_name, Taps((r, s), stride, (top, left), dilation), groups, residual)
    elif few:
        _few_channels(low, tail, x, value, weight_name, bias_name, (stride, (top, bottom), (left, right)), residual)
    else:
        form = None
        even = top == left and 0 <= bottom <= top and 0 <= right <= left <= 2
        if (r, s) == (3, 3) and stride[0] == stride[1] and dilation == (1, 1) and even:
            form = winograd.choose(c, k, *node.shape[2:], n, stride[0])
        if form is not None:
            bias = None if bias_name is None else low.constants.array(bias_name) * np.float32(tail.factor)
            turned = low.constants.share(
                f"winograd {form.name} {tail.factor} {low.constants.key(weight_name)}",
                lambda: winograd.pack(low.constants.array(weight_name) * np.float32(tail.factor), form),
            )
            low.emit(winograd.winograd(x, turned, bias, value, top, threads=low.threads, residual=residual,
                                       relu=tail.act == "relu", act=0 if tail.act == "relu" else ACT[tail.act]))  # fmt: skip
        else:
            packed = packed_once(
                low, tail, weight_name, bias_name, "taps", lambda a: a.transpose(0, 2, 3, 1).reshape(k, r * s, c)
            )
            taps = Taps((r, s), stride, (top, left), dilation)
            low.emit(conv(x, packed, value, taps, residual=residual, **in_tile(tail)))
    finish(low, node, tail, value, out)


def _inverted(low: Lowering, node: Node, tail: Tail) -> bool:
    """Three layers as one, if that pays; False if not."""
    first, middle = (Tail(n) for n in low.residuals[node.name])
    names = [t.operand(i) for t in (first, middle, tail) for i in (1, 2)]
    name = first.operand(0)
    assert name is not None and names[0] is not None and names[2] is not None
    x, attrs = low.place(name), {"stride": 1, "padding": 0, "dilation": 1, **middle.first.attrs}
    stride = _pair("stride", attrs["stride"], 1)
    hidden = low.graph.value(names[0]).shape[0]
    n, _, h, w = x.shape
    if tail.rest or tail.act != "none" or tail.factor != 1.0 or not inverted.worthwhile(n, h, w, hidden, stride[0]):
        return False
    residual = None if tail.residual is None else low.place(tail.residual)
    if not x.channels_last or (residual is not None and (residual.shape != node.shape or not residual.channels_last)):
        return False

    def packed() -> inverted.Layers:
        arrays: list[Any] = [None if name is None else low.constants.array(name) for name in names]
        return inverted.pack_layers(*arrays)

    key = f"inverted {[None if name is None else low.constants.key(name) for name in names]}"
    layers = low.constants.share(key, packed)
    low.emit(inverted.inverted(x, layers, low.result(node, _pixels_in_rows), stride=stride, padding=attrs["padding"],
                               dilation=attrs["dilation"], act=ACT[first.act], residual=residual))  # fmt: skip
    return True


def _pixels_in_rows(place: Place) -> bool:
    """Channels next to one another, pixels of an image one after the other at one distance."""
    if not place.channels_last:
        return False
    found = matrix(place.axes[2:])
    return found is not None and (min(place.shape[2:]) == 1 or place.stride(2) > place.stride(3))


def _arrays(low: Lowering, tail: Tail, weight: str, bias: str | None) -> tuple[Array, Array | None]:
    factor = np.float32(tail.factor)
    return low.constants.array(weight) * factor, None if bias is None else low.constants.array(bias) * factor


def packed_once(
    low: Lowering, tail: Tail, weight: str, bias: str | None, kind: str, arrange: Callable[[Array], Array]
) -> Packed:
    def make() -> Packed:
        w, b = _arrays(low, tail, weight, bias)
        return pack(arrange(w), b)

    keys = f"{kind} {tail.factor} {low.constants.key(weight)} {'' if bias is None else low.constants.key(bias)}"
    return low.constants.share(keys, make)


def _few_channels(
    low: Lowering, tail: Tail, x: Place, out: Place, weight: str, bias: str | None, geometry: Any, residual: Place | None
) -> None:
    """The first layer: in a channels-last copy with its border, the taps of a kernel row are one run of values."""
    stride, (top, bottom), (left, right) = geometry
    n, c, h, w = x.shape
    k, _, r, s = low.graph.value(weight).shape
    padded = low.new((n, c, h + top + bottom, w + left + right))
    if padded.shape != x.shape:
        low.emit(fill(padded, 0.0))
    inner = padded.slice(2, top, h)
    inner = None if inner is None else inner.slice(3, left, w)
    assert inner is not None
    low.emit(copy(x, inner))
    packed = packed_once(low, tail, weight, bias, "runs", lambda a: a.transpose(0, 2, 3, 1).reshape(k, r, s * c))
    low.emit(conv(padded, packed, out, Taps((r, 1), stride), residual=residual, **in_tile(tail)))


def _grouped(
    low: Lowering,
    tail: Tail,
    x: Place,
    out: Place,
    weight: str,
    bias: str | None,
    taps: Taps,
    groups: int,
    residual: Place | None,
) -> None:
    """Each group as a convolution of its own; no published model has one on its way."""
    k, c_group, r, s = low.graph.value(weight).shape
    w, b = _arrays(low, tail, weight, bias)
    k_group = k // groups
    for g in range(groups):
        mine = slice(g * k_group, (g + 1) * k_group)
        packed = pack(w[mine].transpose(0, 2, 3, 1).reshape(k_group, r * s, c_group), None if b is None else b[mine])
        part, to = x.slice(1, g * c_group, c_group), out.slice(1, g * k_group, k_group)
        added = None if residual is None else residual.slice(1, g * k_group, k_group)
        assert part is not None and to is not None
        low.emit(conv(part, packed, to, taps, residual=added, **in_tile(tail)))
