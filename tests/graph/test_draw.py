"""Drawings are well formed, show every block once, and draw the edges that the graph has."""

import itertools
import re
import xml.etree.ElementTree as ET

from refvit.graph.cost import block_costs
from refvit.graph.draw import block_edges, to_dot, to_svg
from refvit.model import architecture_graph

GRAPH = architecture_graph("mobilevit_xxs", (64, 64))
SVG = "{http://www.w3.org/2000/svg}"


def test_edges_are_those_between_blocks():
    edges = block_edges(GRAPH, 1)
    names = ["input", *(c.name for c in block_costs(GRAPH, 1))]
    assert edges == list(itertools.pairwise(names))  # outside its blocks MobileViT is a chain
    deeper = block_edges(GRAPH, 2)
    assert ("stages.2.0.conv3_1x1", "stages.2.1.concat") in deeper  # the MobileViT block's own shortcut
    assert ("stages.1.0.conv3_1x1", "stages.1.1.add") in deeper  # and an inverted residual's
    assert ("stages.1.0.conv1_1x1", "stages.1.0.add") not in deeper


def test_svg():
    for depth in (1, 2):
        root = ET.fromstring(to_svg(GRAPH, depth))
        titles = [t.text for t in root.iter(f"{SVG}text") if t.get("font-weight")]
        assert titles == ["input", *(c.name for c in block_costs(GRAPH, depth))]
        edges = [p for p in root.iter(f"{SVG}path") if p.get("marker-end")]
        assert len(edges) == len(block_edges(GRAPH, depth))
        height, width = float(root.get("height")), float(root.get("width"))
        for box in root.iter(f"{SVG}rect"):
            assert float(box.get("width")) <= width and float(box.get("y", 0)) + float(box.get("height")) <= height


def test_skips_do_not_run_over_each_other():
    """Two edges on the same lane never cover the same rows."""
    root = ET.fromstring(to_svg(GRAPH, 3))
    spans = {}
    for path in root.iter(f"{SVG}path"):
        if match := re.fullmatch(r"M\d+ (\d+)H(\d+)V(\d+)H\d+", path.get("d")):
            top, lane, bottom = map(int, match.groups())
            spans.setdefault(lane, []).append((top, bottom))
    assert spans
    for lane in spans.values():
        ordered = sorted(lane)
        assert all(a[1] <= b[0] + 40 for a, b in itertools.pairwise(ordered))


def test_dot_names_every_block_and_edge():
    dot = to_dot(GRAPH)
    assert dot.startswith("digraph") and dot.rstrip().endswith("}")
    for cost in block_costs(GRAPH):
        assert f'"{cost.name}" [label=' in dot
    assert dot.count("->") == len(block_edges(GRAPH, 1))
