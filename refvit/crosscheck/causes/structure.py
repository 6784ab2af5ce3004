"""Another network: something missing, twice, in another order, or added from elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from refvit.crosscheck.causes.attention_ import in_attention
from refvit.crosscheck.causes.hypothesis import Call, Cause, Change, Family, Scene, default
from refvit.crosscheck.causes.tokens import embeddings
from refvit.graph.ir import OPS, Array, Node

NORMS = ("layer_norm", "batch_norm")


def _ancestor(scene: Scene, a: str, b: str) -> bool:
    """Whether value b is computed from value a."""
    seen, front = {b}, [b]
    while front:
        node = scene.graph.nodes.get(front.pop())
        for source in node.sources if node is not None else ():
            if source == a:
                return True
            if source not in seen:
                seen.add(source)
                front.append(source)
    return False


def _terms(scene: Scene) -> Iterator[tuple[Node, int, str, str]]:
    """Every term of an addition that is no position embedding: node, index, cause, what it is in words."""
    positions = {node.name for node, _ in embeddings(scene)}
    for node in scene.of("add"):
        a, b = node.inputs[0], node.inputs[1]
        if node.name in positions or a is None or b is None or scene.shape(a) != scene.shape(b):
            continue
        for index, (mine, other) in enumerate(((a, b), (b, a))):
            if _ancestor(scene, mine, other):
                yield node, index, "residual", f"the residual {mine}"
            elif _ancestor(scene, other, mine):
                yield node, index, "branch", f"the branch {mine}"
            else:
                yield node, index, "term", f"the term {mine}"


def _missing(scene: Scene, wanted: str) -> Iterator[Change]:
    for node, index, what, words in _terms(scene):
        if what == wanted:
            kept = scene.without(node, 1 - index)
            yield Change(f"missing {index}", f"{words} is not added", (node.name,), kept)


def _scaled(scene: Scene) -> Iterator[Change | Family]:
    for node, index, _, words in _terms(scene):
        for factor, said in ((2.0, "added twice"), (-1.0, "subtracted"), (0.5, "halved")):
            call = scene.before(node, partial(np.multiply, factor), index)
            yield Change(f"{factor} {index}", f"{words} is {said}", (node.name,), call)

        def make(numbers: tuple[float, ...], node: Node = node, index: int = index, words: str = words) -> Change:
            text = f"{words} is multiplied by {numbers[0]:.4g} before it is added (stochastic depth left on, or a layer scale)"
            return Change(f"factor {index}", text, (node.name,), scene.before(node, partial(np.multiply, numbers[0]), index))

        yield Family(f"factor {index}", make, ((0.9,),))


def _norm_sides(scene: Scene) -> Iterator[Change]:
    """What reads the input of a norm reads its result. The norm itself may lie in another segment."""
    order = {name: i for i, name in enumerate(scene.graph.nodes)}
    for norm in scene.graph:
        source = norm.inputs[0] if norm.op in NORMS else None
        for user in scene.users.get(source, []) if source is not None else []:
            if user.name == norm.name or order[user.name] < order[norm.name]:
                continue
            normalise = partial(OPS[norm.op].function, **norm.attrs)
            places = tuple(i for i, name in enumerate(user.inputs) if name == source)
            function = partial(_behind, norm=normalise, places=places, read=len(user.inputs), function=default(user))
            what = "the residual" if user.op == "add" else "its input"
            text = f"{what} is taken behind {norm.name} instead of before it"
            call = {user.name: Call(function, (*user.inputs, *norm.inputs[1:]))}
            yield Change(f"{user.op} behind norm", text, (user.name,), call)
            if user.op == "add" and norm.op == "layer_norm" and norm.name in scene.nodes:
                text = f"{norm.name} behind the addition (post-norm) instead of before the branch (pre-norm)"
                moved = {user.name: Call(partial(_post, norm=normalise), (*user.inputs, *norm.inputs[1:]))}
                yield Change("post-norm", text, (norm.name,), {**moved, **scene.without(norm)})


def _behind(*given: Array, norm: Any, places: tuple[int, ...], read: int, function: Any) -> Array:
    """`function` of the first `read` arrays, those at `places` normalised with the others as the norm's parameters."""
    arguments = [norm(a, *given[read:]) if i in places else a for i, a in enumerate(given[:read])]
    return np.asarray(function(*arguments))


def _post(x: Array, y: Array, *params: Array, norm: Any) -> Array:
    return norm(x + y, *params)


def _concatenation(scene: Scene) -> Iterator[Change]:
    for node in scene.of("concat"):
        count = len(node.inputs)
        producers = [scene.graph.nodes.get(str(i)) for i in node.inputs]
        if 1 < count <= 5 and not any(p is not None and p.op == "broadcast" and p.inputs[0] in scene.params for p in producers):
            for order in itertools.permutations(range(count)):
                if order != tuple(range(count)):
                    inputs = tuple(node.inputs[i] for i in order)
                    text = f"the parts are joined in the order {', '.join(str(i + 1) for i in order)}"
                    call = {node.name: Call(partial(OPS["concat"].function, **node.attrs), inputs)}
                    yield Change(f"order {order}", text, (node.name,), call)


