"""Preprocess against an independent write-up of Pillow's integer resampling and of timm's evaluation transform."""

import json
import math

import numpy as np
import pytest

from refvit.errors import ConfigError, ImageError
from refvit.vision.preprocess import Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = {"crop": None, "interpolation": "bicubic", "mean": (0, 0, 0), "std": (1, 1, 1), "channel_order": "rgb"}
EVAL = {"resize": 24, "crop": 20, "interpolation": "bicubic", "mean": MEAN, "std": STD, "channel_order": "rgb"}


def picture(height, width, seed=0):
    return np.random.default_rng([seed, height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def triangle(x):
    return max(0.0, 1.0 - abs(x))


def cubic(x, a=-0.5):
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


KERNELS = {"bilinear": (triangle, 1), "bicubic": (cubic, 2)}


def resample_rows(image, size, interpolation):
    """Pillow's pass along axis 0: 22-bit integer weights, widened by the scale when shrinking, rounded to uint8."""
    if image.shape[0] == size:
        return image
    kernel, radius = KERNELS[interpolation]
    scale = image.shape[0] / size
    widened = max(scale, 1.0)
    out = np.empty((size, *image.shape[1:]), np.uint8)
    for i in range(size):
        centre = (i + 0.5) * scale
        low = max(0, int(centre - radius * widened + 0.5))
        high = min(image.shape[0], int(centre + radius * widened + 0.5))
        weights = [kernel((j - centre + 0.5) / widened) for j in range(low, high)]
        total = np.full(image.shape[1:], 1 << 21, np.int64)
        for j, weight in zip(range(low, high), weights, strict=True):
            exact = weight / sum(weights) * (1 << 22)
            total += image[j].astype(np.int64) * int(exact + math.copysign(0.5, exact))
        out[i] = np.clip(total >> 22, 0, 255)
    return out


def pillow_resize(image, height, width, interpolation, *, rows_first=False):
    if rows_first:
        image = resample_rows(image, height, interpolation)
    across = resample_rows(image.transpose(1, 0, 2), width, interpolation).transpose(1, 0, 2)
    return resample_rows(across, height, interpolation)


def evaluation(image, side, crop, interpolation):
    """Shorter side, centre crop with black around small images, ToTensor, Normalize: pixel by pixel."""
    height, width = image.shape[:2]
    if height <= width:
        size = side, int(side * width / height)
    else:
        size = int(side * height / width), side
    image = pillow_resize(image, *size, interpolation)
    out = np.empty((3, crop, crop), np.float32)
    starts = [-((crop - n) // 2) if n < crop else round((n - crop) / 2.0) for n in size]
    for y in range(crop):
        for x in range(crop):
            row, column = y + starts[0], x + starts[1]
            inside = 0 <= row < size[0] and 0 <= column < size[1]
            for c in range(3):
                value = np.float32(image[row, column, c] if inside else 0) / np.float32(255)
                out[c, y, x] = (value - np.float32(MEAN[c])) / np.float32(STD[c])
    return out


@pytest.mark.parametrize("interpolation", KERNELS)
@pytest.mark.parametrize(
    ("given", "size"),
    [
        ((40, 30), (17, 11)),
        ((9, 14), (31, 40)),
        ((20, 33), (33, 20)),
        ((50, 7), (3, 7)),
        ((1, 1), (5, 4)),
        ((64, 90), (2, 1)),
    ],
)
def test_resize_is_pillows_bit_by_bit(interpolation, given, size):
    image = picture(*given)
    out = Preprocess(**{**PLAIN, "resize": size, "interpolation": interpolation})(image)
    expected = pillow_resize(image, *size, interpolation)
    np.testing.assert_array_equal(out, expected.transpose(2, 0, 1).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("interpolation", KERNELS)
def test_a_squash_of_the_height_is_one_of_pillows_two_orders(interpolation):
    # Since Pillow 13 the rows of some tall images are resampled first. It matters, since each pass rounds to uint8.
    image = picture(33, 20)
    out = Preprocess(**{**PLAIN, "resize": (20, 33), "interpolation": interpolation})(image)
    orders = [pillow_resize(image, 20, 33, interpolation, rows_first=first) for first in (False, True)]
    assert any(np.array_equal(out, o.transpose(2, 0, 1).astype(np.float32) / np.float32(255)) for o in orders)
    assert not np.array_equal(*orders)


@pytest.mark.parametrize("interpolation", KERNELS)
@pytest.mark.parametrize(
    ("given", "side", "crop"),
    # crop offsets 1.5 -> 2, 0.5 -> 0, 2.5 -> 2; a size that stays; images smaller than the crop on one or both sides
    [
        ((37, 53), 23, 20),
        ((53, 37), 21, 20),
        ((30, 77), 25, 20),
        ((24, 31), 24, 20),
        ((10, 41), 9, 16),
        ((13, 11), 9, 20),
    ],
)
def test_the_evaluation_transform(interpolation, given, side, crop):
    image = picture(*given)
    preprocess = Preprocess(**{**EVAL, "resize": side, "crop": crop, "interpolation": interpolation})
    out = preprocess(image)
    np.testing.assert_array_equal(out, evaluation(image, side, crop, interpolation))
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    assert out.flags.writeable
    assert out.shape[1:] == preprocess.output_size(*given) == preprocess.input_size == (crop, crop)


def test_longer_side_is_rounded_down():
    preprocess = Preprocess(**{**PLAIN, "resize": 10})
    assert preprocess.output_size(30, 50) == (10, 16)
    assert preprocess.output_size(50, 30) == (16, 10)
    assert preprocess.output_size(7, 7) == (10, 10)
    assert preprocess(picture(30, 50)).shape == (3, 10, 16)
    assert preprocess.input_size is None


def test_padding_puts_the_odd_pixel_right_and_below():
    image = np.full((2, 1, 3), 255, np.uint8)
    out = Preprocess(**{**PLAIN, "resize": None, "crop": (5, 4)})(image)
    expected = np.zeros((5, 4))
    expected[1:3, 1] = 1  # 1 above, 2 below; 1 left, 2 right
    np.testing.assert_array_equal(out[0], expected)


def test_crop_of_one_side_only():
    image = picture(3, 9)
    out = Preprocess(**{**PLAIN, "resize": None, "crop": (5, 4)})(image)
    np.testing.assert_array_equal(out[:, 1:4], image[:, 2:6].transpose(2, 0, 1) / np.float32(255))
    assert not out[:, [0, 4]].any()


def test_no_resize_keeps_every_value():
    image = picture(4, 5)
    before = image.copy()
    image.flags.writeable = False
    preprocess = Preprocess(**{**PLAIN, "resize": None})
    out = preprocess(image)
    np.testing.assert_array_equal(out, image.transpose(2, 0, 1) / np.float32(255))
    out += 1
    np.testing.assert_array_equal(image, before)
    assert preprocess.input_size is None
    assert preprocess.output_size(4, 5) == (4, 5)
    np.testing.assert_array_equal(preprocess(image[::-1, ::2]), preprocess(image[::-1, ::2].copy()))


def test_channel_order_turns_before_the_mean():
    image = np.array([[[255, 51, 0]]], np.uint8)
    bgr = {**PLAIN, "resize": None, "channel_order": "bgr", "mean": (0.5, 0.25, 0.75), "std": (0.5, 0.25, 0.125)}
    np.testing.assert_allclose(Preprocess(**bgr)(image)[:, 0, 0], [-1, (0.2 - 0.25) / 0.25, (1 - 0.75) / 0.125], rtol=1e-6)


def test_enlarge_comes_after_the_crop():
    image = picture(12, 16)
    preprocess = Preprocess(**{**PLAIN, "resize": None, "crop": 8, "enlarge": (20, 18), "interpolation": "bilinear"})
    expected = pillow_resize(image[2:10, 4:12], 20, 18, "bilinear").transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_array_equal(preprocess(image), expected)
    assert preprocess.input_size == preprocess.output_size(12, 16) == (20, 18)
    by_side = preprocess.replace(crop=(8, 10), enlarge=16)
    assert by_side.input_size == (16, 20) == by_side(image).shape[1:]


def test_nearest_and_box_by_hand():
    image = picture(4, 4)
    nearest = Preprocess(**{**PLAIN, "resize": (8, 8), "interpolation": "nearest"})(image)
    np.testing.assert_array_equal(nearest, image.repeat(2, 0).repeat(2, 1).transpose(2, 0, 1) / np.float32(255))
    even = np.full((4, 4, 3), 10, np.uint8)
    even[::2, ::2] = 50
    box = Preprocess(**{**PLAIN, "resize": (2, 2), "interpolation": "box"})(even)
    np.testing.assert_array_equal(box, np.full((3, 2, 2), 20, np.float32) / np.float32(255))  # mean of 50, 10, 10, 10
    flat = Preprocess(**{**PLAIN, "resize": (3, 9), "interpolation": "lanczos"})(np.full((5, 5, 3), 77, np.uint8))
    np.testing.assert_array_equal(flat, np.full((3, 3, 9), 77, np.float32) / np.float32(255))


def test_elongated_images():
    thread = np.zeros((1, 100_000, 3), np.uint8)
    with pytest.raises(ImageError, match="100000 x 1 pixels would become 28800000 x 288"):
        Preprocess(**{**EVAL, "resize": 288, "crop": 256})(thread)
    assert Preprocess(**{**EVAL, "resize": (16, 16), "crop": 16})(thread).shape == (3, 16, 16)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((3, 4, 4), np.uint8)])
def test_other_arrays_are_refused(pixels):
    with pytest.raises(ImageError, match="uint8"):
        Preprocess(**EVAL)(pixels)


def test_dictionaries():
    full = Preprocess(**{**EVAL, "resize": (30, 40), "enlarge": (64, 48)})
    for preprocess in (Preprocess(**EVAL), full):
        stored = json.loads(json.dumps(preprocess.to_dict()))
        assert Preprocess.from_dict(stored) == preprocess
        assert stored["mean"] == list(MEAN)
    stored = full.to_dict()
    with pytest.raises(ConfigError, match="'interpolaton'; did you mean interpolation"):
        Preprocess.from_dict({**stored, "interpolaton": "box"})
    with pytest.raises(ConfigError, match="std missing"):
        Preprocess.from_dict({k: v for k, v in stored.items() if k != "std"})
    assert Preprocess.from_dict({k: v for k, v in stored.items() if k != "enlarge"}).enlarge is None
    assert hash(Preprocess.from_dict(stored)) == hash(full)


def test_replace():
    preprocess = Preprocess(**EVAL)
    assert preprocess.replace(crop=None, mean=[0, 0, 0]) == Preprocess(**{**EVAL, "crop": None, "mean": (0, 0, 0)})
    assert preprocess.crop == 20
    with pytest.raises(ConfigError, match="did you mean crop"):
        preprocess.replace(corp=3)
    with pytest.raises(ConfigError, match=r"Preprocess\.crop"):
        preprocess.replace(crop=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(field, v) for field in ("resize", "crop", "enlarge") for v in (0, -3, 2.5, True, "224", (1, 2, 3), (4, 0), 2**16)],
        *[(field, v) for field in ("mean", "std") for v in (0.5, (1, 1), (1, 1, math.nan), (1, 1, math.inf), ("1",) * 3, None)],
        ("std", (1, 0, 1)),
        ("std", (1, -1, 1)),
        ("interpolation", "cubic"),
        ("interpolation", None),
        ("channel_order", "RGB"),
        ("channel_order", ["rgb"]),
    ],
)
def test_bad_fields(field, value):
    with pytest.raises(ConfigError, match=rf"Preprocess\.{field}: .* given, expected") as caught:
        Preprocess(**{**EVAL, field: value})
    assert "\n" not in str(caught.value)


def test_numpy_integers_become_plain():
    preprocess = Preprocess(**{**EVAL, "resize": np.int64(24), "crop": [np.int32(20), 20]})
    assert type(preprocess.resize) is int
    assert preprocess.crop == (20, 20)
    json.dumps(preprocess.to_dict())
