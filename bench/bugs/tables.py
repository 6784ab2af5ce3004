"""The figures of `bench/check_bugs.py`: counts, shares, a line for each mistake, and everything that went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Row = dict[str, Any]
KINDS = ("torch", "timm", "transformers", "ONNX", "dumps", "dumps behind an image")


def summary(rows: list[Row]) -> Row:
    """Counts and shares. A mistake that was made in an image's reading counts like any other, but is located trivially."""
    made = _made(rows)
    known, others = [r for r in made if not r["outside"]], [r for r in made if r["outside"]]
    looked = [r for r in made if r["kind"] != "image"]
    segments = [r["segment"] for r in looked if r["located"] and "segment" in r]
    ran = [r for r in rows if "right" in r and "ok" in r]
    right, defects = ([r for r in ran if (r.get("defect") is not None) == wrong] for wrong in (False, True))
    return {
        "mistakes": len(made),
        "kinds_of_mistakes": len({r["bug"] for r in known}),
        "known": len(known),
        "others": len(others),
        "kinds_of_others": len({r["bug"] for r in others}),
        "by_kind": dict(Counter(r["kind"] for r in made)),
        "located_percent": _share(made, "located"),
        "located_without_images_percent": _share(looked, "located"),
        "located_exactly_without_images_percent": _share(looked, "exactly"),
        "steps_of_the_reference_in_what_was_located_median": _quantile(segments, 50),
        "steps_of_the_reference_in_what_was_located_90_percent": _quantile(segments, 90),
        "named_percent": _share(known, "named"),
        "named_with_alternatives_percent": _share([r for r in known if r["named"]], "alternatives"),
        "wrong_percent": _share(made, "wrong"),
        "unknown_when_unknown_percent": _share(others, "named"),
        "right_runs": len(right),
        "right_ways": len({r["right"] for r in right}),
        "false_alarms": sum(not r["ok"] for r in right),
        "runtimes_wrong_themselves": len(defects),
        "runtimes_wrong_and_found": sum(r["ok"] for r in defects),
        "not_possible": sum(bool(r.get("impossible")) for r in rows),
        "failed_to_be_made": sum("failed" in r for r in rows),
        "right_but_not_exportable": sum("right" in r and "ok" not in r for r in rows),
        "redrawn_as_not_visible": sum(len(r.get("tried", [])) for r in rows),
        "redrawn_as_not_exportable": sum(len(r.get("refused", [])) for r in rows if "right" not in r),
    }


def _made(rows: Iterable[Row]) -> list[Row]:
    return [r for r in rows if "located" in r]


def _share(rows: list[Row], key: str) -> float | None:
    return round(100 * sum(bool(r[key]) for r in rows) / len(rows), 2) if rows else None


def _quantile(numbers: list[int], percent: float) -> float | None:
    return float(np.percentile(numbers, percent, method="higher")) if numbers else None


def markdown(result: Row) -> str:
    """The figures, a line for each mistake, models and kinds of candidates, and every run that is not as it should be."""
    rows, figures = result["rows"], result["summary"]
    made, right = _made(rows), [r for r in rows if "right" in r]
    lines = ["| figure | value |", "| --- | ---: |", *(f"| {k.replace('_', ' ')} | {v} |" for k, v in figures.items()), ""]
    lines += ["| mistake | in words | runs | located | exactly | named | wrong | causes |"]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"]
    for bug in sorted({r["bug"] for r in made}):
        own = [r for r in made if r["bug"] == bug]
        causes = ", ".join(f"{cause} {n}" for cause, n in Counter(str(r["cause"]) for r in own).most_common(3))
        counts = [str(sum(bool(r[key]) for r in own)) for key in ("located", "exactly", "named", "wrong")]
        lines.append(f"| {bug} | {own[0]['words']} | {len(own)} | {' | '.join(counts)} | {causes} |")
    lines += ["", "Of each model and kind of candidate: runs, of them located, named; runs without mistakes, of them good.", ""]
    lines += _models(made, [r for r in right if "ok" in r])
    parts: list[tuple[str, list[Row], Callable[[Row], str]]] = [
        ("Misses", [r for r in made if not (r["located"] and r["named"])], _miss),
        ("False alarms", [r for r in right if not r.get("ok", True) and r.get("defect") is None], _alarm),
        ("Runtimes that are wrong themselves", [r for r in right if r.get("defect") is not None], _defect),
        ("Nothing drawn showed the mistake", [r for r in rows if r.get("impossible")], _impossible),
        ("Not made, by a failure of the bench", [r for r in rows if "failed" in r], _failed),
        ("Right, but no exporter writes it", [r for r in right if "ok" not in r], _refused),
    ]
    for title, chosen, say in parts:
        lines += ["", f"{title}:", *(say(r) for r in chosen)]
    return "\n".join(lines)


