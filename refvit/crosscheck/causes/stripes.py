"""HRViT's attention in stripes: turned, of another width, or of rows that do not lie together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from refvit.crosscheck.causes.hypothesis import Call, Cause, Change, Scene
from refvit.graph.ir import Array, Node
from refvit.ops.window import stripe_attention

WORDS = ("the first half of the channels", "the second half of the channels")


@dataclass(frozen=True)
class Half:
    """One of the two attentions of a block.

    reads: its queries, keys and values, maps (n, c, h, w) whose rows are the stripes' rows
    turned: those maps are transposed ones, so that its stripes are columns of the image's
    end: the node of the segment that is its result, or None if the segment ends within it
    """

    block: str
    scope: str
    reads: tuple[str, ...]
    turned: bool
    end: Node | None
    stripe: int
    heads: int
    scale: float

    @property
    def which(self) -> str:
        return WORDS[self.turned]

    def otherwise(self, **how: Any) -> dict[str, Call]:
        """Its result computed by `attended` in another way."""
        assert self.end is not None
        how = {"stripe": self.stripe, "heads": self.heads, "scale": self.scale} | how
        return {self.end.name: Call(partial(attended, **how), self.reads)}


def halves(scene: Scene) -> Iterator[tuple[Half, ...]]:
    """Of every block the halves that reach into the segment: both, or the one that ends in it."""
    inside: dict[str, dict[str, None]] = {}
    for node in scene.nodes.values():
        block, _, leaf = node.scope.rpartition(".")
        if leaf.startswith("stripe_attention"):
            inside.setdefault(block, {})[node.scope] = None
    for block, scopes in inside.items():
        if found := tuple(half for scope in scopes if (half := _half(scene, block, scope)) is not None):
            yield found


def _half(scene: Scene, block: str, scope: str) -> Half | None:
    nodes = [node for node in scene.graph if node.scope == scope]
    cut = [node for node in nodes if node.op in ("pad", "reshape") and node.inputs[0] not in {n.name for n in nodes}]
    windows = next((n for n in nodes if n.op == "reshape" and len(n.shape) == 5), None)
    scale = next((n for n in nodes if n.op == "scale"), None)
    if len(cut) != 3 or windows is None or scale is None:
        return None
    reads = tuple(str(node.inputs[0]) for node in cut)
    before = scene.graph.nodes.get(reads[0])
    turned = before is not None and before.op == "transpose" and tuple(before.attrs["axes"]) == (0, 1, 3, 2)
    ends = [n for n in nodes if n.name in scene.nodes and n.op in ("reshape", "getitem") and n not in cut and len(n.shape) == 4]
    stripe = windows.shape[4] // scene.shape(reads[0])[3]
    return Half(block, scope, reads, turned, ends[-1] if ends else None, stripe, windows.shape[1], float(scale.attrs["factor"]))


def attended(
    q: Array,
    k: Array,
    v: Array,
    *,
    stripe: int,
    heads: int,
    scale: float,
    turned: bool = False,
    front: bool = False,
    apart: bool = False,
) -> Array:
    """Attention in stripes of rows. q, k, v (n, c, h, w) -> same.

    turned: of columns instead
    front: what is missing of the last stripe is missing of the first one
    apart: the rows of a stripe lie as far apart as there are stripes
    """
    maps = [a.swapaxes(2, 3) if turned else a for a in (q, k, v)]
    h = maps[0].shape[2]
    order = np.arange(h)
    if front:
        order = order[::-1]
    if apart:
        if h % stripe:
            raise ValueError("rows that fill no stripe")
        order = order.reshape(stripe, h // stripe).T.ravel()
    a, b, c = (m[:, :, order] for m in maps)
    y = stripe_attention(a, b, c, stripe=stripe, num_heads=heads, scale=scale)[:, :, np.argsort(order)]
    return y.swapaxes(2, 3) if turned else y


def _together(found: tuple[Half, ...], option: str, text: str, **how: Any) -> Iterator[Change]:
    """The same in all halves of a block that have a result in the segment."""
    ended = [half for half in found if half.end is not None]
    if ended:
        calls = [half.otherwise(**how) for half in ended]
        nodes = {name: call for one in calls for name, call in one.items()}
        yield Change(option, text, tuple(nodes), nodes)


def _orientation(scene: Scene) -> Iterator[Change]:
    for found in halves(scene):
        if len(found) > 1:
            text = "the first half of the channels attends in columns and the second in rows"
            yield from _together(found, "exchanged", text, turned=True)
        for half in found:
            text = f"{half.which} attends in {_direction(not half.turned)} where {_direction(half.turned)} are expected"
            if half.end is not None:
                yield Change(_direction(not half.turned), text, (half.end.name,), half.otherwise(turned=True))
            if nodes := _turned_within(scene, half):
                yield Change(f"{_direction(not half.turned)} within", text, tuple(nodes), nodes)


def _direction(columns: bool) -> str:
    return "columns" if columns else "rows"


def _turned_within(scene: Scene, half: Half) -> dict[str, Call]:
    """The maps transposed before they are cut, where a square one hides that, and the segment ends before it is turned back."""
    shape = scene.shape(half.reads[0])
    result = scene.producer(scene.result)
    if shape[2] != shape[3] or result is None or result.scope != half.scope or result.op == "getitem":
        return {}
    nodes: dict[str, Call] = {}
    for node in scene.of("pad", "reshape"):
        if node.scope == half.scope and node.inputs[0] in half.reads:
            nodes |= scene.before(node, _transposed)
    return nodes


def _transposed(x: Array) -> Array:
    return x.swapaxes(2, 3)


def _width(scene: Scene) -> Iterator[Change]:
    for found in halves(scene):
        first = found[0]
        _, channels, h, w = scene.shape(first.reads[0])
        for stripe in sorted({1, 2, 3, 4, 5, 6, 7, 8, h, w} - {first.stripe}):
            text = f"stripes are {stripe} wide where {first.stripe} is expected"
            yield from _together(found, f"width {stripe}", text, stripe=stripe)
        for heads in [n for n in range(1, 33) if channels % n == 0 and n != first.heads]:
            text = f"{heads} heads a half where {first.heads} are expected"
            yield from _together(found, f"heads {heads}", text, heads=heads, scale=(channels // heads) ** -0.5)


def _spread(scene: Scene) -> Iterator[Change]:
    """Rows of a stripe that lie as far apart as there are stripes, instead of together; stripes counted from the other end."""
    for found in halves(scene):
        stripe = found[0].stripe
        if any(scene.shape(half.reads[0])[2] % stripe for half in found):
            text = "the map is padded in front of the first stripe instead of behind the last"
            yield from _together(found, "front", text, front=True)
        if stripe > 1:
            text = f"the {stripe} rows of a stripe are spread over the map instead of neighbours"
            yield from _together(found, "spread", text, apart=True)


CAUSES = (
    Cause(
        "stripe-orientation",
        "attends in stripes of the wrong direction",
        "the first half of the channels attends in rows, the second in columns",
        _orientation,
    ),
    Cause(
        "stripe-width", "attends in stripes of another width, or with other heads", "take the model's stripes and heads", _width
    ),
    Cause("stripe-spread", "takes rows that lie apart for a stripe", "a stripe holds neighbouring rows", _spread),
)
