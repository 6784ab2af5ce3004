"""Segments recomputed under a change, and the search for the change that a candidate shows."""

from functools import partial

import numpy as np
import pytest
from helpers.injections import build
from helpers.scenes import explained, run_to

from refvit.crosscheck.causes import hypothesis
from refvit.crosscheck.causes.explore import MISFITS, Meter, everything, explore, fitted
from refvit.crosscheck.causes.hypothesis import Call, Cause, Change, Family, Scene
from refvit.crosscheck.causes.table import BY_NAME, CAUSES
from refvit.crosscheck.measure import errors
from refvit.crosscheck.segments import segments
from refvit.graph.ir import OPS


def whole(model="vit", seed=3):
    """A scene whose segment is the whole graph, observed without any bug."""
    graph, x = build(model, seed)
    (name,) = graph.inputs
    output = next(iter(graph.outputs.values()))
    (segment,) = segments(graph, [output])
    values = {name: x.astype(np.float64), **graph.params}
    for node in graph:
        values[node.name] = OPS[node.op].function(*[None if i is None else values[i] for i in node.inputs], **node.attrs)
    return Scene(graph, segment, {name: values[name]}, values[output]), values


def by_hand(scene, values, function, where):
    """The graph run again with one node's function replaced, nothing cached."""
    values = dict(values)
    for node in scene.graph:
        call = function if node.name == where else partial(OPS[node.op].function, **node.attrs)
        values[node.name] = call(*[None if i is None else values[i] for i in node.inputs])
    return values[scene.result]


def test_nothing_changed():
    scene, values = whole()
    assert np.array_equal(scene.base, values[scene.result])
    assert np.array_equal(scene.run(), scene.base)


@pytest.mark.parametrize("seed", range(4))
def test_only_what_a_change_reaches_is_run_again(seed):
    scene, values = whole(("vit", "hrvit", "mobilevit", "vit at another size")[seed])
    rng = np.random.default_rng(seed)
    nodes = [n for n in scene.nodes.values() if n.op in ("linear", "layer_norm", "batch_norm", "conv2d")]
    node = nodes[rng.integers(len(nodes))]
    function = lambda *a: OPS[node.op].function(*a, **node.attrs) * 1.5  # noqa: E731
    calls = []

    def counted(*a):
        calls.append(1)
        return function(*a)

    got = scene.run(Change("", "", (node.name,), {node.name: Call(counted, node.inputs)}))
    assert len(calls) == 1
    assert np.array_equal(got, by_hand(scene, values, function, node.name))
    assert not np.array_equal(got, scene.base)


def test_parameters_sources_and_results_are_replaced():
    scene, values = whole()
    x = values["input"]
    other = Scene(scene.graph, scene.segment, {"input": 2 * x}, scene.observed)
    assert np.array_equal(scene.run(Change("", "", (), sources={"input": lambda a: 2 * a})), other.base)
    weight = scene.params["head.weight"]
    halved = scene.run(Change("", "", (), params={"head.weight": lambda w: w / 2}))
    assert np.allclose(halved - scene.params["head.bias"], (scene.base - scene.params["head.bias"]) / 2, rtol=1e-12)
    assert np.array_equal(halved, scene.run(Change("", "", (), params={"head.weight": weight / 2})))
    assert np.array_equal(scene.run(Change("", "", (), result=np.negative)), -scene.base)


@pytest.mark.parametrize(("model", "step"), [("vit", 3), ("hrvit", 60), pytest.param("hrvit", 3, marks=pytest.mark.slow)])
def test_the_same_where_nothing_is_held(model, step, monkeypatch):
    scene, _ = whole(model)
    monkeypatch.setattr(hypothesis, "KEPT", 0)
    bare = Scene(scene.graph, scene.segment, {"input": scene.values["input"]}, scene.observed)
    assert set(bare.values) == {"input"}
    assert np.array_equal(bare.base, scene.base)
    for name in ("layer-norm-missing", "head-order", "layer-missing", "input-channel-order", "output-activation"):
        for change in list(BY_NAME[name].changes(scene))[::step]:
            if runs(scene, change):
                assert np.array_equal(scene.run(change), bare.run(change))


def test_values_are_rewired_and_what_nobody_reads_is_not_computed():
    scene, values = whole()
    node = scene.nodes["blocks.1.attn.proj"]

    def never(*_):
        raise AssertionError("computed although nobody reads it")

    skipped = Change("", "", (), {"blocks.1.add": Call(lambda x: x, ("blocks.0.add_1",)), node.name: Call(never, node.inputs)})
    again = by_hand(scene, values, lambda x, y: x, "blocks.1.add")
    assert np.array_equal(scene.run(skipped), again)


def test_narrow_arithmetic_of_a_change():
    scene, _ = whole()
    node = scene.nodes["blocks.0.mlp.fc1"]
    same = Change("", "", (), scene.with_attrs(node))
    plain, changed = scene.run(arithmetic="bfloat16"), scene.run(same, "bfloat16")
    lost = np.abs(plain - scene.base).max()
    assert lost > 0
    assert np.abs(changed - plain).max() < 1e-3 * lost  # the same roundings at the same places
    assert np.abs(scene.run(arithmetic="float32") - scene.base).max() < 1e-3 * lost


