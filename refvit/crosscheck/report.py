"""What a check found: as a dozen lines that say what to do, as JSON, and as a page."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refvit.crosscheck.diagnosis import Diagnosis
from refvit.crosscheck.locate import Finding, bisect
from refvit.crosscheck.maps import maps
from refvit.crosscheck.matching import Match, Matching
from refvit.crosscheck.measure import FACTOR, Error
from refvit.crosscheck.words import alike, amount, number, share
from refvit.errors import ConfigError
from refvit.files import write_atomic
from refvit.graph.ir import Array, Graph, dims

LABEL, LINE = 18, 118  # characters of the labels, and of a whole line
SUFFIXES = (".html", ".json", ".txt")
SHOWN = 3  # names in a line of text; the page and the JSON have all
WRONG = ("diverges", "missing")


@dataclass(frozen=True, repr=False)
class Report:
    """What `refvit.check` returns.

    candidate, model: what was checked, against what; weights_sha256: digest of the reference's weights
    input: what both saw, in words
    arithmetic: what the candidate is allowed to lose; declared: whether it was named, and not told by the dtypes
    findings: a verdict for every value that both show, and for outputs that are missing, in the order of the graph
    matching: which of the candidate's values is which; diagnosis: why the first wrong one is wrong
    difference: of the first wrong value, if it is shown: (the candidate's, float64 from the candidate's own sources)
    """

    candidate: str
    model: str
    weights_sha256: str
    input: str
    arithmetic: str
    declared: bool
    findings: tuple[Finding, ...]
    matching: Matching
    diagnosis: Diagnosis
    graph: Graph
    difference: tuple[Array, Array] | None = None
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every step is as near to float64 as the arithmetic allows, and so is every output, and none is missing."""
        return not any(f.verdict in WRONG or (f.verdict == "inherited" and f.value in self._outputs) for f in self.findings)

    @property
    def _outputs(self) -> frozenset[str]:
        return frozenset(self.graph.outputs.values())

    @property
    def first_divergence(self) -> Finding | None:
        """The first value in the order of the graph that is wrong by what the candidate itself does there."""
        return next((f for f in self.findings if f.verdict == "diverges"), None)

    @property
    def cause(self) -> str:
        """Of the first divergence: the id of a known convention, "reduced precision: ...", "unknown".

        Where no step diverges: "wrong shape", "missing output", "adds up", or "rounding only" if all is right.
        """
        return self.diagnosis.cause

    @property
    def is_map(self) -> bool:
        """Whether the first wrong value is a map (n, c, h, w)."""
        first = self.first_divergence
        return first is not None and first.value in maps(self.graph)

    @property
    def missing(self) -> list[str]:
        """Outputs that the candidate does not show, and values that it shows in a shape that they cannot have."""
        return [f.name for f in self.findings if f.verdict == "missing"]

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"Report({self.candidate}, {self.model}, {'match' if self.ok else f'mismatch: {self.cause}'})"

    def assert_matches(self) -> None:
        """AssertionError with the text, unless it is ok. For tests."""
        if not self.ok:
            raise AssertionError(self.text())

    def text(self) -> str:
        """A dozen lines: the verdict, where, how much, why, what to do, and what was not looked at."""
        good = f"MATCH: {self.candidate} computes {self.model}, as exactly as {self.arithmetic} can"
        bad = f"MISMATCH: {self.candidate} does not compute {self.model}"
        lines = [good if self.ok else bad]
        for label, text in self.lines():
            wrapped = textwrap.wrap(text, LINE - LABEL - 2, break_long_words=False, break_on_hyphens=False) or [""]
            lines += [f"  {label if i == 0 else '':<{LABEL}}{part}" for i, part in enumerate(wrapped)]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON. A number that is not finite is None: `bad` counts them, and an infinite ratio diverges."""
        first = self.first_divergence
        matches = {(m.value, m.candidate): m for m in (*self.matching.matches, *self.matching.again)}
        plain: dict[str, Any] = _plain(
            {
                "ok": self.ok,
                "candidate": self.candidate,
                "model": self.model,
                "weights_sha256": self.weights_sha256,
                "input": self.input,
                "arithmetic": self.arithmetic,
                "arithmetic_declared": self.declared,
                "factor": FACTOR,
                "first_divergence": first and first.name,
                "missing": self.missing,
                "diagnosis": dataclasses.asdict(self.diagnosis),
                "findings": [_finding(f, matches.get((f.value, f.candidate))) for f in self.findings],
                "unmatched_reference": self.matching.unmatched_reference,
                "unmatched_candidate": self.matching.unmatched_candidate,
                "reasons": self.matching.reasons,
                "parameters": self.matching.parameters,
                "notes": self.notes,
                "versions": self.versions,
            }
        )
        return plain

    def to_json(self) -> str:
        """One JSON object, strict: no NaN."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page (.html), the JSON (.json) or the text (.txt), whole or not at all. ConfigError for another suffix."""
        from refvit.crosscheck.page import page

        suffix = checked(path).suffix.lower()
        text = page(self) if suffix == ".html" else self.to_json() if suffix == ".json" else f"{self}\n"
        write_atomic(Path(path), text.encode("utf-8", "xmlcharrefreplace"))  # a name may hold half a character
        return Path(path)

    def lines(self) -> list[tuple[str, str]]:
        """(label, text): what the text and the page say."""
        how = Counter(m.how for m in self.matching.matches)
        by = ", ".join(f"{count} by {word}" for word, count in how.items()) or "none"
        shown, there = len(self.matching.matches), len({*self.graph.inputs, *self.graph.nodes})
        lines = [
            ("input", self.input),
            ("compared", f"{shown} of {there} values, {by}; allowed is {FACTOR:.0f} times what {self.arithmetic} itself costs"),
        ]
        absent = [f for f in self.findings if f.verdict == "missing"]
        if names := [f.name for f in absent if not f.candidate]:
            lines.append(("missing", f"{_some(names)}: no value of the candidate was found to be this output"))
        if misfits := [f for f in absent if f.candidate]:
            names = [f"{f.candidate} ({self.matching.reasons.get(f.candidate, dims(f.shape) + ' expected')})" for f in misfits]
            lines.append(("wrong shape", _some(names)))
        first = self.first_divergence
        lines += [*self._first(first), *self._cause(), *self._others(first)] if first else self._worst()
        m = self.matching
        said = {*self.graph.inputs, *(f.candidate for f in absent)}
        for side, unmatched in (("reference", m.unmatched_reference), ("candidate", m.unmatched_candidate)):
            if names := [name for name in unmatched if name not in said]:
                why = [f"{name} ({m.reasons[name]})" if name in m.reasons else name for name in names]
                lines.append(("not compared", f"{len(names)} of the {side}: {_some(why)}"))
        if doubted := [f"{f.candidate} as {f.name}" for f in self.findings if f.verdict == "doubtful"]:
            lines.append(("doubtful", f"{_some(doubted)}: matched by numbers alone, and what is computed from it is right"))
        return lines + [("note", note) for note in (*self.notes, *self.diagnosis.notes)]

    def _first(self, f: Finding) -> list[tuple[str, str]]:
        size = f"{f.op}, {dims(f.shape)}" if f.op else dims(f.shape)
        theirs = "" if f.candidate == f.name else f", the candidate's {f.candidate}"
        span = bisect(self.graph, f.segment)
        lines = [("first divergence", f"{f.name} ({size}){theirs}"), ("error", amount(f, self.arithmetic))]
        if not f.own.bad:
            lines.append(("alike", alike(f.own)))
        if f.own.where:
            lines.append(("where", f.own.where))
        if len(f.segment.nodes) > 1:
            ask = f"; show {span.ask[0]} as well to halve them" if span.ask and self.cause == "unknown" else ""
            lines.append(
                ("between", f"{_some(f.segment.sources)} and it are {len(span.nodes)} steps, {_ends(span.nodes)}{ask}")
            )
        return lines

    def _cause(self) -> list[tuple[str, str]]:
        d = self.diagnosis
        lines = [("cause", f"{d.cause}: {d.sentence}" if d.sentence else d.cause)]
        if d.advice:
            lines.append(("what to do", d.advice))
        if d.cause == "unknown" and d.trials:
            best = d.trials[0]
            left = f"{number(best.residual_ratio)} times what {self.arithmetic} costs"
            lines.append(("nearest", f"{best.text}, which leaves {left}"))
        return lines

    def _others(self, first: Finding) -> list[tuple[str, str]]:
        wrong = [f.name for f in self.findings if f.verdict == "diverges" and f is not first]
        explained = [name for name in wrong if name in self.diagnosis.also]
        rest = [name for name in wrong if name not in explained]
        inherited = [f for f in self.findings if f.verdict == "inherited"]
        lines = []
        if explained:
            lines.append(("explains also", f"{len(explained)}: {_some(explained)}"))
        if rest:
            lines.append(("wrong as well", f"{len(rest)}, each by its own step: {_some(rest)}"))
        if inherited:
            names = _some([f.name for f in inherited])
            lines.append(("only inherited", f"{len(inherited)} later ones, by what they read: {names}"))
        return lines + self._at_the_output()

    def _at_the_output(self) -> list[tuple[str, str]]:
        lines = []
        for f in self.findings:
            if f.value in self._outputs and f.verdict != "missing":
                which = f"{f.name} is " if len(self._outputs) > 1 else ""
                lines.append(("at the output", f"{which}off by {share(f.total.largest)} of the largest value"))
        return lines

    def _worst(self) -> list[tuple[str, str]]:
        """No step diverges. What adds up over right ones is said all the same."""
        lines = []
        if judged := [f for f in self.findings if f.verdict not in ("missing", "doubtful")]:
            worst = max(judged, key=lambda f: f.own_ratio)
            lines.append(("worst", f"{worst.name}: {amount(worst, self.arithmetic)}"))
        if above := [f for f in judged if f.verdict == "inherited"]:
            most = max(above, key=lambda f: f.total_ratio)
            text = f"{len(above)} values are off by more than {FACTOR:.0f} times what {self.arithmetic} costs on the way there"
            lines.append(("adds up", f"{text}, {most.name} by {number(most.total_ratio)} times, though no step before is"))
            lines += [] if self.ok else self._at_the_output()
        return lines + [(label, text) for label, text in self._cause() if label == "cause" or not self.ok]


