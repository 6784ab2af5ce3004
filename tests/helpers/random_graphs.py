"""Random legal graphs, built through the real tracer: what no model has and any model might.

A case is a list of steps, (function, seed) each, which act on the values there are; one that does not fit does nothing. So any
part of the list is a case too, and a failing one is cut down by leaving steps out (`smallest`). No step looks at the batch
unless the case is `mixed`: the same case at another batch has the same layers and parameters.
"""

import math
import random
from dataclasses import dataclass, replace

import numpy as np

from refvit import ops
from refvit.errors import ShapeError
from refvit.graph.ir import dims
from refvit.graph.trace import Tensor, trace

CHANNELS = (1, 2, 3, 4, 5, 16, 17, 18, 31, 32, 33, 48)
SIDE = 19
LARGEST = 16_000  # values of an image
LONGEST = 64  # terms of a sum over features: NumPy adds up long ones of few rows in parts, with less rounding than in order
ACTS = ("relu", "silu", "gelu", "gelu tanh", "hardswish", "sigmoid")


class Draft:
    """A model under construction: the values so far, which of them are outputs, and the parameters that steps made."""

    def __init__(self, x, params, mixed):
        self.values, self.outputs, self.params, self.mixed, self.input = [x], [], params, mixed, x

    def take(self, function, seed):
        """One more value, unless the step has nothing to act on or its result is no value or too large a one."""
        r, there = random.Random(seed), len(self.values)
        try:
            y = function(self, r)
        except ShapeError:
            y = None
        if y is None or math.prod(y.shape[1:]) * (1 + 3 * (y.shape[0] > 4 * self.input.shape[0])) > LARGEST:
            del self.values[there:]
        else:
            self.values.append(y)
            if r.random() < 0.12:
                self.outputs.append(y)

    def pick(self, r, *ranks):
        """The last value of these ranks, or often enough another one, the network's input among them."""
        found = [v for v in self.values if len(v.shape) in ranks]
        if found and r.random() < 0.3:
            return r.choice(found)
        return found[-1] if found else None

    def note(self, y, r):
        """A value within a step that later steps may read, too, or that is an output."""
        if r.random() < 0.15:
            self.values.append(y)
        if r.random() < 0.05:
            self.outputs.append(y)
        return y

    def like(self, r, y):
        """A value of the shape of y, itself if there is no other."""
        return r.choice([v for v in self.values if v.shape == y.shape] or [y])

    def param(self, r, *shape, low=None):
        """Random numbers that keep the size of what goes through them; with `low`, numbers from there to low + 0.6."""
        rng = np.random.default_rng(r.getrandbits(32))
        size = math.sqrt(math.prod(shape[1:]))
        a = rng.standard_normal(shape) / size if low is None else rng.uniform(low, low + 0.6, shape)
        name = f"layer{len(self.params)}.weight"
        self.params[name] = a.astype(np.float32)
        return Tensor(self.input.trace, name, shape)

    def results(self):
        return {"output": self.values[-1], **{f"output{i}": v for i, v in enumerate(self.outputs)}}


# what may follow anything ----------------------------------------------------------------------------------------------------


def activated(d, r, y):
    name, _, form = r.choice(ACTS).partition(" ")
    return ops.gelu(y, approximate=form or "none") if name == "gelu" else getattr(ops, name)(y)


def added(d, r, y):
    terms = [y, d.like(r, y)]
    r.shuffle(terms)
    return terms[0] + terms[1]


def multiplied(d, r, y):
    terms = [y, ops.sigmoid(d.like(r, y))]
    r.shuffle(terms)
    return terms[0] * terms[1]


def scaled(d, r, y):
    return y * r.choice((0.25, -1.5, 2.0, 3))


