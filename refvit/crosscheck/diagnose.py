"""Why a candidate's value is wrong: the conventions of `causes` as hypotheses, recomputed on the first bad segment.

A cause is named if recomputing the segment under it leaves no more than the arithmetic explains, and no other cause that does
something else comes as near. Otherwise the answer is "unknown", with the best fits as evidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from refvit.crosscheck.candidates.located import Layer
from refvit.crosscheck.causes.explore import BUDGET, Found, Meter, everything, explore, tried
from refvit.crosscheck.causes.hypothesis import Change, Scene
from refvit.crosscheck.causes.layer import evidence
from refvit.crosscheck.causes.parameters import Difference, differences
from refvit.crosscheck.causes.precision import reduced
from refvit.crosscheck.causes.table import BY_NAME, CAUSES
from refvit.crosscheck.diagnosis import Diagnosis, Trial, without_a_step
from refvit.crosscheck.inputs import ADVICE, InputCause, explain
from refvit.crosscheck.locate import Finding
from refvit.crosscheck.measure import errors, ratio
from refvit.graph.ir import Array, Graph
from refvit.vision.preprocess import Preprocess

EXPLAINED = 4.0  # how many times nearer than no change at all a cause has to come
RIVAL = 2.0  # a cause that comes this many times nearer than another one excludes it
SHOWN = 8  # trials in a diagnosis
OTHERS = 24  # further values that are looked at for the same cause


def diagnose(
    graph: Graph,
    finding: Finding | None,
    findings: Sequence[Finding],
    known: Mapping[str, Array],
    x: Array,
    arithmetic: str,
    parameters: Mapping[str, Array] | None = None,
    *,
    pixels: Array | None = None,
    preprocess: Preprocess | None = None,
    layer: Layer | None = None,
    budget: int = BUDGET,
) -> Diagnosis:
    """Name the cause of a finding, usually the first one that diverges.

    graph: expanded, its parameters float64 arrays; finding: None if nothing diverges; findings: all of them
    known: value -> float64 (the candidate's, in the reference's axes), the input under its own name; x: the input given
    parameters: ours -> the candidate's own arrays, where it shows them
    pixels, preprocess: the image that x was made from, uint8 (h, w, 3) RGB, and how; for a candidate that shows its own input
    layer: that makes the finding's value, where the candidate's graph shows it
    budget: multiply-adds to spend on hypotheses
    """
    if finding is None or finding.verdict != "diverges":
        return without_a_step(graph, findings)
    (source,) = graph.inputs
    start = {**known, source: x} if finding.value == source else {source: x, **known}
    if finding.value == source and pixels is not None and preprocess is not None:
        image = explain(np.asarray(known[source])[0], pixels, preprocess)
        if image is not None and image.causes:
            return _of_image(image, preprocess)
    scene = Scene(graph, finding.segment, start, np.asarray(known[finding.value], np.float64))
    meter = Meter(scene, finding.yardstick, arithmetic)
    made = None if layer is None else evidence(scene, layer, arithmetic)
    parameters = {n: a for n, a in (parameters or {}).items() if made is None or n not in made.about}
    shown = _shown(scene, parameters) + list(made.differences if made else ())
    narrow = [cause for cause in CAUSES if not cause.wide]
    hypotheses = everything(scene, narrow)
    found, missed = explore(scene, meter, hypotheses, budget)
    theirs = _with_their_parameters(scene, meter, shown, parameters, made.change if made else None)
    notes = _notes(len(hypotheses), missed, shown)
    right = {n for n in parameters if n not in {d.name for d in shown}}
    right |= made.about if made and not made.differences else set()
    fits = _possible([f for f in found if _explains(f, meter)], right)
    answer = _named(meter, fits, theirs, shown)
    if answer is None and not fits:
        wide, _ = explore(scene, meter, everything(scene, [cause for cause in CAUSES if cause.wide]), budget // 4)
        found = sorted([*found, *wide], key=lambda f: f.left)
        answer = _named(meter, [f for f in wide if _explains(f, meter)], None, shown) or reduced(
            scene, meter, finding, findings
        )
    nearest = list({f.cause.name: f for f in sorted(found, key=lambda f: -f.left)}.values())  # of each cause
    nearest.sort(key=lambda f: f.left)
    trials = tuple(Trial(f.cause.name, _said(f.change), f.left, f.fits) for f in nearest[:SHOWN])
    if answer is None:
        return Diagnosis("unknown", _unknown(finding, found, shown), _UNKNOWN_ADVICE, trials, notes=notes)
    options = {f.change.option for f in found if f.cause.name == answer[0] and _explains(f, meter)}
    also = _also(graph, finding, findings, start, arithmetic, answer[0], options)
    return Diagnosis(answer[0], answer[1], answer[2], trials, also, answer[3], notes)


def _of_image(made: InputCause, preprocess: Preprocess) -> Diagnosis:
    """The first of them; the sentence and the trials have the others."""
    name = made.causes[0]
    sentence, advice = ADVICE.get(name) or (BY_NAME[name].sentence, BY_NAME[name].advice)
    both = zip(made.causes, made.texts, strict=True)
    trials = tuple(Trial(cause, f"{text}; leaves {made.left:.2g} grey levels", math.nan, True) for cause, text in both)
    also = f" And {'; '.join(dict.fromkeys(made.texts[1:]))}." if len(made.texts) > 1 else ""
    own = ", ".join(f"{name} {value}" for name, value in preprocess.to_dict().items() if value is not None)
    return Diagnosis(name, f"The candidate {sentence}: {made.texts[0]}.{also}", f"{_capital(advice)} They are: {own}.", trials)


_UNKNOWN_ADVICE = "Compare this step with the reference's definition line by line; `refvit dump` writes its values."
Answer = tuple[str, str, str, tuple[str, ...]]  # cause, sentence, advice, alternatives


def _explains(found: Found, meter: Meter) -> bool:
    if not found.fits or found.left * EXPLAINED > meter.base or found.value is None:
        return False
    return meter.far(found.value) * EXPLAINED <= meter.base  # not only because it costs more itself


def _possible(fits: list[Found], right: set[str]) -> list[Found]:
    """Without those that need other parameters where the candidate shows that its own are right, if any are left."""
    return [f for f in fits if not f.change.params or not set(f.change.params) <= right] or fits


def _named(meter: Meter, fits: list[Found], theirs: Found | None, shown: list[Difference]) -> Answer | None:
    """The best fit, with those that do the same; None if another one that does something else is as good."""
    if theirs is not None and _explains(theirs, meter) and (answer := _by_parameters(fits, shown)) is not None:
        return answer
    if not fits:
        return None
    best = min(fits, key=lambda f: f.left)
    near = [f for f in fits if f.left <= max(RIVAL * best.left, best.left + 0.5)]
    near = [f for f in near if not f.fitted] or near  # numbers that were searched for only hide that they need not be
    order = {cause.name: i for i, cause in enumerate(CAUSES)}
    near.sort(key=lambda f: (f.fitted > 0, order[f.cause.name], f.left))
    first = near[0]
    others = [f for f in near if f.cause is not first.cause]
    if any(_apart(meter, first, f) > 1 for f in others):
        return None
    texts = list(dict.fromkeys(_said(f.change) for f in near if f.cause is first.cause))[1:2]
    texts += list({f.cause.name: _said(f.change) for f in others}.values())[:2]
    sentence = f"The candidate {first.cause.sentence} at {_place(first.change)}: {first.change.text}."
    if texts:
        sentence += f" This input cannot tell that from: {'; '.join(texts)}."
    return first.cause.name, sentence, _capital(first.cause.advice), tuple(dict.fromkeys(f.cause.name for f in others))


def _apart(meter: Meter, a: Found, b: Found) -> float:
    if a.value is None or b.value is None or a.value.shape != b.value.shape:
        return np.inf
    finite = np.isfinite(a.value) & np.isfinite(b.value)
    u, v = np.where(finite, a.value, 0), np.where(finite, b.value, 0)
    return ratio(errors(u, v, words=False), meter.yardstick, meter.arithmetic)


def _said(change: Change) -> str:
    return f"{_place(change)}: {change.text}"


def _place(change: Change) -> str:
    return change.places[0] + (f" and {len(change.places) - 1} more" if len(change.places) > 1 else "")


def _capital(advice: str) -> str:
    return advice[:1].upper() + advice[1:] + "."


def _shown(scene: Scene, parameters: Mapping[str, Array]) -> list[Difference]:
    """The segment's parameters in which the candidate's own differ."""
    read = dict.fromkeys(i for node in scene.nodes.values() for i in node.sources if i in scene.params)
    return [d for d in differences(scene.params, {n: parameters[n] for n in read if n in parameters}) if d.name in read]


def _with_their_parameters(
    scene: Scene, meter: Meter, shown: list[Difference], parameters: Mapping[str, Array], layer: Change | None
) -> Found | None:
    """The segment recomputed with the candidate's own parameters."""
    arrays = {d.name: np.asarray(parameters[d.name], np.float64) for d in shown if d.name in parameters}
    arrays = {n: a for n, a in arrays.items() if a.shape == scene.params[n].shape}
    if not arrays and layer is None:
        return None
    own = Change("shown", "the candidate's own parameters", tuple(arrays), params=arrays)
    own = own if layer is None else replace(layer, params=arrays)
    return tried(scene, meter, BY_NAME["weights-not-loaded"], own)


