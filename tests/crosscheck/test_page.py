"""The page: self-contained, escaped, and in a real browser it draws, sorts and filters without a word on the console."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from helpers import crosschecked as c
from PIL import Image

from refvit.crosscheck.charts import error_chart, neighbourhood
from refvit.crosscheck.heat import DECADES, pictures
from refvit.crosscheck.page import page
from refvit.vision.attention_maps import HEAT

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
VOID = {"meta", "img", "input", "br", "link"}
CONV = "stages.2.1.conv_kxk.conv"


class Tree(HTMLParser):
    """Every start tag must be closed, and what the page refers to is collected."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.handlers, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "data", "srcset", "xlink:href")]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def a_wrong_map():
    """A convolution of which the last row and channel 5 are wrong; few values are shown."""

    def spoil(name, a):
        if name == CONV:
            a[:, :, -1, :] += 0.05
            a[:, 5, 2, 3] += 9
        return a

    keep = {"input", "stem.bn.silu", "stages.1.2.add", CONV, "stages.2.1.concat", "head.fc"}
    return c.report(c.shown(spoil=spoil), c.EPS, leave=[n for n in c.graph().nodes if n not in keep])


@pytest.fixture(scope="module")
def wrong():
    return c.report(c.shown({c.NORM: {"eps": 1e-3}}), c.EPS)


@pytest.fixture(scope="module")
def wrong_map():
    return a_wrong_map()


def pixels(address):
    kind, _, data = address.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize("case", ["good", "wrong", "map", "outputs", "missing", "nothing", "input"])
def test_it_is_whole_and_needs_nothing_else(case, wrong, wrong_map):
    report = {
        "good": lambda: c.report(c.shown()),
        "wrong": lambda: wrong,
        "map": lambda: wrong_map,
        "outputs": lambda: c.report({"head.fc": c.shown({c.NORM: {"eps": 0.1}})["head.fc"]}, c.EPS),
        "missing": lambda: c.report(c.shown(), leave=["head.fc"]),
        "nothing": lambda: c.report({}),
        "input": lambda: c.report(c.shown(spoil=lambda n, a: a[:, ::-1] if n == "input" else a), c.EPS),
    }[case]()
    text = page(report)
    tree = Tree(text)
    assert all(a.startswith("data:image/png;base64,") for a in tree.addresses) and tree.handlers == []
    assert not re.search(r"https?://|@import|url\((?!#)|fetch\(|XMLHttpRequest|localStorage", text)
    assert "default-src 'none'" in text and tree.tags.count("script") == 1
    rows = re.findall(r'<tr data-verdict="(\w+)">', text)
    assert sorted(rows) == sorted(f.verdict for f in report.findings)
    assert ("MISMATCH" in text) == (not report.ok)


def test_the_table_has_the_cosine_and_the_ulps_of_every_value(wrong):
    heads = re.findall(r'<th class="[nt]"><button type="button">([^<]*)</button>', page(wrong))
    rows = re.findall(r"<tr data-verdict=.*?</tr>", page(wrong))
    columns = [heads.index(name) for name in ("cosine", "float32 ulps", "ulps near 0")]
    for f, row in zip(wrong.findings, rows, strict=True):
        values = re.findall(r'<td[^>]*?(?: data-v="([^"]*)")?>', row)
        assert len(values) == len(heads)
        shown = [float(values[k]) for k in columns]
        assert shown == [float(f"{v:.6g}") for v in (f.own.cosine, f.own.ulps_elsewhere, f.own.ulps_near_zero)]


def test_every_name_is_escaped(tmp_path):
    evil = '</script><img src=x onerror="alert(1)">&"\''
    report = c.report(c.shown(), rename=lambda n: n + evil, leave=["stem.conv"], model=evil, candidate=evil, notes=(evil,))
    tree = Tree(page(report))
    assert tree.addresses == [] and tree.handlers == [] and tree.tags.count("script") == 1


def test_the_chart_has_a_point_for_each_value_where_its_error_says(wrong):
    svg = error_chart(wrong.findings)
    points = re.findall(r'<circle class="(\w+)" cx="([\d.]+)" cy="([\d.]+)" r="\d" data-row="(\d+)"', svg)
    assert [(kind, int(row)) for kind, _, _, row in points] == [(f.verdict, i) for i, f in enumerate(wrong.findings)]
    assert all(float(a[1]) < float(b[1]) for a, b in pairwise(points))
    ticks = re.findall(r'<text class="tick" x="[\d.]+" y="([\d.]+)" text-anchor="end">10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)</text>', svg)
    digits = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    (y0, p0), (y1, p1) = [(float(y) - 4, int(p.translate(digits))) for y, p in (ticks[0], ticks[-1])]
    for f, (_, _, cy, _) in zip(wrong.findings, points, strict=True):
        if f.own.largest > 10**p0:
            assert abs(float(cy) - (y0 + (y1 - y0) * (np.log10(f.own.largest) - p0) / (p1 - p0))) < 0.2
        elif f.own.largest == 0:
            assert abs(float(cy) - y0) < 0.2


