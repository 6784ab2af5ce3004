"""From a wrong implementation to its cause: conventions are named, other bugs are not, at random layers with fresh numbers.

The wrong implementations are those of `helpers.injections`, which know nothing of the table.
"""

import dataclasses
import math

import numpy as np
import pytest
from helpers.injections import CONVENTIONS, STRANGE, Bug, build, draw, findings, run, shown

from refvit.crosscheck.arithmetic import apply
from refvit.crosscheck.causes.table import BY_NAME
from refvit.crosscheck.diagnose import diagnose
from refvit.graph.ir import OPS

# the model, small and quick, in which a convention of the networks occurs; all others are tried in the first
MODEL = {
    "vit": (), "deit distilled": ("erf_gelu",), "vit at another size": ("nearest_or_bilinear",),
    "mobilevit": ("unfold_columns_first", "fold_patches_column_major", "attention_within_patches"),
    "mobilevit at an odd size": ("corners_flag", "asymmetric"),
    "hrnet pose": ("no_batch_norm", "batch_norm_twice", "batch_norm_eps", "mean_for_variance", "training_mode", "shift_lost",
                   "activation_before_sum", "tensorflow_same", "reflected_border", "true_convolution", "dilated",
                   "ohwi_read_as_oihw", "no_fuse_term", "conv_left_out", "one_more_activation"),
    "hrvit": ("no_mask", "stripes_swapped", "stripes_turned", "wider_stripes", "parts_in_another_order", "largest_for_mean"),
    "hrvit upernet": ("bins",),
}  # fmt: skip
SHAPE = {"bins": (1, 3, 224, 256), "fold_patches_column_major": (1, 3, 128, 96)}
HOME = {name: model for model, names in MODEL.items() for name in names}


def diagnosed(model, name, how, seed, shape=None):
    """(diagnosis, expected cause, places, first divergence) of an injection; None where the model has no place for it."""
    graph, x = build(model, seed, shape)
    cause, make = {**CONVENTIONS, **STRANGE}[name]
    bug = make(graph, np.random.default_rng([seed, len(name)]))
    if bug is None:
        return None
    found, known = findings(graph, x, run(graph, x, bug), shown(graph, how, seed))
    first = next((f for f in found if f.verdict == "diverges"), None)
    return diagnose(graph, first, found, known, x.astype(np.float64), "float32", {}), cause, bug.places, first


@pytest.mark.parametrize("name", sorted(CONVENTIONS))
def test_a_convention_is_named(name):
    model = HOME.get(name, "vit")
    answer, cause, places, first = diagnosed(model, name, "modules", 101, SHAPE.get(name))
    assert answer.cause == cause, answer
    assert answer.cause in BY_NAME
    assert answer.trials[0].fits
    assert answer.trials[0].residual_ratio <= 8 < first.own_ratio
    assert answer.sentence.startswith("The candidate ")
    assert answer.sentence.endswith(".")
    assert answer.advice.endswith(".")
    if places and len(places) == 1 and first.value == places[0]:
        assert places[0] in answer.sentence


@pytest.mark.parametrize("name", sorted(STRANGE))
def test_what_no_convention_is_stays_unknown(name):
    for how, seed in (("modules", 103), ("blocks", 104)):
        answer, *_, first = diagnosed("vit", name, how, seed)
        assert answer.cause == "unknown", answer
        assert answer.alternatives == ()
        assert first.name in answer.sentence


@pytest.mark.parametrize("how", ["nodes", "blocks", "outputs"])
def test_it_may_show_everything_or_only_its_answer(how):
    for name in ("tanh_gelu", "keys_and_values", "no_residual", "layer_norm_eps"):
        answer, cause, *_ = diagnosed("vit", name, how, 107)
        assert answer.cause == cause, (how, answer)


def test_a_convention_everywhere_in_a_candidate_that_shows_only_its_answer():
    graph, x = build("vit", 5)
    tanh = OPS["gelu"].function
    bug = Bug({n.name: lambda a: tanh(a, approximate="tanh") for n in graph if n.op == "gelu"})
    found, known = findings(graph, x, run(graph, x, bug), shown(graph, "outputs"))
    answer = diagnose(graph, found[-1], found, known, x, "float32", {})
    assert answer.cause == "gelu-tanh"
    assert "blocks.0.mlp.gelu and 1 more" in answer.sentence


def test_other_values_with_the_same_cause_are_listed():
    graph, x = build("vit", 6)
    bug = Bug({n.name: lambda a: np.maximum(a, 0) for n in graph if n.op == "gelu"})
    found, known = findings(graph, x, run(graph, x, bug), shown(graph, "modules"))
    first = next(f for f in found if f.verdict == "diverges")
    answer = diagnose(graph, first, found, known, x, "float32", {})
    assert (answer.cause, first.value) == ("activation-swapped", "blocks.0.mlp.gelu")
    assert answer.also == ("blocks.1.mlp.gelu",)


