"""Which value is which: by name, by parameters and by numbers, with bugs and without, and never wrongly and surely.

The candidates are the graph itself, run node by node in float32. What is shown, under which name, in which layout and with
which bug is up to each test, and so is known.
"""

import functools

import numpy as np
import pytest
from helpers.blocks import draw
from helpers.small import HRNET, small_graph

from refvit.backends.numpy import compile_graph
from refvit.crosscheck.candidates.located import Located
from refvit.crosscheck.matching import match
from refvit.crosscheck.observed import Observed
from refvit.errors import ConfigError
from refvit.graph.ir import OPS
from refvit.graph.trace import trace
from refvit.models import architecture
from weights_convert.convert import LAYOUTS

MODELS = ("vit", "deit distilled", "mobilevit", "hrnet", "hrvit")
SURE = 0.9


@functools.cache
def subject(model):
    """(graph, x, golden values of everything)"""
    graph = small_graph(model, draw, expand=True)
    (value,) = graph.inputs.values()
    x = np.random.default_rng(51).standard_normal(value.shape)
    every = {name: name for name in (*graph.inputs, *graph.nodes)}
    return graph, x, compile_graph(graph.with_outputs(every))(x)


def shown(model, bugs=None, rounded=np.float32):
    """Every value of a run in float32. bugs: node -> function(its right result, its arguments) -> what it gives instead."""
    graph, x, _ = subject(model)
    values = {n: rounded(p).astype(np.float32) for n, p in graph.params.items()} | {"input": rounded(x).astype(np.float32)}
    out = {"input": values["input"]}
    for node in graph:
        arguments = [None if i is None else values[i] for i in node.inputs]
        y = OPS[node.op].function(*arguments, **node.attrs)
        if node.name in (bugs or {}):
            y = np.asarray(bugs[node.name](y, arguments), np.float32)
        out[node.name] = values[node.name] = rounded(np.ascontiguousarray(y)).astype(np.float32)
    return out


def matched(model, observed, **options):
    graph, _, golden = subject(model)
    return match(graph, golden, observed, **options)


def nameless(values, seed=None):
    """(values under names that say nothing, what each really is); seed: in an order that says nothing either."""
    names = list(values)
    if seed is not None:
        names = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    truth = {f"t{i:04d}": name for i, name in enumerate(names)}
    return {name: values[true] for name, true in truth.items()}, truth


def wrong(matching, truth, values):
    """Matches with a value that is not the true one, and does not have its numbers either."""
    found = []
    for m in matching.matches:
        a, b = values[truth[m.candidate]], values.get(m.value)
        same = b is not None and (np.array_equal(a, b) or np.array_equal(np.sort(a, None), np.sort(b, None)))
        if truth[m.candidate] != m.value and not same:
            found.append((truth[m.candidate], m.value, m.confidence))
    return found


# what names say


@pytest.mark.parametrize("model", MODELS)
def test_equal_names(model):
    values = shown(model)
    found = matched(model, Observed(values, ()))
    assert [m.value for m in found.matches] == list(values) and not found.unmatched_candidate and not found.unmatched_reference
    for m in found.matches:
        assert (m.name, m.candidate, m.layout, m.how, m.confidence) == (m.value, m.value, "as is", "path", 1.0)
        assert m.array.dtype == np.float64 and np.array_equal(m.array, values[m.value]) and m.parts == (m.value,)


@pytest.mark.parametrize("model", MODELS)
def test_names_of_blocks(model):
    graph, _, _ = subject(model)
    values = shown(model)
    ends = {}
    for path, value in graph.aliases.items():
        ends.setdefault(value, path)
    found = matched(model, Observed({path: values[value] for value, path in ends.items()}, ()))
    assert {m.value: m.name for m in found.matches} == ends
    assert {m.how for m in found.matches} == {"path"} and not found.unmatched_candidate


def test_what_is_called_right_is_right_even_where_its_numbers_are_not():
    rng = np.random.default_rng(1)
    values = {n: rng.standard_normal(a.shape).astype(np.float32) for n, a in shown("vit").items()}
    found = matched("vit", Observed(values, ()))
    assert {m.value: m.candidate for m in found.matches} == {n: n for n in values}


@pytest.mark.parametrize(
    "name", ["backbone.{}", "module.model.{}", "{}.", "_{}", "/{}"], ids=["prefix", "prefixes", "dot", "underscore", "slash"]
)
def test_spellings_of_names(name):
    """Prefixes, and other separators than dots."""
    values = shown("vit")
    called = {name.format(n) if "." in name else name.format(n.replace(".", name[0])): n for n in values}
    rng = np.random.default_rng(2)
    spoiled = {c: rng.standard_normal(values[n].shape).astype(np.float32) for c, n in called.items()}
    found = matched("vit", Observed(spoiled, ()))
    hits = {m.candidate: m.value for m in found.matches if m.how == "path"}
    assert len(hits) > 0.95 * len(values) and all(called[c] == v for c, v in hits.items())


