"""Pictures of maps, people and boxes. Those of classes are in test_result.py."""

import numpy as np
import pytest
from PIL import ImageColor

from refvit.vision.drawing import ALPHA, PANEL, draw_map
from refvit.vision.painting import LEFT, LIMB, MIDDLE, RIGHT, SIDE, draw_boxes, draw_people
from refvit.vision.palettes import colours, vivid
from refvit.vision.pixels import PREVIEW

RNG = np.random.default_rng(11)


def array(image):
    return np.asarray(image).astype(int)


def changed(drawn, pixels):
    """Which pixels of the image, (h, w), the picture does not show as they were; the caption is below it."""
    h, w, _ = pixels.shape
    return (array(drawn)[:h, :w] != pixels).any(-1)


# maps

SMALL = RNG.integers(0, 256, (PREVIEW, PREVIEW - 100, 3), dtype=np.uint8)
MAP = np.zeros(SMALL.shape[:2], np.uint8)
MAP[100:200, 50:150], MAP[300:, :200], MAP[300:, 200:] = 1, 2, 255
ROWS = [("wall", 0.5, (120, 120, 120)), ("sea", 0.25, (9, 7, 230)), ("sky", 0.003, (6, 230, 230))]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_a_map_is_laid_over_the_image(dtype):
    k, before = 3, SMALL.copy()
    labels = MAP.astype(dtype)
    if dtype == np.int64:
        labels[labels == 255] = -1
    drawn = array(draw_map(SMALL, labels, colours(k), ROWS, "toy"))
    h, w, _ = SMALL.shape
    assert drawn.shape == (h, w + PANEL, 3)
    np.testing.assert_array_equal(SMALL, before)
    edges = np.zeros((h, w), bool)
    for y in range(h):
        for x in range(w):
            edges[y, x] = (x > 0 and MAP[y, x] != MAP[y, x - 1]) or (y > 0 and MAP[y, x] != MAP[y - 1, x])
    for c in range(k):
        here = c == MAP
        mixed = (1 - ALPHA) * SMALL + ALPHA * colours(k)[c]
        inner, outer = here & ~edges, here & edges
        assert inner.any() and outer.any()
        np.testing.assert_allclose(drawn[:, :w][inner], mixed[inner], atol=0.5)
        np.testing.assert_allclose(drawn[:, :w][outer], (mixed[outer] + 255) / 2, atol=0.5)
    np.testing.assert_array_equal(drawn[:, :w][MAP == 255], SMALL[MAP == 255])  # no class


def of_colour(panel, colour):
    return (panel == colour).all(-1)


def test_the_legend_shows_the_colours():
    panel = array(draw_map(SMALL, MAP, colours(3), ROWS, "toy"))[:, SMALL.shape[1] :]
    heights = [np.flatnonzero(of_colour(panel, colour).any(1)).mean() for _, _, colour in ROWS]
    assert heights == sorted(heights)
    widths = [np.count_nonzero(of_colour(panel, colour).any(0)) for _, _, colour in ROWS]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.1)  # bars of 50 % and 25 %
    assert 5 <= widths[2] < 20  # no bar, but a swatch


def test_long_names_in_the_legend():
    short, long = (draw_map(SMALL, MAP, colours(3), [(name, 0.5, (1, 2, 3))], "toy") for name in ("MM", "M" * 300))
    assert short.size == long.size
    np.testing.assert_array_equal(array(short)[:, -75:], array(long)[:, -75:])  # the number


def test_many_and_no_rows_in_the_legend():
    many = draw_map(SMALL, MAP, colours(3), ROWS * 15, "toy")
    assert many.width == SMALL.shape[1] + PANEL
    assert PREVIEW < many.height < 45 * 60
    assert draw_map(SMALL, MAP, colours(3), [], "toy").height == PREVIEW


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (7, 5)])
def test_maps_of_small_images(height, width):
    pixels = np.full((height, width, 3), 100, np.uint8)
    drawn = draw_map(pixels, np.ones((height, width), np.uint8), colours(2), ROWS, "toy")
    factor = PREVIEW / max(height, width)
    assert drawn.width == max(1, round(width * factor)) + PANEL
    mixed = np.round((1 - ALPHA) * 100 + ALPHA * colours(2)[1])
    assert of_colour(array(drawn), mixed).sum() >= round(height * factor) * round(width * factor)


