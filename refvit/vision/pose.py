"""Top-down pose estimation around the network: a person's box to the crop it sees, its heatmaps to joints in the image.

The steps are those of HRNet's published evaluation (Sun et al. 2019, arXiv:1902.09212), with its roundings to float32, so
that a crop has the same bits:

    frames = [frame(box, (256, 192)) for box in boxes]  # annotated boxes of COCO go through clean_box first
    crops = [crop(pixels, frame, (256, 192)) for frame in frames]
    ...  # normalise, run the network on the crops and on their mirror images
    heatmaps = (heatmaps + flip_heatmaps(mirrored, mirror_pairs(COCO), shift=True)) / 2
    joints = to_image(decode(heatmaps), frames, (64, 48))

Sizes are (height, width), points (x, y), boxes (x, y, width, height) with the left upper corner, all in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refvit.errors import ConfigError, ShapeError
from refvit.vision.opencv import affine_through, warp_affine

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Pixels = npt.NDArray[np.uint8]
    Size = tuple[int, int]

PADDING = 1.25  # a crop shows this much more than the box, so that limbs are not cut off
UNIT = 200  # pixels in which the published code counts a person's size
FAR = 2**24  # float32 counts pixels no further
SURE = 0.2  # joints with a higher score count for a person's score


class Frame(NamedTuple):
    """What part of an image a crop shows, in its pixels.

    centre: float32 (2,), x and y
    extent: float32 (2,), width and height
    """

    centre: npt.NDArray[np.float32]
    extent: npt.NDArray[np.float32]


def clean_box(box: npt.ArrayLike, size: Size) -> Floats:
    """A box (4,) cut to the image of this size, float64 (4,), as done to the annotated boxes of COCO.

    The last pixel counts as the border, so width and height become smaller by one even of a box inside of the image.
    Published results with detected boxes used those as they were. Raises ConfigError for a box outside of the image.
    """
    x, y, w, h = _check_box(box)
    left, top = max(0.0, x), max(0.0, y)
    right, bottom = min(size[1] - 1, left + max(0.0, w - 1)), min(size[0] - 1, top + max(0.0, h - 1))
    if right < left or bottom < top:
        raise ConfigError(f"box {(x, y, w, h)} lies outside of the image of {size[1]} x {size[0]} pixels; expected an overlap")
    return np.array([left, top, right - left, bottom - top], np.float64)


def frame(box: npt.ArrayLike, size: Size, padding: float = PADDING) -> Frame:
    """What is cropped for a box (4,).

    The box grows about its centre to the aspect ratio of `size`, the network's input, and then by `padding`.
    Raises ConfigError for a box that is no box, or a point.
    """
    x, y, w, h = _check_box(box)
    if max(w, h) == 0:
        raise ConfigError(f"box {(x, y, w, h)} is a single point; expected (x, y, width, height) with a size above 0")
    centre = np.array([x + w * 0.5, y + h * 0.5], np.float32)
    aspect = size[1] / size[0]
    if w > aspect * h:
        h = w / aspect
    else:
        w = h * aspect
    # The detour through UNIT changes the last bit.
    scale = np.array([w / UNIT, h / UNIT], np.float32) * np.float32(padding)
    return Frame(centre, scale * np.float32(UNIT))


def area(frame: Frame) -> float:
    """Width times height in square pixels: what the suppression of duplicates takes for the area of a person."""
    return float(frame.extent.prod())


def affine(frame: Frame, size: Size) -> Floats:
    """The map from the image to a crop of this size: float64 (2, 3), crop (x, y) = matrix @ (x, y, 1).

    The centre goes to (w / 2, h / 2), and both axes are scaled by w / extent[0], but for rounding: the published code solves
    for the map that moves three points, which it has in float32. So is it done here, for the same bits.
    """
    return affine_through(_corner(frame.centre, frame.extent[0]), _corner(np.array(size[::-1]) / 2, size[1]))


def crop(pixels: Pixels, frame: Frame, size: Size) -> Pixels:
    """What the network sees of an image: uint8 (h, w, 3) -> uint8 (*size, 3), black outside of the image."""
    return warp_affine(pixels, affine(frame, size), size)


def to_image(joints: npt.NDArray[Any], frames: Sequence[Frame], size: Size) -> Floats:
    """Joints (n, j, 3) in pixels of heatmaps of this size -> the same in pixels of the image, float64. n frames.

    The inverse of `affine` with the size of a heatmap: x = centre + (x - w / 2) extent[0] / w. The scores stay.
    """
    moved = np.array(joints, np.float64)
    for person, frame in zip(moved, frames, strict=True):
        matrix = affine_through(_corner(np.array(size[::-1]) / 2, size[1]), _corner(frame.centre, frame.extent[0]))
        person[:, :2] = person[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    return moved


def flip_heatmaps(heatmaps: npt.NDArray[Any], pairs: Sequence[tuple[int, int]], shift: bool) -> npt.NDArray[Any]:
    """Heatmaps (n, j, h, w) of mirrored crops as those of the crops: mirrored back, left and right joints exchanged.

    shift: move the maps one column to the right (the first column stays). A mirrored input of 4 w columns and a map of w
        do not have the same axis: each map pixel stands for the first of its 4 input pixels, in the mirror for the last.
        These are 3/4 of a map pixel apart. The published rule moves by one.
    """
    order = np.arange(heatmaps.shape[1])
    for i, k in pairs:
        order[[i, k]] = k, i
    flipped = heatmaps[:, order, :, ::-1]
    return np.concatenate([flipped[..., :1], flipped[..., :-1]], axis=-1) if shift else flipped


def decode(heatmaps: npt.NDArray[Any]) -> Floats:
    """Heatmaps (n, j, h, w) -> float64 (n, j, 3): x and y in heatmap pixels, and the score, the map's largest value.

    The place is that of the first maximum, moved by a quarter of a pixel on each axis towards the larger neighbour, unless
    it is in the first two rows or columns or in the last. That the second is among them is the published rule. A map without
    a positive value has its joint at (0, 0). MMPose's refinement treats the axes apart: its joints near borders can differ.
    """
    if heatmaps.ndim != 4 or 0 in heatmaps.shape[2:]:
        raise ShapeError(f"decode: heatmaps (n, joints, h, w) of at least one pixel expected, got {heatmaps.shape}")
    n, j, h, w = heatmaps.shape
    flat = heatmaps.reshape(n, j, h * w)
    best = flat.argmax(axis=2)
    score = np.take_along_axis(flat, best[:, :, None], axis=2)[:, :, 0]
    y, x = np.divmod(np.where(score > 0, best, 0), w)
    joints = np.stack([x, y, score], axis=2, dtype=np.float64)
    i, k = np.nonzero((x > 1) & (x < w - 1) & (y > 1) & (y < h - 1))
    x, y = x[i, k], y[i, k]
    joints[i, k, 0] += 0.25 * np.sign(heatmaps[i, k, y, x + 1] - heatmaps[i, k, y, x - 1])
    joints[i, k, 1] += 0.25 * np.sign(heatmaps[i, k, y + 1, x] - heatmaps[i, k, y - 1, x])
    return joints


def person_scores(joints: npt.NDArray[Any], box_scores: npt.NDArray[Any], threshold: float = SURE) -> Floats:
    """Scores (n,): the mean of a person's joint scores above `threshold`, 0 without any, times the box's score.

    joints: (n, j, 3), of which the last column counts
    box_scores: (n,), of the detector
    """
    scores = joints[:, :, 2]
    sure = scores > threshold
    total = np.where(sure, scores, 0).sum(axis=1, dtype=np.float64)
    return total / np.maximum(sure.sum(axis=1), 1) * box_scores


def oks(
    joints: npt.NDArray[Any],
    others: npt.NDArray[Any],
    areas: npt.ArrayLike,
    sigmas: Sequence[float],
    visible: npt.NDArray[np.bool_] | None = None,
) -> Floats:
    """Object keypoint similarity of persons, in [0, 1]: the mean over joints of exp(-d^2 / (2 area (2 sigma)^2)).

    joints, others: (..., j, 2 or more), image pixels; leading axes broadcast
    areas: (...), square pixels: the annotated person's in an evaluation, the mean of both persons' between two detections
    sigmas: (j,), of `joints.sigmas`
    visible: (..., j), joints to average over, all if None; the similarity is 0 where there are none
    returns (...)
    """
    squares = ((joints[..., :2].astype(np.float64) - others[..., :2]) ** 2).sum(axis=-1)
    variances = (2 * np.asarray(sigmas, np.float64)) ** 2
    near = np.exp(-squares / variances / (np.asarray(areas, np.float64) + np.spacing(1))[..., None] / 2)
    if visible is None:
        return near.mean(axis=-1)
    return (near * visible).sum(axis=-1) / np.maximum(visible.sum(axis=-1), 1)


def oks_nms(
    joints: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    areas: npt.NDArray[Any],
    threshold: float,
    sigmas: Sequence[float],
) -> npt.NDArray[np.intp]:
    """Indices of the persons that remain when of any two with a similarity above `threshold` only the better is kept.

    joints: (n, j, 2 or more), image pixels
    scores: (n,); of equal ones the first is the better
    areas: (n,), of the frames
    threshold: 0.9 in published results
    sigmas: (j,), of `joints.sigmas`
    returns (m,), by falling score
    """
    left = np.argsort(-scores, kind="stable")
    kept = []
    while left.size:
        best, left = left[0], left[1:]
        kept.append(best)
        left = left[oks(joints[best], joints[left], (areas[best] + areas[left]) / 2, sigmas) <= threshold]
    return np.array(kept, np.intp)


def _corner(centre: npt.NDArray[Any], width: float | np.float32) -> npt.NDArray[np.float32]:
    """Three points, float32 (3, 2): the centre, half a width above it, and half a width to the left of that."""
    x, y = np.float32(centre[0]), np.float32(centre[1])
    top = y - np.float32(width) * np.float32(0.5)
    return np.array([[x, y], [x, top], [x - (y - top), top]])


def _check_box(box: npt.ArrayLike) -> list[float]:
    given = np.asarray(box, np.float64)
    if given.shape != (4,) or not np.abs(given).max() < FAR or given[2:].min() < 0:
        raise ConfigError(f"box {box!r} given, expected (x, y, width, height) in pixels below {FAR}, with a size of 0 or more")
    values: list[float] = given.tolist()
    return values
