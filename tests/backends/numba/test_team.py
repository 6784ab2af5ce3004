"""The threads: same bits whatever their number and however many callers, at peace with fork, nothing left behind."""

import multiprocessing
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.delays import Delays

from refvit.backends.numba import team as teams
from refvit.backends.numba.conv import Taps, conv, pack
from refvit.backends.numba.executor import Plan
from refvit.backends.numba.layout import dense
from refvit.backends.numba.program import Buffer
from refvit.backends.numba.threads import check_threads, default_threads
from refvit.errors import ConfigError

NHWC = (0, 2, 3, 1)


def network(seed, size=12, c=24, layers=7):
    """A few convolutions one after another."""
    rng = np.random.default_rng(seed)
    shape = (1, c, size, size)
    x = dense(Buffer(c * size * size, public="x"), shape, NHWC)
    instructions = []
    for i in range(layers):
        y = dense(Buffer(c * size * size, public="y" if i == layers - 1 else None), shape, NHWC)
        weight = (rng.standard_normal((c, 9, c)) / (3 * np.sqrt(c))).astype(np.float32)
        packed = pack(weight, rng.standard_normal(c).astype(np.float32))
        instructions += conv(x, packed, y, Taps((3, 3), before=(1, 1)), relu=True)
        x = y
    return Plan(instructions, {"x": shape}, {"y": shape}), rng.standard_normal(shape).astype(np.float32)


def test_the_same_bits_for_any_number_of_threads():
    plan, x = network(1)
    first = plan.run({"x": x}, 1)["y"]
    assert np.isfinite(first).all() and first.std() > 0
    for threads in (2, 3, 5, 8):
        for _ in range(20):
            assert (plan.run({"x": x}, threads)["y"] == first).all()


def test_the_same_bits_for_many_callers():
    plans = [network(seed, size=7 + seed) for seed in range(4)]
    golden = [plan.run({"x": x}, 1)["y"] for plan, x in plans]

    def call(i):
        plan, x = plans[i % 4]
        return (plan.run({"x": x}, 1 + i % 3)["y"] == golden[i % 4]).all()

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(call, range(400)))


class Seen(Delays):
    """Which threads run units, that sleep so long that everybody gets one."""

    def __enter__(self):
        self.threads = set()
        return super().__enter__()

    def _sleep(self):
        self.threads.add(threading.get_ident())
        super()._sleep()


def test_no_more_threads_than_asked_for():
    plan, x = network(2, size=40, layers=2)
    assert max(i.units for i in plan.instructions) >= 8
    golden = plan.run({"x": x}, 6)["y"]  # there are five helpers from now on
    helpers = [t for t in threading.enumerate() if t.name == "refvit"]
    assert len(helpers) >= 5
    for asked in (1, 2, 3, 6):
        taking = []
        for seed in range(5):
            with Seen(plan, longest=2e-3, rarity=1, seed=seed) as seen:
                assert (plan.run({"x": x}, asked)["y"] == golden).all()
            taking.append(len(seen.threads))
        assert max(taking) <= asked
        assert max(taking) > 1 or asked == 1
    assert [t for t in threading.enumerate() if t.name == "refvit"] == helpers
    assert all(t.daemon for t in helpers)


def _child(queue):
    plan, x = network(3)
    queue.put(plan.run({"x": x}, 2)["y"])


@pytest.mark.skipif(not hasattr(teams.os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking a process with threads, which is the point
def test_a_forked_child_forms_its_own_team():
    plan, x = network(3)
    golden = plan.run({"x": x}, 2)["y"]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with teams.team().lock:  # as if another thread were running at this moment
        child = context.Process(target=_child, args=(queue,))
        child.start()
    assert (queue.get(timeout=60) == golden).all()
    child.join(60)
    assert child.exitcode == 0
    assert (plan.run({"x": x}, 2)["y"] == golden).all()


def test_the_interpreter_is_free_while_a_program_runs():
    plan, x = network(4, size=64, c=64, layers=12)
    plan.run({"x": x}, 1)
    done, counted = threading.Event(), 0

    def work():
        plan.run({"x": x}, 1)
        done.set()

    thread = threading.Thread(target=work)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(0.5)  # nobody is asked to let go: the loop below only runs if the lock is released
    try:
        thread.start()
        while not done.is_set():
            counted += 1
    finally:
        sys.setswitchinterval(switch)
        thread.join()
    assert counted > 1000


def test_threads_must_be_a_number():
    for wrong in (0, -1, 1.5, "2", True, 5000):
        with pytest.raises(ConfigError, match="threads"):
            check_threads(wrong)
    assert check_threads(None) == default_threads() >= 1
    assert check_threads(3) == 3
