"""Wrong implementations of small models, made without refvit's hypotheses: a float32 run in which one thing is done otherwise.

Every injection is written from the convention's definition, by other formulas than the table's where there are any: loops,
einsum, tricks with parameters. `CONVENTIONS` are those that the table has, with the cause that names them; `STRANGE` are bugs
that it has not.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from helpers.small import SMALL
from scipy import special

from refvit.crosscheck.locate import judge
from refvit.crosscheck.matching import Match
from refvit.graph import trace
from refvit.graph.ir import OPS
from refvit.models import architecture

F = np.float32


@dataclass
class Bug:
    """nodes: name -> function of the node's own arguments; params: name -> array; x: of the input; answer: of the outputs."""

    nodes: dict = field(default_factory=dict)
    params: dict = field(default_factory=dict)
    x: object = None
    answer: object = None
    places: tuple = ()


def draw(named, seed):
    """Random parameters that keep the size of what goes through them; norms near 1, and statistics as after training."""
    rng, flat = np.random.default_rng(seed), {}
    for name, shape in named:
        leaf = name.rpartition(".")[2]
        if leaf == "running_var":
            a = np.exp(rng.normal(0, 0.5, shape))
        elif leaf == "weight" and len(shape) == 1:
            a = 1 + 0.25 * rng.standard_normal(shape)
        elif leaf in ("bias", "running_mean"):
            a = 0.2 * rng.standard_normal(shape)
        elif leaf in ("pos_embed", "cls_token", "dist_token"):
            a = 0.5 * rng.standard_normal(shape)
        else:
            a = 1.3 * rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5
        flat[name] = a.astype(F).astype(np.float64)
    return flat


