"""Which kernel computes a node: one function for each op, which reads places and emits instructions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refvit.backends.numba import attention, combine, depthwise, inverted, pool, resize, rows, stripes, winograd
from refvit.backends.numba import shortcut as shortcuts
from refvit.backends.numba.conv import Packed, Taps, conv, linear, pack, panels
from refvit.backends.numba.copy import LayoutError, copy, fill
from refvit.backends.numba.copy import pad as padded
from refvit.backends.numba.cpu import target
from refvit.backends.numba.epilogue import ACT
from refvit.backends.numba.layout import Place, matrix, same_rows
from refvit.backends.numba.lower import Lowering
from refvit.backends.numba.program import Buffer
from refvit.errors import BackendError
from refvit.graph.ir import Array, Node, Step
from refvit.ops.conv import _borders, _pair

FEW_CHANNELS = 4  # of an image: the taps of a row are read as one run


class Tail:
    """What follows a product in its node: what the product's own kernel takes in, and the steps that are left."""

    def __init__(self, node: Node) -> None:
        steps = node.attrs["steps"] if node.op == "fused" else (Step(node.op, tuple(range(len(node.inputs))), node.attrs),)
        self.first: Step = steps[0]
        self.inputs = node.inputs
        self.factor = 1.0
        self.residual: str | None = None
        self.act = "none"
        at = len(node.inputs)  # number of the value so far
        used = 1
        for i, step in enumerate(steps[1:], 1):
            others = [j for j in step.inputs if j != at]
            if step.op == "scale" and used == 1:
                self.factor *= step.attrs["factor"]
            elif (
                step.op == "add"
                and len(others) == 1
                and self.act == "none"
                and self.residual is None
                and _outer(node, others[0])
            ):
                self.residual = node.inputs[others[0]]  # type: ignore[index]
            elif step.op in _ACTIVATIONS and self.act == "none":
                self.act = _activation(step)
            else:
                break
            at, used = len(node.inputs) + i, i + 1
        self.rest: tuple[Step, ...] = steps[used:]
        self.at = at

    def operand(self, i: int) -> str | None:
        """Name of an input of the product."""
        j = self.first.inputs[i] if i < len(self.first.inputs) else None
        return None if j is None else self.inputs[j]


_ACTIVATIONS = ("relu", "silu", "gelu", "hardswish", "sigmoid")


def _activation(step: Step) -> str:
    return "gelu_tanh" if step.op == "gelu" and step.attrs["approximate"] == "tanh" else step.op


def _outer(node: Node, i: int | None) -> bool:
    return i is not None and i < len(node.inputs)


def _finish(low: Lowering, node: Node, tail: Tail, value: Place, out: Place) -> None:
    """The steps that the product's kernel did not take in: one pass over its result."""
    if not tail.rest:
        return
    first = len(node.inputs)
    number, inputs = {tail.at: 0}, [value]
    for step in tail.rest:
        for i in step.inputs:
            if i is not None and i < first and i not in number:
                number[i] = len(inputs)
                inputs.append(low.place(node.inputs[i]))  # type: ignore[arg-type]
    done = [tail.at + 1 + k for k in range(len(tail.rest))]
    number |= {old: len(inputs) + k for k, old in enumerate(done)}
    steps = tuple(Step(s.op, tuple(None if i is None else number[i] for i in s.inputs), s.attrs) for s in tail.rest)
    _combine(low, steps, inputs, out)


def _combine(low: Lowering, steps: tuple[Step, ...], inputs: Sequence[Place], out: Place) -> None:
    try:
        low.emit(combine.combine(steps, list(inputs), out))
    except LayoutError:
        plain = low.new(out.shape, tuple(range(len(out.shape))))
        low.emit(combine.combine(steps, [low.copied(x, tuple(range(len(x.shape)))) for x in inputs], plain))
        low.emit(copy(plain, out))


