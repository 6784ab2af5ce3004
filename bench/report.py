"""What a run of bench.cpu has found, as Markdown and as a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.peers import PEERS

Entry = dict[str, Any]  # of one model at one batch size


def median(entry: Entry, runtime: str) -> float | None:
    """Milliseconds; None for what was not measured."""
    value = entry.get("runtimes", {}).get(runtime, {}).get("median_ms")
    return None if value is None else float(value)


def best_peer(entry: Entry) -> float | None:
    return min((ms for ms in (median(entry, peer) for peer in PEERS) if ms is not None), default=None)


def ratio(entry: Entry, runtime: str = "refvit") -> float | None:
    """How many times faster than the best peer. Without a pass that changes nothing refvit is what it is with it."""
    same = entry.get("runtimes", {}).get(runtime, {}).get("same")
    own, peer = median(entry, "refvit" if same else runtime), best_peer(entry)
    return peer / own if own and peer else None


def geometric_mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.exp(sum(map(math.log, known)) / len(known)) if known else None


def summary(entries: list[Entry]) -> dict[str, Any]:
    """Geometric means of the ratios by batch size."""
    means = {}
    for batch in sorted({e["batch"] for e in entries}):
        chosen = [e for e in entries if e["batch"] == batch]
        others = [e for e in chosen if not e["model"].startswith("hrvit")]
        names = {name for e in chosen for name in e.get("runtimes", {}) if name.startswith("refvit")}
        means[str(batch)] = {
            "lowest": min((r for r in map(ratio, chosen) if r is not None), default=None),
            **{name: geometric_mean(ratio(e, name) for e in chosen) for name in sorted(names)},
            "refvit, models other than HRViT": geometric_mean(map(ratio, others)),
        }
    return means


def show(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def speed(entries: list[Entry]) -> str:
    """Medians in milliseconds; the rate counts a multiply-add of the model as published as two operations."""
    names = [n for n in ("refvit", *PEERS) if any(median(e, n) for e in entries)]
    head = ["model", *[f"{n}, ms" for n in names], "ratio", "GFLOP/s", "% of peak"]
    rows = []
    for e in entries:
        times = [spread(e, name) for name in names]
        own = median(e, "refvit")
        rate = 2e-6 * e["macs"] / own if own else None
        share = 100 * rate / e["peak_gflops_highest"] if rate else None  # a peak that was disturbed is none
        label = f"{e['model']}, {e['shape'][2]}x{e['shape'][3]}"
        rows.append([label, *times, show(ratio(e), 2), show(rate, 0), show(share, 0)])
    return table(head, rows)


def spread(entry: Entry, runtime: str) -> str:
    """The median, and the tenth and ninetieth percentile: 5.9 (5.1-7.0)"""
    found = entry.get("runtimes", {}).get(runtime, {})
    middle = median(entry, runtime)
    return "-" if middle is None else f"{show(middle)} ({show(found.get('p10_ms'))}-{show(found.get('p90_ms'))})"


def readme(result: dict[str, Any]) -> str:
    """The table of the README: medians in milliseconds of refvit and of the best form of each peer, and the ratio."""
    torch = [peer for peer in PEERS if peer.startswith("torch")]
    head = ["model", "batch", "refvit", "onnxruntime", "OpenVINO", "PyTorch, the best way", "times as fast as the best"]
    rows = []
    for e in result["entries"]:
        best = min((ms for ms in (median(e, peer) for peer in torch) if ms is not None), default=None)
        times = [median(e, "refvit"), median(e, "onnxruntime"), median(e, "openvino"), best]
        label = f"{e['model']}, {e['shape'][2]}x{e['shape'][3]}"
        rows.append([label, str(e["batch"]), *map(show, times), show(ratio(e), 2)])
    return table(head, rows)


def starts(entries: list[Entry]) -> str:
    """Seconds from the start of a process to the first answer, and MiB beyond those that the imports take, at most in all."""
    names = [n for n in ("refvit", *PEERS) if any(n in e.get("starts", {}) for e in entries)]
    rows = []
    for e in entries:
        cells = [e["model"]]
        for name in names:
            found = e.get("starts", {}).get(name, {})
            beyond = found["peak_mib"] - found["imports_mib"] if "peak_mib" in found else None
            cells += [show(found.get("seconds"), 2), f"{show(beyond, 0)} ({show(found.get('peak_mib'), 0)})"]
        rows.append(cells)
    return table(["model", *[text for n in names for text in (f"{n}, s", "MiB")]], rows)


def failures(entries: list[Entry]) -> list[str]:
    lines = [f"- {e['model']}, batch {e['batch']}: {e['failed']}" for e in entries if "failed" in e]
    for e in entries:
        for name, found in e.get("runtimes", {}).items():
            reasons = {"all": found["failed"]} if "failed" in found else found.get("failures", {})
            lines += [f"- {e['model']}, batch {e['batch']}, {name} ({form}): {why}" for form, why in reasons.items()]
    return list(dict.fromkeys(lines))


def markdown(result: dict[str, Any]) -> str:
    """All tables, the means, and what went wrong."""
    machine = result["machine"]
    threads = result["threads"]
    parts = [f"{machine['processor']}, {threads} threads, float32, {machine['date']}. Medians; ratio: best peer / refvit."]
    for batch in sorted({e["batch"] for e in result["entries"]}):
        entries = [e for e in result["entries"] if e["batch"] == batch]
        measured = [e for e in entries if "runtimes" in e]
        parts += [f"### Batch {batch}", speed(measured)]
        means = [f"{name} {show(value, 2)}" for name, value in result["summary"][str(batch)].items() if value is not None]
        if means:
            parts.append(f"Ratio, geometric means: {'; '.join(means)}.")
        if any(e.get("starts") for e in measured):
            title = "Process start to first answer, and peak memory beyond the imports (in brackets: all)"
            parts += [title, starts(measured)]
    if lines := failures(result["entries"]):
        parts.append("Not measured:\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """Ratios as bars, one panel a batch size."""
    from matplotlib.figure import Figure

    batches = sorted({e["batch"] for e in result["entries"]})
    rated: Callable[[int], list[Entry]] = lambda b: [e for e in result["entries"] if e["batch"] == b and ratio(e)]  # noqa: E731
    height = 0.9 + 0.3 * max((len(rated(b)) for b in batches), default=1)
    figure = Figure(figsize=(5.5 * len(batches), height), layout="constrained")
    for axes, batch in zip(figure.subplots(1, len(batches), squeeze=False)[0], batches, strict=True):
        entries = rated(batch)[::-1]
        bars = axes.barh([e["model"] for e in entries], [ratio(e) for e in entries], color="tab:blue")
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(xlabel="times as fast as the best of the others", title=f"batch {batch}")
        axes.margins(x=0.12)
    figure.savefig(path)
