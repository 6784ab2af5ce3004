"""First divergences: right implementations in another order never diverge, wrong steps are found where they are."""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pytest
from helpers.small import SMALL, small_graph
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import erf

from refvit import ops
from refvit.crosscheck.arithmetic import rounded
from refvit.crosscheck.locate import Finding, axes, bisect, judge, yardsticks
from refvit.crosscheck.measure import FACTOR, ratio, worst
from refvit.crosscheck.segments import recompute, segments
from refvit.graph import trace
from refvit.graph.ir import OPS

F = np.float32


@dataclass(frozen=True)
class Shown:
    """As much of a match as is looked at here."""

    name: str
    value: str
    candidate: str
    array: np.ndarray
    how: str = "path"
    apart: bool = False


def weights(seed):
    """Random numbers of the sizes that trained ones have; some channels are nearly silent."""

    def make(shapes):
        rng, flat = np.random.default_rng(seed), {}
        for name, shape in shapes:
            a, leaf = rng.standard_normal(shape), name.rpartition(".")[2]
            if leaf == "running_var":
                a = np.exp(a)
            elif leaf == "weight" and len(shape) == 1:
                a = np.exp(0.5 * a) * np.where(rng.random(shape) < 0.05, 1e-3, 1)
            elif len(shape) > 1 and leaf == "weight":
                a /= math.sqrt(math.prod(shape[1:]))
            else:
                a *= 0.3
            flat[name] = a.astype(F).astype(np.float64)
        return flat

    return make


def image(graph, seed=0):
    rng = np.random.default_rng(seed)
    shape = graph.inputs["input"].shape
    low = OPS["resize"].function(rng.standard_normal((*shape[:2], 4, 5)), size=shape[2:], mode="bilinear", align_corners=False)
    return (low + 0.2 * rng.standard_normal(shape)).astype(F)


# What others do in float32. None of it comes from the package, so that no mistake is made twice.


def product_in_order(a, b):
    y = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), F)
    for k in range(a.shape[-1]):
        y += a[..., :, k, None] * b[..., None, k, :]
    return y


def product_in_halves(a, b):
    k = a.shape[-1] // 2
    return a[..., :k] @ b[..., :k, :] + a[..., k:] @ b[..., k:, :]


def linear_by(product):
    def linear(x, weight, bias=None):
        y = product(x.reshape(-1, x.shape[-1]), weight.T).reshape(*x.shape[:-1], -1)
        return y if bias is None else y + bias

    return linear


def sides(padding):
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    return tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)


def convolution_by(product):
    """Rows of windows times kernels, the taps outermost and the channels in reverse."""

    def conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1):
        (sh, sw), (dh, dw) = ((v, v) if isinstance(v, int) else v for v in (stride, dilation))
        k, c, r, s = weight.shape
        padded = np.pad(x, ((0, 0), (0, 0), *sides(padding)))
        w = sliding_window_view(padded, (dh * (r - 1) + 1, dw * (s - 1) + 1), axis=(2, 3))[:, :, ::sh, ::sw, ::dh, ::dw]
        n, _, p, q, _, _ = w.shape
        rows = w.reshape(n, groups, c, p, q, r, s)[:, :, ::-1].transpose(0, 1, 3, 4, 5, 6, 2).reshape(n, groups, p * q, -1)
        kernels = (
            weight.reshape(groups, k // groups, c, r, s)[:, :, ::-1].transpose(0, 3, 4, 2, 1).reshape(groups, -1, k // groups)
        )
        y = product(np.ascontiguousarray(rows), kernels[None]).swapaxes(-1, -2).reshape(n, k, p, q)
        return y if bias is None else y + bias.reshape(-1, 1, 1)

    return conv2d


def winograd_2x2(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1):
    """F(2x2, 3x3), tile by tile."""
    if weight.shape[2:] != (3, 3) or stride not in (1, (1, 1)) or dilation not in (1, (1, 1)) or groups != 1:
        return OPS["conv2d"].function(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
    (t, b), (l, r) = sides(padding)
    d = np.pad(x, ((0, 0), (0, 0), (t, b + 2), (l, r + 2)))
    p, q = x.shape[2] + t + b - 2, x.shape[3] + l + r - 2
    forward = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], F)
    kernel = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], F)
    back = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], F)
    u = kernel @ weight @ kernel.T
    y = np.zeros((len(x), len(weight), p + 2, q + 2), F)
    for i in range(0, p, 2):
        for j in range(0, q, 2):
            v = forward @ d[:, :, i : i + 4, j : j + 4] @ forward.T
            y[:, :, i : i + 2, j : j + 2] = back @ np.einsum("ncij,kcij->nkij", v, u) @ back.T
    y = y[:, :, :p, :q]
    return y if bias is None else y + bias.reshape(-1, 1, 1)