def elementwise(low: Lowering, node: Node) -> None:
    """Activations, sums, products, and fused sums."""
    steps = node.attrs["steps"] if node.op == "fused" else (Step(node.op, tuple(range(len(node.inputs))), node.attrs),)
    inputs = [low.place(i) for i in node.sources]
    first = next((x for x in inputs if x.shape == node.shape and x.buffer.array is None), None)
    if node.name not in low.targets and first is not None and len(node.shape) != 4 and matrix(first.axes[:-1]) is not None:
        low.places[node.name] = out = low.like(first, node.shape[-1])  # tokens keep their order in memory
    else:
        out = low.result(node)
    _combine(low, steps, inputs, out)


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
    if c > FEW_CHANNELS and x.axes[1] and x.stride(1) != 1:
        x = low.copied(x)
    out = low.result(node, _pixels_in_rows)
    # what is left of the tail reads whole maps: the product then has memory of its own
    value = low.new(node.shape) if tail.rest else out
    residual = None if tail.residual is None else low.place(tail.residual)
    if residual is not None and (residual.shape != node.shape or not _pixels_in_rows(residual)):
        residual = low.copied(residual) if residual.shape == node.shape else low.copied(residual.broadcast(node.shape))
    stride, dilation = _pair("stride", attrs["stride"], 1), _pair("dilation", attrs["dilation"], 1)
    (top, bottom), (left, right) = _borders(attrs["padding"])
    groups = attrs["groups"]
    if groups == c and k == c and groups > 1:
        weight, bias = _arrays(low, tail, weight_name, bias_name)
        low.emit(depthwise.depthwise(x, weight, bias, value, attrs["stride"], attrs["padding"], attrs["dilation"],
                                     act=ACT[tail.act], pre_act=ACT["hardswish" if early else "none"], residual=residual))  # fmt: skip
    elif groups > 1:
        _grouped(low, tail, x, value, weight_name, bias_name, Taps((r, s), stride, (top, left), dilation), groups, residual)
    elif c <= FEW_CHANNELS and dilation == (1, 1) and (r, s) != (1, 1):
        _few_channels(low, tail, x, value, weight_name, bias_name, (stride, (top, bottom), (left, right)), residual)
    else:
        tile = 0
        if (r, s) == (3, 3) and stride == dilation == (1, 1) and top == bottom == left == right <= 2:
            tile = winograd.choose(c, k, *node.shape[2:], n)
        if tile:
            bias = None if bias_name is None else low.constants[bias_name].array * np.float32(tail.factor)
            packed = low.constants.share(
                f"winograd{tile} {tail.factor} {low.constants.key(weight_name)}",
                lambda: winograd.pack(low.constants[weight_name].array * np.float32(tail.factor), tile),
            )
            low.emit(winograd.winograd(x, packed, bias, value, top, tile=tile, residual=residual,
                                       relu=tail.act == "relu", act=0 if tail.act == "relu" else ACT[tail.act]))  # fmt: skip
        else:
            packed = _packed(low, tail, weight_name, bias_name, "taps", lambda a: a.transpose(0, 2, 3, 1).reshape(k, r * s, c))
            taps = Taps((r, s), stride, (top, left), dilation)
            low.emit(conv(x, packed, value, taps, residual=residual, **_act(tail)))
    _finish(low, node, tail, value, out)


def _inverted(low: Lowering, node: Node, tail: Tail) -> bool:
    """Three layers as one, if that pays; False if not."""
    first, middle = (Tail(n) for n in low.residuals[node.name])
    names = [t.operand(i) for t in (first, middle, tail) for i in (1, 2)]
    name = first.operand(0)
    assert name is not None and names[0] is not None and names[2] is not None
    x, attrs = low.place(name), {"stride": 1, "padding": 0, "dilation": 1, **middle.first.attrs}
    stride = _pair("stride", attrs["stride"], 1)
    hidden = low.graph.value(names[0]).shape[0]
    apart = x.axes[1] and x.stride(1) != 1
    if tail.rest or tail.act != "none" or tail.factor != 1.0 or apart:
        return False
    if not inverted.worthwhile(x.shape[0], *x.shape[2:], hidden, stride[0]):
        return False
    residual = None if tail.residual is None else low.place(tail.residual)
    if residual is not None and residual.shape != node.shape:
        return False
    arrays = [None if n is None else low.constants[n] for n in names]
    key = f"inverted {[None if c is None else c.key for c in arrays]}"
    layers = low.constants.share(key, lambda: inverted.pack_layers(*(None if c is None else c.array for c in arrays)))
    low.emit(inverted.inverted(x, layers, low.result(node, _pixels_in_rows), stride=stride, padding=attrs["padding"],
                               dilation=attrs["dilation"], act=ACT[first.act], residual=residual))  # fmt: skip
    return True


def _act(tail: Tail) -> dict[str, Any]:
    return {"relu": tail.act == "relu", "act": "none" if tail.act == "relu" else tail.act}


def _pixels_in_rows(place: Place) -> bool:
    """Channels next to one another, pixels of an image one after the other at one distance."""
    if len(place.axes) != 4 or any(len(a) > 1 for a in place.axes) or (place.axes[1] and place.stride(1) != 1):
        return False
    found = matrix(place.axes[2:])
    return found is not None and (min(place.shape[2:]) == 1 or place.stride(2) > place.stride(3))


def _arrays(low: Lowering, tail: Tail, weight: str, bias: str | None) -> tuple[Array, Array | None]:
    factor = np.float32(tail.factor)
    return low.constants[weight].array * factor, None if bias is None else low.constants[bias].array * factor


