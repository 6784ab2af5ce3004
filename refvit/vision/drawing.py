"""Pictures of answers, drawn with Pillow."""

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
INK, MUTED, BAR, TRACK, PAPER = "#1b1f24", "#6a737d", "#2f6fde", "#e8ebef", "#ffffff"


def draw_classes(pixels: NDArray[np.uint8], rows: Sequence[tuple[str, float]], caption: str) -> Image.Image:
    """The image (h, w, 3) beside one bar a class; `rows` holds names and probabilities in [0, 1], best first."""
    picture = Image.fromarray(pixels)
    factor = PREVIEW / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    picture = picture.resize(size, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC)
    panel_height = 2 * MARGIN + ROW * len(rows) + 20
    canvas = Image.new("RGB", (picture.width + PANEL, max(picture.height, panel_height)), PAPER)
    canvas.paste(picture, (0, (canvas.height - picture.height) // 2))
    draw = ImageDraw.Draw(canvas)
    text, small = ImageFont.load_default(17), ImageFont.load_default(13)
    left, right = picture.width + MARGIN, canvas.width - MARGIN
    y = MARGIN
    for name, probability in rows:
        value = f"{probability:.1%}"
        room = right - left - draw.textlength(value, text) - 10
        draw.text((left, y), _fit(draw, name, text, room), INK, text)
        draw.text((right - draw.textlength(value, text), y), value, INK, text)
        top = y + 25
        draw.rounded_rectangle((left, top, right, top + 6), 3, TRACK)
        if (end := left + round((right - left) * probability)) > left + 2:
            draw.rounded_rectangle((left, top, end, top + 6), 3, BAR)
        y += ROW
    draw.text((left, canvas.height - MARGIN - 12), _fit(draw, caption, small, right - left), MUTED, small)
    return canvas


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, room: float) -> str:
    """The text, cut with an ellipsis so that it is at most `room` pixels wide."""
    text = " ".join(text.split())
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(text + "...", font) > room:
        text = text[:-1]
    return text.rstrip(" ,") + "..."