def test_results_by_key_and_by_being_the_only_one():
    graph, _, _ = subject("mobilevit")
    values = shown("mobilevit")
    out = next(iter(graph.outputs.values()))
    for name in ("output", "output[logits]", "anything"):
        found = matched("mobilevit", Observed({name: values[out] * 3}, (name,)))
        ((m,),) = (found.matches,)
        assert (m.value, m.candidate, m.how) == (out, name, "path")
    found = matched("mobilevit", Observed({"anything": values[out]}, ()))
    assert [(m.value, m.how) for m in found.matches] == [(out, "value")]


def test_onnx_names_of_exporters():
    values = shown("vit")
    called = {
        "/patch_embed/proj/Conv_output_0": "patch_embed.proj",
        "/blocks/blocks.0/norm1/LayerNormalization_output_0": "blocks.0.norm1",
        "/blocks/blocks.0/attn/qkv/Add_output_0": "blocks.0.attn.qkv",
        "/blocks/blocks.1/mlp/fc2/Add_output_0": "blocks.1.mlp.fc2",
        "/blocks/blocks.1/Add_1_output_0": "blocks.1.add_1",
        "/blocks/blocks.1/mlp/act/Mul_1_output_0": "blocks.1.mlp.gelu",
    }
    seen = {"/blocks/blocks.0/attn/qkv/MatMul_output_0": values["blocks.0.attn.qkv"] - 1}
    seen |= {c: values[n] for c, n in called.items()}
    found = matched("vit", Observed(seen, ()))
    assert {m.candidate: m.value for m in found.matches} == called
    assert {m.how for m in found.matches} == {"path"}
    assert found.unmatched_candidate == ("/blocks/blocks.0/attn/qkv/MatMul_output_0",)


def test_the_module_that_an_exporter_writes_beside_a_name():
    values = shown("vit")
    rng = np.random.default_rng(3)
    seen = {"val_7": values["blocks.0.norm1"], "linear_3": rng.standard_normal(values["blocks.0.attn.qkv"].shape)}
    paths = {"val_7": "blocks.0.norm1", "linear_3": "blocks.0.attn.qkv"}
    found = matched("vit", Located(seen, (), paths=paths))
    assert {m.candidate: (m.value, m.how) for m in found.matches} == {
        "val_7": ("blocks.0.norm1", "path"),
        "linear_3": ("blocks.0.attn.qkv", "path"),
    }


def test_a_name_of_ours_is_that_whatever_module_computes_it():
    """Of two values of one block whose numbers are the same, such as where a transpose was left out, as of all others."""
    values = shown("vit")
    names = ("blocks.0.attn.attention.matmul_1", "blocks.0.attn.transpose_1")
    one = values[names[0]].reshape(values[names[1]].shape)
    seen = {names[0]: values[names[0]], names[1]: one}
    found = matched("vit", Located(seen, (), paths=dict.fromkeys(names, "blocks.0.attn")))
    assert {m.value: m.candidate for m in found.matches} == dict(zip(names, names, strict=True))


def test_what_goes_into_a_module():
    values = shown("vit")
    seen = {
        "input of blocks.0.norm2": values["blocks.0.add"] + 1,
        "input of blocks.1.attn.proj": values["blocks.1.attn.reshape_1"] + 1,
        "input of blocks.1": values["blocks.0.add_1"] + 1,
    }
    found = matched("vit", Observed(seen, ()))
    assert {m.candidate: m.value for m in found.matches} == {
        "input of blocks.0.norm2": "blocks.0.add",
        "input of blocks.1": "blocks.0.add_1",
        "input of blocks.1.attn.proj": "blocks.1.attn.reshape_1",
    }


def test_a_value_that_is_shown_twice_has_one_match():
    """Such as what a dropout gets and gives; the later one counts, and if it differs, that is said."""
    values = shown("vit")
    right = values["blocks.0.attn.proj"]
    dropped = right * (np.random.default_rng(4).random(right.shape) > 0.1)
    for later, differs in ((right, False), (dropped.astype(np.float32), True)):
        seen = {"blocks.0.attn.proj": right, "blocks.0.attn.proj_drop": later, "blocks.0.attn": later}
        found = matched("vit", Observed(seen, ()))
        ((m,),) = (found.matches,)
        assert m.value == "blocks.0.attn.proj" and m.candidate == "blocks.0.attn" and np.array_equal(m.array, later)
        assert set(m.also) == {"blocks.0.attn.proj", "blocks.0.attn.proj_drop"} and not found.unmatched_candidate
        reason = found.reasons.get("blocks.0.attn.proj", "")
        assert ("is blocks.0.attn as blocks.0.attn is, and differs from it by" in reason) is differs