# people

PHOTO = RNG.integers(60, 90, (SIDE - 320, SIDE, 3), dtype=np.uint8)  # as large as it is drawn, so that pixels stay pixels
JOINTS = ("nose", "left_shoulder", "right_shoulder", "left_wrist", "right_wrist")
LIMBS = ((0, 1), (1, 2), (1, 3), (2, 4))
PERSON = np.array([[300, 100, 0.9], [400, 200, 0.9], [200, 200, 0.9], [450, 400, 0.9], [150, 400, 0.9]])
NO_BOXES = np.empty((0, 4))


def people(keypoints, boxes=NO_BOXES, pixels=PHOTO, joints=JOINTS, **options):
    keypoints, boxes = np.asarray(keypoints, np.float64), np.asarray(boxes, np.float64)
    return draw_people(pixels, keypoints, LIMBS, boxes, "toy", joints=joints, **options)


def rgb(name):
    return ImageColor.getrgb(name)


def test_a_person():
    before = PHOTO.copy()
    image = people([PERSON])
    assert image.width == SIDE
    assert image.height > PHOTO.shape[0]
    drawn = array(image)
    for (x, y, _), colour in zip(PERSON.astype(int), (MIDDLE, LEFT, RIGHT, LEFT, RIGHT), strict=True):
        assert tuple(drawn[y, x]) == rgb(colour)
    for (a, b), colour in zip(LIMBS, (MIDDLE, MIDDLE, LEFT, RIGHT), strict=True):
        x, y = (PERSON[a, :2] + PERSON[b, :2]).astype(int) // 2
        assert tuple(drawn[y, x]) == rgb(colour)
    np.testing.assert_array_equal(PHOTO, before)


def test_only_the_skeleton_is_drawn():
    mask = changed(people([PERSON]), PHOTO)
    y, x = np.mgrid[: PHOTO.shape[0], : PHOTO.shape[1]] + 0.5
    nearest = np.full(mask.shape, np.inf)  # distance to the closest limb
    for a, b in LIMBS:
        (ax, ay), (bx, by) = PERSON[a, :2], PERSON[b, :2]
        t = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - ax - t * (bx - ax), y - ay - t * (by - ay)))
    assert not mask[nearest > 8].any()
    assert mask[nearest < LIMB / 2 - 0.5].all()


def test_joints_of_low_score_and_their_limbs_are_left_out():
    person = PERSON.copy()
    person[1, 2] = 0.2  # not above the threshold: no shoulder, and three limbs less
    drawn = people([person])
    mask = changed(drawn, PHOTO)
    assert not mask[195:206, 395:406].any()
    assert not mask[:, 310:440].any()
    assert mask[200, 200] and mask[300, 175]
    np.testing.assert_array_equal(array(people([person], threshold=0.1)), array(people([PERSON])))
    assert not changed(people([person], threshold=0.9), PHOTO).any()


def test_without_names_there_are_no_sides():
    drawn = array(people([PERSON], joints=None))
    assert all(tuple(drawn[int(y), int(x)]) == rgb(MIDDLE) for x, y, _ in PERSON)


def test_boxes_of_people():
    mask = changed(people(np.empty((0, 5, 3)), [[100, 50, 300, 200]]), PHOTO)
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    assert (columns[0], columns[-1], rows[0], rows[-1]) == (100, 399, 50, 249)
    assert not mask[55:245, 105:395].any()
    whole = changed(people(np.empty((0, 5, 3)), [[0, 0, SIDE, PHOTO.shape[0]]]), PHOTO)
    assert whole[0].all() and whole[-1].all() and whole[:, 0].all() and whole[:, -1].all()


def test_no_people():
    assert not changed(people(np.empty((0, 5, 3))), PHOTO).any()


