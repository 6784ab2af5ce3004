"""Instructions of stripe attention: `ops/window.py` as attention with windows and heads as leading axes."""

from __future__ import annotations

from dataclasses import replace

from refvit.backends.numba.attention import attention
from refvit.backends.numba.layout import Place, merge
from refvit.backends.numba.program import Instruction


def stripe_attention(q: Place, k: Place, v: Place, out: Place, stripe: int, num_heads: int, scale: float) -> list[Instruction]:
    """Attention in horizontal stripes of `stripe` rows. q, k, v, out (n, c, h, w), channels contiguous, other strides any.

    A last stripe with fewer rows is an instruction of its own. The zeros that fill it up are not computed: their logits are
    known to be -100 and their values to be zero.
    """
    h, w = q.shape[2:]
    full, left = divmod(h, stripe)
    instructions = []
    for first, count, rows in ((0, full, stripe), (full * stripe, 1, left)):
        if count and rows:
            a, b, c, y = (_windows(x, first, count, rows, num_heads) for x in (q, k, v, out))
            instructions += attention(a, b, c, y, scale, padded=(stripe - rows) * w)
    return instructions


def _windows(x: Place, first: int, count: int, rows: int, num_heads: int) -> Place:
    """`count` stripes of `rows` rows from row `first` on: (n, c, h, w) to (n, count, heads, rows w, d)."""
    step, d = x.stride(2), x.shape[1] // num_heads
    tokens = merge([(rows, step), *x.axes[3]])
    axes = (x.axes[0], merge([(count, rows * step)]), merge([(num_heads, d)]), tokens, merge([(d, 1)]))
    return replace(x, offset=x.offset + first * step, axes=axes)