def softmax_by_exp2(x, *, axis):
    e = x * F(1 / math.log(2))
    e = np.exp2(e - e.max(axis, keepdims=True))
    return e * (1 / np.add.accumulate(e, axis).take([-1], axis))


def layer_norm_in_order(x, weight, bias, *, eps):
    d = F(x.shape[-1])
    centred = x - np.add.accumulate(x, -1)[..., -1:] / d
    return centred * (1 / np.sqrt(np.add.accumulate(centred * centred, -1)[..., -1:] / d + F(eps))) * weight + bias


def batch_norm_folded(x, weight, bias, mean, var, *, eps):
    scale = weight / np.sqrt(var + F(eps))
    shape = (-1, *[1] * (x.ndim - 2))
    return x * scale.reshape(shape) + (bias - mean * scale).reshape(shape)


def mean_in_order(x, *, axes, keepdims=False):
    rest = [a for a in range(x.ndim) if a not in axes]
    rows = x.transpose(*axes, *rest).reshape(-1, *(x.shape[a] for a in rest))
    y = np.add.accumulate(rows, 0)[-1] * F(1 / len(rows))
    return np.expand_dims(y, axes) if keepdims else y


def gelu_by_erf(x, *, approximate):
    return (
        OPS["gelu"].function(x, approximate=approximate)
        if approximate == "tanh"
        else x * (1 + erf(x * F(math.sqrt(0.5)))) * F(0.5)
    )


def silu_by_sigmoid(x):
    return x * (1 / (1 + np.exp(-x)))


OTHERS = {
    "as it is": {},
    "in order": {
        "conv2d": convolution_by(product_in_order), "linear": linear_by(product_in_order), "matmul": product_in_order,
        "softmax": softmax_by_exp2, "layer_norm": layer_norm_in_order, "mean": mean_in_order, "gelu": gelu_by_erf,
    },
    "in halves": {
        "conv2d": convolution_by(product_in_halves), "linear": linear_by(product_in_halves), "matmul": product_in_halves,
        "batch_norm": batch_norm_folded, "silu": silu_by_sigmoid,
    },
    "winograd": {"conv2d": winograd_2x2, "batch_norm": batch_norm_folded, "softmax": softmax_by_exp2, "gelu": gelu_by_erf},
}  # fmt: skip


def fold(node, graph, users, table, values, params):
    """The result of a batch norm computed as one convolution with the one before it; None where there is none."""
    before = graph.nodes.get(node.inputs[0]) if node.op == "batch_norm" else None
    if before is None or before.op != "conv2d" or len(users[before.name]) > 1:
        return None
    weight, bias, mean, var = (params[i] for i in node.inputs[1:])
    scale = weight / np.sqrt(var + F(node.attrs["eps"]))
    old = params[before.inputs[2]] if before.inputs[2] else F(0)
    kernel = params[before.inputs[1]] * scale.reshape(-1, 1, 1, 1)
    x = values[before.inputs[0]]
    return table.get("conv2d", OPS["conv2d"].function)(x, kernel, ((old - mean) * scale + bias).astype(F), **before.attrs)


