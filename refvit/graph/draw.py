"""A drawing of a model's blocks and what flows between them, as SVG or as Graphviz DOT."""

from __future__ import annotations

from html import escape

from refvit.graph.cost import Cost, block_costs, block_of
from refvit.graph.ir import Graph, dims

WIDTH, HEIGHT, GAP, LEFT = 390, 46, 22, 24


def block_edges(graph: Graph, depth: int) -> list[tuple[str, str]]:
    """(from, to) between different blocks, and from the inputs, once each, in the order of execution."""
    home = {name: name for name in graph.inputs} | {n.name: block_of(n, depth) for n in graph}
    edges: dict[tuple[str, str], None] = {}
    for node in graph:
        for source in node.sources:
            if source in home and home[source] != home[node.name]:
                edges[home[source], home[node.name]] = None
    return list(edges)


def to_dot(graph: Graph, depth: int = 1) -> str:
    """Graphviz source: one box a block with its output shape, parameters and MACs."""
    lines = ["digraph model {", "  node [shape=box, fontname=sans];"]
    lines += [f'  "{name}" [label="{name}\\n{dims(v.shape)}", shape=plaintext];' for name, v in graph.inputs.items()]
    lines += [f'  "{c.name}" [label="{c.name}\\n{_detail(c)}"];' for c in block_costs(graph, depth)]
    lines += [f'  "{a}" -> "{b}";' for a, b in block_edges(graph, depth)]
    return "\n".join([*lines, "}", ""])


def to_svg(graph: Graph, depth: int = 1) -> str:
    """A self-contained SVG: blocks from top to bottom, edges to the next block straight, the others around the right side."""
    (input_name,) = graph.inputs
    blocks = block_costs(graph, depth)
    row = {input_name: 0} | {c.name: i + 1 for i, c in enumerate(blocks)}
    edges = block_edges(graph, depth)
    skips = [(a, b) for a, b in edges if row[b] != row[a] + 1]
    lanes = _lanes([(row[a], row[b]) for a, b in skips])
    width = LEFT * 2 + WIDTH + 18 * (max(lanes, default=-1) + 1) + 10
    height = len(row) * (HEIGHT + GAP) + GAP
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#6a737d"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    middle = LEFT + WIDTH // 2
    for a, b in edges:
        if row[b] == row[a] + 1:
            out.append(_path(f"M{middle} {_top(row[a]) + HEIGHT}V{_top(row[b])}"))
    for (a, b), lane in zip(skips, lanes, strict=True):
        x, right = LEFT + WIDTH + 16 + 18 * lane, LEFT + WIDTH
        out.append(_path(f"M{right} {_top(row[a]) + HEIGHT - 10}H{x}V{_top(row[b]) + 10}H{right}"))
    (value,) = graph.inputs.values()
    out.append(_box(0, input_name, dims(value.shape), "#fff"))
    out += [_box(i + 1, c.name, _detail(c), "#eef3fc") for i, c in enumerate(blocks)]
    return "\n".join([*out, "</svg>", ""])


def _lanes(spans: list[tuple[int, int]]) -> list[int]:
    """For edges (from row, to row): the innermost lane on the right in which each meets no other."""
    taken: list[list[tuple[int, int]]] = []
    lanes = []
    for a, b in map(sorted, spans):
        lane = next((i for i, used in enumerate(taken) if all(b <= c or d <= a for c, d in used)), len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((a, b))
        lanes.append(lane)
    return lanes


def _top(row: int) -> int:
    return GAP + row * (HEIGHT + GAP)


def _path(d: str) -> str:
    return f'<path d="{d}" fill="none" stroke="#6a737d" stroke-width="1.4" marker-end="url(#tip)"/>'


def _box(row: int, title: str, detail: str, fill: str) -> str:
    y = _top(row)
    return (
        f'<rect x="{LEFT}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{fill}" stroke="#8fa8d8"/>'
        f'<text x="{LEFT + 12}" y="{y + 19}" font-weight="bold" fill="#1b1f24">{escape(title)}</text>'
        f'<text x="{LEFT + 12}" y="{y + 37}" fill="#57606a">{escape(detail)}</text>'
    )


def _detail(c: Cost) -> str:
    return f"{dims(c.shape)} | {c.params:,} parameters | {c.macs / 1e6:,.1f} M MACs"
