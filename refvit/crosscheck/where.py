"""Where in a tensor the error sits, in words: in one channel, at the border, in every second row, everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from refvit.graph.ir import Array

MOST = 0.9  # of the squared error: where that sits is where the error sits
WIDEST = 3  # rows and columns that count as a border
NAMED = 4  # indices that are listed one by one
NAMES = {1: ("value",), 2: ("image", "channel"), 3: ("image", "token", "channel"), 4: ("image", "channel", "row", "column")}
SIDES = (
    ("top",),
    ("bottom",),
    ("left",),
    ("right",),
    ("top", "bottom"),
    ("left", "right"),
    ("bottom", "right"),
    ("top", "left"),
)
ROUND = ("top", "bottom", "left", "right")


def describe(weights: Array, axes: Sequence[str] | None = None, what: str = "of the squared error") -> str:
    """A phrase with numbers, such as "99 % of the squared error in channel 5 of 64".

    weights: how much is wrong at each place, not negative; axes: singular names of the axes; what: what the percentages count
    """
    total = float(weights.sum())
    if not total > 0:
        return "nowhere"
    if not math.isfinite(total):
        return "everywhere, beyond all bounds"
    names = tuple(axes or NAMES.get(weights.ndim) or [f"index {i}" for i in range(weights.ndim)])
    if found := _border(weights, names, total):
        return found.format(what=what)
    shares = [weights.sum(tuple(b for b in range(weights.ndim) if b != a)) / total for a in range(weights.ndim)]
    phrases = [p for name, share in zip(names, shares, strict=True) if share.size > 1 and (p := _along(name, share))]
    if not phrases:
        return "everywhere"
    least = min(share for share, _ in phrases)
    return f"{_percent(least)} {what} in " + ", ".join(text for _, text in phrases)


def _along(name: str, share: Array) -> tuple[float, str] | None:
    """(share of the error, where) if little of this axis holds most of it."""
    size = share.size
    order = np.argsort(-share, kind="stable")
    held = np.cumsum(share[order])
    few = int(np.searchsorted(held, MOST)) + 1
    if few == 1:
        return float(held[0]), f"{name} {order[0]} of {size}"
    if few <= max(1, size // 8):
        listed = ", ".join(map(str, sorted(order[:few]))) if few <= NAMED else ""
        return float(held[few - 1]), f"{few} of {size} {name}s" + (f" ({listed})" if listed else "")
    start, stop = _shortest_run(share)
    if stop - start <= 0.6 * size:
        return float(share[start:stop].sum()), f"{name}s {start} to {stop - 1} of {size}"
    for first, word in ((0, "even"), (1, "odd")):
        if size >= 4 and (half := float(share[first::2].sum())) >= MOST:
            return half, f"{word} {name}s"
    return None


def _shortest_run(share: Array) -> tuple[int, int]:
    """The shortest range of indices that holds MOST, and its neighbours that are as wrong."""
    held = np.concatenate([[0.0], np.cumsum(share)])
    stops = np.searchsorted(held, held[:-1] + MOST)
    starts = np.flatnonzero(stops <= share.size)
    start = int(starts[np.argmin(stops[starts] - starts)])
    stop = int(stops[start])
    usual = share[start:stop].mean() / 2
    while start and share[start - 1] > usual:
        start -= 1
    while stop < share.size and share[stop] > usual:
        stop += 1
    return start, stop


def _border(weights: Array, names: tuple[str, ...], total: float) -> str:
    """In which rows and columns at the sides of a map most of the error sits; "" if it is not there, or the map is small."""
    if "row" not in names or "column" not in names:
        return ""
    rows, columns = names.index("row"), names.index("column")
    plane = weights.sum(tuple(a for a in range(weights.ndim) if a not in (rows, columns))) / total
    h, w = plane.shape
    for width in range(1, WIDEST + 1):
        if min(h, w) < 5 * width:
            break
        for sides in (*SIDES, ROUND):
            inside = np.zeros((h, w), bool)
            for side in sides:
                inside[_edge(side, width)] = True
            if (share := float(plane[inside].sum())) >= MOST and not _one_spot(plane):
                place = "border" if sides == ROUND else f"{' and '.join(sides)} edge{'s' * (len(sides) > 1)}"
                return f"{_percent(share)} {{what}} in the {place}, {width} wide, which is {_percent(inside.mean())} of the map"
    return ""


def _edge(side: str, width: int) -> tuple[slice, slice]:
    whole, first, last = slice(None), slice(width), slice(-width, None)
    return {"top": (first, whole), "bottom": (last, whole), "left": (whole, first), "right": (whole, last)}[side]


def _one_spot(plane: Array) -> bool:
    """Whether a single pixel holds most of the error, wherever it lies."""
    return float(plane.max()) >= MOST


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share < 0.995 else "100 %" if share > 0.99995 else f"{100 * share:.1f} %"