def right(seed=8, arithmetic="float32", model="vit"):
    graph, x = build(model, seed)
    values = {"input": x.astype(np.float64), **graph.params}
    for node in graph:
        values[node.name] = apply(node, [None if i is None else values[i] for i in node.inputs], arithmetic)
    return graph, x, {n: values[n] for n in graph.nodes}


def test_where_no_step_is_wrong_the_outputs_decide():
    graph, x, values = right()
    found, known = findings(graph, x, values, shown(graph, "nodes"))
    *inner, last = found
    for f, cause in (
        (inner[-1], "rounding only"),
        (last, "rounding only"),
        (dataclasses.replace(inner[-1], verdict="inherited"), "rounding only"),
        (dataclasses.replace(last, verdict="inherited"), "adds up"),
        (dataclasses.replace(last, verdict="missing", candidate=""), "missing output"),
        (dataclasses.replace(last, verdict="missing"), "wrong shape"),
    ):
        assert last.value in graph.outputs.values() and inner[-1].value not in graph.outputs.values()
        assert diagnose(graph, None, [f], known, x, "float32", {}).cause == cause


def test_rounding_only():
    graph, x, values = right()
    found, known = findings(graph, x, values, shown(graph, "nodes"))
    assert not [f for f in found if f.verdict == "diverges"]
    assert diagnose(graph, None, found, known, x, "float32", {}).cause == "rounding only"