def picture(shape, seed):
    """Smooth noise with correlated channels, normalised."""
    rng = np.random.default_rng(seed)
    n, c, h, w = shape
    coarse = rng.standard_normal((n, c + 1, (h + 3) // 4, (w + 3) // 4)).repeat(4, 2).repeat(4, 3)[:, :, :h, :w]
    x = (
        0.6 * coarse[:, :c]
        + 0.6 * coarse[:, c:]
        + 0.3 * rng.standard_normal((n, c, h, w))
        + np.array([0.4, 0, -0.3])[:, None, None]
    )
    return x.astype(F)


def run(graph, x, bug=None):
    """Every value of the graph in float32, with the bug in it."""
    bug = bug or Bug()
    (source,) = graph.inputs
    values = {n: np.asarray(a, F) for n, a in {**graph.params, **bug.params}.items()}
    values[source] = np.asarray(bug.x(x), F) if bug.x else x
    with np.errstate(all="ignore"):
        for node in graph:
            arguments = [None if i is None else values[i] for i in node.inputs]
            if node.name in bug.nodes:
                y = bug.nodes[node.name](*arguments)
            else:
                y = OPS[node.op].function(*arguments, **node.attrs)
            values[node.name] = np.asarray(y, F)
            assert values[node.name].shape == node.shape, node.name
        if bug.answer:
            for value in graph.outputs.values():
                values[value] = np.asarray(bug.answer(values[value]), F)
    return {n: a for n, a in values.items() if n not in graph.params and n != source}


def build(model, seed, shape=None):
    """(graph, input) of an entry of SMALL, at another input shape if one is given."""
    name, config, own = SMALL[model]
    arch = architecture(name)
    config, shape = config or arch.config, shape or own
    graph = trace(arch.forward, shape, draw(arch.parameters(config), seed), expand=True, config=config)
    return graph, picture(shape, seed)


ACTS = ("gelu", "relu", "silu", "hardswish")


def shown(graph, how, seed=0):
    """Which values a candidate shows: "nodes" all, "modules" what hooks on torch modules see, "blocks" some, "outputs"."""
    outputs = set(graph.outputs.values())
    if how == "nodes":
        return set(graph.nodes)
    if how == "outputs":
        return outputs
    ends = {v for path, v in graph.aliases.items() if "attention" not in path.rpartition(".")[2] and v in graph.nodes}
    if how == "blocks":
        rng = np.random.default_rng(seed)
        return {v for v in sorted(ends) if rng.random() < 0.4} | outputs
    owns = {n.name for n in graph if any(i in graph.params for i in n.sources) and n.op not in ("broadcast", "add")}
    return owns | ends | outputs | {n.name for n in graph if n.op in ACTS}


def findings(graph, x, values, names, arithmetic="float32"):
    """What `judge` says of a candidate that shows these values, and what is known of it."""
    (source,) = graph.inputs
    matches = [Match(n, n, n, "as is", "path", 1.0, values[n].astype(np.float64)) for n in graph.nodes if n in names]
    found = judge(graph, x, matches, arithmetic)
    return found, {source: x.astype(np.float64), **{m.value: m.array for m in matches}}


# what injections are made of


def pick(graph, rng, op, wanted=lambda node: True):
    nodes = [n for n in graph if n.op == op and wanted(n)]
    return nodes[rng.integers(len(nodes))] if nodes else None


def users(graph, name):
    return [n for n in graph if name in n.sources]


def at(node, function):
    return None if node is None else Bug({node.name: function}, places=(node.name,))


CONVENTIONS, STRANGE = {}, {}


def convention(cause):
    def add(function):
        CONVENTIONS[function.__name__] = (cause, function)
        return function

    return add


def strange(function):
    STRANGE[function.__name__] = ("unknown", function)
    return function


# activations


@convention("gelu-tanh")
def tanh_gelu(graph, rng):
    def f(x):
        return x * (1 / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))

    return at(pick(graph, rng, "gelu", lambda n: n.attrs["approximate"] == "none"), f)


@convention("gelu-erf")
def erf_gelu(graph, rng):
    node = pick(graph, rng, "gelu", lambda n: n.attrs["approximate"] == "tanh")
    return at(node, lambda x: 0.5 * x * special.erfc(-x / math.sqrt(2)))


@convention("gelu-quick")
def sigmoid_gelu(graph, rng):
    return at(pick(graph, rng, "gelu"), lambda x: x * special.expit(1.702 * x))


@convention("activation-swapped")
def other_activation(graph, rng):
    op = ("gelu", "relu", "silu", "hardswish")[rng.integers(4)]
    others = {
        "relu": lambda x: x * (x > 0), "silu": lambda x: x * special.expit(x), "relu6": lambda x: x.clip(0, 6),
        "hardswish": lambda x: x * (x + 3).clip(0, 6) / 6, "leaky": lambda x: np.maximum(x, 0.01 * x),
    }  # fmt: skip
    name = sorted(set(others) - {op})[rng.integers(len(set(others) - {op}))]
    return at(pick(graph, rng, op), others[name])


@convention("activation-missing")
def no_activation(graph, rng):
    nodes = [n for n in graph if n.op in ACTS]
    return at(nodes[rng.integers(len(nodes))], lambda x: x)


@convention("activation-extra")
def one_more_activation(graph, rng):
    def wanted(n):
        return n.op in ("batch_norm", "linear") and not any(u.op in ACTS for u in users(graph, n.name)) and len(n.shape) > 2

    nodes = [n for n in graph if wanted(n)]
    kinds = {n.op for n in graph if n.op in ("relu", "silu")}
    if not nodes or not kinds:
        return None
    node, kind = nodes[rng.integers(len(nodes))], sorted(kinds)[0]
    act = {"relu": lambda y: y.clip(0, None), "silu": lambda y: y * special.expit(y)}[kind]
    return at(node, lambda *a: act(OPS[node.op].function(*a, **node.attrs)))


@convention("activation-order")
def activation_before_sum(graph, rng):
    node = pick(graph, rng, "relu", lambda n: graph.nodes[n.inputs[0]].op == "add")
    if node is None:
        return None
    add = graph.nodes[node.inputs[0]].name
    return Bug({add: lambda a, b: a.clip(0, None) + b, node.name: lambda x: x}, places=(add, node.name))


# norms


def _norm(x, w, b, eps, var=None):
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True) if var is None else var
    return (x - mean) * (1 / np.sqrt(var + F(eps))) * w + b


@convention("layer-norm-eps")
def layer_norm_eps(graph, rng):
    node = pick(graph, rng, "layer_norm")
    eps = rng.choice([1e-3, 1e-2, 2e-3, 5e-4])
    return at(node, lambda x, w, b: _norm(x, w, b, eps))


@convention("layer-norm-unbiased")
def layer_norm_unbiased(graph, rng):
    node = pick(graph, rng, "layer_norm")
    return at(node, lambda x, w, b: (x - x.mean(-1, keepdims=True)) / (x.std(-1, ddof=1, keepdims=True) + F(1e-6)) * w + b)


@convention("norm-eps-outside")
def eps_outside(graph, rng):
    node = pick(graph, rng, "layer_norm")
    return at(node, lambda x, w, b: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + F(1e-3)) * w + b)


@convention("layer-norm-rms")
def rms_norm(graph, rng):
    node = pick(graph, rng, "layer_norm")
    return at(node, lambda x, w, b: x / np.sqrt((x**2).mean(-1, keepdims=True) + F(1e-6)) * w)


