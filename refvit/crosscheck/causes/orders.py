"""Values taken in another order where axes are split, merged or exchanged: q, k and v, heads, patches, stripes, tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator
from functools import partial

import numpy as np

from refvit.crosscheck.causes.attention_ import in_attention
from refvit.crosscheck.causes.hypothesis import Call, Cause, Change, Scene
from refvit.graph.ir import Array, Node, Shape


def groups(before: Shape, after: Shape) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Runs of axes of both sides of a reshape that hold the same values, such as ((2,), (2, 3, 4)) for a split."""
    found, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        a, b = [i], [j]
        m, n = before[i] if i < len(before) else 1, after[j] if j < len(after) else 1
        i, j = i + 1, j + 1
        while m != n:
            if m < n:
                m, i = m * before[i], i + 1
                a.append(i - 1)
            else:
                n, j = n * after[j], j + 1
                b.append(j - 1)
        found.append((tuple(k for k in a if k < len(before)), tuple(k for k in b if k < len(after))))
    return found


def split_otherwise(x: Array, shape: Shape, axes: tuple[int, ...], order: tuple[int, ...]) -> Array:
    """Reshape to `shape` as if the axes `axes` of the result lay in memory in this order."""
    permuted = list(range(len(shape)))
    for place, source in zip(axes, order, strict=True):
        permuted[place] = axes[source]
    return x.reshape([shape[a] for a in permuted]).transpose(np.argsort(permuted))


def merged_otherwise(x: Array, shape: Shape, axes: tuple[int, ...], order: tuple[int, ...]) -> Array:
    """Reshape to `shape` after the axes `axes` were brought into this order."""
    permuted = list(range(x.ndim))
    for place, source in zip(axes, order, strict=True):
        permuted[place] = axes[source]
    return x.transpose(permuted).reshape(shape)


