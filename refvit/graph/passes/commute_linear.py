"""Exact algebra of 1x1 convolutions: they compose, split over a concat, and move below a resize.

A 1x1 convolution mixes channels, a resize mixes pixels, and the order does not matter. The bias may move with the convolution,
because the weights of every output pixel of a resize sum to one. A pixel repeated over the map (broadcast) is a resize, too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refvit.errors import ShapeError
from refvit.graph.ir import Array, Graph, HasShape, Node, Shape
from refvit.graph.passes.draft import Draft, uses
from refvit.graph.trace import op

Emit = Callable[[str, tuple[str | None, ...], Mapping[str, Any]], str]  # op, inputs, attributes -> name of the value
Build = Callable[[str, str | None, Emit], str]  # weight, bias, how to write the last node -> name of the result


def _compose_shape(outer: HasShape, inner: HasShape) -> Shape:
    if outer.shape[1:] != (*inner.shape[:1], 1, 1) or inner.shape[2:] != (1, 1):
        raise ShapeError(
            f"compose_weight: outer (k, j, 1, 1) and inner (j, c, 1, 1) expected, got {outer.shape}, {inner.shape}"
        )
    return *outer.shape[:1], *inner.shape[1:]


@op(shape=_compose_shape)
def compose_weight(outer: Array, inner: Array) -> Array:
    """The weight of two 1x1 convolutions in one, in float64. outer (k, j, 1, 1), inner (j, c, 1, 1) -> (k, c, 1, 1)."""
    product = outer[:, :, 0, 0].astype(np.float64) @ inner[:, :, 0, 0].astype(np.float64)
    return product[:, :, None, None].astype(outer.dtype)


def _compose_bias_shape(outer: HasShape, inner_bias: HasShape, outer_bias: HasShape | None = None) -> Shape:
    k = tuple(outer.shape[:1])
    if outer.shape[1:] != (*inner_bias.shape, 1, 1) or (outer_bias is not None and outer_bias.shape != k):
        raise ShapeError(
            f"compose_bias: outer (k, j, 1, 1), inner_bias (j,) and outer_bias (k,) expected, got {outer.shape}, "
            f"{inner_bias.shape} and {None if outer_bias is None else outer_bias.shape}"
        )
    return k


@op(shape=_compose_bias_shape)
def compose_bias(outer: Array, inner_bias: Array, outer_bias: Array | None = None) -> Array:
    """The bias of two 1x1 convolutions in one, in float64. outer (k, j, 1, 1), inner_bias (j,), outer_bias (k,) -> (k,)."""
    bias = outer[:, :, 0, 0].astype(np.float64) @ inner_bias.astype(np.float64)
    return (bias if outer_bias is None else bias + outer_bias).astype(outer.dtype)


def commute_linear(graph: Graph) -> Graph:
    """Every 1x1 convolution is computed where it takes the fewest multiplications; the others stay as they are."""
    draft = Draft(graph)
    count = uses(graph)
    for node in graph:
        if _is_pointwise(graph, node):
            weight, bias = node.sources[1], node.inputs[2]
            _, build = _Planner(graph, draft, count, node).plan(node.sources[0], alone=True)
            build(weight, bias, functools.partial(draft.stand_in, node))
        else:
            draft.keep(node)
    return draft.finish()


class _Planner:
    """Finds the cheapest way to apply the convolution `node` to its input, which may be far above it."""

    def __init__(self, graph: Graph, draft: Draft, count: Mapping[str, int], node: Node) -> None:
        self.graph, self.draft, self.count, self.node = graph, draft, count, node

    def plan(self, x: str, *, alone: bool) -> tuple[int, Build]:
        """MACs of the convolution applied to the value `x`, less those that are then saved elsewhere, and how to write it.

        alone: only the convolution needs what lies between `x` and itself.
        """
        shape = self.graph.value(x).shape
        choices: list[tuple[int, Build]] = [(self.node.shape[1] * math.prod(shape), functools.partial(self._direct, x))]
        above = self.graph.nodes.get(x)
        if above is not None:
            alone = alone and self.count[x] == 1
            if _is_spread(self.graph, above):
                choices.append(self._below_spread(above, alone))
            elif _is_pointwise(self.graph, above):
                choices.append(self._composed(above, alone))
            elif above.op == "concat" and above.attrs["axis"] in (1, -3) and len(above.inputs) > 1:
                choices.append(self._split(above, alone))
        return min(choices, key=lambda choice: choice[0])  # the first of equals

    def _direct(self, x: str, weight: str, bias: str | None, emit: Emit) -> str:
        return emit("conv2d", (x, weight, bias), self.node.attrs)

    def _below_spread(self, spread: Node, alone: bool) -> tuple[int, Build]:
        macs, below = self.plan(spread.sources[0], alone=alone)

        def build(weight: str, bias: str | None, emit: Emit) -> str:
            y = below(weight, bias, self._new)
            n, _, h, w = spread.shape
            attrs = {"shape": (n, self.node.shape[1], h, w)} if spread.op == "broadcast" else spread.attrs
            return emit(spread.op, (y,), attrs)

        return macs, build

    def _composed(self, inner: Node, alone: bool) -> tuple[int, Build]:
        inner_weight, inner_bias = inner.inputs[1:]
        macs, before = self.plan(inner.sources[0], alone=alone)

        def build(weight: str, bias: str | None, emit: Emit) -> str:
            if inner_bias is not None:
                bias = self._new("compose_bias", (weight, inner_bias, bias), {})
            return before(self._new("compose_weight", (weight, inner_weight), {}), bias, emit)

        return macs - (_macs(self.graph, inner) if alone else 0), build

    def _split(self, concat: Node, alone: bool) -> tuple[int, Build]:
        """The inputs that are no better off on their own stay together."""
        stay: list[tuple[str, slice]] = []
        go: list[tuple[Build, slice]] = []
        macs = start = 0
        for x in concat.sources:
            shape = self.graph.value(x).shape
            channels = slice(start, start := start + shape[1])
            direct = self.node.shape[1] * math.prod(shape)
            best, build_part = self.plan(x, alone=alone)
            macs += best
            if best < direct:
                go.append((build_part, channels))
            else:
                stay.append((x, channels))

        def build(weight: str, bias: str | None, emit: Emit) -> str:
            terms = []
            if stay:
                xs = tuple(x for x, _ in stay)
                x = xs[0] if len(xs) == 1 else self._new("concat", xs, {"axis": 1})
                parts = tuple(self._columns(weight, channels) for _, channels in stay)
                part = parts[0] if len(parts) == 1 else self._new("concat", parts, {"axis": 1})
                terms.append(self._direct(x, part, bias, self._new))
            for build_part, channels in go:
                terms.append(build_part(self._columns(weight, channels), None if terms else bias, self._new))
            for i, term in enumerate(terms[1:], 1):
                terms[i] = (emit if i == len(terms) - 1 else self._new)("add", (terms[i - 1], term), {})
            return terms[-1]

        return macs, build

    def _columns(self, weight: str, channels: slice) -> str:
        return self._new("getitem", (weight,), {"index": (slice(None), channels)})

    def _new(self, op: str, inputs: tuple[str | None, ...], attrs: Mapping[str, Any]) -> str:
        return self.draft.new(f"{self.node.name}.{op}", op, inputs, attrs, self.node.scope)


def _is_pointwise(graph: Graph, node: Node) -> bool:
    if node.op != "conv2d" or graph.value(node.sources[1]).shape[2:] != (1, 1) or node.attrs["groups"] != 1:
        return False
    return node.shape[2:] == graph.value(node.sources[0]).shape[2:] and node.attrs["stride"] in (1, (1, 1))


def _is_spread(graph: Graph, node: Node) -> bool:
    """Every output pixel is a mean of input pixels of the same channel, whose weights sum to one."""
    before = graph.value(node.sources[0]).shape
    return node.op == "resize" or (node.op == "broadcast" and len(before) == 4 and node.shape[:2] == before[:2])


def _macs(graph: Graph, conv: Node) -> int:
    return conv.shape[1] * math.prod(graph.value(conv.sources[0]).shape)
