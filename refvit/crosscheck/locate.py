"""Where a candidate first leaves the reference, and what it only passes on.

Two comparisons are made of every value that a candidate shows. Its total error is against the reference in float64. Its own
error is against the float64 recomputation of the piece of graph before it from the candidate's own values: what is added here,
free of what was inherited. Both are divided by what the candidate's arithmetic costs in the same place, which is measured by
running the reference in that arithmetic three times: as it is, and twice with every source changed by up to an ulp, once with
sums added in order and once with fast convolutions (`arithmetic.FORMS`). The largest of the three counts.

The whole graph is run once in float64 and three times in the arithmetic, side by side, so that no value is held longer than the
graph needs it; then each segment likewise. That is two runs in float64 and six in the arithmetic, half of it where only outputs
are shown. Beside the candidate's own values little more than the largest few of the graph are held in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from refvit.crosscheck.arithmetic import FORMS, Scales, ulp
from refvit.crosscheck.measure import FACTOR, Error, errors, ratio, scaled, worst
from refvit.crosscheck.segments import Segment, recompute, run, segments, view_roots
from refvit.graph.ir import Array, Graph, Node, Shape

if TYPE_CHECKING:
    from refvit.crosscheck.matching import Match


@dataclass(frozen=True)
class Finding:
    """The verdict on one value.

    name, value, candidate: the reference's public name and value, and the candidate's name
    scope, op: of the reference's node
    total, own: error against golden, and against the float64 recomputation from the candidate's own sources
    total_ratio, own_ratio: both over the yardstick; spread: the smallest and the largest own ratio over its single runs
    verdict: "match"; "diverges", its own step is wrong; "inherited", its own step is right and its total error too large all
        the same, because of what it reads; "doubtful", its step would be wrong, but that it is this value its numbers alone
        say, and what is computed from it is right; "missing", an output that is not shown, or what is called like a value and
        has a shape that this cannot have
    yardstick: what the arithmetic costs in the segment, to measure hypotheses against: `ratio(residual, yardstick, arithmetic)`
    """

    name: str
    value: str
    candidate: str
    shape: Shape
    scope: str
    op: str
    total: Error
    own: Error
    total_ratio: float
    own_ratio: float
    spread: tuple[float, float]
    verdict: str
    segment: Segment
    yardstick: Error


def judge(
    graph: Graph,
    x: Array,
    matches: Iterable[Match],
    arithmetic: str,
    scales: Scales | None = None,
    misfits: Mapping[str, str] | None = None,
) -> list[Finding]:
    """A finding for every match and for every output without one, in graph order.

    x (n, 3, h, w), the input that was given; where the candidate shows an input of its own, its values are judged by that one.
    scales: of int8, by the reference's names of values and parameters.
    misfits: candidate's name -> the value that it is called like, in a shape that this cannot have

    A value that is right from the input on is right, whatever its step seems to add, where it is not known to be computed from
    what is shown before it: one of that is wrong, or comes of another run.
    """
    (source,) = graph.inputs
    position = {name: i for i, name in enumerate((source, *graph.nodes))}
    given = sorted(matches, key=lambda match: position[match.value])
    x = np.asarray(x, np.float64)
    known = {source: x}
    for match in reversed(given):  # of two that claim one value the first is the one that others are computed from
        known[match.value] = np.asarray(match.array, np.float64)
    bounded = _bounded(scales, known) if scales else None
    cut = {segment.value: segment for segment in segments(graph, {match.value for match in given})}
    totals = _totals(graph, x, given, arithmetic, bounded)
    findings = []
    wrong: dict[str, Match | None] = {}  # values whose total error is too large
    doubtful: list[Match] = []
    for match, (total, usual) in zip(given, totals, strict=True):
        segment = cut[match.value]
        if not segment.nodes or (segment.sources == (source,) and known[source] is x):
            own, local = total, usual
        else:
            want = recompute(graph, segment, known)
            own = errors(match.array, want, axes(graph, match.value))
            local = yardsticks(graph, segment, known, arithmetic, scales=bounded, want=want)
        yardstick = worst(local)
        total_ratio, own_ratio = ratio(total, worst(usual), arithmetic), ratio(own, yardstick, arithmetic)
        wrong.setdefault(match.value, match if total_ratio > FACTOR else None)
        doubted = [m for source in segment.sources if (m := wrong.get(source))]
        if own_ratio > FACTOR >= total_ratio and (doubted or match.apart):
            (segment,) = segments(graph, {match.value})
            own, own_ratio, local, yardstick = total, total_ratio, usual, worst(usual)
            doubtful += [m for m in doubted if m.how == "value"]
        verdict = "diverges" if own_ratio > FACTOR else "inherited" if total_ratio > FACTOR else "match"
        single = [ratio(own, one, arithmetic) for one in local]
        node = graph.nodes.get(match.value)
        findings.append(
            Finding(
                match.name, match.value, match.candidate, match.array.shape, node.scope if node else "",
                node.op if node else "input", total, own, total_ratio, own_ratio, (min(single), max(single)), verdict, segment,
                yardstick,
            )
        )  # fmt: skip
    for i, (match, finding) in enumerate(zip(given, findings, strict=True)):
        if finding.verdict == "diverges" and any(match is m for m in doubtful):
            findings[i] = replace(finding, verdict="doubtful")
    return sorted(findings + _missing(graph, cut, misfits or {}), key=lambda finding: position[finding.value])


def yardsticks(
    graph: Graph,
    segment: Segment,
    known: Mapping[str, Array],
    arithmetic: str,
    params: Mapping[str, Array] | None = None,
    nodes: Mapping[str, Node] | Sequence[Node] | None = None,
    scales: Scales | None = None,
    want: Array | None = None,
) -> list[Error]:
    """What the arithmetic costs in the segment: three runs from the candidate's own values, the last two of them perturbed.

    params, nodes: as in `recompute`, to measure a hypothesis by what it costs itself; want: its float64 result if at hand.
    """
    if want is None:
        want = recompute(graph, segment, known, params=params, nodes=nodes)
    found = []
    for i, form in enumerate(FORMS):
        start = {**known, **{name: _perturbed(name, known[name], i, arithmetic, scales) for name in segment.sources}}
        got = recompute(graph, segment, start, _imitated(arithmetic), params, nodes, scales, form)
        found.append(_cost(got, want, arithmetic))
    return found


def _totals(
    graph: Graph, x: Array, given: Sequence[Match], arithmetic: str, scales: Scales | None
) -> list[tuple[Error, list[Error]]]:
    """Of each match the error against golden, and what the arithmetic costs on the whole way there, run by run."""
    (source,) = graph.inputs
    claims: dict[str, list[int]] = {}
    for i, match in enumerate(given):
        claims.setdefault(match.value, []).append(i)
    if not claims:
        return []
    needed = replace(graph, aliases={}).with_outputs({name: name for name in claims})
    starts = [{source: x}, *({source: _perturbed(source, x, i, arithmetic)} for i in range(len(FORMS)))]
    kinds = ["float64", *[_imitated(arithmetic)] * len(FORMS)]
    runs = [
        run(needed, start, graph.params, claims, kind, scales, form)
        for start, kind, form in zip(starts, kinds, ("usual", *FORMS), strict=True)
    ]
    here = [(source, start[source]) for start in starts]
    found: dict[int, tuple[Error, list[Error]]] = {}
    for (name, want), *others in chain([here] if source in claims else [], zip(*runs, strict=True)):
        usual = [_cost(got, want, arithmetic) for _, got in others]
        for i in claims[name]:
            found[i] = errors(given[i].array, want, axes(graph, name)), usual
    return [found[i] for i in range(len(given))]


def _perturbed(name: str, a: Array, run: int, arithmetic: str, scales: Scales | None = None) -> Array:
    """a as it is in the first run, in the others with every number changed by up to an ulp of it, each run differently.

    By half a step of its integers as well: but in int8 these may be rounded copies of what was computed on.
    """
    if not run:
        return a
    step = ulp(_imitated(arithmetic) if arithmetic != "tf32" else "float32")
    noise = np.random.default_rng([crc32(name.encode()), run]).random(a.shape, np.float32)
    change = 2 * noise.astype(np.float64) - 1
    half = scales[name][0] / 2 if scales and name in scales and arithmetic != "int8" else 0.0
    return a * (1 + step * change) + half * change


def _imitated(arithmetic: str) -> str:
    """The reference cannot show what float64 costs, being float64 itself: float32 does, on another scale."""
    return "float32" if arithmetic == "float64" else arithmetic


def _cost(got: Array, want: Array, arithmetic: str) -> Error:
    cost = errors(got, want, words=False)
    return scaled(cost, ulp("float64") / ulp("float32")) if arithmetic == "float64" else cost


def _bounded(scales: Scales, known: Mapping[str, Array]) -> Scales:
    """Scales with the range of their integers, of int8 or uint8, whichever the zero point and the candidate's numbers fit."""
    bounded = {}
    for name, (scale, zero, *bounds) in scales.items():
        integers = known[name] / scale + zero if name in known else np.zeros(1)
        least, most = min(zero, integers.min(initial=zero)), max(zero, integers.max(initial=zero))
        if not bounds:
            bounds = next(([a, b] for a, b in ((-128, 127), (0, 255)) if a - 0.5 <= least and most <= b + 0.5), [])
        bounded[name] = (scale, zero, *bounds)
    return bounded


