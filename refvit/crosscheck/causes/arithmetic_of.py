"""The same computation in a narrower arithmetic: operands, results or sums with fewer bits than declared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from refvit.crosscheck.arithmetic import PRODUCTS, rounded, truncated
from refvit.crosscheck.causes.hypothesis import Cause, Change, Function, Scene, default
from refvit.crosscheck.causes.weights import quantised
from refvit.graph.ir import Array

LONG = 12  # nodes of a segment above which roundings of single nodes are not tried, but for
OWN = ("softmax", "layer_norm")  # those that are given an arithmetic of their own
NARROW = ("tf32", "bfloat16", "float16")


ROUNDINGS: dict[str, tuple[tuple[str, str, Function], ...]] = {
    "tf32": (
        ("nearest", "rounded to tf32", partial(rounded, arithmetic="tf32")),
        ("truncated", "cut off to tf32", partial(truncated, bits=10)),
    ),
    "bfloat16": (
        ("nearest", "rounded to bfloat16", partial(rounded, arithmetic="bfloat16")),
        ("truncated", "cut off to bfloat16", partial(truncated, bits=7)),
    ),
    "float16": (("nearest", "rounded to float16", partial(rounded, arithmetic="float16")),),
}


def _operands(scene: Scene, kind: str) -> Iterator[Change]:
    for node in scene.of(*PRODUCTS):
        for option, words, function in ROUNDINGS[kind]:
            call = scene.instead(node, _Rounded(default(node), function, products=2))
            yield Change(f"operands {option}", f"operands of convolutions and products are {words}", (node.name,), call)
            call = scene.instead(node, _Rounded(default(node), function, products=2, result=function))
            yield Change(f"both {option}", f"operands and results of convolutions and products are {words}", (node.name,), call)


def _results(scene: Scene, kind: str) -> Iterator[Change]:
    if kind == "tf32":
        return
    for node in scene.nodes.values():
        long = len(scene.nodes) > LONG and node.op not in OWN
        for option, words, function in ROUNDINGS[kind]:
            call = scene.instead(node, _Rounded(default(node), function, products=9, result=function))
            text = f"operands and results of every operation are {words}"
            yield Change(f"all {option}", text, (node.name,), call, together=long)
            call = scene.instead(node, _Rounded(default(node), function, products=0, result=function))
            yield Change(f"results {option}", f"results are {words}", (node.name,), call, together=long)


class _Rounded:
    """A function with its first operands, and if asked its result, rounded."""

    def __init__(self, function: Function, rounding: Function, products: int, result: Function | None = None) -> None:
        self.function, self.rounding, self.products, self.result = function, rounding, products, result

    def __call__(self, *arguments: Array | None) -> Array:
        few = [
            a if a is None or i >= self.products else self.rounding(np.asarray(a, np.float64)) for i, a in enumerate(arguments)
        ]
        y = self.function(*few)
        return y if self.result is None else self.result(np.asarray(y, np.float64))


def _narrow(scene: Scene, kind: str) -> Iterator[Change]:
    yield from _operands(scene, kind)
    yield from _results(scene, kind)


def _quantised_operands(scene: Scene) -> Iterator[Change]:
    for node in scene.of(*PRODUCTS):
        for channelwise in (False, True):
            where = "output channel" if channelwise else "tensor"
            call = scene.instead(node, partial(_int8, function=default(node), channelwise=channelwise))
            text = f"operands quantised to int8, scale = largest / 127, weights one scale a {where}"
            yield Change(f"int8 {where}", text, (node.name,), call)


def _int8(x: Array, weight: Array, *rest: Array | None, function: Callable[..., Array], channelwise: bool) -> Array:
    return function(quantised(x, 127, False), quantised(weight, 127, channelwise), *rest)


CAUSES = (
    *(
        Cause(
            f"reduced precision: {kind}",
            f"computes in {kind}",
            f"declare arithmetic={kind!r} if that is meant; otherwise switch "
            "it off (torch.backends.cuda.matmul.allow_tf32, autocast, .half())",
            partial(_narrow, kind=kind),
        )
        for kind in NARROW
    ),
    Cause(
        "quantised-operands",
        "quantises operands to int8",
        "declare int8 and give the scales, or keep floats",
        _quantised_operands,
    ),
)
