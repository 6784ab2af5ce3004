"""SSD's post-processing against loops, worked examples and the two releases' rules."""

import math

import numpy as np
import pytest

from refvit.errors import ConfigError, ShapeError
from refvit.model import architecture_graph
from refvit.vision.detection import RULES, anchors, decode, detect, iou, map_sizes, nms, to_image

MAPS_320 = ((20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1))


# anchors


def test_maps():
    assert map_sizes((320, 320)) == MAPS_320
    assert map_sizes((250, 331)) == ((16, 21), (8, 11), (4, 6), (2, 3), (1, 2), (1, 1))
    assert map_sizes((1, 1)) == ((1, 1),) * 6
    with pytest.raises(ShapeError, match="got 0x320"):
        map_sizes((0, 320))


@pytest.mark.parametrize("size", [(320, 320), (250, 331), (33, 65), (32, 600)])
def test_there_is_an_anchor_for_every_output_of_the_model(size):
    graph = architecture_graph("mobilevit_xxs_ssdlite", size)
    n = len(anchors(map_sizes(size)))
    assert graph.nodes[graph.outputs["scores"]].shape == (1, n, 81)
    assert graph.nodes[graph.outputs["boxes"]].shape == (1, n, 4)


def test_anchors_of_the_published_size():
    boxes = anchors(MAPS_320)
    assert boxes.shape == (3232, 4)
    # The first pixel of the first map, by hand: scales 0.1 and 0.1 + 0.95 / 6.
    large = math.sqrt(0.1 * (0.1 + 0.95 / 6))
    flat2, flat3 = (0.1 * math.sqrt(2), 0.1 / math.sqrt(2)), (0.1 * math.sqrt(3), 0.1 / math.sqrt(3))
    sizes = [(0.1, 0.1), (large, large), flat2, flat2[::-1], flat3, flat3[::-1]]
    np.testing.assert_allclose(boxes[:6], [(0.025, 0.025, *s) for s in sizes], rtol=1e-14)
    # The last map: scale 1.05 - 0.95 / 6, one ratio, clamped to 1.
    s = 1.05 - 0.95 / 6
    last = [(s, s), (math.sqrt(s * 1.05), math.sqrt(s * 1.05)), (1, s / math.sqrt(2)), (s / math.sqrt(2), 1)]
    np.testing.assert_allclose(boxes[-4:], [(0.5, 0.5, *s) for s in last], rtol=1e-14)


def anchors_by_loops(maps):
    scales = [0.1 + (1.05 - 0.1) * i / 6 for i in range(7)]
    boxes = []
    for i, (h, w) in enumerate(maps):
        small, large = scales[i], (scales[i] * scales[i + 1]) ** 0.5
        for y in range(h):
            for x in range(w):
                sizes = [(small, small), (large, large)]
                for r in (2,) if i == 5 else (2, 3):
                    sizes.append((small * r**0.5, small / r**0.5))
                    sizes.append((small / r**0.5, small * r**0.5))
                for bw, bh in sizes:
                    boxes.append([min(max(v, 0), 1) for v in ((x + 0.5) / w, (y + 0.5) / h, bw, bh)])
    return np.array(boxes)


@pytest.mark.parametrize("maps", [MAPS_320, map_sizes((100, 417)), ((2, 3), (1, 1), (3, 2), (1, 2), (2, 1), (1, 1))])
def test_anchors_of_any_maps(maps):
    np.testing.assert_allclose(anchors(maps), anchors_by_loops(maps), rtol=1e-14)


def test_anchors_refuse_another_number_of_maps():
    with pytest.raises(ShapeError, match="6 maps expected, got 5"):
        anchors(MAPS_320[:5])


# decoding


def test_decode():
    rng = np.random.default_rng(1)
    offsets, places = rng.standard_normal((50, 4)) * 3, rng.random((50, 4))
    for (tx, ty, tw, th), (cx, cy, w, h), box in zip(offsets, places, decode(offsets, places), strict=True):
        x, y = tx * 0.1 * w + cx, ty * 0.1 * h + cy
        bw, bh = math.exp(tw * 0.2) * w, math.exp(th * 0.2) * h
        np.testing.assert_allclose(box, [x - bw / 2, y - bh / 2, x + bw / 2, y + bh / 2], rtol=1e-13, atol=1e-14)
    centred = np.array([[0.5, 0.5, 0.2, 0.4]])
    np.testing.assert_allclose(decode(np.zeros((1, 4)), centred), [[0.4, 0.3, 0.6, 0.7]], rtol=1e-15)