def execute(graph, x, table=None, folded=False, spoil=None, after=None):
    """Every value that an implementation shows; spoil(node, arguments, value) and after(value) put others in their place."""
    params = {n: a.astype(F) for n, a in graph.params.items()}
    if after is not None:
        params = {n: after(a) for n, a in params.items()}
    values, users, table = {"input": x if after is None else after(x)}, graph.users(), table or {}
    hidden = set()
    for node in graph:
        arguments = [None if i is None else values[i] if i in values else params[i] for i in node.inputs]
        with np.errstate(over="ignore"):
            y = fold(node, graph, users, table, values, params) if folded else None
            if y is None:
                y = table.get(node.op, OPS[node.op].function)(*arguments, **node.attrs)
            else:
                hidden.add(node.inputs[0])
            y = y if spoil is None else spoil(node, arguments, y)
            values[node.name] = y if after is None else after(y)
    return {n: y for n, y in values.items() if n not in hidden}


def show(graph, values, which="all", seed=0):
    rng = np.random.default_rng(seed)
    wanted = {
        "all": set(values), "blocks": set(graph.aliases.values()), "outputs": set(),
        "some": {n for n in values if rng.random() < 0.3},
    }[which] | set(graph.outputs.values())  # fmt: skip
    return [Shown(n, n, f"their {n}", a.astype(np.float64)) for n, a in values.items() if n in wanted and n != "input"]


def small(model, seed=0):
    graph = small_graph(model, weights(seed), expand=True)
    return graph, image(graph, seed)


def largest(findings):
    return max(f.own_ratio for f in findings)


CASES = [
    (model, other, folded, which)
    for i, model in enumerate(("vit", "deit distilled", "mobilevit", "hrnet", "hrnet segmentation", "hrvit segformer"))
    for j, (other, folded) in enumerate((("in order", False), ("in halves", True), ("winograd", i % 2 == 0)))
    for which in [("all", "blocks", "some", "outputs")[(i + j) % 4]]
]


@pytest.mark.parametrize(("model", "other", "folded", "which"), CASES)
def test_right_implementations_do_not_diverge(model, other, folded, which):
    graph, x = small(model, seed=len(model))
    findings = judge(graph, x, show(graph, execute(graph, x, OTHERS[other], folded), which), "float32")
    assert largest(findings) < FACTOR and {f.verdict for f in findings} == {"match"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(120))
def test_right_implementations_of_any_model_do_not_diverge(seed):
    rng = np.random.default_rng(seed)
    graph, x = small(rng.choice(list(SMALL)), seed + 1000)
    values = execute(graph, x, OTHERS[rng.choice(list(OTHERS))], folded=bool(rng.random() < 0.5))
    findings = judge(graph, x, show(graph, values, rng.choice(["all", "blocks", "some", "outputs"]), seed), "float32")
    assert {f.verdict for f in findings} == {"match"}


def changed(**attrs):
    return lambda node, arguments: OPS[node.op].function(*arguments, **{**node.attrs, **attrs})


def edge_padding(node, arguments):
    x = np.pad(arguments[0], ((0, 0), (0, 0), *sides(node.attrs["padding"])), mode="edge")
    return OPS["conv2d"].function(x, *arguments[1:], **{**node.attrs, "padding": 0})


def one_channel(node, arguments):
    y = OPS[node.op].function(*arguments, **node.attrs)
    y[:, np.square(y).sum((0, 2, 3)).argmax()] *= F(1.001)
    return y


def tf32_operands(node, arguments):
    operands = [rounded(a.astype(np.float64), "tf32").astype(F) for a in arguments[:2]]
    return OPS[node.op].function(*operands, *arguments[2:], **node.attrs)


