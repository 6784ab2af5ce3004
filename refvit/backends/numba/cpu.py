"""What the processor offers: the width of its vectors and the register tile that follows from it."""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass

import llvmlite.binding as llvm


@dataclass(frozen=True)
class Target:
    """The processor that kernels are compiled for.

    lanes: float32 values in a vector register. rows, panel: the largest register tile, rows times panel / lanes accumulators.
    """

    name: str
    features: str
    lanes: int
    rows: int
    panel: int

    @property
    def tiles(self) -> dict[int, int]:
        """Rows of the largest register tile by its number of vectors; one more than in a panel where one would be left over."""
        usual = self.panel // self.lanes
        return {vectors: self.rows * usual // max(usual, vectors) for vectors in range(1, usual + 2)}


# feature, first match: lanes, rows, vectors in a panel. Accumulators, panel and one operand fill the registers
TILES = (("avx512f", 16, 14, 2), ("avx2", 8, 6, 2), ("avx", 8, 6, 2), ("neon", 4, 10, 2), ("", 4, 6, 2))


@functools.cache
def target() -> Target:
    """This machine's processor, or the one that NUMBA_CPU_NAME (with NUMBA_CPU_FEATURES) asks Numba to compile for."""
    name = os.environ.get("NUMBA_CPU_NAME", "")
    if name and name != "host":
        features = os.environ.get("NUMBA_CPU_FEATURES", "")
        known = features if features else _IMPLIED.get(name, "")
    else:
        name, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
        known = features
    have = {f.lstrip("+") for f in known.split(",") if not f.startswith("-")}
    if platform.machine().lower() in ("arm64", "aarch64"):  # part of the architecture; not every system tells its features
        have.add("neon")
    lanes, rows, vectors = next(t[1:] for t in TILES if not t[0] or t[0] in have)
    return Target(name, features, lanes, rows, vectors * lanes)


_IMPLIED = {"haswell": "+avx,+avx2,+fma", "skylake": "+avx,+avx2,+fma", "znver3": "+avx,+avx2,+fma", "generic": ""}
