"""The order of the instructions: what does not depend on each other lies side by side, so that nobody waits.

A thread that has done its units goes on to the next instruction. If that one reads what the others are still writing, it waits
at every step. The branches of HRNet and HRViT do not depend on each other: taken in turn, each finds its input finished.
"""

from __future__ import annotations

from collections.abc import Sequence

from refvit.backends.numba.program import Buffer, Instruction


def breadth_first(instructions: Sequence[Instruction]) -> list[Instruction]:
    """The same instructions by the length of the longest way to them, and as they came where that is equal.

    An instruction stays behind those that write what it reads or writes, and behind those that read what it writes.
    """
    written: dict[Buffer, int] = {}  # level of the last instruction that wrote it
    read: dict[Buffer, int] = {}  # level of the last one that reads it
    levels = []
    for instruction in instructions:
        before = [written.get(b, 0) for b in (*instruction.reads, *instruction.writes)]
        before += [read.get(b, 0) for b in instruction.writes]
        level = 1 + max(before, default=0)
        for buffer in instruction.reads:
            read[buffer] = max(level, read.get(buffer, 0))
        for buffer in instruction.writes:
            written[buffer] = level
        levels.append(level)
    return [instructions[i] for i in sorted(range(len(levels)), key=levels.__getitem__)]
