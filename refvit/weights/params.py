"""A nested, read-only view of a flat table of parameters.

`p["layer3"]["0"]` walks along the dots of the names, `**p["qkv"]` hands a layer exactly its own tensors: a missing or surplus
one is an error of the call itself. The values are arrays when a model runs and symbolic tensors when it is traced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from refvit.errors import WeightsError


class Params(Mapping[str, Any]):
    """View of the entries of `flat` below `path`; `path` is also the module path in every original framework."""

    __slots__ = ("_tree", "path")

    def __init__(self, flat: Mapping[str, Any]) -> None:
        self.path = ""
        self._tree: dict[str, Any] = {}
        for name, value in flat.items():
            *modules, leaf = name.split(".")
            node = self._tree
            for module in modules:
                node = node.setdefault(module, {})
                if not isinstance(node, dict):
                    raise WeightsError(f"parameter {name!r}: {module!r} is a tensor and a module at once")
            if leaf in node:
                raise WeightsError(f"parameter {name!r}: the name is a tensor and a module at once")
            node[leaf] = value

    def __getitem__(self, key: str | int) -> Any:
        full = f"{self.path}.{key}" if self.path else str(key)
        try:
            value = self._tree[str(key)]
        except KeyError:
            raise WeightsError(f"no parameter or module {full!r}; here are {', '.join(self._tree) or 'none'}") from None
        if isinstance(value, dict):
            child = object.__new__(Params)
            child.path, child._tree = full, value
            return child
        return value

    def __contains__(self, key: object) -> bool:
        return str(key) in self._tree

    def __iter__(self) -> Iterator[str]:
        return iter(self._tree)

    def __len__(self) -> int:
        return len(self._tree)

    def __repr__(self) -> str:
        return f"Params({self.path or 'model'}: {', '.join(self._tree)})"
