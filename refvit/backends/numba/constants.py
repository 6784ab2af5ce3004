"""Weights as kernels want them, computed once and shared by the plans of all image sizes.

What a plan needs of the parameters (a folded norm, a position embedding on another grid, packed panels) is known by how it is
computed. An entry lives as long as some plan uses it, so that sizes seen once do not stay in memory.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from refvit.graph.ir import OPS, Array, Graph, Node
from refvit.graph.passes import constants

T = TypeVar("T")
_shared: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_lock = threading.RLock()


class Constant:
    """A float32 array, with the parameters it was computed from kept alive: the key names them by identity."""

    def __init__(self, key: str, array: Array, sources: tuple[Array, ...]) -> None:
        self.key, self.array, self.sources = key, array, sources


class Constants:
    """The constants of one graph. `kept` is what its plan has to hold."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._nodes = graph, constants(graph)
        self._keys: dict[str, str] = {}
        self.kept: list[Any] = []

    def __contains__(self, name: str) -> bool:
        return name in self._nodes or name in self._graph.params

    def __getitem__(self, name: str) -> Constant:
        """A parameter, or the value of a node that depends on parameters only: computed in float64, rounded once."""

        def compute() -> Constant:
            array = np.ascontiguousarray(self._wide(name, {}), np.float32)
            return Constant(self.key(name), array, tuple(self._sources(name)))

        return self.share(self.key(name), compute)

    def share(self, key: str, make: Callable[[], T]) -> T:
        """What `make` gives, made once for all graphs that have this key."""
        with _lock:
            found = _shared.get(key)
            if found is None:
                found = _shared[key] = make()
        self.kept.append(found)
        return found

    def key(self, name: str) -> str:
        if name not in self._keys:
            if name in self._nodes:
                node = self._nodes[name]
                inputs = [None if i is None else self.key(i) for i in node.inputs]
                text = f"{node.op}{sorted(node.attrs.items())}{inputs}"
                self._keys[name] = hashlib.sha256(text.encode()).hexdigest()
            else:
                self._keys[name] = f"{name}@{id(self._graph.params[name])}"
        return self._keys[name]

    def _wide(self, name: str, known: dict[str, Array]) -> Array:
        if name not in known:
            if name in self._nodes:
                node: Node = self._nodes[name]
                arguments = [None if i is None else self._wide(i, known) for i in node.inputs]
                known[name] = np.asarray(OPS[node.op].function(*arguments, **node.attrs))
            else:
                array = self._graph.params[name]
                known[name] = np.asarray(array, np.float64)
        return known[name]

    def _sources(self, name: str) -> list[Array]:
        if name not in self._nodes:
            return [self._graph.params[name]]  # type: ignore[list-item]
        return [a for i in self._nodes[name].sources for a in self._sources(i)]
