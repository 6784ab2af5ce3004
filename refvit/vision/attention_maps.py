"""Pictures of attention, drawn with Pillow: weights as heat over what the network saw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from refvit.ops import resize
from refvit.vision.drawing import INK, MARGIN, MUTED, PAPER, fit, fitted

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGE, SMALL = 400, 220  # pixels of the longer side of a panel
NARROW = 220  # at least so wide is the space for a panel, because its name is long
GAP, HEADER, LABEL = 14, 50, 42  # between panels; of the two lines at the top; of the two under a panel
TITLE = 300  # at least so wide is the space for the lines over the small panels
BAR = 12  # height of the legend
ALPHA = 0.6  # of the heat over the image
GREY = 0.8  # how far the image below loses its colours, which would mix with those of the heat
MARK, HALO = "#ffffff", "#10151a"
FINE = 4  # the mark is drawn so many times larger, and reduced

# From dark to bright in steps of equal lightness: L* of CIELAB is 6, 15, ..., 95, within 0.3.
HEAT = np.array(
    [
        (2, 14, 60), (52, 18, 88), (102, 12, 101), (145, 17, 103), (188, 24, 99), (226, 46, 88),
        (245, 91, 79), (251, 135, 84), (252, 174, 103), (251, 209, 140), (254, 241, 188),
    ],
    np.float64,
)  # fmt: skip


class Panel(NamedTuple):
    """One picture: name, a second line, and weights (rows, columns) of at least 0, or None for the image as it is."""

    name: str
    note: str
    weights: NDArray[np.floating] | None


def colours(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Heat: values in [0, 1] of any shape (...) -> RGB (..., 3) in [0, 255], linear between the rows of HEAT."""
    steps = np.arange(len(HEAT)) / (len(HEAT) - 1)
    return np.stack([np.interp(values, steps, HEAT[:, c]) for c in range(3)], axis=-1)


def heated(pixels: NDArray[np.uint8], weights: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The image (h, w, 3) under the heat of weights (rows, columns), which cover it evenly.

    Weights are resized bilinearly and their largest value gets the brightest colour; without any above 0, all get the darkest.
    """
    values = weights / (weights.max() or 1)
    values = resize(values[None, None], size=pixels.shape[:2], mode="bilinear", align_corners=False, antialias=True)[0, 0]
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    below = (1 - GREY) * pixels + GREY * grey[:, :, None]
    return np.round((1 - ALPHA) * below + ALPHA * colours(values)).astype(np.uint8)


def draw_attention(
    pixels: NDArray[np.uint8],
    large: Sequence[Panel],
    small: Sequence[Panel],
    heads: Sequence[tuple[str, str]],
    at: tuple[int, int] | None,
) -> Image.Image:
    """Panels of the image (h, w, 3): large ones below each other, then a legend, and beside them a grid of small ones.

    heads: two lines over the former, and two over the latter
    at: (x, y) in pixels of the image, which gets a mark in every panel
    """
    wide, narrow = fitted(pixels, LARGE), fitted(pixels, SMALL)
    left = max(wide.width, LARGE * 2 // 3)
    cell = max(narrow.width, NARROW), narrow.height + LABEL
    beside = len(large) * (wide.height + LABEL + GAP) + BAR + 24
    rows = max(beside // (cell[1] + GAP), math.ceil(math.sqrt(len(small))))  # as high as what is beside it, or a square
    columns = math.ceil(len(small) / rows)
    rows = math.ceil(len(small) / columns)
    room = max(columns * (cell[0] + GAP) - GAP, TITLE)
    height = HEADER + max(beside, rows * (cell[1] + GAP) - GAP)
    canvas = Image.new("RGB", (left + room + 4 * MARGIN, height + 2 * MARGIN), PAPER)
    start = left + 3 * MARGIN
    for (first, second), x, width in zip(heads, (MARGIN, start), (left, room), strict=True):
        _lines(canvas, (x, MARGIN), (first, second), (17, 13), width)
    y = MARGIN + HEADER
    for panel in large:
        _paste(canvas, panel, wide, (MARGIN, y), left, at, pixels.shape[1])
        y += wide.height + LABEL + GAP
    _legend(canvas, (MARGIN, y), left)
    for i, panel in enumerate(small):
        corner = start + i % columns * (cell[0] + GAP), MARGIN + HEADER + i // columns * (cell[1] + GAP)
        _paste(canvas, panel, narrow, corner, cell[0], at, pixels.shape[1])
    return canvas


def _paste(
    canvas: Image.Image,
    panel: Panel,
    picture: Image.Image,
    corner: tuple[int, int],
    room: int,
    at: tuple[int, int] | None,
    width: int,
) -> None:
    """A panel at its upper left corner, with a mark at the pixel `at` of an image `width` pixels wide, and its two lines."""
    x, y = corner
    shown = picture if panel.weights is None else Image.fromarray(heated(np.asarray(picture), panel.weights))
    if at is not None:
        shown, factor, mark = shown.copy(), picture.width / width, _mark(picture.width)
        centre = [round((p + 0.5) * factor - mark.width / 2) for p in at]
        shown.paste(mark, (centre[0], centre[1]), mark)
    canvas.paste(shown, corner)
    _lines(canvas, (x, y + picture.height + 4), (panel.name, panel.note), (14, 13), room)


def _lines(canvas: Image.Image, corner: tuple[int, int], lines: tuple[str, str], sizes: tuple[int, int], room: int) -> None:
    """Two lines of text, at most `room` pixels wide."""
    draw, y = ImageDraw.Draw(canvas), corner[1]
    for line, size, ink in zip(lines, sizes, (INK, MUTED), strict=True):
        font = ImageFont.load_default(size)
        draw.text((corner[0], y), fit(draw, line, font, room), ink, font)
        y += size + 4


def _mark(width: int) -> Image.Image:
    """A ring, RGBA, for a panel of this width. What is looked at stays visible in its middle."""
    radius = 4 + width // 100
    side = 2 * radius + 7
    mark = Image.new("RGBA", (side * FINE, side * FINE))
    draw, centre = ImageDraw.Draw(mark), side * FINE / 2
    draw.circle((centre, centre), (radius + 2.5) * FINE, None, HALO, round(5.5 * FINE))
    draw.circle((centre, centre), (radius + 1) * FINE, None, MARK, round(2.5 * FINE))
    return mark.reduce(FINE)


def _legend(canvas: Image.Image, corner: tuple[int, int], width: int) -> None:
    """The colours from 0 to a panel's largest weight, as they are over a grey image."""
    grey = np.full((BAR, width, 3), 128, np.uint8)
    canvas.paste(Image.fromarray(heated(grey, np.linspace(0, 1, width)[None])), corner)
    draw, small, below = ImageDraw.Draw(canvas), ImageFont.load_default(13), corner[1] + BAR + 4
    draw.text((corner[0], below), "0", MUTED, small)
    draw.text((corner[0] + width, below), "largest weight of each panel", MUTED, small, "ra")
