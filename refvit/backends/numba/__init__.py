"""The CPU backend: kernels compiled by Numba and LLVM, run by threads of its own. float32."""

from __future__ import annotations

from collections.abc import Callable

from refvit.backends.numba import sources  # before everything else: it says what is imported
from refvit.backends.numba.threads import check_threads
from refvit.graph.ir import Array, Graph

__all__ = ["check_threads", "compile_graph", "sources"]


def compile_graph(graph: Graph, threads: int | None = None) -> Callable[[Array], dict[str, Array]]:
    """Prepare to run `graph`, whose parameters are arrays, on this many threads (default: the cores of this process)."""
    from refvit.backends.numba.executable import Executable

    return Executable(graph, check_threads(threads))