def test_the_allowed_area_is_the_verdict(wrong):
    """A point above the edge of the area diverges, and no other does."""
    svg = error_chart(wrong.findings)
    edge = re.search(r'<polygon class="allowed" points="([^"]+)"', svg)[1].split()[1:-1]
    heights = re.findall(r'<circle class="(\w+)" cx="[\d.]+" cy="([\d.]+)"', svg)
    for (verdict, cy), corner in zip(heights, edge, strict=True):
        above = float(corner.split(",")[1]) - float(cy)
        assert (above > 0) if verdict == "diverges" else (above <= 0.1)


def test_the_neighbourhood_shows_the_steps_in_order(wrong, wrong_map):
    svg = neighbourhood(wrong.graph, wrong.first_divergence, wrong.findings)
    names = re.findall(r'<text class="name"[^>]*>[^<]*<title>([^<]+)</title>', svg)
    order = list(wrong.graph.nodes)
    assert names == sorted(names, key=order.index)
    for name in (c.NORM, f"{c.BEFORE}.add_1", "stages.3.1.transformer.1.attn.qkv"):
        assert name in names
    wide = neighbourhood(wrong_map.graph, wrong_map.first_divergence, wrong_map.findings)
    inside = re.findall(r'<g class="step"><rect[^>]*/><text class="name"[^>]*>[^<]*<title>([^<]+)', wide)
    assert [*inside, CONV] == [n.name for n in wrong_map.first_divergence.segment.nodes]
    assert re.findall(r'<g class="wrong"><rect[^>]*/><text class="name"[^>]*>[^<]*<title>([^<]+)', wide) == [CONV]


def test_a_long_segment_is_cut_in_the_middle():
    report = c.report({"head.fc": c.shown({c.NORM: {"eps": 0.1}})["head.fc"]}, c.EPS)
    svg = neighbourhood(report.graph, report.first_divergence, report.findings)
    steps = re.findall(r'<g class="(?:step|wrong)">', svg)
    assert f"{len(report.graph) - len(steps)} more steps" in svg and len(steps) == 15
    tops = [float(y) for y in re.findall(r'<rect x="20" y="(\d+)"', svg)]
    assert all(b - a >= 60 for a, b in pairwise(tops))


def test_the_heat_map_is_the_difference(wrong_map):
    got, want = wrong_map.difference
    p = pictures(got, want, spatial=True)
    heat = pixels(p.difference)
    assert heat.shape == (8, 8, 3) and p.kind == "channel" and p.worst == 5 and len(p.slices) == 48
    off = np.abs(got - want)[0].max(0)
    assert np.array_equal(heat[2, 3], HEAT[-1])  # the largest has the brightest colour
    level = 1 + np.log10(off / off.max()) / DECADES
    expected = np.stack([np.interp(level.clip(0, 1), np.linspace(0, 1, len(HEAT)), HEAT[:, k]) for k in range(3)], -1)
    assert np.abs(heat - expected).max() <= 0.5 + 1e-9
    assert heat[-1].sum() > heat[0].sum()
    assert p.largest == np.abs(got - want).max() and p.slices[5] == p.largest
    both = [pixels(a).astype(int) for a in (p.candidate, p.expected)]
    assert np.argmax(np.abs(both[0] - both[1]).sum(-1)) == 2 * 8 + 3
    assert pixels(p.expected).min() == 0 and pixels(p.expected).max() == 255


def test_pictures_of_other_shapes():
    rng = np.random.default_rng(2)
    for shape, kind, slices, plane in (
        ((1, 10), "element", 10, None),
        ((2, 5, 7), "feature", 7, (5, 7)),
        ((4, 3, 6, 6), "head", 3, (6, 6)),
        ((1, 2, 3, 4, 5), "head", 3, (4, 5)),
        ((1, 1, 2100, 3), "head", 1, (700, 3)),
    ):
        want = rng.standard_normal(shape)
        got = want + rng.standard_normal(shape)
        got.flat[1] = np.nan
        p = pictures(got, want, spatial=False)
        assert (p.kind, len(p.slices)) == (kind, slices) and p.largest == np.inf
        if plane is None:
            assert p.difference is None
        else:
            assert pixels(p.difference).shape == (*plane, 3)