def _by_parameters(fits: list[Found], shown: list[Difference]) -> Answer | None:
    """The cause that the parameters show. Where a hypothesis of that cause fits as well, or none does."""
    causes = {d.cause for d in shown}
    if "" in causes or len(causes) != 1:
        return None
    cause = BY_NAME[causes.pop()]
    texts = "; ".join(d.text for d in shown[:3])
    others = tuple(dict.fromkeys(f.cause.name for f in fits if f.cause is not cause and f.left <= 1))
    return cause.name, f"The candidate {cause.sentence}: its own parameters show that {texts}.", _capital(cause.advice), others


def _unknown(finding: Finding, found: list[Found], shown: list[Difference]) -> str:
    text = (
        f"No convention of the table explains {finding.name}, which is off by {finding.own_ratio:.3g} times what rounding costs"
    )
    if shown:
        text += f"; its parameters differ: {'; '.join(d.text for d in shown[:3])}"
    fits = [f for f in found if f.fits]
    if len({f.cause.name for f in fits}) > 1:
        text += f"; several would: {', '.join(dict.fromkeys(f.cause.name for f in fits))}"
    elif found and np.isfinite(found[0].left):
        text += f"; the nearest, {found[0].cause.name} ({_said(found[0].change)}), leaves {found[0].left:.3g} times"
    return text + "."


def _notes(count: int, missed: int, shown: list[Difference]) -> tuple[str, ...]:
    notes = [d.text for d in shown]
    if missed:
        notes.append(
            f"{missed} of {count} hypotheses were not tried, they would take too long: show more of the candidate's values"
        )
    return tuple(notes)


def _also(
    graph: Graph,
    finding: Finding,
    findings: Sequence[Finding],
    known: Mapping[str, Array],
    arithmetic: str,
    name: str,
    options: set[str],
) -> tuple[str, ...]:
    """Other values that diverge and that the same cause explains, in one of the ways in which it explains the first."""
    cause = BY_NAME.get(name)
    if cause is None:
        return ()
    also = []
    for other in [f for f in findings if f.verdict == "diverges" and f.value != finding.value][:OTHERS]:
        scene = Scene(graph, other.segment, known, np.asarray(known[other.value], np.float64))
        meter = Meter(scene, other.yardstick, arithmetic)
        same = [
            (c, change)
            for c, change in everything(scene, [cause])
            if change.option in options or (isinstance(change, Change) and change.alone)
        ]
        found, _ = explore(scene, meter, same, BUDGET // 100)
        if found and _explains(found[0], meter):
            also.append(other.name)
    return tuple(also)
