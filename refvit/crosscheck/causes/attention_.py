"""Attention with another scale, softmax, mask or number of heads, or with its operands exchanged."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from refvit.crosscheck.causes.hypothesis import Call, Cause, Change, Family, Scene, default
from refvit.crosscheck.causes.roles import read_otherwise, said
from refvit.graph.ir import OPS, Array, Node
from refvit.ops.activation import softmax

LARGEST = {"float16": 65504.0, "float32": 3.4028235e38}  # of numbers that are finite; tf32 and bfloat16 reach as far as float32
SMALLEST = {"float16": 2.0**-25, "float32": 2.0**-150}  # half of the smallest number above 0


def scales(scene: Scene) -> Iterator[tuple[Node, int]]:
    """The scalings of attention logits, before or behind the product, and the features of a head."""
    for node in scene.of("scale"):
        if leads_to_softmax(scene, node):
            product = scene.graph.nodes.get(str(node.inputs[0]))
            d = scene.shape(product.sources[0])[-1] if product is not None and product.op == "matmul" else node.shape[-1]
            yield node, d


def leads_to_softmax(scene: Scene, node: Node) -> bool:
    """Whether the graph takes it to a softmax by products, masks and moves alone."""
    reaches = {node.name}
    for other in scene.graph:
        if reaches & set(other.sources):
            if other.op == "softmax":
                return True
            if other.op in ("matmul", "mask_tail", "transpose"):
                reaches.add(other.name)
    return False


def _scale(scene: Scene) -> Iterator[Change | Family]:
    for node, d in scales(scene):
        own = node.attrs["factor"]
        heads = node.shape[-3] if len(node.shape) > 3 else 1
        options = [
            ("missing", 1.0, "the logits are not scaled"),
            ("twice", own * own, f"the logits are scaled twice, or divided by d instead of its root (by {own * own:.4g})"),
            ("inverse", 1 / own, "the logits are divided by the scale, not multiplied"),
            ("features", float(d * heads) ** -0.5, f"the scale is that of all {d * heads} features, not of a head's {d}"),
            ("two halves", float(2 * d * heads) ** -0.5, f"the scale is that of {2 * d * heads} features, not of a head's {d}"),
            ("double", float(2 * d) ** -0.5, f"the scale is that of a head of {2 * d} features, not {d}"),
            ("half", float(d / 2) ** -0.5, f"the scale is that of a head of {d // 2} features, not {d}"),
            ("heads", float(heads) ** -0.5, f"the scale is the root of the number of heads, {heads}"),
        ]
        seen = [own]
        for option, factor, text in options:
            if not any(abs(factor - other) < 1e-9 * abs(other) for other in seen):
                seen.append(factor)
                yield Change(option, text, (node.name,), scene.with_attrs(node, factor=factor))

        def make(numbers: tuple[float, ...], node: Node = node, own: float = own) -> Change:
            text = f"the logits are scaled by {numbers[0]:.4g} where {own:.4g} is expected"
            return Change("factor", text, (node.name,), scene.with_attrs(node, factor=numbers[0]))

        yield Family("factor", make, ((own,),))


def _axis(scene: Scene) -> Iterator[Change]:
    for node in scene.of("softmax"):
        rank, own = len(node.shape), node.attrs["axis"] % len(node.shape)
        for axis in range(rank):
            if axis != own and node.shape[axis] > 1:
                text = f"softmax over axis {axis} of {node.shape} instead of axis {own}"
                yield Change(f"axis {axis - rank}", text, (node.name,), scene.with_attrs(node, axis=axis))
        axes = (own, own - 1)
        call = scene.instead(node, partial(_over, axes=axes))
        yield Change("both", "softmax over queries and keys together", (node.name,), call)


def _over(x: Array, axes: tuple[int, ...]) -> Array:
    e = np.exp(x - x.max(axes, keepdims=True))
    return e / e.sum(axes, keepdims=True)


def _other(scene: Scene) -> Iterator[Change]:
    for node in scene.of("softmax"):
        axis = node.attrs["axis"]
        forms: tuple[tuple[str, str, Any], ...] = (
            ("none", "no softmax: the logits themselves weigh the values", lambda x: x),
            (
                "linear",
                "no softmax: the logits divided by the number of keys weigh the values",
                lambda x, axis=axis: x / x.shape[axis],
            ),
            ("sigmoid", "a sigmoid in place of the softmax", lambda x: 1 / (1 + np.exp(-x))),
            ("twice", "softmax applied twice", lambda x, axis=axis: softmax(softmax(x, axis=axis), axis=axis)),
            ("one", "1 is added to the denominator of the softmax", partial(_plus_one, axis=axis)),
            ("base 2", "2 to the power of the logits instead of e", lambda x, axis=axis: softmax(x * np.log(2.0), axis=axis)),
        )
        for option, text, function in forms:
            yield Change(option, text, (node.name,), scene.instead(node, function))


def _plus_one(x: Array, axis: int) -> Array:
    top = np.maximum(x.max(axis, keepdims=True), 0)
    e = np.exp(x - top)
    return e / (e.sum(axis, keepdims=True) + np.exp(-top))


def overflowing(x: Array, axis: int, kind: str) -> Array:
    """exp(x) / sum(exp(x)) where numbers beyond a format's range are infinite, and those below it zero."""
    e = np.exp(x)
    e = np.where(e > LARGEST[kind], np.inf, np.where(e < SMALLEST[kind], 0, e))
    total = e.sum(axis, keepdims=True)
    return e / np.where(total > LARGEST[kind], np.inf, total)