def test_costs_grow_towards_the_input():
    scene, _ = whole()
    early = scene.cost_of(Change("", "", (), scene.with_attrs(scene.nodes["blocks.0.norm1"])))
    late = scene.cost_of(Change("", "", (), scene.with_attrs(scene.nodes["norm"])))
    assert scene.cost_of(Change("", "", (), sources={"input": np.negative})) > early > late


def test_the_same_option_is_also_tried_everywhere_at_once():
    scene, _ = whole()
    changes = [change for _, change in everything(scene, [BY_NAME["layer-norm-missing"]])]
    places = sorted(change.places for change in changes)
    norms = tuple(n.name for n in scene.of("layer_norm"))
    assert norms in places  # all five
    assert ("blocks.0.norm1", "blocks.1.norm1") in places  # those that are called alike
    assert all((n,) in places for n in norms)


def test_changes_of_the_same_place_are_not_merged():
    a = Change("", "", ("n",), {"n": Call(np.negative, ("x",))})
    assert a.merged(a) is None
    assert a.merged(Change("", "", ("m",), {"m": Call(np.negative, ("x",))})).places == ("n", "m")
    assert a.merged(Change("", "", ("m",), {"m": Call(np.negative, ("x",))}, alone=True)) is None


@pytest.mark.parametrize("truth", [0.031, 7.3e-4, 2.5])
def test_a_number_is_searched_for(truth):
    scene, values = whole()
    norm = scene.nodes["blocks.0.norm2"]
    w, b = norm.inputs[1], norm.inputs[2]
    x = values[norm.inputs[0]]
    centred = x - x.mean(-1, keepdims=True)
    wrong = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + truth) * scene.params[w] + scene.params[b]
    scene.observed = by_hand(scene, values, lambda *_: wrong, norm.name)
    meter = Meter(scene, errors(scene.base * (1 + 1e-7), scene.base), "float32")
    families = [c for c in BY_NAME["layer-norm-eps"].changes(scene) if isinstance(c, Family)]
    best = min((fitted(scene, meter, BY_NAME["layer-norm-eps"], f) for f in families), key=lambda f: f.left if f else np.inf)
    assert best.fits
    assert best.change.places == (norm.name,)
    assert best.change.text == f"eps {truth:.2e} where 1e-06 is expected"


def test_the_budget_is_kept():
    scene, _ = whole()
    meter = Meter(scene, errors(scene.base * (1 + 1e-7), scene.base), "float32")
    tried = []

    def changes(scene):
        for node in scene.of("layer_norm"):
            call = scene.behind(node, lambda y: tried.append(1) or 2 * y)
            yield Change("", "", (node.name,), call, alone=True)

    cause = Cause("test", "", "", changes)
    hypotheses = everything(scene, [cause])
    costs = sorted(scene.cost_of(c) for _, c in hypotheses)
    found, missed = explore(scene, meter, hypotheses, sum(costs[:2]))
    assert (len(tried), len(found), missed) == (2, 2, 3)


MODELS = ("vit", "vit at another size", "deit distilled", "mobilevit at an odd size", "hrnet pose", "hrvit", "hrvit upernet",
          "hrnet segmentation, twice")  # fmt: skip
ELSEWHERE = {"label-permutation", "dropout"}  # which look at the candidate's numbers first


def runs(scene, change):
    """Whether it gives a value of the right shape; some changes fit only where a segment ends soon."""
    try:
        return scene.run(change).shape == scene.base.shape
    except MISFITS:
        return False


def test_every_cause_has_a_place_in_some_model_and_says_what_it_is():
    reached = set()
    for model in MODELS:
        scene, _ = whole(model)
        for cause in CAUSES:
            examples = [c.make(c.starts[0]) if isinstance(c, Family) else c for c in cause.changes(scene)]
            assert all((c.text and c.places and c.text[-1] != ".") or c.text.endswith("...") for c in examples), cause.name
            if cause.name not in reached and any(runs(scene, example) for example in examples):
                reached.add(cause.name)
    assert {c.name for c in CAUSES} - reached == ELSEWHERE
    for cause in CAUSES:
        assert cause.sentence[0].islower()
        assert cause.advice
        assert not cause.sentence.endswith(".")


def test_a_residual_behind_a_norm_of_another_segment():
    graph, x = build("vit", 3)
    shown = ["add", "blocks.0.norm1", "blocks.0.attn.proj", "blocks.0.add"]
    scene = run_to(graph, x, shown, lambda known: known["blocks.0.norm1"] + known["blocks.0.attn.proj"])
    assert list(scene.nodes) == ["blocks.0.add"]
    assert explained(scene, "norm-side")
    assert not explained(run_to(graph, x, shown, lambda known: 2 * known["add"] + known["blocks.0.attn.proj"]), "norm-side")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda y: y.transpose(1, 0, 2).reshape(y.shape),
        lambda y: y.reshape(y.shape[1], y.shape[0], -1).transpose(1, 0, 2),
    ],
)
def test_places_and_patches_exchanged_in_memory(wrong):
    graph, x = build("mobilevit", 3)
    name = next(n for n in graph.nodes if n.endswith("unfold_patches.reshape_1"))
    scene = run_to(graph, x, [name], lambda known: wrong(known[name]))
    assert scene.base.shape[0] != scene.base.shape[1]
    assert explained(scene, "unfold-order")