def test_decode_refuses_other_shapes():
    for offsets, places in [((3, 4), (4, 4)), ((4,), (4,)), ((3, 5), (3, 5))]:
        with pytest.raises(ShapeError, match=r"one shape \(n, 4\) expected"):
            decode(np.ones(offsets), np.ones(places))


def test_boxes_in_pixels_of_the_image():
    boxes = np.array([[0.25, 0.5, 0.5, 1.0], [-0.5, -1.0, 2.0, 1.5], [-np.inf, -np.inf, np.inf, np.inf]])
    np.testing.assert_array_equal(to_image(boxes, (480, 640)), [[160, 240, 320, 480], [0, 0, 640, 480], [0, 0, 640, 480]])
    assert to_image(np.empty((0, 4)), (480, 640)).shape == (0, 4)


# non-maximum suppression


def test_iou():
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2], [0.5, 0.5, 1.5, 1.5], [5, 5, 6, 6]])
    np.testing.assert_allclose(iou(boxes[0], boxes), [1, 1 / 3, 0, 1 / 4, 0], rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_overlap_at_the_threshold_stays(dtype):
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2]], dtype)  # IoU 8/16
    scores = np.array([0.9, 0.8], dtype)
    assert nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, 0.4999).tolist() == [0]
    tenths = np.array([[0, 0, 10, 1], [0, 0, 3, 1]], dtype)  # 3/10 in float32 is above 0.3 and suppressed, in float64 it is 0.3
    assert nms(tenths, scores, 0.3).tolist() == ([0] if dtype == np.float32 else [0, 1])


def test_nms_is_greedy():
    # Each box overlaps the next by 3/5: the second goes because of the first, and then cannot suppress the third.
    boxes = np.array([[0, 0, 4, 1], [1, 0, 5, 1], [2, 0, 6, 1]], np.float64)
    assert nms(boxes, np.array([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]
    assert nms(boxes, np.array([0.7, 0.9, 0.8]), 0.5).tolist() == [1]
    assert nms(boxes, np.array([0.7, 0.8, 0.9]), 0.5).tolist() == [2, 0]


def test_equal_scores_stay_in_order():
    apart = np.arange(40.0)[:, None] * 2 + [0, 0, 1, 1]  # an unstable sort keeps the order of a few
    assert nms(apart, np.full(40, 0.5), 0.5).tolist() == list(range(40))
    assert nms(np.tile([0.0, 0.0, 1.0, 1.0], (5, 1)), np.full(5, 0.5), 0.5).tolist() == [0]


def test_degenerate_boxes():
    points = np.array([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1]])  # 0/0 suppresses nothing
    assert nms(points, np.array([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 1, 2]
    assert nms(np.empty((0, 4)), np.empty(0), 0.5).tolist() == []
    with pytest.raises(ShapeError, match="boxes"):
        nms(np.ones((3, 4)), np.ones(2), 0.5)


def nms_by_loops(boxes, scores, threshold):
    order = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    keep = []
    for i in order:
        ax0, ay0, ax1, ay1 = boxes[i]
        for j in keep:
            bx0, by0, bx1, by1 = boxes[j]
            inter = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
            if inter / ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - inter) > threshold:
                break
        else:
            keep.append(i)
    return keep


@pytest.mark.parametrize("seed", range(20))
def test_nms_of_random_boxes(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 80))
    corner = rng.random((n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.05, 0.5, (n, 2))], axis=1)
    scores = rng.random(n) if seed % 2 else rng.integers(1, 5, n) / 5
    if seed % 4 == 0:  # a grid gives many overlaps of exactly 1/2 and 1/4
        boxes = np.concatenate([c := rng.integers(0, 4, (n, 2)), c + rng.integers(1, 3, (n, 2))], axis=1).astype(float)
    for threshold in (0.25, 0.5):
        assert nms(boxes, scores, threshold).tolist() == nms_by_loops(boxes, scores, threshold)


# detection


def logits_of(probabilities):
    """Logits whose softmax is (background, *probabilities) for each row."""
    p = np.array(probabilities, np.float64)
    return np.log(np.concatenate([1 - p.sum(1, keepdims=True), p], axis=1))


PLACES = np.array([[0.2, 0.2, 0.2, 0.2], [0.2, 0.21, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]])  # the first two overlap by 0.90
OFFSETS = np.zeros((3, 4))


