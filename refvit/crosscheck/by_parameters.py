"""Which of a candidate's parameters are which of the reference's: by the names that a public layout has, or by their numbers.

A module is what its parameters are: once they are known, so is the block of the reference that a module of any name is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from refvit.graph.ir import Array, Graph, HasShape
from weights_convert.convert import LAYOUTS
from weights_convert.layout import Layout, Rule

FEWEST = 3  # parameters that have to fit before a layout is believed
CLOSE = 2.0**-7  # numbers that differ by less are the same in bfloat16
AXES: dict[int, tuple[tuple[int, ...], ...]] = {  # orders of axes that weights are stored in, by their number
    2: ((0, 1), (1, 0)),
    4: ((0, 1, 2, 3), (3, 2, 0, 1), (0, 3, 1, 2), (2, 3, 0, 1)),  # kcrs; from rsck, krsc, rskc
}


@dataclass(frozen=True)
class Part:
    """A parameter of the candidate that is part `index` of `count` equal ones, stacked on the first axis, of ours."""

    ours: str
    index: int = 0
    count: int = 1


@dataclass
class Parameters:
    """theirs: candidate's name -> what it is of ours; names: ours -> theirs, joined by " + "; tensors: ours, from theirs."""

    theirs: dict[str, Part] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Array] = field(default_factory=dict)
    _below: dict[str, list[Part]] = field(default_factory=dict)

    def below(self, path: str) -> list[Part]:
        """Of a module of the candidate and all inside it."""
        if not self._below:
            for name, part in self.theirs.items():
                for dot in (m.start() for m in re.finditer(r"\.", name)):
                    self._below.setdefault(name[:dot], []).append(part)
        return self._below.get(path, [])


def match_parameters(
    ours: Mapping[str, HasShape], theirs: Mapping[str, Array], owners: Mapping[str, str] | None = None
) -> Parameters:
    """By names first, then by the module that a parameter belongs to, then by numbers; what is uncertain is left out.

    owners: candidate's parameter -> path of the module that reads it, where its name does not say so
    """
    found = Parameters()
    best = max(_by_names(ours, theirs), key=len, default={})
    if len(best) >= min(FEWEST, len(ours)):
        for target, (keys, tensor) in best.items():
            _take(found, target, keys, tensor)
    paths = {name: (owners or {}).get(name) or name.rpartition(".")[0] for name in theirs}
    _by_numbers(found, ours, theirs)
    _by_module(found, ours, theirs, paths)
    return found


def _take(found: Parameters, target: str, keys: tuple[str, ...], tensor: Array) -> None:
    for i, key in enumerate(keys):
        found.theirs.setdefault(key, Part(target, i, len(keys)))
    found.names[target] = " + ".join(keys)
    found.tensors[target] = np.asarray(tensor, np.float64)


Found = dict[str, tuple[tuple[str, ...], Array]]


def _by_names(ours: Mapping[str, HasShape], theirs: Mapping[str, Array]) -> Iterator[Found]:
    """What every layout makes of the names, our own names among them."""
    own = Rule(r".*", r"\g<0>")
    for prefix in _prefixes(ours, theirs):
        yield _renamed((own,), prefix, ours, theirs)
    for layout in LAYOUTS:
        for prefix in _prefixes(_signature(layout), theirs):
            yield _renamed(layout.rules, prefix, ours, theirs)


def _signature(layout: Layout) -> dict[str, None]:
    return dict.fromkeys(layout.signature)


def _prefixes(known: Mapping[str, object], theirs: Mapping[str, Array]) -> list[str]:
    """What most often stands before a known name, and nothing."""
    counts: Counter[str] = Counter()
    for name in theirs:
        for dot in (m.end() for m in re.finditer(r"\.", name)):
            if name[dot:] in known:
                counts[name[:dot]] += 1
    return ["", *(prefix for prefix, _ in counts.most_common(1))]


def _renamed(rules: tuple[Rule, ...], prefix: str, ours: Mapping[str, HasShape], theirs: Mapping[str, Array]) -> Found:
    """ours -> (their keys, the tensor in our form); what has another shape keeps its own."""
    found: Found = {}
    for name in theirs:
        if not name.startswith(prefix):
            continue
        key = name[len(prefix) :]
        rule, match = next(((r, m) for r in rules if (m := r.regex.fullmatch(key))), (None, None))
        if rule is None or match is None or rule.target is None or rule.refusal:
            continue
        keys = tuple(prefix + source for source in rule.sources(match))
        if any(k not in theirs for k in keys):
            continue
        target = match.expand(rule.target)
        try:
            made = rule.targets(target, [theirs[k] for k in keys])
        except ValueError:
            made = {target: theirs[name]} if len(keys) == 1 else {}
        found |= {t: (keys, a) for t, a in made.items() if t in ours}
    return found


