"""Names of classes from files, from the package, or none."""

import json

import pytest

from refvit.errors import ConfigError
from refvit.vision.labels import check_labels, default_labels, imagenet1k, read_labels


def test_imagenet():
    names = imagenet1k()
    assert len(names) == 1000
    known = {0: "tench, Tinca tinca", 281: "tabby, tabby cat", 285: "Egyptian cat", 388: "giant panda, panda", 980: "volcano"}
    for index, name in known.items():
        assert names[index].startswith(name)
    assert names[999].startswith("toilet tissue")
    assert all(name and name == name.strip() for name in names)


def test_default():
    assert default_labels("classification", 1000) == imagenet1k()
    assert default_labels("classification", 1001) is None
    assert default_labels("classification", 150) is None
    for task, classes, first, last in (
        ("segmentation", 150, "wall", "flag"),
        ("segmentation", 19, "road", "bicycle"),
        ("segmentation", 21, "background", "tvmonitor"),
        ("detection", 81, "background", "toothbrush"),
        ("pose", 17, "nose", "right_ankle"),
        ("pose", 16, "right_ankle", "left_wrist"),
    ):
        labels = default_labels(task, classes)
        assert (len(labels), labels[0], labels[-1]) == (classes, first, last)


@pytest.mark.parametrize("labels", [["a", "b"], ("a", "b"), ["", ""], ["a", "a"]])
def test_labels_that_fit(labels):
    assert check_labels(labels, 2) == tuple(labels)


@pytest.mark.parametrize("labels", ["ab", [1, 2], ["a", None], [b"a", b"b"], b"ab", {0: "a", 1: "b"}])
def test_labels_of_another_kind(labels):
    with pytest.raises(ConfigError, match="list or tuple of 2 strings expected"):
        check_labels(labels, 2)


def test_another_number_of_labels():
    with pytest.raises(ConfigError, match="the model has 3 classes, got 2 labels"):
        check_labels(["a", "b"], 3)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "Hund\nKatze, Kater\n"),
        ("a.txt", "  Hund\r\nKatze, Kater  "),
        ("a.txt", "\nHund\n\nKatze, Kater\n\n"),
        ("labels", "Hund\nKatze, Kater"),
        ("a.json", '["Hund", "Katze, Kater"]'),
        ("a.JSON", '{"0": "Hund", "1": "Katze, Kater"}'),
        ("a.json", '{"1": "Katze, Kater", "0": "Hund"}'),
        ("config.json", '{"model_type": "mobilevit", "id2label": {"1": "Katze, Kater", "0": "Hund"}, "label2id": {}}'),
    ],
)
def test_files(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    assert read_labels(tmp_path / name) == read_labels(str(tmp_path / name)) == ("Hund", "Katze, Kater")


def test_more_than_ten_in_a_json_table_are_in_numerical_order(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({str(i): f"n{i}" for i in sorted(range(12), key=str)}))
    assert read_labels(path) == tuple(f"n{i}" for i in range(12))


def test_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_text("Hund\nKatze", "utf-8-sig")
    assert read_labels(tmp_path / "a.txt") == ("Hund", "Katze")


@pytest.mark.parametrize(
    "text", ["{", "3", '"ab"', "[1, 2]", '{"1": "a", "2": "b"}', '{"a": "b"}', '{"0": 5}', '[["a"]]', "null"]
)
def test_json_of_another_form(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=r"labels file .*a\.json: ") as caught:
        read_labels(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.txt").write_bytes("Käfer".encode("latin-1"))
    for name in ("gone.txt", "latin.txt", "."):
        with pytest.raises(ConfigError, match="labels file"):
            read_labels(tmp_path / name)
