"""Names and colours of data sets, and colours of no data set."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from refvit.errors import ConfigError
from refvit.vision.palettes import DATASETS, colours, dataset, names, palette, vivid

COUNTS = {"ade20k": 150, "cityscapes": 19, "coco": 80, "lip": 20, "voc": 21}


@pytest.mark.parametrize("name", DATASETS)
def test_every_class_has_a_name_and_a_colour(name):
    labels, colour = dataset(name)
    assert labels == names(name)
    assert len(labels) == len(set(labels)) == COUNTS[name]
    assert all(label and label == label.strip() and "\t" not in label for label in labels)
    assert colour.shape == (COUNTS[name], 3)
    assert colour.dtype == np.uint8
    assert not colour.flags.writeable


@pytest.mark.parametrize(
    ("name", "index", "label", "colour"),
    [
        ("ade20k", 0, "wall", (120, 120, 120)),
        ("ade20k", 2, "sky", (6, 230, 230)),
        ("ade20k", 12, "person", (150, 5, 61)),
        ("ade20k", 44, "chest of drawers", (6, 51, 255)),
        ("ade20k", 90, "airplane", (0, 255, 82)),
        ("ade20k", 149, "flag", (92, 0, 255)),
        ("cityscapes", 0, "road", (128, 64, 128)),
        ("cityscapes", 8, "vegetation", (107, 142, 35)),
        ("cityscapes", 11, "person", (220, 20, 60)),
        ("cityscapes", 18, "bicycle", (119, 11, 32)),
        ("lip", 14, "Left-arm", (64, 128, 128)),
        ("lip", 19, "Right-shoe", (128, 192, 0)),
        ("voc", 0, "background", (0, 0, 0)),
        ("voc", 1, "aeroplane", (128, 0, 0)),
        ("voc", 15, "person", (192, 128, 128)),
        ("voc", 20, "tvmonitor", (0, 64, 128)),
    ],
)
def test_known_classes(name, index, label, colour):
    labels, table = dataset(name)
    assert labels[index] == label
    assert tuple(table[index]) == colour


def test_coco_is_in_the_order_of_its_category_ids():
    labels = names("coco")
    known = {0: "person", 1: "bicycle", 10: "fire hydrant", 24: "backpack", 39: "bottle", 67: "cell phone", 79: "toothbrush"}
    assert {i: labels[i] for i in known} == known
    assert not {"street sign", "hat", "desk", "background"} & set(labels)  # category ids without boxes, and no class at all


def test_names_of_ade20k_are_the_first_of_their_synonyms():
    folder = os.environ.get("REFVIT_TEST_DATA")
    if not folder:
        pytest.skip("REFVIT_TEST_DATA names no folder with ade20k/objectInfo150.csv")
    with open(Path(folder) / "ade20k" / "objectInfo150.csv", encoding="utf-8") as file:
        words = [row["Name"].split(";") for row in csv.DictReader(file)]  # synonyms and their words alike are separated by ;
    for label, synonyms in zip(names("ade20k"), words, strict=True):
        assert label.split() == synonyms[: len(label.split())]


def test_ade20k_has_one_colour_twice():
    labels, table = dataset("ade20k")
    _, first = np.unique(table, axis=0, return_index=True)
    (twin,) = set(range(150)) - set(first.tolist())
    assert (labels[6], labels[twin]) == ("road", "skyscraper")  # as published
    assert tuple(table[6]) == tuple(table[twin]) == (140, 140, 140)


def test_an_unknown_data_set():
    with pytest.raises(ConfigError, match="no data set 'kitti'; known are ade20k, cityscapes, coco, lip, voc"):
        dataset("kitti")


# colours of any number of classes


def test_the_recipe_of_pascal_voc():
    np.testing.assert_array_equal(colours(21), dataset("voc").colours)
    by_hand = {8: (64, 0, 0), 63: (192, 192, 192), 64: (32, 0, 0), 255: (224, 224, 192)}  # 255 is the border in VOC's files
    assert {i: tuple(map(int, colours(256)[i])) for i in by_hand} == by_hand


@pytest.mark.parametrize("k", [1, 2, 20, 21, 59, 60, 171, 300])
def test_colours_are_distinct_and_do_not_depend_on_k(k):
    assert colours(k).shape == (k, 3)
    assert colours(k).dtype == np.uint8
    assert len(np.unique(colours(k), axis=0)) == k
    np.testing.assert_array_equal(colours(k), colours(301)[:k])


def test_colours_by_labels():
    for name in DATASETS:
        np.testing.assert_array_equal(palette(list(names(name)), COUNTS[name]), dataset(name).colours)
    for labels in (None, names("cityscapes")[::-1], ("a", "b")):
        np.testing.assert_array_equal(palette(labels, 19), colours(19))


def test_vivid_colours():
    many = vivid(300)
    assert len(np.unique(many, axis=0)) == 300
    np.testing.assert_array_equal(vivid(7), many[:7])
    np.testing.assert_array_equal(dataset("coco").colours, many[1:81])  # by class of a detector
    assert many.max(1).min() > 200  # bright
    assert (many.max(1).astype(int) - many.min(1)).min() > 100  # and not grey
    for i in range(12):  # neighbours can be told apart
        others = np.delete(many[:12].astype(int), i, axis=0)
        assert np.abs(others - many[i]).sum(1).min() > 60
    assert vivid(0).shape == colours(0).shape == (0, 3)
