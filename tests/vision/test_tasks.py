"""From an image to inputs and from raw outputs to an answer, with raw outputs made by hand so that the answer is known."""

import numpy as np
import pytest

from refvit.errors import ConfigError
from refvit.vision import detection, joints, palettes, pose
from refvit.vision.answers import Boxes, Classes, LabelMap, People
from refvit.vision.postprocess import DetectionPostprocess, PosePostprocess, Postprocess, SegmentationPostprocess
from refvit.vision.preprocess import Preprocess
from refvit.vision.tasks import Facts, check, plan


def preprocess(resize):
    return Preprocess(resize=resize, crop=None, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3, channel_order="rgb")


def picture(h, w, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def facts(task, post, *, classes, labels=None, resize=None, multiple=1):
    return Facts(task, classes, labels, preprocess(resize), post, multiple, False)


# classification


def test_classification():
    found = plan(facts("classification", Postprocess(), classes=3, labels=("a", "b", "c")), picture(20, 30))
    (x,) = found.inputs
    assert x.shape == (3, 20, 30) and found.notes == {}
    answer = found.finish([np.array([0.0, 2.0, 1.0], np.float32)])
    assert isinstance(answer, Classes) and answer.top(1)[0].label == "b"


def test_inputs_are_padded_and_that_is_noted():
    for task, post in (("classification", Postprocess()), ("segmentation", SegmentationPostprocess())):
        found = plan(facts(task, post, classes=3, multiple=32), picture(40, 64))
        assert found.inputs[0].shape == (3, 64, 64)
        assert not found.inputs[0][:, 40:].any()  # the mean colour
        assert found.notes == {"padded": [{"from": [40, 64], "to": [64, 64]}]}


# segmentation


def test_segmentation_gives_the_map_that_the_logits_show():
    expected = np.kron(np.random.default_rng(1).integers(0, 19, (10, 12)), np.ones((4, 4), int))
    logits = np.moveaxis(np.eye(19)[expected], -1, 0) * 9
    found = plan(
        facts("segmentation", SegmentationPostprocess(), classes=19, labels=palettes.names("cityscapes")), picture(40, 48)
    )
    answer = found.finish([logits.astype(np.float32)])
    assert isinstance(answer, LabelMap)
    np.testing.assert_array_equal(answer.map, expected)
    areas = answer.areas()
    assert sum(a.fraction for a in areas) == pytest.approx(1)
    for area in areas:
        assert area.fraction == (expected == area.index).mean()
        assert area.label == palettes.names("cityscapes")[area.index]
    assert [a.fraction for a in areas] == sorted((a.fraction for a in areas), reverse=True)
    np.testing.assert_array_equal(answer.colours, palettes.dataset("cityscapes").colours)


def test_left_and_right_change_places_in_a_mirror():
    """Logits that say "left arm" on the left of the picture and, of its mirror image, the same of what is then there."""
    labels = ("background", "Left-arm", "Right-arm")
    straight = np.zeros((3, 8, 8), np.float32)
    straight[1, :, :4], straight[2, :, 4:] = 1, 1
    found = plan(facts("segmentation", SegmentationPostprocess(flip=True), classes=3, labels=labels), picture(8, 8))
    mirrored = straight.copy()  # a network that names by position: in the mirror, left is what was right
    answer = found.finish([straight, mirrored])
    np.testing.assert_array_equal(answer.map, np.where(np.arange(8) < 4, 1, 2) * np.ones((8, 1), int))


# pose


SIZE = (256, 192)
POSE = facts("pose", PosePostprocess(), classes=17, labels=joints.COCO, resize=SIZE)


def gaussians(points, peak=1.0):
    """Heatmaps (17, 64, 48) with a Gaussian of sigma 2 at each point of a heatmap."""
    y, x = np.mgrid[:64, :48]
    return np.stack([peak * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 8) for px, py in points]).astype(np.float32)


