"""Attentions that read, or are turned, otherwise, wherever the segment around them begins and ends: against loops."""

import itertools

import numpy as np
import pytest
from helpers.injections import _attended, build
from helpers.scenes import explained, run_to

BLOCK = "features.3.branches.1.0.attn"
FIRST, SECOND = f"{BLOCK}.stripe_attention", f"{BLOCK}.stripe_attention_1"
D = 4  # channels of a head
COLUMNS = "the first half of the channels attends in columns where rows are expected"


def turned(x):
    return x.swapaxes(2, 3)


def halves(known):
    """Queries and values of both halves of the channels, from the maps."""
    q, v = known[f"{BLOCK}.reshape"], known[f"{BLOCK}.reshape_1"]
    half = q.shape[1] // 2
    return q[:, :half], v[:, :half], q[:, half:], v[:, half:]


def rows(q, v):
    return _attended(q, v, v, 2, D)


def columns(q, v):
    return turned(rows(turned(q), turned(v)))


@pytest.mark.parametrize("end", ["reshape_3", "getitem"])
def test_one_half_alone_in_columns(end):
    graph, x = build("hrvit", 3)
    shown = [f"{BLOCK}.reshape", f"{BLOCK}.reshape_1", f"{FIRST}.{end}"]
    scene = run_to(graph, x, shown, lambda known: columns(*halves(known)[:2]))
    assert explained(scene, "stripe-orientation", 1e-9) == [COLUMNS]
    assert not explained(run_to(graph, x, shown, lambda known: 1.5 * columns(*halves(known)[:2])), "stripe-orientation", 1e-9)


def test_the_second_half_in_rows():
    graph, x = build("hrvit", 3)
    shown = [f"{BLOCK}.reshape", f"{BLOCK}.reshape_1", f"{BLOCK}.transpose_4"]
    scene = run_to(graph, x, shown, lambda known: rows(*halves(known)[2:]))
    (text,) = explained(scene, "stripe-orientation", 1e-9)
    assert text == "the second half of the channels attends in rows where columns are expected"


def test_both_halves_exchanged_where_keys_and_values_are_shown_apart():
    graph, x = build("hrvit", 4)
    between = [f"{BLOCK}.getitem_{i}" for i in (2, 3, 5, 6)]
    shown = [f"{BLOCK}.reshape", f"{BLOCK}.reshape_1", *between, f"{BLOCK}.concat"]

    def wrong(known):
        q, v, p, u = halves(known)
        return np.concatenate([columns(q, v), rows(p, u)], 1)

    scene = run_to(graph, x, shown, wrong)
    assert f"{BLOCK}.getitem_2" not in scene.nodes
    (text,) = explained(scene, "stripe-orientation", 1e-9)
    assert text == "the first half of the channels attends in columns and the second in rows"


def test_scores_of_columns_on_a_square_map():
    graph, x = build("hrvit", 5, (1, 3, 64, 64))
    shown = [f"{BLOCK}.reshape", f"{BLOCK}.reshape_1", f"{FIRST}.matmul"]

    def wrong(known):
        q, v, *_ = halves(known)
        _, c, h, w = q.shape
        scores = np.zeros((1, w // 2, c // D, 2 * h, 2 * h))
        for stripe, head, i, j in np.ndindex(*scores.shape[1:]):
            part = slice(head * D, (head + 1) * D)
            a, b = q[0, part, i % h, 2 * stripe + i // h], v[0, part, j % h, 2 * stripe + j // h]
            scores[0, stripe, head, i, j] = a @ b / np.sqrt(D)
        return scores

    assert explained(run_to(graph, x, shown, wrong), "stripe-orientation", 1e-9) == [COLUMNS]


@pytest.mark.parametrize("half", [FIRST, SECOND])
def test_wider_stripes_of_one_half(half):
    graph, x = build("hrvit", 6)
    shown = [f"{BLOCK}.reshape", f"{BLOCK}.reshape_1", f"{half}.getitem"]

    def wrong(known):
        q, v = halves(known)[:2] if half == FIRST else (turned(a) for a in halves(known)[2:])
        return _attended(q, v, v, 4, D)

    assert explained(run_to(graph, x, shown, wrong), "stripe-width", 1e-9) == ["stripes are 4 wide where 2 is expected"]


@pytest.mark.parametrize("order", [o for o in itertools.permutations(range(3)) if o != (0, 1, 2)])
@pytest.mark.parametrize("apart", [(), (0,), (1, 2), (0, 1, 2)])
def test_queries_keys_and_values_read_otherwise(order, apart):
    """However many of the three the candidate shows: each is right where it is shown."""
    graph, x = build("vit", 7)
    block = "blocks.1.attn"
    three = [f"{block}.getitem", f"{block}.getitem_1", f"{block}.getitem_2"]
    shown = [f"{block}.qkv", *(three[i] for i in apart), f"{block}.attention.matmul_1"]

    def wrong(known):
        n, l, width = known[f"{block}.qkv"].shape
        packed = known[f"{block}.qkv"].reshape(n, l, 3, 3, width // 9)
        q, k, v = (packed[:, :, i] for i in order)
        scores = np.exp(np.einsum("nihd,njhd->nhij", q, k) / np.sqrt(width // 9))
        return np.einsum("nhij,njhd->nhid", scores / scores.sum(-1, keepdims=True), v)

    scene = run_to(graph, x, shown, wrong)
    said = ", ".join(f"{'qkv'[a]} is what should be {'qkv'[b]}" for a, b in enumerate(order) if a != b)
    assert set(explained(scene, "qkv-roles", 1e-9)) == {said}
