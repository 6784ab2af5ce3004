"""Attention of the Numba backend: any strides, any extents, the accuracy that float32 allows."""

import math

import numpy as np
import pytest
from helpers.kernels import Memory, run

from refvit import ops
from refvit.backends.numba.attention import attention
from refvit.backends.numba.layout import Place, dense
from refvit.backends.numba.program import Buffer
from refvit.errors import UnsupportedError

EPS = np.finfo(np.float32).eps


def places(shape_q, m, e, gap=3):
    """q, k, v as slices of buffers with gaps between rows, out likewise; shape_q (..., l, d)."""
    *lead, l, d = shape_q
    made = []
    for rows, width in ((l, d), (m, d), (m, e), (l, e)):
        step = width + gap
        buffer = Buffer(math.prod(lead) * rows * step)
        wide = dense(buffer, (*lead, rows, step))
        made.append(wide.slice(len(lead) + 1, 1, width) if gap else wide)
    return made


def check(q, k, v, out, scale, size=1.0, seed=0, offset=0.0):
    """Run and compare with float64 under the rule for float32."""
    rng = np.random.default_rng(seed)
    memory = Memory()
    inputs = []
    for place in (q, k, v):
        x = (rng.normal(size=place.shape) * size + offset).astype(np.float32)
        memory.fill(place, x)
        inputs.append(x)
    run(attention(q, k, v, out, scale), memory, seed)
    y = np.array(memory.view(out))
    golden = ops.attention(*(x.astype(np.float64) for x in inputs), scale=scale)
    plain = ops.attention(*inputs, scale=scale)
    peak = np.abs(golden).max()
    error, yardstick = np.abs(y - golden).max() / peak, np.abs(plain - golden).max() / peak
    assert error <= 4 * yardstick + 4 * EPS
    memory.fill(out, np.full(out.shape, np.nan))
    assert np.isnan(memory.values(out.buffer)).all()  # nothing but the value was written


@pytest.mark.parametrize(
    ("lead", "l", "m", "d", "e"),
    [
        ((1, 3), 197, 197, 64, 64),
        ((2, 3), 1, 197, 64, 64),
        ((4, 2), 16, 16, 60, 60),
        ((2, 2), 49, 49, 32, 32),
        ((1, 2), 33, 577, 16, 16),
        ((2,), 40, 1024, 36, 36),
        ((1, 2), 65, 257, 20, 24),
        ((), 5, 7, 3, 1),
        ((2, 1, 2), 1, 1, 1, 1),
        ((1, 2), 17, 2, 31, 17),
        ((3,), 31, 130, 80, 96),
    ],
)
def test_extents(lead, l, m, d, e):
    check(*places((*lead, l, d), m, e), d**-0.5, seed=l + m)


def qkv(n, l, heads, d):
    """As a transformer has them: one buffer (n, l, 3, heads, d) and an output (n, l, heads, d)."""
    joint = dense(Buffer(n * l * 3 * heads * d), (n, l, 3, heads, d))
    q, k, v = (joint.slice(2, i, 1).squeeze(2).transpose((0, 2, 1, 3)) for i in range(3))
    return q, k, v, dense(Buffer(n * l * heads * d), (n, l, heads, d)).transpose((0, 2, 1, 3))


@pytest.mark.parametrize(("n", "l", "heads", "d"), [(2, 50, 3, 64), (1, 65, 4, 20), (2, 9, 2, 7)])
def test_slices_of_one_buffer(n, l, heads, d):
    check(*qkv(n, l, heads, d), d**-0.5)


