"""A compiled graph: its instructions as one table of numbers, which the team runs without Python in between."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence

import numpy as np

from refvit.backends.numba import memory
from refvit.backends.numba.program import Address, Buffer, Function, Instruction
from refvit.backends.numba.team import KERNEL, Team, team
from refvit.graph.ir import Array, Shape


class Plan:
    """Instructions with memory and order decided, for one shape of the input. Any number of threads may call it."""

    def __init__(self, instructions: Sequence[Instruction], inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]) -> None:
        self.instructions = tuple(instructions)
        self.inputs, self.outputs = dict(inputs), dict(outputs)
        offsets, self.arena_bytes = memory.plan(self.instructions)
        self.scratch = max((i.scratch for i in self.instructions), default=0)
        team().objects.require([name for i in self.instructions for name in i.functions])
        self._constants: list[Array] = []  # kept alive: the table holds their addresses
        self._layout(offsets)

    def _layout(self, offsets: Mapping[Buffer, int]) -> None:
        objects = team().objects
        words: list[int] = []
        starts = []
        arena: list[tuple[int, int]] = []  # position in the table, bytes from the arena's beginning
        public: list[tuple[int, str, int]] = []
        alive: dict[int, Array] = {}
        for instruction in self.instructions:
            starts.append(len(words))
            for argument in instruction.args:
                word = 0
                if isinstance(argument, Function):
                    word = objects[argument.name]
                elif isinstance(argument, Address):
                    buffer = argument.buffer
                    if buffer.array is not None:
                        alive[id(buffer)] = buffer.array
                        word = buffer.array.ctypes.data + argument.offset
                    elif buffer.public is not None:
                        public.append((len(words), buffer.public, argument.offset))
                    else:
                        arena.append((len(words), offsets[buffer] + argument.offset))
                else:
                    word = int(argument)
                words.append(word)
        self._constants = list(alive.values())
        self._words = np.array(words, np.int64)
        self._arena_at = np.array([p for p, _ in arena], np.int64)
        self._arena_offset = np.array([o for _, o in arena], np.int64)
        self._public = public
        self._base = -1
        self._program = np.zeros((len(self.instructions), 4), np.int64)
        self._program[:, 0] = [objects[i.kernel] for i in self.instructions]
        self._program[:, 1] = self._words.ctypes.data + 8 * np.array(starts, np.int64)
        self._program[:, 2] = [i.units for i in self.instructions]
        self._program[:, 3] = memory.needs(self.instructions, offsets)

    def run(self, arrays: Mapping[str, Array], threads: int, ticks: Array | None = None) -> dict[str, Array]:
        """The outputs for the inputs, float32 arrays (C-contiguous) of the planned shapes, on this many threads."""
        outputs = {name: np.empty(shape, np.float32) for name, shape in self.outputs.items()}
        group = team()
        with group.lock:
            if group.inside:
                self._twin()._run(Team(group.objects), arrays, outputs, 1, ticks)
                return outputs
            try:
                group.inside = True
                self._run(group, arrays, outputs, threads, ticks)
            finally:
                group.inside = False
        return outputs

    def _run(
        self, group: Team, arrays: Mapping[str, Array], outputs: Mapping[str, Array], threads: int, ticks: Array | None
    ) -> None:
        group.settle()
        base = group.arena.reserve(self.arena_bytes)
        if base != self._base:
            self._words[self._arena_at] = base + self._arena_offset
            self._base = base
        for position, name, offset in self._public:
            self._words[position] = (arrays[name] if name in arrays else outputs[name]).ctypes.data + offset
        group.run(self._program, self.scratch, threads, ticks, keep=(self, arrays, outputs))

    def _twin(self) -> Plan:
        """The same plan with a table of its own, for a call that interrupts one of this plan."""
        twin = copy.copy(self)
        twin._words, twin._program, twin._base = self._words.copy(), self._program.copy(), -1
        twin._program[:, 1] += twin._words.ctypes.data - self._words.ctypes.data
        return twin

    def profile(self, arrays: Mapping[str, Array], threads: int, runs: int) -> tuple[float, Array]:
        """Median seconds of a call and of each instruction: from the end of what came before it to its own end.

        Instructions may overlap; the time in which several run is the last one's.
        """
        ticks = np.zeros(len(self.instructions), np.int64)
        start = np.zeros(1, np.int64)
        walls, parts = [], []
        clock = KERNEL(team().objects["team.now"])
        for _ in range(runs):
            with team().lock:
                begin = time.perf_counter()
                clock(start.ctypes.data, 0, 0)
                self.run(arrays, threads, ticks)
                walls.append(time.perf_counter() - begin)
            ends = np.maximum.accumulate(np.concatenate([start, ticks]))
            spent = np.diff(ends).astype(np.float64)
            parts.append(spent / max(1.0, spent.sum()) * walls[-1])
        return float(np.median(walls)), np.median(parts, axis=0)

    def bytes_moved(self, instruction: Instruction) -> int:
        """Bytes of the buffers that an instruction touches."""
        return 4 * sum(b.size for b in dict.fromkeys((*instruction.reads, *instruction.writes)))