def _missing(graph: Graph, cut: Mapping[str, Segment], misfits: Mapping[str, str]) -> list[Finding]:
    """Outputs that the candidate shows neither as they are nor in another shape or order of axes, and misfits."""
    roots = view_roots(graph)
    shown = {roots[value] for value in cut}
    called = {value: name for name, value in misfits.items()}
    named = {value: public for public, value in (*graph.aliases.items(), *graph.outputs.items())}
    found = []
    for value in dict.fromkeys((*graph.outputs.values(), *called)):
        if roots[value] in shown:
            continue
        node, candidate = graph.nodes[value], called.get(value, "")
        nothing = Error(math.inf, math.inf, 0.0, math.inf, math.inf, "in another shape" if candidate else "not shown")
        found.append(
            Finding(
                named.get(value, value), value, candidate, node.shape, node.scope, node.op, nothing, nothing, math.inf,
                math.inf, (math.inf, math.inf), "missing", Segment(value, (), ()), nothing,
            )
        )  # fmt: skip
    return found


def axes(graph: Graph, value: str) -> tuple[str, ...] | None:
    """What the axes of a value are, None where its shape alone does not tell."""
    node = graph.nodes.get(value)
    if node is None or len(node.shape) < 4:
        return None
    heads = "attention" in node.scope.rpartition(".")[2] or node.op in ("softmax", "mask_tail", "matmul")
    scores = node.op in ("softmax", "mask_tail") or (node.op == "matmul" and node.shape[-1] == node.shape[-2])
    if heads and len(node.shape) in (4, 5):
        return ("image", *["window"] * (len(node.shape) - 4), "head", "token", "key" if scores else "channel")
    return None


