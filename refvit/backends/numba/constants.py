"""Weights as kernels want them, computed once and shared by the plans of all image sizes.

What a plan needs of the parameters (a folded norm, a position embedding on another grid, packed panels) is known by how it is
computed. An entry lives as long as some plan uses it, so that sizes seen once do not stay in memory.
"""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from refvit.backends.numba.program import Buffer
from refvit.files import mappings, release
from refvit.graph.ir import OPS, Array, Graph, HasShape, Node
from refvit.graph.passes import constants

T = TypeVar("T")


class Entry:
    """Something shared, with all parameters of a graph that it was made for: the key names them by identity."""

    def __init__(self, value: Any, params: Mapping[str, HasShape]) -> None:
        self.value, self.params = value, params


_shared: weakref.WeakValueDictionary[str, Entry] = weakref.WeakValueDictionary()
_lock = threading.RLock()


class Constants:
    """The constants of one graph. `kept` is what its plan has to hold."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._nodes = graph, constants(graph)
        self._keys: dict[str, str] = {}
        self._maps = mappings(graph.params.values())
        self.kept: list[Entry] = []

    def __contains__(self, name: str) -> bool:
        return name in self._nodes or name in self._graph.params

    def array(self, name: str) -> Array:
        """A parameter, or the value of a node that depends on parameters only: computed in float64, rounded once."""
        return np.ascontiguousarray(self._wide(name, {}) if name in self._nodes else self._graph.params[name], np.float32)

    def buffer(self, name: str) -> Buffer:
        """The same as memory of a plan."""

        def make() -> Buffer:
            array = self.array(name)
            return Buffer(array.size, array=array)

        return self.share(self.key(name), make)

    def share(self, key: str, make: Callable[[], T]) -> T:
        """What `make` gives, made once for all graphs that have this key."""
        with _lock:
            found = _shared.get(key)
            if found is None:
                found = _shared[key] = Entry(make(), self._graph.params)
                release(self._maps)  # what was packed is not read again
        self.kept.append(found)
        return found.value

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


def _forget() -> None:
    """In a forked child: whoever held the lock stayed with the parent."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
