"""Instructions of attention: `ops/attention.py` on values with any strides."""

from __future__ import annotations

import math
from collections.abc import Sequence

from refvit.backends.numba.cpu import target
from refvit.backends.numba.layout import Axis, Place, extent
from refvit.backends.numba.program import Argument, Instruction, bits
from refvit.errors import UnsupportedError

BLOCK, BEYOND = 128, 32  # as in the kernel
UNIT = 100_000  # cycles of a unit
UNITS = 24  # at least, for balance, unless they get shorter than
SHORT = 10_000  # cycles


def attention(q: Place, k: Place, v: Place, out: Place, scale: float, *, padded: int = 0) -> list[Instruction]:
    """softmax(q k^T scale) v. q (..., l, d), k (..., m, d), v (..., m, e), out (..., l, e); the last axis is contiguous.

    The other axes may have any strides; l and m may have two factors each, the leading axes any number. `padded` more keys
    and values are zero, with -100 added to the logits of these keys. UnsupportedError for other layouts.
    """
    places = (q, k, v, out)
    if not all(p.contiguous() for p in places):
        raise UnsupportedError(f"attention: a contiguous last axis expected, got {[p.axes[-1] for p in places]}")
    leading = [f for axes in zip(*(p.axes[:-2] for p in places), strict=True) for f in _common(axes)]
    l, d, m, e = q.shape[-2], q.shape[-1], k.shape[-2], v.shape[-1]
    lanes = target().lanes
    vectors = -(-l // lanes)
    panels, heads = -(-vectors // 3), math.prod(size for size, _ in leading)
    items = heads * panels
    per = _items_of_a_unit(items, m * (d + e + 16) * vectors // (2 * panels) + 1000)
    strides = [x for size, steps in leading for x in (size, *(4 * s for s in steps))]
    args: list[Argument] = [
        *(p.address for p in places), d, e, l, m, bits(scale), padded, items, per,
        *_two((q.axes[-2], out.axes[-2])), *_two((k.axes[-2], v.axes[-2])), len(leading), *strides,
    ]  # fmt: skip
    width = 3 * lanes
    wide = sum(-(-c // lanes) * lanes for c in (d, e)) + min(m, BLOCK) + 3  # rows of a panel
    scratch = 16 * width + 16 * (m + BEYOND) + 64 + 4 * width * wide + 4 * e
    macs = heads * l * m * (d + e)
    reads = list(dict.fromkeys(p.buffer for p in (q, k, v)))
    return [Instruction("attention.attention", args, -(-items // per), reads, [out.buffer], scratch, macs=macs)]


def _items_of_a_unit(items: int, cycles: int) -> int:
    """How many panels, of so many cycles each, a unit takes."""
    balanced = max(items // UNITS, -(-SHORT // cycles))
    return max(1, min(UNIT // cycles, balanced))


def _two(axes: tuple[Axis, Axis]) -> list[int]:
    """Inner extent, then outer and inner stride in bytes for each of two axes that run together."""
    factors = _common(axes)
    if len(factors) > 2:
        raise UnsupportedError(f"attention: at most two factors of the tokens expected, got {axes}")
    (_, outer), (inner, steps) = [(1, (0, 0)), (1, (0, 0)), *factors][-2:]
    return [inner, *(4 * s for pair in zip(outer, steps, strict=True) for s in pair)]


def _common(axes: Sequence[Axis]) -> list[tuple[int, tuple[int, ...]]]:
    """The coarsest factors that all axes can be cut into, outermost first: extent and the stride of each."""
    rest, cut = [list(axis) for axis in axes], []
    while any(rest):
        if not all(rest):
            raise UnsupportedError(f"attention: axes of the same extent expected, got {[extent(a) for a in axes]}")
        size = min(r[-1][0] for r in rest)
        steps = []
        for factors in rest:
            whole, step = factors.pop()
            if whole % size:
                raise UnsupportedError(f"attention: axes with factors that nest expected, got {list(axes)}")
            steps.append(step)
            if whole > size:
                factors.append((whole // size, step * size))
        cut.append((size, tuple(steps)))
    return cut[::-1]
