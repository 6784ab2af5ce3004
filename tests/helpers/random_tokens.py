"""Steps of a random graph that act on tokens."""

from helpers.random_draft import CHANNELS, LONGEST, activated, normed, tail

from refvit import ops
from refvit.errors import ShapeError


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


LAYERS = (_attention, _mlp, _norm, _softmax)  # as parts of other steps


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