WRONG = [  # model, node, what is computed there
    ("vit", "blocks.0.norm1", changed(eps=1e-5)),
    ("vit", "blocks.1.mlp.gelu", changed(approximate="tanh")),
    ("vit", "blocks.1.attn.attention.scale", changed(factor=0.35)),
    ("vit", "patch_embed.proj", tf32_operands),
    ("vit", "blocks.0.attn.attention.softmax", changed(axis=-2)),
    ("mobilevit", "stages.2.1.conv_kxk.conv", edge_padding),
    ("mobilevit", "stages.1.1.conv1_1x1.bn.batch_norm", changed(eps=1e-3)),
    ("hrnet segmentation", "stage2.0.fuse_layers.0.1.resize", changed(align_corners=True)),
    ("hrnet segmentation", "layer1.0.bn2", one_channel),
]


@pytest.mark.parametrize("which", ["all", "blocks"])
@pytest.mark.parametrize(("model", "name", "wrong"), WRONG, ids=[f"{m} {n}" for m, n, _ in WRONG])
def test_a_wrong_step_is_found_where_it_is(model, name, wrong, which):
    """The first that diverges holds the step, nothing else diverges, and what follows has inherited it or is right again."""
    graph, x = small(model, seed=7)
    values = execute(
        graph, x, OTHERS["in halves"], spoil=lambda node, arguments, y: wrong(node, arguments) if node.name == name else y
    )
    findings = judge(graph, x, show(graph, values, which), "float32")
    diverging = [f for f in findings if f.verdict == "diverges"]
    assert len(diverging) == 1 and name in [n.name for n in diverging[0].segment.nodes]
    place = findings.index(diverging[0])
    assert all(f.verdict == "match" for f in findings[:place])
    assert {f.verdict for f in findings[place + 1 :]} <= {"match", "inherited"}
    first = diverging[0]
    assert first.total_ratio > FACTOR and first.own_ratio > FACTOR and first.own.where != "nowhere"
    assert first.spread[0] >= first.own_ratio >= 0.5 * first.spread[0] and first.spread[1] >= first.spread[0]
    assert (first.scope, first.op) == (graph.nodes[first.value].scope, graph.nodes[first.value].op)
    if which == "all":
        assert first.value == name and any(f.verdict == "inherited" for f in findings[place + 1 :])


def test_a_residual_stream_is_not_blamed():
    """x + f(x) with a wrong x is right; so is a wrong f(x), added rightly."""
    graph, x = small("vit")
    values = execute(graph, x, spoil=lambda node, _, y: y * F(1.01) if node.name in ("add", "blocks.1.mlp.fc2") else y)
    found = {f.value: f for f in judge(graph, x, show(graph, values), "float32")}
    assert [f.value for f in found.values() if f.verdict == "diverges"] == ["add", "blocks.1.mlp.fc2"]
    for name in ("blocks.0.add", "blocks.0.add_1", "blocks.1.add", "blocks.1.add_1"):
        assert found[name].verdict == "inherited" and found[name].own_ratio < 2 and found[name].total_ratio > 1000


def test_of_a_silent_block_the_shown_value_after_it_is_found():
    """Where the wrong value itself is not shown, the next shown one holds it."""
    graph, x = small("mobilevit")
    values = execute(graph, x, spoil=lambda node, _, y: y * F(1.01) if node.name == "stages.2.1.transformer.0.mlp.fc1" else y)
    findings = judge(graph, x, show(graph, values, "outputs"), "float32")
    assert [f.verdict for f in findings] == ["diverges"] and findings[0].segment.sources == ("input",)
    assert findings[0].total == findings[0].own
    few = [m for m in show(graph, values) if m.value in ("stages.2.0.conv3_1x1.bn.batch_norm", graph.aliases["stages.2.1"])]
    before, after, output = judge(graph, x, few, "float32")
    assert (before.verdict, after.verdict, output.verdict) == ("match", "diverges", "missing")
    span = bisect(graph, after.segment)
    assert span.nodes == tuple(n.name for n in after.segment.nodes) and len(span.nodes) > 30
    assert "stages.2.1" in span.blocks and not any(b.startswith("stages.2.1.") for b in span.blocks)


