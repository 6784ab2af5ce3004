"""Narrower arithmetic that cannot be followed bit by bit, told by how much it loses, and by the numbers that are left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from refvit.crosscheck.arithmetic import ARITHMETICS, PRODUCTS, rounded, ulp
from refvit.crosscheck.causes.hypothesis import Scene
from refvit.crosscheck.measure import FACTOR, errors, ratio
from refvit.graph.ir import Array

if TYPE_CHECKING:
    from refvit.crosscheck.causes.explore import Meter
    from refvit.crosscheck.locate import Finding

NARROWER = {
    "float64": ("float32", "tf32", "float16", "bfloat16"), "float32": ("tf32", "float16", "bfloat16"),
    "tf32": ("float16", "bfloat16"), "float16": ("bfloat16",), "bfloat16": (), "int8": (),
}  # fmt: skip
ALIKE = 0.5  # correlation of the candidate's error with that of the imitation
ENOUGH = 64  # numbers whose correlation says something
SIMILAR = 2.5  # factor between their sizes
LONG = 4  # products in a row after which two runs of one arithmetic have nothing more in common than the size of their errors
MANY = 4  # values from which it can be told whether all of them are off
Answer = tuple[str, str, str, tuple[str, ...]]


def reduced(scene: Scene, meter: Meter, finding: Finding, findings: Sequence[Finding]) -> Answer | None:
    """ "reduced precision: ..." if the error is that of a narrower arithmetic."""
    if not np.isfinite(scene.observed).all() or not scene.nodes:
        return None
    grids = [
        kind for kind in ("bfloat16", "float16") if on_grid(scene.observed, kind)
    ]  # numbers of the first are of the second
    for kind in sorted(NARROWER[meter.arithmetic], key=lambda k: grids.index(k) if k in grids else len(grids)):
        grid = kind in grids
        like = scene.run(arithmetic=kind)
        if not np.isfinite(like).all():
            continue
        theirs, ours = scene.observed - scene.base, like - scene.base
        sizes = _rms(theirs) / (_rms(ours) or 1.0)
        products = sum(node.op in PRODUCTS for node in scene.nodes.values())
        alike = theirs.size >= ENOUGH and _correlation(theirs, ours) >= ALIKE
        if kind == "tf32" and not products:
            continue
        own = ratio(errors(scene.observed, scene.base, words=False), errors(like, scene.base, words=False), kind)
        if own > FACTOR:
            continue
        similar = 1 / SIMILAR < sizes < SIMILAR
        if grid or (similar and (alike or (products >= LONG and _everywhere(findings)))):
            why = "all its numbers are of that format" if grid else "its error is what that arithmetic makes"
            text = f"The candidate computes {finding.name} in {kind}, not in {meter.arithmetic}: {why}."
            return f"reduced precision: {kind}", text, _ADVICE.format(kind=kind), ()
    return _sums(scene, meter, finding)


def _everywhere(findings: Sequence[Finding]) -> bool:
    """Whether all that multiplies is off, as it is where the arithmetic is narrower and not where one step is wrong."""
    judged = [f for f in findings if any(n.op in PRODUCTS for n in f.segment.nodes)]
    return len(judged) >= MANY and sum(f.own_ratio > FACTOR for f in judged) >= 0.8 * len(judged)


_ADVICE = (
    "Declare arithmetic='{kind}' if that is meant; otherwise switch it off (torch.backends.cuda.matmul.allow_tf32, "
    "torch.backends.cudnn.allow_tf32, autocast, .half())."
)


def on_grid(x: Array, kind: str) -> bool:
    """Whether all numbers are of a format; too few say nothing."""
    return bool(np.count_nonzero(x) >= 32 and (rounded(x, kind) == x).all())


def _sums(scene: Scene, meter: Meter, finding: Finding) -> Answer | None:
    """Sums of products rounded after every term, in an arithmetic whose sums are usually wider."""
    kind = meter.arithmetic
    if kind not in ("float16", "bfloat16") or len([n for n in scene.nodes.values() if n.op in PRODUCTS]) != 1:
        return None
    terms = max(_terms(scene), 1)
    loss = ulp(kind) * np.sqrt(terms) / 2  # relative to what the sum reaches on its way
    error = scene.observed - scene.base
    size = _rms(error) / (_rms(scene.base) or 1.0)
    if terms >= 32 and on_grid(scene.observed, kind) and loss / 8 < size < 2 * loss and _white(error, scene.base):
        text = f"The candidate adds the {terms} terms of each sum of {finding.name} in {kind}."
        return "half accumulation", text, "Accumulate in float32.", ()
    return None


def _white(error: Array, base: Array) -> bool:
    """Whether an error is as rounding's: without relation to the value, and without a part that slices have in common."""
    if abs(_correlation(error, base)) > 0.1 or error.size < ENOUGH:
        return False
    for axis, length in enumerate(error.shape):
        means = error.mean(tuple(a for a in range(error.ndim) if a != axis))
        if length > 1 and _rms(means) > 2 * _rms(error) * np.sqrt(length / error.size):
            return False
    return True


def _terms(scene: Scene) -> int:
    node = next(n for n in scene.nodes.values() if n.op in PRODUCTS)
    second = scene.shape(str(node.inputs[1]))
    return int(np.prod(second[1:])) if node.op in ("conv2d", "linear") else second[-2]


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(x * x)))


def _correlation(a: Array, b: Array) -> float:
    lengths = _rms(a) * _rms(b)
    return float(np.mean(a * b) / lengths) if lengths else 0.0


assert set(NARROWER) == set(ARITHMETICS)