def orders(shape: Shape, axes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Permutations of the axes that move values."""
    long = [i for i, a in enumerate(axes) if shape[a] > 1]
    for order in itertools.permutations(range(len(axes))):
        if [i for i in order if i in long] != long and all(order[i] == i for i in range(len(axes)) if i not in long):
            yield order


def kind(node: Node, moved: Collection[int] | None = None) -> str:
    """Which cause a wrong order at this node is. moved: the axes of its result that change places, None if that is open."""
    parts = node.scope.split(".")
    last = parts[-1]
    if last.startswith(("unfold_patches", "fold_patches")):
        return "unfold-order"
    if last.startswith("stripe_attention"):
        return "stripe-order"
    if in_attention(node):
        packed = len(node.shape) == 5 and 3 in node.shape[:3]
        return "qkv-order" if packed and (moved is None or 2 in moved or node.shape[2] != 3) else "head-order"
    if last == "des":
        return "shortcut-order"
    return "token-order"


def refined(before: Shape, after: Shape) -> Shape | None:
    """Axes that both shapes of the same values are made of: (5, 2 x 3) and (5 x 2, 3) of (5, 2, 3)."""
    ends = {math.prod(shape[i:]) for shape in (before, after) for i in range(len(shape))}
    ladder = [1, *sorted(ends)]
    if any(b % a for a, b in itertools.pairwise(ladder)):
        return None
    return tuple(b // a for a, b in itertools.pairwise(ladder))[::-1]


def rearranged(x: Array, shape: Shape, fine: Shape, order: tuple[int, ...]) -> Array:
    """Reshape by way of `fine`, whose axes are brought into another order in between."""
    return x.reshape(fine).transpose(order).reshape(shape)


Order = tuple[str, str, Callable[[Array], Array], Collection[int] | None]  # option, text, function, axes as in `kind`


def of_node(scene: Scene, node: Node) -> Iterator[Order]:
    """Every other order that a reshape could have."""
    before, after = scene.shape(str(node.inputs[0])), node.shape
    for a, b in groups(before, after):
        if len(b) > 1 and len(a) == 1:
            for order in orders(after, b):
                read = " x ".join(str(after[b[i]]) for i in order)
                text = f"{before[a[0]]} features are read as {read} where {' x '.join(str(after[i]) for i in b)} is expected"
                moved = {b[i] for i, source in enumerate(order) if source != i}
                yield f"split {b} {order}", text, partial(split_otherwise, shape=after, axes=b, order=order), moved
        elif len(a) > 1 and len(b) == 1:
            for order in orders(before, a):
                wrote = " x ".join(str(before[a[i]]) for i in order)
                text = f"axes are merged as {wrote} where {' x '.join(str(before[i]) for i in a)} is expected"
                yield f"merge {a} {order}", text, partial(merged_otherwise, shape=after, axes=a, order=order), None
        elif len(a) > 1 and len(b) > 1 and (parts := refined(tuple(before[i] for i in a), tuple(after[i] for i in b))):
            fine = (*before[: a[0]], *parts, *before[a[-1] + 1 :])
            for taken in orders(parts, tuple(range(len(parts)))):
                order = (*range(a[0]), *(a[0] + i for i in taken), *range(a[0] + len(parts), len(fine)))
                text = f"values that lie as {parts} are taken in the order of axes {taken}"
                yield f"parts {a} {taken}", text, partial(rearranged, shape=after, fine=fine, order=order), None


def of_axes(scene: Scene, node: Node) -> Iterator[Order]:
    """What concerns several axes of a reshape's result, each of which may be right in itself."""
    before, after = scene.shape(str(node.inputs[0])), node.shape
    runs = groups(before, after)
    for word, several in (
        ("split", [(b, after) for a, b in runs if len(a) == 1 and len(b) > 1]),
        ("merged", [(a, before) for a, b in runs if len(a) > 1 and len(b) == 1]),
    ):
        last = [tuple(i for i in axes if shape[i] > 1)[-2:] for axes, shape in several]
        pairs = [pair for pair in last if len(pair) == 2]
        if len(pairs) > 1:
            axes = tuple(i for pair in pairs for i in pair)
            order = tuple(i for k in range(len(pairs)) for i in (2 * k + 1, 2 * k))
            text = f"{' and '.join(str(pair) for pair in pairs)}: both pairs of axes are {word} the other way round"
            otherwise = split_otherwise if word == "split" else merged_otherwise
            yield f"{word} {axes}", text, partial(otherwise, shape=after, axes=axes, order=order), None
    long = [i for i, length in enumerate(after) if length > 1]
    kept = {b[0] for a, b in runs if len(a) == len(b) == 1}  # that the reshape leaves as they are
    for i, j in itertools.pairwise(long):
        if {i, j} <= kept:
            continue
        swapped = list(after)
        swapped[i], swapped[j] = after[j], after[i]
        text = f"axes {i} and {j} of {after} are exchanged in memory, and read as if they were not"
        yield f"wrote {i} {j}", text, partial(_exchanged, first=after, axes=(i, j), shape=after), {i, j}
        text = f"values are read as {tuple(swapped)} and transposed where they lie as {after}"
        yield f"read {i} {j}", text, partial(_exchanged, first=tuple(swapped), axes=(i, j), shape=after), {i, j}


def _exchanged(x: Array, first: Shape, axes: tuple[int, int], shape: Shape) -> Array:
    return x.reshape(first).swapaxes(*axes).reshape(shape)


def _order(scene: Scene, wanted: str) -> Iterator[Change]:
    for node in scene.of("reshape"):
        leaf = node.name.rpartition(".")[2]
        for option, text, function, moved in itertools.chain(of_node(scene, node), of_axes(scene, node)):
            if kind(node, moved) == wanted:
                yield Change(f"{leaf} {option}", text, (node.name,), scene.instead(node, function))
    for node in scene.of("transpose"):
        before = scene.producer(node.inputs[0])
        if kind(node) == wanted:
            text = f"values are reshaped to {node.shape} where a transpose (axes {node.attrs['axes']}) is expected"
            call = scene.instead(node, partial(np.reshape, shape=node.shape))
            yield Change(f"{node.name.rpartition('.')[2]} reshaped", text, (node.name,), call)
        if kind(node) == wanted and before is not None and before.op == "reshape" and len(node.shape) > 3:
            yield from _other_transposes(scene, node)


def _other_transposes(scene: Scene, node: Node) -> Iterator[Change]:
    """Axes of one length exchanged, and neighbours exchanged whose product is merged afterwards."""
    axes = node.attrs["axes"]
    for i, j in itertools.combinations(range(len(axes)), 2):
        if 1 < node.shape[i] == node.shape[j]:
            other = list(axes)
            other[i], other[j] = other[j], other[i]
            text = f"axes {tuple(other)} where a transpose by {axes} is expected"
            yield Change(
                f"{node.name.rpartition('.')[2]} {other}", text, (node.name,), scene.with_attrs(node, axes=tuple(other))
            )


def _rows(scene: Scene, wanted: str) -> Iterator[Change]:
    """The same orders, made by permuted rows of the projection before, where the split itself lies in another segment."""
    for node in scene.of("linear"):
        weight = node.inputs[1]
        if weight not in scene.params:
            continue
        reader = next((n for n in scene.graph if n.op == "reshape" and n.inputs[0] == node.name), None)
        if reader is not None and reader.name not in scene.nodes:
            yield from _permuted_rows(scene, node, reader, wanted)


def _permuted_rows(scene: Scene, node: Node, reader: Node, wanted: str) -> Iterator[Change]:
    split = next(((a, b) for a, b in groups(node.shape, reader.shape) if len(b) > 1 and a == (len(node.shape) - 1,)), None)
    if split is None:
        return
    sizes = [reader.shape[i] for i in split[1]]
    rows = np.arange(node.shape[-1])
    last = tuple(range(len(sizes)))
    for order in orders(tuple(sizes), last):
        if kind(reader, {split[1][i] for i, source in enumerate(order) if source != i}) != wanted:
            continue
        theirs, ours = (" x ".join(str(sizes[i]) for i in axes) for axes in (order, last))
        for option, text, permuted in (
            ("read", f"the projection's rows are read as {theirs} where they lie as {ours}",
             split_otherwise(rows, tuple(sizes), last, order)),
            ("rows", f"the projection's rows lie as {theirs} where {ours} is expected", rows.reshape(sizes).transpose(order)),
        ):  # fmt: skip
            yield Change(f"{option} {order}", text, (node.name,), _reordered(scene, node, permuted.reshape(-1)))
    if sizes[0] == 3 and kind(reader) == wanted:
        for roles in itertools.permutations(range(3)):
            if roles != (0, 1, 2):
                permuted = rows.reshape(sizes)[list(roles)].reshape(-1)
                text = f"the projection's rows are {', '.join('qkv'[r] for r in roles)} where q, k, v is expected"
                yield Change(f"roles {roles}", text, (node.name,), _reordered(scene, node, permuted))


def _reordered(scene: Scene, node: Node, permuted: Array) -> dict[str, Call]:
    """A permutation of the features of what a linear layer gives, which is one of its rows."""
    return scene.behind(node, partial(np.take, indices=permuted, axis=-1))


def _both(scene: Scene, wanted: str) -> Iterator[Change]:
    yield from _order(scene, wanted)
    yield from _rows(scene, wanted)


CAUSES = (
    Cause(
        "qkv-order",
        "packs queries, keys and values differently",
        "the projection's rows are (q, k, v), then heads, then the features of a head",
        partial(_both, wanted="qkv-order"),
    ),
    Cause(
        "head-order",
        "merges or splits heads in another order",
        "heads are runs of neighbouring features: (heads, d)",
        partial(_both, wanted="head-order"),
    ),
    Cause(
        "unfold-order",
        "unfolds or folds patches in another order",
        "a sequence holds the same place (i, j) of all patches, rows first",
        partial(_both, wanted="unfold-order"),
    ),
    Cause(
        "stripe-order",
        "cuts stripes in another order",
        "a stripe holds neighbouring rows, its tokens row by row",
        partial(_both, wanted="stripe-order"),
    ),
    Cause(
        "shortcut-order",
        "folds the shortcut's features in another order",
        "channel = row columns + column",
        partial(_both, wanted="shortcut-order"),
    ),
    Cause("token-order", "takes tokens in another order", "tokens run row by row", partial(_both, wanted="token-order")),
)