def test_bisecting_asks_for_the_middle():
    graph, _ = small("vit")
    (segment,) = segments(graph, graph.outputs.values())
    span = bisect(graph, segment)
    assert span.ask[0] in ("blocks.0", "blocks.1.norm1") and len(span.ask) == 3
    half = {**graph.aliases, **{n: n for n in graph.nodes}}[span.ask[0]]
    first, second = segments(graph, [half, segment.value])
    assert second.sources == (half,) and abs(len(first.nodes) - len(second.nodes)) < 0.2 * len(segment.nodes)
    (single,) = (s for s in segments(graph, graph.nodes) if s.value == "norm")
    assert bisect(graph, single).ask == () and bisect(graph, single).nodes == ("norm",)
    _, parallel = segments(graph, ["blocks.0.norm1", "blocks.0.attn.attention.matmul"])
    assert set(bisect(graph, parallel).ask) < {n.name for n in parallel.nodes}  # no value holds all, but some are asked for


def test_nan_is_found_where_it_comes_from():
    graph, x = small("vit")

    def spoil(node, arguments, y):
        if node.name == "blocks.0.mlp.fc1":
            y = y.copy()
            y[1, 3, 5] = np.nan
        return y

    findings = judge(graph, x, show(graph, execute(graph, x, spoil=spoil)), "float32")
    (first,) = (f for f in findings if f.verdict == "diverges")
    assert first.value == "blocks.0.mlp.fc1" and first.own.bad == 1 and first.own_ratio == math.inf
    assert first.own.where == "100 % of the NaN or infinite values in image 1 of 2, token 3 of 17, channel 5 of 96"
    last = findings[-1]
    assert last.verdict == "inherited" and last.total_ratio == math.inf and last.own_ratio < FACTOR


def test_an_input_of_its_own_is_a_finding_and_no_more():
    graph, x = small("vit")
    values = execute(graph, (x * F(1.001)).astype(F))
    theirs = [Shown("input", "input", "pixel_values", values["input"].astype(np.float64)), *show(graph, values)]
    findings = judge(graph, x, theirs, "float32")
    assert [f.value for f in findings if f.verdict == "diverges"] == ["input"]
    first = findings[0]
    assert (first.op, first.scope, first.segment.nodes) == ("input", "", ()) and first.own.largest == pytest.approx(
        1e-3, rel=1e-2
    )
    same = judge(graph, x, [Shown("input", "input", "x", x.astype(np.float64)), *show(graph, execute(graph, x))], "float32")
    assert {f.verdict for f in same} == {"match"}
    hidden = judge(graph, x, theirs[1:], "float32")
    assert [f.value for f in hidden if f.verdict == "diverges"] == ["patch_embed.proj"]


def test_missing_outputs_are_findings():
    graph = trace(lambda x, p: {"map": ops.relu(x), "rows": ops.sigmoid(x).reshape(12, 5)}, (1, 3, 4, 5), {})
    x = image(graph)
    values = execute(graph, x)
    map_, rows = (graph.outputs[n] for n in ("map", "rows"))
    findings = judge(graph, x, [Shown(rows, rows, "r", values[rows])], "float32")
    assert [(f.name, f.verdict) for f in findings] == [("map", "missing"), (rows, "match")]
    missing = findings[0]
    assert missing.total_ratio == math.inf and missing.own.where == "not shown" and missing.candidate == ""
    assert missing.shape == (1, 3, 4, 5)
    unshaped = [Shown("sigmoid", "sigmoid", "s", values["sigmoid"]), Shown(map_, map_, "m", values[map_])]
    assert {f.verdict for f in judge(graph, x, unshaped, "float32")} == {"match"}  # rows is the sigmoid, only reshaped
    assert [f.verdict for f in judge(graph, x, [], "float32")] == ["missing", "missing"]


