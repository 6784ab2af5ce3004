"""What a candidate's names say: the value of ours that one must be, or the block that it must be in."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from refvit.crosscheck.by_parameters import Parameters, Part
from refvit.crosscheck.candidates.located import path_of_slashes
from refvit.crosscheck.observed import Observed
from refvit.crosscheck.places import Places, plain_name
from refvit.errors import ConfigError

TAKEN = "input of "  # what goes into a module
FEWEST = 3  # names that have to agree before a prefix is believed


@dataclass(frozen=True)
class Hint:
    """values: of the reference, the likeliest first; exact: it is the first of them, whatever its numbers are.

    how: as in `matching.Match`; name: ours that agreed; part: (i, n) if it is part i of n that are stacked to the value.
    """

    values: tuple[str, ...]
    how: str
    exact: bool = False
    name: str = ""
    part: tuple[int, int] | None = None


class Names:
    """Hints for the values of one candidate."""

    def __init__(self, places: Places, observed: Observed, parameters: Parameters) -> None:
        self.places, self.observed, self.parameters = places, observed, parameters
        self._paths: Mapping[str, str] = getattr(observed, "paths", {})
        self._prefix = self._common_prefix([*observed.values, *self._paths.values()])
        ends: dict[str, str] = {}
        for name in observed.values:
            if path := self._path(name):
                ends[path] = name
        self._ends = ends  # path -> the last of several values of one module
        self._modules = {name.rpartition(".")[0] for name in observed.parameters}
        self._hints: dict[str, Hint | None] = {}

    def hint(self, name: str) -> Hint | None:
        """None if the name says nothing."""
        if name not in self._hints:
            self._hints[name] = self._output(name) or self._hint(name)
        return self._hints[name]

    def _hint(self, name: str) -> Hint | None:
        if name.startswith(TAKEN):
            return self._taken(name)
        if "." in name and name in self.places.names:
            return Hint((self.places.names[name],), "path", True, name)
        if name not in self._paths and name.startswith("/") and (equal := self._equal(_Spot(name))):
            return equal
        if path := self._path(name):
            return self._operator(path, last=self._ends[path] == name) or self._scope(path)
        spot = _Spot.of(name)
        return self._equal(spot) or self._module(spot) or self._scope(spot.path)

    def _path(self, name: str) -> str:
        return self._strip(self._paths.get(name, "") or path_of_slashes(name))

    def _strip(self, path: str) -> str:
        return path.removeprefix(self._prefix)

    def _output(self, name: str) -> Hint | None:
        """A result of the whole: by its key, or because there is one on each side."""
        outputs, ours = self.observed.outputs, self.places.graph.outputs
        if name not in outputs:
            return None
        key = name.rpartition("[")[2].removesuffix("]") if name.endswith("]") else name
        public = key if key in ours else None
        if public is None and len(outputs) == len(ours):
            public = list(ours)[outputs.index(name)]
        return Hint((ours[public],), "path", True, public) if public else None

    def _equal(self, spot: _Spot) -> Hint | None:
        """A name of ours, whatever separates its parts."""
        places, ours = self.places, spot.named(self._strip(spot.path))
        for known in (spot.named(spot.path), ours):
            if known in places.names:
                return Hint((places.names[known],), "path", True, known)
        value = places.plain.get(plain_name(ours))
        return Hint((value,), "path", True, places.public(value)) if value else None

    def _owned(self, path: str) -> list[Part]:
        """What a module of the candidate and all inside it have of ours."""
        return self.parameters.below(path) or (self.parameters.below(self._prefix + path) if self._prefix else [])

    def _operator(self, path: str, *, last: bool) -> Hint | None:
        """One of the operators that a layer consists of; the last one gives what the layer gives."""
        if value := self.places.module(path):
            return Hint((value,), "path", True, value) if last else None
        if not last or not self._modules & {path, self._prefix + path}:  # what is around layers computes something else
            return None
        owned = self._owned(path)
        layer = {part.ours.rpartition(".")[0] for part in owned}
        if len(layer) != 1 or not (results := self.places.results_of({p.ours for p in owned})):
            return None
        part = (owned[0].index, owned[0].count) if owned[0].count > 1 else None
        return Hint(results, "parameters", True, self.places.public(results[0]), part)

    def _module(self, spot: _Spot) -> Hint | None:
        """A module that owns parameters: the reference's value or block that owns the same ones."""
        owned = self._owned(spot.path)
        targets = {part.ours for part in owned}
        results = self.places.results_of(targets)
        if not results:
            return None
        layers = {t.rpartition(".")[0] for t in targets}
        if spot.path in self._modules and len(layers) == 1:
            parts = {(part.index, part.count) for part in owned}
            part = parts.pop() if len(parts) == 1 else (0, 1)
            if part[1] > 1 or spot.first:
                public = self.places.public(results[0])
                return Hint(results, "parameters", spot.first, public, part if part[1] > 1 else None)
        paths = self.places.blocks_of(targets)
        if not paths and spot.first and len(only := self.places.made_of(targets)) == 1:
            return Hint(only, "parameters", True, self.places.public(only[0]))
        blocks = [self.places.names[b] for b in paths if b in self.places.names]
        around = [*paths, *(layer.rpartition(".")[0] for layer in layers if len(layers) == 1)]
        inside = [v for b in around if b for v in reversed(self.places.inside(b))]
        return Hint(tuple(dict.fromkeys([*blocks, *results, *inside])), "parameters")

    def _scope(self, path: str) -> Hint | None:
        """The innermost block of ours around it."""
        for how, block in self._around(path):
            if region := self.places.region(block):
                return Hint(region, how)
        return None

    def _around(self, path: str) -> Iterator[tuple[str, str]]:
        while path:
            if self.places.inside(path) and not self.places.module(path):
                yield "path", path
            if targets := {part.ours for part in self._owned(path)}:
                whole = [b for b in self.places.blocks_of(targets) if not self.places.module(b)]
                yield from (("parameters", b) for b in whole[:1])
            path = path.rpartition(".")[0]

    def _taken(self, name: str) -> Hint | None:
        """What goes into a module: what the node reads that the module is, or what its block takes from outside."""
        spot = _Spot.of(name.removeprefix(TAKEN))
        whole = self._equal(_Spot(spot.path)) or self._module(_Spot(spot.path))
        if whole is None:
            return self._scope(spot.path)
        before = self.places.before(whole.name) if whole.exact else ()
        if not before and whole.exact and (node := self.places.graph.nodes.get(whole.values[0])):
            before = tuple(s for s in node.sources if s not in self.places.graph.params)
        if len(before) == 1 and spot.first:
            return Hint(before, whole.how, True, self.places.public(before[0]))
        return Hint(before, whole.how) if before else self._scope(spot.path) or Hint(whole.values, whole.how)

    def _common_prefix(self, names: Iterable[str]) -> str:
        """What stands before most of the names that are ours otherwise, such as "backbone."."""
        counts: Counter[str] = Counter()
        for name in dict.fromkeys(names):
            path = _Spot.of(name.removeprefix(TAKEN)).path
            for at in (0, *(m.end() for m in re.finditer(r"\.", path))):
                if "." in path[at:] and path[at:] in self.places.names:
                    counts[path[:at]] += 1
        best, count = counts.most_common(1)[0] if counts else ("", 0)
        return best if count >= FEWEST and count > counts[""] else ""