def mirrored(heatmaps, pairs):
    """What a network that knows left from right gives for the mirror image: moved by the stride, sides exchanged."""
    order = np.arange(17)
    for a, b in pairs:
        order[[a, b]] = b, a
    moved = np.concatenate([heatmaps[..., 1:], np.zeros_like(heatmaps[..., :1])], -1)
    return moved[order][..., ::-1]


def test_pose_finds_the_joints_where_they_are():
    rng = np.random.default_rng(2)
    pixels, boxes = picture(300, 400), np.array([[50, 40, 80, 200], [200, 30, 150, 120.0]])
    found = plan(POSE, pixels, boxes)
    assert [x.shape for x in found.inputs] == [(3, *SIZE)] * 4
    np.testing.assert_array_equal(found.inputs[2], found.inputs[0][:, :, ::-1])
    frames = [pose.frame(box, SIZE) for box in boxes]
    np.testing.assert_array_equal(found.inputs[1], POSE.preprocess(pose.crop(pixels, frames[1], SIZE)))
    points = np.stack([rng.uniform(4, 43, (2, 17)), rng.uniform(4, 59, (2, 17))], -1)
    maps = [gaussians(p) for p in points]
    answer = found.finish([*maps, *[mirrored(m, joints.mirror_pairs(joints.COCO)) for m in maps]])
    assert isinstance(answer, People)
    for person, frame, place in zip(answer.keypoints, frames, points, strict=True):
        stride = frame.extent[0] / 48  # image pixels in one of the heatmap
        expected = frame.centre + (place - (24, 32)) * stride
        assert np.abs(person[:, :2] - expected).max() <= 0.2500001 * stride
        assert (person[:, 2] > 0.9).all()
    assert answer.indices == (0, 1) and answer.suppressed == ()
    np.testing.assert_array_equal(answer.boxes, boxes)
    np.testing.assert_allclose(answer.scores, answer.keypoints[:, :, 2].mean(1))


def test_without_boxes_the_image_is_one_person():
    found = plan(POSE, picture(200, 100))
    assert len(found.inputs) == 2
    frame = pose.frame((0, 0, 100, 200), SIZE)
    np.testing.assert_array_equal(found.inputs[0], POSE.preprocess(pose.crop(picture(200, 100), frame, SIZE)))


def test_of_two_alike_the_better_stays():
    post = PosePostprocess(flip=False)
    found = plan(
        facts("pose", post, classes=17, labels=joints.COCO, resize=SIZE), picture(300, 300), [[50, 50, 90, 120, 0.4]] * 2
    )
    points = np.random.default_rng(3).uniform(8, 40, (17, 2))
    answer = found.finish([gaussians(points, 0.5), gaussians(points, 0.9)])
    assert answer.indices == (1,) and answer.suppressed == (0,)
    assert answer.scores[0] == pytest.approx(0.4 * answer.keypoints[0, :, 2].mean())


def test_joints_below_the_threshold_do_not_count():
    post = PosePostprocess(flip=False, joint_threshold=0.5)
    found = plan(facts("pose", post, classes=17, labels=joints.COCO, resize=SIZE), picture(300, 300), [[50, 50, 90, 120]])
    heatmaps = np.zeros((17, 64, 48), np.float32)
    heatmaps[:5, 20, 20], heatmaps[5:, 30, 30] = 0.8, 0.4
    assert found.finish([heatmaps]).scores[0] == pytest.approx(0.8)


def test_no_boxes_no_people():
    found = plan(POSE, picture(50, 50), [])
    answer = found.finish([])
    assert found.inputs == [] and answer.keypoints.shape == (0, 17, 3)
    assert answer.brief() == "0 people" and answer.lines(5) == [] and answer.to_dict(5)["people"] == []


@pytest.mark.parametrize(
    "boxes",
    [[1, 2, 3, 4], [[1, 2, 3]], [[1, 2, 0, 4]], [[1, 2, -3, 4]], [[1, 2, float("nan"), 4]], "all", [["a"] * 4], 5, [[]]],
)
def test_bad_boxes_are_said(boxes):
    with pytest.raises(ConfigError, match="boxes: rows x, y, width, height"):
        plan(POSE, picture(50, 50), boxes)