@pytest.mark.parametrize("rule", list(RULES))
def test_detect(rule):
    scores = logits_of([[0.5, 0.2], [0.6, 0.001], [0.3, 0.4]])
    found = detect(scores, OFFSETS, PLACES, rule=rule)
    # Class 1: the second box suppresses the first, the third is elsewhere. Class 2: the first is not suppressed.
    by_class = [(1, 1, 0.6), (2, 1, 0.3), (2, 2, 0.4), (0, 2, 0.2)]
    expected = by_class if rule == "cvnets-0.1" else sorted(by_class, key=lambda row: -row[2])
    assert found.classes.tolist() == [c for _, c, _ in expected]
    np.testing.assert_allclose(found.scores, [p for _, _, p in expected], rtol=1e-12)
    np.testing.assert_allclose(found.boxes, decode(OFFSETS, PLACES)[[i for i, _, _ in expected]], rtol=1e-15)


def test_thresholds():
    scores = logits_of([[0.045, 0.2], [0.009, 0.3], [0.06, 0.011]])
    assert detect(scores, OFFSETS, PLACES, rule="cvnets-0.1").classes.tolist() == [1, 2]
    assert detect(scores, OFFSETS, PLACES, rule="cvnets-head").classes.tolist() == [2, 1, 1, 2]
    lower = detect(scores, OFFSETS, PLACES, rule="cvnets-0.1", threshold=0.01)
    assert lower.classes.tolist() == [1, 1, 2, 2]
    np.testing.assert_allclose(lower.scores, [0.06, 0.045, 0.3, 0.011], rtol=1e-12)
    half = np.log([[1.0, 1.0]] * 3)  # exactly at the threshold: not above it
    assert len(detect(half, OFFSETS, PLACES, rule="cvnets-head", threshold=0.5).scores) == 0


def grid(n):
    """n boxes that do not touch each other, in a square."""
    side = math.ceil(math.sqrt(n))
    y, x = np.divmod(np.arange(n), side)
    return np.stack([(x + 0.5) / side, (y + 0.5) / side, np.full(n, 0.5 / side), np.full(n, 0.5 / side)], axis=1)


def test_limits_differ():
    # Two classes, 300 boxes apart from each other, all above both thresholds: 200 of each class, or the best 200 of all.
    places, rng = grid(300), np.random.default_rng(2)
    p = rng.uniform(0.1, 0.4, (300, 2))
    old, new = (detect(logits_of(p), np.zeros((300, 4)), places, rule=rule) for rule in RULES)
    assert [np.count_nonzero(old.classes == c) for c in (1, 2)] == [200, 200]
    np.testing.assert_allclose(old.scores, np.concatenate([np.sort(p[:, c])[:-201:-1] for c in (0, 1)]), rtol=1e-12)
    assert len(new.scores) == 200
    np.testing.assert_allclose(new.scores, np.sort(p.ravel())[:-201:-1], rtol=1e-12)
    assert set(new.classes.tolist()) == {1, 2}


def test_candidates_differ():
    # 400 boxes in one place are the best of the class, 100 elsewhere come after them. HEAD never looks at those.
    n = 500
    places = np.concatenate([np.tile([0.9, 0.9, 0.1, 0.1], (400, 1)), grid(100) * [0.8, 0.8, 0.8, 0.8]])
    scores = logits_of(np.linspace(0.9, 0.1, n)[:, None])
    old, new = (detect(scores, np.zeros((n, 4)), places, rule=rule) for rule in RULES)
    assert len(old.scores) == 101
    assert len(new.scores) == 1
    np.testing.assert_array_equal(new.boxes[0], old.boxes[0])


