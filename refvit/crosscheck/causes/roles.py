"""Queries, keys and values of which an attention reads one in place of another, wherever in the segment they come from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from refvit.crosscheck.causes.hypothesis import Call, Change, Scene, default
from refvit.graph.ir import Node


def read_otherwise(scene: Scene) -> Iterator[Change]:
    """Every exchange of the three at the nodes that read them.

    A candidate that shows its queries, keys and values under names that say nothing is matched by their numbers, each to what
    it truly is. Only what is then done with them is wrong.
    """
    for softmax in scene.of("softmax"):
        readers = _readers(scene, softmax)
        if readers is None:
            continue
        roles = [str(node.inputs[index]) for node, index in readers]
        if len(set(roles)) < 3 or len({scene.shape(role) for role in roles}) > 1:
            continue
        for order in itertools.permutations(range(3)):
            if order == (0, 1, 2):
                continue
            nodes = {}
            for (node, index), source in zip(readers, order, strict=True):
                inputs = list(node.inputs)
                inputs[index] = roles[source]
                nodes[node.name] = Call(default(node), tuple(inputs))
            yield Change(f"read {order}", said(order), (softmax.name,), nodes)


def said(order: tuple[int, ...]) -> str:
    return ", ".join(f"{'qkv'[a]} is what should be {'qkv'[b]}" for a, b in enumerate(order) if a != b)


def _readers(scene: Scene, softmax: Node) -> tuple[tuple[Node, int], ...] | None:
    """The nodes that read queries, keys and values of an attention, with the place among their inputs; all in the segment."""
    product = scene.producer(softmax.inputs[0])
    while product is not None and product.op in ("scale", "mask_tail"):
        product = scene.producer(product.inputs[0])
    users = [node for node in scene.users.get(softmax.name, []) if node.op == "matmul"]
    if product is None or product.op != "matmul" or len(users) != 1:
        return None
    scaled, transposed = scene.producer(product.inputs[0]), scene.producer(product.inputs[1])
    queries = (scaled, 0) if scaled is not None and scaled.op == "scale" else (product, 0)
    if transposed is None or transposed.op != "transpose" or not _last_two(transposed):
        return None
    return queries, (transposed, 0), (users[0], 1)


def _last_two(node: Node) -> bool:
    axes = np.arange(len(node.shape))
    axes[[-1, -2]] = axes[[-2, -1]]
    return tuple(node.attrs["axes"]) == tuple(axes)