@pytest.mark.parametrize("box", [[60, 0, 5, 5], [0, 50, 5, 5], [-9, 0, 9, 5], [0, -5, 5, 5]])
def test_a_box_beside_the_image_is_said(box):
    with pytest.raises(ConfigError, match="lies outside of the image, which is 60 x 50 pixels"):
        plan(POSE, picture(50, 60), [[1, 1, 5, 5], box])


def test_flipping_needs_names():
    with pytest.raises(ConfigError, match="flip: mirrored joints need names"):
        check(facts("pose", PosePostprocess(), classes=3, labels=("a", "b", "c"), resize=SIZE))
    with pytest.raises(ConfigError, match="give resize="):
        check(facts("pose", PosePostprocess(), classes=17, labels=joints.COCO))
    check(facts("pose", PosePostprocess(flip=False), classes=3, resize=SIZE))


# detection


def raw_for(boxes, classes, anchors, confidence=9.0):
    """Raw outputs whose anchors nearest to the given relative boxes, x0 y0 x1 y1, say exactly these boxes and classes."""
    offsets = np.zeros((len(anchors), 4), np.float32)
    scores = np.zeros((len(anchors), 81), np.float32)
    scores[:, 0] = 12
    for (x0, y0, x1, y1), index in zip(boxes, classes, strict=True):
        centre, size = np.array([(x0 + x1) / 2, (y0 + y1) / 2]), np.array([x1 - x0, y1 - y0])
        i = np.abs(anchors - np.concatenate([centre, size])).sum(1).argmin()
        offsets[i, :2] = (centre - anchors[i, :2]) / anchors[i, 2:] / 0.1
        offsets[i, 2:] = np.log(size / anchors[i, 2:]) / 0.2
        scores[i, 0], scores[i, index] = 0, confidence
    return {"scores": scores, "boxes": offsets}


@pytest.mark.parametrize("rule", ["cvnets-0.1", "cvnets-head"])
def test_detection_finds_the_boxes_that_the_outputs_say(rule):
    labels = ("background", *palettes.names("coco"))
    found = plan(
        facts("detection", DetectionPostprocess(rule=rule), classes=81, labels=labels, resize=(320, 320)), picture(200, 400)
    )
    (x,) = found.inputs
    assert x.shape == (3, 320, 320)
    boxes, classes = [(0.1, 0.2, 0.3, 0.6), (0.5, 0.5, 1.1, 0.9)], [1, 17]
    anchors = detection.anchors(detection.map_sizes((320, 320)))
    answer = found.finish([raw_for(boxes, classes, anchors)])
    assert isinstance(answer, Boxes)
    by_label = {b.label: b for b in answer.boxes}
    assert set(by_label) == {"person", "dog"}
    np.testing.assert_allclose(by_label["person"][3:], (40, 40, 120, 120), atol=1e-3)
    np.testing.assert_allclose(by_label["dog"][3:], (200, 100, 400, 180), atol=1e-3)  # cut at the border
    assert by_label["dog"].index == 17
    assert answer.boxes[0].score == pytest.approx(np.exp(9) / (np.exp(9) + 80), rel=1e-6)
    assert answer.to_dict(1)["boxes"][1]["label"] in by_label


def test_detection_threshold():
    anchors = detection.anchors(detection.map_sizes((320, 320)))
    raw = raw_for([(0.1, 0.2, 0.3, 0.6)], [5], anchors, confidence=4.4)  # 0.505
    for threshold, count in ((0.5, 1), (0.51, 0)):
        post = DetectionPostprocess(score_threshold=threshold)
        answer = plan(facts("detection", post, classes=81, resize=(320, 320)), picture(50, 50)).finish([raw])
        assert len(answer.boxes) == count
    assert answer.brief() == "no boxes"