def _packed(low: Lowering, tail: Tail, weight: str, bias: str | None, kind: str, arrange: Callable[[Array], Array]) -> Packed:
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
    packed = _packed(low, tail, weight, bias, "runs", lambda a: a.transpose(0, 2, 3, 1).reshape(k, r, s * c))
    low.emit(conv(padded, packed, out, Taps((r, 1), stride), residual=residual, **_act(tail)))


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
        low.emit(conv(part, packed, to, taps, residual=added, **_act(tail)))


def linear_layer(low: Lowering, node: Node) -> None:
    """A linear layer: rows in whatever order they lie."""
    tail = Tail(node)
    if node.name in low.merged:  # the shortcut has the other term in it
        tail.residual, tail.rest = low.merged[node.name], ()
    name, weight, bias = tail.operand(0), tail.operand(1), tail.operand(2)
    assert name is not None and weight is not None
    x = _matrix_of(low, name)
    k = node.shape[-1]
    target = low.targets.get(node.name)
    if target is not None and not tail.rest and _alike(x, target):
        out = target
    else:
        out = low.like(x, k)
    residual = None if tail.residual is None else low.place(tail.residual)
    if residual is not None and (residual.shape != node.shape or not _alike(residual, out)):
        own = low.like(x, k)
        low.emit(copy(residual.broadcast(node.shape), own))
        residual = own
    packed = _packed(low, tail, weight, bias, "rows", lambda a: a.reshape(k, 1, -1))
    low.emit(linear(x, packed, out, residual=residual, **_act(tail)))
    if tail.rest:
        value, out = out, low.like(x, k)
        _finish(low, node, tail, value, out)
    if target is not None and out is not target:
        low.emit(copy(out, target))
        out = target
    low.places[node.name] = out


def _matrix_of(low: Lowering, name: str) -> Place:
    """A value whose rows are a matrix in memory, copied if they are not."""
    x = low.place(name)
    if (not x.axes[-1] or (len(x.axes[-1]) == 1 and x.stride(-1) == 1)) and matrix(x.axes[:-1]) is not None:
        return x
    return low.copied(x, tuple(range(len(x.shape))))


def _alike(x: Place, y: Place) -> bool:
    """Whether two values have their rows in the same order of memory."""
    a, b = matrix(x.axes[:-1]), matrix(y.axes[:-1])
    one = not y.axes[-1] or (len(y.axes[-1]) == 1 and y.stride(-1) == 1)
    return a is not None and b is not None and one and same_rows(x.axes[:-1], a[1] or 1, y.axes[:-1], b[1] or 1)


def shortcut(low: Lowering, node: Node) -> None:
    """HRViT's diversity shortcut, a token at a time."""
    found = low.shortcuts[node.name]
    x = _matrix_of(low, found.x)
    low.places[node.name] = out = low.like(x, node.shape[-1])
    weights = [low.constants[name].array for name in (*found.right, *found.left)]
    low.emit(shortcuts.shortcut(x, *weights, out, [x] if found.plus else []))


def matmul(low: Lowering, node: Node) -> None:
    """A product of two computed matrices, (..., l, d) and (..., d, m): the second is brought into panels on the way."""
    tail = Tail(node)
    names = [tail.operand(0), tail.operand(1)]
    assert names[0] is not None and names[1] is not None
    *lead, _, d = low.graph.value(names[0]).shape
    m, count = node.shape[-1], math.prod(lead)
    if low.graph.value(names[1]).shape[:-2] != tuple(lead) or tail.act != "none" or tail.residual or tail.rest:
        raise BackendError(f"{node.name}: the numba backend has no kernel for this product with what follows it: {node.attrs}")
    out = low.new(node.shape, tuple(range(len(node.shape))))
    xs, ys, outs = (_flat(low, place, count) for place in (low.place(names[0]), low.place(names[1]), out))
    for x, y, to in zip(xs, ys, outs, strict=True):
        if matrix(x.axes[:1]) is None or (x.axes[1] and x.stride(1) != 1):
            x = low.copied(x, (0, 1))
        shape = panels(m, 1, d)
        for i in range(shape.panels):
            start, width = i * shape.vectors * target().lanes, (shape.vectors if i < shape.panels - 1 else shape.last_vectors)
            columns, lanes = min(m - start, width * target().lanes), width * target().lanes
            axes = (((d, lanes),) if d > 1 else (), ((columns, 1),) if columns > 1 else ())
            part = y.slice(1, start, columns)
            assert part is not None
            low.emit(copy(part, Place(shape.weight, start * d, axes)))
        low.emit(linear(x, shape, to))
    low.places[node.name] = out
    if tail.factor != 1.0:
        low.places[node.name] = scaled = low.like(out, m)
        _combine(low, (Step("scale", (0,), {"factor": tail.factor}),), [out], scaled)


