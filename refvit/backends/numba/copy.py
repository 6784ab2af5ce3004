"""Values moved to another place: transposes, broadcasts, slices, borders; and the loops that other row kernels share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refvit.backends.numba.layout import Factor, Place
from refvit.backends.numba.program import Argument, Buffer, Instruction

UNIT = 1 << 16  # bytes that a unit writes, about
RUN = 4096  # longest row in values: what a kernel reads more than once stays in the first cache


class LayoutError(Exception):
    """Places that a kernel cannot read or write as they lie: an error of the lowering, which must copy first."""


@dataclass(frozen=True)
class Loop:
    """An extent, and of each place the stride in values."""

    extent: int
    strides: tuple[int, ...]


def loops(places: Sequence[Place]) -> list[Loop]:
    """The loops over values that have one shape, outermost first in the order of the first place's memory.

    Axes are cut into the factors that all places share, and loops that one stride covers are merged. LayoutError if the factors
    of an axis do not nest.
    """
    made: list[Loop] = []
    for axis, factors in enumerate(zip(*(place.axes for place in places), strict=True)):
        stacks: list[list[Factor]] = [list(f) for f in factors]
        while any(stacks):
            if not all(stacks):
                raise LayoutError(f"axis {axis} of {[p.shape for p in places]} is of different extents")
            size = min(stack[-1][0] for stack in stacks)
            if any(stack[-1][0] % size for stack in stacks):
                raise LayoutError(f"axis {axis} of {[p.axes for p in places]}: the factors do not nest")
            made.append(Loop(size, tuple(stack[-1][1] for stack in stacks)))
            for stack in stacks:
                n, step = stack.pop()
                if n > size:
                    stack.append((n // size, step * size))
    made.sort(key=lambda loop: -loop.strides[0])
    merged: list[Loop] = []
    for loop in made:
        if merged and merged[-1].strides == tuple(s * loop.extent for s in loop.strides):
            loop = Loop(merged.pop().extent * loop.extent, loop.strides)
        merged.append(loop)
    return merged


def cursor(places: Sequence[Place], outer: Sequence[Loop]) -> list[Argument]:
    """The arguments that `kernels.copy.seek` reads: loops, places, first addresses; of each loop extent and byte strides."""
    outer = outer or [Loop(1, (0,) * len(places))]
    words: list[Argument] = [len(outer), len(places), *(place.address for place in places)]
    for loop in outer:
        words += [loop.extent, *(4 * s for s in loop.strides)]
    return words


def shares(items: int, size: float) -> tuple[int, int]:
    """(items of a unit, units) for items that write `size` bytes each: 1 unit, or at least 8 of about `UNIT` bytes."""
    wanted = max(1, min(256, round(items * size / UNIT)))
    if wanted > 1:
        wanted = max(8, wanted)
    per = -(-items // min(items, wanted))
    return per, -(-items // per)


def pieces(loop: Loop, longest: int = RUN) -> tuple[list[Loop], int, int]:
    """A long run as (loop over pieces, values of a piece, values that are left at the end)."""
    if loop.extent <= longest:
        return [], loop.extent, 0
    fit = [n for n in range(longest // 8, longest + 1) if loop.extent % n == 0]
    size = max(fit, key=lambda n: (n % 16 == 0, n), default=longest)
    return [Loop(loop.extent // size, tuple(s * size for s in loop.strides))], size, loop.extent % size


def moved(places: Sequence[Place], loop: Loop, start: int) -> list[Place]:
    """The places from element `start` of a loop on."""
    return [Place(p.buffer, p.offset + start * s, p.axes) for p, s in zip(places, loop.strides, strict=True)]


def extent(outer: Sequence[Loop]) -> int:
    count = 1
    for loop in outer:
        count *= loop.extent
    return count


def copy(source: Place, target: Place) -> list[Instruction]:
    """target = source, of one shape and any strides, in the source 0 as well. LayoutError unless the axes' factors nest."""
    if source.shape != target.shape:
        raise LayoutError(f"copy: {source.shape} to {target.shape}")
    nest = loops([target, source])
    unit = next((loop for loop in nest if loop.strides[0] == 1), None)
    across = next((loop for loop in nest if loop.strides[1] == 1), None)
    if unit is not None and unit.strides[1] in (0, 1):
        return _runs("spread" if unit.strides[1] == 0 else "runs", [target, source], nest, unit)
    if unit is None or across is None:
        inner = unit or (nest[-1] if nest else Loop(1, (1, 1)))
        return _runs("strided", [target, source], nest, inner)
    if unit.extent == 3 and across.strides[0] == 3:
        rest = [loop for loop in nest if loop is not unit]
        return _runs("interleaved", [target, source], rest, across, unit.strides[1])
    if unit.extent <= 4:  # few planes: not worth a turn in registers
        return _runs("strided", [target, source], [loop for loop in nest if loop is not across], across)
    return _transposed(target, source, nest, unit, across)


def _runs(kernel: str, places: Sequence[Place], nest: Sequence[Loop], run: Loop, between: int = 0) -> list[Instruction]:
    outer = [loop for loop in nest if loop is not run]
    parts, size, left = pieces(run)
    made = [_rows(kernel, places, [*outer, *parts], size, run.strides, between)]
    if left:
        made.append(_rows(kernel, moved(places, run, run.extent - left), outer, left, run.strides, between))
    return made


def _rows(
    kernel: str, places: Sequence[Place], outer: Sequence[Loop], size: int, strides: tuple[int, ...], between: int
) -> Instruction:
    total = extent(outer)
    per, units = shares(total, 4 * size)
    args = [size, total, per, 4 * strides[0], 4 * strides[1], 4 * between, *cursor(places, outer)]
    return Instruction(f"copy.{kernel}", args, units, [places[1].buffer], [places[0].buffer], scratch=256)


def _transposed(target: Place, source: Place, nest: Sequence[Loop], unit: Loop, across: Loop) -> list[Instruction]:
    outer = [loop for loop in nest if loop is not unit and loop is not across]
    n, m = min(unit.extent, 256), min(across.extent, 64)  # of a block
    parts = (-(-unit.extent // n), -(-across.extent // m))
    total = extent(outer) * parts[0] * parts[1]
    per, units = shares(total, 4 * n * m)
    args = [
        unit.extent, across.extent, n, m, *parts, total, per, 4 * unit.strides[1], 4 * across.strides[0],
        *cursor([target, source], outer),
    ]  # fmt: skip
    return [Instruction("copy.transposed", args, units, [source.buffer], [target.buffer], scratch=256)]


def fill(target: Place, value: float) -> list[Instruction]:
    """target = value everywhere; any strides."""
    one = Place(Buffer(1, array=np.array([value], np.float32)), 0, tuple(() for _ in target.axes))
    return copy(one.broadcast(target.shape), target)


def pad(source: Place, target: Place, widths: Sequence[tuple[int, int]], value: float) -> list[Instruction]:
    """target = source within a border. Axes of the target that get one are of a single factor."""
    made: list[Instruction] = []
    inner = target
    for axis, (before, after) in enumerate(widths):
        size = source.shape[axis]
        for start, count in ((0, before), (before + size, after)):
            if count:
                made += fill(_part(inner, axis, start, count), value)
        inner = _part(inner, axis, before, size)
    return [*made, *copy(source, inner)]


def _part(place: Place, axis: int, start: int, count: int) -> Place:
    part = place.slice(axis, start, count)
    if part is None:
        raise LayoutError(f"pad: axis {axis} of {place.axes} has several factors")
    return part