def test_a_name_that_differs_from_another_of_the_same_value_is_judged_as_well():
    """Whichever of them comes first: what is a result stands for the value."""
    values = shown("vit")
    right, wrong = values["head"], np.tanh(values["head"])
    for seen in ({"output": wrong, "head": right}, {"head": right, "output": wrong}):
        found = matched("vit", Observed(seen, ("output",)))
        assert [(m.candidate, m.value) for m in (*found.matches, *found.again)] == [("output", "head"), ("head", "head")]
        assert np.array_equal(found.matches[0].array, wrong) and np.array_equal(found.again[0].array, right)
    found = matched("vit", Observed({"output": right, "head": right}, ("output",)))
    assert [m.candidate for m in found.matches] == ["output"] and not found.again


def test_of_two_names_that_are_mapped_to_one_value_both_are_judged():
    values = shown("vit")
    seen = {"a": values["norm"][:, 1:], "b": 2 * values["norm"][:, 1:]}  # in a layout that hides something
    found = matched("vit", Observed(seen, ()), names={"a": "norm", "b": "norm"})
    assert [(m.candidate, m.value, m.how) for m in (*found.matches, *found.again)] == [
        ("b", "norm", "map"),
        ("a", "norm", "map"),
    ]
    assert np.array_equal(found.again[0].array[:, 1:], seen["a"])


def test_what_numbers_alone_say_is_shown_twice_is_not_judged_twice():
    values = shown("vit")
    found = matched("vit", Observed({"head": values["head"], "copy": values["head"] * np.float32(1 + 2e-7)}, ()))
    assert [m.candidate for m in found.matches] == ["head"] and not found.again


# explicit maps


def test_the_given_map_goes_first():
    values = shown("vit")
    seen = {"blocks.0.norm1": values["blocks.1.norm1"], "mine": values["norm"]}
    found = matched("vit", Observed(seen, ()), names={"blocks.0.norm1": "blocks.1.norm1", "mine": "blocks.0.mlp"})
    assert {m.candidate: (m.value, m.name, m.how, m.confidence) for m in found.matches} == {
        "blocks.0.norm1": ("blocks.1.norm1", "blocks.1.norm1", "map", 1.0),
        "mine": ("blocks.0.mlp.fc2", "blocks.0.mlp", "map", 1.0),
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"nowhere": "norm"}, "names: the candidate has no value 'nowhere'; there are a and others"),
        ({"a": "blocks.0.norm3"}, r"names: the reference has no value 'blocks.0.norm3'; there are blocks.0.norm[12]"),
    ],
)
def test_a_map_with_names_that_do_not_exist(names, message):
    with pytest.raises(ConfigError, match=message):
        matched("vit", Observed({"a": shown("vit")["norm"]}, ()), names=names)


def test_a_map_to_what_cannot_be():
    message = "names: head is called like norm, which is 2x17x24, and 2x9 fits no layout of that"
    with pytest.raises(ConfigError, match=message):
        matched("vit", Observed({"head": np.ones((2, 9), np.float32)}, ()), names={"head": "norm"})


def test_a_name_whose_shape_cannot_be_is_nothing_else():
    """Not even where its numbers are those of another value."""
    values = shown("mobilevit")
    seen = {"stages.2.1.conv_1x1": values["stem.conv"], "anything": values["stages.1.0.conv1_1x1.conv"]}
    found = matched("mobilevit", Observed(seen, ()))
    assert [(m.candidate, m.value) for m in found.matches] == [("anything", "stages.1.0.conv1_1x1.conv")]
    assert found.misfits == {"stages.2.1.conv_1x1": "stages.2.1.conv_1x1"}
    assert found.unmatched_candidate == ("stages.2.1.conv_1x1",)
    assert "fits no layout of that" in found.reasons["stages.2.1.conv_1x1"]


# layouts


def turned(values, graph):
    """Maps with channels last, tokens with features first, heads inside, one image without n; and how each is called."""
    out, layouts = {}, {}
    for name, a in values.items():
        shape = graph.value(name).shape
        if len(shape) == 4 and "attn" not in name:
            out[name], layouts[name] = a.transpose(0, 2, 3, 1), "nhwc"
        elif len(shape) == 4:
            out[name], layouts[name] = a.transpose(0, 2, 1, 3), "heads inside"
        elif len(shape) == 3:
            out[name], layouts[name] = a.transpose(0, 2, 1), "ncl"
        else:
            out[name], layouts[name] = a, "as is"
    return {n: np.ascontiguousarray(a) for n, a in out.items()}, layouts