def _flat(low: Lowering, place: Place, count: int) -> list[Place]:
    """The matrices of a stack, one by one."""
    shape = (count, *place.shape[-2:])
    stack = place.reshape(shape) or low.copied(place, tuple(range(len(place.shape)))).reshape(shape)
    assert stack is not None
    parts = [stack.slice(0, i, 1) for i in range(count)]
    return [p.squeeze(0) for p in parts if p is not None]


def layer_norm(low: Lowering, node: Node) -> None:
    """Each row on its own."""
    x = _matrix_of(low, node.inputs[0])  # type: ignore[arg-type]
    low.places[node.name] = out = low.like(x, node.shape[-1])
    weight, bias = (low.place(i) for i in node.inputs[1:] if i is not None)
    low.emit(rows.layer_norm(x, weight, bias, node.attrs["eps"], out))


def softmax(low: Lowering, node: Node) -> None:
    """Along the last axis; other axes are brought there by a view."""
    axis = node.attrs["axis"] % len(node.shape)
    order = (*(i for i in range(len(node.shape)) if i != axis), axis)
    x = low.place(node.sources[0]).transpose(order)
    if matrix(x.axes[:-1]) is None or (x.axes[-1] and x.stride(-1) != 1):
        x = low.copied(x, tuple(range(len(x.shape))))
    y = low.like(x, x.shape[-1])
    low.emit(rows.softmax(x, y))
    low.places[node.name] = y.transpose(tuple(order.index(i) for i in range(len(order))))


def attend(low: Lowering, node: Node) -> None:
    """Scaled dot-product attention; the result's tokens lie in the order of the queries', heads side by side in each."""
    q, k, v = (low.place(i) for i in node.sources)
    out = _heads(low, q, node)
    low.places[node.name] = out
    low.emit(attention.attention(q, k, v, out, node.attrs["scale"]))


def _heads(low: Lowering, q: Place, node: Node) -> Place:
    """Memory for (..., heads, l, d) that reads as rows of heads * d values."""
    if len(node.shape) < 3:
        return low.new(node.shape)
    *lead, heads, _, d = node.shape
    outer = [*q.axes[: len(lead)], q.axes[-2]]
    found = matrix(outer)
    if found is None:
        return low.new(node.shape, (*range(len(lead)), len(lead) + 1, len(lead), len(lead) + 2))
    count, step = found
    axes = [tuple((e, s // step * heads * d) for e, s in axis) for axis in outer]
    head, inner = (((size, stride),) if size > 1 else () for size, stride in ((heads, d), (d, 1)))
    return Place(Buffer(count * heads * d), 0, (*axes[:-1], head, axes[-1], inner))


def stripe(low: Lowering, node: Node) -> None:
    """Window attention; the result's pixels lie in the order of the queries'."""
    q, k, v = (low.place(i) for i in node.sources)
    out = low.targets.get(node.name)
    if out is None:
        upright = not q.axes[2] or not q.axes[3] or q.stride(2) >= q.stride(3)
        out = low.new(node.shape, (0, 2, 3, 1) if upright else (0, 3, 2, 1))
    low.places[node.name] = out
    low.emit(stripes.stripe_attention(q, k, v, out, **node.attrs))


def resized(low: Lowering, node: Node) -> None:
    x = low.place(node.sources[0])
    if x.axes[1] and x.stride(1) != 1:
        x = low.copied(x)
    low.emit(resize.resize(x, low.result(node), **node.attrs))


def mean(low: Lowering, node: Node) -> None:
    x = low.place(node.sources[0])
    out = low.new(node.shape)
    low.places[node.name] = out
    low.emit(pool.mean(x, out, **node.attrs))


def adaptive(low: Lowering, node: Node) -> None:
    low.emit(pool.adaptive_avg_pool(low.place(node.sources[0]), low.result(node)))


def concat(low: Lowering, node: Node) -> None:
    """Parts that are not in their places already are copied there."""
    for part, wanted in zip(node.inputs, low.parts[node.name], strict=True):
        assert part is not None
        here = low.place(part)
        if here != wanted:
            low.emit(copy(here, wanted))
    low.places[node.name] = low.wholes[node.name]


def pad(low: Lowering, node: Node) -> None:
    """A border of one value."""
    low.emit(padded(low.place(node.sources[0]), low.result(node), node.attrs["widths"], node.attrs.get("value", 0.0)))


KERNELS: dict[str, Callable[[Lowering, Node], None]] = {
    "conv2d": conv2d, "linear": linear_layer, "matmul": matmul, "layer_norm": layer_norm, "softmax": softmax, "attention": attend,
    "stripe_attention": stripe, "resize": resized, "mean": mean, "adaptive_avg_pool": adaptive, "concat": concat, "pad": pad,
    **dict.fromkeys(("relu", "silu", "gelu", "hardswish", "sigmoid", "add", "multiply", "scale"), elementwise),
}  # fmt: skip