def _halves(scene: Scene) -> Iterator[Change]:
    """Two runs of channels of one value that go different ways, such as the 3x3 and 5x5 filters of a feed-forward layer."""
    parts: dict[str | None, list[Node]] = {}
    for node in scene.of("getitem"):
        if not in_attention(node) and any(isinstance(i, slice) and i != slice(None) for i in _index(node)):
            parts.setdefault(node.inputs[0], []).append(node)
    for nodes in parts.values():
        if len(nodes) != 2 or nodes[0].shape != nodes[1].shape:
            continue
        a, b = nodes
        swapped = {**scene.with_attrs(a, index=b.attrs["index"]), **scene.with_attrs(b, index=a.attrs["index"])}
        places = (a.name, b.name)
        yield Change("exchanged", "both halves of the channels are exchanged", places, swapped)
        joined = next((n for n in scene.of("concat") if n.scope == a.scope and len(n.inputs) == 2), None)
        if joined is not None:
            function = partial(OPS["concat"].function, **joined.attrs)
            behind = {joined.name: Call(function, joined.inputs[::-1])}
            text = "the first half of the channels goes the second one's way, and the reverse"
            yield Change("the other way", text, places, {**swapped, **behind})


def _index(node: Node) -> tuple[Any, ...]:
    index = node.attrs["index"]
    return index if isinstance(index, tuple) else (index,)


def blocks(scene: Scene) -> Iterator[tuple[str, str, tuple[Node, ...]]]:
    """Blocks that lie wholly within the segment and keep their input's shape: path, input, nodes."""
    for path, end in scene.graph.aliases.items():
        inside = [n for n in scene.nodes.values() if n.scope == path or n.scope.startswith(path + ".")]
        if len(inside) < 2 or end != inside[-1].name:
            continue
        if len(inside) < sum(n.scope == path or n.scope.startswith(path + ".") for n in scene.graph):
            continue
        names = {n.name for n in inside}
        read = dict.fromkeys(s for n in inside for s in n.sources if s not in names and s not in scene.params)
        if len(read) == 1 and scene.shape(next(iter(read))) == scene.shape(end):
            yield path, next(iter(read)), tuple(inside)


def _layers(scene: Scene) -> Iterator[Change]:
    for path, source, nodes in blocks(scene):
        text = f"the block {path} is left out"
        yield Change(f"without {path}", text, (path,), {nodes[-1].name: Call(_same, (source,))}, alone=True)
    for node in scene.of("conv2d", "linear"):
        if scene.shape(str(node.inputs[0])) == node.shape:
            yield Change(f"without {node.op}", f"the {node.op} is left out", (node.name,), scene.without(node))


def _twice(scene: Scene) -> Iterator[Change]:
    for path, source, nodes in blocks(scene):
        again = partial(_run, nodes=nodes, source=source, params=scene.params)
        yield Change(f"twice {path}", f"the block {path} is run twice", (path,), scene.behind(nodes[-1], again), alone=True)
    for node in scene.of("conv2d", "linear"):
        if scene.shape(str(node.inputs[0])) == node.shape:
            again = partial(_run, nodes=(node,), source=str(node.inputs[0]), params=scene.params)
            yield Change(f"twice {node.op}", f"the {node.op} is run twice", (node.name,), scene.behind(node, again))


def _run(x: Array, nodes: tuple[Node, ...], source: str, params: Any) -> Array:
    values = {source: x}
    for node in nodes:
        arguments = [None if i is None else values[i] if i in values else params[i].astype(x.dtype) for i in node.inputs]
        values[node.name] = OPS[node.op].function(*arguments, **node.attrs)
    return values[nodes[-1].name]


def _exchanged(scene: Scene) -> Iterator[Change]:
    """Two neighbouring blocks, or two layers of one block, with each other's weights."""
    read = {i for node in scene.nodes.values() for i in node.sources if i in scene.params}
    modules: dict[str, dict[str, str]] = {}
    for name in read:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            modules.setdefault(".".join(parts[:depth]), {})[".".join(parts[depth:])] = name
    for a, b in itertools.combinations(sorted(modules), 2):
        mine, theirs = modules[a], modules[b]
        if a.rpartition(".")[0] != b.rpartition(".")[0] or set(mine) != set(theirs):
            continue
        if all(scene.params[mine[k]].shape == scene.params[theirs[k]].shape for k in mine):
            params = {mine[k]: scene.params[theirs[k]] for k in mine} | {theirs[k]: scene.params[mine[k]] for k in mine}
            yield Change(f"{a} {b}", f"the weights of {a} and {b} are exchanged", (a, b), params=params, alone=True)


def _same(x: Array) -> Array:
    return x


CAUSES = (
    Cause(
        "residual-missing",
        "leaves a residual connection out",
        "add the input of the branch to its output",
        partial(_missing, wanted="residual"),
    ),
    Cause("branch-missing", "leaves a branch out", "run the branch and add it", partial(_missing, wanted="branch")),
    Cause("fuse-missing", "leaves a term of a sum out", "add all branches", partial(_missing, wanted="term")),
    Cause(
        "branch-scaled", "scales a term of a sum", "add the terms as they are: stochastic depth is for training only", _scaled
    ),
    Cause(
        "norm-side",
        "has a norm on the wrong side of a residual connection",
        "norm before the branch, residual from before the norm",
        _norm_sides,
    ),
    Cause("concat-order", "joins parts in another order", "join them in the reference's order", _concatenation),
    Cause("halves-exchanged", "exchanges two halves of the channels", "keep their order", _halves),
    Cause("layer-missing", "leaves a layer out", "run it", _layers),
    Cause("layer-twice", "runs a layer twice", "run it once", _twice),
    Cause("layers-exchanged", "exchanges the weights of two layers", "map the weights by name, not by order", _exchanged),
)
