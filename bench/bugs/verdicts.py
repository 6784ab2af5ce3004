"""What `refvit check` says of a case, and whether it is right."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bench.bugs.answers import UNKNOWN, right

if TYPE_CHECKING:
    from bench.bugs.cases import Case

KEPT = ("seed", "bug", "words", "kind", "subject", "form", "site", "detail", "tried", "refused")


def run(case: Case, check: Callable[..., Any]) -> dict[str, Any]:
    """A row of the result.

    located: the value said to be first is the first that is wrong, or one computed from there that comes before anything else
    could be recognised (`Expected.last`); exactly: it is the first itself; segment: how many steps of the reference it covers
    outside: no table of conventions can have the mistake, "unknown" is right
    """
    assert case.expected is not None
    found: dict[str, Any] = {name: getattr(case, name) for name in KEPT}
    found |= {"first": case.expected.first, "last": case.expected.last, "effect": case.expected.effect}
    found |= {"outside": case.answers == UNKNOWN, "answers": sorted(case.answers)}
    start = time.perf_counter()
    try:
        report = check(case.candidate, **case.options)
    except Exception as error:
        where = f"{type(error).__name__}: {error}"[:400]
        missed = dict.fromkeys(("located", "exactly", "named", "wrong"), False)
        return found | missed | {"error": where, "cause": "error", "found": None, "alternatives": []}
    first = report.first_divergence
    value = None if first is None else first.value
    order = {name: i for i, name in enumerate(("input", *case.nodes))}
    located = exactly = value == case.expected.first
    if first is not None and not exactly and value in order:
        inside = {value, *(node.name for node in first.segment.nodes)} & set(case.expected.place)
        located = bool(inside) and order[value] <= order[case.expected.last]
    diagnosis = report.to_dict()["diagnosis"]
    best = next((t["text"] for t in diagnosis["trials"] if t["cause"] == report.cause and t["fits"]), "")
    named = right(report.cause, diagnosis["sentence"], case.answers)
    wrong = not named and not report.ok and report.cause not in ("unknown", "rounding only")
    if first is not None:
        found |= {"ratio": float(first.own_ratio), "segment": max(1, len(first.segment.nodes))}
    found |= {"sentence": diagnosis["sentence"], "variant": best, "alternatives": list(diagnosis["alternatives"])}
    if report.cause == "unknown" and diagnosis["trials"]:
        nearest = diagnosis["trials"][0]
        found |= {"nearest": nearest["cause"], "left": nearest["residual_ratio"]}
    found |= {"ok": bool(report.ok), "found": value, "cause": report.cause}
    found |= {"located": located, "exactly": exactly, "named": named, "wrong": wrong}
    return found | {"seconds": round(time.perf_counter() - start, 2)}
