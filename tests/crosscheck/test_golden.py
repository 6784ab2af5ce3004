"""Golden values within a limit: the same numbers as all at once, and matching that does not notice."""

import tracemalloc

import numpy as np
import pytest
from helpers.blocks import draw
from helpers.small import small_graph

from refvit import ops
from refvit.backends.numpy import compile_graph
from refvit.crosscheck.golden import LIMIT, Bounded, Golden, sample
from refvit.crosscheck.matching import match
from refvit.crosscheck.observed import Observed
from refvit.crosscheck.predicted import Predicted
from refvit.graph import trace
from refvit.graph.ir import OPS


def case(model):
    """(graph, x, every value)"""
    graph = small_graph(model, draw, expand=True)
    x = np.random.default_rng(4).standard_normal(next(iter(graph.inputs.values())).shape)
    return graph, x, {"input": x, **compile_graph(graph.with_outputs({n: n for n in graph.nodes}))(x)}


@pytest.mark.parametrize("model", ["vit", "mobilevit", "hrnet", "hrvit"])
@pytest.mark.parametrize("limit", [0, 20_000, LIMIT])
def test_they_are_the_same_within_any_limit_and_in_any_order(model, limit):
    graph, x, values = case(model)
    golden = Golden(graph, x, limit)
    assert len(golden) == len(values) and list(golden) == list(values) and "nothing" not in golden
    for name in np.random.default_rng(5).permutation(list(values))[:25]:
        assert np.allclose(golden[name], values[name], rtol=0, atol=1e-9 * np.abs(values[name]).max())
        assert np.array_equal(golden.samples[name], sample(golden[name]))


def test_what_was_used_longest_ago_goes_first():
    kept = Bounded(3 * 80)
    for name in "abc":
        kept[name] = np.zeros(10)
    assert kept["a"].size == 10
    copy = kept.fork()
    kept["d"] = np.zeros(10)
    assert list(kept) == ["c", "a", "d"] and list(copy) == ["b", "c", "a"]
    kept["e"] = np.zeros(1000)  # one is always held, or it could not be given back
    assert list(kept) == ["e"]
    kept["f"] = np.zeros(10)
    assert list(kept) == ["f"]


def steps(x, p):
    for _ in range(40):
        x = ops.relu(x)
    return {"y": x}


def test_a_large_graph_is_not_held_whole():
    graph = trace(steps, (1, 3, 200, 200), {})
    x = np.random.default_rng(0).standard_normal((1, 3, 200, 200))
    tracemalloc.start()
    golden = Golden(graph, x, 4 * x.nbytes)
    for name in golden:
        assert golden[name].shape == x.shape
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * x.nbytes


def test_nor_is_what_follows_from_a_bug():
    graph = trace(steps, (1, 3, 200, 200), {})
    x = np.random.default_rng(0).standard_normal((1, 3, 200, 200))
    tracemalloc.start()
    predicted = Predicted(graph, Golden(graph, x, 4 * x.nbytes))
    predicted._computed.limit = 4 * x.nbytes
    predicted.observe("input", x + 1)
    for name in graph.nodes:
        assert np.array_equal(predicted[name], np.maximum(x + 1, 0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 18 * x.nbytes


@pytest.mark.parametrize("wrong", ["", "stages.1.0.conv2_kxk.conv"])
def test_matching_is_the_same_within_a_limit(wrong, monkeypatch):
    """Without names, by numbers alone, and behind a bug."""
    graph, x, golden = case("mobilevit")
    values = {"input": x, **graph.params}
    for node in graph:
        y = OPS[node.op].function(*(None if i is None else values[i] for i in node.inputs), **node.attrs)
        values[node.name] = y[:, ::-1].copy() if node.name == wrong else y
    assert not wrong or wrong in graph.nodes
    observed = Observed({f"v{i}": values[n].astype(np.float32) for i, n in enumerate(graph.nodes)}, ())
    whole = match(graph, golden, observed)
    monkeypatch.setattr(Bounded.__init__, "__defaults__", (20_000,))
    small = match(graph, Golden(graph, x, 20_000), observed)
    found = [
        [(m.value, m.candidate, m.layout, round(m.confidence, 6)) for m in matching.matches] for matching in (whole, small)
    ]
    assert found[0] == found[1] and len(found[0]) > 0.9 * len(graph.nodes)