@pytest.mark.parametrize("model", ["vit", "mobilevit", "hrnet"])
@pytest.mark.parametrize("named", [True, False])
def test_other_layouts(model, named):
    graph, _, _ = subject(model)
    values = shown(model)
    other, layouts = turned(values, graph)
    seen, truth = (other, {n: n for n in other}) if named else nameless(other)
    found = matched(model, Observed(seen, ()))
    assert len(found.matches) > 0.9 * len(values)
    for m in found.matches:
        if truth[m.candidate] == m.value:
            assert np.array_equal(m.array, values[m.value]), (m.value, m.layout, layouts[m.value])
    assert not wrong(found, truth, values)


def test_a_map_as_large_as_it_is_deep_is_laid_out_as_the_others():
    """(n, 8, 8, 8) says nothing about its layout."""
    graph = trace(architecture("hrnet_w18_small").forward, (1, 3, 64, 64), dict(cube()), expand=True, config=HRNET)
    x = np.random.default_rng(5).standard_normal((1, 3, 64, 64))
    golden = compile_graph(graph.with_outputs({n: n for n in (*graph.inputs, *graph.nodes)}))(x)
    cubes = [n for n, a in golden.items() if a.shape == (1, 8, 8, 8)]
    assert len(cubes) > 3
    for last in (True, False):
        seen, truth = nameless({n: a.transpose(0, 2, 3, 1) if a.ndim == 4 and last else a for n, a in golden.items()})
        named = {truth[name]: a for name, a in seen.items()}
        for values, names in ((seen, truth), (named, {n: n for n in named})):
            found = match(graph, golden, Observed(values, ()))
            layouts = {m.value: m.layout for m in found.matches if names[m.candidate] == m.value}
            assert [layouts.get(n) for n in cubes] == ["nhwc" if last else "as is"] * len(cubes)


def cube():
    return draw(architecture("hrnet_w18_small").parameters(HRNET)).items()


def test_layouts_that_are_told():
    values = shown("hrnet")
    a = values["conv1"].transpose(0, 2, 3, 1)
    told = Observed({"conv1": a, "conv2": values["conv2"]}, (), layouts={"conv1": "nhwc"})
    assert {m.value: m.layout for m in matched("hrnet", told).matches} == {"conv1": "nhwc", "conv2": "as is"}
    found = matched("hrnet", told, layouts={"conv*": "nchw"})  # goes before what the candidate declares
    assert {m.value: m.layout for m in found.matches} == {"conv2": "nchw"}
    assert "fits no layout of that" in found.reasons["conv1"]
    with pytest.raises(ConfigError, match="layout 'nwhc' does not exist"):
        matched("hrnet", told, layouts={"*": "nwhc"})
    with pytest.raises(ConfigError, match=r"layouts: the candidate has no value 'cov\*'; there are conv1, conv2 and others"):
        matched("hrnet", told, layouts={"conv1": "nhwc", "cov*": "nhwc"})


def test_tokens_without_the_class_token():
    values = shown("vit")
    found = matched("vit", Observed({"a": values["blocks.0.add_1"][:, 1:], "b": values["blocks.1.norm1"][:, 1:]}, ()))
    assert {m.candidate: (m.value, m.layout) for m in found.matches} == {
        "a": ("blocks.0.add_1", "class token dropped"),
        "b": ("blocks.1.norm1", "class token dropped"),
    }
    _, _, golden = subject("vit")
    for m in found.matches:
        assert np.abs(m.array - golden[m.value]).max() < 1e-4  # what is not shown is as expected
        assert np.array_equal(m.array[:, 1:], values[m.value][:, 1:])


def test_nan_that_a_layout_does_not_hide_stays():
    bad = shown("vit")["blocks.0.add_1"][:, 1:].copy()
    bad[0, :7, 3:8] = np.nan
    for name in ("blocks.0", "anything"):
        found = matched("vit", Observed({name: bad}, ()))
        ((m,),) = (found.matches,)
        assert (m.value, m.layout) == ("blocks.0.add_1", "class token dropped")
        np.testing.assert_array_equal(m.array[:, 1:], bad)
        assert np.isfinite(m.array[:, 0]).all()
    bad[:, :14] = np.nan
    assert not matched("vit", Observed({"anything": bad}, ())).matches  # too little is left to say what it is


# parameters


