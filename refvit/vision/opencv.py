"""OpenCV's resize, warpAffine and getAffineTransform, bit by bit, without OpenCV.

The images are uint8 and the arithmetic on them is in whole numbers, bilinear and without antialiasing: of an image that
shrinks, some pixels are never looked at. Sizes are (height, width), where cv2 takes (width, height).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from refvit.errors import ConfigError, ImageError
from refvit.vision.pixels import MAX_PIXELS

if TYPE_CHECKING:
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]
    Floats = npt.NDArray[np.float64]

WEIGHT = 2**11  # resize: the weights of two neighbours are whole numbers with this sum
FINE = 2**10  # warp_affine: source positions are computed in this fraction of a pixel
COARSE = 2**5  # warp_affine: and then rounded to this one
SINGULAR = 100 * np.finfo(np.float64).eps  # affine_through: a smaller pivot is taken for 0
REACH = 2**31 // FINE  # warp_affine: pixels that OpenCV's int32 positions can count


def resize_bilinear(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """The image at another size, as cv2.resize with INTER_LINEAR gives it. uint8 (h, w, c) -> uint8 (*size, c).

    The same bits as OpenCV 4 and 5 on x86-64, for 1, 3 or 4 channels (of others, a few values of an image that is exactly
    halved differ by 1). Pixel centres are at half-integers, and what lies beyond the border repeats it.

    Raises ImageError if `pixels` is not such an array, ConfigError if `size` is not two whole numbers above 0.
    """
    _check_pixels(pixels)
    height, width = _check_size(size)
    columns, u = _taps(pixels.shape[1], width)
    rows, v = _taps(pixels.shape[0], height)
    total = np.zeros((height, width, pixels.shape[2]), np.int32)
    for i in (0, 1):
        source = pixels[rows[i]].astype(np.int32)
        across = source[:, columns[0]] * u[0][:, None] + source[:, columns[1]] * u[1][:, None]
        total += ((across >> 4) * v[i][:, None, None]) >> 16  # OpenCV drops these bits, and rounds only the sum
    return ((total + 2) >> 2).astype(np.uint8)


def warp_affine(pixels: Pixels, matrix: Floats, size: tuple[int, int]) -> Pixels:
    """The image moved by an affine map, as cv2.warpAffine of OpenCV 4 with INTER_LINEAR and a border of 0 gives it.

    pixels: uint8 (h, w, c)
    matrix: (2, 3), from source to target: target (x, y) = matrix @ (x, y, 1), with pixel centres at whole numbers
    returns uint8 (*size, c)

    OpenCV 4 rounds source positions to 1/32 of a pixel. OpenCV 5 no longer does. A position is off by at most
    1/64 + 1/1024 of a pixel an axis, so the grey values of the two differ by at most 9. In noise of black and white pixels
    8 was seen, in photographs 5, on average 0.1. OpenCV 4 is followed since the published results on COCO were made with
    versions 3 and 4. It takes images of less than 32767 pixels a side, this function any.

    Raises ImageError if `pixels` is not such an array. Raises ConfigError if `size` is not two whole numbers above 0, or if
    `matrix` is no (2, 3) of finite numbers, cannot be inverted, or reaches further than two million pixels.
    """
    _check_pixels(pixels)
    height, width = _check_size(size)
    inverse = _inverse(matrix, height, width)
    along = np.rint(inverse[:, 0, None] * np.arange(width) * FINE)  # (2, width)
    across = np.rint((inverse[:, 1, None] * np.arange(height) + inverse[:, 2, None]) * FINE)  # (2, height)
    fine = across[:, :, None].astype(np.int64) + along[:, None].astype(np.int64)  # (2, height, width)
    coarse = (fine + FINE // COARSE // 2) // (FINE // COARSE)
    (left, top), (right, down) = coarse // COARSE, coarse % COARSE
    total = np.full((height, width, pixels.shape[2]), COARSE**2 // 2, np.int64)
    for dx, u in ((0, COARSE - right), (1, right)):
        for dy, v in ((0, COARSE - down), (1, down)):
            total += _pixels_at(pixels, left + dx, top + dy) * (u * v)[:, :, None]
    return (total // COARSE**2).astype(np.uint8)


def affine_through(source: npt.ArrayLike, target: npt.ArrayLike) -> Floats:
    """The affine map, float64 (2, 3), that moves three points (3, 2) to three others, as cv2.getAffineTransform gives it.

    The order of the eliminations is OpenCV's, and so are the last bits. They matter: `warp_affine` rounds, and about one crop
    of a person in sixty has positions on the edge between two roundings. Raises ConfigError for points on a line.
    """
    a = np.zeros((6, 7))
    for i, ((x, y), moved) in enumerate(zip(np.asarray(source, np.float64), np.asarray(target, np.float64), strict=True)):
        a[2 * i, :3] = a[2 * i + 1, 3:6] = x, y, 1
        a[2 * i : 2 * i + 2, 6] = moved
    for i in range(6):
        pivot = i + int(np.abs(a[i:, i]).argmax())
        a[[i, pivot]] = a[[pivot, i]]
        if not abs(a[i, i]) > SINGULAR:
            raise ConfigError(f"affine_through: {source!r} are points on a line, expected a triangle; move one of them")
        a[i + 1 :] += (a[i + 1 :, i] * (-1 / a[i, i]))[:, None] * a[i]
    matrix = np.zeros(6)
    for i in reversed(range(6)):
        rest = a[i, 6]
        for k in range(i + 1, 6):
            rest -= a[i, k] * matrix[k]
        matrix[i] = rest / a[i, i]
    return matrix.reshape(2, 3)


def _taps(given: int, wanted: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32]]:
    """The two neighbours of each position along one axis: indices (2, wanted) and weights (2, wanted)."""
    position = ((np.arange(wanted) + 0.5) * (given / wanted) - 0.5).astype(np.float32)
    low = np.floor(position)
    part = position - low
    weights = np.rint(np.stack([1 - part, part]) * np.float32(WEIGHT)).astype(np.int32)
    return np.clip(np.stack([low, low + 1]).astype(np.intp), 0, given - 1), weights


def _inverse(matrix: Floats, height: int, width: int) -> Floats:
    """The map from a target of this size to the source, in OpenCV's order of operations."""
    given = np.asarray(matrix, np.float64)
    if given.shape != (2, 3) or not np.isfinite(given).all():
        raise ConfigError(f"warp_affine: {matrix!r} given, expected a matrix (2, 3) of finite numbers")
    (a, b, p), (c, d, q) = given.tolist()  # Python's numbers overflow in silence
    determinant = a * d - b * c
    if not 0 < abs(determinant) < math.inf:
        raise ConfigError(f"warp_affine: {matrix!r} has the determinant {determinant}; expected one that can be inverted")
    factor = 1.0 / determinant
    a, b, c, d = d * factor, b * -factor, c * -factor, a * factor
    p, q = -a * p - b * q, -c * p - d * q
    if not all(abs(u) * width + abs(v) * height + abs(w) < REACH for u, v, w in ((a, b, p), (c, d, q))):
        raise ConfigError(f"warp_affine: {matrix!r} reaches further than {REACH} pixels; expected a map near the image")
    return np.array([[a, b, p], [c, d, q]])


def _pixels_at(pixels: Pixels, x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The pixels at whole positions (H, W), 0 outside of the image: int64 (H, W, c)."""
    height, width = pixels.shape[:2]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    found = pixels[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)].astype(np.int64)
    return found * inside[:, :, None]


def _check_pixels(pixels: npt.NDArray[Any]) -> None:
    if pixels.ndim != 3 or pixels.size == 0 or pixels.dtype != np.uint8:
        given = f"an array of shape {pixels.shape} and dtype {pixels.dtype}"
        raise ImageError(f"{given}, where uint8 (h, w, c) with at least one pixel is expected; convert it first")


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    whole = [int(n) for n in size if isinstance(n, (int, np.integer)) and n > 0]
    if len(size) != 2 or len(whole) != 2 or whole[0] * whole[1] > MAX_PIXELS:
        raise ConfigError(f"size: {size!r} given, expected (height, width) above 0 with at most {MAX_PIXELS} pixels in all")
    return whole[0], whole[1]
