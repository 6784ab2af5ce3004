"""The tables of joints: symmetric, connected, and under the names that flipping and suppression look up."""

import numpy as np
import pytest

from refvit.vision.joints import COCO, MPII, limbs, mirror_pairs, sigmas

COCO_PAIRS = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))
SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000


def test_left_and_right_of_the_joint_sets():
    assert len(COCO) == 17
    assert mirror_pairs(COCO) == COCO_PAIRS
    assert len(MPII) == 16
    assert mirror_pairs(MPII) == ((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13))
    assert mirror_pairs(["Right-arm", "lefty", "hat", "Left-arm", "left_leg"]) == ((0, 3),)
    assert mirror_pairs([]) == ()


@pytest.mark.parametrize("names", [COCO, MPII])
def test_limbs_connect_every_joint_and_are_symmetric(names):
    pairs = limbs(names)
    reached = {0}
    for _ in names:
        reached |= {j for pair in pairs if reached & set(pair) for j in pair}
    assert reached == set(range(len(names)))
    swap = dict(mirror_pairs(names)) | {k: i for i, k in mirror_pairs(names)}
    known = {frozenset(pair) for pair in pairs}
    assert len(known) == len(pairs)
    assert {frozenset(swap.get(j, j) for j in pair) for pair in pairs} == known
    assert limbs(list(names)) == pairs


def test_joints_of_other_names():
    assert limbs(None) == limbs(("nose", "tail")) == ()
    np.testing.assert_array_equal(sigmas(COCO, 17), SIGMAS)
    mean = pytest.approx(SIGMAS.mean())
    assert sigmas(("tail", "left_hip"), 2) == (mean, 0.107)
    assert sigmas(None, 3) == (mean, mean, mean)