def exported(model, layout):
    """(the graph's parameters under a public layout's names, our node of each of its modules)"""
    graph, _, _ = subject(model)
    state = next(found for found in LAYOUTS if found.name == layout).export(graph.params)
    return {n: a.astype(np.float32) for n, a in state.items() if a.dtype.kind == "f"}


@pytest.mark.parametrize(
    ("model", "layout", "modules"),
    [
        ("vit", "vit.transformers.in_memory", {"vit.layers.1.mlp.fc1": "blocks.1.mlp.fc1", "classifier": "head"}),
        (
            "vit",
            "vit.transformers.in_memory",
            {"vit.embeddings": "add"},
        ),  # no block of ours, and one value alone needs all of it
        ("vit", "vit.transformers", {"vit.encoder.layer.0.attention.output.dense": "blocks.0.attn.proj"}),
        ("deit distilled", "deit.transformers", {"distillation_classifier": "head_dist"}),
        (
            "mobilevit",
            "mobilevit.transformers",
            {
                "mobilevit.encoder.layer.2.conv_kxk.convolution": "stages.2.1.conv_kxk.conv",
                "mobilevit.encoder.layer.2.conv_kxk.normalization": "stages.2.1.conv_kxk.bn.batch_norm",
            },
        ),
        (
            "mobilevit",
            "mobilevit.cvnets",
            {
                "layer_3.1.global_rep.0.pre_norm_mha.1.qkv_proj": "stages.2.1.transformer.0.attn.qkv",
                "layer_3.1.fusion.block.norm": "stages.2.1.conv_fusion.bn.batch_norm",
            },
        ),
        ("hrnet", "hrnet.classification", {"stage2.0.fuse_layers.0.1.0": "stage2.0.fuse_layers.0.1.0"}),
    ],
)
def test_modules_are_what_their_parameters_are(model, layout, modules):
    """The names and the numbers of the values say nothing: these are noise."""
    state, values = exported(model, layout), shown(model)
    rng = np.random.default_rng(6)
    seen = {c: rng.standard_normal(values[n].shape).astype(np.float32) for c, n in modules.items()}
    found = matched(model, Observed(seen, (), state))
    assert {m.candidate: m.value for m in found.matches} == modules
    assert {m.how for m in found.matches} == {"path" if layout.startswith("hrnet") else "parameters"}
    graph, _, _ = subject(model)
    assert found.parameters.keys() == found.tensors.keys() == graph.params.keys()
    for name, a in graph.params.items():
        assert np.array_equal(found.tensors[name], a.astype(np.float32)), name


def test_queries_keys_and_values_are_stacked():
    state, values = exported("vit", "vit.transformers"), shown("vit")
    rng = np.random.default_rng(7)
    noise = [rng.standard_normal((2, 17, 24)).astype(np.float32) for _ in range(3)]
    at = "vit.encoder.layer.1.attention.attention."
    found = matched("vit", Observed(dict(zip([at + n for n in ("key", "value", "query")], noise, strict=True)), (), state))
    ((m,),) = (found.matches,)
    assert (m.value, m.how, m.parts) == ("blocks.1.attn.qkv", "parameters", (at + "query", at + "key", at + "value"))
    assert m.candidate == " + ".join(m.parts)
    assert np.array_equal(m.array, np.concatenate([noise[2], noise[0], noise[1]], axis=2))
    assert found.parameters["blocks.1.attn.qkv.weight"] == " + ".join(f"{p}.weight" for p in m.parts)
    assert values["blocks.1.attn.qkv"].shape == m.array.shape


def test_a_third_alone_is_that_third():
    state, values = exported("vit", "vit.transformers"), shown("vit")
    keys = np.split(values["blocks.1.attn.qkv"], 3, axis=2)[1]
    found = matched("vit", Observed({"vit.encoder.layer.1.attention.attention.key": keys}, (), state))
    assert [(m.value, m.layout) for m in found.matches] == [("blocks.1.attn.getitem_1", "heads inside")]


def test_a_block_is_what_owns_its_parameters():
    state, values = exported("mobilevit", "mobilevit.cvnets"), shown("mobilevit")
    seen = {"layer_3.1.global_rep.0": "stages.2.1.transformer.0.add_1", "layer_3.1.local_rep": "stages.2.1.conv_1x1"}
    found = matched("mobilevit", Observed({c: values[n] for c, n in seen.items()}, (), state))
    assert {m.candidate: m.value for m in found.matches} == seen
    assert {m.how for m in found.matches} == {"parameters"}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_parameters_without_names(dtype):
    """By their numbers, in whatever order of axes, and q, k and v apart."""
    graph, _, _ = subject("vit")
    theirs = {}
    for i, (name, a) in enumerate(graph.params.items()):
        parts = np.split(a, 3) if "qkv" in name else [a]
        for j, part in enumerate(parts):
            order = {2: (1, 0), 4: (2, 3, 1, 0)}.get(part.ndim, range(part.ndim))
            theirs[f"w{i}_{j}"] = part.transpose(order).astype(dtype)
    found = matched("vit", Observed({"a": shown("vit")["norm"]}, (), theirs))
    assert found.parameters.keys() == graph.params.keys()
    for name, a in graph.params.items():
        assert np.array_equal(found.tensors[name], a.astype(dtype).astype(np.float64)), name