@pytest.mark.parametrize("arithmetic", ["tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("how", ["nodes", "modules", "blocks"])
def test_reduced_precision(arithmetic, how):
    graph, x, values = right(9, arithmetic)
    found, known = findings(graph, x, values, shown(graph, how, 2))
    first = next(f for f in found if f.verdict == "diverges")
    answer = diagnose(graph, first, found, known, x, "float32", {})
    assert answer.cause == f"reduced precision: {arithmetic}"
    found, known = findings(graph, x, values, shown(graph, how, 2), arithmetic)
    assert not [f for f in found if f.verdict == "diverges"]


def test_a_softmax_that_overflows():
    graph, x = build("vit", 10)
    node = graph.nodes["blocks.1.attn.attention.softmax"]
    graph = dataclasses.replace(
        graph, params={**graph.params, "blocks.1.attn.qkv.bias": graph.params["blocks.1.attn.qkv.bias"] + 12}
    )

    def naive(a):
        e = np.exp(a)
        return e / e.sum(-1, keepdims=True)

    values = run(graph, x, Bug({node.name: naive}))
    assert np.isnan(values[node.name]).any()
    for how in ("nodes", "modules"):
        found, known = findings(graph, x, values, shown(graph, how))
        first = next(f for f in found if f.verdict == "diverges")
        assert diagnose(graph, first, found, known, x, "float32", {}).cause == "softmax-overflow"


def test_what_the_input_cannot_tell_apart_is_one_answer():
    """A gelu that only sees large numbers: no activation, ReLU and GELU are the same."""
    graph, x = build("vit", 11)
    bias = {n: a + 30 * (n.endswith("mlp.fc1.bias")) for n, a in graph.params.items()}
    graph = dataclasses.replace(graph, params=bias)
    node = graph.nodes["blocks.0.mlp.gelu"]
    values = run(graph, x, Bug({node.name: lambda a: np.clip(a, 0, 6)}))
    found, known = findings(graph, x, values, shown(graph, "modules"))
    first = next(f for f in found if f.verdict == "diverges")
    answer = diagnose(graph, first, found, known, x, "float32", {})
    assert (answer.cause, first.value) == ("activation-swapped", node.name)
    assert "ReLU6" in answer.sentence


@pytest.mark.parametrize("along", [1, 2])
def test_a_layer_norm_over_as_many_tokens_as_features(along):
    """A framework that is given the wrong axis wants weight and bias along it; a formula of one's own need not."""
    graph, x = build("vit", 10, (1, 3, 8, 184))
    node = graph.nodes["blocks.1.norm2"]
    assert node.shape == (1, 24, 24)

    def tokens(a, weight, bias):
        side = (1, -1, 1) if along == 1 else (1, 1, -1)
        a = a.astype(np.float64)
        return (a - a.mean(1, keepdims=True)) / np.sqrt(a.var(1, keepdims=True) + 1e-6) * weight.reshape(side) + bias.reshape(
            side
        )

    assert node.attrs["eps"] == 1e-6
    found, known = findings(graph, x, run(graph, x, Bug({node.name: tokens})), shown(graph, "modules"))
    first = next(f for f in found if f.verdict == "diverges")
    answer = diagnose(graph, first, found, known, x, "float32", {})
    assert (answer.cause, first.value) == ("layer-norm-axis", node.name)
    assert ("along it too" in answer.sentence) == (along == 1)


def wrong_parameter(name, change, seed=12):
    graph, x = build("vit", seed)
    theirs = np.asarray(change(graph.params[name]), np.float64)
    found, known = findings(graph, x, run(graph, x, Bug(params={name: theirs})), shown(graph, "modules"))
    first = next(f for f in found if f.verdict == "diverges")
    parameters = {**graph.params, name: theirs}
    return diagnose(graph, first, found, known, x, "float32", parameters), diagnose(
        graph, first, found, known, x, "float32", {}
    )


def test_its_own_parameters_show_what_is_wrong_with_them():
    name, rng = "blocks.1.mlp.fc1.weight", np.random.default_rng(0)
    fresh, blind = wrong_parameter(name, lambda w: 0.2 * rng.standard_normal(w.shape))
    assert (fresh.cause, blind.cause) == ("weights-not-loaded", "unknown")
    assert f"{name} has nothing in common with the file's" in fresh.sentence
    noisy, blind = wrong_parameter(name, lambda w: w + 0.01 * rng.standard_normal(w.shape))
    assert (noisy.cause, blind.cause) == ("unknown", "unknown")
    assert f"{name} differs from the file's" in noisy.sentence
    square = "blocks.0.attn.proj.weight"
    seen, blind = wrong_parameter(square, lambda w: w.T)
    assert (seen.cause, blind.cause) == ("weight-transposed", "weight-transposed")
    assert "its own parameters show" in seen.sentence


def test_parameters_that_differ_and_are_not_the_reason_are_not_named():
    """They are noted, but the segment computed with them does not give the candidate's values."""
    graph, x = build("vit", 13)
    node = graph.nodes["blocks.0.mlp.gelu"]
    found, known = findings(graph, x, run(graph, x, Bug({node.name: lambda a: np.maximum(a, 0)})), shown(graph, "blocks", 3))
    first = next(f for f in found if f.verdict == "diverges")
    read = [i for n in first.segment.nodes for i in n.sources if i in graph.params and i.endswith("weight")]
    other = draw([(read[0], graph.params[read[0]].shape)], 99)
    answer = diagnose(graph, first, found, known, x, "float32", {**graph.params, **other})
    assert answer.cause == "activation-swapped"
    assert any(read[0] in note for note in answer.notes)


def test_too_many_hypotheses_are_said_so():
    graph, x = build("vit", 14)
    _, make = CONVENTIONS["no_residual"]
    found, known = findings(graph, x, run(graph, x, make(graph, np.random.default_rng(1))), shown(graph, "outputs"))
    answer = diagnose(graph, found[-1], found, known, x, "float32", {}, budget=10**7)
    assert "hypotheses were not tried" in answer.notes[-1]


def test_sums_in_half():
    graph, x, values = right(16, "float16")
    node = graph.nodes["blocks.1.mlp.fc2"]
    given, w, b = (values[node.inputs[0]], *(graph.params[i] for i in node.inputs[1:]))
    total = np.zeros(node.shape, np.float16)
    for k in range(w.shape[1]):
        total = total + given[..., k, None].astype(np.float16) * w[:, k].astype(np.float16)
    values[node.name] = (total + b.astype(np.float16)).astype(np.float64)
    names = shown(graph, "nodes")
    found, known = findings(graph, x, {n: values[n] for n in graph.nodes}, names, "float16")
    finding = next(f for f in found if f.value == node.name)
    wrong = dataclasses.replace(finding, verdict="diverges")  # the terms are few here: it may be within the bound
    assert diagnose(graph, wrong, found, known, x, "float16", {}).cause == "half accumulation"
    known[node.name] = known[node.name].astype(np.float16) * np.float16(1.004)
    assert diagnose(graph, wrong, found, known, x, "float16", {}).cause != "half accumulation"


def test_the_image_tells_how_an_input_was_made():
    from refvit.crosscheck.locate import judge
    from refvit.crosscheck.matching import Match
    from refvit.crosscheck.subject import photograph
    from refvit.vision.preprocess import Preprocess

    graph, _ = build("vit", 17)
    pixels = photograph(50, 61, 1)
    own = Preprocess(resize=36, crop=32, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3, channel_order="rgb")
    x, theirs = (np.repeat(p(pixels)[None], 2, 0) for p in (own, own.replace(resize=40)))
    found = judge(graph, x, [Match("input", "input", "image", "as is", "path", 1.0, theirs.astype(np.float64))], "float32")
    first = next(f for f in found if f.verdict == "diverges")
    answer = diagnose(graph, first, found, {"input": theirs}, x, "float32", {}, pixels=pixels, preprocess=own)
    assert answer.cause == "input-crop"
    assert "resized to 48 x 40 by Pillow's bicubic" in answer.sentence
    assert "resize 36, crop 32" in answer.advice
    assert all(math.isnan(t.residual_ratio) and t.fits for t in answer.trials)


def test_a_wrong_input_that_the_candidate_shows():
    graph, x = build("vit", 15)
    from refvit.crosscheck.locate import judge
    from refvit.crosscheck.matching import Match

    theirs = x[:, ::-1].astype(np.float64)
    found = judge(graph, x, [Match("input", "input", "image", "as is", "path", 1.0, theirs)], "float32")
    first = next(f for f in found if f.verdict == "diverges")
    answer = diagnose(graph, first, found, {"input": theirs}, x, "float32", {})
    assert answer.cause == "input-channel-order"
    assert "red and blue" in answer.sentence
