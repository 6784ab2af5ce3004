"""Weights that were loaded in the wrong way: transposed, flipped, of another layer, without bias, rounded, not at all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import numpy as np

from refvit.crosscheck.arithmetic import rounded
from refvit.crosscheck.causes.hypothesis import Cause, Change, Function, Scene
from refvit.graph.ir import Array, Node

WEIGHTED = ("conv2d", "linear")
AXES = {4: "oihw", 2: "oi"}


def weighted(scene: Scene) -> Iterator[tuple[Node, str, Array]]:
    """The products with a parameter: node, the weight's name, the weight."""
    for node in scene.of(*WEIGHTED):
        name = node.inputs[1]
        if name is not None and name in scene.params:
            yield node, name, scene.params[name]


def biases(scene: Scene) -> Iterator[tuple[Node, str, Array]]:
    for node in scene.of(*WEIGHTED):
        name = node.inputs[2] if len(node.inputs) > 2 else None
        if name is not None and name in scene.params:
            yield node, name, scene.params[name]


def misread(weight: Array) -> Iterator[tuple[str, str, Function]]:
    """(option, text, function) of a weight read in another order of axes than it was written in, without repetitions."""
    letters, seen = AXES[weight.ndim], [_signature(weight)]
    for axes in itertools.permutations(range(weight.ndim)):
        order = "".join(letters[a] for a in axes)
        for kind, text, function in (
            ("axes", f"the weight's axes are taken as {order.upper()} where they are {letters.upper()}", _transpose),
            ("read", f"the weight's numbers, which lie in the order {letters.upper()}, are read as {order.upper()}", _read),
            ("written", f"the weight was written in the order {order.upper()} and is read as {letters.upper()}", _written),
        ):
            fits = kind != "axes" or tuple(weight.shape[a] for a in axes) == weight.shape
            signature = _signature(weight.transpose(axes) if kind == "written" else function(weight, axes))
            if fits and signature not in seen:
                seen.append(signature)
                yield f"{kind} {order}", text, partial(function, axes=axes)


def _signature(weight: Array) -> bytes:
    """The first numbers, which differ between orders of the same numbers."""
    return np.asarray(weight.flat[:4096]).tobytes()


def _transpose(weight: Array, axes: tuple[int, ...]) -> Array:
    return weight.transpose(axes)


def _read(weight: Array, axes: tuple[int, ...]) -> Array:
    return weight.reshape([weight.shape[a] for a in axes]).transpose(np.argsort(axes))


def _written(weight: Array, axes: tuple[int, ...]) -> Array:
    return weight.transpose(axes).reshape(weight.shape)


def _transposed(scene: Scene) -> Iterator[Change]:
    for node, name, weight in weighted(scene):
        for option, text, function in misread(weight):
            text = "the weight is transposed" if option == "axes io" else text
            yield Change(option, text, (node.name,), params={name: function})


def _flipped(scene: Scene) -> Iterator[Change]:
    for node, name, weight in weighted(scene):
        if weight.ndim == 4 and max(weight.shape[2:]) > 1:
            for option, text, axes in (
                ("both", "the kernel is rotated by 180 degrees: a convolution where a cross-correlation is expected", (2, 3)),
                ("rows", "the kernel is flipped upside down", (2,)),
                ("columns", "the kernel is flipped left to right", (3,)),
            ):
                yield Change(option, text, (node.name,), params={name: partial(np.flip, axis=axes)})


def _channels(scene: Scene) -> Iterator[Change]:
    for node, name, weight in weighted(scene):
        for axis, what in ((0, "output"), (1, "input")):
            if weight.shape[axis] > 1:
                text = f"the {what} channels of the weight are in reversed order"
                yield Change(f"reversed {axis}", text, (node.name,), params={name: partial(np.flip, axis=axis)})


def _bias(scene: Scene) -> Iterator[Change]:
    for node, name, bias in biases(scene):
        for option, text, array in (
            ("missing", "the bias is not added", np.zeros_like(bias)),
            ("twice", "the bias is added twice", 2 * bias),
            ("negative", "the bias is subtracted", -bias),
        ):
            yield Change(option, text, (node.name,), params={name: array})
    for node in scene.of("conv2d", "linear"):
        norm = next((u for u in scene.users.get(node.name, []) if u.op == "batch_norm"), None)
        shift = scene.param(norm, 2) if norm is not None else None
        if norm is not None and shift is not None and node.inputs[2] is None:
            text = "the norm's bias is added by the convolution already, and once more by the norm"
            yield Change("of the norm", text, (norm.name,), params={str(norm.inputs[2]): 2 * shift})


def _another_layer(scene: Scene) -> Iterator[Change]:
    """Of a module: all that is called like its parameters and has their shapes, below another path."""
    read = {i for node in scene.nodes.values() for i in node.sources if i in scene.params}
    modules: dict[str, dict[str, str]] = {}
    for name in read:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            modules.setdefault(".".join(parts[:depth]), {})[".".join(parts[depth:])] = name
    for path, own in modules.items():
        whole = {n[len(path) + 1 :] for n in scene.params if n.startswith(path + ".")}
        if whole != set(own):
            continue  # a part of it is used outside of the segment
        leaf = next(iter(own))
        for other in (n[: -len(leaf) - 1] for n in scene.params if n.endswith("." + leaf)):
            names = {mine: f"{other}.{rest}" for rest, mine in own.items()}
            if other == path or _nested(other, path) or not all(n in scene.params for n in names.values()):
                continue
            arrays = {mine: scene.params[n] for mine, n in names.items()}
            if any(a.shape != scene.params[mine].shape for mine, a in arrays.items()):
                continue
            text = f"the weights of {other} are used where those of {path} are expected"
            yield Change(f"{path} < {other}", text, (path,), params=arrays, alone=True)


