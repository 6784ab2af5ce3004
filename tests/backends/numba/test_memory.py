"""The arena and the order of execution, on random programs."""

import random

import pytest

from refvit.backends.numba import memory
from refvit.backends.numba.program import Buffer, Instruction


def program(seed):
    """A random one: each instruction reads a few of the last results and writes a new buffer, or a part of an old one."""
    rng = random.Random(seed)
    buffers, instructions = [Buffer(rng.randint(1, 300))], []
    instructions.append(Instruction("k", (), 1, (), (buffers[0],)))
    for _ in range(rng.randint(5, 60)):
        reads = [rng.choice(buffers[-6:]) for _ in range(rng.randint(1, 3))]
        target = rng.choice(buffers[-3:]) if rng.random() < 0.2 else Buffer(rng.randint(1, 300))
        buffers.append(target)
        instructions.append(Instruction("k", (), 1, reads, (target,)))
    return instructions


@pytest.mark.parametrize("seed", range(30))
def test_buffers_that_live_together_lie_apart(seed):
    instructions = program(seed)
    lives = memory.lifetimes(instructions)
    offsets, size = memory.plan(instructions)
    assert set(offsets) == set(lives)
    for a in lives:
        assert offsets[a] % 64 == 0
        assert offsets[a] + 4 * a.size <= size
        for b in lives:
            together = lives[a][0] <= lives[b][1] and lives[b][0] <= lives[a][1]
            overlap = offsets[a] < offsets[b] + 4 * b.size and offsets[b] < offsets[a] + 4 * a.size
            assert a is b or not (together and overlap)


@pytest.mark.parametrize("seed", range(30))
def test_any_order_that_the_needs_allow_gives_the_same_values(seed):
    """Run by hand on bytes of the arena, each instruction as late or as early as it may."""
    instructions = program(seed)
    offsets, size = memory.plan(instructions)
    needs = memory.needs(instructions, offsets)
    assert all(need <= i for i, need in enumerate(needs))

    def run(order):
        arena = [None] * size
        for i in order:
            # what it writes tells what it read: every byte it looks at
            seen = tuple(tuple(arena[offsets[b] : offsets[b] + 4 * b.size]) for b in instructions[i].reads)
            (target,) = instructions[i].writes
            arena[offsets[target] : offsets[target] + 4 * target.size] = [hash((i, seen))] * (4 * target.size)
            results[i] = hash((i, seen))
        return dict(results)

    results = {}
    straight = run(range(len(instructions)))
    rng = random.Random(seed)
    for _ in range(5):
        order, left = [], list(range(len(instructions)))
        while left:  # an instruction may begin when everything before the one it names is done
            ready = [i for i in left if needs[i] <= left[0]]
            order.append(rng.choice(ready))
            left.remove(order[-1])
        results = {}
        assert run(order) == straight


def test_memory_is_used_again():
    a, b, c = Buffer(1000), Buffer(1000), Buffer(1000)
    chain = [
        Instruction("k", (), 1, (), (a,)),
        Instruction("k", (), 1, (a,), (b,)),
        Instruction("k", (), 1, (b,), (c,)),
    ]
    assert memory.plan(chain)[1] == 2 * 4032