def shifted(d, r, y):
    """A parameter that is broadcast, added or multiplied, from either side."""
    shape = y.shape[1:]
    shapes = [(1,), shape[-1:], (1, *shape), shape]
    if len(shape) > 1:
        shapes += [(*shape[:1], *[1] * (len(shape) - 1)), (1, *shape[:1], *[1] * (len(shape) - 1))]
    p = d.param(r, *r.choice(shapes), low=0.7)
    return r.choice((lambda: y + p, lambda: p + y, lambda: y * p, lambda: p * y))()


def normed(d, r, y):
    """Batch norm of channels, layer norm of features; narrow rows get a large eps, or the norm of two nearly equal numbers
    makes anything of their last bits, and single features none, or all tokens are the same (see `resized`)."""
    if len(y.shape) == 4:
        c = y.shape[1]
        p = [d.param(r, c, low=low) for low in (0.7, -0.3, -0.3, 0.5)]
        return ops.batch_norm(y, *p, eps=1e-5)
    width = y.shape[-1]
    if width == 1:
        return y
    return ops.layer_norm(y, d.param(r, width, low=0.7), d.param(r, width, low=-0.3), eps=1e-5 if width >= 16 else 0.1)


def tail(d, r, y, most=3):
    """Up to three of these, on whose way values may become outputs or be read elsewhere."""
    for _ in range(r.randint(0, most)):
        d.note(y, r)
        y = r.choice((activated, activated, activated, added, added, multiplied, scaled, shifted, normed))(d, r, y)
    return y


def anything(d, r):
    """A tail on its own."""
    y = d.pick(r, 2, 3, 4)
    return tail(d, r, r.choice((activated, added, shifted, normed))(d, r, y), 2)


# maps ------------------------------------------------------------------------------------------------------------------------