def _nested(a: str, b: str) -> bool:
    return a.startswith(b + ".") or b.startswith(a + ".")


def _not_loaded(scene: Scene) -> Iterator[Change]:
    for node, name, _ in weighted(scene):
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        params: dict[str, Function] = {name: np.zeros_like}
        yield Change("weight zero", "the weight is zero", (node.name,), params=params)
        if bias is not None and bias in scene.params:
            params = {**params, bias: np.zeros_like}
            yield Change("zero", "weight and bias are zero", (node.name,), params=params)
    for node in scene.of("batch_norm"):
        if all(i in scene.params for i in node.inputs[1:]):
            fresh = {str(i): np.full_like(scene.params[str(i)], v) for i, v in zip(node.inputs[1:], (1, 0, 0, 1), strict=True)}
            zero = {**fresh, str(node.inputs[1]): np.zeros_like(scene.params[str(node.inputs[1])])}
            yield Change("fresh norm of weight 0", "the norm is as it was created, with weight 0", (node.name,), params=zero)
            yield Change("fresh norm", "the norm is as it was created: weight 1, bias 0, mean 0, variance 1", (node.name,),
                         params=fresh)  # fmt: skip


def quantised(weight: Array, levels: int, channelwise: bool, asymmetric: bool = False) -> Array:
    """What is left of a weight in whole steps: the largest of the tensor, or of each output channel, has the last one."""
    axes = tuple(range(1, weight.ndim)) if channelwise else None
    if asymmetric:
        low, high = (np.minimum(weight.min(axes, keepdims=True), 0), np.maximum(weight.max(axes, keepdims=True), 0))
        step = np.maximum(high - low, 1e-300) / levels
        zero = np.rint(-low / step)
        return (np.clip(np.rint(weight / step) + zero, 0, levels) - zero) * step
    step = np.maximum(np.abs(weight).max(axes, keepdims=True), 1e-300) / levels
    return np.clip(np.rint(weight / step), -levels - 1, levels) * step


def _quantised(scene: Scene) -> Iterator[Change]:
    for node, name, _ in weighted(scene):
        for channelwise in (False, True):
            where = "output channel" if channelwise else "tensor"
            for levels, asymmetric, words in (
                (127, False, "int8, scale = largest / 127"), (128, False, "int8, scale = largest / 128"),
                (255, True, "uint8 with a zero point"), (7, False, "int4, scale = largest / 7"),
            ):  # fmt: skip
                text = f"weights quantised to {words}, one scale a {where}"
                function = partial(quantised, levels=levels, channelwise=channelwise, asymmetric=asymmetric)
                yield Change(f"{words} {where}", text, (node.name,), params={name: function})


def _half(scene: Scene) -> Iterator[Change]:
    for node in scene.nodes.values():
        names = [i for i in node.sources if i in scene.params]
        for kind in ("float16", "bfloat16"):
            if names:
                params: dict[str, Function] = {n: partial(rounded, arithmetic=kind) for n in names}
                yield Change(kind, f"the weights are stored in {kind}", (node.name,), params=params)
            if names and node.op in WEIGHTED:
                yield Change(f"{kind} kernel", f"the weights, but not the biases, are stored in {kind}", (node.name,),
                             params={names[0]: params[names[0]]})  # fmt: skip


def _scaled(scene: Scene) -> Iterator[Change]:
    for node, name, _ in weighted(scene):
        for factor in (2.0, 0.5, 255.0, 1 / 255, -1.0):
            text = f"the weight is multiplied by {factor:.4g}"
            yield Change(f"times {factor}", text, (node.name,), params={name: partial(np.multiply, factor)})


CAUSES = (
    Cause(
        "weight-transposed",
        "reads a weight in the wrong order of axes",
        "transpose the weight when loading it: the reference has (out, in) and (out, in, rows, columns)",
        _transposed,
    ),
    Cause("kernel-flipped", "flips a kernel", "do not flip: the networks' convolutions are cross-correlations", _flipped),
    Cause("channels-reversed", "has the channels of a weight in reversed order", "load the channels in their order", _channels),
    Cause("bias", "drops or doubles a bias", "add the bias once", _bias),
    Cause(
        "weights-of-another-layer", "uses the weights of another layer", "map the weights by name, not by order", _another_layer
    ),
    Cause(
        "weights-not-loaded",
        "has not loaded the weights of a layer",
        "load with strict=True and look at the missing keys",
        _not_loaded,
    ),
    Cause(
        "quantised-weights",
        "has quantised the weights",
        "this is a loss that was chosen; declare int8, or keep floats",
        _quantised,
    ),
    Cause(
        "weights-rounded",
        "stores the weights in a narrower format",
        "keep the weights in float32, or declare the arithmetic",
        _half,
    ),
    Cause("weight-scaled", "multiplies a weight by a number", "load the weight as it is", _scaled),
)
