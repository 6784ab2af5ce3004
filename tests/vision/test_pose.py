"""Poses on inputs whose answers are known: by hand, by loops over pixels, and from annotated persons of COCO."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refvit.errors import ConfigError, ShapeError
from refvit.vision.joints import COCO, limbs, mirror_pairs
from refvit.vision.pose import (
    affine,
    area,
    clean_box,
    crop,
    decode,
    flip_heatmaps,
    frame,
    oks,
    oks_nms,
    person_scores,
    to_image,
)

DATA = os.environ.get("REFVIT_TEST_DATA")
INPUT, MAP = (256, 192), (64, 48)
COCO_PAIRS = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))
SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000


def gaussians(places, size=MAP, sigma=2.0):
    """Heatmaps (n, j, *size) with a peak of about 1 at each place (n, j, 2)."""
    y, x = np.mgrid[: size[0], : size[1]]
    places = np.asarray(places, np.float64)[..., None, None, :]
    return np.exp(-((x - places[..., 0]) ** 2 + (y - places[..., 1]) ** 2) / (2 * sigma**2))


def spike(x, y, size=(8, 9), **neighbours):
    """A heatmap (1, 1, *size) of 0.1 with 1 at (x, y); `right=0.5` and so on set a neighbour."""
    heatmap = np.full((1, 1, *size), 0.1, np.float32)
    heatmap[0, 0, y, x] = 1
    steps = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}
    for side, value in neighbours.items():
        heatmap[0, 0, y + steps[side][0], x + steps[side][1]] = value
    return heatmap


def decode_by_loops(heatmaps):
    """The published rule, a pixel at a time."""
    n, j, height, width = heatmaps.shape
    out = np.empty((n, j, 3))
    for i in range(n):
        for k in range(j):
            best, x, y = heatmaps[i, k, 0, 0], 0, 0
            for row in range(height):
                for column in range(width):
                    if heatmaps[i, k, row, column] > best:
                        best, x, y = heatmaps[i, k, row, column], column, row
            dx = dy = 0.0
            if not best > 0:
                x = y = 0
            if x not in (0, 1, width - 1) and y not in (0, 1, height - 1):
                right, left = heatmaps[i, k, y, x + 1], heatmaps[i, k, y, x - 1]
                below, above = heatmaps[i, k, y + 1, x], heatmaps[i, k, y - 1, x]
                dx = 0.25 * (int(right > left) - int(right < left))
                dy = 0.25 * (int(below > above) - int(below < above))
            out[i, k] = x + dx, y + dy, best
    return out


# boxes, frames and crops


@pytest.mark.parametrize(
    ("box", "clean"),
    [
        ((10, 20, 30, 40), (10, 20, 29, 39)),  # width and height become smaller by one
        ((-5.5, -3, 30, 40), (0, 0, 29, 39)),  # moved inside at its size, as COCO's code does it
        ((90, 70, 30, 40), (90, 70, 9, 9)),
        ((-10, 5, 300, 20), (0, 5, 99, 19)),
        ((40, 30, 0.5, 0), (40, 30, 0, 0)),
        ((99, 79, 5, 5), (99, 79, 0, 0)),
        ((98.5, 10.25, 5, 5.5), (98.5, 10.25, 0.5, 4.5)),
    ],
)
def test_clean_boxes_in_an_image_of_100_by_80(box, clean):
    out = clean_box(box, (80, 100))
    np.testing.assert_array_equal(out, clean)
    assert out.dtype == np.float64


@pytest.mark.parametrize("box", [(99.5, 10, 5, 5), (10, 80, 5, 5), (200, 200, 1, 1)])
def test_a_box_outside_of_the_image_is_refused(box):
    with pytest.raises(ConfigError, match="outside of the image of 100 x 80"):
        clean_box(box, (80, 100))


@pytest.mark.parametrize(
    "box", [(1, 2, 3), (1, 2, math.nan, 3), (1, 2, -1, 3), (0, 0, math.inf, 1), (1e9, 0, 1, 1), np.ones((1, 4))]
)
def test_what_is_no_box_is_refused(box):
    for call in (lambda: clean_box(box, (80, 100)), lambda: frame(box, INPUT)):
        with pytest.raises(ConfigError, match="x, y, width, height"):
            call()
    with pytest.raises(ConfigError, match="single point"):
        frame((5, 5, 0, 0), INPUT)


def test_frames_by_hand():
    tall = frame((100, 50, 40, 160), INPUT)  # the height decides: 160 and 3/4 of it
    np.testing.assert_array_equal(tall.centre, [120, 130])
    np.testing.assert_allclose(tall.extent, [150, 200], rtol=1e-6)
    wide = frame((100, 50, 120, 40), INPUT)  # the width decides: 120 and 4/3 of it
    np.testing.assert_allclose(wide.extent, [150, 200], rtol=1e-6)
    square = frame((0, 0, 10, 30), (256, 256), padding=2)
    np.testing.assert_allclose(square.extent, [60, 60], rtol=1e-6)
    np.testing.assert_allclose(frame((7, 9, 0, 12), INPUT).extent, [11.25, 15], rtol=1e-6)
    assert area(tall) == pytest.approx(30000, rel=1e-6)
    assert tall.centre.dtype == tall.extent.dtype == np.float32


def test_frames_round_to_float32_where_the_published_code_does():
    for box in np.random.default_rng(1).uniform(1, 300, (200, 4)):
        x, y, w, h = box.tolist()
        sides = (w, w / 0.75) if w > 0.75 * h else (h * 0.75, h)
        found = frame(box, INPUT)
        assert found.centre.tolist() == [np.float32(x + w / 2), np.float32(y + h / 2)]
        assert found.extent.tolist() == [np.float32(side / 200) * np.float32(1.25) * np.float32(200) for side in sides]


def test_corners_of_a_crop_by_hand():
    matrix = affine(frame((100, 50, 40, 160), INPUT), INPUT)  # 150 x 200 about (120, 130)
    corners = np.array([[45, 30, 1], [195, 30, 1], [45, 230, 1], [195, 230, 1], [120, 130, 1]])
    np.testing.assert_allclose(corners @ matrix.T, [[0, 0], [192, 0], [0, 256], [192, 256], [96, 128]], atol=1e-4)
    # A wide box in a network of another shape: the scale is that of the width.
    matrix = affine(frame((0, 0, 80, 20), (64, 64), padding=1), (64, 64))
    np.testing.assert_allclose(matrix, [[0.8, 0, 0], [0, 0.8, 24]], atol=1e-5)


def test_the_map_of_a_person_of_coco_has_the_bits_of_the_published_code():
    # From OpenCV's getAffineTransform; the off-diagonal rounding error decides about single pixels of a crop.
    there = [[0.8791711488429068, 0, -14.278830908696078], [5.66462908749361e-17, 0.8791711488429068, -46.344028232050825]]
    assert affine(frame((38.08, 110.95, 174.71, 174.71), INPUT), INPUT).tolist() == there


def test_image_to_crop_and_back():
    rng = np.random.default_rng(2)
    boxes = np.concatenate([rng.uniform(-20, 400, (30, 2)), rng.uniform(5, 300, (30, 2))], axis=1)
    frames = [frame(box, INPUT) for box in boxes]
    points = rng.uniform(-50, 500, (30, 17, 2))
    moved = [p @ affine(f, MAP)[:, :2].T + affine(f, MAP)[:, 2] for p, f in zip(points, frames, strict=True)]
    scores = rng.random((30, 17, 1))
    given = np.concatenate([moved, scores], axis=2).astype(np.float32)
    before = given.copy()
    back = to_image(given, frames, MAP)
    assert back.dtype == np.float64
    np.testing.assert_array_equal(given, before)
    np.testing.assert_array_equal(back[..., 2], given[..., 2])
    np.testing.assert_allclose(back[..., :2], points, rtol=0, atol=1e-2)
    # A heatmap of a quarter of the crop's size has the same corners: pixel i is at 4 i.
    x, y = 13.25, 40.75
    by_crop = [np.linalg.solve(affine(f, INPUT)[:, :2], np.array([4 * x, 4 * y]) - affine(f, INPUT)[:, 2]) for f in frames]
    places = np.tile([x, y, 1.0], (30, 1, 1))
    np.testing.assert_allclose(to_image(places, frames, MAP)[:, 0, :2], by_crop, rtol=0, atol=1e-3)
    assert to_image(np.empty((0, 17, 3)), [], MAP).shape == (0, 17, 3)


def test_a_crop_shows_a_spot_where_the_matrix_says():
    y, x = np.mgrid[:120, :160]
    spot = 250 * np.exp(-((x - 70.3) ** 2 + (y - 51.8) ** 2) / 18)
    pixels = np.repeat(spot.round().astype(np.uint8)[:, :, None], 3, axis=2)
    place = frame((50, 30, 45, 60), INPUT)
    out = crop(pixels, place, INPUT)
    assert out.shape == (256, 192, 3)
    assert out.dtype == np.uint8
    weights = out[..., 0] / out[..., 0].sum()
    rows, columns = np.mgrid[:256, :192]
    centroid = (weights * columns).sum(), (weights * rows).sum()
    np.testing.assert_allclose(centroid, affine(place, INPUT) @ [70.3, 51.8, 1], atol=0.05)


def test_outside_of_the_image_a_crop_is_black():
    pixels = np.full((100, 100, 3), 200, np.uint8)
    out = crop(pixels, frame((0, 25, 60, 50), INPUT, padding=1), INPUT)  # 60 x 80 about (30, 50), 3.2 pixels a pixel
    assert (out == 200).all()
    out = crop(pixels, frame((-30, 20, 60, 50), INPUT, padding=1), INPUT)  # the left half is outside
    assert not out[:, :92].any()
    assert (out[:, 97:] == 200).all()


# heatmaps


@pytest.mark.parametrize("pairs", [COCO_PAIRS, (), ((0, 16), (3, 1))])
@pytest.mark.parametrize("shift", [False, True])
def test_flipped_heatmaps_are_a_loop_over_pixels(pairs, shift):
    heatmaps = np.random.default_rng(4).standard_normal((2, 17, 5, 6)).astype(np.float32)
    heatmaps.flags.writeable = False
    partner = {**{i: i for i in range(17)}, **dict(pairs), **{k: i for i, k in pairs}}
    expected = np.empty_like(heatmaps)
    for n, j, y, x in np.ndindex(*heatmaps.shape):
        expected[n, j, y, x] = heatmaps[n, partner[j], y, 5 - (max(x - 1, 0) if shift else x)]
    out = flip_heatmaps(heatmaps, pairs, shift)
    np.testing.assert_array_equal(out, expected)
    assert out.dtype == np.float32


def test_the_shift_brings_the_mirror_image_nearer():
    # A joint at input pixel 81 is at 81 / 4 in the map, and in the mirrored input at pixel 191 - 81.
    plain, mirrored = gaussians([[(81 / 4, 30)]]), gaussians([[((191 - 81) / 4, 30)]])
    columns = np.arange(MAP[1])

    def place(heatmaps):
        return (heatmaps * columns).sum() / heatmaps.sum()

    assert place(plain) == pytest.approx(20.25)
    assert place(flip_heatmaps(mirrored, (), shift=False)) == pytest.approx(20.25 - 0.75)
    assert place(flip_heatmaps(mirrored, (), shift=True)) == pytest.approx(20.25 + 0.25)


def test_decoding_gaussians_to_a_quarter_of_a_pixel():
    for dx in (-0.4, -0.1, 0, 0.2, 0.49):
        for dy in (-0.3, 0, 0.45):
            x, y, score = decode(gaussians([[(20 + dx, 33 + dy)]]))[0, 0]
            assert (x, y) == (20 + 0.25 * np.sign(dx), 33 + 0.25 * np.sign(dy))
            assert score == pytest.approx(math.exp(-(dx**2 + dy**2) / 8))


def test_decoding_is_a_loop_over_pixels():
    rng = np.random.default_rng(5)
    for size in ((9, 7), (4, 4), (3, 5), (2, 2), (1, 1), (1, 6)):
        whole = rng.integers(-3, 4, (3, 60, *size)).astype(np.float32)  # many ties
        negative = -np.abs(rng.standard_normal((1, 60, *size))).astype(np.float32)
        for heatmaps in (whole, negative, rng.standard_normal((3, 60, *size))):
            heatmaps.flags.writeable = False
            np.testing.assert_array_equal(decode(heatmaps), decode_by_loops(heatmaps))


def test_of_equal_maxima_the_first_in_reading_order_counts():
    heatmap = np.zeros((1, 1, 8, 9))
    heatmap[0, 0, 4, [3, 6]] = heatmap[0, 0, 6, 2] = 1
    assert decode(heatmap)[0, 0].tolist() == [3, 4, 1]


@pytest.mark.parametrize(
    ("x", "y", "moved"),
    # width 9, height 8: columns 2 to 7 and rows 2 to 6 are inside
    [
        *((x, 4, 2 <= x <= 7) for x in range(9)),
        *((4, y, 2 <= y <= 6) for y in range(8)),
        (1, 1, False),
        (2, 2, True),
        (7, 6, True),
        (8, 7, False),
    ],
)
def test_the_border_within_which_a_joint_moves(x, y, moved):
    heatmap = spike(x, y, size=(8, 9))
    if x < 8:
        heatmap[0, 0, y, x + 1] = 0.5
    if y > 0:
        heatmap[0, 0, y - 1, x] = 0.5
    expected = (x + 0.25, y - 0.25, 1) if moved else (x, y, 1)
    assert decode(heatmap)[0, 0].tolist() == list(expected)


def test_the_larger_neighbour_decides_on_each_axis_alone():
    assert decode(spike(4, 4, left=0.3, below=0.2))[0, 0].tolist() == [3.75, 4.25, 1]
    assert decode(spike(4, 4, left=0.3, right=0.3, above=-5))[0, 0].tolist() == [4, 4.25, 1]
    assert decode(spike(4, 4))[0, 0].tolist() == [4, 4, 1]
    assert decode(spike(4, 4, right=1))[0, 0].tolist() == [4.25, 4, 1]


@pytest.mark.parametrize("level", [0.0, -1.0])
def test_without_a_positive_value_a_joint_is_at_the_corner(level):
    heatmap = np.full((1, 2, 8, 9), level - 1, np.float32)
    heatmap[0, 0, 4, 4], heatmap[0, 0, 4, 5] = level, level - 0.5
    heatmap[0, 1, 4, 4], heatmap[0, 1, 4, 5] = 1e-30, 0
    assert decode(heatmap)[0, 0].tolist() == [0, 0, level]
    assert decode(heatmap)[0, 1].tolist() == [4.25, 4, np.float32(1e-30)]


@pytest.mark.parametrize("shape", [(17, 64, 48), (1, 17, 0, 48)])
def test_what_are_no_heatmaps_is_refused(shape):
    with pytest.raises(ShapeError, match="heatmaps"):
        decode(np.zeros(shape))


# persons


def test_scores_of_persons_by_hand():
    joints = np.zeros((4, 3, 3))
    joints[:, :, 2] = [(0.9, 0.2, 0.5), (0.1, 0.2, -1), (0.21, 0, 0), (1, 0.8, 0.3)]
    np.testing.assert_allclose(person_scores(joints, np.array([1, 1, 0.5, 0.1])), [0.7, 0, 0.105, 0.07], rtol=1e-15)
    np.testing.assert_allclose(person_scores(joints, np.ones(4), threshold=0.6), [0.9, 0, 0, 0.9], rtol=1e-15)
    assert person_scores(np.empty((0, 3, 3)), np.empty(0)).shape == (0,)


def test_similarity_by_hand():
    rng = np.random.default_rng(6)
    a, b = rng.uniform(0, 50, (2, 17, 3))
    total = 0.0
    for j in range(17):
        distance = math.hypot(a[j, 0] - b[j, 0], a[j, 1] - b[j, 1])
        total += math.exp(-(distance**2) / (2 * 3000 * (2 * SIGMAS[j]) ** 2))
    assert oks(a, b, 3000, SIGMAS) == pytest.approx(total / 17, rel=1e-12)
    assert oks(a, a, 3000, SIGMAS) == 1
    seen = np.arange(17) == 5
    distance = math.hypot(a[5, 0] - b[5, 0], a[5, 1] - b[5, 1])
    expected = math.exp(-(distance**2) / (2 * 3000 * 0.158**2))
    assert oks(a, b, 3000, SIGMAS, visible=seen) == pytest.approx(expected, rel=1e-12)
    assert oks(a, b, 3000, SIGMAS, visible=np.zeros(17, bool)) == 0


def test_similarity_of_many():
    rng = np.random.default_rng(7)
    people, areas = rng.uniform(0, 50, (5, 17, 2)), rng.uniform(1000, 9000, (4, 5))
    out = oks(people[:4, None], people, areas, SIGMAS)
    assert out.shape == (4, 5)
    assert out[2, 3] == oks(people[2], people[3], areas[2, 3], SIGMAS)


def shifted(person, similarity, area):
    """A person so far from this one that they are as similar as this, by the inverse of the formula at each joint."""
    return person + np.stack([SIGMAS * 2 * math.sqrt(-2 * area * math.log(similarity)), np.zeros(17)], axis=1)


def test_suppression_with_known_similarities():
    person, size = np.random.default_rng(8).uniform(0, 100, (17, 2)), 5000
    people = np.array(
        [person, shifted(person, 0.95, size), shifted(person, 0.85, size), person + 1000, shifted(person, 0.899, size)]
    )
    np.testing.assert_allclose(oks(person, people, size, SIGMAS), [1, 0.95, 0.85, 0, 0.899], rtol=1e-12)
    areas = np.full(5, size)
    # 1 goes because of 0, and 4 because of 2 alone. With 0.96, 1 stays, and 2 and 4 go because of it.
    assert oks_nms(people, np.array([0.9, 0.8, 0.7, 0.1, 0.6]), areas, 0.9, SIGMAS).tolist() == [0, 2, 3]
    assert oks_nms(people, np.array([0.9, 0.8, 0.7, 0.1, 0.6]), areas, 0.96, SIGMAS).tolist() == [0, 1, 3]
    assert oks_nms(people[:4], np.array([0.1, 0.8, 0.7, 0.9]), areas[:4], 0.96, SIGMAS).tolist() == [3, 1, 0]
    assert oks_nms(people[:2], np.array([0.5, 0.6]), areas[:2], 0.96, SIGMAS).tolist() == [1, 0]
    assert oks_nms(people[:2], np.array([0.5, 0.6]), areas[:2], 0.94, SIGMAS).tolist() == [1]


def test_the_area_between_two_persons_is_their_mean():
    person = np.random.default_rng(9).uniform(0, 100, (17, 2))
    people, scores = np.array([person, shifted(person, 0.9, 5000)]), np.array([0.5, 0.4])
    assert oks_nms(people, scores, np.array([1000, 9001]), 0.9, SIGMAS).tolist() == [0]
    assert oks_nms(people, scores, np.array([1000, 8999]), 0.9, SIGMAS).tolist() == [0, 1]


def test_of_equal_scores_the_first_stays():
    person = np.random.default_rng(10).uniform(0, 100, (17, 3))
    people = np.array([person, person, person + 1000, person + 1000])
    assert oks_nms(people, np.full(4, 0.5), np.full(4, 900.0), 0.9, SIGMAS).tolist() == [0, 2]
    # A similarity equal to the threshold is no reason to go.
    assert oks_nms(people, np.full(4, 0.5), np.full(4, 900.0), 1.0, SIGMAS).tolist() == [0, 1, 2, 3]
    assert oks_nms(np.empty((0, 17, 3)), np.empty(0), np.empty(0), 0.9, SIGMAS).tolist() == []


# COCO


@pytest.fixture(scope="module")
def persons():
    """(pixels, annotation) of the annotated persons of four images."""
    if not DATA:
        pytest.skip("REFVIT_TEST_DATA is not set: no images of COCO to test with")
    folder = Path(DATA) / "coco"
    table = json.loads((folder / "test_coco.json").read_text())
    pictures = {i["id"]: np.asarray(Image.open(folder / i["file_name"]).convert("RGB")) for i in table["images"]}
    assert table["categories"][0]["keypoints"] == list(COCO)
    assert {(a - 1, b - 1) for a, b in table["categories"][0]["skeleton"]} == set(limbs(COCO))
    return [(pictures[a["image_id"]], a) for a in table["annotations"] if a["num_keypoints"]]


def test_annotated_persons_are_found_again(persons):
    """Gaussians at the annotated joints, decoded, are within the quantisation of a heatmap.

    Decoding is off by at most a quarter of a heatmap pixel on each axis, inside of the border, and the frame's roundings to
    float32 by less than 0.001 image pixels.
    """
    assert len(persons) == 12
    for pixels, person in persons:
        place = frame(clean_box(person["bbox"], pixels.shape[:2]), INPUT)
        truth = np.array(person["keypoints"], np.float64).reshape(17, 3)
        visible = truth[:, 2] > 0
        matrix = affine(place, MAP)
        places = truth[:, :2] @ matrix[:, :2].T + matrix[:, 2]
        assert (places[visible] > 1.5).all()
        assert (places[visible] < (46.5, 62.5)).all()
        found = to_image(decode(gaussians(places[None])), [place], MAP)[0]
        error = np.abs(found[visible, :2] - truth[visible, :2])
        largest = 0.25 * place.extent[0] / MAP[1] + 0.001
        assert error.max() <= largest
        worst = np.exp(-2 * largest**2 / (2 * person["area"] * (2 * SIGMAS[visible]) ** 2)).mean()
        similarity = oks(found, truth, person["area"], SIGMAS, visible)
        assert similarity >= worst > 0.9


def test_mirrored_crops_of_annotated_persons(persons):
    """The average with the flipped heatmaps of the mirrored crop is off by an eighth of a heatmap pixel more, to the right."""
    for pixels, person in persons:
        place = frame(clean_box(person["bbox"], pixels.shape[:2]), INPUT)
        truth = np.array(person["keypoints"], np.float64).reshape(17, 3)
        visible = truth[:, 2] > 0
        matrix = affine(place, INPUT)
        inputs = truth[:, :2] @ matrix[:, :2].T + matrix[:, 2]
        mirrored = (191 - inputs[:, 0], inputs[:, 1])
        swapped = np.stack(mirrored, axis=1)[[COCO.index(_other_side(name)) for name in COCO]]
        flipped = flip_heatmaps(gaussians(swapped[None] / 4), mirror_pairs(COCO), shift=True)
        found = to_image(decode((gaussians(inputs[None] / 4) + flipped) / 2), [place], MAP)[0]
        pixel = place.extent[0] / MAP[1]
        off = (found[visible, :2] - truth[visible, :2]) / pixel
        assert np.abs(off[:, 1]).max() <= 0.2501
        assert np.abs(off[:, 0] - 0.125).max() <= 0.2501


def _other_side(name):
    side, _, part = name.partition("_")
    return {"left": f"right_{part}", "right": f"left_{part}"}.get(side, name)
