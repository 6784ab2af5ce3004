"""Random legal graphs, built through the real tracer: what no model has and any model might.

A case is a list of steps, (function, seed) each, which act on the values there are; one that does not fit does nothing. So any
part of the list is a case too, and a failing one is cut down by leaving steps out (`smallest`). No step looks at the batch
unless the case is `mixed`: the same case at another batch has the same layers and parameters.
"""

import random
from dataclasses import dataclass, replace

import numpy as np
from helpers.random_draft import SIDE, Draft, anything
from helpers.random_maps import (
    common,
    conv,
    embedded,
    inverted,
    joined,
    padded,
    patches,
    pointwise,
    pooled,
    resized,
    seen_as_map,
    sliced,
    stripes,
    turned,
)
from helpers.random_tokens import attention, flat, head, linear, mlp, norm, product, shortcut, softmax, with_token

from refvit.graph.ir import dims
from refvit.graph.trace import trace

MAPS = [conv] * 4 + [pointwise, common, common, inverted, resized, pooled, joined, sliced, turned, padded, anything, patches,
                     stripes, embedded, seen_as_map, softmax]  # fmt: skip
TOKENS = [linear] * 3 + [attention, attention, mlp, norm, shortcut, softmax, softmax, product, product, with_token, head, flat,
                         joined, sliced, turned, padded, anything, stripes, seen_as_map, seen_as_map]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A graph before it is traced."""

    shape: tuple[int, int, int, int]
    steps: tuple
    mixed: bool = False  # whether steps may look at the batch
    expand: bool = False

    def graph(self, batch=None):
        """The graph, with the steps' parameters, for this many images."""
        params = {}

        def model(x, _):
            draft = Draft(x, params, self.mixed)
            for function, seed in self.steps:
                draft.take(function, seed)
            return draft.results()

        shape = self.shape if batch is None else (batch, *self.shape[1:])
        whole = trace(model, shape, params, expand=self.expand)
        needed = whole.with_outputs(whole.outputs)  # no nodes that nobody reads
        read = needed.users()
        return replace(needed, params={name: array for name, array in params.items() if name in read})

    def inputs(self, count=3):
        return [np.random.default_rng(seed).standard_normal(self.shape).astype(np.float32) for seed in range(count)]

    def __str__(self):
        steps = ", ".join(f"({function.__name__}, {seed})" for function, seed in self.steps)
        graph = self.graph()
        params = ", ".join(f"{name}: {dims(p.shape)}" for name, p in graph.params.items())
        return f"Case({self.shape}, ({steps},), {self.mixed}, {self.expand})\n{graph}\n  # {params}"


def case(seed, vocabulary):
    """The case of this number."""
    r = random.Random(seed)
    shape = (r.randint(1, 3), r.choice((1, 2, 3, 3, 3, 4, 5, 17)), r.randint(1, SIDE), r.randint(1, SIDE))
    functions = [r.choice(vocabulary) for _ in range(r.randint(1, 7))]
    first = [embedded] if vocabulary is TOKENS else []
    steps = tuple((function, r.getrandbits(32)) for function in first + functions)
    return Case(shape, steps, r.random() < 0.15, r.random() < 0.3)


def smallest(failing, fails):
    """The case with fewer steps, and of one image, that still fails."""
    for i in reversed(range(len(failing.steps))):
        less = replace(failing, steps=failing.steps[:i] + failing.steps[i + 1 :])
        if fails(less):
            failing = less
    less = replace(failing, shape=(1, *failing.shape[1:]))
    return less if fails(less) else failing
