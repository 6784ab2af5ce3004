"""The joints that pose networks find: their names, the limbs between them, left and right, and how sharp their places are.

COCO and MPII are the names of a heatmap's channels. Left and right are those of the person.
"""

from __future__ import annotations

from collections.abc import Sequence

# fmt: off
COCO = (  # in the order of person_keypoints_val2017.json
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)
MPII = (  # in the order of the ids of the annotations
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "thorax", "upper_neck",
    "head_top", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist",
)
_LIMBS = {
    COCO: (  # the skeleton of person_keypoints_val2017.json
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10), (1, 2),
        (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    MPII: (  # the tree of parents in HRNet's repository
        (0, 1), (1, 2), (2, 6), (3, 6), (4, 3), (5, 4), (7, 6), (8, 7), (9, 8), (10, 11), (11, 12), (12, 7), (13, 7), (14, 13),
        (15, 14),
    ),
}
_SIGMAS = dict(zip(COCO, (  # of pycocotools
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
), strict=True))
# fmt: on


def limbs(names: Sequence[str] | None) -> tuple[tuple[int, int], ...]:
    """Pairs of joint indices, the lines of a drawn skeleton. Only COCO and MPII have some."""
    return _LIMBS.get(tuple(names or ()), ())


def sigmas(names: Sequence[str] | None, joints: int) -> tuple[float, ...]:
    """For the object keypoint similarity: how far annotators disagree about each joint, relative to the person's size.

    Measured for COCO's joints. Others of the same name are given the same, and any other joint the mean of all.
    """
    mean = sum(_SIGMAS.values()) / len(_SIGMAS)
    return tuple(_SIGMAS.get(name, mean) for name in names or [""] * joints)


def mirror_pairs(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Indices of what swaps places in a mirror: names that differ in a leading left and right. Each pair once, ascending."""
    places = {name.lower(): i for i, name in enumerate(names)}
    swaps = [(i, places.get("right" + name[4:])) for name, i in places.items() if name.startswith("left")]
    return tuple(sorted((min(i, k), max(i, k)) for i, k in swaps if k is not None))
