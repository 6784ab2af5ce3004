"""Pictures of answers, drawn with Pillow: an image beside what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from refvit.vision.pixels import PREVIEW

if TYPE_CHECKING:
    from numpy.typing import NDArray

PANEL = 340
ROW = 44
MARGIN = 16
SWATCH = 14
ALPHA = 0.55  # of the colours over the image
INK, MUTED, BAR, TRACK, PAPER = "#1b1f24", "#6a737d", "#2f6fde", "#e8ebef", "#ffffff"


def draw_classes(pixels: NDArray[np.uint8], rows: Sequence[tuple[str, float]], caption: str) -> Image.Image:
    """The image (h, w, 3) beside one bar a class; `rows` holds names and probabilities in [0, 1], best first."""
    return _panel(pixels, [(name, value, None) for name, value in rows], caption)


def draw_map(
    pixels: NDArray[np.uint8],
    label_map: NDArray[np.integer],
    colours: NDArray[np.uint8],
    rows: Sequence[tuple[str, float, tuple[int, int, int]]],
    caption: str,
) -> Image.Image:
    """The image (h, w, 3) under the colours of its map (h, w), beside a legend.

    colours (k, 3) are by class; what is no class, below 0 or from k on, is left as it is. `rows` of the legend hold names,
    fractions of the image in [0, 1] and colours, largest first.
    """
    known = (label_map >= 0) & (label_map < len(colours))
    edges = np.zeros_like(known)
    edges[:, 1:] |= label_map[:, 1:] != label_map[:, :-1]
    edges[1:] |= label_map[1:] != label_map[:-1]
    mixed = (1 - ALPHA) * pixels + ALPHA * colours[np.where(known, label_map, 0)]
    mixed = np.where(edges[..., None], (mixed + 255) / 2, mixed)
    painted = np.where(known[..., None], np.round(mixed), pixels).astype(np.uint8)
    return _panel(painted, rows, caption)


def _panel(
    pixels: NDArray[np.uint8], rows: Sequence[tuple[str, float, tuple[int, int, int] | None]], caption: str
) -> Image.Image:
    """The image beside a row for each name and number in [0, 1]. A row with a colour has a swatch and a bar of it."""
    picture = fitted(pixels, PREVIEW)
    panel_height = 2 * MARGIN + ROW * len(rows) + 20
    canvas = Image.new("RGB", (picture.width + PANEL, max(picture.height, panel_height)), PAPER)
    canvas.paste(picture, (0, (canvas.height - picture.height) // 2))
    draw = ImageDraw.Draw(canvas)
    text, small = ImageFont.load_default(17), ImageFont.load_default(13)
    left, right = picture.width + MARGIN, canvas.width - MARGIN
    y = MARGIN
    for name, share, colour in rows:
        value = f"{share:.1%}"
        start = left if colour is None else left + SWATCH + 8
        room = right - start - draw.textlength(value, text) - 10
        if colour is not None:
            draw.rounded_rectangle((left, y + 4, left + SWATCH, y + 4 + SWATCH), 3, colour)
        draw.text((start, y), fit(draw, name, text, room), INK, text)
        draw.text((right - draw.textlength(value, text), y), value, INK, text)
        top = y + 25
        draw.rounded_rectangle((left, top, right, top + 6), 3, TRACK)
        if (end := left + round((right - left) * share)) > left + 2:
            draw.rounded_rectangle((left, top, end, top + 6), 3, BAR if colour is None else colour)
        y += ROW
    draw.text((left, canvas.height - MARGIN - 12), fit(draw, caption, small, right - left), MUTED, small)
    return canvas


def fitted(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    """The image (h, w, 3) with `side` pixels on its longer side."""
    picture = Image.fromarray(pixels)
    factor = side / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC)


def fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, room: float) -> str:
    """The text, cut with an ellipsis so that it is at most `room` pixels wide."""
    text = " ".join(text.split())
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(text + "...", font) > room:
        text = text[:-1]
    return text.rstrip(" ,") + "..."
