"""Stripe attention of the Numba backend, against the definition: both directions, tail windows, shared places."""

import numpy as np
import pytest
from helpers.kernels import Memory, run

from refvit import ops
from refvit.backends.numba.layout import dense
from refvit.backends.numba.program import Buffer
from refvit.backends.numba.stripes import stripe_attention

EPS = np.finfo(np.float32).eps


def halves(n, h, w, half, vertical):
    """q, v and out as HRViT has them: a run of channels of wider channels-last maps, perhaps read transposed."""
    order = (0, 3, 2, 1) if vertical else (0, 3, 1, 2)
    joint, alone = (dense(Buffer(n * h * w * c), (n, h, w, c)) for c in (4 * half, 2 * half))
    slices = joint.slice(3, half, half), joint.slice(3, 3 * half, half), alone.slice(3, half, half)
    q, v, out = (p.transpose(order) for p in slices)
    return q, v, v, out


def compare(places, stripe, heads, scale, size=1.0, seed=0):
    """Run and hold against float64, under the rule for float32; what else lies in out's buffer stays as it was."""
    q, k, v, out = places
    rng = np.random.default_rng(seed)
    memory = Memory()
    x = [(rng.normal(size=p.shape) * size).astype(np.float32) for p in (q, k, v)]
    if k is v:
        x[1] = x[2]
    for place, value in zip((q, k, v), x, strict=True):
        memory.fill(place, value)
    run(stripe_attention(q, k, v, out, stripe, heads, scale), memory, seed)
    y = np.array(memory.view(out))
    arguments = {"stripe": stripe, "num_heads": heads, "scale": scale}
    golden = ops.stripe_attention(*(a.astype(np.float64) for a in x), **arguments)
    yardstick = np.abs(ops.stripe_attention(*x, **arguments) - golden).max()
    assert np.abs(y - golden).max() <= 4 * yardstick + 4 * EPS * np.abs(golden).max()
    memory.fill(out, np.full(out.shape, np.nan))
    assert np.isnan(memory.values(out.buffer)).all()
    return y


@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize(
    ("n", "h", "w", "half", "heads", "stripe"),
    [
        (1, 56, 56, 16, 1, 1),
        (2, 28, 28, 32, 2, 2),
        (1, 14, 14, 64, 2, 7),
        (2, 7, 7, 64, 4, 7),
        (1, 16, 16, 32, 2, 7),
        (2, 9, 5, 12, 3, 2),
        (1, 3, 3, 17, 1, 7),
        (1, 1, 1, 3, 3, 1),
        (1, 5, 4, 31, 1, 3),
        (1, 15, 16, 24, 2, 7),
    ],
)
def test_sizes(n, h, w, half, heads, stripe, vertical):
    compare(halves(n, h, w, half, vertical), stripe, heads, (half // heads) ** -0.5, seed=h * w)


def test_three_places():
    places = tuple(dense(Buffer(2 * 6 * 5 * 8), (2, 8, 6, 5), (0, 2, 3, 1)) for _ in range(4))
    compare(places, 4, 2, 0.5)


@pytest.mark.parametrize("size", [0.1, 3.0, 12.0])
def test_padded_keys_count(size):
    """Logits far below -100, where the padded keys take all the weight and the answer is nearly zero, and far above."""
    compare(halves(1, 8, 6, 16, False), 7, 1, 1.0, size)


def test_padded_keys_take_part():
    """One valid row of keys with logit -100 - log 3 each and six padded rows with -100: the weights are 1 to 3."""
    q, _, _, out = halves(1, 8, 2, 16, False)
    k, v = (dense(Buffer(8 * 2 * 16), (1, 16, 8, 2), (0, 2, 3, 1)) for _ in range(2))
    memory = Memory()
    ones, keys = np.zeros(q.shape, np.float32), np.zeros(k.shape, np.float32)
    ones[:, 0], keys[:, 0] = 1, -100 - np.log(3)
    values = np.random.default_rng(0).normal(size=v.shape).astype(np.float32)
    for place, value in ((q, ones), (k, keys), (v, values)):
        memory.fill(place, value)
    run(stripe_attention(q, k, v, out, 7, 1, 1.0), memory)
    expected = values[:, :, 7:].sum(axis=3, keepdims=True) / (2 + 12 * 3)
    np.testing.assert_allclose(memory.view(out)[:, :, 7:], np.broadcast_to(expected, (1, 16, 1, 2)), rtol=2e-5)
