"""A graph as something to call."""

from __future__ import annotations

import numpy as np

from refvit.backends.numba.executor import Plan
from refvit.backends.numba.lower import Lowering
from refvit.backends.numba.schedule import breadth_first
from refvit.errors import GraphError
from refvit.graph.ir import Array, Graph
from refvit.graph.passes import optimise
from refvit.graph.profile import Profile, Step


class Executable:
    """A graph that has been compiled: call it with its input, float32 (n, 3, h, w). Any number of threads may."""

    def __init__(self, graph: Graph, threads: int) -> None:
        self.graph, self.threads = optimise(graph), threads
        lowering = Lowering(self.graph, threads)
        lowering.run()
        (self._input,) = graph.inputs
        self._shape = tuple(graph.inputs[self._input].shape)
        outputs = {public: tuple(graph.value(name).shape) for public, name in graph.outputs.items()}
        self.plan = Plan(breadth_first(lowering.instructions), {self._input: self._shape}, outputs)
        self._kept = lowering.constants.kept

    def __call__(self, x: Array) -> dict[str, Array]:
        if x.shape != self._shape or x.dtype != np.float32:
            raise GraphError(f"the graph is for a float32 input of shape {self._shape}, got {x.dtype} {x.shape}")
        return self.plan.run({self._input: np.ascontiguousarray(x)}, self.threads)

    def profile(self, name: str, x: Array, runs: int) -> Profile:
        """Where the time goes, for an input as in a call."""
        wall, parts = self.plan.profile({self._input: np.ascontiguousarray(x)}, self.threads, runs)
        steps = [
            Step(i.node, i.kernel, float(seconds), i.macs, self.plan.bytes_moved(i))
            for i, seconds in zip(self.plan.instructions, parts, strict=True)
        ]
        return Profile(name, self._shape, self.threads, wall, tuple(steps))
