"""Pictures of answers, drawn with Pillow: people and boxes on the image itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from refvit.vision.drawing import INK, MARGIN, MUTED, PANEL, PAPER, fit, fitted
from refvit.vision.palettes import vivid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Box = tuple[float, float, float, float]

SIDE = 960  # pixels of the longer side: a preview has fewer, but text and thin lines need them
LIMB, JOINT, OUTLINE, FONT, PAD = 4, 5, 3, 17, 5  # pixels: a line, a radius, a line, text, space around it
FINE = 2  # slanted lines are drawn so many times larger, and reduced
LEFT, RIGHT, MIDDLE, HALO = "#ff9f1c", "#2ee6a8", "#4da3ff", "#10151a"


def draw_people(
    pixels: NDArray[np.uint8],
    keypoints: NDArray[np.floating],
    limbs: Sequence[tuple[int, int]],
    boxes: NDArray[np.floating],
    caption: str,
    *,
    joints: Sequence[str] | None = None,
    threshold: float = 0.2,
) -> Image.Image:
    """The image (h, w, 3) with the skeleton and box of each of n people.

    keypoints (n, j, 3): x and y of the joints in pixels, and their scores. Joints above `threshold` are drawn, and the limbs,
    pairs of joints, between two such. boxes (n, 4): x, y, width, height. What is on a person's left and right has a colour of
    its own if the names of the joints say so: "left_eye", "right ankle".
    """
    picture, factor = fitted(pixels, SIDE), SIDE / max(pixels.shape[:2])
    fine = picture.resize((FINE * picture.width, FINE * picture.height), Image.Resampling.NEAREST)
    draw, scale = ImageDraw.Draw(fine), FINE * factor
    for x, y, w, h in boxes:
        if box := _inside((x, y, x + w, y + h), scale, fine.size):
            draw.rectangle(box, None, HALO, 2 * FINE)
            draw.rectangle(box, None, PAPER, FINE)
    sides = [_side(name) for name in joints] if joints else [MIDDLE] * keypoints.shape[1]
    for person in keypoints:
        dots = {j: (x * scale, y * scale) for j, (x, y, score) in enumerate(person.tolist()) if score > threshold}
        lines = [(a, b) for a, b in limbs if a in dots and b in dots]
        for a, b in lines:
            draw.line((dots[a], dots[b]), HALO, FINE * (LIMB + 2))
        for at in dots.values():
            draw.circle(at, FINE * (JOINT + 1), HALO)
        for a, b in lines:
            draw.line((dots[a], dots[b]), sides[a] if sides[a] == sides[b] else MIDDLE, FINE * LIMB)
        for j, at in dots.items():
            draw.circle(at, FINE * JOINT, sides[j])
    return _captioned(fine.reduce(FINE), caption)


def draw_boxes(pixels: NDArray[np.uint8], rows: Sequence[tuple[str, float, Box, int]], caption: str) -> Image.Image:
    """The image (h, w, 3) with labelled boxes. `rows`, most important first: label, score in [0, 1], (x0, y0, x1, y1) in
    pixels, and the index of the class, which gives the colour. Boxes are cut at the border of the image.
    """
    picture, factor = fitted(pixels, SIDE), SIDE / max(pixels.shape[:2])
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT)
    found = [(label, score, _inside(box, factor, picture.size), _colour(index)) for label, score, box, index in rows]
    for _, _, box, colour in reversed(found):
        if box:
            draw.rectangle(box, None, colour, OUTLINE)
    labels: list[tuple[Box, str, tuple[int, ...]]] = []
    for label, score, box, colour in found:
        value = f" {score:.0%}"
        text = fit(draw, label, font, picture.width - 2 * PAD - draw.textlength(value, font)) + value
        width = draw.textlength(text, font) + 2 * PAD
        if box and width <= picture.width:
            place = _free(box, width, FONT + 2 * PAD, picture.size, [other for other, _, _ in labels])
            labels.append((place, text, colour))
    for place, text, colour in reversed(labels):
        draw.rounded_rectangle(place, 3, colour)
        light = np.dot(colour, (0.299, 0.587, 0.114)) > 128
        draw.text((place[0] + PAD, (place[1] + place[3]) / 2), text, INK if light else PAPER, font, "lm")
    return _captioned(picture, caption)


def _free(box: Box, width: float, height: float, size: tuple[int, int], taken: Sequence[Box]) -> Box:
    """Where the label of a box goes: over it, in it or under it, left or right, the first place that no other label covers."""
    x0, y0, x1, y1 = box
    xs = [min(x0, size[0] - width), max(0, x1 - width)]
    ys = [y for y in (y0 - height, y0, y1, y1 - height) if 0 <= y <= size[1] - height] or [0]
    places = [(x, y, x + width, y + height) for x in xs for y in ys]
    for place in places:
        if not any(place[0] < t[2] and t[0] < place[2] and place[1] < t[3] and t[1] < place[3] for t in taken):
            return place
    return places[0]


def _inside(box: Box, scale: float, size: tuple[int, int]) -> Box | None:
    """The box in pixels of the enlarged picture, cut at its border; None if nothing of it is inside."""
    (x0, x1), (y0, y1) = ((max(0.0, box[i] * scale), min(box[i + 2] * scale, size[i])) for i in (0, 1))
    return (x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)) if x0 < x1 and y0 < y1 else None


def _side(name: str) -> str:
    side = name.lower()
    return LEFT if side.startswith("left") else RIGHT if side.startswith("right") else MIDDLE


def _colour(index: int) -> tuple[int, ...]:
    return tuple(vivid(index + 1)[index].tolist())


def _captioned(picture: Image.Image, caption: str) -> Image.Image:
    canvas = Image.new("RGB", (max(picture.width, PANEL), picture.height + 2 * MARGIN + 8), PAPER)
    canvas.paste(picture, ((canvas.width - picture.width) // 2, 0))
    draw, small = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    draw.text((MARGIN, picture.height + MARGIN - 4), fit(draw, caption, small, canvas.width - 2 * MARGIN), MUTED, small)
    return canvas
