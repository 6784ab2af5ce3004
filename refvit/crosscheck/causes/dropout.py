"""Dropout that is still active: numbers are zero or larger than they should be by one factor, without any order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from refvit.crosscheck.causes.hypothesis import Cause, Change, Scene
from refvit.graph.ir import Array

FEWEST = 64  # numbers among which a share means something
MOST = 0.9  # share of numbers that anybody drops
SIGMAS = 5.0  # by which a share may be off from what the factor says


def _changes(scene: Scene) -> Iterator[Change]:
    """Of the segment's value, or of one term where that is a sum: what was dropped is seen only there."""
    own = scene.base
    if (found := _dropped(scene.observed, own)) is not None:
        drop = partial(_apply, kept=found)
        yield Change("result", _said(found, "the value"), (scene.result,), result=drop, alone=True)
    last = scene.producer(scene.result)
    if last is None or last.op != "add":
        return
    for index, (mine, other) in enumerate(((last.inputs[0], last.inputs[1]), (last.inputs[1], last.inputs[0]))):
        a, b = _known(scene, mine), _known(scene, other)
        if a is None or b is None or a.shape != own.shape:
            continue
        if (found := _dropped(scene.observed - b, a)) is not None:
            call = scene.before(last, partial(_apply, kept=found), index)
            yield Change(f"term {index}", _said(found, f"the term {mine}"), (last.name,), call, alone=True)


def _known(scene: Scene, name: str | None) -> Array | None:
    return None if name is None else scene.values.get(name, scene.params.get(name))


def _dropped(got: Array, right: Array) -> Array | None:
    """What right has to be multiplied by, if that is 0 for a share p of the numbers and 1 / (1 - p) for the others.

    The share has to be that among positive and among negative numbers: a ReLU is no dropout.
    """
    if got.shape != right.shape or got.size < FEWEST or not np.isfinite(got).all():
        return None
    told = np.abs(right) > 1e-3 * np.abs(right).max()  # what is near zero says nothing about what it was multiplied by
    quotient = np.divide(got, right, out=np.zeros_like(got), where=told)
    kept = quotient > 0.5
    if not kept.any() or kept[told].all():
        return None
    factor = float(np.median(quotient[kept]))
    p = 1 - 1 / factor
    if not 0 < p < MOST or not all(_near(kept[part], 1 - p) for part in (told, told & (right > 0), told & (right < 0))):
        return None
    return np.where(np.abs(got - factor * right) < np.abs(got), factor, 0.0)


def _near(kept: Array, share: float) -> bool:
    """Whether chance keeps so many of them."""
    return abs(int(kept.sum()) - share * kept.size) <= SIGMAS * np.sqrt(share * (1 - share) * kept.size)


def _apply(x: Array, kept: Array) -> Array:
    return x * kept


def _said(kept: Array, what: str) -> str:
    share = float((kept == 0).mean())
    return f"{share:.0%} of {what} are zero and the others multiplied by {kept.max():.3g}: dropout is active"


CAUSES = (
    Cause(
        "dropout",
        "still drops values at random",
        "switch dropout off: call module.eval(), or pass training=False",
        _changes,
    ),
)