def patches(n, h, w, columns, first, count):
    """(n, h, w, columns) read as MobileViT's sequences: (n * 2 * 2, heads, rows * columns, d), without any move."""
    heads, d = count
    ld = columns
    axes = (
        tuple(f for f in ((n, h * w * ld), (2, w * ld), (2, ld)) if f[0] > 1),
        ((heads, d),),
        ((h // 2, 2 * w * ld), (w // 2, 2 * ld)),
        ((d, 1),),
    )
    return lambda buffer: Place(buffer, first, axes)


@pytest.mark.parametrize(("n", "h", "w"), [(1, 8, 8), (2, 6, 10), (2, 20, 34)])
def test_tokens_in_the_order_of_the_map(n, h, w):
    heads, d = 4, 12
    joint, alone = Buffer(n * h * w * 3 * heads * d), Buffer(n * h * w * heads * d)
    q, k, v = (patches(n, h, w, 3 * heads * d, i * heads * d, (heads, d))(joint) for i in range(3))
    out = patches(n, h, w, heads * d, 0, (heads, d))(alone)
    assert q.shape == (4 * n, heads, h * w // 4, d)
    check(q, k, v, out, d**-0.5)


def test_factors_that_only_some_places_have():
    """q's tokens are two factors and out's one; k's four heads are one factor and v's two."""
    q = Place(Buffer(4 * 6 * 400), 0, (((4, 2400),), ((6, 400), (5, 80)), ((8, 1),)))
    k = Place(Buffer(4 * 33 * 8), 0, (((4, 264),), ((33, 8),), ((8, 1),)))
    v = Place(Buffer(2000), 0, (((2, 900), (2, 300)), ((33, 9),), ((8, 1),)))
    out = Place(Buffer(4 * 30 * 8), 0, (((4, 8),), ((30, 32),), ((8, 1),)))
    check(q, k, v, out, 0.3)


@pytest.mark.parametrize("size", [1e-3, 5.0, 30.0, 1e3])
def test_sharp_and_flat(size):
    check(*places((2, 40, 32), 300, 32), 32**-0.5, size)


def test_shifted_logits():
    """All logits near -2000 in one sequence and +2000 in the other: only their differences count."""
    for offset in (-8.0, 8.0):
        check(*places((1, 20, 32), 45, 32), 1.0 if offset > 0 else -1.0, 1.0, offset=offset)


def test_rising_logits():
    """Every block of keys brings a new greatest score, and the first scores lie more than 2^127 below the last."""
    q, k, v, out = places((1, 18, 4), 1000, 5)
    memory, rng = Memory(), np.random.default_rng(1)
    x = [np.ones(q.shape, np.float32), np.zeros(k.shape, np.float32), rng.normal(size=v.shape).astype(np.float32)]
    x[1][..., 0] = np.linspace(-3000, 3000, 1000)
    x[0][..., ::2, :] *= -1
    for place, value in zip((q, k, v), x, strict=True):
        memory.fill(place, value)
    run(attention(q, k, v, out, 0.1), memory)
    golden = ops.attention(*(a.astype(np.float64) for a in x), scale=0.1)
    assert np.abs(memory.view(out) - golden).max() <= 64 * EPS * np.abs(golden).max()


def test_nan_stays():
    """NaN in a key reaches every query of its head, NaN in a query its own row, NaN in a value its own channel."""
    for where in range(3):
        q, k, v, out = places((2, 20, 8), 30, 9)
        memory, rng = Memory(), np.random.default_rng(where)
        x = [rng.normal(size=p.shape).astype(np.float32) for p in (q, k, v)]
        x[where][1, 5, 2] = np.nan
        for place, value in zip((q, k, v), x, strict=True):
            memory.fill(place, value)
        run(attention(q, k, v, out, 1.0), memory)
        golden = ops.attention(*x, scale=1.0)
        assert 0 < np.isnan(golden).sum() < golden.size
        np.testing.assert_array_equal(np.isnan(memory.view(out)), np.isnan(golden))


def test_units_do_not_change_bits():
    """A head alone gives what it gives among others."""
    q, k, v, out = qkv(2, 100, 3, 16)
    memory, rng = Memory(), np.random.default_rng(3)
    memory.fill(dense(q.buffer, (q.buffer.size,)), rng.normal(size=q.buffer.size))
    run(attention(q, k, v, out, 0.25), memory)
    together = np.array(memory.view(out))
    one = [p.slice(0, 1, 1).slice(1, 2, 1) for p in (q, k, v, out)]
    memory.values(out.buffer)[:] = np.nan
    run(attention(*one, 0.25), memory)
    np.testing.assert_array_equal(memory.view(one[3]), together[1:, 2:])


def test_layouts_that_are_refused():
    q, k, v, out = places((2, 8, 4), 8, 4)
    with pytest.raises(UnsupportedError, match="contiguous"):
        attention(q.transpose((0, 2, 1)), k, v, out, 1.0)
    three = Place(Buffer(1000), 0, (((2, 500),), ((2, 200), (2, 50), (2, 20)), ((4, 1),)))
    with pytest.raises(UnsupportedError, match="two factors"):
        attention(three, k, v, out, 1.0)