def test_people_outside_of_the_image():
    gone = PERSON + np.array([5000, 0, 0])
    assert not changed(people([gone, PERSON - [0, 9000, 0]], [[5000, 0, 30, 30], [-50, -50, 50, 50]]), PHOTO).any()
    half = changed(people([PERSON - [300, 0, 0]], [[-100, 50, 200, 5000]]), PHOTO)
    assert half.any() and not half[:, 200:].any()


def test_coordinates_grow_with_the_image():
    half = PHOTO[::2, ::2]
    drawn = array(people([PERSON * (0.5, 0.5, 1)], pixels=half))
    assert drawn.shape[1] == SIDE
    for (x, y, _), colour in zip(PERSON.astype(int), (MIDDLE, LEFT, RIGHT, LEFT, RIGHT), strict=True):
        assert tuple(drawn[y, x]) == rgb(colour)


def test_a_crowd():
    crowd = PERSON + RNG.uniform(-300, 300, (60, 1, 3)) * (1, 1, 0)
    assert people(crowd, crowd[:, 0, [0, 1, 0, 1]]).size == people([PERSON]).size


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 480), (480, 1), (3, 2)])
@pytest.mark.parametrize("caption", ["", "a caption " * 50])
def test_people_and_boxes_of_small_images(height, width, caption):
    pixels = np.full((height, width, 3), 100, np.uint8)
    box = [0, 0, width, height]
    factor = SIDE / max(height, width)
    for drawn in (
        draw_people(pixels, PERSON[None] % 3, LIMBS, np.array([box]), caption, joints=JOINTS),
        draw_boxes(pixels, [("cat", 0.5, tuple(box), 3)], caption),
    ):
        assert drawn.width == max(round(width * factor), PANEL)
        assert max(1, round(height * factor)) < drawn.height < max(1, round(height * factor)) + 60


# boxes


def boxes(*rows, pixels=PHOTO):
    return draw_boxes(pixels, rows, "toy")


def colour(index):
    return tuple(int(v) for v in vivid(index + 1)[index])


def test_a_box():
    before = PHOTO.copy()
    drawn = boxes(("cat", 0.876, (200, 300, 500, 600), 16))
    mask, picture = changed(drawn, PHOTO), array(drawn)
    np.testing.assert_array_equal(PHOTO, before)
    for y, x in [(300, 350), (599, 350), (450, 200), (450, 499)]:
        assert tuple(picture[y, x]) == colour(16)
    assert not mask[305:595, 205:495].any()  # inside
    assert not mask[600:].any() and not mask[:, :200].any() and not mask[:, 500:].any()
    label = np.argwhere(mask[:300])  # over it
    assert label[:, 0].min() > 260
    assert of_colour(picture[260:300, 200:300], colour(16)).sum() > 500
    assert mask[290, 202] and not mask[290, 400]


def test_the_class_gives_the_colour_and_the_score_is_in_the_label():
    first = array(boxes(("cat", 0.87, (200, 300, 500, 600), 16)))
    assert not np.array_equal(first, array(boxes(("cat", 0.88, (200, 300, 500, 600), 16))))
    assert not np.array_equal(first, array(boxes(("dog", 0.87, (200, 300, 500, 600), 16))))
    assert tuple(array(boxes(("cat", 0.87, (200, 300, 500, 600), 17)))[300, 350]) == colour(17) != colour(16)


PLACES = [(0, 0, 200, 200), (760, 0, 960, 200), (0, 440, 200, 640), (760, 440, 960, 640), (0, 0, 960, 640)]


@pytest.mark.parametrize("place", PLACES)
def test_boxes_at_the_border_have_their_label_inside(place):
    h, w = PHOTO.shape[:2]
    label = array(boxes(("a rather long label", 0.5, (300, 300, 650, 600), 5)))[:299]
    rows, columns = (np.flatnonzero(of_colour(label, colour(5)).any(axis)) for axis in (1, 0))
    label = label[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, 1]
    picture = array(boxes(("a rather long label", 0.5, place, 5)))[:h, :w]
    windows = np.lib.stride_tricks.sliding_window_view(picture[:, :, 1], label.shape)
    starts = np.argwhere(windows[:, :, 12, 1] == label[12, 1])
    assert any((windows[y, x] == label).mean() > 0.95 for y, x in starts)  # the whole label, somewhere in the image
    # What is beyond the border is cut off.
    x0, y0, x1, y1 = place
    beyond = (x0 or -300, y0 or -300, x1 + 300 * (x1 == w), y1 + 300 * (y1 == h))
    np.testing.assert_array_equal(picture, array(boxes(("a rather long label", 0.5, beyond, 5)))[:h, :w])


