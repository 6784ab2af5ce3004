"""Decided before lowering: where the parts of concatenations are computed, and which nodes one kernel computes together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from refvit.backends.numba.layout import Place
from refvit.graph.ir import Graph, Node, Step

if TYPE_CHECKING:
    from refvit.backends.numba.lower import Lowering

PLACED = ("conv2d", "linear", "fused", "stripe_attention", "resize", "broadcast", "add", "relu", "adaptive_avg_pool")


def place_parts(low: Lowering) -> None:
    """Give every concatenation its memory, and the values in it their places there, back through views of them."""
    fixed = low.constants
    for node in reversed(list(low.graph)):
        if node.op != "concat" or node.name in fixed:
            continue
        whole = low.targets.get(node.name) or low.new(node.shape)
        low.wholes[node.name] = whole
        axis, start, parts = node.attrs["axis"] % len(node.shape), 0, []
        for name in node.sources:
            count = low.graph.value(name).shape[axis]
            part = whole.slice(axis, start, count)
            assert part is not None
            parts.append(part)
            start += count
            _send_back(low, name, part)
        low.parts[node.name] = parts


def _send_back(low: Lowering, name: str, place: Place | None) -> None:
    """Ask for the value at `place`, or, if it is a view of another, for that one where the view then comes to lie there."""
    graph = low.graph
    while place is not None and name in graph.nodes and name not in low.constants and name not in low.targets:
        node = graph.nodes[name]
        if node.op in PLACED or node.op == "concat":
            low.targets[name] = place
            return
        if node.op == "transpose":
            axes = node.attrs["axes"]
            place = place.transpose([axes.index(i) for i in range(len(axes))])
        elif node.op == "reshape":
            place = place.reshape(tuple(graph.value(node.sources[0]).shape))
        else:
            return
        name = node.sources[0]


@dataclass(frozen=True)
class Shortcut:
    """HRViT's diversity shortcut of the tokens `x`: two small linear maps from both sides. `plus`: x is added to it."""

    x: str
    right: tuple[str, str]
    left: tuple[str, str]
    plus: bool


def shortcuts(graph: Graph) -> tuple[dict[str, Shortcut], dict[str, str], set[str]]:
    """By the name of its last node each shortcut; the layers that may add it in place of their two terms; the nodes within."""
    users = graph.users()
    found: dict[str, Shortcut] = {}
    merged: dict[str, str] = {}
    inside: set[str] = set()
    for node in graph:
        chain = _chain(graph, users, node)
        if chain is None:
            continue
        first, second, last, within = chain
        x = graph.nodes[first.inputs[0] or ""].sources[0]
        name = last.name
        adder = graph.nodes[users[name][0]] if len(users.get(name, [])) == 1 else None
        plus = adder is not None and _adds(adder, (x, name))
        found[name] = Shortcut(x, first.inputs[1:3], second.inputs[1:3], plus)  # type: ignore[arg-type]
        inside |= within
        if plus and adder is not None:
            merged[adder.name] = name
    return found, merged, inside


def _chain(graph: Graph, users: dict[str, list[str]], node: Node) -> tuple[Node, Node, Node, set[str]] | None:
    """reshape -> linear, gelu -> transpose -> linear -> transpose -> reshape, each read by the next alone."""
    steps = node.attrs.get("steps", ())
    if [s.op for s in steps] != ["linear", "gelu"] or len(node.shape) != 4 or steps[1].attrs["approximate"] != "none":
        return None
    before = graph.nodes.get(node.inputs[0] or "")
    if before is None or before.op != "reshape" or len(node.inputs) != 3 or len(graph.value(before.sources[0]).shape) != 3:
        return None
    chain = [before, node]
    for op in ("transpose", "linear", "transpose", "reshape"):
        readers = users.get(chain[-1].name, [])
        if len(readers) != 1 or graph.nodes[readers[0]].op != op:
            return None
        chain.append(graph.nodes[readers[0]])
        if op == "transpose" and tuple(chain[-1].attrs["axes"]) != (0, 1, 3, 2):
            return None
    same = graph.value(before.sources[0]).shape == chain[-1].shape
    k, p = node.shape[2:]
    sizes = [graph.value(n.inputs[1] or "").shape for n in (node, chain[3])]
    same = same and sizes == [(p, p), (k, k)] and not p & (p - 1)  # as the kernel can
    outputs = set(graph.outputs.values())
    biased = len(chain[3].inputs) == 3 and None not in (*node.inputs, *chain[3].inputs)
    if not same or not biased or any(n.name in outputs for n in chain):
        return None
    return node, chain[3], chain[-1], {n.name for n in chain[:-1] if n is not before or len(users[before.name]) == 1}


