"""Dropout is told from a value alone, at any share and place, and what only looks like it is not."""

import numpy as np
import pytest
from helpers.injections import Bug, build, findings, run

from refvit.crosscheck.causes.dropout import CAUSES, FEWEST, _dropped
from refvit.crosscheck.causes.hypothesis import Scene
from refvit.crosscheck.diagnose import diagnose
from refvit.graph.ir import OPS
from refvit.ops import activation

SUM = "blocks.0.add_1"  # the block's input and its mlp
BRANCH = "blocks.0.mlp.fc2"
INPUT = "blocks.0.add"
NORM = "blocks.1.norm1"


def dropped(a, p, rng):
    """As torch does it, in the array's own dtype."""
    return (a * (rng.random(a.shape) >= p) / a.dtype.type(1 - p)).astype(a.dtype)


def diagnosed(name, function, show, seed=21):
    """(diagnosis, first divergence, the candidate's value) where the node `name` computes `function`."""
    graph, x = build("vit", seed)
    values = run(graph, x, Bug({name: function(graph.nodes[name])}))
    found, known = findings(graph, x, values, set(show(graph)))
    first = next(f for f in found if f.verdict == "diverges")
    return diagnose(graph, first, found, known, x, "float32", {}), first, values[first.value]


def behind(change):
    """node -> its own function and then `change`."""
    return lambda node: lambda *a: change(OPS[node.op].function(*a, **node.attrs))


def every(graph):
    return graph.nodes


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_of_a_value(p):
    rng = np.random.default_rng(int(10 * p))
    answer, first, value = diagnosed(NORM, behind(lambda y: dropped(y, p, rng)), every)
    assert (answer.cause, first.name) == ("dropout", NORM)
    assert f"{(value == 0).mean():.0%} of the value are zero and the others multiplied by {1 / (1 - p):.3g}" in answer.sentence
    assert answer.trials[0].residual_ratio <= 8 < first.own_ratio
    assert "eval()" in answer.advice


@pytest.mark.parametrize("swapped", [False, True])
def test_of_the_branch_of_a_sum_that_alone_is_shown(swapped):
    """The branch before it is right, the sum behind it is shown, and what was dropped between is not."""
    rng = np.random.default_rng(5)
    graph, _ = build("vit", 21)
    branch = graph.nodes[SUM].inputs.index(BRANCH)

    def function(node):
        def total(*terms):
            which = 1 - branch if swapped else branch
            return dropped(terms[which], 0.2, rng) + terms[1 - which]

        return total

    answer, first, _ = diagnosed(SUM, function, every)
    assert (answer.cause, first.name) == ("dropout", SUM)
    assert f"of the term {INPUT if swapped else BRANCH} are zero and the others multiplied by 1.25" in answer.sentence


def test_of_a_branch_whose_end_is_not_shown():
    rng = np.random.default_rng(6)
    answer, first, _ = diagnosed(BRANCH, behind(lambda y: dropped(y, 0.1, rng)), lambda g: [n for n in g.nodes if n != BRANCH])
    assert (answer.cause, first.name) == ("dropout", SUM)
    assert f"the term {BRANCH}" in answer.sentence


def test_other_values_that_are_dropped_as_well_are_listed():
    rng = np.random.default_rng(7)
    graph, x = build("vit", 22)
    drop = behind(lambda y: dropped(y, 0.2, rng))
    bug = Bug({n: drop(graph.nodes[n]) for n in (BRANCH, "blocks.1.mlp.fc2")})
    found, known = findings(graph, x, run(graph, x, bug), {n for n in graph.nodes if n != BRANCH})
    first = next(f for f in found if f.verdict == "diverges")
    answer = diagnose(graph, first, found, known, x, "float32", {})
    assert (answer.cause, answer.also) == ("dropout", ("blocks.1.mlp.fc2",))


@pytest.mark.parametrize(
    "change",
    [
        lambda y: np.maximum(y, 0),
        lambda y: 2 * np.maximum(y, 0),
        lambda y: 2 * np.minimum(y, 0),
        activation.silu,
        lambda y: y * y.dtype.type(1.25),
        lambda y: y * (np.arange(y.size).reshape(y.shape) % 5 > 0),
        lambda y: y * (np.arange(y.size).reshape(y.shape) % 5 > 0) * y.dtype.type(3),
        lambda y: y * (np.random.default_rng(8).random(y.shape) < 0.8),
        lambda y: y * np.random.default_rng(8).uniform(0, 2, y.shape).astype(y.dtype),
        lambda y: -dropped(y, 0.2, np.random.default_rng(8)),
        lambda y: dropped(y, 0.2, np.random.default_rng(8)) + y.dtype.type(0.01),
    ],
    ids=["relu", "relu doubled", "negative half doubled", "silu", "scaled", "every fifth lost", "every fifth lost, tripled",
         "lost without a factor", "multiplied by noise", "negated", "shifted as well"],
)  # fmt: skip
def test_what_is_not_dropout(change):
    answer, first, _ = diagnosed(NORM, behind(change), every)
    assert first.name == NORM
    assert answer.cause != "dropout" and "dropout" not in answer.alternatives


def test_one_branch_for_all_of_a_sample_is_not_dropout():
    """Stochastic depth keeps or loses it as a whole."""
    graph, _ = build("vit", 21)
    branch = graph.nodes[SUM].inputs.index(BRANCH)
    for keep in (0.0, 1.25):
        answer, *_ = diagnosed(SUM, lambda _, k=keep: lambda *t: t[1 - branch] + t[branch] * np.float32(k), every)
        assert answer.cause not in ("dropout", "unknown")


def test_a_right_value_suggests_nothing():
    graph, x = build("vit", 21)
    found, known = findings(graph, x, run(graph, x), set(graph.nodes))
    (change,) = (c.changes for c in CAUSES)
    for f in found:
        if f.segment.nodes:
            assert list(change(Scene(graph, f.segment, known, known[f.value]))) == []


def test_the_factor_and_the_places_are_found():
    rng = np.random.default_rng(9)
    a = rng.standard_normal((4, 500))
    a[0, :7] = 0
    kept = rng.random(a.shape) >= 0.15
    got = _dropped(np.where(kept, a / 0.85, 0), a)
    assert np.allclose(got.max(), 1 / 0.85, rtol=1e-12)
    assert np.array_equal((got > 0)[a != 0], kept[a != 0])


def test_too_little_to_tell():
    rng = np.random.default_rng(10)
    a = rng.standard_normal(FEWEST)
    got = dropped(a, 0.5, rng)
    assert _dropped(got, a) is not None
    assert _dropped(got[1:], a[1:]) is None  # one fewer
    assert _dropped(np.where(np.arange(a.size) == 3, np.nan, got), a) is None
    assert _dropped(got, np.zeros_like(a)) is None
    assert _dropped(got[None], a) is None
