"""Names and colours of the classes that segmentation and detection are trained on, and colours for any others."""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from refvit.errors import ConfigError
from refvit.graph.ir import Array

DATASETS = ("ade20k", "cityscapes", "coco", "lip", "voc")
GOLDEN = (5**0.5 - 1) / 2  # of a circle: however many hues have been taken, the next is far from all of them
TONES = ((0.95, 0.85), (0.80, 1.00), (0.60, 0.95))  # saturation and value, in turn


class Dataset(NamedTuple):
    """names (k,) and colours, uint8 (k, 3) RGB, read-only, both by class index."""

    names: tuple[str, ...]
    colours: Array


@functools.cache
def dataset(name: str) -> Dataset:
    """The classes of a data set.

    "ade20k": 150, by the first of their names; "cityscapes": 19, by train id; "voc": background and 20 more; "lip": background
    and 19 parts of people and their clothes; "coco": 80 things
    without the background, so that class 1 of a detector comes first. COCO has no usual colours; `vivid` gives them, by class.
    """
    if name not in DATASETS:
        raise ConfigError(f"palettes: no data set {name!r}; known are {', '.join(DATASETS)}")
    text = (files("refvit.vision") / "data" / f"{name}.txt").read_text("utf-8")
    rows = [line.partition("\t") for line in text.splitlines() if not line.startswith("#")]
    names = tuple(label for label, _, _ in rows)
    if not rows[0][2]:
        return Dataset(names, vivid(len(names) + 1)[1:])
    return Dataset(names, _table([tuple(map(int, colour.split())) for _, _, colour in rows]))


def names(name: str) -> tuple[str, ...]:
    """The names of the classes of a data set, see `dataset`."""
    return dataset(name).names


def palette(labels: Sequence[str] | None, k: int) -> Array:
    """Colours for a map of k classes, uint8 (k, 3), read-only: of the data set whose names the labels are, else `colours`."""
    for name in DATASETS:
        if labels is not None and tuple(labels) == names(name):
            return dataset(name).colours
    return colours(k)


@functools.cache
def colours(k: int) -> Array:
    """Colours for any k classes after the recipe of Pascal VOC, uint8 (k, 3), read-only. Class 0 is black, no two are equal.

    The lowest three bits of the index become the highest bits of red, green and blue, the next three the second highest, and
    so on.
    """
    return _table([tuple(_channel(i >> c) for c in range(3)) for i in range(k)])


def _channel(i: int) -> int:
    """Bits 0, 3, 6 ... of i as bits 7, 6, 5 ..."""
    return sum((i >> 3 * bit & 1) << (7 - bit) for bit in range(8))


@functools.cache
def vivid(k: int) -> Array:
    """k bright colours for lines and boxes on photographs, uint8 (k, 3), read-only. The first ones are the same for every k."""
    hsv = [(0.93 + i * GOLDEN, *TONES[i % len(TONES)]) for i in range(k)]
    return _table([tuple(round(255 * v) for v in colorsys.hsv_to_rgb(h % 1, s, v)) for h, s, v in hsv])


def _table(rows: list[tuple[int, ...]]) -> Array:
    array = np.array(rows, np.uint8).reshape(-1, 3)
    array.flags.writeable = False
    return array
