"""One candidate, one model, one input: everything that the other files do, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refvit.crosscheck.arithmetic import allowed
from refvit.crosscheck.candidates.located import Layer
from refvit.crosscheck.diagnose import diagnose
from refvit.crosscheck.golden import Golden
from refvit.crosscheck.locate import Finding, judge
from refvit.crosscheck.matching import Match, Matching, match
from refvit.crosscheck.observed import Candidate, Observed
from refvit.crosscheck.report import Report
from refvit.crosscheck.segments import recompute
from refvit.crosscheck.subject import Given
from refvit.graph.ir import Array, Graph
from refvit.model import Model

SHOWN = 3  # notes of one kind


def compare(
    theirs: Candidate,
    truth: Model,
    seen: Given,
    names: Mapping[str, str] | None = None,
    layouts: Mapping[str, str] | None = None,
    arithmetic: str | None = None,
) -> Report:
    """Run both on `seen`, match their values, judge each, and look for the cause of the first that diverges.

    truth: on the NumPy definitions in float64, see `subject.reference`; the others as in `refvit.check`
    """
    graph = truth.graph(seen.x.shape, expand=True)
    x = seen.x.astype(np.float64)
    observed = theirs.run(seen.x)
    inputs = dict.fromkeys(graph.inputs, x)
    matching = match(graph, Golden(graph, x), observed, names, layouts)
    dtypes = _dtypes(graph, matching, observed)
    scales = _scales(graph, matching.matches, observed)
    precision = allowed(arithmetic, observed.arithmetic, dtypes, scales)
    findings = judge(graph, x, (*matching.matches, *matching.again), precision, scales, matching.misfits)
    first = next((f for f in findings if f.verdict == "diverges"), None)
    known = {**inputs, **{m.value: m.array for m in matching.matches}}
    known |= {m.value: m.array for m in matching.again if first and (m.value, m.candidate) == (first.value, first.candidate)}
    return Report(
        candidate=theirs.name,
        model=truth.name,
        weights_sha256=truth._weights.sha256,
        input=seen.text,
        arithmetic=precision,
        declared=arithmetic is not None or observed.arithmetic is not None,
        findings=tuple(findings),
        matching=matching,
        diagnosis=diagnose(
            graph,
            first,
            findings,
            known,
            x,
            precision,
            matching.tensors,
            pixels=seen.pixels,
            preprocess=truth.preprocess,
            layer=_layer(first, matching, observed),
        ),
        graph=graph,
        difference=_difference(graph, first, known, x),
        notes=(
            *seen.notes,
            *observed.notes,
            *_mixed(dtypes, arithmetic or observed.arithmetic, precision),
            *_not_finite(matching, observed),
        ),
        versions=truth._provenance()["versions"],
    )


def _dtypes(graph: Graph, matching: Matching, observed: Observed) -> list[str]:
    """Names of the dtypes of what was matched, in order. Of the input it says nothing in which dtype it is kept."""
    told: Mapping[str, str] = getattr(observed, "dtypes", {})
    parts = [part for m in matching.matches if m.value not in graph.inputs for part in m.parts]
    return list(dict.fromkeys(told.get(part) or observed.values[part].dtype.name for part in parts))


def _mixed(dtypes: Sequence[str], told: str | None, precision: str) -> list[str]:
    """A copy of one value in half precision must not widen unseen what all others are allowed."""
    if told is not None or len(dtypes) < 2 or precision not in ("float16", "bfloat16"):
        return []
    return [f"values are {' and '.join(dtypes)}: all are allowed what {precision} costs, unless the arithmetic is given"]


def _layer(first: Finding | None, matching: Matching, observed: Observed) -> Layer | None:
    """That makes the first wrong value; of several parts that are stacked to it all their layers, stacked."""
    shown: Mapping[str, Layer] = getattr(observed, "layers", {})
    parts = next((m.parts for m in matching.matches if first is not None and m.value == first.value), ())
    found = [shown[part] for part in parts if part in shown]
    if not found or len(found) < len(parts) or len({layer.weight.shape[1:] for layer in found}) > 1:
        return None
    biases = [layer.bias for layer in found if layer.bias is not None]
    if 0 < len(biases) < len(found):
        biases = [np.zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in found]
    return Layer(np.concatenate([layer.weight for layer in found]), np.concatenate(biases) if biases else None)


def _scales(graph: Graph, matches: Sequence[Match], observed: Observed) -> dict[str, tuple[float, float]] | None:
    """Of the integers that a candidate computes, by the reference's values; those of an image say nothing of it."""
    inner = [m for m in matches if m.value not in graph.inputs]
    scales = {m.value: observed.scales[part] for m in inner for part in m.parts[:1] if part in observed.scales}
    return scales or None


def _not_finite(matching: Matching, observed: Observed) -> list[str]:
    """Nothing is said of values without a match but this: NaN among them is worth a look, -inf may be a mask."""
    values = {name: np.asarray(observed.values[name]) for name in matching.unmatched_candidate if name in observed.values}
    bad = [name for name, a in values.items() if a.dtype.kind == "f" and np.isnan(a).any()]
    return [f"{name}: not compared, and it holds NaN" for name in bad[:SHOWN]]


def _difference(graph: Graph, first: Finding | None, known: Mapping[str, Array], x: Array) -> Any:
    """(the candidate's first wrong value, what float64 makes of the candidate's own sources), for the pictures."""
    if first is None:
        return None
    return known[first.value], recompute(graph, first.segment, known) if first.segment.nodes else x  # x: it is the input
