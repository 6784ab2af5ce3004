"""The report as one HTML file: it loads nothing, runs offline, and every name in it is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from refvit.crosscheck.charts import bars, error_chart, neighbourhood
from refvit.crosscheck.heat import DECADES, legend, pictures
from refvit.crosscheck.locate import Finding
from refvit.crosscheck.matching import Match
from refvit.crosscheck.measure import FACTOR
from refvit.crosscheck.words import cosine, number
from refvit.graph.ir import dims

if TYPE_CHECKING:
    from refvit.crosscheck.report import Report

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
COLUMNS = (  # heading, whether it is a number
    ("#", True), ("value", False), ("verdict", False), ("own error", True), ("times its cost", True), ("spread", False),
    ("arithmetic costs", True), ("total error", True), ("times, total", True), ("cosine", True), ("float32 ulps", True),
    ("ulps near 0", True), ("where", False), ("op", False), ("shape", False), ("in the candidate", False), ("layout", False),
    ("matched by", False), ("sure", True),
)  # fmt: skip


def page(report: Report) -> str:
    """The whole page of a report."""
    folder = resources.files("refvit.crosscheck")
    style, script = (folder.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    verdict = "match" if report.ok else "mismatch"
    title = f"{verdict}: {report.candidate}, {report.model}"
    parts = [_head(report), _answer(report), _chart(report), _near(report), _trials(report), _values(report), _rest(report)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + f"\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _head(report: Report) -> str:
    badge = '<span class="badge good">MATCH</span>' if report.ok else '<span class="badge bad">MISMATCH</span>'
    return (
        f"{badge}\n<h1>{escape(report.candidate)}, held against {escape(report.model)}</h1>\n"
        f'<p class="muted">Input: {escape(report.input)}. Arithmetic: {escape(report.arithmetic)}'
        f"{'' if report.declared else ', by its dtypes'}. Truth: refvit in float64.</p>"
    )


def _answer(report: Report) -> str:
    """The lines of the text, as a list of terms."""
    rows = []
    for label, text in report.lines():
        main = ' class="main"' if label in ("first divergence", "cause", "what to do") else ""
        rows.append(f"<dt>{escape(label)}</dt><dd{main}>{escape(text)}</dd>")
    return f'<div class="answer{" good" if report.ok else ""}"><dl>\n' + "\n".join(rows) + "\n</dl></div>"


def _chart(report: Report) -> str:
    chart = error_chart(report.findings)
    if not chart:
        return ""
    keys = (
        ("", "match", "own error of a value that is right"),
        ("", "wrong", "own error of one that diverges"),
        ("", "inherited", "own error of one that is right but reads wrong values"),
        ("bar", "total", "total error, with what is inherited"),
        ("bar", "cost", f"what {report.arithmetic} itself costs"),
        ("area", "allowed", f"allowed: {FACTOR:.0f} times that"),
    )
    items = [f'<li><i class="{k}" style="background: var(--{c})"></i>{escape(text)}</li>' for k, c, text in keys]
    return (
        "<h2>Errors along the network</h2>\n"
        '<p class="muted">From the input to the output, each as a part of the largest value there. The own error is what the '
        "candidate adds between its own values, free of what it inherited; 0 is at the lower edge.</p>\n"
        f'<figure>{chart}<ul class="legend">{"".join(items)}</ul><div id="readout" class="muted mono"></div></figure>'
    )


def _near(report: Report) -> str:
    first = report.first_divergence
    if first is None:
        return ""
    graph = neighbourhood(report.graph, first, report.findings)
    left = (
        f"<figure>{graph}<figcaption>Blue: the steps between values that the candidate shows. Red: where it is wrong. Points: "
        f"the own error, in units of what {escape(report.arithmetic)} costs.</figcaption></figure>"
    )
    head = f"<h2>Where it goes wrong: {escape(first.name)}</h2>\n"
    return f'{head}<div class="two"><div>{left}</div><div>{_heat(report)}</div></div>'


def _heat(report: Report) -> str:
    if report.difference is None:
        return ""
    got, want = report.difference
    p = pictures(got, want, spatial=report.is_map)
    out = []
    if p.difference:
        out.append(
            f'<figure><img class="plane" id="heat" alt="Heat map of the difference" src="{p.difference}">'
            f'<img class="heat" alt="" src="{legend()}"><div class="ends muted">'
            f"<span>{p.largest / 10**DECADES:.1g} or less</span><span>{p.largest:.2g}</span></div>"
            f"<figcaption>The largest difference at each {p.rows} (down, {p.shape[0]}) and {p.columns} (across, {p.shape[1]}), "
            "between the candidate and float64 from its own values.</figcaption></figure>"
        )
    if len(p.slices) > 1:
        out.append(
            f"<figure>{bars(p.slices, p.kind)}<figcaption>The largest difference by {p.kind}; the worst is {p.kind} {p.worst} "
            f"of {len(p.slices)}.</figcaption></figure>"
        )
    if p.candidate and p.expected:
        both = [("candidate", p.candidate), ("expected", p.expected)]
        planes = [f'<figure><img class="plane" alt="{t}" src="{s}"><figcaption>{t}</figcaption></figure>' for t, s in both]
        out.append(f'<div class="planes">{"".join(planes)}</div><p class="muted">The plane in which they differ most.</p>')
    return "".join(out)


def _trials(report: Report) -> str:
    trials = report.diagnosis.trials
    if not trials:
        return ""
    finite = [t.residual_ratio for t in trials if math.isfinite(t.residual_ratio) and t.residual_ratio > 0]
    top = math.log10(max(*finite, FACTOR) * 10) if finite else 1.0
    rows = []
    for t in trials:
        level = math.log10(max(t.residual_ratio, 0.1) * 10) / top if math.isfinite(t.residual_ratio) else 1.0 - t.fits
        yes = '<span class="fits">explains it</span>' if t.fits else "no"
        rows.append(
            f'<tr><td class="mono">{escape(t.cause)}</td><td class="text">{escape(t.text)}</td>'
            f'<td class="n">{_number(t.residual_ratio)}</td>'
            f'<td><span class="fit{" yes" if t.fits else ""}" style="width: {160 * min(level, 1):.0f}px"></span></td>'
            f"<td>{yes}</td></tr>"
        )
    head = "<thead><tr><th>hypothesis</th><th>what it changes</th><th class='n'>left over</th><th></th><th></th></tr></thead>"
    return (
        "<h2>Hypotheses that were tried</h2>\n"
        '<p class="muted">The steps before the wrong value were computed again under each, from the candidate\'s own values. '
        f"Left over is the difference that remains, in units of what {escape(report.arithmetic)} costs there: up to "
        f"{FACTOR:.0f} explains it.</p>\n"
        f'<div class="wide"><table id="trials">{head}<tbody>\n' + "\n".join(rows) + "\n</tbody></table></div>"
    )


def _values(report: Report) -> str:
    matches = {(m.value, m.candidate): m for m in (*report.matching.matches, *report.matching.again)}
    shown = [f for f in report.findings if f.verdict != "missing"]
    missing = [f for f in report.findings if f.verdict == "missing"]
    rows = []
    order = {name: i for i, name in enumerate([*report.graph.inputs, *report.graph.nodes])}
    for f in [*shown, *missing]:  # the points of the chart count the shown ones
        cells = _cells(order[f.value], f, matches.get((f.value, f.candidate)))
        rows.append(f'<tr data-verdict="{escape(f.verdict)}">{cells}</tr>')
    heads = [f'<th class="{"n" if n else "t"}"><button type="button">{escape(h)}</button></th>' for h, n in COLUMNS]
    return (
        "<h2>All values</h2>\n"
        '<div class="controls"><input type="search" id="find" placeholder="part of a name" aria-label="Filter">'
        '<label><input type="checkbox" id="wrong"> only what is not right</label></div>\n'
        f'<div class="wide"><table id="values"><thead><tr>{"".join(heads)}</tr></thead><tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


def _cells(order: int, f: Finding, match: Match | None) -> str:
    own, total, cost = (e.largest for e in (f.own, f.total, f.yardstick))
    spread = f"{number(f.spread[0])} to {number(f.spread[1])}" if f.verdict != "missing" else ""
    sure = match.confidence if match else math.nan
    cells = [
        _n(order, str(order)), f'<td class="name">{escape(f.name)}</td>',
        f'<td class="verdict {escape(f.verdict)}">{escape(f.verdict)}</td>', _n(own), _n(f.own_ratio),
        f'<td class="narrow">{spread}</td>', _n(cost), _n(total), _n(f.total_ratio), *_alike(f), _t(f.own.where),
        f"<td>{escape(f.op)}</td>", f'<td class="narrow">{dims(f.shape)}</td>', _t(f.candidate),
        f"<td>{escape(match.layout if match else '')}</td>",
        f"<td>{escape(match.how if match else '')}</td>", _n(sure, f"{100 * sure:.0f} %" if math.isfinite(sure) else ""),
    ]  # fmt: skip
    return "".join(cells)


def _alike(f: Finding) -> list[str]:
    """The cosine and the ulps of its own error."""
    if f.verdict == "missing":
        return [_n(math.nan)] * 3
    return [_n(f.own.cosine, cosine(f.own.cosine)), _n(f.own.ulps_elsewhere), _n(f.own.ulps_near_zero)]


def _rest(report: Report) -> str:
    m = report.matching
    parts = ["<h2>What was not compared, and how this was made</h2>"]
    lists: Iterable[tuple[str, Sequence[str]]] = (
        ("of the reference's values are not shown by the candidate", m.unmatched_reference),
        ("of the candidate's values are none of the reference's", [_why(n, m.reasons) for n in m.unmatched_candidate]),
        (
            "parameters were found under other names",
            [f"{ours} = {theirs}" for ours, theirs in m.parameters.items() if ours != theirs],
        ),
    )
    for text, names in lists:
        items = "".join(f"<li>{escape(name)}</li>" for name in names)
        parts.append(
            f'<details><summary>{len(names)} {text}</summary><ul class="names">{items}</ul></details>' if names else ""
        )
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    parts.append(f'<p class="muted">Weights sha256 {escape(report.weights_sha256)}. Versions: {escape(versions)}.</p>')
    parts.append(f"<details><summary>The text of the terminal</summary><pre>{escape(report.text())}</pre></details>")
    return "\n".join(part for part in parts if part)


def _why(name: str, reasons: object) -> str:
    reason = reasons.get(name) if isinstance(reasons, dict) else None
    return f"{name}: {reason}" if reason else name


def _n(value: float, text: str | None = None) -> str:
    """A cell with a number, which sorts by its value; what is not finite sorts last."""
    return (
        f'<td class="n" data-v="{value if math.isfinite(value) else 1e308:.6g}">{_number(value) if text is None else text}</td>'
    )


def _t(text: str) -> str:
    return f'<td class="text">{escape(text)}</td>'


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return "∞" if math.isinf(value) else "0" if value == 0 else f"{value:.3g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.1e}"
