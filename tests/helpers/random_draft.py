"""The model that steps of a random graph act on, and what may follow any of its values."""

import math
import random

import numpy as np

from refvit import ops
from refvit.errors import ShapeError
from refvit.graph.trace import Tensor

SIDE = 19  # pixels, at most
CHANNELS = (1, 2, 3, 4, 5, 16, 17, 18, 31, 32, 33, 48)
LARGEST = 16_000  # values of an image
LONGEST = 64  # terms of a sum over features: NumPy adds up long ones of few rows in parts, with less rounding than in order
ACTS = ("relu", "silu", "gelu", "gelu tanh", "hardswish", "sigmoid")


class Draft:
    """A model under construction: the values so far, which of them are outputs, and the parameters that steps made."""

    def __init__(self, x, params, mixed):
        self.values, self.outputs, self.params, self.mixed, self.input = [x], [], params, mixed, x

    def take(self, function, seed):
        """One more value, unless the step has nothing to act on or its result is no value or too large a one."""
        r, there = random.Random(seed), len(self.values)
        try:
            y = function(self, r)
        except ShapeError:
            y = None
        if y is None or math.prod(y.shape[1:]) * (1 + 3 * (y.shape[0] > 4 * self.input.shape[0])) > LARGEST:
            del self.values[there:]
        else:
            self.values.append(y)
            if r.random() < 0.12:
                self.outputs.append(y)

    def pick(self, r, *ranks):
        """The last value of these ranks, or often enough another one, the network's input among them."""
        found = [v for v in self.values if len(v.shape) in ranks]
        if found and r.random() < 0.3:
            return r.choice(found)
        return found[-1] if found else None

    def note(self, y, r):
        """A value within a step that later steps may read, too, or that is an output."""
        if r.random() < 0.15:
            self.values.append(y)
        if r.random() < 0.05:
            self.outputs.append(y)
        return y

    def like(self, r, y):
        """A value of the shape of y, itself if there is no other."""
        return r.choice([v for v in self.values if v.shape == y.shape] or [y])

    def param(self, r, *shape, low=None):
        """Random numbers that keep the size of what goes through them; with `low`, numbers from there to low + 0.6."""
        rng = np.random.default_rng(r.getrandbits(32))
        size = math.sqrt(math.prod(shape[1:]))
        a = rng.standard_normal(shape) / size if low is None else rng.uniform(low, low + 0.6, shape)
        name = f"layer{len(self.params)}.weight"
        self.params[name] = a.astype(np.float32)
        return Tensor(self.input.trace, name, shape)

    def results(self):
        return {"output": self.values[-1], **{f"output{i}": v for i, v in enumerate(self.outputs)}}


# what may follow anything ----------------------------------------------------------------------------------------------------


def activated(d, r, y):
    name, _, form = r.choice(ACTS).partition(" ")
    return ops.gelu(y, approximate=form or "none") if name == "gelu" else getattr(ops, name)(y)


def added(d, r, y):
    terms = [y, d.like(r, y)]
    r.shuffle(terms)
    return terms[0] + terms[1]


def multiplied(d, r, y):
    terms = [y, ops.sigmoid(d.like(r, y))]
    r.shuffle(terms)
    return terms[0] * terms[1]


def scaled(d, r, y):
    return y * r.choice((0.25, -1.5, 2.0, 3))


def shifted(d, r, y):
    """A parameter that is broadcast, added or multiplied, from either side."""
    shape = y.shape[1:]
    shapes = [(1,), shape[-1:], (1, *shape), shape]
    if len(shape) > 1:
        shapes += [(*shape[:1], *[1] * (len(shape) - 1)), (1, *shape[:1], *[1] * (len(shape) - 1))]
    p = d.param(r, *r.choice(shapes), low=0.7)
    return r.choice((lambda: y + p, lambda: p + y, lambda: y * p, lambda: p * y))()


def normed(d, r, y):
    """Batch norm of channels, layer norm of features; narrow rows get a large eps, or the norm of two nearly equal numbers
    makes anything of their last bits, and single features none, or all tokens are the same (see `resized`)."""
    if len(y.shape) == 4:
        c = y.shape[1]
        p = [d.param(r, c, low=low) for low in (0.7, -0.3, -0.3, 0.5)]
        return ops.batch_norm(y, *p, eps=1e-5)
    width = y.shape[-1]
    if width == 1:
        return y
    return ops.layer_norm(y, d.param(r, width, low=0.7), d.param(r, width, low=-0.3), eps=1e-5 if width >= 16 else 0.1)


def tail(d, r, y, most=3):
    """Up to three of these, on whose way values may become outputs or be read elsewhere."""
    for _ in range(r.randint(0, most)):
        d.note(y, r)
        y = r.choice((activated, activated, activated, added, added, multiplied, scaled, shifted, normed))(d, r, y)
    return y


def anything(d, r):
    """A tail on its own."""
    y = d.pick(r, 2, 3, 4)
    return tail(d, r, r.choice((activated, added, shifted, normed))(d, r, y), 2)