def _overflow(scene: Scene) -> Iterator[Change]:
    for node in scene.of("softmax"):
        for kind in LARGEST:
            text = f"softmax does not subtract the largest logit, and exp leaves the range of {kind}"
            call = scene.instead(node, partial(overflowing, axis=node.attrs["axis"], kind=kind))
            yield Change(f"overflow {kind}", text, (node.name,), call)


def _masks(scene: Scene) -> Iterator[Change]:
    for node in scene.of("mask_tail"):
        own = node.attrs["value"]
        for value, words in ((0.0, "no mask"), (-np.inf, "minus infinity"), (-10.0, "-10"), (-1.0, "-1"), (100.0, "+100")):
            text = f"{words} on the logits of padded keys, where {own:g} is expected"
            yield Change(f"value {value}", text, (node.name,), scene.with_attrs(node, value=value))
        valid = node.attrs["valid"]
        yield Change("zero", f"logits of padded keys are set to 0, where {own:g} is added", (node.name,),
                     scene.instead(node, partial(_zeroed, valid=valid)))  # fmt: skip
        yield Change("first", "the mask is on the first stripe instead of the last", (node.name,),
                     scene.instead(node, partial(_first, valid=valid, value=own)))  # fmt: skip
        yield Change("all", "the mask is on every stripe instead of the last", (node.name,),
                     scene.instead(node, partial(_all, valid=valid, value=own)))  # fmt: skip


def _zeroed(x: Array, valid: int) -> Array:
    x = x.copy()
    x[:, -1, :, :, valid:] = 0
    return x


def _first(x: Array, valid: int, value: float) -> Array:
    x = x.copy()
    x[:, 0, :, :, valid:] += value
    return x


def _all(x: Array, valid: int, value: float) -> Array:
    x = x.copy()
    x[..., valid:] += value
    return x


def _roles(scene: Scene) -> Iterator[Change]:
    """q, k and v in another order: integers or slices that take equal parts of one value."""
    yield from _stacked(scene)
    yield from _taken(scene)
    yield from read_otherwise(scene)
    parts: dict[str | None, list[Node]] = {}
    for node in scene.of("getitem"):
        parts.setdefault(node.inputs[0], []).append(node)
    for nodes in parts.values():
        kinds: dict[str, list[Node]] = {}
        for node in nodes:
            kinds.setdefault(repr(node.attrs["index"]), []).append(node)
        groups = list(kinds.values())
        if len(groups) not in (2, 3) or len({g[0].shape for g in groups}) > 1 or not in_attention(nodes[0]):
            continue
        names: tuple[str, ...] = ("q", "k", "v") if len(groups) == 3 else ("the first half", "the second half")
        taken = [group[0].attrs["index"] for group in groups]
        if all(isinstance(i, int) and 0 <= i < 3 for i in taken):  # stacked; two of them may be here alone
            names = tuple("qkv"[i] for i in taken)
        for order in itertools.permutations(range(len(groups))):
            if order == tuple(range(len(groups))):
                continue
            calls: dict[str, Call] = {}
            for group, source in zip(groups, order, strict=True):
                for node in group:
                    calls |= scene.with_attrs(node, index=groups[source][0].attrs["index"])
            text = ", ".join(f"{names[a]} is what should be {names[b]}" for a, b in enumerate(order) if a != b)
            yield Change(f"roles {order}", text, tuple(n.name for n in nodes), calls)


def _stacked(scene: Scene) -> Iterator[Change]:
    """The same where q, k and v lie along an axis of one value."""
    for node in scene.of("transpose", "reshape"):
        axis = 0 if node.op == "transpose" else 2
        if len(node.shape) != 5 or node.shape[axis] != 3 or not in_attention(node):
            continue
        for order in itertools.permutations(range(3)):
            if order != (0, 1, 2):
                call = scene.behind(node, partial(np.take, indices=order, axis=axis))
                yield Change(f"stacked {order}", said(order), (node.name,), call)


def _taken(scene: Scene) -> Iterator[Change]:
    """One of them read in the place of another, where the candidate shows both."""
    for node in scene.nodes.values():
        for i, name in enumerate(node.inputs):
            for other in scene.beside.get(name or "", ()) if in_attention(node) else ():
                call = scene.instead(node, default(node), (*node.inputs[:i], other, *node.inputs[i + 1 :]))
                yield Change(f"taken {other}", f"{other} is read where {name} is expected", (node.name,), call)