def test_findings_are_in_graph_order_whatever_the_matches_are_in():
    graph, x = small("vit")
    shown = show(graph, execute(graph, x))
    findings = judge(graph, x, shown[::-1], "float32")
    assert [f.value for f in findings] == list(graph.nodes) and all(isinstance(f, Finding) for f in findings)
    assert [f.candidate for f in findings] == [f"their {n}" for n in graph.nodes]
    twice = judge(graph, x, [*shown, dataclasses.replace(shown[3], candidate="again", array=shown[3].array + 1)], "float32")
    again = [f for f in twice if f.value == shown[3].value]
    assert [(f.candidate, f.verdict) for f in again] == [(shown[3].candidate, "match"), ("again", "diverges")]


def spoiled(graph, x, name, **fields):
    """A right run, with one value other than what the next ones were computed from."""
    values = execute(graph, x)
    values[name] = values[name] * F(1.005)
    return [dataclasses.replace(m, **fields) if m.value == name else m for m in show(graph, values)]


@pytest.mark.parametrize(("how", "verdict"), [("path", "diverges"), ("value", "doubtful")])
def test_what_is_right_from_the_input_on_is_right_whatever_is_shown_before_it(how, verdict):
    """What is shown before it is not what it was computed from; by its numbers alone it is not even sure to be that value."""
    graph, x = small("hrnet segmentation")
    name = "stage2.0.branches.0.0.bn1"
    findings = judge(graph, x, spoiled(graph, x, name, how=how), "float32")
    assert [(f.value, f.verdict) for f in findings if f.verdict != "match"] == [(name, verdict)]
    after = next(f for f in findings if f.value == "stage2.0.branches.0.0.relu")
    assert after.segment.sources == ("input",) and after.own == after.total and after.own_ratio < FACTOR


def test_a_wrong_value_that_others_are_computed_from_is_not_doubtful():
    graph, x = small("hrnet segmentation")
    name = "stage2.0.branches.0.0.bn1"
    values = execute(graph, x, spoil=lambda node, _, y: y * F(1.005) if node.name == name else y)
    shown = [dataclasses.replace(m, how="value") for m in show(graph, values)]
    assert [f.value for f in judge(graph, x, shown, "float32") if f.verdict == "diverges"] == [name]


def test_of_right_sources_a_wrong_step_diverges_however_little_it_does_to_the_whole():
    """A deep value is allowed more than its last step is, and yet that step is wrong."""
    graph, x = small("vit")
    name = list(graph.nodes)[-1]
    values = execute(graph, x)
    values[name] = values[name] + F(1.4e-6) * np.abs(values[name]).max()
    for apart, verdict in ((False, "diverges"), (True, "match")):  # of another run than its sources it is judged by itself
        shown = [dataclasses.replace(m, apart=apart and m.value == name) for m in show(graph, values)]
        (last,) = (f for f in judge(graph, x, shown, "float32") if f.value == name)
        assert last.total_ratio < FACTOR and last.verdict == verdict
    values[name] = values[name] * F(1.2)
    shown = [dataclasses.replace(m, apart=m.value == name) for m in show(graph, values)]
    assert [f.value for f in judge(graph, x, shown, "float32") if f.verdict == "diverges"] == [name]


def test_what_is_called_like_a_value_and_cannot_be_it_is_missing():
    graph, x = small("vit")
    shown = [m for m in show(graph, execute(graph, x)) if m.value != "blocks.0.add"]
    output = graph.outputs["output"]
    for given, misfits, missing in (
        (shown, {"theirs": "blocks.0.add"}, [("blocks.0.add", "theirs")]),
        (shown, {"theirs": "blocks.0.norm1"}, []),  # another name shows that
        (shown[:-1], {"theirs": output}, [(output, "theirs")]),
        (shown[:-1], {}, [(output, "")]),
    ):
        findings = judge(graph, x, given, "float32", misfits=misfits)
        assert [(f.value, f.candidate) for f in findings if f.verdict == "missing"] == missing


