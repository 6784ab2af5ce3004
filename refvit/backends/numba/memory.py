"""Which part of one arena each buffer gets, and which instruction has to wait for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from refvit.backends.numba.program import Buffer, Instruction

LINE = 64  # bytes; kernels like their buffers to begin at a cache line
AHEAD = 4  # instructions: so much earlier than its turn one may begin without waiting for memory


def lifetimes(instructions: Sequence[Instruction]) -> dict[Buffer, tuple[int, int]]:
    """First and last instruction that touch each buffer of the arena."""
    lives: dict[Buffer, tuple[int, int]] = {}
    for i, instruction in enumerate(instructions):
        for buffer in (*instruction.reads, *instruction.writes):
            if buffer.array is None and buffer.public is None:
                lives[buffer] = lives.get(buffer, (i, i))[0], i
    return lives


def plan(instructions: Sequence[Instruction]) -> tuple[dict[Buffer, int], int]:
    """Byte offset of every buffer, and the size of the arena: the largest first, each at the lowest place that is free.

    A buffer is taken from the moment when what its first instruction reads is there, so that this one can begin then.
    """
    lives = {b: (_start(instructions, first), last) for b, (first, last) in lifetimes(instructions).items()}
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last
    offsets: dict[Buffer, int] = {}
    for buffer in sorted(lives, key=lambda b: (-b.size, lives[b])):
        first, last = lives[buffer]
        size = -(-4 * buffer.size // LINE) * LINE
        at = 0
        for offset, end, begin, stop in placed:  # in the order of their offsets
            if begin <= last and first <= stop:
                if at + size <= offset:
                    break
                at = max(at, end)
        offsets[buffer] = at
        placed.append((at, at + size, first, last))
        placed.sort()
    return offsets, max((end for _, end, _, _ in placed), default=0)


def _start(instructions: Sequence[Instruction], i: int) -> int:
    """The instruction during which i may begin, if only what it reads matters."""
    touched = {*instructions[i].reads, *instructions[i].writes}
    for j in range(i - 1, max(-1, i - 1 - AHEAD), -1):
        if touched & {*instructions[j].writes}:
            return j + 1
    return max(0, i - AHEAD)


def needs(instructions: Sequence[Instruction], offsets: Mapping[Buffer, int]) -> list[int]:
    """For each instruction the number of those at the beginning of the program that must be finished before it starts.

    It waits for whoever wrote what it reads or overwrites, and for whoever reads what it overwrites, by memory, not by name.
    """
    offsets = dict(offsets)
    end = max((at + 4 * buffer.size for buffer, at in offsets.items()), default=0)
    for buffer in dict.fromkeys(b for i in instructions for b in (*i.reads, *i.writes) if b.public is not None):
        offsets[buffer] = end  # memory of the caller's, apart from the arena and from one another
        end += 4 * buffer.size
    written: list[tuple[int, int, int]] = []  # begin, end, instruction; of the arena
    read: list[tuple[int, int, int]] = []
    result = []
    for i, instruction in enumerate(instructions):
        reads = [_range(b, offsets) for b in instruction.reads if b in offsets]
        writes = [_range(b, offsets) for b in instruction.writes if b in offsets]
        need = 0
        for begin, end in (*reads, *writes):
            need = max([need, *(j + 1 for a, b, j in written if a < end and begin < b)])
        for begin, end in writes:
            need = max([need, *(j + 1 for a, b, j in read if a < end and begin < b)])
        # whoever is covered by a later writer is waited for through it
        for begin, end in writes:
            written = [(a, b, j) for a, b, j in written if not (begin <= a and b <= end and j < need)]
            read = [(a, b, j) for a, b, j in read if not (begin <= a and b <= end and j < need)]
        written += [(a, b, i) for a, b in writes]
        read += [(a, b, i) for a, b in reads]
        result.append(need)
    return result


def _range(buffer: Buffer, offsets: dict[Buffer, int]) -> tuple[int, int]:
    return offsets[buffer], offsets[buffer] + 4 * buffer.size
