"""The answer in another form: labels in another order, a softmax too many, images of the batch exchanged."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from refvit.crosscheck.causes.hypothesis import Call, Cause, Change, Family, Scene
from refvit.graph.ir import Array
from refvit.ops.activation import sigmoid, softmax


def class_axis(scene: Scene) -> int | None:
    """The axis of the classes (joints, ...), where the segment's value is an output of the graph."""
    names = [public for public, value in scene.graph.outputs.items() if value == scene.result]
    if not names or "boxes" in names or not scene.segment.nodes:
        return None
    return 1 if scene.base.ndim == 4 else scene.base.ndim - 1


def _activation(scene: Scene) -> Iterator[Change]:
    axis = class_axis(scene)
    if axis is None:
        return
    forms: tuple[tuple[str, str, Any], ...] = (
        ("softmax", "softmax over the classes is applied to the logits", partial(softmax, axis=axis)),
        ("log-softmax", "log-softmax is applied to the logits", lambda x: np.log(softmax(x, axis=axis))),
        ("sigmoid", "a sigmoid is applied to the logits", sigmoid),
        ("relu", "ReLU is applied to the logits", lambda x: np.maximum(x, 0)),
        ("tanh", "tanh is applied to the logits", np.tanh),
        ("norm", "the logits are divided by their length", lambda x: x / np.sqrt((x * x).sum(axis, keepdims=True))),
        ("percent", "softmax over the classes in per cent", lambda x: 100 * softmax(x, axis=axis)),
    )
    for option, text, function in forms:
        yield Change(option, text, (scene.result,), result=function)


def _labels(scene: Scene) -> Iterator[Change]:
    axis = class_axis(scene)
    if axis is None:
        return
    k = scene.base.shape[axis]
    forms: tuple[tuple[str, str, Any], ...] = (
        (
            "later",
            "the classes are off by one: class 0 stands at index 1 (a background class in front)",
            partial(np.roll, shift=1),
        ),
        ("earlier", "the classes are off by one: class 1 stands at index 0", partial(np.roll, shift=-1)),
        ("reversed", "the classes are in reversed order", np.flip),
    )
    for option, text, function in forms:
        yield Change(option, text, (scene.result,), result=partial(function, axis=axis))
    names = sorted(range(k), key=str)
    for option, order in (("sorted", names), ("unsorted", list(np.argsort(names)))):
        text = "the classes are in the order of their numbers written as text: 0, 1, 10, 100, 101, ..."
        yield Change(option, text, (scene.result,), result=partial(np.take, indices=order, axis=axis))


def permuted(got: Array, want: Array, axis: int) -> list[int] | None:
    """The order of want's entries along an axis that gives got, if every entry has one clear partner."""
    a, b = (np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) for x in (got, want))
    if len(a) > 4096 or len(a) < 3 or not np.isfinite(a).all():
        return None
    a, b = a[:, :: max(1, a.shape[1] // 64)], b[:, :: max(1, b.shape[1] // 64)]
    order = []
    for row in a:
        distance = np.abs(b - row).max(1)
        order.append(int(distance.argmin()))
    return order if sorted(order) == list(range(len(a))) and order != list(range(len(a))) else None


def _permutation(scene: Scene) -> Iterator[Change]:
    axis = class_axis(scene)
    if axis is None or scene.observed.shape != scene.base.shape:
        return
    order = permuted(scene.observed, scene.base, axis)
    if order is not None:
        moved = [i for i, j in enumerate(order) if i != j]
        where = f"index {moved[0]} holds class {order[moved[0]]}"
        text = f"{len(moved)} of the {len(order)} classes are in another order: {where}, ..."
        yield Change("permuted", text, (scene.result,), result=partial(np.take, indices=order, axis=axis))


def _batch(scene: Scene) -> Iterator[Change]:
    n = scene.base.shape[0]
    images = next(iter(scene.graph.inputs.values())).shape[0]
    if images < 2 or n != images:
        return
    forms: tuple[tuple[str, str, Any], ...] = (
        ("reversed", "the images of the batch come out in reversed order", lambda x: x[::-1]),
        ("first", "every image of the batch gets the first one's answer", lambda x: np.repeat(x[:1], n, 0)),
        ("last", "every image of the batch gets the last one's answer", lambda x: np.repeat(x[-1:], n, 0)),
        ("later", "every image of the batch gets the answer of the one before it", lambda x: np.roll(x, 1, 0)),
        ("mean", "every image of the batch gets the mean of all", lambda x: np.repeat(x.mean(0, keepdims=True), n, 0)),
    )
    for option, text, function in forms:
        yield Change(option, text, (scene.result,), result=function)


def _turned(scene: Scene) -> Iterator[Change]:
    if class_axis(scene) is None or scene.base.ndim != 4:
        return
    for option, text, function in (
        ("left right", "the maps are mirrored left to right", lambda x: x[..., ::-1]),
        ("upside down", "the maps are upside down", lambda x: x[:, :, ::-1]),
        ("transposed", "rows and columns of the maps are exchanged", lambda x: x.swapaxes(2, 3)),
        ("shifted", "the maps are shifted by one pixel to the right, as for the flip test", _shifted),
    ):
        yield Change(option, text, (scene.result,), result=function)


def _shifted(x: Array) -> Array:
    y = x.copy()
    y[..., 1:] = x[..., :-1]
    return y


def _other(scene: Scene) -> Iterator[Change]:
    """The value of another head, or another part of the last one."""
    if scene.result not in scene.graph.outputs.values():
        return
    for node in scene.of("conv2d", "linear"):
        if node.name != scene.result and node.shape == scene.base.shape:
            call = {scene.result: Call(np.asarray, (node.name,))}
            yield Change(f"head {node.name}", f"the answer is that of {node.name}", (scene.result,), call)
    last = scene.nodes.get(scene.result)
    if last is not None and last.op == "getitem" and isinstance(last.attrs["index"], tuple):
        count, whole = last.shape[-1], scene.shape(str(last.inputs[0]))[-1]
        for option, index in (("first", slice(0, count)), ("last", slice(whole - count, whole))):
            text = f"the {option} {count} of {whole} numbers are taken for this output"
            call = scene.with_attrs(last, index=(*last.attrs["index"][:-1], index))
            yield Change(option, text, (scene.result,), call)


def _scaled(scene: Scene) -> Iterator[Change | Family]:
    if class_axis(scene) is None:
        return

    def make(numbers: tuple[float, ...]) -> Change:
        text = f"the logits are multiplied by {numbers[0]:.4g}"
        return Change("factor", text, (scene.result,), result=partial(np.multiply, numbers[0]))

    yield Family("factor", make, ((1.0,),))


CAUSES = (
    Cause("output-activation", "applies an activation to the logits", "hand out the logits themselves", _activation),
    Cause("label-order", "has the classes in another order", "use the order of the weights' labels", _labels),
    Cause(
        "label-permutation", "has the classes in another order", "use the order of the weights' labels", _permutation, wide=True
    ),
    Cause("batch-order", "mixes the images of a batch", "keep the batch axis apart", _batch),
    Cause("output-orientation", "turns the maps", "keep rows and columns as they are", _turned),
    Cause("output-other", "answers with another value", "take the reference's output", _other),
    Cause("output-scale", "scales the logits", "hand out the logits themselves", _scaled),
)