HALVES = {
    "float16": lambda a: a.astype(np.float16).astype(F),
    "bfloat16": lambda a: rounded(a.astype(np.float64), "bfloat16").astype(F),
}


@pytest.mark.parametrize("model", ["vit", "mobilevit", "hrnet segmentation"])
@pytest.mark.parametrize("arithmetic", list(HALVES))
def test_half_precision_is_judged_as_such(arithmetic, model):
    graph, x = small(model)
    values = execute(graph, x, OTHERS["in halves"], after=HALVES[arithmetic])
    for which in ("all", "blocks", "outputs"):
        assert {f.verdict for f in judge(graph, x, show(graph, values, which), arithmetic)} == {"match"}
    as_float32 = judge(graph, x, show(graph, values), "float32")
    assert as_float32[0].own_ratio > 100 and sum(f.verdict == "diverges" for f in as_float32) > len(as_float32) / 3


@pytest.mark.parametrize("kind", ["nearest", "cut off"])
def test_tf32_is_judged_as_such(kind):
    def cut(a):
        return (np.ascontiguousarray(a).view(np.uint32) & np.uint32(0xFFFFE000)).view(F)

    narrow = cut if kind == "cut off" else (lambda a: rounded(a.astype(np.float64), "tf32").astype(F))

    def product(op):
        return lambda x, w, *rest, **attrs: OPS[op].function(narrow(x), narrow(w), *rest, **attrs)

    graph, x = small("hrnet segmentation")
    values = execute(graph, x, {op: product(op) for op in ("conv2d", "linear", "matmul")})
    findings = judge(graph, x, show(graph, values), "tf32")
    assert {f.verdict for f in findings} == {"match"}
    wrong = [f for f in judge(graph, x, show(graph, values), "float32") if f.verdict == "diverges"]
    assert wrong[0].op == "conv2d" and {f.op for f in wrong} <= {"conv2d", "linear", "matmul"}
    values["stage2.0.branches.0.0.bn1"] = values["stage2.0.branches.0.0.bn1"] * F(1.0001)  # no product: float32 in tf32 as well
    findings = judge(graph, x, show(graph, values), "tf32")
    assert [f.value for f in findings if f.verdict == "diverges"] == ["stage2.0.branches.0.0.bn1", "stage2.0.branches.0.0.relu"]


def test_float64_is_judged_as_such():
    graph, x = small("vit")
    wide = {n: a.astype(np.float64) for n, a in execute(graph, x).items()}
    assert largest(judge(graph, x, show(graph, wide), "float64")) > 1e6  # float32 is far from that
    values = {"input": x.astype(np.float64)}
    for node in graph:
        arguments = [values[i] if i in values else graph.params[i] for i in node.inputs]
        function = {"matmul": lambda a, b: a[..., ::-1] @ b[..., ::-1, :]}.get(node.op, OPS[node.op].function)
        values[node.name] = function(*arguments, **node.attrs)
    findings = judge(graph, x, show(graph, values), "float64")
    assert {f.verdict for f in findings} == {"match"} and any(f.own_ratio > 0 for f in findings)
    values["blocks.1.add"] = values["blocks.1.add"] * (1 + 1e-12)
    found = judge(graph, x, show(graph, values), "float64")
    assert next(f.value for f in found if f.verdict == "diverges") == "blocks.1.add"


