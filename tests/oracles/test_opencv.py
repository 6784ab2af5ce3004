"""Against OpenCV itself, where it is installed: random images, sizes and maps.

Resizing gives the bits of OpenCV 4 and 5. Warping gives those of OpenCV 4 (compared: 4.12). OpenCV 5 computes positions more
exactly, so that there the bound which `warp_affine` states is tested.
"""

import math

import numpy as np
import pytest

from refvit.vision import pose
from refvit.vision.opencv import affine_through, resize_bilinear, warp_affine

cv2 = pytest.importorskip("cv2", reason="cv2 is not installed: no OpenCV to compare with")

MAJOR = int(cv2.__version__.split(".")[0])
LARGEST = 0 if MAJOR < 5 else 9  # difference in grey levels, see warp_affine
SIDES = (3, 20, 100, 400)


def image(rng, height, width):
    """Noise of all grey values, or of black and white alone, with one or three channels."""
    pixels = rng.integers(0, 256, (height, width, int(rng.choice([1, 3]))), dtype=np.uint8)
    return pixels if rng.random() < 0.7 else (pixels > 127).astype(np.uint8) * 255


def size(rng):
    return tuple(int(n) for n in rng.integers(1, rng.choice(SIDES) + 1, 2))


def warp(pixels, matrix, size):
    return cv2.warpAffine(pixels, matrix, size[::-1], flags=cv2.INTER_LINEAR).reshape(*size, -1)


def difference(a, b):
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize("seed", range(4))
def test_resize(seed):
    rng = np.random.default_rng(seed)
    for i in range(400):
        given, wanted = size(rng), size(rng)
        if i % 10 == 0:  # whole factors take another path through OpenCV
            given = tuple(n * (2 + i % 3) for n in wanted)
        pixels = image(rng, *given)
        expected = cv2.resize(pixels, wanted[::-1], interpolation=cv2.INTER_LINEAR).reshape(*wanted, -1)
        np.testing.assert_array_equal(resize_bilinear(pixels, wanted), expected, err_msg=f"{pixels.shape} -> {wanted}")


@pytest.mark.parametrize("seed", range(4))
def test_warp(seed):
    rng = np.random.default_rng(seed)
    worst = 0
    for i in range(400):
        (h, w), wanted = size(rng), size(rng)
        angle, scale = (0 if i % 3 else rng.uniform(-math.pi, math.pi)), math.exp(rng.uniform(-2, 2))
        linear = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) * scale
        if i % 7 == 0:
            linear = linear @ [[1, rng.uniform(-1, 1)], [0, rng.choice([-1, 0.3])]]
        away = rng.normal(0, max(wanted) / 2, 2) if i % 2 else 0  # so that some leave the target
        move = np.array(wanted[::-1]) / 2 - linear @ (w / 2, h / 2) + away
        if i % 5 == 0:
            linear, move = np.eye(2), np.round(move * 64) / 64  # ties
        matrix, pixels = np.column_stack([linear, move]), image(rng, h, w)
        worst = max(worst, difference(warp_affine(pixels, matrix, wanted), warp(pixels, matrix, wanted)))
    assert worst <= LARGEST


def test_maps_through_three_points():
    rng = np.random.default_rng(0)
    for _ in range(500):
        source, target = rng.uniform(-300, 600, (2, 3, 2)).astype(np.float32)
        np.testing.assert_array_equal(affine_through(source, target), cv2.getAffineTransform(source, target))


def test_crops_of_persons():
    """The recipe of HRNet's repository, written out with OpenCV: three points, their map, the warp."""
    rng = np.random.default_rng(0)
    pixels = image(rng, 427, 640)
    worst = 0
    for i in range(300):
        width, height = np.exp(rng.uniform(1, 6.3, 2))
        box = [*rng.uniform(-30, 600, 2), width, height]
        if i % 2:
            box = [round(v, 2) for v in box]
        x, y, w, h = box
        centre = np.float32([x + w / 2, y + h / 2])
        scale = np.float32([max(w, h * 192 / 256) / 200])[0] * np.float32(1.25) * np.float32(200)
        top = np.float32(centre[1] - scale / 2)
        source = np.float32([centre, [centre[0], top], [centre[0] - (centre[1] - top), top]])
        matrix = cv2.getAffineTransform(source, np.float32([[96, 128], [96, 32], [0, 32]]))
        frame = pose.frame(box, (256, 192))
        np.testing.assert_array_equal(pose.affine(frame, (256, 192)), matrix)
        worst = max(worst, difference(pose.crop(pixels, frame, (256, 192)), warp(pixels, matrix, (256, 192))))
    assert worst <= LARGEST
