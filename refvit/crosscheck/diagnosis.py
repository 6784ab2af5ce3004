"""What a diagnosis is, and what it is where no step of the candidate is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refvit.crosscheck.locate import Finding
from refvit.graph.ir import Graph


@dataclass(frozen=True)
class Trial:
    """One hypothesis and how well it explains the candidate's value.

    cause: id of the table; text: what is changed, and where; residual_ratio: what is left, in units of the yardstick, NaN
    if it was measured otherwise; fits: whether that is within the bound
    """

    cause: str
    text: str
    residual_ratio: float
    fits: bool


@dataclass(frozen=True)
class Diagnosis:
    """The answer.

    cause: "unknown", "rounding only", "reduced precision: tf32" (or another arithmetic), an id of the table, or, where no step
        is wrong, "wrong shape", "missing output" or "adds up"
    sentence: what the candidate does; advice: what to change
    trials: the best fits, best first; also: other values that the same cause explains
    alternatives: ids of other causes that this input cannot tell from `cause`
    notes: sentences for the report, such as that not all hypotheses were affordable
    """

    cause: str
    sentence: str
    advice: str
    trials: tuple[Trial, ...] = ()
    also: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


ROUNDING = Diagnosis("rounding only", "All differences are as small as rounding makes them.", "Nothing is to be changed.")
MISSING = Diagnosis(
    "missing output",
    "What the candidate shows is right, but an output is not among it.",
    "Show the result under its own name, or map it by names.",
)
SHAPE = Diagnosis(
    "wrong shape",
    "A value has the name of one of the reference's, and a shape in which no layout puts that.",
    "Compare the shapes; if it is another value, map it by names.",
)
ADDS_UP = Diagnosis(
    "adds up",
    "No step is wrong on its own, but all of them together put an output off by more than rounding does.",
    "Look for something small in every step: sums that are cut off instead of rounded, or an approximate function or constant.",
)


def without_a_step(graph: Graph, findings: Sequence[Finding]) -> Diagnosis:
    """Of findings none of which diverges."""
    if missing := [f for f in findings if f.verdict == "missing"]:
        return SHAPE if any(f.candidate for f in missing) else MISSING
    outputs = set(graph.outputs.values())
    return ADDS_UP if any(f.verdict == "inherited" and f.value in outputs for f in findings) else ROUNDING
