"""A whole plan between guards: one thread, instruction by instruction, everything that is not declared out of reach.

Buffers share an arena as in a real run, laid out by the same planner with room for guards around each. While an instruction
runs, only what it declares to read or write holds values: other live buffers, dead ones, guards and scratch hold a NaN of a
pattern that is recognised afterwards. A read of any of them spoils the outputs, a write is an error at once.
"""

import ctypes

import numpy as np

from refvit.backends.numba import memory
from refvit.backends.numba.program import Address, Buffer, Function, Instruction
from refvit.backends.numba.team import team

GUARD = 64  # values on either side of a buffer
POISON = np.int32(0x7FC0DEAD)  # a quiet NaN
KERNEL = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)


class RedzoneError(AssertionError):
    pass


class _Space:
    """Memory in which buffers lie at given places, aligned to a cache line."""

    def __init__(self, offsets, size):
        raw = np.empty(size + 16, np.int32)
        start = (-raw.ctypes.data % 64) // 4
        self.values = raw[start : start + size]
        self.values[:] = POISON
        self.begins = offsets  # buffer -> number of its first value

    def part(self, buffer):
        begin = self.begins[buffer]
        return slice(begin, begin + buffer.size)


def _beside(buffers):
    """Places one behind another, with guards between, and the size of all."""
    at, places = GUARD, {}
    for buffer in buffers:
        places[buffer] = at
        at += -(-(buffer.size + GUARD) // 16) * 16
    return places, at


class Redzones:
    """`Redzones(plan).run(arrays)` gives the outputs of a `Plan`, or raises RedzoneError."""

    def __init__(self, plan):
        self.plan = plan
        touched = dict.fromkeys(b for i in plan.instructions for b in (*i.reads, *i.writes, *_named(i)))
        wide = {b: Buffer(b.size + 2 * GUARD) for b in touched if b.array is None and b.public is None}
        twins = [
            Instruction("", (), 1, [wide[b] for b in i.reads if b in wide], [wide[b] for b in i.writes if b in wide])
            for i in plan.instructions
        ]
        offsets, size = memory.plan(twins)
        lives = memory.lifetimes(twins)
        self.lives = {b: lives[w] for b, w in wide.items() if w in lives}
        own = {b: offsets[w] // 4 + GUARD for b, w in wide.items() if w in offsets}
        outside, more = _beside([b for b in touched if b.public is not None])
        own |= {b: size // 4 + at for b, at in outside.items()}
        self.work = _Space(own, size // 4 + more)
        self.fixed = _Space(*_beside([b for b in touched if b.array is not None]))
        for b in self.fixed.begins:
            self.fixed.values[self.fixed.part(b)] = b.array.reshape(-1).view(np.int32)
        gaps = np.ones(len(self.fixed.values), bool)
        for b in self.fixed.begins:
            gaps[self.fixed.part(b)] = False
        self.gaps = np.flatnonzero(gaps)
        self.scratch = np.empty(-(-plan.scratch // 4) + 2 * GUARD + 16, np.int32)
        self.scratch = self.scratch[(-self.scratch.ctypes.data % 64) // 4 :]

    def run(self, arrays, apart=False, seed=0):
        """The outputs by name, for inputs by name; units in random order.

        apart: run each unit from what was there before the instruction as well, and compare: units must neither read nor write
        what others of their instruction write.
        """
        rng = np.random.default_rng(seed)
        self.work.values[:] = POISON
        public = {b.public: b for b in self.work.begins if b.public is not None}
        for name, array in arrays.items():
            self.work.values[self.work.part(public[name])] = array.reshape(-1).view(np.int32)
        for number, instruction in enumerate(self.plan.instructions):
            what = f"instruction {number}, {instruction.kernel} of {instruction.node or 'no node'}"
            self._one(instruction, what, rng, apart)
            for b, (_, last) in self.lives.items():
                if last == number:
                    self.work.values[self.work.part(b)] = POISON
        for b in self.fixed.begins:
            if not (self.fixed.values[self.fixed.part(b)] == b.array.reshape(-1).view(np.int32)).all():
                raise RedzoneError("a constant was changed")
        return {
            name: self.work.values[self.work.part(public[name])].view(np.float32).reshape(shape).copy()
            for name, shape in self.plan.outputs.items()
        }

    def _one(self, instruction, what, rng, apart):
        values = self.work.values
        before = values.copy()
        hidden = np.ones(len(values), bool)
        for b in (*instruction.reads, *instruction.writes):
            if b in self.work.begins:
                hidden[self.work.part(b)] = False
        values[hidden] = POISON
        writes = [self.work.part(b) for b in instruction.writes]
        start = [values[w].copy() for w in writes]
        for b in instruction.reads:
            if b in self.work.begins and b not in instruction.writes:
                hidden[self.work.part(b)] = True  # to be found unchanged, too
        expected = values[hidden].copy()
        call, table = self._call(instruction)
        units = rng.permutation(instruction.units)
        for unit in units:
            self._unit(instruction, what, call, table, unit)
        self._check(what, hidden, expected)
        if apart and instruction.units > 1:
            whole = [values[w].copy() for w in writes]
            taken = [np.zeros(w.stop - w.start, bool) for w in writes]
            merged = [s.copy() for s in start]
            for unit in units:
                for w, s in zip(writes, start, strict=True):
                    values[w] = s
                self._unit(instruction, what, call, table, unit)
                for w, s, t, m in zip(writes, start, taken, merged, strict=True):
                    changed = values[w] != s
                    if (changed & t).any():
                        raise RedzoneError(f"{what}: unit {unit} writes what another unit writes")
                    t |= changed
                    m[changed] = values[w][changed]
            self._check(what, hidden, expected)
            if any((a != b).any() for a, b in zip(whole, merged, strict=True)):
                raise RedzoneError(f"{what}: a unit reads what another unit writes")
            for w, a in zip(writes, whole, strict=True):
                values[w] = a
        kept = np.ones(len(values), bool)
        for w in writes:
            kept[w] = False
        values[kept] = before[kept]

    def _call(self, instruction):
        objects = team().objects
        words = []
        for a in instruction.args:
            if isinstance(a, Address):
                space = self.fixed if a.buffer.array is not None else self.work
                words.append(space.values.ctypes.data + 4 * space.begins[a.buffer] + a.offset)
            else:
                words.append(objects[a.name] if isinstance(a, Function) else int(a))
        return KERNEL(objects[instruction.kernel]), np.array(words, np.int64)

    def _unit(self, instruction, what, call, table, unit):
        size = -(-instruction.scratch // 4)
        given = table.copy()
        self.scratch[: size + 2 * GUARD] = POISON
        call(table.ctypes.data, int(unit), self.scratch.ctypes.data + 4 * GUARD)
        if not (self.scratch[:GUARD] == POISON).all() or not (self.scratch[size + GUARD : size + 2 * GUARD] == POISON).all():
            raise RedzoneError(f"{what}: unit {unit} writes outside of its scratch")
        if (given != table).any():
            raise RedzoneError(f"{what}: unit {unit} writes to its arguments, which all units share")

    def _check(self, what, hidden, expected):
        if not (self.work.values[hidden] == expected).all():
            raise RedzoneError(f"{what}: writes where it has not declared to")
        if not (self.fixed.values[self.gaps] == POISON).all():
            raise RedzoneError(f"{what}: writes to the guards of a constant")


def _named(instruction):
    return [a.buffer for a in instruction.args if isinstance(a, Address)]
