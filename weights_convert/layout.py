"""What a layout is, how its keys become those of refvit, and back.

The way back is worked out from the same rules, whose patterns are simple for this: literals, groups, alternations and optional
parts. What varies more (".*") is in a group that the target takes over.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refvit.errors import WeightsError
from refvit.graph.ir import Array
from refvit.weights.check import SHOWN

MAX_LAYERS = 64  # stacked along an axis; the deepest model has 32
ROWS = re.compile(r"\(\?P<rows>([\w|]+)\)")
INNERMOST = re.compile(r"\((\?P<\w+>|\?[:=!])?((?:\\.|[^\\()])*)\)(\??)")  # a group without groups in it
WILD = re.compile(r"(?:\\[dw]|\[[^\]]*\]|(?<!\\)\.)[*+?]*|(?<!\\)[*+?{]")
Choose = Callable[[tuple[str, ...]], str]


class Origin(NamedTuple):
    """Where a tensor of ours comes from: the keys of its equal parts on rows, usually one."""

    rule: Rule
    keys: tuple[str, ...]
    layer: int | None  # the entry of their first axis, if they hold all layers


@dataclass(frozen=True)
class Rule:
    """Source keys that match `pattern` (the whole key) become `target`, a template for re.Match.expand; None drops them.

    A group (?P<rows>a|b|c) in the pattern says that the keys with a, b and c are stacked on rows, in this order, to one target.
    A * in the target says that the source holds all layers: entry i of its first axis becomes the target with i for *.
    change: done to each array on the way; a ValueError of it says what is wrong with the shape
    inverse: undoes `change`
    refusal: keys that match are refused with this sentence, whose subject is the key
    reason: of a rule without a target: why its keys are left out
    """

    pattern: str
    target: str | None
    change: Callable[[Array], Array] | None = None
    inverse: Callable[[Array], Array] | None = None
    refusal: str = ""
    reason: str = ""

    def sources(self, match: re.Match[str]) -> tuple[str, ...]:
        """All keys that go into the target of the one that matched, in their order."""
        key = match.string
        if (rows := ROWS.search(self.pattern)) is None:
            return (key,)
        start, end = match.span("rows")
        return tuple(key[:start] + name + key[end:] for name in rows[1].split("|"))

    def targets(self, target: str, arrays: Sequence[Array]) -> dict[str, Array]:
        """What the arrays of all sources, of one shape, become. ValueError if they have another number of axes."""
        if "*" not in target:
            changed = [self.change(a) if self.change else a for a in arrays]
            return {target: changed[0] if len(changed) == 1 else np.concatenate(changed)}
        count = len(arrays[0]) if arrays[0].ndim else 0
        if not 0 < count <= min(arrays[0].size, MAX_LAYERS):
            raise ValueError("a first axis of layers expected")
        layers: dict[str, Array] = {}
        for i in range(count):
            layers |= self.targets(target.replace("*", str(i)), [a[i] for a in arrays])
        return layers

    def origin(self, name: str, choose: Choose) -> Origin | None:
        """Where `name` comes from, if this rule can make it. `choose` takes one of the pattern's alternatives."""
        if (match := self._names.fullmatch(name)) is None:
            return None
        values = {int(group[1:]): text for group, text in match.groupdict().items() if group != "layer"}
        layer = match["layer"] if "*" in (self.target or "") else None
        rows, keys = ROWS.search(self.pattern), []
        for row in rows[1].split("|") if rows else [""]:
            part = {self.regex.groupindex["rows"]: row} if rows else {}
            keys.append(spelled(filled(self.pattern, values | part), choose))
        return None if None in keys else Origin(self, tuple(filter(None, keys)), None if layer is None else int(layer))

    def parts(self, a: Array, count: int) -> list[Array]:
        """What `count` sources of equal shape hold of a tensor. ValueError if it has no such rows, or there is no way back."""
        if self.change and not self.inverse:
            raise ValueError("there is no way back")
        parts = np.split(a, count) if count > 1 else [a]
        return [self.inverse(part) if self.inverse else part for part in parts]

    @functools.cached_property
    def regex(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    @functools.cached_property
    def certain(self) -> int:
        """How many characters of a name are certain if this rule made it."""
        return len(literal(WILD.sub("", resolved(self._names.pattern, lambda options: min(options, key=len)))))

    @functools.cached_property
    def _names(self) -> re.Pattern[str]:
        """What the target makes. Group n of the pattern is called gn here, and a layer's number `layer`."""
        spans, pattern = group_spans(self.pattern), ""
        for word in re.split(r"(\\g<\w+>|\\\d|\*)", self.target or ""):
            if word == "*":
                pattern += r"(?P<layer>\d+)"
            elif word.startswith("\\"):
                group = word[1:].removeprefix("g<").removesuffix(">")
                number = int(group) if group.isdecimal() else self.regex.groupindex[group]
                part = re.sub(r"\((?!\?)|\(\?P<\w+>", "(?:", self.pattern[slice(*spans[number])])
                pattern += f"(?:{part})" if f"(?P<g{number}>" in pattern else f"(?P<g{number}>{part})"
            else:
                pattern += re.escape(word)
        return re.compile(pattern)


def group_spans(pattern: str) -> list[tuple[int, int]]:
    """Where the whole pattern and each of its numbered groups are, with their parentheses and a ? behind them."""
    spans, opened = [(0, len(pattern))], []
    for token in re.finditer(r"\\.|\[[^\]]*\]|\((\?(?!P<))?|\)\??", pattern):
        if token[0].startswith("("):
            opened.append(0 if token[1] else len(spans))
            spans += [] if token[1] else [(token.start(), 0)]
        elif token[0].startswith(")") and (number := opened.pop()):
            spans[number] = spans[number][0], token.end()
    return spans


def filled(pattern: str, values: Mapping[int, str]) -> str:
    """The pattern with the text of some groups, by number, instead of these groups."""
    spans, at, text = group_spans(pattern), 0, ""
    for number in sorted(values, key=lambda n: (spans[n][0], -spans[n][1])):
        start, end = spans[number]
        if start >= at:  # otherwise inside the one before
            text, at = text + pattern[at:start] + re.escape(values[number]), end
    return text + pattern[at:]


def resolved(pattern: str, choose: Choose) -> str:
    """The pattern without groups: one of the alternatives of each, and of the whole, taken by `choose`."""
    pattern = f"(?:{pattern})"
    while group := INNERMOST.search(pattern):
        kind, inner, optional = group.groups()
        options = ("",) if kind in ("?=", "?!") else (*inner.split("|"), *([""] if optional else []))
        taken = options[0] if len(options) == 1 else choose(options)
        pattern = pattern[: group.start()] + taken + pattern[group.end() :]
    return pattern


def spelled(pattern: str, choose: Choose) -> str | None:
    """A text that the pattern matches; None if it says too little."""
    text = resolved(pattern, choose)
    return None if WILD.search(text) else literal(text)


def literal(pattern: str) -> str:
    """The text that a pattern without special characters stands for."""
    return re.sub(r"\\(.)", r"\1", pattern)


@dataclass(frozen=True)
class Layout:
    """A family's names as one project publishes them.

    `signature` keys are in every checkpoint of the layout and together in no other. `rules` are tried in order; the first that
    matches a key decides. `config` reads from the renamed tensors what the architecture leaves open (the number of classes)
    or sets what the layout implies; a value of None says that somebody has to tell. `preprocess(model, config)` and
    `postprocess(model, config)` are the evaluation of the published weights. `assumed(model, config)` says, by field, what the
    published checkpoints are known to be and the tensors do not tell. All keys of a checkpoint start with the same one of
    `prefixes`, which signature and rules leave out.
    """

    name: str
    models: tuple[str, ...]  # registry names it can hold
    signature: frozenset[str]
    rules: tuple[Rule, ...]
    config: Callable[[Mapping[str, Array]], dict[str, Any]]
    preprocess: Callable[[str, Any], Mapping[str, Any]]
    prefixes: tuple[str, ...] = ("",)
    postprocess: Callable[[str, Any], Mapping[str, Any]] = lambda model, config: {}
    assumed: Callable[[str, Any], Mapping[str, str]] = lambda model, config: {}

    def matches(self, state: Mapping[str, Array]) -> bool:
        return self._prefix(state) is not None

    def rename(self, state: Mapping[str, Array]) -> dict[str, Array]:
        """The tensors under canonical names. WeightsError if a key fits no rule, two become one, or rows are incomplete."""
        prefix = self._prefix(state) or ""
        found: dict[str, tuple[Rule, tuple[str, ...]]] = {}
        for key in state:
            rule, match = self._match(prefix, key)
            if rule.target is None:
                continue
            target, sources = match.expand(rule.target), rule.sources(match)
            if found.setdefault(target, (rule, sources)) != (rule, sources):
                raise WeightsError(f"layout {self.name}: {found[target][1][0]!r} and {key!r} both become {target!r}")
        renamed: dict[str, Array] = {}
        problems: list[str] = []
        for target, (rule, sources) in found.items():
            arrays = [state[key] for key in sources if key in state]
            missing = [f"missing {key} {arrays[0].shape}" for key in sources if key not in state]
            if missing:
                problems += missing
            elif len({(a.shape, a.dtype) for a in arrays}) > 1:
                each = ", ".join(f"{key} {state[key].shape} {state[key].dtype}" for key in sources)
                problems.append(f"one shape and dtype expected of {each}")
            else:
                try:
                    renamed |= rule.targets(target, arrays)
                except ValueError as error:
                    problems.append(f"{' and '.join(sources)} of shape {arrays[0].shape}: {error}")
        if problems:
            more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise WeightsError(f"layout {self.name}: {'; '.join(problems[:SHOWN])}{more}")
        return renamed

    def left_out(self, state: Mapping[str, Array]) -> dict[str, list[str]]:
        """Keys that `rename` drops, by the reason. The counters of batch norms, which can be hundreds, are only counted."""
        prefix, dropped = self._prefix(state) or "", dict[str, list[str]]()
        for key in state:
            rule, _ = self._match(prefix, key)
            if rule.target is None:
                dropped.setdefault(rule.reason, []).append(key)
        if counters := dropped.get(DROP.reason):
            dropped[DROP.reason] = [f"{len(counters)} of *.num_batches_tracked"]
        return dropped

    @property
    def writable(self) -> bool:
        """Whether `export` can make what the layout is told apart by, which may be among what `rename` drops."""
        return all((found := self._first(key)) and found[0].target for key in self.signature)

    def export(self, params: Mapping[str, Array]) -> dict[str, Array]:
        """The inverse of `rename`: the tensors under this layout's names, behind the first of its prefixes; copies.

        What `rename` drops is left out, but for the counters of batch norms where the layout has them: they become 0, an int64
        without axes. WeightsError if a tensor has no place in this layout or cannot be brought into its form.
        """
        found: dict[str, dict[int | None, Array]] = {}
        for name, origin in self._origins(params).items():
            try:
                parts = origin.rule.parts(params[name], len(origin.keys))
            except ValueError as error:
                raise WeightsError(f"layout {self.name}: {name} of shape {params[name].shape}: {error}") from error
            for key, part in zip(origin.keys, parts, strict=True):
                found.setdefault(key, {})[origin.layer] = part
        state: dict[str, Array] = {}
        for key, layers in found.items():
            if None not in layers and set(layers) != set(range(len(layers))):
                raise WeightsError(f"layout {self.name}: {key} holds all layers, here are {', '.join(map(str, layers))}")
            state[key] = layers[None] if None in layers else np.stack([layers[i] for i in range(len(layers))])
            counter = re.sub(r"\brunning_var$", "num_batches_tracked", key)
            if counter != key and (rule := self._first(counter)) and rule[0].target is None and not rule[0].refusal:
                state[counter] = np.zeros((), np.int64)
        return {self.prefixes[0] + key: np.array(a, order="C") for key, a in state.items()}

    def _origins(self, names: Iterable[str]) -> dict[str, Origin]:
        """Where each name comes from. Of the patterns' alternatives the first that complete the signature are taken."""
        ways: dict[tuple[str, ...], int] = {}
        taken: dict[tuple[str, ...], int] = {}

        def choose(options: tuple[str, ...]) -> str:
            ways[options] = len(options)
            return options[taken.get(options, 0)]

        found = {name: self._origin(name, choose) for name in names}  # with the first of all ways, and to see which there are
        known = tuple(ways)
        for choice in itertools.product(*(range(ways[options]) for options in known)):
            taken.update(zip(known, choice, strict=True))
            origins = {name: origin for name in found if (origin := self._origin(name, choose))}
            if self.signature <= {key for origin in origins.values() for key in origin.keys} and len(origins) == len(found):
                return origins
        if strange := [name for name, origin in found.items() if origin is None]:
            more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
            raise WeightsError(f"layout {self.name} has no place for {', '.join(strange[:SHOWN])}{more}")
        raise WeightsError(f"layout {self.name}: not all of {', '.join(sorted(self.signature))} can be made of these tensors")

    def _origin(self, name: str, choose: Choose) -> Origin | None:
        """By the rule that really makes the name of these keys; of several by the one that says most about the name."""

        def comes_back(key: str, origin: Origin) -> bool:
            rule, match = self._first(key) or (None, None)
            return match is not None and rule is origin.rule and made_by(match, origin) == name

        def made_by(match: re.Match[str], origin: Origin) -> str:
            return match.expand(origin.rule.target or "").replace("*", str(origin.layer))

        def rank(origin: Origin) -> tuple[bool, int]:
            return not self.signature.isdisjoint(origin.keys), origin.rule.certain

        made = [origin for rule in self.rules if rule.target is not None and (origin := rule.origin(name, choose))]
        best = sorted((origin for origin in made if all(comes_back(key, origin) for key in origin.keys)), key=rank)[-2:]
        if len(best) == 2 and rank(best[0]) == rank(best[1]) and best[0].keys != best[1].keys:
            raise WeightsError(f"layout {self.name}: {name!r} comes from {best[0].keys[0]!r} or {best[1].keys[0]!r}")
        return best[-1] if best else None

    def _prefix(self, state: Mapping[str, Array]) -> str | None:
        return next((p for p in self.prefixes if {p + key for key in self.signature} <= state.keys()), None)

    def _match(self, prefix: str, key: str) -> tuple[Rule, re.Match[str]]:
        found = self._first(key, len(prefix)) if key.startswith(prefix) else None
        if found is None:
            raise WeightsError(f"layout {self.name}: {key!r} belongs to no tensor of it")
        if found[0].refusal:
            raise WeightsError(f"layout {self.name}: {key!r} {found[0].refusal}")
        return found

    def _first(self, key: str, start: int = 0) -> tuple[Rule, re.Match[str]] | None:
        """The rule that decides about the key, whose prefix ends at `start`."""
        return next(((rule, match) for rule in self.rules if (match := rule.regex.fullmatch(key, start))), None)


TRAINING = "for training only"
DROP = Rule(r".*\.num_batches_tracked", None, reason="counters of training")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NO_MEAN, NO_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def evaluation(
    crop: int | None,
    resize: int | tuple[int, int] | None,
    interpolation: str = "bilinear",
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    channel_order: str = "rgb",
) -> dict[str, Any]:
    """The fields of Preprocess for the usual transform: resize, centre crop, normalise."""
    return {
        "resize": resize,
        "crop": crop,
        "enlarge": None,
        "interpolation": interpolation,
        "mean": mean,
        "std": std,
        "channel_order": channel_order,
    }


def classes_of(*names: str) -> Callable[[Mapping[str, Array]], dict[str, Any]]:
    """A `config` that reads the number of classes off the first of these weights (classes, ...) that is there."""

    def config(params: Mapping[str, Array]) -> dict[str, Any]:
        heads = [params[name] for name in names if name in params and params[name].ndim and len(params[name])]
        return {"num_classes": heads[0].shape[0]} if heads else {}

    return config
