"""Image after image of another size through one model: the plans of old sizes go, and memory stays as it is."""

import gc
import random
import re
import weakref
from pathlib import Path

import numpy as np
import pytest

import refvit
from refvit.backends.numba.constants import _shared
from refvit.backends.numba.executor import Plan
from refvit.model import SHAPES

STATUS = Path("/proc/self/status")
LARGEST = 256
GROWTH = 16 << 10  # KB between two moments: pages that the allocator keeps, seen up to 5 MB


def resident():
    """KB of this process in memory."""
    gc.collect()
    return int(re.search(r"VmRSS:\s+(\d+)", STATUS.read_text())[1])


def sizes(count, least, seed=0):
    """Different ones, the largest first, so that the arena does not grow later."""
    rng, found = random.Random(seed), {(LARGEST, LARGEST): None}
    while len(found) < count:
        found[rng.randrange(least, LARGEST + 1), rng.randrange(least, LARGEST + 1)] = None
    return list(found)


def call(model, size):
    x = np.random.default_rng(size[0]).standard_normal((1, 3, *size)).astype(np.float32)
    assert np.isfinite(model(x)).all()


def test_only_the_plans_of_the_last_sizes_are_kept(monkeypatch):
    plans = []
    own = Plan.__init__

    def counted(self, *args):
        plans.append(weakref.ref(self))
        own(self, *args)

    monkeypatch.setattr(Plan, "__init__", counted)
    model = refvit.load(threads=1)
    shared = []
    for size in sizes(SHAPES + 20, 32):
        call(model, size)
        shared.append(len(_shared))
    assert len(plans) == SHAPES + 20
    assert sum(plan() is not None for plan in plans) == SHAPES
    assert all(plan() is not None for plan in plans[-SHAPES:])
    # packed weights are shared, and what a size alone has goes with it
    assert max(shared[SHAPES:]) <= 1.1 * max(shared[:SHAPES])


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="this system does not tell how much memory a process has")
def test_a_thousand_sizes():
    model = refvit.load(threads=1)
    for i, size in enumerate(sizes(1000, 24), 1):
        call(model, size)
        if i == 200:
            before = resident()
    assert resident() < before + GROWTH
