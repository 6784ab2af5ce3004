"""Any callable, and a refvit Model on any backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refvit.crosscheck.candidates.collect import ROOT, as_array, attempt, dtype_of, floats, leaves
from refvit.crosscheck.candidates.dumps import OUTPUTS
from refvit.crosscheck.candidates.located import Located
from refvit.crosscheck.observed import Observed
from refvit.errors import ConfigError
from refvit.graph.ir import Array
from refvit.model import Model


class Function:
    """A candidate: a callable x -> array or tensor, or a tuple, list or dict of them.

    x is float32 (n, 3, h, w), the call's own copy. The entries of a dict are called by their keys, "a[0]" what is inside them.
    A single array is called "output", the items of a list "output[0]", "output[1]" ... Of a dict the entries with a usual name
    of a result, such as "logits", are the results, or else all.
    """

    def __init__(self, function: Callable[[Array], Any], *, name: str = "") -> None:
        self._function = function
        self.name = name or getattr(function, "__qualname__", type(function).__name__)

    def run(self, x: Array) -> Observed:
        """ConfigError if it raises, or returns no array of floating-point numbers."""
        result = attempt(self.name, x.shape, lambda: self._function(np.array(x)))
        values: dict[str, Array] = {}
        dtypes: dict[str, str] = {}
        hidden: list[str] = []
        for path, leaf in leaves(result, ROOT):
            name = _plain(path) if isinstance(result, dict) else path
            a = as_array(leaf)
            if a is None or not floats(a):
                hidden.append(f"{name} ({type(leaf).__name__ if a is None else a.dtype.name})")
            else:
                values[name], dtypes[name] = a, dtype_of(leaf) or a.dtype.name
        if not values:
            what = ", ".join(hidden[:3]) or type(result).__name__
            raise ConfigError(
                f"{self.name}: an array of floating-point numbers, or a dict of them, expected, it returned {what}"
            )
        notes = (f"{', '.join(hidden)}: no floating-point numbers, and not compared",) if hidden else ()
        outputs = tuple(name for name in values if name in OUTPUTS) or tuple(values)
        return Observed(values, outputs, dtypes=dtypes, notes=notes)


def _plain(path: str) -> str:
    """ "output[logits][0]" -> "logits[0]"."""
    key, bracket, rest = path.removeprefix(f"{ROOT}[").partition("]")
    return key + rest if bracket else path


class RefvitModel:
    """A candidate: refvit itself on another backend or in another dtype.

    The numpy backend shows every value, the others what blocks return: asked for more, they would fuse less than they do. Their
    outputs are of a run in which nothing else is asked for. outputs_only: nothing but outputs.
    """

    def __init__(self, model: Model, *, name: str = "", outputs_only: bool = False) -> None:
        self._model, self._outputs_only = model, outputs_only
        self.name = name or f"{model.name} on {model.backend} in {model.dtype}"

    def run(self, x: Array) -> Observed:
        model = self._model
        found = model(x)
        outputs = found if isinstance(found, dict) else {ROOT: found}
        graph, apart = model.graph(x.shape), frozenset[str]()
        inner: dict[str, Array] = {}
        if model.backend == "numpy" and not self._outputs_only:
            inner = model.intermediates(x)
        elif not self._outputs_only:
            blocks = {path: value for path, value in graph.aliases.items() if value in graph.nodes and path not in outputs}
            inner = model._backend.compile_graph(graph.with_outputs(blocks), model.threads)(x.astype(model.dtype, copy=False))
            apart = frozenset(outputs)
        parameters = {n: p for n, p in graph.params.items() if isinstance(p, np.ndarray)}
        return Located({**inner, **outputs}, tuple(outputs), parameters, arithmetic=model.dtype, apart=apart)