# in a browser


@pytest.fixture
def browse(tmp_path):
    """browse(html, *options) -> standard output and error of a headless Chromium that has opened it."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium): the page was not looked at in a browser")

    def call(html, *options):
        (tmp_path / "page.html").write_text(html, "utf-8")
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        command = [
            BROWSER,
            "--headless",
            *sandbox,
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}",
        ]
        command += ["--enable-logging=stderr", "--virtual-time-budget=4000", *options, (tmp_path / "page.html").as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout

    return call


SCRIPT = """
<pre id="result"></pre>
<script>
const table = document.getElementById("values"), out = {};
const shown = () => [...table.tBodies[0].rows].filter((r) => r.offsetParent !== null);
const column = (k) => shown().map((r) => Number(r.cells[k].dataset.v));
const button = (k) => table.querySelectorAll("th button")[k];
out.rows = shown().length;
button(4).click(); out.rising = column(4);
button(4).click(); out.falling = column(4);
out.sorted = table.querySelectorAll("th")[4].getAttribute("aria-sort");
button(1).click(); out.names = shown().map((r) => r.cells[1].textContent);
document.getElementById("wrong").click(); out.wrong = shown().map((r) => r.dataset.verdict);
document.getElementById("wrong").click();
const find = document.getElementById("find");
find.value = "TRANSFORMER.1"; find.dispatchEvent(new Event("input"));
out.found = shown().map((r) => r.cells[1].textContent);
find.value = ""; find.dispatchEvent(new Event("input"));
const point = document.querySelector("circle.diverges[data-row]");
point.dispatchEvent(new MouseEvent("mouseenter"));
out.readout = document.getElementById("readout").textContent;
out.lit = [...document.querySelectorAll("tr.lit")].map((r) => r.cells[1].textContent);
out.wide = document.documentElement.scrollWidth <= window.innerWidth;
const place = (e) => e.getBoundingClientRect();
out.sizes = [...document.querySelectorAll("svg, img")].map((e) => [place(e).width, place(e).height]);
out.overflow = [...document.querySelectorAll("svg.near g")].filter((g) => {
  const box = place(g.querySelector("rect"));
  return [...g.querySelectorAll("text")].some((t) => place(t).right > box.right || place(t).left < box.left);
}).length;
out.outside = performance.getEntriesByType("resource").filter((e) => !e.name.startsWith("data:")).length;
document.getElementById("result").textContent = JSON.stringify(out);
</script>
"""


@pytest.mark.parametrize("width", [1200, 480])
def test_it_sorts_filters_and_points_in_a_browser(browse, wrong, width):
    text = page(wrong).replace("</body>", SCRIPT + "</body>")
    dom = browse(text, "--dump-dom", f"--window-size={width},1000")
    out = json.loads(re.search(r'<pre id="result">(.*?)</pre>', dom, re.S)[1].replace("&lt;", "<").replace("&amp;", "&"))
    names = [f.name for f in wrong.findings]
    assert out["rows"] == len(names)
    assert out["rising"] == sorted(out["rising"]) and len(set(out["rising"])) > 100
    assert out["falling"] == sorted(out["falling"], reverse=True) and out["sorted"] == "descending"
    assert sorted(out["names"]) == sorted(names) and out["names"] != names
    assert out["wrong"].count("diverges") == 1 and "match" not in out["wrong"]
    assert len(out["wrong"]) == sum(f.verdict != "match" for f in wrong.findings)
    assert sorted(out["found"]) == sorted(n for n in names if "transformer.1" in n)
    assert c.NORM in out["readout"] and out["lit"] == [c.NORM]
    assert out["wide"] and all(w > 5 and h > 5 for w, h in out["sizes"]) and out["overflow"] == 0
    assert out["outside"] == 0


@pytest.mark.parametrize("dark", [False, True])
def test_it_draws_in_light_and_dark(browse, tmp_path, wrong_map, dark):
    options = ["--force-dark-mode"] if dark else []
    browse(page(wrong_map), f"--screenshot={tmp_path / 'shot.png'}", "--window-size=1200,2400", *options)
    seen = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    paper = np.array((15, 19, 24) if dark else (255, 255, 255))
    assert (np.abs(seen - paper).max(-1) <= 2).mean() > 0.4
    red = (seen[..., 0] > 150) & (seen[..., 1] < 90) & (seen[..., 2] < 90)
    assert red[:120].sum() > 500  # the badge
    assert (np.abs(seen - HEAT[-1]).max(-1) <= 2).sum() > 500  # the brightest of the heat map
    assert len(np.unique(seen.reshape(-1, 3), axis=0)) > 100
