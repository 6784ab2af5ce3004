"""Reports without any candidate: the reference itself in float32 with one step replaced, every value shown, the cause told."""

import dataclasses
import functools

import numpy as np

import refvit
from refvit.backends import numpy as backend
from refvit.crosscheck.diagnosis import Diagnosis, Trial
from refvit.crosscheck.locate import judge
from refvit.crosscheck.matching import Match, Matching
from refvit.crosscheck.report import Report
from refvit.crosscheck.segments import recompute

NORM = "stages.3.1.transformer.1.norm1"
BEFORE = "stages.3.1.transformer.0"
RIGHT = Diagnosis("rounding only", "", "")
EPS = Diagnosis(
    "norm-eps",
    "the layer norm adds 0.001 to the variance where the reference adds 1e-05",
    "set eps=1e-05 in this layer norm",
    (
        Trial("norm-eps", f"eps=0.001 in {NORM}", 1.3, True),
        Trial("norm-biased", f"the unbiased variance in {NORM}", 4321.0, False),
        Trial("overflow", "in <b>half</b> precision", float("inf"), False),
    ),
)


@functools.cache
def graph():
    model = refvit.load(backend="numpy", dtype="float64")
    return model.graph((1, 3, 64, 64), expand=True)


@functools.cache
def image():
    return np.random.default_rng(6).random((1, 3, 64, 64)).astype(np.float32)


def shown(replaced=None, spoil=None):
    """Every value of a float32 run; replaced: name -> attributes of the node; spoil(name, array) may change a value."""
    g = graph()
    nodes = {n.name: dataclasses.replace(n, attrs={**n.attrs, **(replaced or {}).get(n.name, {})}) for n in g}
    narrow = dataclasses.replace(
        g, params={n: np.asarray(a, np.float32) for n, a in g.params.items()}, nodes=nodes, outputs={n: n for n in nodes}
    )
    values = {"input": image(), **backend.compile_graph(narrow)(image())}
    return values if spoil is None else {n: spoil(n, a.copy()) for n, a in values.items()}


def report(values, diagnosis=RIGHT, leave=(), rename=str, **fields):
    """The report of these values, without those in `leave`; rename(name) is what the candidate calls them."""
    g = graph()
    matches = tuple(
        Match(n, n, rename(n), "as is", "path", 1.0, a.astype(np.float64)) for n, a in values.items() if n not in leave
    )
    findings = tuple(judge(g, image(), matches, "float32"))
    first = next((f for f in findings if f.verdict == "diverges"), None)
    known = {"input": image().astype(np.float64), **{m.value: m.array for m in matches}}
    difference = None
    if first is not None:
        want = recompute(g, first.segment, known) if first.segment.nodes else image().astype(np.float64)
        difference = known[first.value], want
    given = {
        "candidate": "port.onnx", "model": "mobilevit_xxs.cifar10", "weights_sha256": "a5b0", "input": "an array, 1x3x64x64",
        "arithmetic": "float32", "declared": False, "matching": Matching(matches, tuple(leave), ()), "difference": difference,
        "notes": (), "versions": {"refvit": "0"},
    }  # fmt: skip
    return Report(findings=findings, diagnosis=diagnosis, graph=g, **{**given, **fields})