def test_parameters_that_are_alike_are_left_out():
    graph, _, _ = subject("vit")
    theirs = {f"w{i}": a.astype(np.float32) for i, a in enumerate(graph.params.values())}
    names = list(graph.params)
    theirs["again"] = theirs[f"w{names.index('norm.weight')}"]
    found = matched("vit", Observed({"a": shown("vit")["norm"]}, (), theirs))
    assert graph.params.keys() - found.parameters.keys() == {"norm.weight"}


def test_wrong_parameters_keep_their_names():
    """A transposed weight, one of another shape, a changed one: what they are is known, and what they hold is shown."""
    graph, _, _ = subject("vit")
    theirs = {n: a.astype(np.float32) for n, a in graph.params.items()}
    theirs["blocks.0.attn.proj.weight"] = theirs["blocks.0.attn.proj.weight"].T
    theirs["blocks.0.mlp.fc1.weight"] = theirs["blocks.0.mlp.fc1.weight"].T
    theirs["norm.bias"] = theirs["norm.bias"] + 1
    found = matched("vit", Observed({"norm": shown("vit")["norm"]}, (), theirs))
    assert found.parameters == {n: n for n in graph.params}
    for name, a in theirs.items():
        assert np.array_equal(found.tensors[name], a), name


# folded norms


@pytest.mark.parametrize("model", ["hrnet", "mobilevit"])
def test_a_convolution_that_shows_the_norm_behind_it(model):
    graph, _, _ = subject(model)
    values = shown(model)
    norms = {n.name: n.inputs[0] for n in graph if n.op == "batch_norm"}
    seen = {c: values[n] for n, c in norms.items()}
    found = matched(model, Observed(seen, ()))
    assert {m.value: m.candidate for m in found.matches} == norms
    assert {m.how for m in found.matches} == {"path"} and not found.unmatched_candidate
    assert set(found.unmatched_reference) >= set(norms.values())


def test_one_whose_norm_is_there_as_well_is_not_folded():
    """A norm that was applied twice: the first is the convolution's, and the second has a match of its own."""
    values = shown("hrnet")
    seen = {"conv1": values["bn1"], "bn1": values["bn1"] * 0.5 + 1, "conv2": values["conv2"], "bn2": values["bn2"]}
    found = matched("hrnet", Observed(seen, ()))
    assert {m.value: m.candidate for m in found.matches} == {n: n for n in seen}


def test_a_module_that_became_an_identity_repeats_it():
    values = shown("hrnet")
    found = matched("hrnet", Observed({"conv1": values["bn1"], "bn1": values["bn1"]}, ()))
    ((m,),) = (found.matches,)
    assert m.value == "bn1" and {m.candidate, *m.also} == {"conv1", "bn1"} and not found.reasons


def test_an_activation_that_was_fused_as_well():
    values = shown("mobilevit")
    found = matched("mobilevit", Observed({"stem.conv": values["stem.bn.silu"]}, ()))
    assert [m.value for m in found.matches] == ["stem.bn.silu"]


def test_a_convolution_with_a_folded_norm_is_that_even_where_it_is_wrong():
    """It shows its parameters, and nothing of the norm. Where it shows those, it is the convolution that is wrong."""
    graph, _, _ = subject("hrnet")
    other = np.random.default_rng(4).standard_normal(graph.nodes["bn1"].shape).astype(np.float32)
    theirs = {n: a for n, a in graph.params.items() if not n.startswith("bn1.")}
    found = matched("hrnet", Observed({"conv1": other}, (), theirs))
    assert [(m.value, m.candidate) for m in found.matches] == [("bn1", "conv1")]
    for parameters in (graph.params, {}):
        found = matched("hrnet", Observed({"conv1": other}, (), parameters))
        assert [m.value for m in found.matches] == ["conv1"]