def detect_by_loops(scores, offsets, places, threshold, candidates, per_class, per_image):
    boxes, found = decode(offsets, places).tolist(), []
    e = np.exp(scores - scores.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    for c in range(1, p.shape[1]):
        rows = sorted((i for i in range(len(p)) if p[i, c] > threshold), key=lambda i: (-p[i, c], i))[:candidates]
        keep = nms_by_loops([boxes[i] for i in rows], [p[i, c] for i in rows], 0.5)[:per_class]
        found += [(boxes[rows[k]], p[rows[k], c], c) for k in keep]
    return sorted(found, key=lambda row: -row[1])[:per_image] if per_image else found


@pytest.mark.parametrize("seed", range(6))
def test_detect_random_outputs(seed):
    rng = np.random.default_rng(seed)
    places = anchors(map_sizes((64, 96)))
    scores = rng.standard_normal((len(places), 6)) * 2
    offsets = rng.standard_normal((len(places), 4))
    for rule, limits in [("cvnets-0.1", (0.05, None, 200, None)), ("cvnets-head", (0.01, 400, None, 200))]:
        found = detect(scores, offsets, places, rule=rule)
        expected = detect_by_loops(scores, offsets, places, *limits)
        assert found.classes.tolist() == [c for _, _, c in expected]
        np.testing.assert_allclose(found.boxes, [b for b, _, _ in expected], rtol=1e-13)
        np.testing.assert_allclose(found.scores, [s for _, s, _ in expected], rtol=1e-13)


@pytest.mark.parametrize("rule", list(RULES))
def test_nothing_found(rule):
    sure = np.tile([20.0, 0.0, 1.0], (3, 1))  # all background
    found = detect(sure, OFFSETS, PLACES, rule=rule)
    assert (found.boxes.shape, found.scores.shape, found.classes.shape) == ((0, 4), (0,), (0,))


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_extreme_outputs_give_no_nan(rule, dtype):
    rng = np.random.default_rng(3)
    scores = (rng.standard_normal((3, 4)) * 1e4).astype(dtype)
    scores[:, 0] = -6e4
    offsets = (rng.choice([-1, 1], (3, 4)) * 6e4).astype(dtype)  # exp overflows, and underflows to 0
    found = detect(scores, offsets, PLACES, rule=rule)
    assert len(found.scores) == 3
    assert all(a.dtype == np.float64 for a in found[:2])
    assert np.isfinite(found.scores).all()
    assert not np.isnan(found.boxes).any()
    inside = to_image(found.boxes, (480, 640))
    assert (inside >= 0).all() and (inside <= [640, 480, 640, 480]).all()


def test_equal_scores_are_in_the_order_of_classes_and_anchors():
    n = 500  # an unstable sort keeps the order of a few
    high = np.random.default_rng(4).random(n) < 0.5
    p = np.where(high, 0.3, 0.2)[:, None] * [1, 1, 1]
    old, new = (detect(logits_of(p), np.zeros((n, 4)), grid(n), rule=rule) for rule in RULES)
    boxes = decode(np.zeros((n, 4)), grid(n))
    order = np.concatenate([np.flatnonzero(high), np.flatnonzero(~high)])[:200]
    assert old.classes.tolist() == [1] * 200 + [2] * 200 + [3] * 200
    np.testing.assert_array_equal(old.boxes, np.tile(boxes[order], (3, 1)))
    assert new.classes.tolist() == [1] * 200
    np.testing.assert_array_equal(new.boxes, boxes[order])


def test_detect_refuses():
    scores = logits_of([[0.5], [0.5], [0.5]])
    with pytest.raises(ConfigError, match=r"no rule 'ssd'; known are cvnets-0\.1, cvnets-head"):
        detect(scores, OFFSETS, PLACES, rule="ssd")
    with pytest.raises(ShapeError, match=r"logits \(2, classes\) expected, one row an anchor, got \(3, 2\)"):
        detect(scores, OFFSETS, PLACES[:2], rule="cvnets-0.1")
    with pytest.raises(ShapeError, match=r"got \(3, 1\)"):
        detect(scores[:, :1], OFFSETS, PLACES, rule="cvnets-0.1")
    with pytest.raises(ShapeError, match="offsets and anchors"):
        detect(scores, OFFSETS[:2], PLACES, rule="cvnets-0.1")
    for bad in (np.nan, np.inf):
        with pytest.raises(ConfigError, match="NaN or infinite"):
            detect(np.where(scores == scores[0, 0], bad, scores), OFFSETS, PLACES, rule="cvnets-0.1")
        with pytest.raises(ConfigError, match="NaN or infinite"):
            detect(scores, OFFSETS + bad, PLACES, rule="cvnets-0.1")


def test_inputs_are_not_written_to():
    scores, offsets, places = logits_of([[0.5, 0.2], [0.6, 0.1], [0.3, 0.4]]), OFFSETS.copy(), PLACES.copy()
    for array in (scores, offsets, places):
        array.flags.writeable = False
    found = detect(scores, offsets, places, rule="cvnets-0.1")
    found.boxes.flags.writeable = False
    to_image(found.boxes, (20, 10))