@convention("norm-affine")
def no_affine(graph, rng):
    op = ("layer_norm", "batch_norm")[rng.integers(2)]
    node = pick(graph, rng, op)
    if node is None:
        return None
    return at(node, lambda x, w, b, *s: OPS[op].function(x, np.ones_like(w), np.zeros_like(b), *s, **node.attrs))


@convention("layer-norm-missing")
def no_layer_norm(graph, rng):
    return at(pick(graph, rng, "layer_norm"), lambda x, w, b: x)


@convention("batch-norm-missing")
def no_batch_norm(graph, rng):
    return at(pick(graph, rng, "batch_norm"), lambda x, *p: x)


@convention("batch-norm-twice")
def batch_norm_twice(graph, rng):
    node = pick(graph, rng, "batch_norm")
    if node is None:
        return None
    f = OPS["batch_norm"].function
    return at(node, lambda x, *p: f(f(x, *p, **node.attrs), *p, **node.attrs))


def _c(a, x):
    return a.reshape((1, -1) + (1,) * (x.ndim - 2))


@convention("batch-norm-eps")
def batch_norm_eps(graph, rng):
    eps = F(rng.choice([1e-3, 1e-2, 3e-4]))
    return at(
        pick(graph, rng, "batch_norm"),
        lambda x, w, b, m, v: x * _c(w / np.sqrt(v + eps), x) + _c(b - m * w / np.sqrt(v + eps), x),
    )


@convention("batch-norm-swapped")
def mean_for_variance(graph, rng):
    node = pick(graph, rng, "batch_norm")
    if node is None:
        return None
    return at(node, lambda x, w, b, m, v: (x - _c(v, x)) / np.sqrt(_c(abs(m), x) + F(node.attrs["eps"])) * _c(w, x) + _c(b, x))


@convention("batch-norm-training")
def training_mode(graph, rng):
    def f(x, w, b, m, v):
        axes = tuple(a for a in range(x.ndim) if a != 1)
        return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + F(1e-5)) * _c(w, x) + _c(b, x)

    return at(pick(graph, rng, "batch_norm", lambda n: np.prod(n.shape) / n.shape[1] > 8), f)


@convention("batch-norm-folding")
def shift_lost(graph, rng):
    node = pick(graph, rng, "batch_norm")
    return at(node, lambda x, w, b, m, v: x * _c(w / np.sqrt(v + F(1e-5)), x))


# attention


def _logit_scale(graph, rng):
    return pick(graph, rng, "scale", lambda n: "attention" in n.scope)


@convention("attention-scale")
def no_scale(graph, rng):
    node = _logit_scale(graph, rng)
    return at(node, lambda q: q.copy())


@convention("attention-scale")
def scale_by_d(graph, rng):
    node = _logit_scale(graph, rng)
    return at(node, lambda q: q / F(q.shape[-1]))


@convention("softmax-axis")
def softmax_over_queries(graph, rng):
    def f(x):
        e = np.exp(x - x.max(-2, keepdims=True))
        return e / e.sum(-2, keepdims=True)

    return at(pick(graph, rng, "softmax"), f)


@convention("qkv-roles")
def keys_and_values(graph, rng):
    node = pick(graph, rng, "transpose", lambda n: len(n.shape) == 5 and n.shape[0] == 3 and n.scope.endswith("attn"))
    order = [[0, 2, 1], [1, 0, 2], [2, 1, 0], [1, 2, 0]][rng.integers(4)]
    return at(node, lambda x: x.transpose(2, 0, 3, 1, 4)[order])


@convention("qkv-order")
def heads_outside(graph, rng):
    """Rows of the projection are read as heads, then q, k, v."""
    node = pick(graph, rng, "reshape", lambda n: len(n.shape) == 5 and n.shape[2] == 3 and n.scope.endswith("attn"))
    if node is None:
        return None
    n, l, _, h, d = node.shape
    return at(node, lambda x: np.einsum("nlhkd->nlkhd", x.reshape(n, l, h, 3, d)))


@convention("head-order")
def heads_inside(graph, rng):
    """Merged as (d, heads)."""
    node = pick(
        graph,
        rng,
        "reshape",
        lambda n: len(n.shape) == 3 and n.scope.endswith("attn") and graph.nodes[n.inputs[0]].op == "transpose",
    )
    return at(node, lambda x: np.swapaxes(x, -1, -2).reshape(node.shape))


@convention("head-order")
def transpose_forgotten(graph, rng):
    node = pick(graph, rng, "transpose", lambda n: n.scope.endswith("attn") and n.attrs["axes"] == (0, 2, 1, 3))
    return at(node, lambda x: x.reshape(node.shape))


