"""A layer and what is done to its result, value by value, are one node: activation, scaling, sums, the upsampling of a term.

A kernel dispatches on the ops in `steps`: at most one is a product (`HEAVY`), and it is the first. A sum of maps, some of them
enlarged on the way, is a fused node without a product.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from refvit.errors import GraphError
from refvit.graph.ir import OPS, Array, Graph, HasShape, Node, Shape, ShapeOnly, Step
from refvit.graph.passes.constants import constants
from refvit.graph.passes.draft import Draft, uses
from refvit.graph.trace import op

HEAVY = ("conv2d", "linear")
UNARY = ("relu", "silu", "gelu", "hardswish", "sigmoid", "scale")  # value by value
SPREAD = ("resize", "broadcast")  # of a term, on its way into a sum


def _walk(xs: tuple[HasShape, ...], steps: tuple[Step, ...]) -> Iterator[tuple[Step, list[HasShape | None], Shape]]:
    """Every step with its inputs and the shape of its result."""
    values: list[HasShape] = list(xs)
    for step in steps:
        if step.op not in OPS or any(i is not None and not 0 <= i < len(values) for i in step.inputs):
            raise GraphError(f"fused: a known op and inputs below {len(values)} expected, got {step.op!r} and {step.inputs}")
        inputs = [None if i is None else values[i] for i in step.inputs]
        shape = OPS[step.op].shape(*inputs, **step.attrs)
        values.append(ShapeOnly(shape))
        yield step, inputs, shape


def _fused_shape(*xs: HasShape, steps: tuple[Step, ...]) -> Shape:
    shapes = [shape for _, _, shape in _walk(xs, steps)]
    if not shapes:
        raise GraphError("fused: at least one step expected")
    return shapes[-1]


def _fused_macs(*xs: HasShape, steps: tuple[Step, ...]) -> int:
    rules = [(OPS[step.op].macs, inputs, step.attrs) for step, inputs, _ in _walk(xs, steps)]
    return sum(macs(*inputs, **attrs) for macs, inputs, attrs in rules if macs is not None)


@op(shape=_fused_shape, macs=_fused_macs)
def fused(*xs: Array, steps: tuple[Step, ...]) -> Array:
    """The steps one after the other; the result is that of the last."""
    values: list[Any] = list(xs)
    for step in steps:
        inputs = [None if i is None else values[i] for i in step.inputs]
        values.append(OPS[step.op].function(*inputs, **step.attrs))
    return values[-1]


def fuse(graph: Graph) -> Graph:
    """Products and sums take in what follows, as long as nothing else reads the value between and it is no output.

    What follows: activations, a scaling, a sum of the same shape, and on the other side of the sum a resize or broadcast that
    nothing else reads. Of two terms that could take the sum in, the product does, or else the later one.
    """
    count, fixed = uses(graph), constants(graph)  # which are computed once, not with what follows
    place = {name: i for i, name in enumerate(graph.nodes)}
    groups: dict[str, list[Node]] = {}  # last node of a group -> the group
    for node in graph:
        if node.name in fixed:
            continue
        hosts = [x for x in node.sources if x in groups and count[x] == 1 and graph.nodes[x].shape == node.shape]
        if node.op in HEAVY:
            groups[node.name] = [node]
        elif node.op in UNARY and hosts:
            groups[node.name] = [*groups.pop(hosts[0]), node]
        elif node.op == "add":
            host = max(hosts, key=lambda x: (groups[x][0].op in HEAVY, place[x]), default=None)
            terms = [graph.nodes[x] for x in node.sources if x in graph.nodes and x not in fixed and count[x] == 1]
            before = [] if host is None else groups.pop(host)
            groups[node.name] = [*before, *(term for term in terms if term.op in SPREAD), node]
    inside = {node.name for group in groups.values() for node in group[:-1]}
    draft = Draft(graph)
    for node in graph:
        group = groups.get(node.name, [])
        if len(group) > 1:
            _write(draft, group)
        elif node.name not in inside:
            draft.keep(node)
    return draft.finish()


def _write(draft: Draft, group: list[Node]) -> None:
    own = {node.name: i for i, node in enumerate(group)}
    outer = list(dict.fromkeys(source for node in group for source in node.sources if source not in own))
    number = {name: i for i, name in enumerate(outer)} | {name: len(outer) + i for name, i in own.items()}
    steps = tuple(Step(n.op, tuple(None if i is None else number[i] for i in n.inputs), n.attrs) for n in group)
    draft.stand_in(group[-1], "fused", tuple(outer), {"steps": steps}, _common([node.scope for node in group]))


def _common(scopes: list[str]) -> str:
    """The path of the innermost block that has all of these within."""
    levels = zip(*(scope.split(".") for scope in scopes), strict=False)
    return ".".join(level[0] for level in itertools.takewhile(lambda level: len(set(level)) == 1, levels))
