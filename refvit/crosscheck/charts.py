"""The drawings of the page, as SVG without any library: errors along the network, and what surrounds the wrong value.

Colours are CSS classes, so that the page's light and dark style apply.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from refvit.crosscheck.locate import Finding
from refvit.crosscheck.measure import FACTOR
from refvit.crosscheck.words import number
from refvit.graph.ir import OPS, Graph, Node, dims

WIDTH, HEIGHT = 1080, 330
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 12, 34
SMALLEST = 1e-18  # what is drawn of an error of 0
BOX, TALL, GAP, LANE = 470, 42, 20, 16  # of the neighbourhood
ROWS, BESIDE = 15, 3  # steps of a long segment that are drawn, and of what is before and behind it


def error_chart(findings: Sequence[Finding]) -> str:
    """Every value from left to right: its own error as a point, its total error as a line, and what is allowed as an area."""
    shown = [f for f in findings if f.verdict != "missing"]
    if not shown:
        return ""
    cost = [_cost(f) for f in shown]
    every = [v for f, c in zip(shown, cost, strict=True) for v in (f.own.largest, f.total.largest, c, FACTOR * c)]
    sizes = [v for v in every if math.isfinite(v) and v > SMALLEST] or [1e-7]
    low, high = math.floor(math.log10(min(sizes))), math.ceil(math.log10(max(sizes)))
    high = max(high, low + 1)
    step = (WIDTH - LEFT - RIGHT) / max(1, len(shown) - 1)

    def x(i: int) -> float:
        return LEFT + i * step if len(shown) > 1 else (LEFT + WIDTH - RIGHT) / 2

    def y(v: float) -> float:
        at = math.log10(v) if math.isfinite(v) and v > 0 else (low if v == 0 else high)
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - min(max(at, low), high)) / (high - low)

    bottom = HEIGHT - BOTTOM
    out = [f'<svg class="errors" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Errors along the network">']
    every_other = max(1, round((high - low) / 8))
    for power in range(low, high + 1):
        at = y(10.0**power)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        if (power - low) % every_other == 0:
            out.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{_power(power)}</text>')
    places = [x(i) for i in range(len(shown))] if len(shown) > 1 else [LEFT, WIDTH - RIGHT]  # a single value as a level
    times = 2 if len(shown) == 1 else 1
    edge = " ".join(f"{at:.1f},{y(FACTOR * c):.1f}" for at, c in zip(places, cost * times, strict=True))
    out.append(f'<polygon class="allowed" points="{places[0]:.1f},{bottom} {edge} {places[-1]:.1f},{bottom}"/>')
    out.append(_line("cost", [(at, y(c)) for at, c in zip(places, cost * times, strict=True)]))
    out.append(_line("total", [(at, y(f.total.largest)) for at, f in zip(places, shown * times, strict=True)]))
    for i, f in enumerate(shown):
        size = 5 if f.verdict == "diverges" else 3
        title = f"{f.name}: own error {f.own.largest:.2g}, {number(f.own_ratio)} times what the arithmetic costs; {f.verdict}"
        out.append(
            f'<circle class="{f.verdict}" cx="{x(i):.1f}" cy="{y(f.own.largest):.1f}" r="{size}" data-row="{i}">'
            f"<title>{escape(title)}</title></circle>"
        )
    first = next((i for i, f in enumerate(shown) if f.verdict == "diverges"), None)
    if first is not None:
        out.append(f'<line class="first" x1="{x(first):.1f}" x2="{x(first):.1f}" y1="{TOP}" y2="{bottom}"/>')
    for i in _marks(len(shown)):
        anchor = "start" if i == 0 else "end" if i == len(shown) - 1 and i else "middle"
        name = escape(_short(shown[i].name, 26))
        out.append(f'<text class="tick" x="{x(i):.1f}" y="{HEIGHT - 12}" text-anchor="{anchor}">{name}</text>')
    return "\n".join([*out, "</svg>"])


def neighbourhood(graph: Graph, finding: Finding, findings: Iterable[Finding]) -> str:
    """The steps between the sources and the wrong value, with what they read, and what reads the result, from top to bottom."""
    verdicts = {f.value: f for f in findings}
    steps = list(finding.segment.nodes)
    hidden = max(0, len(steps) - ROWS)
    if hidden:
        steps = steps[: ROWS // 2] + steps[-(ROWS - ROWS // 2) :]
    rows = _around(graph, finding, [n.name for n in steps])
    place = {name: i for i, name in enumerate(rows)}
    cut = place[steps[ROWS // 2].name] if hidden else len(rows)
    top = [GAP + i * (TALL + GAP) + (GAP if i >= cut else 0) for i in range(len(rows))]
    edges = []
    for name in rows:
        if name in graph.nodes:
            edges += [(place[s], place[name]) for s in dict.fromkeys(graph.nodes[name].sources) if s in place]
    straight = {(a, b) for a, b in edges if b == a + 1 and b != cut}
    around = [(a, b) for a, b in edges if (a, b) not in straight]
    lanes = _lanes(around)
    width = 20 + BOX + LANE * (max(lanes, default=0) + 2)
    box = f"0 0 {width} {top[-1] + TALL + GAP}"
    out = [
        f'<svg class="near" viewBox="{box}" width="{width}" role="img" aria-label="The steps around the wrong value">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>',
    ]
    middle = 20 + BOX // 2
    out += [f'<path class="edge" d="M{middle} {top[a] + TALL}V{top[b]}"/>' for a, b in sorted(straight)]
    for (a, b), lane in zip(around, lanes, strict=True):
        right = 20 + BOX + LANE * (lane + 1)
        out.append(f'<path class="edge" d="M{20 + BOX} {top[a] + TALL - 9}H{right}V{top[b] + 9}H{20 + BOX}"/>')
    if hidden:
        out.append(f'<text class="small" x="{middle}" y="{top[cut] - GAP + 4}" text-anchor="middle">{hidden} more steps</text>')
    for name, y in zip(rows, top, strict=True):
        inside = name in {n.name for n in steps}
        kind = "wrong" if name == finding.value else "step" if inside else "beside"
        out.append(_box(name, y, graph.nodes.get(name), dims(graph.value(name).shape), kind, verdicts.get(name)))
    return "\n".join([*out, "</svg>"])


def bars(values: Sequence[float], label: str) -> str:
    """The largest difference by channel, feature or class: a bar each, the whole width."""
    top = max((v for v in values if math.isfinite(v)), default=0.0) or 1.0
    wide = 540 / len(values)
    out = [f'<svg class="bars" viewBox="0 0 540 70" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">']
    for i, v in enumerate(values):
        tall = 66 * (min(v, top) if math.isfinite(v) else top) / top
        out.append(
            f'<rect x="{i * wide:.2f}" y="{70 - tall:.2f}" width="{max(wide * 0.86, 0.4):.2f}" height="{tall:.2f}">'
            f"<title>{escape(label)} {i}: {v:.3g}</title></rect>"
        )
    return "".join([*out, "</svg>"])


def _around(graph: Graph, finding: Finding, steps: Sequence[str]) -> list[str]:
    """The steps of a segment, what they read, the step before that, and what reads the result, in the order of the graph."""
    sources = finding.segment.sources
    before = [i for s in sources if s in graph.nodes for i in graph.nodes[s].sources if i not in graph.params]
    users = graph.users()
    after = list(dict.fromkeys(users.get(finding.value, [])))[:BESIDE]
    after += list(dict.fromkeys(u for name in after for u in users.get(name, ())))[:BESIDE]
    wanted = {*before[:BESIDE], *sources, *steps, finding.value, *after}
    return [name for name in (*graph.inputs, *graph.nodes) if name in wanted]


def _cost(f: Finding) -> float:
    """What the arithmetic costs, as a largest error: the verdict looks at the root mean square and at single slices as well."""
    ratio = f.own_ratio
    return f.own.largest / ratio if math.isfinite(ratio) and ratio > 0 and f.own.largest > 0 else f.yardstick.largest


def _box(name: str, y: float, node: Node | None, shape: str, kind: str, found: Finding | None) -> str:
    if node is None:
        detail = shape
    else:
        defaults = OPS[node.op].defaults
        attrs = [f"{k}={v!r}" for k, v in node.attrs.items() if k not in defaults or defaults[k] != v]
        detail = f"{node.op}({', '.join(attrs)})  {shape}" if attrs else f"{node.op}  {shape}"
    badge = ""
    if found is not None and found.verdict != "missing":
        badge = (
            f'<circle class="{found.verdict}" cx="{20 + BOX - 14}" cy="{y + 13:.0f}" r="5"/>'
            f'<text class="small" x="{20 + BOX - 24}" y="{y + 17:.0f}" text-anchor="end">{number(found.own_ratio)} times</text>'
        )
    return (
        f'<g class="{kind}"><rect x="20" y="{y:.0f}" width="{BOX}" height="{TALL}" rx="6"/>'
        f'<text class="name" x="32" y="{y + 17:.0f}">{escape(_short(name, 48))}<title>{escape(name)}</title></text>'
        f'<text class="small" x="32" y="{y + 34:.0f}">{escape(_short(detail, 66))}'
        f"<title>{escape(detail)}</title></text>{badge}</g>"
    )


def _lanes(spans: Sequence[tuple[int, int]]) -> list[int]:
    """For each edge the innermost lane beside the boxes that is free along it."""
    busy: list[set[int]] = []
    lanes = []
    for a, b in spans:
        rows = set(range(min(a, b), max(a, b)))
        lane = next((i for i, taken in enumerate(busy) if not taken & rows), len(busy))
        if lane == len(busy):
            busy.append(set())
        busy[lane] |= rows
        lanes.append(lane)
    return lanes


def _line(kind: str, points: Sequence[tuple[float, float]]) -> str:
    return f'<polyline class="{kind}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>'


def _marks(count: int) -> list[int]:
    """Which values are named below the axis: few enough not to overlap."""
    return sorted({round(k * (count - 1) / 5) for k in range(6)}) if count > 6 else list(range(count)) if count < 6 else [0, 5]


def _power(power: int) -> str:
    digits = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return "1" if power == 0 else f"10{digits}"


def _short(text: str, longest: int) -> str:
    """The end of a name says more than its beginning."""
    return text if len(text) <= longest else f"…{text[1 - longest :]}"
