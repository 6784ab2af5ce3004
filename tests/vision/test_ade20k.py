"""Real annotations through the segmentation pipeline: a network that knew the answer would get exactly it."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refvit.vision import palettes
from refvit.vision.postprocess import SegmentationPostprocess
from refvit.vision.preprocess import Preprocess
from refvit.vision.tasks import Facts, plan

DATA = Path(os.environ.get("REFVIT_TEST_DATA", "")) / "ade20k"
pytestmark = pytest.mark.skipif(
    not os.environ.get("REFVIT_TEST_DATA"), reason="REFVIT_TEST_DATA is not set: no annotated images to test with"
)
NAMES = ("ADE_val_00000001", "ADE_val_00000002", "ADE_val_00000003")
KEEP = Preprocess(resize=None, crop=None, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3, channel_order="rgb")


def sample(name):
    """The image and its annotation: 0 is unlabelled, 1 to 150 are the classes."""
    return np.asarray(Image.open(DATA / f"{name}.jpg").convert("RGB")), np.asarray(Image.open(DATA / f"{name}.png"))


def mean_iou(found, truth):
    """Mean over the classes that occur of intersection over union; `truth` counts from 1, its 0 is ignored."""
    truth = truth.astype(int)
    known = truth > 0
    confusion = np.bincount((truth[known] - 1) * 150 + found[known].astype(int), minlength=150 * 150).reshape(150, 150)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return (confusion.diagonal()[union > 0] / union[union > 0]).mean()


def answer(pixels, logits, **post):
    facts = Facts("segmentation", 150, palettes.names("ade20k"), KEEP, SegmentationPostprocess(**post), 1, False)
    ready = plan(facts, pixels)
    return ready.finish([logits(x.shape[1:]) for x in ready.inputs])


@pytest.mark.parametrize("name", NAMES)
def test_the_annotation_is_its_own_answer(name):
    pixels, truth = sample(name)
    assert truth.shape == pixels.shape[:2] and truth.max() <= 150
    classes = np.maximum(truth.astype(int) - 1, 0)
    found = answer(pixels, lambda size: (np.arange(150)[:, None, None] == classes).astype(np.float32))
    np.testing.assert_array_equal(found.map, classes)
    assert mean_iou(found.map, truth) == 1
    for area in found.areas():
        assert area.fraction == (classes == area.index).mean()
    assert np.asarray(found.draw(_picture(pixels, name), "ADE20K", 8)).std() > 10


@pytest.mark.parametrize("name", NAMES)
def test_logits_at_stride_four_cost_only_borders(name):
    """The mean of each 4x4 block, as a perfect network of that stride says; all that is lost lies near a border."""
    pixels, truth = sample(name)
    classes = np.maximum(truth.astype(int) - 1, 0)
    h, w = (s // 4 * 4 for s in classes.shape)
    present = np.unique(classes)
    logits = np.zeros((150, h // 4, w // 4), np.float32)
    for c in present:
        logits[c] = (classes[:h, :w] == c).reshape(h // 4, 4, w // 4, 4).mean((1, 3))
    found = answer(pixels[:h, :w], lambda size: logits).map
    wrong = found != classes[:h, :w]
    border = np.zeros((h, w), bool)
    for dy in range(-4, 5):
        for dx in range(-4, 5):
            moved = np.roll(classes[:h, :w], (dy, dx), (0, 1))
            border |= moved != classes[:h, :w]
    assert not (wrong & ~border).any()
    assert mean_iou(found, truth[:h, :w]) > 0.8


def _picture(pixels, name):
    from refvit.vision.pixels import Picture

    return Picture(pixels, name, (), (pixels.shape[1], pixels.shape[0])).preview("segmentation")
