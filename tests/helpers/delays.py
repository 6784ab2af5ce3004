"""A plan whose units sleep at random before and after their work, so that threads meet in orders that hardly ever occur."""

import ctypes
import random
import time

import numpy as np

from refvit.backends.numba.team import KERNEL


class Delays:
    """While it is entered, every unit of `plan` sleeps for up to `longest` seconds, about one in `rarity` of them."""

    def __init__(self, plan, longest=2e-4, rarity=2, seed=0):
        self.plan, self.longest, self.rarity, self.rng = plan, longest, rarity, random.Random(seed)
        self.units = 0

    def __enter__(self):
        self.addresses = self.plan._program[:, 0].copy()
        slow = {int(a): self._slowed(KERNEL(int(a))) for a in np.unique(self.addresses)}
        self.callbacks = slow
        self.plan._program[:, 0] = [ctypes.cast(slow[int(a)], ctypes.c_void_p).value for a in self.addresses]
        return self

    def __exit__(self, *_):
        self.plan._program[:, 0] = self.addresses

    def _slowed(self, kernel):
        def run(a, unit, scratch):
            self._sleep()
            kernel(a, unit, scratch)
            self._sleep()
            self.units += 1

        return KERNEL(run)

    def _sleep(self):
        if self.rng.randrange(self.rarity) == 0:
            time.sleep(self.rng.uniform(0, self.longest))
