"""Where the values of a graph are: by name, by module, by block, and by the parameters they depend on."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Iterable

from refvit.graph.ir import Graph

FOLLOWERS = 6  # nodes without parameters behind a module that may still count as its result


def plain_name(name: str) -> str:
    """Letters and numbers of a name, whatever separates them: "Blocks/0_attn:1" -> "blocks.0.attn.1"."""
    return re.sub(r"[^a-z0-9]+", ".", name.lower()).strip(".")


class Places:
    """Lookups in one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.order = {name: i for i, name in enumerate((*graph.inputs, *graph.nodes))}
        self.names: dict[str, str] = {**{n: n for n in graph.inputs}, **graph.names()}
        for public, value in graph.outputs.items():
            self.names.setdefault(public, value)
        plain: dict[str, set[str]] = {}
        for name, value in self.names.items():
            plain.setdefault(plain_name(name), set()).add(value)
        self.plain = {name: next(iter(values)) for name, values in plain.items() if len(values) == 1}
        self.users = graph.users()
        self.readers: dict[str, list[str]] = {}  # parameter -> nodes
        for node in graph:
            for source in node.sources:
                if source in graph.params:
                    self.readers.setdefault(source, []).append(node.name)
        self._public: dict[str, list[str]] = {}
        for name, value in self.names.items():
            self._public.setdefault(value, []).append(name)
        self._owners: dict[str, set[str]] = {}
        for parameter in graph.params:
            path = parameter
            while path := path.rpartition(".")[0]:
                self._owners.setdefault(path, set()).add(parameter)
        inside: dict[str, set[str]] = {}
        for name, value in (*self.names.items(), *((f"{node.scope}.", node.name) for node in graph)):
            for at in (m.start() for m in re.finditer(r"[.:]|$", name)):
                inside.setdefault(name[:at], set()).add(value)
        self._inside = {path: tuple(sorted(values, key=self.order.__getitem__)) for path, values in inside.items()}
        first: dict[str, str] = {}
        self._behind: dict[str, int] = {}  # value -> a bit for each parameter that it depends on, filled when asked for
        self._bits: dict[str, int] = {}
        self._first: dict[str, str] = {}  # value -> the first that is computed in the same way
        self._twins: dict[str, list[str]] = {}
        for node in graph:
            made = f"{node.op} {[self._first.get(i or '', i) for i in node.inputs]} {dict(node.attrs)}"
            self._first[node.name] = first.setdefault(made, node.name)
            self._twins.setdefault(self._first[node.name], []).append(node.name)

    def public(self, value: str) -> str:
        """The name to show: a node's own where it has weights, else that of the block it ends, if it ends one."""
        names = self._public.get(value, [value])
        node = self.graph.nodes.get(value)
        weighs = node is not None and any(s in self.graph.params for s in node.sources)
        return value if weighs or len(names) == 1 else names[-1]

    def twins(self, value: str) -> list[str]:
        """Values computed by the same operation from the same sources, this one among them."""
        return self._twins.get(self._first.get(value, value), [value])

    def module(self, path: str) -> str | None:
        """The value of the one node that reads the parameters right below `path`; None if there is no such node."""
        direct = [p for p in self._owners.get(path, ()) if "." not in p[len(path) + 1 :]]
        nodes = {node for p in direct for node in self.readers.get(p, ())}
        return nodes.pop() if len(nodes) == 1 and len(direct) == len(self._owners[path]) else None

    def inside(self, path: str) -> tuple[str, ...]:
        """Values that the block computes, in order."""
        return self._inside.get(path, ())

    def before(self, path: str) -> tuple[str, ...]:
        """Values that the block takes from outside."""
        inside = set(self.inside(path))
        taken = {s for v in inside if v in self.graph.nodes for s in self.graph.nodes[v].sources}
        return tuple(sorted((s for s in taken - inside if s in self.order), key=self.order.__getitem__))

    def region(self, path: str) -> tuple[str, ...]:
        """What a module called `path` could show: what its block takes and computes, and what follows without weights."""
        inside = self.inside(path)
        behind = [v for last in inside[-1:] for v in self.behind(last) if v not in inside]
        return (*self.before(path), *inside, *behind)

    def parameters(self, path: str) -> frozenset[str]:
        """Of the block or module `path` and all inside it."""
        return frozenset(self._owners.get(path, ()))

    def blocks_of(self, parameters: Iterable[str]) -> list[str]:
        """Paths that own exactly these parameters, outermost first."""
        wanted = set(parameters)
        return sorted((path for path, owned in self._owners.items() if owned == wanted), key=len)

    def made_of(self, parameters: Iterable[str]) -> tuple[str, ...]:
        """Values that are computed from the input with exactly these parameters."""
        if not self._behind:
            bits = {name: 1 << i for i, name in enumerate(self.graph.params)}
            for node in self.graph:
                sources = (bits.get(s) or self._behind.get(s, 0) for s in node.sources)
                self._behind[node.name] = functools.reduce(operator.or_, sources, 0)
            self._bits = bits
        wanted = sum(self._bits[p] for p in set(parameters))
        return tuple(value for value, bits in self._behind.items() if bits == wanted)

    def results_of(self, parameters: Iterable[str]) -> tuple[str, ...]:
        """What a module of these parameters may give: the last value that reads one, and what is made of it without others."""
        nodes = [node for p in parameters for node in self.readers.get(p, ())]
        if not nodes:
            return ()
        last = max(nodes, key=self.order.__getitem__)
        return (last, *self.behind(last))

    def behind(self, value: str) -> tuple[str, ...]:
        """The next values that are made of it without weights."""
        found, pending = [value], [value]
        while pending and len(found) <= FOLLOWERS:
            for user in self.users.get(pending.pop(0), ()):
                weighs = any(s in self.graph.params for s in self.graph.nodes[user].sources)
                if not weighs and user not in found:
                    found.append(user)
                    pending.append(user)
        return tuple(found[1 : FOLLOWERS + 1])