def checked(path: str | os.PathLike[str]) -> Path:
    """The path, if a report can be written under such a name."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{os.fspath(path)!r}: a name ending in {', '.join(SUFFIXES)} expected for a report", "path")
    return Path(path)


def _some(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _ends(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= SHOWN else f"{names[0]} ... {names[-1]}"


def _finding(f: Finding, match: Match | None) -> dict[str, Any]:
    fields = {k: getattr(f, k) for k in ("name", "value", "candidate", "shape", "scope", "op", "verdict")}
    if match is not None:
        fields |= {"how": match.how, "layout": match.layout, "confidence": match.confidence}
    fields |= {"total": _error(f.total), "own": _error(f.own), "yardstick": _error(f.yardstick)}
    fields |= {"total_ratio": f.total_ratio, "own_ratio": f.own_ratio, "spread": f.spread}
    return fields | {"computed_from": f.segment.sources, "steps": [node.name for node in f.segment.nodes]}


def _error(error: Error) -> dict[str, Any]:
    names = ("largest", "rms", "cosine", "ulps_near_zero", "ulps_elsewhere", "where", "bad")
    return {name: getattr(error, name) for name in names}


def _plain(value: Any) -> Any:
    """As JSON has it: mappings, lists, strings, booleans, whole numbers, finite numbers, None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