def family(subject: str) -> str:
    """ "hrnet segmentation, corners" is an HRNet."""
    name = subject.replace(",", " ").split()[0]
    return {"vit": "ViT", "deit": "DeiT", "mobilevit": "MobileViT", "hrnet": "HRNet", "hrvit": "HRViT"}[name]


def column(row: Row) -> str:
    """What kind of candidate a row is of."""
    kind, form = row.get("kind", ""), str(row.get("form", ""))
    if "right" in row:
        kind = "image" if "image" in row["right"] else "dump" if "dump" in row["right"] else "torch"
        kind = "onnx" if row["right"].startswith(("onnx", "openvino")) else kind
        if form == "refvit" and kind == "torch":
            return "refvit"
    if kind in ("image", "onnx") or "dump" in kind:
        return {"image": "dumps behind an image", "onnx": "ONNX"}.get(kind, "dumps")
    library = form.replace(",", " ").split()[0] if form else ""
    return library if library in ("timm", "transformers") else "torch"


def _models(made: list[Row], right: list[Row]) -> list[str]:
    kinds = (*KINDS, *(["refvit"] if any(column(r) == "refvit" for r in right) else []))
    lines = [f"| model | {' | '.join(kinds)} |", f"| --- |{' ---: |' * len(kinds)}"]
    for name in sorted({family(r["subject"]) for r in (*made, *right)}):
        cells = []
        for kind in kinds:
            wrong, good = ([r for r in rows if family(r["subject"]) == name and column(r) == kind] for rows in (made, right))
            counts = [len(wrong), *(sum(bool(r[key]) for r in wrong) for key in ("located", "named"))]
            cells.append(f"{', '.join(map(str, counts))}; {len(good)}, {sum(bool(r['ok']) for r in good)}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _miss(r: Row) -> str:
    what = " and ".join(text for text, good in (("not located", r["located"]), ("not named", r["named"])) if not good)
    place = f"{r['site']} ({r['detail']}), first {r['first']}, found {r['found']}, cause {r['cause']}"
    place += f", nearest {r['nearest']} with {r['left'] or float('inf'):.3g} left" if "nearest" in r else ""
    return f"- {_again(r)}: {what}; {r['kind']}, {r['subject']}, {r['form']}: {place} {r.get('error', '')}".rstrip()


def _again(r: Row) -> str:
    return f"--seeds {r['seed']} --only {r['bug']}"


def _alarm(r: Row) -> str:
    where = f"{r['cause']} at {r.get('found')} {r.get('error', '')}".rstrip()
    return f"- seed {r['seed']}, {r['right']}, {r.get('subject')}, {r.get('form')}: {where}"


def _defect(r: Row) -> str:
    """A right implementation by a runtime that gives other answers than onnxruntime without optimisations, from one file."""
    said = "not noticed" if r["matched"] else f"mismatch, {r['cause']} at {r['found']}"
    off = f"{100 * r['defect']:.3g} % off onnxruntime on the same file"
    return f"- seed {r['seed']}, {r['right']}, {r['subject']}: {off}; refvit: {said}"


def _impossible(r: Row) -> str:
    seen = max((effect for _, effect in r.get("tried", [])), default=0.0)
    return f"- {_again(r)}: {r['kind']}; {len(r.get('tried', []))} tried, the largest effect {seen:.3g}"


def _failed(r: Row) -> str:
    return f"- {_again(r)}: {r['failed']}"


def _refused(r: Row) -> str:
    return f"- seed {r['seed']}, {r['right']}: {'; '.join(r.get('refused', []))}"