def test_boxes_outside_are_not_drawn():
    h, w = PHOTO.shape[:2]
    outside = [(w, 0, w + 50, 50), (-50, 0, 0, 50), (10, -60, 50, -10), (10, h, 50, h + 9)]
    empty = [(100, 100, 100, 200), (300, 200, 200, 300)]
    assert not changed(boxes(*(("cat", 0.9, box, 1) for box in outside + empty)), PHOTO).any()


def test_no_boxes():
    assert not changed(boxes(), PHOTO).any()


def test_the_first_box_is_on_top():
    box = (200, 300, 500, 600)
    picture = array(boxes(("cat", 0.9, box, 1), ("dog", 0.8, box, 2)))
    assert tuple(picture[450, 200]) == colour(1)
    alone = array(boxes(("cat", 0.9, box, 1)))
    np.testing.assert_array_equal(picture[260:300, 200:260], alone[260:300, 200:260])  # its label, over the box
    assert of_colour(picture, colour(2)).sum() > 500  # and that of the other elsewhere


def test_labels_do_not_cover_each_other():
    # Small boxes, one beside the other: most of their colours is in the labels.
    rows = [("cat", 0.9, (200 + 10 * i, 300 + 10 * i, 400 + 10 * i, 380 + 10 * i), i) for i in range(4)]
    alone = [of_colour(array(boxes(row)), colour(i)).sum() for i, row in enumerate(rows)]
    together = [of_colour(array(boxes(*rows)), colour(i)).sum() for i in range(4)]
    assert all(t > 0.8 * a for t, a in zip(together, alone, strict=True))


def test_long_labels_keep_the_score():
    long, longer = (boxes(("M" * n, 0.5, (200, 300, 500, 600), 1)) for n in (300, 301))
    np.testing.assert_array_equal(array(long), array(longer))  # both cut to the width of the image
    other = boxes(("M" * 300, 0.6, (200, 300, 500, 600), 1))
    differs = np.argwhere((array(long) != array(other)).any(-1))
    assert len(differs) and differs[:, 1].min() > 850


def test_many_boxes():
    places = RNG.uniform(-100, 900, (200, 4))
    corners = np.concatenate([np.minimum(places[:, :2], places[:, 2:]), np.maximum(places[:, :2], places[:, 2:])], axis=1)
    rows = [(f"class {i}", 0.5, tuple(box), i) for i, box in enumerate(corners)]
    assert boxes(*rows).size == boxes().size
    # All in one place: there is no room for so many labels, and the first one stays readable.
    place = (200, 300, 500, 600)
    same, alone = array(boxes(*(("cat", 0.5, place, i) for i in range(1, 51)))), array(boxes(("cat", 0.5, place, 1)))
    np.testing.assert_array_equal(same[273:300, 200:270], alone[273:300, 200:270])


def test_no_label_where_there_is_no_room():
    pixels = np.full((960, 40, 3), 100, np.uint8)
    picture = array(boxes(("cat", 0.5, (10, 200, 30, 400), 1), pixels=pixels))
    left = (picture.shape[1] - 40) // 2
    mask = (picture[:960, left : left + 40] != 100).any(-1)
    assert mask[200:400, 10:30].any() and not mask[:200].any() and not mask[400:].any() and not mask[203:397, 13:27].any()


@pytest.mark.parametrize("label", ["", " ", "猫", "🐈", "é" * 50, "a\nb"])
def test_odd_labels(label):
    boxes((label, 0.5, (200, 300, 500, 600), 1))
    draw_map(SMALL, MAP, colours(3), [(label, 0.5, (1, 2, 3))], label)