@dataclass(frozen=True)
class _Spot:
    """Of a name like "blocks.0[1]#2" the module's path, the item of its result, and which call of it."""

    path: str
    item: str = ""
    call: str = ""

    @classmethod
    def of(cls, name: str) -> _Spot:
        path, _, call = name.partition("#")
        match = re.fullmatch(r"([^\[]*)\[(.*)\]", path)
        return cls(match[1], match[2].replace("][", "."), call) if match else cls(path, "", call)

    @property
    def first(self) -> bool:
        """Whether it is all that the first call gave."""
        return not self.item and not self.call

    def named(self, path: str) -> str:
        """As ours calls that of the module `path`."""
        return path + (f"_{self.call}" if self.call else "") + (f":{self.item}" if self.item else "")


def explicit(names: Mapping[str, str], places: Places, observed: Observed) -> dict[str, Hint]:
    """The caller's map, candidate's name -> a name of ours. ConfigError for names that do not exist on their side."""
    hints: dict[str, Hint] = {}
    for theirs, ours in names.items():
        for name, known, side in ((theirs, observed.values, "candidate"), (ours, places.names, "reference")):
            if name not in known:
                near = difflib.get_close_matches(str(name), list(known), 3, 0.5) or list(known)[:3]
                raise ConfigError(f"names: the {side} has no value {name!r:.80}; there are {', '.join(near)} and others")
        hints[theirs] = Hint((places.names[ours],), "map", True, ours)
    return hints
