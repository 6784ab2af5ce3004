"""The threads that run a program together: the caller and helpers that sleep between calls.

One program runs at a time, with all the threads that were asked for; a second caller waits for its turn. That is faster than to
share the processor among programs, and one arena and one scratch area a thread are enough for the whole process. The
interpreter lock is free while a program runs.
"""

from __future__ import annotations

import ctypes
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from refvit.backends.numba.objects import Objects
from refvit.graph.ir import Array

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
# words of the state, as in kernels/team.py
GENERATION, ACTIVE, PROGRAM, COUNT, COUNTERS, TICKS, YIELD, THREADS, WORDS = 0, 8, 16, 17, 18, 19, 20, 21, 24
MOST_THREADS = 4096
LINE = 64


class Memory:
    """Bytes aligned to a cache line that grow when more are asked for. What they held is lost then."""

    def __init__(self) -> None:
        self._raw = np.zeros(0, np.uint8)
        self.address, self.size = 0, 0

    def reserve(self, size: int) -> int:
        """The address of at least `size` bytes."""
        if size > self.size:
            self.address, self.size = 0, 0  # should there be no memory, nobody must find the old one
            self._raw = np.empty(0, np.uint8)  # never hold both
            self._raw = np.zeros(size + 2 * LINE, np.uint8)
            self.address, self.size = self._raw.ctypes.data + -self._raw.ctypes.data % LINE, size
        return self.address


class Team:
    """The threads, the arena and the scratch areas of this process.

    inside: whether somebody who holds `lock` is in the midst of a call. Who finds it set when he takes the lock is a signal's
    handler or a finaliser that interrupts him in his own thread, and needs a team for himself.
    """

    def __init__(self, objects: Objects | None = None) -> None:
        self.lock = threading.RLock()
        self.inside = False
        self.objects = objects or Objects()
        self.arena = Memory()
        self._counters = Memory()
        self._scratch: list[Memory] = [Memory()]
        self._state = np.zeros(WORDS + LINE // 8, np.int64)
        self.address = self._state.ctypes.data + -self._state.ctypes.data % LINE
        self._words = self._state[(self.address - self._state.ctypes.data) // 8 :]
        self._queues: list[queue.SimpleQueue[tuple[int, int]]] = []
        self._run: Callable[[int, int, int], None] | None = None
        self._close: Callable[[int, int, int], None] | None = None
        self._kept: tuple[object, ...] = ()  # what the open program reads and writes
        self._words[YIELD] = ctypes.cast(_give_way(), ctypes.c_void_p).value or 0

    def settle(self) -> None:
        """End the program that is open: whoever takes `lock` does this before he touches what a program reads.

        An exception (Ctrl-C, or what a signal's handler raises) may have taken the last caller away in the midst of `run`,
        while the helpers went on.
        """
        if self._close is not None and self._words[GENERATION] % 2:
            self._close(self.address, 0, 0)
        self._kept = ()

    def run(
        self, program: Array, scratch: int, threads: int, ticks: Array | None = None, keep: tuple[object, ...] = ()
    ) -> None:
        """Run instructions, int64 rows (kernel, args, units, need); the caller holds `lock` and has called `settle`.

        scratch: bytes a thread needs. ticks: int64 (instructions,), set to the clock at the end of each. keep: what has to
        stay in memory until nobody looks at the program any more.
        """
        if self._run is None or self._close is None:
            self.objects.require(["team.work", "team.close"])
            self._run, self._close = KERNEL(self.objects["team.work"]), KERNEL(self.objects["team.close"])
        while len(self._scratch) < threads:
            self._scratch.append(Memory())
        places = [memory.reserve(scratch) for memory in self._scratch[:threads]]
        while len(self._queues) < threads - 1:
            jobs: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
            threading.Thread(target=_help, args=(self, jobs, self._run), daemon=True, name="refvit").start()
            self._queues.append(jobs)
        size = LINE * (1 + threads) * len(program)
        ctypes.memset(self._counters.reserve(size), 0, size)
        words = self._words
        words[PROGRAM], words[COUNT], words[COUNTERS] = program.ctypes.data, len(program), self._counters.address
        words[TICKS] = 0 if ticks is None else ticks.ctypes.data
        words[THREADS] = threads
        self._kept = (program, ticks, keep)
        words[GENERATION] += 1  # odd: open
        ticket = int(words[GENERATION]) * MOST_THREADS
        for i, (helper, place) in enumerate(zip(self._queues, places[1:], strict=False), 1):
            helper.put((ticket + i, place))
        self._run(self.address, ticket, places[0])
        self.settle()


def _help(team: Team, jobs: queue.SimpleQueue[tuple[int, int]], run: Callable[[int, int, int], None]) -> None:
    while True:  # holding the team, whose state must outlive a helper that is late when the process ends
        ticket, scratch = jobs.get()
        run(team.address, ticket, scratch)


def _give_way() -> Any:
    """The system's function that lets other threads run."""
    if sys.platform == "win32":
        return ctypes.windll.kernel32.SwitchToThread
    return ctypes.CDLL(None).sched_yield


_team: Team | None = None
_making = threading.RLock()  # a signal's handler may call a model too
_left: list[Team] = []  # of the processes that this one was forked from: plans hold addresses of their code


def team() -> Team:
    """The team of this process, which a forked child has to form anew."""
    global _team
    with _making:
        if _team is None:
            _team = Team()
        return _team


def _forget() -> None:
    """In a forked child: the helpers stayed with the parent, and so did whoever held a lock."""
    global _team, _making
    if _team is not None:
        _left.append(_team)
    _team, _making = None, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