def quantised_run(graph, x, zero, wrong=None):
    """An int8 implementation with scales that fit, some values saturated, weights in int8, sums exact."""
    values = {"input": x.astype(np.float64)}
    scales = {}
    for node in graph:
        arguments = [None if i is None else values[i] if i in values else graph.params[i] for i in node.inputs]
        if node.op in ("conv2d", "linear"):
            unit = np.abs(arguments[1]).max() / 127
            arguments[1] = np.rint(arguments[1] / unit) * unit
        y = np.asarray(OPS[node.op].function(*arguments, **node.attrs))
        if node.op in ("conv2d", "linear", "relu", "add", "batch_norm", "resize"):
            low, high = (0, 255) if zero else (-128, 127)
            offset = np.rint(255 * max(0.0, -y.min()) / np.ptp(y)) if zero else 0.0
            scale = 0.95 * (np.ptp(y) / 255 if zero else np.abs(y).max() / 127)
            y = (np.clip(np.floor(y / scale + 0.5) + offset, low, high) - offset) * scale
            scales[node.name] = (float(scale), float(offset))
        if node.name == wrong:
            y = y + 8 * scales[node.name][0]
        values[node.name] = y
    return values, scales


@pytest.mark.parametrize("zero", [True, False], ids=["uint8", "int8"])
def test_int8_is_judged_by_its_scales(zero):
    graph, x = small("hrnet segmentation")
    values, scales = quantised_run(graph, x, zero)
    for which in ("all", "blocks"):
        findings = judge(graph, x, show(graph, values, which), "int8", scales)
        assert all(f.verdict == "match" for f in findings)
    values, scales = quantised_run(graph, x, zero, wrong="stage2.0.branches.1.0.bn2")
    findings = judge(graph, x, show(graph, values), "int8", scales)
    assert [f.value for f in findings if f.verdict == "diverges"] == ["stage2.0.branches.1.0.bn2"]


def test_float16_overflow_is_no_divergence_where_float16_overflows():
    graph = trace(lambda x, p: {"y": ops.scale(ops.scale(x, factor=300.0), factor=300.0)}, (1, 3, 8, 8), {})
    x = image(graph)
    values = execute(graph, x, after=HALVES["float16"])
    assert np.isinf(values["scale_1"]).any()
    assert {f.verdict for f in judge(graph, x, show(graph, values), "float16")} == {"match"}
    assert [f.value for f in judge(graph, x, show(graph, values), "bfloat16") if f.verdict == "diverges"] == ["scale_1"]


def test_yardsticks_measure_hypotheses():
    """With the right change the residual is rounding, measured by what that change costs itself."""
    graph, x = small("vit")
    name = "blocks.0.norm1"
    values = execute(graph, x, spoil=lambda node, a, y: changed(eps=0.1)(node, a) if node.name == name else y)
    findings = judge(graph, x, show(graph, values), "float32")
    first = next(f for f in findings if f.verdict == "diverges")
    known = {n: a.astype(np.float64) for n, a in values.items()}
    nodes = {name: dataclasses.replace(graph.nodes[name], attrs={"eps": 0.1})}
    want = recompute(graph, first.segment, known, nodes=nodes)
    usual = yardsticks(graph, first.segment, known, "float32", nodes=nodes)
    again = yardsticks(graph, first.segment, known, "float32", nodes=nodes, want=want)
    assert usual == again and len(usual) == 3 and len({u.rms for u in usual}) == 3
    residual = ratio(_errors(values[name], want), worst(usual), "float32")
    assert residual < 2 < first.own_ratio
    assert ratio(_errors(values[name], want), first.yardstick, "float32") < 2


def _errors(got, want):
    from refvit.crosscheck.measure import errors

    return errors(got.astype(np.float64), want)


def test_axes_have_names_where_the_graph_tells_them():
    vit, _ = small("vit")
    assert axes(vit, "blocks.0.attn.attention.softmax") == ("image", "head", "token", "key")
    assert axes(vit, "blocks.0.attn.attention.matmul_1") == ("image", "head", "token", "channel")
    assert axes(vit, "patch_embed.proj") is axes(vit, "blocks.0.norm1") is axes(vit, "input") is None
    hrvit, _ = small("hrvit")
    stripe = "features.1.branches.0.0.attn.stripe_attention"
    assert axes(hrvit, f"{stripe}.softmax") == ("image", "window", "head", "token", "key")
    assert axes(hrvit, f"{stripe}.scale") == ("image", "window", "head", "token", "channel")