def in_attention(node: Node) -> bool:
    return any(part.startswith(("attn", "attention", "stripe_attention")) for part in node.scope.split("."))


def _operands(scene: Scene) -> Iterator[Change]:
    for node in scene.of("softmax"):
        users = [u for u in scene.users.get(node.name, []) if u.op == "matmul"]
        scores = scene.producer(node.inputs[0])
        if len(users) == 1 and scores is not None and scores.shape[-1] == scores.shape[-2]:
            for option, text, call in (
                ("transposed weights", "the attention weights are transposed: values are summed over the queries",
                 scene.before(users[0], partial(np.swapaxes, axis1=-1, axis2=-2), users[0].inputs.index(node.name))),
                ("transposed logits", "the logits are transposed: queries and keys are exchanged",
                 scene.behind(scores, partial(np.swapaxes, axis1=-1, axis2=-2))),
            ):  # fmt: skip
                yield Change(option, text, (node.name,), call)


def _heads(scene: Scene) -> Iterator[Change]:
    """The features of the queries, keys and values divided into another number of heads."""
    for node in scene.of("reshape"):
        shape = node.attrs["shape"]
        if len(shape) != 5 or shape[2] != 3 or not in_attention(node):
            continue
        heads, d = shape[3], shape[4]
        logits = [n for n, _ in scales(scene) if n.scope.startswith(node.scope)]
        for other in [h for h in range(1, 65) if heads * d % h == 0 and h != heads]:
            call = scene.with_attrs(node, shape=(*shape[:3], other, heads * d // other))
            text = f"{other} heads where {heads} are expected"
            yield Change(f"heads {other} alone", f"{text}, with the scale of {heads}", (node.name,), call)
            for scale in logits[:1]:
                scaled = scene.with_attrs(scale, factor=float(heads * d / other) ** -0.5)
                yield Change(f"heads {other}", text, (node.name,), {**call, **scaled})


def _regrouped(scene: Scene) -> Iterator[Change]:
    """MobileViT: sequences run within a patch (4 tokens) instead of across the patches."""
    area = {n.name: n for n in scene.graph if "unfold_patches" in n.scope and n.op == "reshape" and len(n.shape) == 3}
    for node in scene.of("softmax"):
        product = scene.producer(node.inputs[0])
        users = [u for u in scene.users.get(node.name, []) if u.op == "matmul"]
        tokens = next((n for n in area.values() if _below(node.scope, n.scope)), None)
        if product is None or tokens is None or len(users) != 1 or len(node.shape) != 4:
            continue
        patch = tokens.shape[0] // next(iter(scene.graph.inputs.values())).shape[0]
        regroup = partial(_swap_groups, area=patch)
        q, k, v = product.inputs[0], product.inputs[1], users[0].inputs[1]
        function = partial(_within, regroup=regroup)
        text = "tokens attend to those of their own patch instead of to the same place in other patches"
        yield Change("within", text, (node.name,), scene.instead(users[0], function, (q, k, v)))


def _below(scope: str, unfold: str) -> bool:
    return scope.startswith(unfold.rpartition(".")[0] + ".")


def _swap_groups(x: Array, area: int) -> Array:
    """(n area, heads, l, d) <-> (n l, heads, area, d)"""
    n, heads, l, d = x.shape[0] // area, *x.shape[1:]
    return x.reshape(n, area, heads, l, d).transpose(0, 3, 2, 1, 4).reshape(n * l, heads, area, d)


def _within(q: Array, k_transposed: Array, v: Array, regroup: Any) -> Array:
    q2, k2, v2 = regroup(q), regroup(k_transposed.swapaxes(-1, -2)), regroup(v)
    y = OPS["softmax"].function(q2 @ k2.swapaxes(-1, -2), axis=-1) @ v2
    return _swap_groups(y, q.shape[2])


CAUSES = (
    Cause(
        "attention-scale", "scales the attention logits differently", "multiply by 1 / sqrt(features of a head), once", _scale
    ),
    Cause("softmax-axis", "takes the softmax over another axis", "take it over the keys, the last axis", _axis),
    Cause("softmax-other", "has something else than one softmax", "apply softmax once", _other),
    Cause("softmax-overflow", "does not subtract the largest logit before exp", "compute exp(x - max(x))", _overflow),
    Cause(
        "attention-mask",
        "masks padded keys differently",
        "add -100 to the logits of the padded keys of the last stripe",
        _masks,
    ),
    Cause("qkv-roles", "exchanges queries, keys and values", "the rows of the projection are all of q, then k, then v", _roles),
    Cause("attention-transposed", "sums over the wrong side of the attention matrix", "use softmax(q k^T) v", _operands),
    Cause("head-count", "divides the features into another number of heads", "take the number of heads of the model", _heads),
    Cause(
        "attention-groups",
        "lets other tokens attend to each other",
        "sequences run across the patches, one for each place within the patch",
        _regrouped,
    ),
)
