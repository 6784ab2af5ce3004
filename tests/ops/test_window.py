"""Stripe attention against loops over stripes, heads and pixels, with the padded keys written out."""

import math

import numpy as np
import pytest

from refvit import ops
from refvit.graph.ir import OPS, ShapeOnly

RNG = np.random.default_rng(11)


def loops(q, k, v, stripe, num_heads, scale):
    n, c, h, w = q.shape
    d = c // num_heads
    y = np.zeros_like(q)
    for b, head, top in np.ndindex(n, num_heads, math.ceil(h / stripe)):
        channels = slice(head * d, (head + 1) * d)
        rows = range(top * stripe, (top + 1) * stripe)
        pixels = [(r, s) for r in rows for s in range(w)]
        for r, s in ((r, s) for r, s in pixels if r < h):
            logits, values = [], []
            for kr, ks in pixels:
                inside = kr < h
                logits.append(scale * float(q[b, channels, r, s] @ k[b, channels, kr, ks]) if inside else -100.0)
                values.append(v[b, channels, kr, ks] if inside else np.zeros(d))
            weights = np.exp(np.array(logits) - max(logits))
            y[b, channels, r, s] = (weights / weights.sum()) @ np.array(values)
    return y


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("shape", "stripe", "heads"), [((1, 4, 4, 3), 2, 2), ((2, 6, 5, 4), 2, 3), ((1, 2, 7, 2), 7, 1), ((1, 2, 3, 5), 7, 2)]
)
def test_equals_loops(shape, stripe, heads, dtype):
    q, k, v = (RNG.standard_normal(shape).astype(dtype) for _ in range(3))
    got = ops.stripe_attention(q, k, v, stripe=stripe, num_heads=heads, scale=0.6)
    expected = loops(*(a.astype(np.float64) for a in (q, k, v)), stripe, heads, 0.6)
    np.testing.assert_allclose(got, expected, rtol=0, atol={"float64": 1e-13, "float32": 3e-6}[dtype])


def test_padded_keys_count_when_every_other_logit_is_lower():
    """-100 is not minus infinity: with all real logits at -200 the padded zeros win."""
    q, k = np.full((1, 1, 1, 1), 20.0), np.full((1, 1, 1, 1), -10.0)
    v = np.ones((1, 1, 1, 1))
    y = ops.stripe_attention(q, k, v, stripe=2, num_heads=1, scale=1.0)
    assert y[0, 0, 0, 0] == pytest.approx(math.exp(-100), rel=1e-9)


def test_macs_are_those_of_both_products_padding_included():
    n, c, h, w, stripe = 2, 6, 5, 4, 3
    tokens, count = stripe * w, 2
    macs = OPS["stripe_attention"].macs(*[ShapeOnly((n, c, h, w))] * 3, stripe=stripe, num_heads=3, scale=1.0)
    assert macs == 2 * n * count * tokens * tokens * c


def test_mask_tail_touches_the_last_window_only():
    x = RNG.standard_normal((2, 3, 1, 2, 4))
    y = ops.mask_tail(x, valid=3, value=-7.0)
    difference = np.zeros_like(x)
    difference[:, 2, :, :, 3] = -7
    np.testing.assert_array_equal(y, x + difference)
