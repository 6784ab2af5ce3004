"""What each task does with an image: which inputs the network is run on, and how its raw outputs become an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refvit.errors import ConfigError
from refvit.graph.ir import Array
from refvit.vision import detection, joints, palettes, pose
from refvit.vision.answers import Answer, Box, Boxes, Classes, LabelMap, People
from refvit.vision.postprocess import DetectionPostprocess, PosePostprocess, Postprocess, SegmentationPostprocess
from refvit.vision.preprocess import Preprocess
from refvit.vision.segmentation import Views, padded, round_up


@dataclass(frozen=True)
class Facts:
    """What a task needs to know of a model. `multiple`: inputs are padded so that their sides are multiples of this."""

    task: str
    classes: int
    labels: tuple[str, ...] | None
    preprocess: Preprocess
    postprocess: Postprocess
    multiple: int
    align_corners: bool


@dataclass(frozen=True)
class Plan:
    """For one image: inputs (3, H, W), what to do with their raw outputs, and what the provenance is to say of this image."""

    inputs: list[Array]
    finish: Callable[[list[Any]], Answer]
    notes: dict[str, Any] = field(default_factory=dict)


def check(facts: Facts) -> None:
    """ConfigError for options that no image could be answered with."""
    pre, post = facts.preprocess, facts.postprocess
    if pre.crop is not None and facts.task != "classification":
        raise ConfigError(f"crop: {facts.task} answers for the whole image, so None expected, got {pre.crop}; resize instead")
    if isinstance(post, PosePostprocess):
        if pre.enlarge is not None or not isinstance(pre.resize, tuple):
            raise ConfigError("pose estimation needs inputs of one size: give resize=(height, width) and enlarge=None")
        if post.flip and not _pairs(facts):
            raise ConfigError("flip: mirrored joints need names, left_... and right_...; give labels, or flip=False")


def plan(facts: Facts, pixels: Array, boxes: Any = None) -> Plan:
    """The plan for an image, uint8 (h, w, 3). boxes: of the people in it, for pose estimation only."""
    post = facts.postprocess
    if isinstance(post, PosePostprocess):
        return _pose(facts, post, pixels, boxes)
    if isinstance(post, SegmentationPostprocess):
        return _segmentation(facts, post, pixels)
    if isinstance(post, DetectionPostprocess):
        return _detection(facts, post, pixels)
    return _classification(facts, pixels)


def _classification(facts: Facts, pixels: Array) -> Plan:
    x = facts.preprocess(pixels)
    h, w = x.shape[1:]
    size = round_up(h, facts.multiple), round_up(w, facts.multiple)
    notes = _padding([(h, w)], [size])
    return Plan([padded(x, size)], lambda outputs: Classes(outputs[0], facts.labels), notes)


def _segmentation(facts: Facts, post: SegmentationPostprocess, pixels: Array) -> Plan:
    align_corners, multiple = facts.align_corners, facts.multiple
    views = Views(pixels, facts.preprocess, post, align_corners=align_corners, multiple=multiple, pairs=_pairs(facts))

    def finish(outputs: list[Array]) -> LabelMap:
        colours = palettes.palette(facts.labels, facts.classes)
        return LabelMap(views.label_map(outputs), facts.labels, colours)

    sizes = [(x.shape[1], x.shape[2]) for x in views.inputs]
    return Plan(views.inputs, finish, _padding([v.inner for v in views.views], sizes))


def _pose(facts: Facts, post: PosePostprocess, pixels: Array, boxes: Any) -> Plan:
    size, pairs = facts.preprocess.input_size, _pairs(facts)
    assert size is not None  # `check`
    given, confidence = _person_boxes(boxes, pixels)
    frames = [pose.frame(box, size, post.padding) for box in given]
    crops = [facts.preprocess(pose.crop(pixels, frame, size)) for frame in frames]
    inputs = crops + [x[:, :, ::-1] for x in crops] if post.flip else crops

    def finish(outputs: list[Array]) -> People:
        n = len(given)
        if not n:
            return People(
                np.zeros((0, facts.classes, 3)),
                given,
                confidence,
                (),
                (),
                facts.labels,
                joints.limbs(facts.labels),
                post.joint_threshold,
            )
        heatmaps = np.stack(outputs[:n])
        if post.flip:
            heatmaps = (heatmaps + pose.flip_heatmaps(np.stack(outputs[n:]), pairs, shift=post.shift)) / 2
        found = pose.to_image(pose.decode(heatmaps), frames, heatmaps.shape[2:])
        scores = pose.person_scores(found, confidence, post.joint_threshold)
        areas = np.array([pose.area(frame) for frame in frames])
        keep = pose.oks_nms(found, scores, areas, post.oks_threshold, joints.sigmas(facts.labels, facts.classes))
        kept = tuple(sorted(int(i) for i in keep))
        rest = tuple(i for i in range(n) if i not in kept)
        index = list(kept)
        return People(
            found[index],
            given[index],
            scores[index],
            kept,
            rest,
            facts.labels,
            joints.limbs(facts.labels),
            post.joint_threshold,
        )

    return Plan(inputs, finish)


def _pairs(facts: Facts) -> tuple[tuple[int, int], ...]:
    """Joints or classes that change places in a mirror."""
    return joints.mirror_pairs(facts.labels) if facts.labels else ()


def _person_boxes(boxes: Any, pixels: Array) -> tuple[Array, Array]:
    """Boxes (n, 4) and scores (n,); the whole image if none are given."""
    h, w = pixels.shape[:2]
    try:
        rows = [[float(v) for v in row] for row in ([(0, 0, w, h)] if boxes is None else boxes)]
    except (TypeError, ValueError):
        rows = [[]]
    if any(len(row) not in (4, 5) or not np.isfinite(row).all() or min(row[2:4]) <= 0 for row in rows):
        raise ConfigError(
            f"boxes: rows x, y, width, height, the sizes above 0, with or without a score, expected, got {boxes!r:.80}"
        )
    given = np.array([row[:4] for row in rows]).reshape(-1, 4)
    scores = np.array([row[4] if len(row) == 5 else 1.0 for row in rows])
    beside = (given[:, 0] >= w) | (given[:, 1] >= h) | (given[:, 0] + given[:, 2] <= 0) | (given[:, 1] + given[:, 3] <= 0)
    if beside.any():
        raise ConfigError(f"boxes: {given[beside][0].tolist()} lies outside of the image, which is {w} x {h} pixels")
    return given, scores


def _detection(facts: Facts, post: DetectionPostprocess, pixels: Array) -> Plan:
    x = facts.preprocess(pixels)
    anchors = detection.anchors(detection.map_sizes(x.shape[1:]))

    def finish(outputs: list[dict[str, Array]]) -> Boxes:
        raw = outputs[0]
        found = detection.detect(raw["scores"], raw["boxes"], anchors, rule=post.rule, threshold=post.score_threshold)
        corners = detection.to_image(found.boxes, pixels.shape[:2])
        order = np.argsort(-found.scores, kind="stable")
        boxes = []
        for i in order:
            index = int(found.classes[i])
            label = facts.labels[index] if facts.labels else None
            boxes.append(Box(label, float(found.scores[i]), index, *(float(v) for v in corners[i])))
        return Boxes(tuple(boxes))

    return Plan([x], finish)


def _padding(inner: list[tuple[int, int]], sizes: list[tuple[int, int]]) -> dict[str, Any]:
    """For the provenance: sizes (h, w) of inputs before and after they were padded, if any were."""
    changed = sorted({(a, b) for a, b in zip(inner, sizes, strict=True) if a != b})
    return {"padded": [{"from": list(a), "to": list(b)} for a, b in changed]} if changed else {}
