"""Sums and products of maps value by value, activations, and terms that are enlarged on their way into a sum.

The steps of a `fused` node without a product, or the one step of a plain node, are a chain: a first term, and what is done to
it. They become passes over the result, each of which adds up to four terms (or multiplies two), then scales, then activates.
Nearly always one pass is enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from refvit.backends.numba.copy import LayoutError, Loop, copy, cursor, extent, loops, moved, pieces, shares
from refvit.backends.numba.epilogue import ACT
from refvit.backends.numba.layout import Place, dense
from refvit.backends.numba.program import Address, Argument, Buffer, Instruction, bits
from refvit.backends.numba.resize import pixel_strides, resize, table
from refvit.graph.ir import Step

__all__ = ["LayoutError", "combine"]

SEGMENT = 2048  # values of the result that several passes visit while they are in the first cache


@dataclass(frozen=True)
class Term:
    """An input, and how it is resized on its way."""

    place: Place
    resize: Mapping[str, Any] | None = None


@dataclass
class Pass:
    """out = act(scale * (the terms' sum or product))."""

    terms: list[Term]
    product: bool = False
    scale: float = 1.0
    act: int = 0

    @property
    def plain(self) -> bool:
        return self.scale == 1.0 and not self.act


def combine(steps: Sequence[Step], inputs: Sequence[Place], out: Place) -> list[Instruction]:
    """out = the steps' result; steps of relu, silu, gelu, hardswish, sigmoid, scale, add, multiply, resize and broadcast.

    Where out has stride 1, every term has stride 1 or 0. Otherwise strides are free and factors must nest. A resized term and
    what is summed with it are maps of one stride an axis with contiguous channels. LayoutError where that does not hold, or
    where the steps are no chain.
    """
    if len(steps) == 1 and steps[0].op == "resize":
        return resize(inputs[0], out, **steps[0].attrs)
    if len(steps) == 1 and steps[0].op == "broadcast":
        return copy(inputs[0].broadcast(out.shape), out)
    made: list[Instruction] = []
    for p in _passes(steps, inputs, out):
        made += _emit(p, out)
    return made


def act_code(op: str, attrs: Mapping[str, Any]) -> int:
    """The number of an activation op with its attributes."""
    return ACT["gelu_tanh" if op == "gelu" and attrs["approximate"] == "tanh" else op]


def _passes(steps: Sequence[Step], inputs: Sequence[Place], out: Place) -> list[Pass]:
    values: list[Term | None] = [Term(p) for p in inputs]  # None: the chain's
    made: list[Pass] = []
    chain = -1
    result = Term(out)
    for step in steps:
        numbers = [i for i in step.inputs if i is not None]
        terms = [values[i] for i in numbers]
        if any(t is None and i != chain for t, i in zip(terms, numbers, strict=True)):
            raise LayoutError(f"combine: {[s.op for s in steps]} are no chain")
        first = terms[0]
        if step.op in ("resize", "broadcast"):
            if first is None or first.resize is not None:
                raise LayoutError(f"combine: {step.op} of a sum or of a resized term")
            values.append(replace(first, resize=step.attrs) if step.op == "resize" else first)
            continue
        if all(t is not None for t in terms):
            if made:
                raise LayoutError(f"combine: {[s.op for s in steps]} are no chain")
            made.append(Pass([t for t in terms[:1] if t is not None]))
            terms = terms[1:]
        else:
            terms = [t for t in terms if t is not None]
        last = made[-1]
        if step.op == "add":
            if len(terms) != 1:
                raise LayoutError("combine: a sum of a sum and itself")
            if not last.plain or last.product:
                made.append(last := Pass([result]))
            last.terms += [t for t in terms if t]
        elif step.op == "multiply":
            if len(terms) != 1:
                raise LayoutError("combine: a product of a sum and itself")
            if not last.plain or len(last.terms) > 1:
                made.append(last := Pass([result]))
            last.product = True
            last.terms += [t for t in terms if t]
        elif step.op == "scale":
            if not last.plain:
                made.append(last := Pass([result]))
            last.scale = step.attrs["factor"]
        else:
            if last.act:
                made.append(last := Pass([result]))
            last.act = act_code(step.op, step.attrs)
        chain = len(values)
        values.append(None)
    if chain != len(values) - 1:
        raise LayoutError(f"combine: the last of {[s.op for s in steps]} is no value of the chain")
    return made


def _emit(p: Pass, out: Place) -> list[Instruction]:
    made: list[Instruction] = []
    terms = []
    for t in p.terms:
        alike = t.resize is None or all(b in (1, s) for b, s in zip(t.place.shape[2:], out.shape[2:], strict=True))
        if alike:  # of one pixel every rule makes copies
            t = Term(t.place.broadcast(out.shape))
        elif t.resize is not None and (p.product or _mode(t) == "other"):
            whole = _map_of_its_own(out)  # for what no pass can read
            made += resize(t.place, whole, **t.resize)
            t = Term(whole)
        terms.append(t)
    if all(t.resize is None for t in terms):
        return [*made, *_sums(p, [t.place for t in terms], out)]
    for i, t in enumerate(terms):
        if t.resize is None and not t.place.channels_last:  # one value for many channels, say
            whole = _map_of_its_own(out)
            made += copy(t.place, whole)
            terms[i] = Term(whole)
    single, double = ([t for t in terms if (_mode(t) == "bilinear") == smooth] for smooth in (False, True))
    while len(single) > 4:
        made.append(_maps(Pass([]), single[:4], [], out))
        single = [Term(out), *single[4:]]
    return [*made, _maps(p, single, double, out)]


def _map_of_its_own(out: Place) -> Place:
    return dense(Buffer(math.prod(out.shape)), out.shape, (0, 2, 3, 1))


def _mode(term: Term) -> str:
    """ "nearest" or "bilinear" without antialiasing, "other", or "" if the term is not resized."""
    if term.resize is None:
        return ""
    mode = term.resize["mode"]
    return "other" if term.resize.get("antialias", False) or mode == "bicubic" else mode


def _sums(p: Pass, terms: list[Place], out: Place) -> list[Instruction]:
    nest = loops([out, *terms])
    run = next((loop for loop in nest if loop.strides[0] == 1), Loop(1, (1,) * (1 + len(terms))))
    if any(s not in (0, 1) for s in run.strides):
        raise LayoutError(f"combine: {[t.axes for t in terms]} are not contiguous where {out.axes} is")
    flat = [t for t, s in zip(terms, run.strides[1:], strict=True) if s == 1]
    level = [t for t, s in zip(terms, run.strides[1:], strict=True) if s == 0]
    made: list[Instruction] = []
    if not flat:
        made += copy(level.pop(), out)
        flat.append(out)
    todo: list[tuple[str, list[Place]]] = []
    if p.product:
        todo.append(("product_level" if level else "product", [*flat, *level]))
    else:
        while len(flat) > 1 or not (todo or level):
            todo.append((("one", "two", "three", "four")[min(4, len(flat)) - 1], flat[:4]))
            flat = [out, *flat[4:]]
        for t in level:
            todo.append(("two_level", [flat[0], t]))
            flat = [out]
    for i, (kernel, places) in enumerate(todo):
        last = i == len(todo) - 1
        made += _runs(kernel, [out, *places], p.scale if last else 1.0, p.act if last else 0)
    return made


def _runs(kernel: str, places: list[Place], scale: float, act: int) -> list[Instruction]:
    nest = loops(places)
    run = next((loop for loop in nest if loop.strides[0] == 1), Loop(1, (1,) * len(places)))
    outer = [loop for loop in nest if loop is not run]
    parts, size, left = pieces(run)
    made = []
    for these, around, n in ((places, [*outer, *parts], size), (moved(places, run, run.extent - left), outer, left)):
        if n:
            total = extent(around)
            per, units = shares(total, 4 * n * (len(places) - 1))
            args: list[Argument] = [n, total, per, act, bits(scale), *cursor(these, around)]
            buffers = [q.buffer for q in places]
            made.append(Instruction(f"combine.{kernel}", args, units, buffers[1:], buffers[:1], scratch=256))
    return made


def _maps(p: Pass, single: list[Term], double: list[Term], out: Place) -> Instruction:
    n, c, h, w = out.shape
    pixels = min(w, max(1, SEGMENT // c))
    segments = -(-w // pixels)
    per, units = shares(n * h * segments, 4 * c * pixels * (len(single) + 2 * len(double)))
    args: list[Argument] = [c, h, w, pixels, segments, n * h * segments, per, p.act, bits(p.scale), len(single), len(double)]
    args += [out.address, *pixel_strides(out)]
    reads = []
    for t in (*single, *double):
        across, down, along = pixel_strides(t.place)
        args += [t.place.address, across]
        reads.append(t.place.buffer)
        align_corners = t.resize is not None and t.resize["align_corners"]
        for axis, step in ((2, down), (3, along)):
            sizes = out.shape[axis] if t.resize is None else t.place.shape[axis], out.shape[axis]
            words = table(*sizes, step, _mode(t) or "nearest", align_corners, False, pairs=t in double)
            constant = Buffer(2 * words.size, array=words)
            args.append(Address(constant))
            reads.append(constant)
    return Instruction("combine.maps", args, units, reads, [out.buffer], scratch=4 * pixels * ((c + 15) // 16 * 16))
