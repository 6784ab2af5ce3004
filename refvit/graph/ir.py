"""The graph that every backend reads: frozen static single assignment over named values.

`Op` is an entry of the vocabulary (filled by `graph.trace.op`), `Node` one application of it, `Graph` a whole model at one
input shape. A graph is dtype-free: all its values have the dtype it is run in. Passes build new graphs and never change one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from refvit.errors import GraphError, RefvitError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:  # 0.03 s that a program need not pay for annotations
    Array = Any
Shape = tuple[int, ...]


class HasShape(Protocol):
    """Whatever a shape rule may look at: an ndarray, a symbolic tensor, a node, a `ShapeOnly`."""

    @property
    def shape(self) -> Shape: ...


@dataclass(frozen=True)
class ShapeOnly:
    """A parameter or input of which only the shape is known."""

    shape: Shape


@dataclass(frozen=True)
class Op:
    """One word of the vocabulary: positional parameters are tensors, keyword-only parameters are attributes."""

    name: str
    function: Callable[..., Any]  # the NumPy definition
    shape: Callable[..., Shape]  # result shape; raises ShapeError, so it is the argument check as well
    macs: Callable[..., int] | None  # multiply-accumulates; None where the op has none
    tensors: tuple[str, ...]  # names of the tensor parameters; a single "*name" for an op of any number of them
    defaults: Mapping[str, Any]  # of the attributes that have one
    composite: bool  # its definition is written in other ops and can be traced in their place

    @property
    def variadic(self) -> bool:
        return self.tensors[0].startswith("*")


OPS: dict[str, Op] = {}


@dataclass(frozen=True)
class Node:
    """`name = op(*inputs, **attrs)`; an input is the name of a value, or None for an optional tensor left out."""

    name: str
    op: str
    inputs: tuple[str | None, ...]
    attrs: Mapping[str, Any]
    shape: Shape
    scope: str  # path of the block that called the op

    def __post_init__(self) -> None:
        object.__setattr__(self, "attrs", MappingProxyType(dict(self.attrs)))

    @property
    def sources(self) -> tuple[str, ...]:
        """The inputs that are there."""
        return tuple(i for i in self.inputs if i is not None)


@dataclass(frozen=True)
class Step:
    """One op within a fused node, whose attribute `steps` lists them; the last one's result is the node's.

    An input is a number: the node's own inputs come first, the results of the earlier steps follow; None is as in `Node`.
    """

    op: str
    inputs: tuple[int | None, ...]
    attrs: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "attrs", MappingProxyType(dict(self.attrs)))


@dataclass(frozen=True)
class Graph:
    """Nodes in execution order, what they read, and what is wanted of them.

    `inputs` and `params` map names to something with a shape (parameters usually are the arrays). `outputs` maps the public
    name of a result to a value. `aliases` maps a block's path to the value that the block returns. To keep an intermediate,
    make it an output (`with_outputs`).
    """

    inputs: Mapping[str, HasShape]
    params: Mapping[str, HasShape]
    nodes: Mapping[str, Node]
    outputs: Mapping[str, str]
    aliases: Mapping[str, str]

    def __post_init__(self) -> None:
        for field in ("inputs", "params", "nodes", "outputs", "aliases"):
            object.__setattr__(self, field, MappingProxyType(dict(getattr(self, field))))

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def __len__(self) -> int:
        return len(self.nodes)

    def value(self, name: str) -> HasShape:
        """The node, parameter or input called `name`."""
        for table in (self.nodes, self.params, self.inputs):
            if name in table:
                return table[name]
        raise GraphError(f"graph has no value {name!r}")

    def users(self) -> dict[str, list[str]]:
        """Value name -> names of the nodes that read it, in execution order, once per use."""
        users: dict[str, list[str]] = {}
        for node in self:
            for source in node.sources:
                users.setdefault(source, []).append(node.name)
        return users

    def names(self) -> dict[str, str]:
        """Every name of an intermediate -> its value, in execution order: nodes, each followed by the blocks it ends."""
        ends: dict[str, list[str]] = {}
        for alias, value in self.aliases.items():
            ends.setdefault(value, []).append(alias)
        ordered: dict[str, str] = {}
        for name in (*self.inputs, *self.nodes):
            if name in self.nodes:
                ordered[name] = name
            for alias in ends.get(name, ()):
                ordered.setdefault(alias, name)
        return ordered

    def with_outputs(self, outputs: Mapping[str, str]) -> Graph:
        """The graph for other results, without the nodes that none of them needs."""
        needed = set(outputs.values())
        for node in reversed(list(self)):
            if node.name in needed:
                needed.update(node.sources)
        nodes = {name: node for name, node in self.nodes.items() if name in needed}
        here = {*nodes, *self.params, *self.inputs}
        aliases = {path: value for path, value in self.aliases.items() if value in here}
        return Graph(self.inputs, self.params, nodes, outputs, aliases).verify()

    def verify(self) -> Graph:
        """Check every invariant and return self; GraphError names the first node that breaks one."""
        known: dict[str, HasShape] = {**self.inputs, **self.params}
        if len(known) != len(self.inputs) + len(self.params):
            raise GraphError(f"names used by an input and a parameter: {sorted(set(self.inputs) & set(self.params))}")
        for name, node in self.nodes.items():
            if name != node.name or name in known:
                raise GraphError(f"{name}: two values have this name, or the node calls itself {node.name!r}")
            op = OPS.get(node.op)
            if op is None:
                raise GraphError(f"{name}: unknown op {node.op!r}; known are {', '.join(sorted(OPS))}")
            if missing := [s for s in node.sources if s not in known]:
                raise GraphError(f"{name}: reads {missing[0]!r}, which is not computed before it")
            if not op.variadic and len(node.inputs) != len(op.tensors):
                raise GraphError(f"{name}: {node.op} takes the tensors {op.tensors}, got {node.inputs}")
            try:
                shape = op.shape(*[None if i is None else known[i] for i in node.inputs], **node.attrs)
            except (RefvitError, TypeError, AttributeError, ValueError) as error:
                raise GraphError(f"{name}: {error}") from error
            if shape != node.shape:
                raise GraphError(f"{name}: {node.op} gives shape {shape}, the node says {node.shape}")
            known[name] = node
        for kind, table in (("output", self.outputs), ("alias", self.aliases)):
            for public, name in table.items():
                if name not in known:
                    raise GraphError(f"{kind} {public!r} is the value {name!r}, which does not exist")
        if both := sorted(set(self.aliases) & set(self.nodes)):
            raise GraphError(f"{both[0]} is the name of a block and of a node")
        if not self.outputs:
            raise GraphError("a graph needs at least one output")
        return self

    def __str__(self) -> str:
        """One line a node, blocks as headings: `name = op(inputs, attributes)   shape`; default attributes are left out.

        The steps of a fused node follow one another: `conv2d(x, w, b) -> add(_, y) -> relu(_)`, _ being the result so far.
        """
        shapes = ", ".join(f"{n}: {dims(v.shape)}" for n, v in self.inputs.items())
        lines, scope = [f"graph({shapes})"], ""
        for node in self:
            if node.scope != scope:
                scope = node.scope
                lines.append(f"  # {scope or 'model'}")
            inputs = ["-" if i is None else _relative(i, scope) for i in node.inputs]
            steps = node.attrs.get("steps")
            expression = _chain(inputs, steps) if steps else _call(node.op, inputs, node.attrs)
            text = f"  {_relative(node.name, scope)} = {expression}"
            lines.append(f"{text:<100} {dims(node.shape)}".rstrip())
        lines += [f"  return {', '.join(f'{k}={v}' for k, v in self.outputs.items())}"]
        return "\n".join(lines)


def _relative(name: str, scope: str) -> str:
    """Names inside the current block are shown from its own path on."""
    return name[len(scope) :] if scope and name.startswith(scope + ".") else name


def _call(op: str, inputs: list[str], attrs: Mapping[str, Any]) -> str:
    defaults = OPS[op].defaults
    shown = [f"{k}={v!r}" for k, v in attrs.items() if k not in defaults or defaults[k] != v]
    return f"{op}({', '.join(inputs + shown)})"


def _chain(inputs: list[str], steps: tuple[Step, ...]) -> str:
    """The steps from the first to the last along each one's first computed input; another computed input stands in place."""

    def text(i: int | None) -> str:
        if i is None or i < len(inputs):
            return "-" if i is None else inputs[i]
        step = steps[i - len(inputs)]
        before = next((j for j in step.inputs if j is not None and j >= len(inputs)), -1)
        call = _call(step.op, ["_" if j == before else text(j) for j in step.inputs], step.attrs)
        return call if before < 0 else f"{text(before)} -> {call}"

    return text(len(inputs) + len(steps) - 1)


def size(value: HasShape) -> int:
    """Number of elements."""
    return math.prod(value.shape)


def dims(shape: Shape) -> str:
    """1x3x256x256"""
    return "x".join(map(str, shape))
