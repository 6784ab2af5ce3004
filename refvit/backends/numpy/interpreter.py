"""Run a graph node by node with the NumPy definitions. This is the meaning of a graph; it is never fast."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from refvit.errors import ConfigError, GraphError
from refvit.graph.ir import OPS, Array, Graph

Executable = Callable[[Array], dict[str, Array]]


def check_threads(threads: int | None) -> None:
    """ConfigError if a number is asked for: NumPy's BLAS library decides it for itself."""
    if threads is not None:
        raise ConfigError(
            "threads: the numpy backend uses as many as its BLAS library; set OPENBLAS_NUM_THREADS before starting, or take "
            "backend='numba'"
        )


def compile_graph(graph: Graph, threads: None = None) -> Executable:
    """Prepare to run `graph`, whose parameters are arrays of the dtype to run in.

    The result maps an input (n, 3, h, w) to the graph's outputs by public name. A value is dropped after its last use. It
    keeps no state, so that any number of threads may call it.
    """
    uses = Counter(source for node in graph for source in node.sources)
    uses.update(graph.outputs.values())
    (name,) = graph.inputs
    if missing := [n for n, p in graph.params.items() if not isinstance(p, np.ndarray)]:
        raise GraphError(f"{missing[0]}: only its shape is known; trace with the arrays to run a graph")
    dtypes = {p.dtype for p in graph.params.values() if isinstance(p, np.ndarray)}

    def run(x: Array) -> dict[str, Array]:
        if x.shape != graph.inputs[name].shape:
            raise GraphError(f"the graph is for an input of shape {graph.inputs[name].shape}, got {x.shape}")
        if x.dtype.kind != "f" or dtypes - {x.dtype}:
            raise GraphError(
                f"the input is {x.dtype}, the parameters are {', '.join(map(str, dtypes))}; one floating dtype expected"
            )
        values: dict[str, Array] = {**graph.params, name: x}  # type: ignore[dict-item]
        left = dict(uses)
        for node in graph:
            arguments = [None if i is None else values[i] for i in node.inputs]
            y = np.asarray(OPS[node.op].function(*arguments, **node.attrs))
            if y.shape != node.shape or y.dtype != x.dtype:
                raise GraphError(f"{node.name}: {node.shape} {x.dtype} expected, {node.op} gave {y.shape} {y.dtype}")
            values[node.name] = y
            for source in node.sources:
                left[source] -= 1
                if not left[source]:
                    del values[source]
            if not left.get(node.name):
                del values[node.name]
        return {public: values[value] for public, value in graph.outputs.items()}

    return run
