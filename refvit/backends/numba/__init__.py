"""The CPU backend: kernels compiled by Numba and LLVM, run by threads of its own. float32."""

from __future__ import annotations

from collections.abc import Callable

from refvit.backends.numba import sources  # before everything else: it says what is imported
from refvit.backends.numba.threads import check_threads
from refvit.graph.ir import Array, Graph

__all__ = ["check_threads", "compile_graph", "facts", "sources"]


def facts() -> dict[str, str | int]:
    """What it would use here: threads, float32 values in a register, the processor's name, and where its kernels are kept."""
    from refvit.backends.numba.cpu import target
    from refvit.backends.numba.objects import folder

    return {
        "threads": check_threads(None),
        "lanes": target().lanes,
        "processor": target().name,
        "kernels": str(folder() or "not kept: there is no home folder"),
    }


def compile_graph(graph: Graph, threads: int | None = None) -> Callable[[Array], dict[str, Array]]:
    """Prepare to run `graph`, whose parameters are arrays, on this many threads (default: the cores of this process)."""
    from refvit.backends.numba.executable import Executable

    return Executable(graph, check_threads(threads))