def test_weights_with_a_folded_norm_are_not_ours():
    graph, _, _ = subject("hrnet")
    theirs = {n: a.astype(np.float32) for n, a in graph.params.items() if not n.startswith("bn1.")}
    theirs["conv1.weight"] = theirs["conv1.weight"] * 2
    theirs["conv1.bias"] = np.ones(64, np.float32)
    found = matched("hrnet", Observed({"conv1": shown("hrnet")["bn1"]}, (), theirs))
    assert graph.params.keys() - found.parameters.keys() == {n for n in graph.params if n.startswith(("conv1.", "bn1."))}


# numbers


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("model", MODELS)
def test_names_that_say_nothing(model, seed):
    values = shown(model)
    seen, truth = nameless(values, seed)
    found = matched(model, Observed(seen, ()))
    assert not found.unmatched_candidate and not wrong(found, truth, values)
    assert {m.how for m in found.matches} == {"value"}
    assert np.median([m.confidence for m in found.matches]) > SURE
    assert len(found.matches) > 0.9 * len(values)  # those of equal numbers and shapes share one


def bfloat16(a):
    bits = np.asarray(a, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize("model", MODELS)
def test_low_precision(model):
    values = shown(model, rounded=bfloat16)
    seen, truth = nameless(values)
    found = matched(model, Observed(seen, (), arithmetic="bfloat16"))
    assert not [w for w in wrong(found, truth, values) if w[2] >= SURE]
    assert len(found.matches) > 0.8 * len(values)


def noise(y, arguments):
    return y + 0.3 * y.std() * np.random.default_rng(8).standard_normal(y.shape)


def permuted(y, arguments):
    return y[..., np.random.default_rng(9).permutation(y.shape[-1])]


def identity(y, arguments):
    return arguments[0]


def second(y, arguments):
    return arguments[1]


BUGS = [
    ("vit", "blocks.0.mlp.gelu", lambda y, a: np.maximum(a[0], 0)),
    ("vit", "blocks.0.attn.qkv", permuted),
    ("vit", "patch_embed.proj", noise),
    ("vit", "blocks.1.attn.attention.softmax", noise),
    ("deit distilled", "blocks.0.norm1", lambda y, a: y * 3),
    ("mobilevit", "stem.conv", lambda y, a: np.roll(y, 1, -1)),
    ("mobilevit", "stages.2.1.transformer.0.attn.proj", noise),
    ("mobilevit", "stages.3.1.conv_fusion.conv", permuted),
    ("hrnet", "stage2.0.branches.0.0.conv1", lambda y, a: np.roll(y, 1, -2)),
    ("hrnet", "stage3.0.fuse_layers.0.1.resize", permuted),
    ("hrvit", "features.3.branches.0.0.attn.to_qkv", noise),
    ("hrvit", "stem.conv2", permuted),
]


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize(("model", "node", "bug"), BUGS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_wrong_value_and_all_behind_it_are_found_by_what_follows_from_them(model, node, bug, seed):
    values = shown(model, {node: bug})
    _, _, golden = subject(model)
    assert np.abs(values[node] - golden[node]).max() > 0.1 * golden[node].std()
    seen, truth = nameless(values, seed)
    found = matched(model, Observed(seen, ()))
    assert not wrong(found, truth, values)
    same = [
        m for m in found.matches if m.value == node and np.array_equal(values[truth[m.candidate]].ravel(), values[node].ravel())
    ]
    assert len(same) == 1 and len(found.unmatched_candidate) <= 0.03 * len(seen), found.unmatched_candidate


@pytest.mark.parametrize(
    ("model", "node", "bug"),
    [("vit", "blocks.0.add", second), ("vit", "blocks.1.mlp.gelu", identity), ("hrnet", "layer1.0.relu", identity)],
    ids=["residual", "gelu", "relu"],
)
def test_a_missing_step(model, node, bug):
    """Its value is shown, and is that of the step before."""
    values = shown(model, {node: bug})
    seen, truth = nameless(values)
    found = matched(model, Observed(seen, ()))
    assert not wrong(found, truth, values) and not found.unmatched_candidate
    assert node in {m.value for m in found.matches}


def test_what_explains_exactly_goes_before_what_explains_nearly():
    """Attention of nearly equal weights gives nearly its own result again if that is taken for the values."""
    even = {
        "blocks.1.attn.attention.softmax": lambda y, arguments: (
            0.02 * (y - y.mean(-1, keepdims=True)) + y.mean(-1, keepdims=True)
        )
    }
    values = shown("vit", even)
    names = ["blocks.0.add_1", "blocks.1.norm1", "blocks.1.attn.qkv", "blocks.1.attn.getitem", "blocks.1.attn.getitem_1",
             "blocks.1.attn.proj", "blocks.1.add", "norm", "head"]  # fmt: skip
    seen = {n: values[n] for n in names} | {"blocks.1.attn.norm": values["blocks.1.attn.reshape_1"]}
    found = matched("vit", Observed(seen, ()))
    assert {m.candidate: m.value for m in found.matches}["blocks.1.attn.norm"] == "blocks.1.attn.reshape_1"


@pytest.mark.parametrize("model", MODELS)
def test_few_values_with_a_bug_between_them(model):
    """Only what blocks return."""
    graph, _, _ = subject(model)
    ends = dict.fromkeys((*graph.aliases.values(), *graph.outputs.values()))
    node = [n for n in graph.nodes if n in ends][len(ends) // 3]
    values = shown(model, {node: noise})
    seen, truth = nameless({n: values[n] for n in graph.nodes if n in ends})
    found = matched(model, Observed(seen, ()))
    assert not [w for w in wrong(found, truth, values) if w[2] >= SURE]
    assert len(found.matches) >= 0.8 * len(seen)


@pytest.mark.parametrize("seed", range(12))
def test_never_wrong_and_sure(seed):
    """Bugs anywhere, of any kind, among values of which many are not shown, in any order."""
    rng = np.random.default_rng(seed)
    model = MODELS[seed % len(MODELS)]
    graph, _, _ = subject(model)
    kinds = [noise, permuted, identity, lambda y, a: y * 2, lambda y, a: rng.standard_normal(y.shape), lambda y, a: y + 1]
    names = list(graph.nodes)
    chosen = rng.choice(names, 2, replace=False)
    bugs = {n: kinds[rng.integers(len(kinds))] for n in chosen}
    bugs = {n: noise if b is identity and graph.nodes[n].inputs[0] in graph.params else b for n, b in bugs.items()}

    def safe(bug, name):
        def run(y, arguments):
            z = np.asarray(bug(y, arguments))
            return z if z.shape == y.shape else y * 2

        return run

    values = shown(model, {n: safe(b, n) for n, b in bugs.items()})
    kept = {n: a for n, a in values.items() if rng.random() < 0.6}
    seen, truth = nameless(kept, seed if seed % 2 else None)
    found = matched(model, Observed(seen, ()))
    assert not [w for w in wrong(found, truth, values) if w[2] >= SURE]


def test_what_is_no_value_of_the_reference_is_listed_with_a_reason():
    values = shown("vit")
    rng = np.random.default_rng(10)
    seen = values | {
        "sigmoid": 1 / (1 + np.exp(-values["blocks.0.mlp.fc1"])),
        "noise": rng.standard_normal((2, 17, 24)).astype(np.float32),
        "odd": rng.standard_normal((5, 11)).astype(np.float32),
        "nan": np.full((2, 17, 24), np.nan, np.float32),
    }
    found = matched("vit", Observed(seen, ()))
    assert found.unmatched_candidate == ("sigmoid", "noise", "odd", "nan")
    assert "of its spread from it" in found.reasons["sigmoid"] and found.reasons["noise"].startswith("nearest to ")
    assert found.reasons["odd"] == "5x11 fits no value of the reference"
    assert found.reasons["nan"] == "holds NaN or infinite values, and its name says nothing"


def test_what_the_candidate_does_not_show_is_listed():
    values = shown("vit")
    found = matched("vit", Observed({"norm": values["norm"], "blocks.0.attn": values["blocks.0.attn.proj"]}, ()))
    graph, _, _ = subject("vit")
    assert len(found.unmatched_reference) == len(graph.nodes) + 1 - 2
    assert {"input", "head", "blocks.0.mlp.fc2", "blocks.1.attn.attention.softmax"} <= set(found.unmatched_reference)
    assert not {"norm", "blocks.0.attn", "blocks.0.attn.proj"} & set(found.unmatched_reference)


def test_nan_is_matched_by_name():
    values = shown("vit")
    bad = values["blocks.0.mlp.fc1"].copy()
    bad[0, 3, 5] = np.nan
    bad[1, 2] = np.inf
    found = matched("vit", Observed(values | {"blocks.0.mlp.fc1": bad}, ()))
    (m,) = (m for m in found.matches if m.value == "blocks.0.mlp.fc1")
    np.testing.assert_array_equal(m.array, bad)
    assert len(found.matches) == len(values)


def test_nothing_is_written_to():
    values = shown("mobilevit", {"stem.conv": noise})
    seen, _ = nameless(values)
    for a in seen.values():
        a.flags.writeable = False
    _, _, golden = subject("mobilevit")
    before = {n: a.copy() for n, a in golden.items()}
    found = matched("mobilevit", Observed(seen, ()))
    for m in found.matches:
        m.array[...] = 0  # the caller's own
    assert all(np.array_equal(a, before[n]) for n, a in golden.items())
    assert all(a.any() for a in seen.values())
