"""What follows a product in its node: what the product's own kernel takes in, and what is done in a pass of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from refvit.backends.numba.combine import combine
from refvit.backends.numba.copy import LayoutError, copy
from refvit.backends.numba.layout import Place
from refvit.graph.ir import Node, Shape, Step

if TYPE_CHECKING:
    from refvit.backends.numba.lower import Lowering

_ACTIVATIONS = ("relu", "silu", "gelu", "hardswish", "sigmoid")


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
            outer = node.inputs[others[0]] if others and others[0] is not None and others[0] < len(node.inputs) else None
            if step.op == "scale" and used == 1:
                self.factor *= step.attrs["factor"]
            elif step.op == "add" and len(others) == 1 and self.act == "none" and self.residual is None and outer:
                self.residual = outer
            elif step.op in _ACTIVATIONS and self.act == "none":
                self.act = activation(step)
            else:
                break
            at, used = len(node.inputs) + i, i + 1
        self.rest: tuple[Step, ...] = steps[used:]
        self.at = at

    def operand(self, i: int) -> str | None:
        """Name of an input of the product."""
        j = self.first.inputs[i] if i < len(self.first.inputs) else None
        return None if j is None else self.inputs[j]


def activation(step: Step) -> str:
    return "gelu_tanh" if step.op == "gelu" and step.attrs["approximate"] == "tanh" else step.op


def in_tile(tail: Tail) -> dict[str, Any]:
    return {"relu": tail.act == "relu", "act": "none" if tail.act == "relu" else tail.act}


def finish(low: Lowering, node: Node, tail: Tail, value: Place, out: Place) -> None:
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
    combined(low, steps, inputs, out)


def combined(low: Lowering, steps: tuple[Step, ...], inputs: Sequence[Place], out: Place) -> None:
    try:
        low.emit(combine(steps, list(inputs), out))
    except LayoutError:
        plain = low.new(out.shape)
        low.emit(combine(steps, [low.copied(_whole(x, out.shape)) for x in inputs], plain))
        low.emit(copy(plain, out))


def _whole(x: Place, shape: Shape) -> Place:
    """Of the result's shape, where it is not one that is resized on its way."""
    pairs = zip(x.shape[::-1], shape[::-1], strict=False)
    return x.broadcast(shape) if all(size in (1, wanted) for size, wanted in pairs) else x
