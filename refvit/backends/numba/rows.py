"""Layer norm and softmax: rows of contiguous values that a unit reads into the first cache once."""

from __future__ import annotations

from refvit.backends.numba.copy import LayoutError, Loop, cursor, extent, loops, shares
from refvit.backends.numba.layout import Place
from refvit.backends.numba.program import Argument, Instruction, bits


def layer_norm(x: Place, weight: Place, bias: Place, eps: float, out: Place) -> list[Instruction]:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis, contiguous in all four. The other axes as they lie."""
    if not (weight.contiguous() and bias.contiguous()):
        raise LayoutError(f"layer_norm: weight {weight.axes} and bias {bias.axes} must be contiguous")
    d = x.shape[-1]
    more: list[Argument] = [weight.address, bias.address, bits(eps), bits(1 / d)]
    return [_rows("layer_norm", x, out, more, (weight, bias))]


def softmax(x: Place, out: Place) -> list[Instruction]:
    """exp(x - max) / sum(exp(x - max)) over the last axis, which is contiguous in both; the others as they lie."""
    return [_rows("softmax", x, out, [])]


def _rows(kernel: str, x: Place, out: Place, more: list[Argument], constants: tuple[Place, ...] = ()) -> Instruction:
    if not (x.contiguous() and out.contiguous()) or x.shape != out.shape:
        raise LayoutError(f"{kernel}: contiguous rows of one shape expected, got {x.axes} and {out.axes}")
    d = x.shape[-1]
    before = [Place(p.buffer, p.offset, p.axes[:-1]) for p in (out, x)]
    outer = loops(before) or [Loop(1, (0, 0))]
    total = extent(outer)
    per, units = shares(total, 8 * d)
    args: list[Argument] = [d, total, per, *more, *cursor(before, outer)]
    reads = [x.buffer, *(c.buffer for c in constants)]
    return Instruction(f"rows.{kernel}", args, units, reads, [out.buffer], scratch=256)
