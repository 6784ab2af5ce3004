"""Layer norm and batch norm under other formulas, with other statistics, without their parameters, or not at all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from refvit.crosscheck.causes.functions import column, normalised
from refvit.crosscheck.causes.hypothesis import Call, Cause, Change, Family, Scene
from refvit.graph.ir import Array, Node

EPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12, 0.0)


def _layer_norm(x: Array, weight: Array, bias: Array, **how: Any) -> Array:
    axes = how.pop("axes", (-1,))
    return normalised(x, axes, **how) * weight + bias


def _batch_norm(x: Array, weight: Array, bias: Array, mean: Array, var: Array, root: Callable[[Array], Array]) -> Array:
    weight, bias, mean, var = (column(a, x) for a in (weight, bias, mean, var))
    return (x - mean) / root(var) * weight + bias


def _statistics(
    x: Array, weight: Array, bias: Array, mean: Array, var: Array, axes: tuple[int, ...], eps: float, ddof: int = 0
) -> Array:
    return normalised(x, axes, eps, ddof) * column(weight, x) + column(bias, x)


def _eps(scene: Scene, op: str) -> Iterator[Change | Family]:
    for node in scene.of(op):
        own = node.attrs["eps"]
        for eps in EPS:
            if eps != own:
                text = f"eps {eps:g} where {own:g} is expected"
                yield Change(f"eps {eps:g}", text, (node.name,), scene.with_attrs(node, eps=eps))

        def make(numbers: tuple[float, ...], node: Node = node, own: float = own) -> Change:
            text = f"eps {numbers[0]:.2e} where {own:g} is expected"
            return Change("eps", text, (node.name,), scene.with_attrs(node, eps=numbers[0]))

        yield Family("eps", make, ((1e-4,), (1e-2,)), logarithmic=True)


def _outside(scene: Scene) -> Iterator[Change]:
    for node in scene.nodes.values():
        for eps in (1e-3, 1e-5, 1e-6, 1e-12):
            own = node.attrs.get("eps")
            text = f"eps {eps:g} is added to the standard deviation instead of the variance"
            if node.op == "layer_norm":
                call = scene.instead(node, partial(_layer_norm, eps=eps, outside=True))
            elif node.op == "batch_norm":
                call = scene.instead(node, partial(_batch_norm, root=partial(_plus, eps=eps)))
            else:
                continue
            if eps == own or eps in (1e-3, 1e-5, 1e-6):
                yield Change(f"outside {eps:g}", text, (node.name,), call)


def _plus(var: Array, eps: float) -> Array:
    return np.sqrt(var) + eps


def _formula(scene: Scene) -> Iterator[Change]:
    for node in scene.of("layer_norm"):
        eps = node.attrs["eps"]
        forms: dict[str, tuple[str, Any]] = {
            "unbiased": ("the unbiased variance (divided by d - 1)", partial(_layer_norm, eps=eps, ddof=1)),
            "unbiased outside": (
                "the unbiased variance (divided by d - 1), and eps added to its root",
                partial(_layer_norm, eps=eps, ddof=1, outside=True),
            ),
        }
        for name, (text, function) in forms.items():
            yield Change(name, text, (node.name,), scene.instead(node, function))


def _rms(scene: Scene) -> Iterator[Change]:
    for node in scene.of("layer_norm"):
        eps = node.attrs["eps"]
        text = "RMS norm: the mean is not subtracted"
        yield Change("rms", text, (node.name,), scene.instead(node, partial(_layer_norm, eps=eps, centre=False)))
        bare = partial(_rms_bare, eps=eps)
        yield Change("rms bare", f"{text}, and no bias is added", (node.name,), scene.instead(node, bare))


def _rms_bare(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    return normalised(x, (-1,), eps, centre=False) * weight


def _axes(scene: Scene) -> Iterator[Change]:
    for node in scene.of("layer_norm"):
        for axis in range(len(node.shape) - 1):
            if node.shape[axis] < 2:
                continue
            # A framework that is given the wrong axis wants weight and bias along it as well; one's own formula need not.
            sides = (("", -1), (", weight and bias along it too", axis)) if node.shape[axis] == node.shape[-1] else (("", -1),)
            for (along, side), outside in itertools.product(sides, (False, True)):
                function = partial(_other_axis, axis=axis, side=side, eps=node.attrs["eps"], outside=outside)
                text = f"normalised over axis {axis} of {node.shape} instead of the last{along}"
                text += ", and eps added to the standard deviation" if outside else ""
                option = f"axis {axis}{along}{' outside' if outside else ''}"
                yield Change(option, text, (node.name,), scene.instead(node, function))
        if len(node.shape) > 2:
            axes = tuple(range(1, len(node.shape)))
            function = partial(_layer_norm, eps=node.attrs["eps"], axes=axes)
            yield Change(
                "all", "normalised over all features of all tokens together", (node.name,), scene.instead(node, function)
            )


def _other_axis(x: Array, weight: Array, bias: Array, axis: int, side: int, **how: Any) -> Array:
    """Normalised over `axis`, with weight and bias along the axis `side`."""
    lengths = [1] * x.ndim
    lengths[side] = -1
    return normalised(x, (axis,), **how) * weight.reshape(lengths) + bias.reshape(lengths)


def _affine(scene: Scene) -> Iterator[Change]:
    for node in scene.of("layer_norm", "batch_norm"):
        weight, bias = node.inputs[1], node.inputs[2]
        if weight not in scene.params or bias not in scene.params:
            continue
        one, zero = np.ones_like(scene.params[weight]), np.zeros_like(scene.params[bias])
        for name, text, params in (
            ("both", "the norm's weight and bias are not applied", {weight: one, bias: zero}),
            ("weight", "the norm's weight is not applied (taken as 1)", {weight: one}),
            ("bias", "the norm's bias is not applied (taken as 0)", {bias: zero}),
            ("swapped", "the norm's weight and bias are exchanged", {weight: scene.params[bias], bias: scene.params[weight]}),
            ("negative", "the norm's bias is subtracted", {bias: -scene.params[bias]}),
        ):
            yield Change(name, text, (node.name,), params=params)


def _missing(scene: Scene, op: str) -> Iterator[Change]:
    for node in scene.of(op):
        yield Change("missing", f"the {op.replace('_', ' ')} is left out", (node.name,), scene.without(node))


def _twice(scene: Scene, op: str) -> Iterator[Change]:
    for node in scene.of(op):
        call = {node.name: Call(partial(_again, scene.with_attrs(node)[node.name].function), node.inputs)}
        yield Change("twice", f"the {op.replace('_', ' ')} is applied twice", (node.name,), call)


def _again(function: Any, x: Array, *params: Array) -> Array:
    return function(function(x, *params), *params)


def _exchanged(scene: Scene) -> Iterator[Change]:
    for node in scene.of("batch_norm"):
        mean, var = node.inputs[3], node.inputs[4]
        if mean in scene.params and var in scene.params:
            for name, text, read in (
                ("plain", "running mean and running variance are exchanged", scene.params[mean]),
                ("positive", "running mean and running variance are exchanged, and the absolute value of the mean is taken",
                 np.abs(scene.params[mean])),
            ):  # fmt: skip
                yield Change(name, text, (node.name,), params={mean: scene.params[var], var: read})


def _training(scene: Scene) -> Iterator[Change]:
    for node in scene.of("batch_norm"):
        others = tuple(a for a in range(len(node.shape)) if a != 1)
        eps = node.attrs["eps"]
        for name, text, function in (
            ("batch", "the batch's own mean and variance instead of the running ones (training mode)",
             partial(_statistics, axes=others, eps=eps)),
            ("unbiased", "the batch's own mean and unbiased variance instead of the running ones",
             partial(_statistics, axes=others, eps=eps, ddof=1)),
            ("instance", "each image's own mean and variance (instance norm) instead of the running ones",
             partial(_statistics, axes=others[1:], eps=eps)),
        ):  # fmt: skip
            if name != "instance" or (len(others) > 1 and node.shape[0] > 1):
                yield Change(name, text, (node.name,), scene.instead(node, function))


def _statistics_missing(scene: Scene) -> Iterator[Change]:
    for node in scene.of("batch_norm"):
        mean, var = node.inputs[3], node.inputs[4]
        if mean in scene.params and var in scene.params:
            zero, one = np.zeros_like(scene.params[mean]), np.ones_like(scene.params[var])
            for name, text, params in (
                ("both", "running mean and variance are at their initial values 0 and 1", {mean: zero, var: one}),
                ("mean", "the running mean is not subtracted", {mean: zero}),
                ("variance", "the running variance is taken as 1", {var: one}),
            ):
                yield Change(name, text, (node.name,), params=params)


def _folded(scene: Scene) -> Iterator[Change]:
    for node in scene.of("batch_norm"):
        eps = node.attrs["eps"]
        yield Change("no shift", "folded into the convolution by its factor only: the shift (bias - mean weight / std) is lost",
                     (node.name,), scene.instead(node, partial(_factor, eps=eps)))  # fmt: skip
        root = partial(_batch_norm, root=partial(np.add, eps))
        yield Change("no root", "divided by the variance instead of its root", (node.name,), scene.instead(node, root))
        bias = scene.producer(node.inputs[0])
        shift = scene.param(bias, 2) if bias is not None and bias.op in ("conv2d", "linear") else None
        if shift is not None:
            text = "the bias of the convolution before it is not scaled when folding"
            yield Change("bias unscaled", text, (node.name,), scene.instead(node, partial(_unscaled, eps=eps, shift=shift)))


def _factor(x: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float) -> Array:
    return x * column(weight / np.sqrt(var + eps), x)


def _unscaled(x: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float, shift: Array) -> Array:
    factor = weight / np.sqrt(var + eps)
    return (x - column(shift, x)) * column(factor, x) + column(bias - mean * factor + shift, x)


_OWN = "take eps from the weights' own configuration"
CAUSES = (
    Cause("layer-norm-eps", "uses another eps in layer norm", _OWN, partial(_eps, op="layer_norm")),
    Cause("batch-norm-eps", "uses another eps in batch norm", _OWN, partial(_eps, op="batch_norm")),
    Cause("norm-eps-outside", "adds eps to the standard deviation instead of the variance", "use sqrt(var + eps)", _outside),
    Cause(
        "layer-norm-unbiased", "divides by d - 1 in the variance of layer norm", "divide by d: var(unbiased=False)", _formula
    ),
    Cause("layer-norm-rms", "computes an RMS norm", "subtract the mean", _rms),
    Cause("layer-norm-axis", "normalises over the wrong axis", "normalise over the features of each token", _axes),
    Cause("norm-affine", "drops or exchanges a norm's weight and bias", "load and apply the norm's weight and bias", _affine),
    Cause("layer-norm-missing", "leaves a layer norm out", "apply it there", partial(_missing, op="layer_norm")),
    Cause(
        "batch-norm-missing",
        "leaves a batch norm out, or folds it into nothing",
        "apply it there, or fold it into the weights",
        partial(_missing, op="batch_norm"),
    ),
    Cause("layer-norm-twice", "applies a layer norm twice", "apply it once", partial(_twice, op="layer_norm")),
    Cause(
        "batch-norm-twice",
        "applies a batch norm twice, such as folded and again as a layer",
        "apply it once",
        partial(_twice, op="batch_norm"),
    ),
    Cause("batch-norm-swapped", "exchanges running mean and running variance", "load them by name", _exchanged),
    Cause(
        "batch-norm-training", "runs batch norm in training mode", "call model.eval(), export with training=False", _training
    ),
    Cause(
        "batch-norm-statistics",
        "has not loaded the running statistics",
        "load running_mean and running_var",
        _statistics_missing,
    ),
    Cause(
        "batch-norm-folding",
        "folds batch norm wrongly",
        "fold weight / sqrt(var + eps) into the kernel and bias - mean times that factor into the bias",
        _folded,
    ),
)