def _by_module(found: Parameters, ours: Mapping[str, HasShape], theirs: Mapping[str, Array], paths: Mapping[str, str]) -> None:
    """A parameter beside one that is known: of the same module of ours the one of its leaf, or the only one of its size.

    A convolution with a bias that ours has not is left out: it was folded with the norm behind it, and is none of ours.
    """
    modules: dict[str, Counter[str]] = {}
    for name, part in found.theirs.items():
        modules.setdefault(paths[name], Counter())[part.ours.rpartition(".")[0]] += 1
    known = {name.rpartition(".")[0] for name in ours}
    members: dict[str, list[str]] = {}
    for name in theirs:
        if name not in found.theirs and paths[name]:
            members.setdefault(paths[name], []).append(name)
    for path, names in members.items():
        module = modules[path].most_common(1)[0][0] if path in modules else path
        if module not in known:
            continue
        free = [n for n in ours if n.rpartition(".")[0] == module and n not in found.names]
        if len(names) > len(free):
            continue
        for name in names:
            same = [n for n in free if np.prod(ours[n].shape) == theirs[name].size]
            leaf = [n for n in same if n.rpartition(".")[2] == name.rpartition(".")[2]]
            if len(chosen := leaf or same) == 1:
                _take(found, chosen[0], (name,), _oriented(theirs[name], ours[chosen[0]]))
                free.remove(chosen[0])


def _oriented(a: Array, ours: HasShape) -> Array:
    """In the order of axes in which it is nearest to ours."""
    shape = tuple(ours.shape)
    ways = [a.transpose(axes) for axes in AXES.get(a.ndim, ()) if a.transpose(axes).shape == shape]
    if not ways:
        return a.reshape(shape) if a.size == np.prod(shape) and a.squeeze().ndim < 2 else a
    values = ours if isinstance(ours, np.ndarray) else None
    return ways[0] if values is None else min(ways, key=lambda w: float(np.abs(w - values).sum()))


def _by_numbers(found: Parameters, ours: Mapping[str, HasShape], theirs: Mapping[str, Array]) -> None:
    """Equal numbers, in any of the usual orders of axes, where no other parameter on either side has them."""
    free = {n: a for n, a in ours.items() if n not in found.names and isinstance(a, np.ndarray) and a.size}
    wanted: dict[int, list[tuple[str, Array, Part]]] = {}
    for name, a in free.items():
        wanted.setdefault(a.size, []).append((name, a, Part(name)))
        if a.shape[0] % 3 == 0 and name.rpartition(".")[0].endswith("qkv"):
            for i, third in enumerate(np.split(a, 3)):
                wanted.setdefault(third.size, []).append((name, third, Part(name, i, 3)))
    hits: dict[tuple[str, int, int], list[tuple[str, Array]]] = {}
    for key, a in theirs.items():
        if key in found.theirs or a.size < 2:
            continue
        equal = [(part, way) for _, b, part in wanted.get(a.size, ()) if (way := _equal(a, b)) is not None]
        for part, way in equal if len(equal) == 1 else ():
            hits.setdefault((part.ours, part.index, part.count), []).append((key, way))
    for target in free:
        for count in (1, 3):
            parts = [hits.get((target, i, count), []) for i in range(count)]
            if all(len(p) == 1 for p in parts):
                _take(found, target, tuple(p[0][0] for p in parts), np.concatenate([p[0][1] for p in parts]))


def _equal(a: Array, b: Array) -> Array | None:
    """`a` in the axes of `b`, if it has the same numbers."""
    for axes in AXES.get(a.ndim, (tuple(range(a.ndim)),)):
        way = a.transpose(axes)
        if way.shape != b.shape:
            if way.squeeze().shape != b.squeeze().shape:
                continue
            way = way.reshape(b.shape)
        head = (slice(0, 2),) * way.ndim  # of most arrays these few numbers tell
        if np.abs(way[head] - b[head]).max() <= CLOSE * np.abs(b[head]).max() + 1e-6 and _near(way, b):
            return way
    return None


def _near(a: Array, b: Array) -> bool:
    return bool((np.abs(a - b) <= CLOSE * np.abs(b) + 1e-6).all())


def drop_folded(found: Parameters, graph: Graph) -> None:
    """Forget convolutions whose batch norm has no parameters there: it is folded into them, and they are not those of ours."""
    for node in graph:
        if node.op != "batch_norm" or any(p in found.names for p in node.sources[1:]):
            continue
        convolution = graph.nodes.get(node.sources[0])
        for name in convolution.sources[1:] if convolution is not None else ():
            found.names.pop(name, None)
            found.tensors.pop(name, None)
