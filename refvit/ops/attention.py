"""Scaled dot-product attention, written out: the softmax is a value one can look at."""

from __future__ import annotations

import math

from refvit.errors import ShapeError
from refvit.graph.ir import Array, HasShape, Shape
from refvit.graph.trace import op
from refvit.ops.activation import softmax


def _attention_shape(q: HasShape, k: HasShape, v: HasShape, *, scale: float) -> Shape:
    fits = q.shape[-1:] == k.shape[-1:] and k.shape[:-1] == v.shape[:-1] and q.shape[:-2] == k.shape[:-2]
    if not fits or min(len(q.shape), len(k.shape)) < 2 or k.shape[-2] < 1:
        raise ShapeError(
            f"attention: q (..., l, d), k (..., m, d) and v (..., m, e) expected, got {q.shape}, {k.shape} and {v.shape}"
        )
    return (*q.shape[:-1], v.shape[-1])


def _attention_macs(q: HasShape, k: HasShape, v: HasShape, *, scale: float) -> int:
    return math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


@op(shape=_attention_shape, macs=_attention_macs, composite=True)
def attention(q: Array, k: Array, v: Array, *, scale: float) -> Array:
    """softmax(q k^T scale) v, as torch's scaled_dot_product_attention without mask (Vaswani et al. 2017, equation 1).

    q (..., l, d), k (..., m, d), v (..., m, e) -> (..., l, e). The queries are scaled before the product.
    """
    return softmax((q * scale) @ k.swapaxes(-1, -2), axis=-1) @ v  # (..., l, m) @ (..., m, e)