def _adds(node: Node, terms: tuple[str, str]) -> bool:
    """Whether the node is a linear layer to which just these two values are added."""
    steps: tuple[Step, ...] = node.attrs.get("steps", ())
    if [s.op for s in steps] != ["linear", "add", "add"]:
        return False
    product = len(node.inputs)
    added = [i for s in steps[1:] for i in s.inputs if i is not None and i < product]
    return sorted(node.inputs[i] or "" for i in added) == sorted(terms)


def before_depthwise(graph: Graph) -> dict[str, str]:
    """Activations that only a depthwise convolution reads, which then applies them itself: name -> what they are applied to."""
    users = graph.users()
    found = {}
    for node in graph:
        readers = [graph.nodes[name] for name in users.get(node.name, [])]
        alone = node.op == "hardswish" and len(readers) == 1 and node.name not in graph.outputs.values()
        if alone and _is_depthwise(graph, readers[0]) and _reads_first_once(readers[0], node.name):
            found[node.name] = node.sources[0]
    return found


def _steps(node: Node) -> tuple[Step, ...]:
    return node.attrs.get("steps") or (Step(node.op, tuple(range(len(node.inputs))), node.attrs),)


def _reads_first_once(node: Node, name: str) -> bool:
    """Whether the node's first step reads the value as its first operand, and no other step reads it."""
    steps = _steps(node)
    i = steps[0].inputs[0]
    return i is not None and node.inputs[i] == name and sum(j == i for step in steps for j in step.inputs) == 1


def _is_depthwise(graph: Graph, node: Node) -> bool:
    steps = _steps(node)
    if steps[0].op != "conv2d" or steps[0].attrs.get("groups", 1) == 1:
        return False
    c = graph.value(node.inputs[0] or "").shape[1]
    return bool(steps[0].attrs["groups"] == c == graph.value(node.inputs[1] or "").shape[0])


def inverted_residuals(graph: Graph) -> tuple[dict[str, tuple[Node, Node]], set[str]]:
    """By the name of its last node, the first two layers of each inverted residual; and the names of these two.

    A 1x1 convolution, a depthwise one, both with the same activation and read by the next alone, and the 1x1 node.
    """
    users = graph.users()
    outputs = set(graph.outputs.values())
    found: dict[str, tuple[Node, Node]] = {}
    taken: set[str] = set()  # a layer that ends one of them may begin the next, where two were composed to one
    for last in graph:
        if not _is_pointwise(graph, last):
            continue
        middle = graph.nodes.get(last.inputs[0] or "")
        if middle is None or not _is_depthwise(graph, middle):
            continue
        first = graph.nodes.get(middle.inputs[0] or "")
        if first is None or not _is_pointwise(graph, first) or any(len(users[n.name]) != 1 for n in (first, middle)):
            continue
        if taken & {first.name, middle.name} or not _reads_first_once(last, middle.name):
            continue
        acts = [[(s.op, dict(s.attrs)) for s in n.attrs.get("steps", ())[1:]] for n in (first, middle)]
        if acts[0] == acts[1] and [op for op, _ in acts[0]] in (["silu"], ["relu"]) and not outputs & {first.name, middle.name}:
            found[last.name] = first, middle
            taken |= {first.name, middle.name, last.name}
    return found, {n.name for pair in found.values() for n in pair}


def _is_pointwise(graph: Graph, node: Node) -> bool:
    steps = _steps(node)
    attrs = steps[0].attrs
    if steps[0].op != "conv2d" or attrs.get("groups", 1) != 1 or attrs.get("stride", 1) not in (1, (1, 1)):
        return False
    padding = attrs.get("padding", 0) in (0, (0, 0), ((0, 0), (0, 0)))
    return padding and tuple(graph.value(node.inputs[1] or "").shape[2:]) == (1, 1)
