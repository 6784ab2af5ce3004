"""Random graphs against the float64 interpreter. A failure prints the smallest graph that shows it, and how to make it."""

import numpy as np
import pytest
from helpers.random_graphs import MAPS, TOKENS, case, smallest
from helpers.rule import Rule, same_bits

from refvit.backends import numba
from refvit.backends.numba import inverted, winograd


def judge(drawn):
    """Within the rule, with the same bits on any number of threads; and so are the images one by one."""
    graph, inputs = drawn.graph(), drawn.inputs()
    one, three = (numba.compile_graph(graph, threads) for threads in (1, 3))
    rule = Rule(graph, inputs)
    rule.hold(one)
    assert all(same_bits(three(x), one(x)) for x in inputs), "another number of threads, other bits"
    if drawn.shape[0] > 1 and not drawn.mixed:
        alone = numba.compile_graph(drawn.graph(1), 1)

        def stacked(x):
            parts = [alone(x[i : i + 1]) for i in range(len(x))]
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

        rule.hold(stacked)


def error(drawn):
    """What is wrong with a case, if anything is."""
    try:
        judge(drawn)
    except Exception as wrong:
        return f"{type(wrong).__name__}: {wrong}"
    return None


def all_fine(seeds, vocabulary):
    failing = [seed for seed in seeds if error(case(seed, vocabulary))]
    if failing:
        least = smallest(case(failing[0], vocabulary), error)
        pytest.fail(f"seeds {failing}; of the first, no less than this: {error(least)}\n{least}", pytrace=False)


def seeds(few, many):
    return pytest.mark.parametrize("seeds", [range(few), pytest.param(range(few, many), marks=pytest.mark.slow)], ids=str)


@seeds(60, 3000)
def test_maps(seeds):
    all_fine(seeds, MAPS)


@seeds(60, 3000)
def test_tokens(seeds):
    all_fine(seeds, TOKENS)


@seeds(40, 1500)
def test_kernels_that_seldom_pay(seeds, monkeypatch):
    """Maps as small as these are hardly ever given to Winograd, and their inverted residuals are never one kernel."""
    monkeypatch.setattr(winograd, "GAIN", 1e9)
    monkeypatch.setattr(inverted, "worthwhile", lambda *_: True)
    all_fine([10_000 + seed for seed in seeds], MAPS)
