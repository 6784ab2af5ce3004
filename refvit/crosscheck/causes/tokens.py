"""Class token, position embedding, and what the head reads: pooling of tokens and maps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from refvit.crosscheck.causes.hypothesis import Call, Cause, Change, Scene
from refvit.graph.ir import Array, Node


def embeddings(scene: Scene) -> Iterator[tuple[Node, int]]:
    """The additions of a position embedding, and which of their terms it is."""
    names = [n for n in scene.graph.params if n.rpartition(".")[2] in ("pos_embed", "position_embeddings")]
    reached = set(names)
    for node in scene.graph:
        if node.op == "add":
            for index, source in enumerate(node.inputs):
                if source in reached and node.name in scene.nodes:
                    yield node, index
        elif reached & set(node.sources) and node.op in ("getitem", "reshape", "transpose", "resize", "concat"):
            reached.add(node.name)


def _prefix(scene: Scene, tokens: int) -> int:
    """Tokens before those of the patches."""
    return sum(name in scene.graph.params for name in ("cls_token", "dist_token")) if tokens > 1 else 0


def _position(scene: Scene) -> Iterator[Change]:
    for node, index in embeddings(scene):
        prefix = _prefix(scene, node.shape[1])
        forms: list[tuple[str, str, Any]] = [
            ("missing", "no position embedding is added", lambda x, p: x),
            ("twice", "the position embedding is added twice", lambda x, p: x + 2 * p),
            ("last", "the position embedding's first entry, that of the class token, is taken for the last token",
             lambda x, p, prefix=prefix: x + np.concatenate([p[:, prefix:], p[:, :prefix]], 1)),
            ("first", "the position embedding's last entry is taken for the class token",
             lambda x, p, prefix=prefix: x + np.concatenate([p[:, -prefix:], p[:, :-prefix]], 1)),
            ("patches", "the position embedding is added to the patches only, not to the class token",
             lambda x, p, prefix=prefix: x + np.concatenate([0 * p[:, :prefix], p[:, prefix:]], 1)),
            ("rolled", "the position embedding is shifted by one token, the first entry comes last",
             lambda x, p: x + np.roll(p, -1, 1)),
            ("rolled back", "the position embedding is shifted by one token, the last entry comes first",
             lambda x, p: x + np.roll(p, 1, 1)),
            ("shifted", "the position embedding is shifted by one patch",
             lambda x, p, prefix=prefix: x + np.concatenate([p[:, :prefix], np.roll(p[:, prefix:], 1, 1)], 1)),
            ("negative", "the position embedding is subtracted", lambda x, p: x - p),
            ("columns", "the position embedding's grid is transposed", partial(_transposed_grid, prefix=prefix)),
            ("class only", "the same position embedding, the class token's, is added to all tokens", lambda x, p: x + p[:, :1]),
        ]  # fmt: skip
        other = node.inputs[1 - index]
        for option, text, function in forms:
            yield Change(option, text, (node.name,), scene.instead(node, function, (other, node.inputs[index])))


def _transposed_grid(x: Array, p: Array, prefix: int) -> Array:
    n, l, d = p.shape
    side = round((l - prefix) ** 0.5)
    grid = p[:, prefix:].reshape(n, side, side, d).transpose(0, 2, 1, 3).reshape(n, l - prefix, d)
    return x + np.concatenate([p[:, :prefix], grid], 1)


def _class_token(scene: Scene) -> Iterator[Change]:
    for node in scene.of("concat"):
        names = [scene.graph.nodes.get(str(i)) for i in node.inputs]
        prefix = [n for n in names if n is not None and n.op == "broadcast" and n.inputs[0] in ("cls_token", "dist_token")]
        if not prefix or len(node.inputs) < 2:
            continue
        axis = node.attrs["axis"]
        join = partial(_joined, axis=axis)
        moved = (*node.inputs[len(prefix) :], *node.inputs[: len(prefix)])
        yield Change("last", "the class token stands behind the patches instead of before them", (node.name,),
                     {node.name: Call(join, moved)})  # fmt: skip
        if len(prefix) == 2:
            swapped = (node.inputs[1], node.inputs[0], *node.inputs[2:])
            yield Change("exchanged", "class token and distillation token are exchanged", (node.name,),
                         {node.name: Call(join, swapped)})  # fmt: skip
        for token in (t for t in prefix if t.name in scene.nodes):
            text = f"{token.inputs[0]} is zero: it was not loaded"
            yield Change(f"zero {token.inputs[0]}", text, (token.name,), scene.behind(token, np.zeros_like))


def _joined(*xs: Array, axis: int) -> Array:
    return np.concatenate(xs, axis)


def _pooling(scene: Scene) -> Iterator[Change]:
    """A head that reads one token, or the mean of a map."""
    for node in scene.of("getitem"):
        index = node.attrs["index"]
        if not (isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None) and isinstance(index[1], int)):
            continue
        prefix = _prefix(scene, scene.shape(str(node.inputs[0]))[1])
        own = f"token {index[1]}"
        forms: list[tuple[str, str, Any]] = [
            ("mean", "the mean of all tokens", lambda x: x.mean(1)),
            ("patches", "the mean of the patches' tokens", lambda x, prefix=prefix: x[:, prefix:].mean(1)),
            ("last", "the last token", lambda x: x[:, -1]),
            ("max", "the largest value of all tokens", lambda x: x.max(1)),
            ("sum", "the sum of all tokens", lambda x: x.sum(1)),
        ]
        forms += [(f"token {i}", f"token {i}", partial(_token, i=i)) for i in (0, 1, 2) if i != index[1]]
        for option, text, function in forms:
            yield Change(option, f"the head reads {text} where {own} is expected", (node.name,), scene.instead(node, function))
    for node in scene.of("mean"):
        axes = tuple(node.attrs["axes"])
        keep = bool(node.attrs.get("keepdims", False))
        forms = [
            ("max", "the largest value", partial(np.max, axis=axes, keepdims=keep)),
            ("sum", "the sum", partial(np.sum, axis=axes, keepdims=keep)),
            ("root", "the root mean square", partial(_root, axes=axes, keep=keep)),
            ("half", "the mean of largest value and mean", partial(_between, axes=axes, keep=keep)),
            ("first", "the value of the first pixel", partial(_pixel, axes=axes, keep=keep, at=0)),
            ("centre", "the value of the middle pixel", partial(_pixel, axes=axes, keep=keep, at=None)),
        ]
        for option, text, function in forms:
            yield Change(option, f"{text} where the mean is expected", (node.name,), scene.instead(node, function))
        if len(axes) == 2 and axes[0] >= 2:
            size = scene.shape(str(node.inputs[0]))[2:]
            for rows, columns in ((1, 1), (0, 1), (1, 0)):
                bordered = (size[0] + 2 * rows) * (size[1] + 2 * columns) / (size[0] * size[1])
                text = "zeros of a padding are counted in the mean (count_include_pad)"
                call = scene.behind(node, partial(np.multiply, 1 / bordered))
                yield Change(f"padded {rows} {columns}", text, (node.name,), call)


def _token(x: Array, i: int) -> Array:
    return x[:, i]


def _root(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    return np.sqrt((x * x).mean(axes, keepdims=keep))


def _between(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    return (x.max(axes, keepdims=keep) + x.mean(axes, keepdims=keep)) / 2


def _pixel(x: Array, axes: tuple[int, ...], keep: bool, at: int | None) -> Array:
    for axis in sorted(axes, reverse=True):
        x = x.take([x.shape[axis] // 2 if at is None else at], axis)
    return x if keep else x.squeeze(axes)


def _bins(scene: Scene) -> Iterator[Change]:
    for node in scene.of("adaptive_avg_pool"):
        size = node.attrs["size"]
        for option, text, function in (
            ("floor", "both ends of a bin are rounded down: bins do not overlap",
             partial(_pooled, size=size, rule="floor")),
            ("fixed", "all bins have the size and step floor(in / out)", partial(_pooled, size=size, rule="fixed")),
            ("ceil", "all bins have the size and step ceil(in / out), the last one cut off (ceil_mode)",
             partial(_pooled, size=size, rule="ceil")),
            ("padded", "all bins have the size and step ceil(in / out), with zeros beyond the border (count_include_pad)",
             partial(_pooled, size=size, rule="padded")),
            ("torch", "bins of size in - (out - 1) step, steps of floor(in / out)",
             partial(_pooled, size=size, rule="stepped")),
            ("max", "the largest value of a bin instead of the mean", partial(_pooled, size=size, rule="max")),
        ):  # fmt: skip
            yield Change(option, text, (node.name,), scene.instead(node, function))


def _pooled(x: Array, size: tuple[int, int], rule: str) -> Array:
    y = np.empty((*x.shape[:2], *size), x.dtype)
    for i, j in np.ndindex(*size):
        part, count = x, 1
        for axis, k, out in ((2, i, size[0]), (3, j, size[1])):
            n = x.shape[axis]
            if rule in ("floor", "max"):
                low, high = k * n // out, (k + 1) * n // out
                if rule == "max":
                    high = -(-(k + 1) * n // out)
            elif rule == "stepped":
                low = k * (n // out)
                high = low + n - (out - 1) * (n // out)
            else:
                step = max(n // out, 1) if rule == "fixed" else -(-n // out)
                low, high = k * step, (k + 1) * step
            count *= high - low
            part = part.take(range(min(low, n), min(high, n)), axis)
        values = part.max((2, 3)) if rule == "max" else part.sum((2, 3)) / (count if rule == "padded" else part[0, 0].size)
        y[:, :, i, j] = values
    return y


def _two_heads(scene: Scene) -> Iterator[Change]:
    """DeiT: the answer is the mean of two heads."""
    for node in scene.of("scale"):
        total = scene.producer(node.inputs[0])
        if node.attrs["factor"] != 0.5 or total is None or total.op != "add" or node.scope:
            continue
        for option, text, function in (
            ("sum", "the sum of both heads where their mean is expected", np.add),
            ("class", "the class token's head alone where the mean of both is expected", lambda x, y: x),
            ("distilled", "the distillation token's head alone where the mean of both is expected", lambda x, y: y),
        ):
            yield Change(option, text, (node.name,), scene.instead(node, function, total.inputs))


CAUSES = (
    Cause(
        "position-embedding",
        "adds another position embedding",
        "add the table once: the class token's entry first, then the patches row by row",
        _position,
    ),
    Cause(
        "class-token",
        "puts the class token elsewhere, or leaves it out",
        "put the class token before the patches",
        _class_token,
    ),
    Cause("pooling", "pools otherwise", "read what the head was trained on", _pooling),
    Cause("pooling-bins", "divides a map into other bins", "divide as torch.nn.AdaptiveAvgPool2d does", _bins),
    Cause("two-heads", "combines the two heads otherwise", "take the mean of both heads' logits", _two_heads),
)
