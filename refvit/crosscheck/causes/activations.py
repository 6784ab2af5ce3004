"""Another activation, none, one too many, or on the wrong side of an addition or a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from refvit.crosscheck.causes.functions import ACTIVATIONS, identity, leaky
from refvit.crosscheck.causes.hypothesis import Cause, Change, Family, Scene
from refvit.graph.ir import Array, Node

OPS_OF = {"relu": "relu", "silu": "silu", "hardswish": "hardswish", "sigmoid": "sigmoid"}
LINEAR = ("conv2d", "linear", "batch_norm", "layer_norm", "add")  # behind which an activation may be forgotten or invented
OWN = ("gelu-erf", "gelu-tanh", "gelu-quick", "gelu-erf-approximation")  # causes of their own where a GELU is expected


def expected(node: Node) -> str:
    """The entry of ACTIVATIONS that a node computes, "" for none."""
    if node.op == "gelu":
        return "gelu-tanh" if node.attrs["approximate"] == "tanh" else "gelu-erf"
    return OPS_OF.get(node.op, "")


def is_activation(node: Node) -> bool:
    return expected(node) != ""


def _instead(scene: Scene, wanted: Callable[[str, str], bool]) -> Iterator[Change]:
    for node in scene.nodes.values():
        own = expected(node)
        for other, (words, function) in ACTIVATIONS.items():
            if own and other != own and wanted(own, other):
                text = f"{words} where {ACTIVATIONS[own][0]} is expected"
                yield Change(f"{own} > {other}", text, (node.name,), scene.instead(node, function))


def _gelu(kind: str) -> Callable[[Scene], Iterator[Change]]:
    return partial(_instead, wanted=lambda own, other: other == kind and own.startswith("gelu"))


def _swapped(scene: Scene) -> Iterator[Change | Family]:
    yield from _instead(scene, lambda own, other: not (own.startswith("gelu") and other in OWN))
    for node in scene.of("relu"):

        def make(slope: Any, node: Node = node) -> Change:
            text = f"leaky ReLU of slope {slope[0]:.3g} where ReLU is expected"
            return Change("leaky", text, (node.name,), scene.instead(node, partial(leaky, slope=slope[0])))

        yield Family("leaky", make, ((0.05,),))
    for node in scene.nodes.values():
        if is_activation(node) and node.op != "relu":
            function = ACTIVATIONS[expected(node)][1]
            text = f"{ACTIVATIONS[expected(node)][0]} applied twice"
            yield Change("twice", text, (node.name,), scene.behind(node, function))


def _missing(scene: Scene) -> Iterator[Change]:
    for node in scene.nodes.values():
        if is_activation(node):
            text = f"no activation where {ACTIVATIONS[expected(node)][0]} is expected"
            yield Change("missing", text, (node.name,), scene.instead(node, identity))


def _extra(scene: Scene) -> Iterator[Change]:
    kinds = {expected(node) for node in scene.graph if is_activation(node)}
    for node in scene.of(*LINEAR):
        users = scene.users.get(node.name, [])
        if any(is_activation(user) for user in users):
            continue
        for kind in sorted(kinds):
            words, function = ACTIVATIONS[kind]
            yield Change(
                kind, f"{words} behind {node.op}, where nothing is expected", (node.name,), scene.behind(node, function)
            )


def _order(scene: Scene) -> Iterator[Change]:
    for node in scene.nodes.values():
        if not is_activation(node):
            continue
        words, function = ACTIVATIONS[expected(node)]
        before = scene.producer(node.inputs[0])
        if before is not None and len(scene.users[before.name]) == 1:
            plain = scene.instead(node, identity)
            if before.op == "add":
                for which, text in ((0, "the first term"), (1, "the second term"), (2, "both terms")):
                    sides = (which,) if which < 2 else (0, 1)
                    call = scene.instead(before, partial(_sum, sides=sides, function=function))
                    message = f"{words} applied to {text} before the addition instead of to the sum"
                    yield Change(f"before add {which}", message, (node.name,), {**plain, **call})
            elif before.op in LINEAR:
                message = f"{words} before {before.op} instead of behind it"
                yield Change(f"before {before.op}", message, (node.name,), {**plain, **scene.before(before, function)})
        for user in scene.users.get(node.name, []):
            if user.op in LINEAR and user.inputs[0] == node.name and len(scene.users[node.name]) == 1:
                call = {**scene.instead(node, identity), **scene.behind(user, function)}
                yield Change(f"behind {user.op}", f"{words} behind {user.op} instead of before it", (node.name,), call)
    for node in scene.of("add"):
        for act in (n for n in scene.users.get(node.name, []) if is_activation(n)):
            words, function = ACTIVATIONS[expected(act)]
            for which in (0, 1):
                term = scene.producer(node.inputs[which])
                if term is not None and term.op in ("batch_norm", "conv2d", "linear"):
                    message = f"{words} also applied to {term.name} before the addition"
                    call = scene.instead(node, partial(_sum, sides=(which,), function=function))
                    yield Change(f"also before add {which}", message, (node.name,), call)


def _sum(x: Array, y: Array, sides: tuple[int, ...], function: Any) -> Array:
    return np.add(function(x) if 0 in sides else x, function(y) if 1 in sides else y)


_USE = "use the activation that the weights were trained with"
CAUSES = (
    Cause(
        "gelu-tanh",
        "computes another GELU",
        "use the erf form: torch.nn.GELU(approximate='none'), tf.nn.gelu(approximate=False)",
        _gelu("gelu-tanh"),
    ),
    Cause(
        "gelu-erf",
        "computes another GELU",
        "use the tanh form: torch.nn.GELU(approximate='tanh')",
        _gelu("gelu-erf"),
    ),
    Cause("gelu-quick", "computes another GELU", "use the erf form, torch.nn.GELU()", _gelu("gelu-quick")),
    Cause(
        "gelu-erf-approximation",
        "computes GELU with an erf that is off by up to 1.5e-7",
        "use an erf that is right to the last digits, such as the C library's",
        _gelu("gelu-erf-approximation"),
    ),
    Cause("activation-swapped", "uses another activation", _USE, _swapped),
    Cause("activation-missing", "leaves an activation out", "apply the activation there", _missing),
    Cause("activation-extra", "applies an activation where there is none", "remove the activation there", _extra),
    Cause(
        "activation-order", "applies an activation on the wrong side of a layer or an addition", "move the activation", _order
    ),
)
