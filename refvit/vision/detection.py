"""From SSD's raw outputs to boxes (Liu et al. 2016), as MobileViT's two public releases do it.

A detector gives class logits and offsets for a fixed set of anchors. `anchors` lists them, `decode` turns offsets into boxes,
`detect` picks what is shown. Boxes are relative, 0..1 of the image's width and height, until `to_image`. All in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refvit.errors import ConfigError, ShapeError
from refvit.graph.ir import Array
from refvit.ops import softmax

STRIDES = (16, 32, 64, 128, 256)  # of the maps; the sixth is 1x1 whatever the input
RATIOS = ((2, 3), (2, 3), (2, 3), (2, 3), (2, 3), (2,))  # width by height of the flat anchors of each map
SMALLEST, LARGEST = 0.1, 1.05  # scales of the first map and of the one after the last
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
IOU = 0.5  # of two boxes of a class, above which the less probable one goes


@dataclass(frozen=True)
class Rule:
    """What is kept: None is no limit.

    threshold: probability that a box must exceed
    candidates: most probable boxes of each class that enter NMS
    per_class: boxes of each class after it
    per_image: boxes of all classes after it; if given, the boxes of an image are sorted by probability, not class by class
    """

    threshold: float
    candidates: int | None
    per_class: int | None
    per_image: int | None


RULES = {
    "cvnets-0.1": Rule(0.05, None, 200, None),  # the release with the published weights
    "cvnets-head": Rule(0.01, 400, None, 200),
}


class Detections(NamedTuple):
    """boxes (m, 4) as x0 y0 x1 y1; scores (m,), probabilities; classes (m,), columns of the logits, so never 0, background."""

    boxes: Array
    scores: Array
    classes: Array


def map_sizes(size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """(h, w) of the six maps for an input of `size` (h, w): every stride-2 layer halves and rounds up, the last map is 1x1."""
    h, w = size
    if h < 1 or w < 1:
        raise ShapeError(f"map_sizes: an input of at least 1x1 expected, got {h}x{w}")
    return (*((-(-h // stride), -(-w // stride)) for stride in STRIDES), (1, 1))


def anchors(maps: Sequence[tuple[int, int]]) -> Array:
    """The anchors of six maps (h, w), as `map_sizes` gives them: (n, 4), centre x and y, width and height, all within 0..1.

    Map by map, row by row; at each pixel a small square, a large one, and the small one stretched to each ratio, flat and
    upright. The order is that of the outputs of `mobilevit_ssdlite`.
    """
    if len(maps) != len(RATIOS):
        raise ShapeError(f"anchors: {len(RATIOS)} maps expected, got {len(maps)}")
    scales = np.linspace(SMALLEST, LARGEST, len(RATIOS) + 1)
    found = []
    for i, (h, w) in enumerate(maps):
        small, large = scales[i], math.sqrt(scales[i] * scales[i + 1])
        sizes = [(small, small), (large, large)]
        for root in map(math.sqrt, RATIOS[i]):
            sizes += [(small * root, small / root), (small / root, small * root)]
        boxes = np.empty((h, w, len(sizes), 4))
        boxes[..., 0] = (np.arange(w)[None, :, None] + 0.5) / w
        boxes[..., 1] = (np.arange(h)[:, None, None] + 0.5) / h
        boxes[..., 2:] = sizes
        found.append(boxes.reshape(-1, 4))
    return np.clip(np.concatenate(found), 0, 1)


def decode(offsets: Array, anchors: Array) -> Array:
    """Corners x0 y0 x1 y1 (n, 4) from the offsets (n, 4) of anchors (n, 4) in centre form (the inverse of equation 2).

    centre = 0.1 offset * size of the anchor + its centre; size = exp(0.2 offset) * size of the anchor.
    """
    if offsets.ndim != 2 or offsets.shape[1] != 4 or offsets.shape != anchors.shape:
        raise ShapeError(f"decode: offsets and anchors of one shape (n, 4) expected, got {offsets.shape} and {anchors.shape}")
    centre = offsets[:, :2] * CENTRE_VARIANCE * anchors[:, 2:] + anchors[:, :2]
    with np.errstate(over="ignore"):  # an infinite box is the right limit, and is clipped to the image
        half = np.exp(offsets[:, 2:] * SIZE_VARIANCE) * anchors[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def nms(boxes: Array, scores: Array, threshold: float) -> Array:
    """Greedy non-maximum suppression: indices of the boxes that stay, best first, ties by index. As torchvision.ops.nms.

    The best box stays and suppresses all whose IoU with it exceeds `threshold`, then the best of the others, and so on.
    boxes (n, 4) corners, scores (n,); the arithmetic is in their dtype.
    """
    if boxes.shape != (len(scores), 4):
        raise ShapeError(f"nms: boxes (n, 4) and scores (n,) expected, got {boxes.shape} and {scores.shape}")
    order = np.argsort(-scores, kind="stable")
    keep = []
    while order.size:
        best, rest = order[0], order[1:]
        keep.append(best)
        # A float64 scalar, so that float32 values are compared with 0.3 itself and not with its neighbour in float32.
        order = rest[~(iou(boxes[best], boxes[rest]) > np.float64(threshold))]
    return np.array(keep, np.intp)


def iou(box: Array, boxes: Array) -> Array:
    """Intersection over union of one box (4,) with boxes (n, 4), all as corners; NaN, which exceeds nothing, for 0/0."""
    x0, y0, x1, y1 = boxes.T
    with np.errstate(invalid="ignore"):
        width = np.maximum(np.minimum(box[2], x1) - np.maximum(box[0], x0), 0)
        overlap = width * np.maximum(np.minimum(box[3], y1) - np.maximum(box[1], y0), 0)
        return overlap / ((box[2] - box[0]) * (box[3] - box[1]) + (x1 - x0) * (y1 - y0) - overlap)


def detect(scores: Array, offsets: Array, anchors: Array, *, rule: str, threshold: float | None = None) -> Detections:
    """What is in the image, from the raw outputs for one: class logits (n, classes), offsets (n, 4), and the anchors (n, 4).

    rule: "cvnets-0.1" or "cvnets-head", see RULES. In the former boxes come class by class, each class best first.
    threshold: probability that a box must exceed, instead of the rule's. The authors measured mAP at 0.01.

    ShapeError or ConfigError for arrays that do not fit each other, an unknown rule, and values that are not finite.
    """
    if rule not in RULES:
        raise ConfigError(f"detect: no rule {rule!r}; known are {', '.join(RULES)}")
    if scores.ndim != 2 or scores.shape[1] < 2 or len(scores) != len(anchors):
        raise ShapeError(f"detect: logits ({len(anchors)}, classes) expected, one row an anchor, got {scores.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(offsets).all()):
        raise ConfigError("detect: NaN or infinite values in the network's output; try float64, or get the weights again")
    limits = RULES[rule]
    threshold = limits.threshold if threshold is None else threshold
    boxes = decode(offsets.astype(np.float64), anchors)
    probabilities = softmax(scores.astype(np.float64), axis=1)
    picked: list[tuple[Array, int]] = []
    for c in range(1, scores.shape[1]):
        p = probabilities[:, c]
        found = np.flatnonzero(p > threshold)
        found = found[np.argsort(-p[found], kind="stable")][: limits.candidates]
        picked.append((found[nms(boxes[found], p[found], IOU)][: limits.per_class], c))
    rows = np.concatenate([found for found, _ in picked])
    classes = np.repeat([c for _, c in picked], [len(found) for found, _ in picked])
    if limits.per_image is not None:
        best = np.argsort(-probabilities[rows, classes], kind="stable")[: limits.per_image]
        rows, classes = rows[best], classes[best]
    return Detections(boxes[rows], probabilities[rows, classes], classes)


def to_image(boxes: Array, size: tuple[int, int]) -> Array:
    """Relative boxes (m, 4) in pixels of an image of `size` (h, w), clipped to it."""
    scale = np.array([*size[::-1], *size[::-1]], np.float64)
    return np.clip(boxes * scale, 0, scale)
