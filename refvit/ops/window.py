"""Attention within stripes of a map: HRViT's cross-shaped windows (Gu et al. 2021, section 3.2; Dong et al. 2021)."""

from __future__ import annotations

import math

from refvit.errors import ShapeError
from refvit.graph.ir import Array, HasShape, Shape
from refvit.graph.trace import op
from refvit.ops.activation import softmax
from refvit.ops.movement import pad

PADDED = -100.0  # added to the logits of padded keys: as the models were trained, and not minus infinity


def _mask_tail_shape(x: HasShape, *, valid: int, value: float) -> Shape:
    if len(x.shape) != 5 or not 0 < valid <= x.shape[4]:
        raise ShapeError(f"mask_tail: (n, windows, heads, l, m) and 1 <= valid <= m expected, got {x.shape} and {valid}")
    return tuple(x.shape)


@op(shape=_mask_tail_shape)
def mask_tail(x: Array, *, valid: int, value: float) -> Array:
    """Add `value` in the last window to the logits of keys from `valid` on. x (n, windows, heads, l, m) -> same."""
    x = x.copy()
    x[:, -1, :, :, valid:] += value
    return x


def _stripe_shape(q: HasShape, k: HasShape, v: HasShape, *, stripe: int, num_heads: int, scale: float) -> Shape:
    same = q.shape == k.shape == v.shape
    if not same or len(q.shape) != 4 or stripe < 1 or num_heads < 1 or q.shape[1] % num_heads or not min(q.shape):
        raise ShapeError(
            f"stripe_attention: three maps (n, c, h, w) of one shape, c a multiple of num_heads={num_heads}, and a stripe of "
            f"at least 1 expected, got {q.shape}, {k.shape}, {v.shape} and {stripe}"
        )
    return tuple(q.shape)


def _stripe_macs(q: HasShape, k: HasShape, v: HasShape, *, stripe: int, num_heads: int, scale: float) -> int:
    n, c, h, w = q.shape
    return 2 * n * c * math.ceil(h / stripe) * (stripe * w) ** 2


@op(shape=_stripe_shape, macs=_stripe_macs, composite=True)
def stripe_attention(q: Array, k: Array, v: Array, *, stripe: int, num_heads: int, scale: float) -> Array:
    """Multi-head attention in horizontal stripes of `stripe` rows. q, k, v (n, c, h, w) -> same; heads are runs of channels.

    A map whose rows are no multiple of the stripe is padded with zeros below; -100 is added to the logits of padded keys, and
    the padded rows are dropped again. Vertical stripes are horizontal ones of the transposed map.
    """
    n, c, h, w = q.shape
    count, d = math.ceil(h / stripe), c // num_heads
    missing = count * stripe - h

    def windows(x: Array) -> Array:  # (n, count, heads, stripe w, d)
        x = pad(x, widths=((0, 0), (0, 0), (0, missing), (0, 0))) if missing else x
        return x.reshape(n, num_heads, d, count, stripe * w).transpose(0, 3, 1, 4, 2)

    scores = (windows(q) * scale) @ windows(k).swapaxes(-1, -2)
    if missing:
        scores = mask_tail(scores, valid=(stripe - missing) * w, value=PADDED)
    y = softmax(scores, axis=-1) @ windows(v)
    return y.transpose(0, 2, 4, 1, 3).reshape(n, c, count * stripe, w)[:, :, :h]
