"""How large a change is, in units of what the candidate's own arithmetic loses there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.bugs.subjects import Reference
from refvit.graph.ir import OPS, Array

ULP = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}  # relative
STEPS = 255  # of 8 bits


@dataclass(frozen=True)
class Loss:
    """What a candidate computes in. scales: (scale, zero point) of the values that are written in 8 bits, for "int8"."""

    arithmetic: str = "float32"
    scales: Mapping[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def ulp(self) -> float:
        """Relative to the largest value."""
        return ULP.get(self.arithmetic, 1 / STEPS)

    def rounded(self, name: str, a: Array) -> Array:
        """float64 as the arithmetic keeps it."""
        if self.arithmetic == "int8":
            scale, zero = self.scales.get(name, (0.0, 0))
            return ((np.rint(a / scale) + zero).clip(-128, 127) - zero) * scale if scale else a
        if self.arithmetic == "float16":
            with np.errstate(over="ignore"):
                return np.asarray(a.astype(np.float16), np.float64)
        if self.arithmetic == "bfloat16":
            bits = np.ascontiguousarray(a, np.float32).view(np.uint32)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
            return np.asarray(bits.view(np.float32), np.float64)
        return a


FLOAT32 = Loss()


def effect(reference: Reference, shown: Mapping[str, Any], value: str, change: Array, loss: Loss = FLOAT32) -> float:
    """The size of a change in units of what is lost between the values shown before and this one, plus 4 ulp.

    The larger of two ratios: of largest changes, and of root mean squares.
    """
    top = np.abs(reference.golden[value]).max() or 1.0
    lost = rounding(reference, shown, value, loss)
    sizes = np.array([np.abs(a).max() for a in (change, lost)]) / top, np.array([_rms(a) for a in (change, lost)]) / top
    return float(max(changed / (own + 4 * loss.ulp) for changed, own in sizes))


def rounding(reference: Reference, shown: Mapping[str, Any], value: str, loss: Loss = FLOAT32) -> Array:
    """What the arithmetic loses on the way to `value` from the nearest values shown, each taken as exact."""
    nodes, golden, graph = reference.graph.nodes, reference.golden, reference.graph
    way, todo = set[str](), [value]
    while todo:
        name = todo.pop()
        way.add(name)
        todo += [s for s in nodes[name].sources if s in nodes and s not in shown and s not in way]
    runs = []
    for rough in (True, False):
        dtype = "float32" if rough and loss.arithmetic == "float32" else "float64"
        known: dict[str, Array] = {}

        def get(name: str, rough: bool = rough, dtype: str = dtype, known: dict[str, Array] = known) -> Array:
            if name not in known:
                weight = name in graph.params
                a = np.asarray(graph.params[name] if weight else golden.get(name, reference.x), np.float32).astype(np.float64)
                known[name] = (loss.rounded(name, a) if rough or not weight else a).astype(dtype)
            return known[name]

        for name, node in nodes.items():
            if name in way:
                y = np.asarray(OPS[node.op].function(*[None if i is None else get(i) for i in node.inputs], **node.attrs))
                known[name] = loss.rounded(name, y) if rough else y
        runs.append(known[value])
    return runs[0] - runs[1]


def _rms(a: Array) -> float:
    return float(np.sqrt(np.mean(np.square(a, dtype=np.float64))))