@convention("attention-mask")
def no_mask(graph, rng):
    return at(pick(graph, rng, "mask_tail"), lambda x: x.copy())


@convention("stripe-order")
def stripes_swapped(graph, rng):
    """Rows of a stripe and stripes are exchanged."""

    def wanted(n):
        return (
            n.op == "reshape"
            and "stripe_attention" in n.scope
            and len(n.shape) == 4
            and len(graph.nodes[n.inputs[0]].shape) == 5
            and graph.nodes[n.inputs[0]].shape[-2] > 1
        )

    node = pick(graph, rng, "reshape", wanted)
    if node is None:
        return None
    return at(node, lambda x: np.einsum("nhdcs->nhdsc", x).reshape(node.shape))


def _attended(q, k, v, stripe, d):
    """Softmax attention within stripes of rows, one query at a time. q, k, v (n, c, h, w), heads of d channels."""
    y = np.zeros_like(q)
    n, c, h, w = q.shape
    for b, top, head in np.ndindex(n, -(-h // stripe), c // d):
        rows, part = slice(top * stripe, (top + 1) * stripe), slice(head * d, (head + 1) * d)
        a, e, f = (x[b, part, rows].reshape(d, -1) for x in (q, k, v))
        missing = (stripe - (h - top * stripe)) * w if h < (top + 1) * stripe else 0
        for i in range(a.shape[1]):
            weights = np.exp(a[:, i] @ e / math.sqrt(d))
            y[b, part, top * stripe + i // w, i % w] = f @ weights / (weights.sum() + missing * math.exp(-100))
    return y


def _cross(graph, rng):
    """Of one attention block: the concatenation, and (node, argument) of the maps q, k and v of both halves."""
    node = pick(graph, rng, "concat", lambda n: n.scope.endswith(".attn") and len(n.inputs) == 2)
    if node is None:
        return None, []
    reads = []
    for scope in (f"{node.scope}.stripe_attention", f"{node.scope}.stripe_attention_1"):
        inside = {n.name for n in graph if n.scope == scope}
        reads.append([n for n in graph if n.name in inside and n.inputs[0] not in inside and len(n.sources) == 1][:3])
    return node, reads


@convention("stripe-width")
def wider_stripes(graph, rng):
    node, reads = _cross(graph, rng)
    if node is None:
        return None
    stripe, seen = int(rng.choice([1, 3, 4])), {}
    first = next(n for n in graph if n.scope == reads[0][0].scope and n.op == "reshape")
    if first.shape[-1] // graph.nodes[reads[0][0].inputs[0]].shape[3] == stripe:
        return None
    nodes = {}
    for half, three in enumerate(reads):
        for i, n in enumerate(three):

            def keep(x, n=n, key=(half, i)):
                seen[key] = x
                return OPS[n.op].function(x, **n.attrs)

            nodes[n.name] = keep

    def joined(a, b):
        d = first.shape[2]
        rows = _attended(*(seen[0, i] for i in range(3)), stripe, d)
        columns = _attended(*(seen[1, i] for i in range(3)), stripe, d)
        return np.concatenate([rows, columns.swapaxes(2, 3)], 1)

    return Bug({**nodes, node.name: joined}, places=(node.name,))


@convention("stripe-orientation")
def stripes_turned(graph, rng):
    """The first half of the channels in columns: the halves change places before and behind."""
    node, _ = _cross(graph, rng)
    if node is None:
        return None
    nodes = {node.name: lambda a, b: np.concatenate([b, a], 1)}
    for n in graph:
        if n.op == "getitem" and n.scope == node.scope and len(n.shape) == 4:
            half = n.shape[1]
            first = n.attrs["index"][1].start is None
            nodes[n.name] = lambda x, first=first, half=half: x[:, half:] if first else x[:, :half]
    return Bug(nodes, places=(node.name,))


@convention("attention-groups")
def attention_within_patches(graph, rng):
    node = pick(graph, rng, "softmax", lambda n: "transformer" in n.scope)
    if node is None:
        return None
    images = next(iter(graph.inputs.values())).shape[0]
    scores = graph.nodes[node.inputs[0]]
    q, k = {}, {}
    product = next(n for n in users(graph, node.name))

    def logits(a, b):
        q["a"], k["a"] = a, b.swapaxes(-1, -2)
        return a @ b

    def mixed(weights, c):
        y = np.empty_like(c)
        area, (_, heads, l, _) = c.shape[0] // images, c.shape
        for b, h, t in np.ndindex(images, heads, l):
            rows = slice(b * area, (b + 1) * area)
            e = np.exp(q["a"][rows, h, t] @ k["a"][rows, h, t].T)
            y[rows, h, t] = e / e.sum(1, keepdims=True) @ c[rows, h, t]
        return y

    return Bug({scores.name: logits, product.name: mixed}, places=(product.name,))


@convention("unfold-order")
def unfold_columns_first(graph, rng):
    node = pick(graph, rng, "transpose", lambda n: n.scope.endswith("unfold_patches"))
    return at(node, lambda x: x.transpose(0, 5, 3, 2, 4, 1))


@convention("unfold-order")
def fold_patches_column_major(graph, rng):
    node = pick(
        graph,
        rng,
        "reshape",
        lambda n: n.scope.endswith(".fold_patches") and len(n.shape) == 6 and min(n.shape[3:5]) > 1,
    )
    if node is None:
        return None
    n, ph, pw, r, c, d = node.shape
    return at(node, lambda x: x.reshape(n, ph, pw, c, r, d).swapaxes(3, 4))


# convolutions and weights


def _strided(graph, rng):
    return pick(graph, rng, "conv2d", lambda n: n.attrs["stride"] == 2 and n.attrs["padding"] == 1)


def _conv(x, w, b, node, pads=None, mode="constant", flip=False, dilation=None, padding=None):
    """By loops over the kernel."""
    s, d = node.attrs["stride"], node.attrs["dilation"] if dilation is None else dilation
    p, g = node.attrs["padding"] if padding is None else padding, node.attrs["groups"]
    x = np.pad(x, ((0, 0), (0, 0), *(pads or ((p, p), (p, p)))), mode=mode)
    k, _, r, t = w.shape
    w = w[:, :, ::-1, ::-1] if flip else w
    rows, columns = (x.shape[2] - d * (r - 1) - 1) // s + 1, (x.shape[3] - d * (t - 1) - 1) // s + 1
    y = np.zeros((x.shape[0], k, rows, columns), F)
    for i in range(r):
        for j in range(t):
            part = x[:, :, i * d : i * d + s * (rows - 1) + 1 : s, j * d : j * d + s * (columns - 1) + 1 : s]
            if g == 1:
                y += np.tensordot(w[:, :, i, j], part, (1, 1)).swapaxes(0, 1)
            else:
                y += part * w[:, 0, i, j].reshape(1, -1, 1, 1)
    return y if b is None else y + b.reshape(1, -1, 1, 1)


@convention("padding-side")
def tensorflow_same(graph, rng):
    node = _strided(graph, rng)
    return at(node, lambda x, w, b: _conv(x, w, b, node, pads=((0, 1), (0, 1)))) if node and _even(graph, node) else None


def _even(graph, node):
    return all(s % 2 == 0 for s in graph.value(node.inputs[0]).shape[2:])


def _padded(graph, rng):
    return pick(
        graph,
        rng,
        "conv2d",
        lambda n: isinstance(n.attrs["padding"], int) and 0 < n.attrs["padding"] < min(graph.value(n.inputs[0]).shape[2:]),
    )


@convention("padding-mode")
def reflected_border(graph, rng):
    node = _padded(graph, rng)
    return (
        at(node, lambda x, w, b: _conv(x, w, b, node, mode=mode))
        if node and (mode := rng.choice(["reflect", "edge"]))
        else None
    )


@convention("kernel-flipped")
def true_convolution(graph, rng):
    node = pick(graph, rng, "conv2d", lambda n: graph.params[n.inputs[1]].shape[2] > 1 and n.attrs["groups"] in (1, n.shape[1]))
    return at(node, lambda x, w, b: _conv(x, w, b, node, flip=True))


@convention("dilation")
def dilated(graph, rng):
    node = pick(
        graph,
        rng,
        "conv2d",
        lambda n: (
            n.attrs["padding"] == 1
            and n.attrs["dilation"] == 1
            and graph.params[n.inputs[1]].shape[2] == 3
            and min(n.shape[2:]) > 2
        ),
    )
    return at(node, lambda x, w, b: _conv(x, w, b, node, dilation=2, padding=2))


@convention("weight-transposed")
def square_transposed(graph, rng):
    node = pick(graph, rng, "linear", lambda n: len(set(graph.params[n.inputs[1]].shape)) == 1)
    return at(node, lambda x, w, b: np.einsum("...i,ik->...k", x, w) + (0 if b is None else b))


@convention("weight-transposed")
def ohwi_read_as_oihw(graph, rng):
    node = pick(
        graph, rng, "conv2d", lambda n: graph.params[n.inputs[1]].shape[1] > 1 and graph.params[n.inputs[1]].shape[2] > 1
    )
    if node is None:
        return None
    name = node.inputs[1]
    w = graph.params[name]
    k, c, r, s = w.shape
    return Bug(params={name: np.moveaxis(w, 1, 3).ravel().reshape(k, c, r, s)}, places=(node.name,))


@convention("bias")
def no_bias(graph, rng):
    nodes = [n for n in graph if n.op in ("linear", "conv2d") and n.inputs[2] is not None]
    if not nodes:
        return None
    node = nodes[rng.integers(len(nodes))]
    return Bug(params={node.inputs[2]: np.zeros_like(graph.params[node.inputs[2]])}, places=(node.name,))


@convention("weights-of-another-layer")
def weights_of_another(graph, rng):
    shapes = {}
    for node in graph:
        if node.op in ("linear", "conv2d") and node.inputs[1] in graph.params:
            key = (graph.params[node.inputs[1]].shape, node.inputs[2] is None, node.inputs[1].rpartition(".")[2], node.op)
            shapes.setdefault(key, []).append(node)
    groups = [g for g in shapes.values() if len(g) > 1]
    if not groups:
        return None
    group = groups[rng.integers(len(groups))]
    a, b = rng.choice(len(group), 2, replace=False)
    a, b = group[a], group[b]
    return Bug(params={i: graph.params[j] for i, j in zip(a.inputs[1:], b.inputs[1:], strict=True) if i}, places=(a.name,))


@convention("quantised-weights")
def int8_weights(graph, rng):
    nodes = [n for n in graph if n.op in ("linear", "conv2d") and n.inputs[1] in graph.params]
    node = nodes[rng.integers(len(nodes))]
    w = graph.params[node.inputs[1]]
    flat = w.reshape(len(w), -1)
    step = np.abs(flat).max(1, keepdims=True) / 127 if rng.integers(2) else np.abs(flat).max() / 127
    return Bug(params={node.inputs[1]: (np.round(flat / step) * step).reshape(w.shape)}, places=(node.name,))


@convention("weights-rounded")
def float16_weights(graph, rng):
    nodes = [n for n in graph if n.op in ("linear", "conv2d") and n.inputs[1] in graph.params]
    node = nodes[rng.integers(len(nodes))]
    return Bug(params={node.inputs[1]: graph.params[node.inputs[1]].astype(np.float16).astype(np.float64)}, places=(node.name,))


# resizing, pooling, tokens


def _hat(s, n):
    """Linear interpolation matrix for positions s within n pixels."""
    s = np.clip(s, 0, n - 1)
    return np.maximum(0, 1 - np.abs(s[:, None] - np.arange(n)))


def _resized(x, size, positions):
    rows, columns = (_hat(positions(n, m), n).astype(F) for n, m in zip(x.shape[2:], size, strict=True))
    return np.einsum("pr,ncrs,qs->ncpq", rows, x, columns)


def half(n, m):
    return (np.arange(m) + 0.5) * n / m - 0.5


def corners(n, m):
    return np.arange(m) * (n - 1) / max(m - 1, 1)


@convention("resize-align-corners")
def corners_flag(graph, rng):
    node = pick(graph, rng, "resize", lambda n: n.attrs["mode"] == "bilinear" and min(graph.value(n.inputs[0]).shape[2:]) > 1)
    if node is None:
        return None
    other = half if node.attrs["align_corners"] else corners
    return at(node, lambda x: _resized(x, node.attrs["size"], other))


@convention("resize-kind")
def nearest_or_bilinear(graph, rng):
    node = pick(graph, rng, "resize", lambda n: min(graph.value(n.inputs[0]).shape[2:]) > 1)
    if node is None:
        return None
    if node.attrs["mode"] == "nearest":
        return at(node, lambda x: _resized(x, node.attrs["size"], half))

    def f(x):
        i, j = (np.arange(m) * n // m for n, m in zip(x.shape[2:], node.attrs["size"], strict=True))
        return x[:, :, i][:, :, :, j]

    return at(node, f)


@convention("resize-coordinates")
def asymmetric(graph, rng):
    node = pick(
        graph,
        rng,
        "resize",
        lambda n: (
            n.attrs["mode"] == "bilinear" and not n.attrs.get("antialias") and min(graph.value(n.inputs[0]).shape[2:]) > 1
        ),
    )
    return at(node, lambda x: _resized(x, node.attrs["size"], lambda n, m: np.arange(m) * n / m))


@convention("pooling")
def largest_for_mean(graph, rng):
    node = pick(graph, rng, "mean")
    return at(node, lambda x: x.max(node.attrs["axes"], keepdims=node.attrs.get("keepdims", False)))


@convention("pooling")
def mean_for_class_token(graph, rng):
    node = pick(graph, rng, "getitem", lambda n: n.attrs["index"] == (slice(None), 0) and not n.scope)
    return at(node, lambda x: x[:, 1:].sum(1) / (x.shape[1] - 1) if rng.integers(2) else x.sum(1) / x.shape[1])


@convention("position-embedding")
def no_position(graph, rng):
    node = pick(graph, rng, "add", lambda n: not n.scope and n.inputs[0].startswith("concat"))
    if node is None:
        return None
    kind = rng.integers(3)
    return at(node, lambda x, p: x if kind == 0 else x + p + p if kind == 1 else x + np.roll(p, -1, 1))


@convention("class-token")
def class_token_last(graph, rng):
    node = pick(graph, rng, "concat", lambda n: not n.scope and n.inputs[0] == "broadcast" and len(n.inputs) == 2)
    return at(node, lambda c, x: np.concatenate([x, c], 1))


@convention("pooling-bins")
def bins(graph, rng):
    node = pick(
        graph,
        rng,
        "adaptive_avg_pool",
        lambda n: any(a % b for a, b in zip(graph.value(n.inputs[0]).shape[2:], n.attrs["size"], strict=True)),
    )
    if node is None:
        return None

    def f(x):
        y = np.empty(node.shape, F)
        (h, w), (p, q) = x.shape[2:], node.attrs["size"]
        for i in range(p):
            for j in range(q):
                y[:, :, i, j] = x[:, :, max(i * h // p, 0) : max((i + 1) * h // p, 1), j * w // q : (j + 1) * w // q].mean(
                    (2, 3)
                )
        return y

    h, w = graph.value(node.inputs[0]).shape[2:]
    return at(node, f) if min(h, w) >= max(node.attrs["size"]) else None


# structure


def _later(graph, a, b):
    """Whether b is computed from a."""
    reached = {a}
    for node in graph:
        if reached & set(node.sources):
            reached.add(node.name)
    return b in reached


def _residual(graph, rng):
    """(an addition of a branch to its own input, index of the input)"""
    found = []
    for n in graph:
        if n.op == "add" and n.scope and all(i in graph.nodes for i in n.inputs):
            found += [(n, i) for i in (0, 1) if _later(graph, n.inputs[i], n.inputs[1 - i])]
    return found[rng.integers(len(found))] if found else (None, 0)


@convention("residual-missing")
def no_residual(graph, rng):
    node, i = _residual(graph, rng)
    return at(node, lambda *terms: terms[1 - i])


@convention("branch-missing")
def no_branch(graph, rng):
    node, i = _residual(graph, rng)
    return at(node, lambda *terms: terms[i])


@convention("fuse-missing")
def no_fuse_term(graph, rng):
    node = pick(
        graph,
        rng,
        "add",
        lambda n: (
            not _later(graph, n.inputs[0], n.inputs[1])
            and not _later(graph, n.inputs[1], n.inputs[0])
            and n.inputs[1] in graph.nodes
            and not n.inputs[0].startswith("concat")
            and graph.value(n.inputs[0]).shape == graph.value(n.inputs[1]).shape
        ),
    )
    return at(node, lambda x, y: x)


@convention("branch-scaled")
def stochastic_depth(graph, rng):
    keep = F(rng.uniform(0.7, 0.97))
    node, i = _residual(graph, rng)
    return at(node, lambda *terms: terms[i] + keep * terms[1 - i])


@convention("concat-order")
def parts_in_another_order(graph, rng):
    node = pick(
        graph,
        rng,
        "concat",
        lambda n: len({graph.value(i).shape for i in n.inputs}) == 1 and n.attrs["axis"] == 1 and len(n.shape) == 4,
    )
    return at(node, lambda *xs: np.concatenate(xs[1:] + xs[:1], 1))


@convention("layer-missing")
def conv_left_out(graph, rng):
    node = pick(graph, rng, "conv2d", lambda n: graph.value(n.inputs[0]).shape == n.shape)
    return at(node, lambda x, w, b: x)


# inputs and outputs


@convention("input-channel-order")
def bgr(graph, rng):
    return Bug(x=lambda x: x[:, [2, 1, 0]])


@convention("input-normalisation")
def other_mean_and_std(graph, rng):
    mean, std = rng.uniform(0.3, 0.6, (2, 3, 1, 1))
    return Bug(x=lambda x: (x * std * 1.1 + mean - 0.45) / 0.25)


@convention("input-scale")
def grey_levels(graph, rng):
    return Bug(x=lambda x: x * 255)


@convention("input-orientation")
def mirrored(graph, rng):
    return Bug(x=lambda x: x[..., ::-1])


@convention("input-axes")
def nhwc(graph, rng):
    return Bug(x=lambda x: np.moveaxis(x, 1, 3).reshape(x.shape))


@convention("output-activation")
def softmax_on_top(graph, rng):
    if "output" not in graph.outputs or len(graph.nodes[graph.outputs["output"]].shape) != 2:
        return None
    return Bug(answer=lambda y: special.softmax(y, 1))


@convention("label-order")
def labels_off_by_one(graph, rng):
    if "output" not in graph.outputs:
        return None
    return Bug(answer=lambda y: np.concatenate([y[:, -1:], y[:, :-1]], 1))


@convention("label-permutation")
def labels_permuted(graph, rng):
    if "output" not in graph.outputs:
        return None
    order = rng.permutation(graph.nodes[graph.outputs["output"]].shape[1])
    return Bug(answer=lambda y: y[:, order])


@convention("batch-order")
def batch_reversed(graph, rng):
    if "output" not in graph.outputs or graph.nodes[graph.outputs["output"]].shape[0] < 2:
        return None
    return Bug(answer=lambda y: y[::-1])


@convention("dropout")
def dropout(graph, rng):
    p = rng.choice([0.1, 0.2, 0.5])
    return _then(_any(graph, rng, ("linear", "layer_norm", "gelu")), lambda y: y * (rng.random(y.shape) > p) / (1 - p))


@convention("dropout")
def dropout_of_a_branch(graph, rng):
    """Between a linear layer that is shown and the sum that is shown: the dropped values themselves are not."""
    ends = set(graph.aliases.values())
    node, i = _residual(graph, rng)
    while node is not None and node.name not in ends:
        node, i = _residual(graph, rng)
    p = rng.choice([0.1, 0.2])
    return at(node, lambda *terms: terms[i] + terms[1 - i] * (rng.random(terms[i].shape) > p) / (1 - p))


# what no convention is


def _any(graph, rng, ops=("conv2d", "linear", "batch_norm", "layer_norm", *ACTS)):
    nodes = [n for n in graph if n.op in ops]
    return nodes[rng.integers(len(nodes))]


def _then(node, change):
    return at(node, lambda *a: change(OPS[node.op].function(*a, **node.attrs)))


@strange
def noisy_weights(graph, rng):
    node = _any(graph, rng, ("conv2d", "linear"))
    w = graph.params[node.inputs[1]]
    return Bug(params={node.inputs[1]: w * (1 + 0.01 * rng.standard_normal(w.shape))}, places=(node.name,))


@strange
def noise_on_values(graph, rng):
    return _then(_any(graph, rng), lambda y: y * (1 + F(1e-3) * rng.standard_normal(y.shape)))


@strange
def a_dead_channel(graph, rng):
    node = _any(graph, rng, ("conv2d", "batch_norm"))
    c = rng.integers(node.shape[1])

    def f(y):
        y = y.copy()
        y[:, c] = 0
        return y

    return _then(node, f)


@strange
def two_channels_exchanged(graph, rng):
    node = _any(graph, rng, ("batch_norm", "layer_norm"))
    axis = 1 if node.op == "batch_norm" else -1
    order = np.arange(node.shape[axis])
    i, j = rng.choice(len(order), 2, replace=False)
    order[[i, j]] = j, i
    return _then(node, lambda y: np.take(y, order, axis))


@strange
def clipped(graph, rng):
    return _then(_any(graph, rng, ("batch_norm", "layer_norm", "linear")), lambda y: y.clip(-1.5, 1.5))


@strange
def rounded_to_hundredths(graph, rng):
    return _then(_any(graph, rng), lambda y: np.round(y, 2))


@strange
def one_wrong_weight(graph, rng):
    node = _any(graph, rng, ("conv2d", "linear"))
    w = graph.params[node.inputs[1]].copy()
    w.flat[rng.integers(w.size)] += 0.7
    return Bug(params={node.inputs[1]: w}, places=(node.name,))


@strange
def values_shifted_by_a_pixel(graph, rng):
    return _then(pick(graph, rng, "conv2d", lambda n: n.shape[3] > 1), lambda y: np.roll(y, 1, -1))


@strange
def another_power(graph, rng):
    return _then(_any(graph, rng, ("batch_norm", "layer_norm", "linear")), lambda y: np.sign(y) * np.abs(y) ** 1.02)


@strange
def offset_everywhere(graph, rng):
    return _then(_any(graph, rng, ("conv2d", "linear")), lambda y: y + F(0.01))


@strange
def weights_mixed_with_another_layers(graph, rng):
    node = _any(graph, rng, ("conv2d", "linear"))
    w = graph.params[node.inputs[1]]
    return Bug(params={node.inputs[1]: 0.9 * w + 0.1 * np.roll(w, 7)}, places=(node.name,))