@dataclass(frozen=True)
class Span:
    """What a segment spans, and what to look at in the candidate next.

    nodes: the reference's nodes; blocks: the outermost blocks that lie wholly within it
    ask: up to three public names of values; shown by the candidate, the first would cut the segment nearest to its middle
    """

    nodes: tuple[str, ...]
    blocks: tuple[str, ...]
    ask: tuple[str, ...]


def _outer(path: str) -> Iterator[str]:
    """The path and the blocks around it."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def bisect(graph: Graph, segment: Segment) -> Span:
    """Which nodes and blocks a long segment spans, and which values would shorten it.

    Values that everything passes through come first, since one of them cuts the segment in two.
    """
    names = [node.name for node in segment.nodes]
    place = {name: i for i, name in enumerate(names)}
    ends: dict[str, list[str]] = {}
    for path, value in graph.aliases.items():
        ends.setdefault(value, []).append(path)
    cut = {scope for node in graph if node.name not in place for scope in _outer(node.scope)}
    inside = dict.fromkeys(p for value in names for p in ends.get(value, ()) if p.partition(":")[0] not in cut)
    blocks = tuple(p for p in inside if not any(q in inside for q in list(_outer(p))[1:]))
    last_use = list(range(len(names)))
    for i, node in enumerate(segment.nodes):
        for j in (place[s] for s in node.sources if s in place):
            last_use[j] = i
    narrow = [i for i in range(len(names) - 1) if i == 0 or max(last_use[:i]) <= i]
    choice = narrow or [i for i in range(len(names) - 1) if names[i] in ends] or list(range(len(names) - 1))
    picks = dict.fromkeys(min(choice, key=lambda i: abs(i + 1 - share * len(names))) for share in (0.5, 0.25, 0.75) if choice)
    return Span(tuple(names), blocks, tuple(min(ends.get(names[i], [names[i]]), key=len) for i in picks))
