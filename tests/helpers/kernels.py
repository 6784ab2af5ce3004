"""Run instructions alone: guarded and poisoned memory, units in random order, every address checked afterwards."""

import ctypes
from collections.abc import Sequence

import numpy as np

from refvit.backends.numba.objects import Objects
from refvit.backends.numba.program import Address, Buffer, Function, Instruction

GUARD = 64  # values on either side of a buffer
MARK = np.float32(-7.7e33)

objects = Objects()


class Memory:
    """Buffers by identity, each between guards; what nobody writes stays NaN."""

    def __init__(self) -> None:
        self._arrays: dict[int, np.ndarray] = {}
        self._buffers: list[Buffer] = []  # kept alive, so that identities stay unique

    def whole(self, buffer: Buffer) -> np.ndarray:
        """Guard, values, guard; the values begin at a multiple of 64 bytes."""
        if id(buffer) not in self._arrays:
            raw = np.empty(buffer.size + 2 * GUARD + 16, np.float32)
            start = (-raw.ctypes.data % 64) // 4
            array = raw[start : start + buffer.size + 2 * GUARD]
            array[:] = MARK
            array[GUARD : GUARD + buffer.size] = np.nan if buffer.array is None else buffer.array.reshape(-1).view(np.float32)
            self._arrays[id(buffer)] = array
            self._buffers.append(buffer)
        return self._arrays[id(buffer)]

    def values(self, buffer: Buffer) -> np.ndarray:
        return self.whole(buffer)[GUARD : GUARD + buffer.size]

    def view(self, place) -> np.ndarray:
        """The value as an ndarray of its logical shape: a view, or a copy where an axis has several factors."""
        sizes = [e for axis in place.axes for e, _ in axis]
        steps = [4 * s for axis in place.axes for _, s in axis]
        flat = np.lib.stride_tricks.as_strided(self.values(place.buffer)[place.offset :], sizes, steps)
        return flat.reshape(place.shape)

    def fill(self, place, array: np.ndarray) -> None:
        """Write a value where it lies."""
        sizes = [e for axis in place.axes for e, _ in axis]
        steps = [4 * s for axis in place.axes for _, s in axis]
        flat = np.lib.stride_tricks.as_strided(self.values(place.buffer)[place.offset :], sizes, steps)
        flat[...] = np.asarray(array, np.float32).reshape(sizes)

    def check(self) -> None:
        for buffer in self._buffers:
            array = self.whole(buffer)
            assert (array[:GUARD] == MARK).all() and (array[-GUARD:] == MARK).all(), "written outside of a buffer"
            if buffer.array is not None:
                assert (array[GUARD:-GUARD].view(np.int32) == buffer.array.reshape(-1).view(np.int32)).all(), "constant changed"


def run(instructions: Sequence[Instruction], memory: Memory, seed: int = 0) -> None:
    """Run each instruction to its end before the next, its units in random order, with scratch full of NaN."""
    rng = np.random.default_rng(seed)
    for instruction in instructions:
        for buffer in (*instruction.reads, *instruction.writes):
            memory.whole(buffer)
        words = []
        for a in instruction.args:
            if isinstance(a, Address):
                words.append(memory.values(a.buffer).ctypes.data + a.offset)
            else:
                words.append(objects[a.name] if isinstance(a, Function) else int(a))
        table = np.array(words, np.int64)
        scratch = Buffer(-(-instruction.scratch // 4))
        address = memory.values(scratch).ctypes.data
        kernel = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(objects[instruction.kernel])
        for unit in rng.permutation(instruction.units):
            memory.values(scratch)[:] = np.nan
            kernel(table.ctypes.data, int(unit), address)
    memory.check()
