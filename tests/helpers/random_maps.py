"""Steps of a random graph that act on maps, or lead from maps to tokens and back."""

from helpers.random_draft import CHANNELS, SIDE, Draft, activated, added, normed, tail
from helpers.random_tokens import LAYERS

from refvit import ops


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
        y = r.choice(LAYERS)(d, r, y)
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
