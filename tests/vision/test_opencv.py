"""OpenCV's arithmetic against loops over pixels in Python's integers, and against arrays that OpenCV 4.12 gave."""

import math

import numpy as np
import pytest

from refvit.errors import ConfigError, ImageError
from refvit.vision.opencv import affine_through, resize_bilinear, warp_affine

# 37 i mod 251 in five rows of seven
RAMP = ((np.arange(35) * 37) % 251).astype(np.uint8).reshape(5, 7, 1)
SMALL = np.array([[0, 50, 200], [255, 7, 90]], np.uint8)[:, :, None]


def picture(height, width, channels=3, seed=0):
    return np.random.default_rng([seed, height, width]).integers(0, 256, (height, width, channels), dtype=np.uint8)


def turn(degrees, scale, about, to):
    """The matrix that turns and scales about a point and then moves that point."""
    a = math.radians(degrees)
    linear = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]) * scale
    return np.column_stack([linear, np.array(to) - linear @ about])


def resize_by_loops(image, height, width):
    """A pixel at a time: horizontally a whole number of 2048ths, vertically two products that lose their last bits."""

    def tap(i, given, wanted):
        position = np.float32((i + 0.5) * given / wanted - 0.5)
        low = math.floor(position)
        part = np.float32(position - np.float32(low))
        weights = round(float((np.float32(1) - part) * np.float32(2048))), round(float(part * np.float32(2048)))
        return [(min(max(low + k, 0), given - 1), weights[k]) for k in (0, 1)]

    out = np.empty((height, width, image.shape[2]), np.uint8)
    for y in range(height):
        for x in range(width):
            for c in range(image.shape[2]):
                total = 2
                for row, down in tap(y, image.shape[0], height):
                    across = sum(int(image[row, column, c]) * w for column, w in tap(x, image.shape[1], width))
                    total += (across // 16) * down // 65536
                out[y, x, c] = total // 4
    return out


def warp_by_loops(image, matrix, height, width):
    """A pixel at a time: its place in the source in 1024ths, rounded there and then to 32nds, and four products."""
    inverse = np.linalg.inv(np.vstack([matrix, (0, 0, 1)]))[:2]
    out = np.empty((height, width, image.shape[2]), np.uint8)
    for y in range(height):
        for x in range(width):
            place = [round(m0 * x * 1024) + round((m1 * y + m2) * 1024) + 16 for m0, m1, m2 in inverse.tolist()]
            (left, u), (top, v) = (divmod(p // 32, 32) for p in place)
            for c in range(image.shape[2]):
                total = 512
                for i, j, weight in ((0, 0, (32 - u) * (32 - v)), (0, 1, u * (32 - v)), (1, 0, (32 - u) * v), (1, 1, u * v)):
                    if 0 <= top + i < image.shape[0] and 0 <= left + j < image.shape[1]:
                        total += int(image[top + i, left + j, c]) * weight
                out[y, x, c] = total // 1024
    return out


def test_resize_of_opencv():
    wider = [[0, 20, 50, 140, 200], [128, 88, 29, 98, 145], [255, 156, 7, 57, 90]]
    assert resize_bilinear(SMALL, (3, 5))[..., 0].tolist() == wider
    assert resize_bilinear(SMALL, (1, 2))[..., 0].tolist() == [[103, 116]]
    smaller = [[26, 112, 198], [35, 122, 208], [45, 132, 218], [56, 142, 155]]
    assert resize_bilinear(RAMP, (4, 3))[..., 0].tolist() == smaller


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("given", "size"),
    [
        ((9, 14), (31, 40)),
        ((23, 17), (7, 5)),
        ((20, 31), (31, 20)),
        ((12, 16), (6, 8)),
        ((1, 1), (4, 3)),
        ((1, 7), (5, 1)),
        ((40, 3), (1, 1)),
        ((13, 11), (13, 24)),
    ],
)
def test_resize_is_a_loop_over_pixels(given, size, channels):
    image = picture(*given, channels)
    np.testing.assert_array_equal(resize_bilinear(image, size), resize_by_loops(image, *size))


def test_resize_to_the_same_size_changes_nothing():
    image = picture(19, 23)
    np.testing.assert_array_equal(resize_bilinear(image, (19, 23)), image)


def test_shrinking_does_not_average():
    image = np.zeros((1, 12, 1), np.uint8)
    image[0, 3::4] = 240  # a third of the size looks at pixels 1, 4, 7 and 10 alone
    assert resize_bilinear(image, (1, 4)).ravel().tolist() == [0, 0, 240, 0]


def test_warp_of_opencv():
    turned = [
        [4, 13, 37, 35, 0, 0],
        [16, 41, 66, 91, 88, 18],
        [45, 70, 95, 119, 144, 159],
        [74, 98, 123, 148, 173, 198],
        [46, 127, 152, 177, 201, 226],
    ]  # OpenCV 5 differs in five of these
    assert warp_affine(RAMP, [[0.8, -0.6, 1.3], [0.6, 0.8, -0.7]], (5, 6))[..., 0].tolist() == turned
    enlarged = [
        [40, 57, 76, 93, 111, 129],
        [59, 83, 108, 133, 157, 182],
        [64, 88, 114, 138, 162, 188],
        [69, 94, 119, 143, 168, 193],
        [75, 99, 124, 149, 173, 198],
    ]
    assert warp_affine(RAMP, [[1.5, 0, -2.25], [0, 1.5, 0.4]], (5, 6))[..., 0].tolist() == enlarged


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("given", "size", "matrix"),
    [
        ((30, 20), (24, 18), turn(33, 0.8, (10, 15), (9, 12))),
        ((11, 17), (25, 31), turn(-120, 1.7, (8, 5), (15, 12))),
        ((40, 40), (9, 9), turn(0, 0.21, (20, 20), (4.5, 4.5))),  # no antialiasing
        ((20, 20), (15, 15), turn(10, 1, (0, 0), (12, -7))),  # partly outside
        ((1, 1), (6, 6), turn(45, 3, (0, 0), (3, 3))),
        ((8, 8), (8, 8), turn(0, 1, (0, 0), (8, 0))),  # just outside
        ((8, 8), (8, 8), turn(0, 1, (0, 0), (-7.5, 0.5))),  # half a pixel inside
        ((8, 8), (8, 8), turn(0, 1, (0, 0), (3 / 64, 5 / 64))),  # a tie between two 32nds
        ((15, 12), (14, 13), np.array([[1.1, 0.4, -2], [0.3, -0.9, 12]])),  # sheared and mirrored
    ],
)
def test_warp_is_a_loop_over_pixels(given, size, matrix, channels):
    image = picture(*given, channels)
    np.testing.assert_array_equal(warp_affine(image, matrix, size), warp_by_loops(image, matrix, *size))


def test_a_shift_by_whole_pixels_moves_them():
    image = picture(7, 9)
    out = warp_affine(image, [[1, 0, 2], [0, 1, -3]], (6, 8))
    expected = np.zeros((6, 8, 3), np.uint8)
    expected[:4, 2:] = image[3:, :6]
    np.testing.assert_array_equal(out, expected)


def test_a_map_far_outside_gives_the_border():
    assert not warp_affine(picture(7, 9), [[1, 0, 1e6], [0, 1, 0]], (6, 8)).any()


def test_maps_through_three_points():
    rng = np.random.default_rng(3)
    for _ in range(50):
        matrix = rng.standard_normal((2, 3)) * (1, 1, 100)
        source = rng.uniform(-100, 100, (3, 2))
        found = affine_through(source, source @ matrix[:, :2].T + matrix[:, 2])
        np.testing.assert_allclose(found, matrix, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(
        affine_through([[0, 0], [2, 0], [0, 4]], [[1, 5], [2, 5], [1, 7]]), [[0.5, 0, 1], [0, 0.5, 5]]
    )


def test_the_last_bits_of_a_map_are_those_of_opencv():
    person = [[125.43499755859375, 198.30499267578125], [125.43499755859375, 89.11123657226562]]
    person.append([16.241241455078125, 89.11123657226562])
    network = [[96, 128], [96, 32], [0, 32]]
    there = [[0.8791711488429068, 0, -14.278830908696078], [5.66462908749361e-17, 0.8791711488429068, -46.344028232050825]]
    back = [[1.137434959411621, 0, 16.241241455078125], [0, 1.137434959411621, 52.71331787109375]]
    assert affine_through(person, network).tolist() == there
    assert affine_through(network, person).tolist() == back


def test_points_on_a_line_are_refused():
    for points in ([[0, 0], [1, 1], [2, 2]], [[3, 4], [3, 4], [0, 1]], [[0, 0]] * 3):
        with pytest.raises(ConfigError, match="on a line"):
            affine_through(points, [[0, 0], [1, 0], [0, 1]])


def test_the_input_stays():
    image = picture(7, 9)
    image.flags.writeable = False
    out = resize_bilinear(image, (7, 9)), warp_affine(image, [[1, 0, 0], [0, 1, 0]], (7, 9))
    assert not any(np.shares_memory(o, image) for o in out)


@pytest.mark.parametrize("image", [SMALL[..., 0], SMALL.astype(np.float32), SMALL[:0], SMALL[:, :0], SMALL[:, :, :0]])
def test_what_is_no_image_is_refused(image):
    for call in (lambda: resize_bilinear(image, (2, 2)), lambda: warp_affine(image, [[1, 0, 0], [0, 1, 0]], (2, 2))):
        with pytest.raises(ImageError, match="uint8"):
            call()


@pytest.mark.parametrize("size", [(0, 3), (3, -1), (2.0, 2), (2, 2, 2), (2**14, 2**14)])
def test_what_is_no_size_is_refused(size):
    for call in (lambda: resize_bilinear(SMALL, size), lambda: warp_affine(SMALL, [[1, 0, 0], [0, 1, 0]], size)):
        with pytest.raises(ConfigError, match="height, width"):
            call()


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        ([[1, 0], [0, 1]], r"\(2, 3\)"),
        ([[1, 0, math.nan], [0, 1, 0]], "finite"),
        ([[1, 2, 0], [2, 4, 0]], "inverted"),
        ([[1e200, 0, 1e200], [0, 1e200, 0]], "inverted"),
        ([[1, 0, 3e6], [0, 1, 0]], "reaches further"),
        ([[1, 0, 0], [0, 1, -3e6]], "reaches further"),
        ([[1e-300, 0, 0], [0, 1, 0]], "reaches further"),
        ([[1e-160, 0, 1], [0, 1e-160, 1]], "reaches further"),
    ],
)
def test_what_is_no_map_is_refused(matrix, reason):
    with pytest.raises(ConfigError, match=reason):
        warp_affine(SMALL, matrix, (2, 2))