def layer(d, r, x, k, size=(1, 1), groups=1, **attrs):
    """A convolution with or without a bias."""
    weight = d.param(r, k, x.shape[1] // groups, *size)
    return ops.conv2d(x, weight, d.param(r, k, low=-0.3) if r.random() < 0.5 else None, groups=groups, **attrs)


def conv(d, r):
    x = d.pick(r, 4)
    if x is None:
        return None
    c, k, groups = x.shape[1], r.choice(CHANNELS), 1
    kind = r.choice(("dense", "dense", "dense", "grouped", "many", "depthwise", "depthwise"))
    if kind == "grouped":
        groups = r.choice([g for g in range(1, c + 1) if c % g == 0])
        k = groups * r.choice((1, 2, 3))
    elif kind != "dense":
        groups, k = c, c if kind == "depthwise" else 2 * c
    size = r.choice([(3, 3)] * 6 + [(1, 1), (2, 2), (5, 5), (7, 7), (1, 3), (3, 1), (4, 3)])
    dilation = r.choice([(1, 1)] * 4 + [(2, 2), (1, 2), (3, 1)])
    same = tuple(w * (s // 2) for w, s in zip(dilation, size, strict=True))
    padding = r.choice((same, same, same, 0, 1, (2, 0), ((0, 1), (1, 0)), ((2, 1), (0, 3))))
    stride = r.choice((1, 1, 1, 1, 2, 2, 3, (1, 2), (2, 1)))
    return tail(d, r, layer(d, r, x, k, size, groups, stride=stride, padding=padding, dilation=dilation))


def pointwise(d, r):
    x = d.pick(r, 4)
    return None if x is None else tail(d, r, layer(d, r, x, r.choice(CHANNELS)))


def common(d, r):
    """A 3x3 convolution that keeps the size: dense, or depthwise behind an activation or not."""
    x = d.pick(r, 4)
    if x is None:
        return None
    groups = r.choice((1, 1, x.shape[1]))
    x = r.choice((x, x, ops.hardswish(x)))
    return tail(d, r, layer(d, r, x, x.shape[1] if groups > 1 else r.choice(CHANNELS), (3, 3), groups, padding=1))


def inverted(d, r):
    """Expand, filter each channel, project, add."""
    x = d.pick(r, 4)
    if x is None:
        return None
    hidden, k = r.choice(CHANNELS), r.choice((x.shape[1], x.shape[1], r.choice(CHANNELS)))
    act = r.choice((ops.silu, ops.silu, ops.relu, ops.hardswish))
    side, dilation = r.choice((3, 3, 5)), r.choice((1, 1, 2))
    y = d.note(act(layer(d, r, x, hidden)), r)
    stride, padding = r.choice((1, 1, 2)), side // 2 * dilation
    y = act(layer(d, r, y, hidden, (side, side), hidden, stride=stride, padding=padding, dilation=dilation))
    y = layer(d, r, d.note(y, r), k)
    if r.random() < 0.3:
        y = normed(d, r, y)
    return tail(d, r, x + y if x.shape == y.shape else added(d, r, y), 1)


def resized(d, r):
    x = d.pick(r, 4)
    if x is None:
        return None
    mode = r.choice(("nearest", "bilinear", "bilinear", "bicubic"))
    corners = mode != "nearest" and r.random() < 0.3
    # at most four times as large: sums over many equal pixels round all one way, which is no fault of a kernel
    size = r.choice((tuple(2 * s for s in x.shape[2:]), tuple(r.randint(1, min(SIDE, 4 * s)) for s in x.shape[2:])))
    antialias = mode != "nearest" and not corners and r.random() < 0.3
    return tail(d, r, ops.resize(x, size=size, mode=mode, align_corners=corners, antialias=antialias))


def pooled(d, r):
    """A mean over windows, over all of the map, with what it is used for, or over one axis."""
    x = d.pick(r, 4)
    if x is None:
        return None
    kind = r.choice(("windows", "windows", "gate", "spread", "axis"))
    if kind == "windows":
        return tail(d, r, ops.adaptive_avg_pool(x, size=tuple(r.randint(1, min(SIDE, s + 1)) for s in x.shape[2:])))
    if kind == "axis":
        return ops.mean(x, axes=(r.choice((1, 2, 3, -1)),), keepdims=True)
    y = ops.mean(x, axes=(2, 3), keepdims=True)
    if kind == "spread":  # the image's own branch of a pyramid
        y = tail(d, r, layer(d, r, y, r.choice(CHANNELS)), 1)
        y = ops.broadcast(y, shape=(*y.shape[:2], *x.shape[2:])) if y.shape[2:] == (1, 1) else y
        return x + y if y.shape == x.shape and r.random() < 0.5 else ops.concat(x, y, axis=1)
    y = layer(d, r, activated(d, r, layer(d, r, y, r.choice(CHANNELS))), x.shape[1])
    return tail(d, r, x * ops.sigmoid(y), 1)


def padded(d, r):
    x = d.pick(r, 3, 4)
    if x is None:
        return None
    sides = [max(1, size // 4) for size in x.shape[1:]]  # not so wide that most pixels are the same
    widths = [(0, 0), *((r.choice((0, 0, 0, 1, min(2, s))), r.choice((0, 0, 1, min(3, s)))) for s in sides)]
    return tail(d, r, ops.pad(x, widths=tuple(widths), value=r.choice((0.0, 1.5))), 1)


def joined(d, r):
    """Values that are alike but along one axis; of one alone, what it becomes."""
    x = d.pick(r, 3, 4)
    if x is None:
        return None
    axis = r.choice((1, 1, 1, *range(1 - d.mixed, len(x.shape))))
    without = lambda shape: (*shape[:axis], *shape[axis + 1 :])  # noqa: E731
    fit = [v for v in d.values if len(v.shape) == len(x.shape) and without(v.shape) == without(x.shape)]
    parts = [x, *(r.choice((r.choice(fit), tail(d, r, r.choice(fit)))) for _ in range(r.randint(1, 2)))]
    r.shuffle(parts)
    return tail(d, r, ops.concat(*parts, axis=axis))


def sliced(d, r):
    x = d.pick(r, 3, 4)
    if x is None:
        return None
    axis, parts = r.randint(1 - d.mixed, len(x.shape) - 1), [slice(None)] * len(x.shape)
    size = x.shape[axis]
    start = r.randint(0, size - 1)
    parts[axis] = slice(start, r.randint(start + 1, size), r.choice((1, 1, 1, 2)))
    if axis and r.random() < 0.2:
        parts[axis] = start - size if r.random() < 0.5 else start
    return tail(d, r, x[tuple(parts)] if r.random() < 0.8 else x[(*parts[: axis + 1], ...)], 2)


def turned(d, r):
    """The same values seen otherwise."""
    x = d.pick(r, 3, 4)
    if x is None:
        return None
    if len(x.shape) == 3:
        return x.transpose(0, 2, 1)
    n, c, h, w = x.shape
    groups = r.choice([g for g in range(1, c + 1) if c % g == 0])
    kind = r.randrange(4)
    if kind == 0:
        return x.transpose(0, 1, 3, 2)
    if kind == 1:  # channels shuffled
        return x.reshape(n, groups, c // groups, h, w).transpose(0, 2, 1, 3, 4).reshape(n, c, h, w)
    if kind == 2:
        return x.reshape(n, c, h * w, 1)
    return x.reshape(n, groups, c // groups * h, w)


# between maps and tokens -----------------------------------------------------------------------------------------------------


def to_tokens(x):
    n, c, h, w = x.shape
    return x.reshape(n, c, h * w).transpose(0, 2, 1)


def to_map(r, x):
    """Tokens on any grid that they fill."""
    n, l, c = x.shape
    h = r.choice([h for h in range(1, l + 1) if l % h == 0])
    return x.transpose(0, 2, 1).reshape(n, c, h, l // h)


def embedded(d, r):
    """Tokens of a map: its pixels or patches."""
    x = d.pick(r, 4)
    if x is None:
        return None
    if r.random() < 0.5:
        return tail(d, r, to_tokens(x), 1)
    side = r.choice((1, 2, 3))
    return to_tokens(layer(d, r, x, r.choice(CHANNELS), (side, side), stride=side))


def patches(d, r):
    """MobileViT: something happens to the tokens of patches, which become a map again."""
    x = d.pick(r, 4)
    if x is None:
        return None
    patch = r.choice(((2, 2), (2, 2), (1, 2), (3, 2)))
    y = ops.unfold_patches(x, patch=patch)
    for _ in range(r.randint(0, 2)):
        y = r.choice((_attention, _mlp, _norm, _softmax))(d, r, y)
    y = ops.fold_patches(y, patch=patch, size=x.shape[2:])
    return tail(d, r, ops.concat(x, y, axis=1) if r.random() < 0.3 else y, 2)


def stripes(d, r):
    """HRViT: attention within stripes, lying or standing, of maps or of tokens."""
    x = d.pick(r, 3, 4)
    if x is None:
        return None
    x = x if len(x.shape) == 4 else to_map(r, x)
    heads, width = r.choice((1, 2, 3)), r.choice((1, 4, 8, 16))
    c = heads * width
    y = layer(d, r, x, 3 * c)
    q, k, v = (y[:, i * c : (i + 1) * c] for i in (0, 1, r.choice((1, 2))))
    stand = r.random() < 0.4
    if stand:
        q, k, v = (a.transpose(0, 1, 3, 2) for a in (q, k, v))
    y = ops.stripe_attention(q, k, v, stripe=r.choice((1, 2, 3, 7)), num_heads=heads, scale=width**-0.5)
    y = tail(d, r, y.transpose(0, 1, 3, 2) if stand else y, 2)
    return y if r.random() < 0.5 else to_tokens(y)


def seen_as_map(d, r):
    """Tokens become a map, one layer or pool acts on it, and they are tokens again."""
    x = d.pick(r, 3)
    if x is None:
        return None
    inner = Draft(d.input, d.params, d.mixed)
    inner.values = [to_map(r, x)]
    y = r.choice((conv, common, pointwise, pooled, resized, turned, padded, inverted))(inner, r)
    return None if y is None or len(y.shape) != 4 else r.choice((y, to_tokens(y), to_tokens(y)))


# tokens ----------------------------------------------------------------------------------------------------------------------


def _linear(d, r, x, k):
    if x.shape[-1] > LONGEST:
        raise ShapeError("too many features")
    return ops.linear(x, d.param(r, k, x.shape[-1]), d.param(r, k, low=-0.3) if r.random() < 0.5 else None)


def _attention(d, r, x):
    """Queries, keys and values of one layer, or keys and values that are one, and what becomes of the heads side by side."""
    n, l, _ = x.shape
    heads, width, shared = r.choice((1, 2, 3, 4)), r.choice((1, 4, 8, 16, 17)), r.random() < 0.2
    c = heads * width
    y = _linear(d, r, x, (2 if shared else 3) * c).reshape(n, l, -1, heads, width).transpose(2, 0, 3, 1, 4)
    q, k, v = y[0], y[1], y[1 if shared else 2]
    if r.random() < 0.2:
        q = q[:, :, : r.randint(1, l)]
    y = ops.attention(q, k, v, scale=width**-0.5).transpose(0, 2, 1, 3)
    y = y.reshape(n, y.shape[1], c)
    y = _linear(d, r, y, x.shape[-1]) if r.random() < 0.8 else y
    return x + y if y.shape == x.shape else y


def _mlp(d, r, x):
    y = activated(d, r, _linear(d, r, x, r.choice(CHANNELS)))
    y = _linear(d, r, d.note(y, r) if len(y.shape) == 3 else y, x.shape[-1])
    return r.choice((x + y, y + x))


def _norm(d, r, x):
    return normed(d, r, x)


def _softmax(d, r, x):
    return ops.softmax(x, axis=r.choice((*range(1 - d.mixed, len(x.shape)), -1)))


def _shortcut(d, r, x):
    """HRViT's diversity shortcut: a token as a matrix, multiplied from both sides."""
    n, l, c = x.shape
    k = r.choice([k for k in range(1, c + 1) if c % k == 0])
    y = _linear(d, r, x.reshape(n, l, c // k, k), k).swapaxes(-1, -2)
    y = _linear(d, r, ops.gelu(y, approximate="none"), c // k).swapaxes(-1, -2).reshape(n, l, c)
    return x + _linear(d, r, x, c) + y if r.random() < 0.5 else y


def on_tokens(function):
    def step(d, r):
        x = d.pick(r, 3)
        return None if x is None else tail(d, r, function(d, r, x), 2)

    step.__name__ = function.__name__.strip("_")
    return step


attention, mlp, norm, shortcut = (on_tokens(f) for f in (_attention, _mlp, _norm, _shortcut))


def linear(d, r):
    x = d.pick(r, 2, 3, 4)
    return tail(d, r, _linear(d, r, x, r.choice(CHANNELS)))


def softmax(d, r):
    return tail(d, r, _softmax(d, r, d.pick(r, 2, 3, 4)))


def product(d, r):
    """A product of two values, of a value and a parameter, or linear attention."""
    x = d.pick(r, 3)
    if x is None:
        return None
    l, c = x.shape[1:]
    k = r.choice(CHANNELS)
    kind = r.randrange(5) if max(l, c) <= LONGEST else 4
    if kind == 0:
        fit = [v for v in d.values if len(v.shape) == 3 and v.shape[::2] == x.shape[::2]]
        y = (x * c**-0.5) @ r.choice(fit).transpose(0, 2, 1)
    elif kind == 1:
        y = x.transpose(0, 2, 1) @ x * (1 / l)
    elif kind == 2:
        y = x @ d.param(r, c, k) * c**-0.5
    elif kind == 3:
        y = d.param(r, k, l) @ x
    else:
        keys = ops.softmax(_linear(d, r, x, k), axis=1)
        y = ops.softmax(_linear(d, r, x, k), axis=-1) @ (keys.transpose(0, 2, 1) @ x)
    return tail(d, r, y)


def with_token(d, r):
    """A learned token before the others, or positions added to them."""
    x = d.pick(r, 3)
    if x is None:
        return None
    n, _, c = x.shape
    token = ops.broadcast(d.param(r, 1, 1, c), shape=(n, 1, c))
    y = r.choice((ops.concat(token, x, axis=1), ops.concat(x, token, axis=1), x))
    return tail(d, r, y + d.param(r, 1, y.shape[1], c), 1)


def head(d, r):
    """One token, or the mean of all, and a linear layer."""
    x = d.pick(r, 3)
    if x is None:
        return None
    y = r.choice((lambda: x[:, 0], lambda: x[:, -1], lambda: ops.mean(x, axes=(1,)), lambda: x[:, :1]))()
    return tail(d, r, _linear(d, r, y, r.choice(CHANNELS)), 2)


def flat(d, r):
    """All tokens of all images as rows, normed and activated as a batch."""
    x = d.pick(r, 3)
    if x is None:
        return None
    n, l, c = x.shape
    p = [d.param(r, c, low=low) for low in (0.7, -0.3, -0.3, 0.5)]
    k = r.choice((0, c))
    y = ops.batch_norm((_linear(d, r, x, c) if k else x).reshape(n * l, c), *p, eps=1e-5)
    return tail(d, r, y.reshape(n, l, c), 2)


MAPS = [conv] * 4 + [pointwise, common, common, inverted, resized, pooled, joined, sliced, turned, padded, anything, patches,
                     stripes, embedded, seen_as_map, softmax]  # fmt: skip
TOKENS = [linear] * 3 + [attention, attention, mlp, norm, shortcut, softmax, softmax, product, product, with_token, head, flat,
                         joined, sliced, turned, padded, anything, stripes, seen_as_map, seen_as_map]  # fmt: skip


# cases -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A graph before it is traced."""

    shape: tuple[int, int, int, int]
    steps: tuple
    mixed: bool = False  # whether steps may look at the batch
    expand: bool = False

    def graph(self, batch=None):
        """The graph, with the steps' parameters, for this many images."""
        params = {}

        def model(x, _):
            draft = Draft(x, params, self.mixed)
            for function, seed in self.steps:
                draft.take(function, seed)
            return draft.results()

        shape = self.shape if batch is None else (batch, *self.shape[1:])
        whole = trace(model, shape, params, expand=self.expand)
        needed = whole.with_outputs(whole.outputs)  # no nodes that nobody reads
        read = needed.users()
        return replace(needed, params={name: array for name, array in params.items() if name in read})

    def inputs(self, count=3):
        return [np.random.default_rng(seed).standard_normal(self.shape).astype(np.float32) for seed in range(count)]

    def __str__(self):
        steps = ", ".join(f"({function.__name__}, {seed})" for function, seed in self.steps)
        graph = self.graph()
        params = ", ".join(f"{name}: {dims(p.shape)}" for name, p in graph.params.items())
        return f"Case({self.shape}, ({steps},), {self.mixed}, {self.expand})\n{graph}\n  # {params}"


def case(seed, vocabulary):
    """The case of this number."""
    r = random.Random(seed)
    shape = (r.randint(1, 3), r.choice((1, 2, 3, 3, 3, 4, 5, 17)), r.randint(1, SIDE), r.randint(1, SIDE))
    functions = [r.choice(vocabulary) for _ in range(r.randint(1, 7))]
    first = [embedded] if vocabulary is TOKENS else []
    steps = tuple((function, r.getrandbits(32)) for function in first + functions)
    return Case(shape, steps, r.random() < 0.15, r.random() < 0.3)


def smallest(failing, fails):
    """The case with fewer steps, and of one image, that still fails."""
    for i in reversed(range(len(failing.steps))):
        less = replace(failing, steps=failing.steps[:i] + failing.steps[i + 1 :])
        if fails(less):
            failing = less
    less = replace(failing, shape=(1, *failing.shape[1:]))
    return less if fails(less) else failing
