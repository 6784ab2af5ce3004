"""Answers: order, probabilities, data, and the picture of them."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from refvit.errors import ConfigError, ImageError
from refvit.vision.answers import DRAWN, Classes, Prediction
from refvit.vision.drawing import PANEL
from refvit.vision.pixels import PREVIEW, Picture
from refvit.vision.result import Result

RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (30, 20, 3), dtype=np.uint8)
LABELS = ("ant", "bee", "cat", "dog")


def result(logits=(0.0, 3.0, 1.0, 2.0), labels=LABELS, pixels=PIXELS, **fields):
    return Result(
        "a.png",
        Classes(np.array(logits, np.float32), labels),
        Picture(pixels, "a.png", ("a note",), (pixels.shape[1], pixels.shape[0])),
        {"model": "toy"},
        **fields,
    )


FAILED = Result("b.png", error=ImageError("b.png: broken"), provenance={"model": "toy"})


# order and probabilities


def test_top():
    top = result().top(3)
    assert [(p.label, p.index) for p in top] == [("bee", 1), ("dog", 3), ("cat", 2)]
    # softmax of 0, 1, 2, 3, by hand
    np.testing.assert_allclose([p.probability for p in top], [0.64391426, 0.23688282, 0.08714432], rtol=1e-6)
    assert isinstance(top[0], Prediction)
    assert [type(v) for v in top[0]] == [str, float, int]
    assert result().label == "bee"


def test_ties_are_in_the_order_of_the_classes():
    assert [p.index for p in result([1, 2, 2, 1]).top()] == [1, 2, 0, 3]
    many = result(np.arange(1000) % 2, None)  # an unstable sort keeps the order of a few
    assert [p.index for p in many.top(1000)] == [*range(1, 1000, 2), *range(0, 1000, 2)]


def test_k():
    assert len(result().top()) == 4
    assert len(result().top(100)) == 4
    assert len(result([0.0], ("only",)).top(1)) == 1
    assert result([0.0], ("only",)).top(1)[0].probability == 1
    for k in (0, -1):
        with pytest.raises(ConfigError, match="at least 1"):
            result().top(k)


@pytest.mark.parametrize("logits", [[1e4, 0, -1e4, 1], [-1e38] * 4, [3e38, -3e38, 0, 0], [0, 1e-3, 0, 0]])
def test_probabilities_of_any_logits(logits):
    p = result(logits).probabilities
    assert p.dtype == np.float64
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert p.min() >= 0
    assert p.argmax() == np.argmax(logits)


def test_without_labels():
    bare = result(labels=None)
    assert bare.top(1) == [Prediction(None, bare.probabilities[1], 1)]
    assert bare.label == "1"
    assert bare.to_dict(1)["top"][0]["label"] is None
    assert "1, 64.4%" in repr(bare)
    bare.plot()


# data


def test_data():
    answer = result().to_dict(2)
    assert set(answer) == {"source", "size", "top", "notes", "provenance"}
    assert answer["size"] == [20, 30]
    assert answer["notes"] == ["a note"]
    assert [p["label"] for p in answer["top"]] == ["bee", "dog"]
    assert json.loads(result().to_json(2)) == answer
    assert "\n" not in result(labels=("a\nb", "c", "d", "e")).to_json()
    assert "Käfer" in result(labels=("Käfer",) * 4).to_json()
    assert repr(result()) == "Result(a.png: bee, 64.4%)"


def test_a_failed_image():
    for use in (FAILED.top, FAILED.plot, lambda: FAILED.label, lambda: FAILED.probabilities):
        with pytest.raises(ImageError, match=r"b\.png: broken"):
            use()
    assert FAILED.to_dict() == {"source": "b.png", "error": "b.png: broken", "provenance": {"model": "toy"}}
    assert json.loads(FAILED.to_json())["error"] == "b.png: broken"
    assert "error: b.png: broken" in repr(FAILED)
    assert FAILED._repr_png_() is None


# files


@pytest.mark.parametrize(("suffix", "format"), [(".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP")])
def test_save_a_picture(tmp_path, suffix, format):
    path = result().save(str(tmp_path / "deep" / f"a{suffix}"), 2)
    assert path == tmp_path / "deep" / f"a{suffix}"
    with Image.open(path) as saved:
        assert saved.format == format
        assert saved.size == result().plot(2).size


def test_save_data(tmp_path):
    text = result().save(tmp_path / "a.json", 2).read_text("utf-8")
    assert text.endswith("\n")
    assert json.loads(text) == result().to_dict(2)
    assert "broken" in FAILED.save(tmp_path / "b.json").read_text()


def test_save_refuses(tmp_path):
    for name in ("a.bmp", "a", ".png", "a.png.txt"):
        with pytest.raises(ConfigError, match=r"ending in \.json, \.png"):
            result().save(tmp_path / name)
    with pytest.raises(ImageError, match="broken"):
        FAILED.save(tmp_path / "a.png")
    with pytest.raises(ConfigError):
        result().save(tmp_path / "a.png", 0)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        result().save(tmp_path / "file" / "a.png")
    assert os.listdir(tmp_path) == ["file"]


def test_a_picture_has_room_for_some_classes(tmp_path):
    many = result(RNG.standard_normal(1000), tuple(f"class {i}" for i in range(1000)))
    many.save(tmp_path / "a.webp", DRAWN)
    with pytest.raises(ConfigError, match=f"room for {DRAWN}"):
        many.save(tmp_path / "b.webp", DRAWN + 1)
    assert len(many.to_dict(1000)["top"]) == 1000


# pictures


def array(image):
    return np.asarray(image).astype(int)


def test_the_picture_shows_the_image_beside_the_classes():
    pixels = np.zeros((PREVIEW, PREVIEW, 3), np.uint8)
    pixels[: PREVIEW // 2] = (255, 0, 0)
    pixels[PREVIEW // 2 :, PREVIEW // 2 :] = (0, 0, 255)
    drawn = array(result(pixels=pixels).plot())
    assert drawn.shape == (PREVIEW, PREVIEW + PANEL, 3)
    np.testing.assert_array_equal(drawn[:, :PREVIEW], pixels)
    panel = drawn[:, PREVIEW:]
    assert tuple(panel[-1, -1]) == (255, 255, 255)
    assert (panel < 128).all(-1).any()  # ink


def test_the_image_itself_is_not_drawn_on():
    before = PIXELS.copy()
    result().plot()
    np.testing.assert_array_equal(PIXELS, before)


def blue(image):
    """Pixels of bars, row by row of the picture."""
    r, _, b = np.moveaxis(array(image), -1, 0)
    return ((b - r) > 120)[:, PREVIEW:].sum(1).max()


def test_the_picture_follows_the_answer():
    wide = np.full((10, 10, 3), 90, np.uint8)
    first = result(pixels=wide).plot()
    assert not np.array_equal(array(first), array(result((3.0, 0.0, 1.0, 2.0), pixels=wide).plot()))
    assert not np.array_equal(array(first), array(result(labels=LABELS[::-1], pixels=wide).plot()))
    np.testing.assert_array_equal(array(first), array(result(pixels=wide).plot()))
    sure, unsure = result((9, 0, 0, 0), pixels=wide).plot(1), result((0, 0, 0, 0), pixels=wide).plot(1)
    assert blue(sure) == pytest.approx(4 * blue(unsure), rel=0.05)
    assert result(pixels=wide).plot(1).size == (PREVIEW + PANEL, PREVIEW)


def test_long_names_stay_off_the_numbers():
    wide = np.full((10, 10, 3), 255, np.uint8)
    short, long = (array(result((9, 0, 0, 0), (name,) * 4, wide).plot(1)) for name in ("M" * 3, "M" * 300))
    right = slice(PREVIEW + PANEL - 75, None)  # the number and what is right of it
    np.testing.assert_array_equal(short[:60, right], long[:60, right])
    assert long.shape == short.shape


@pytest.mark.parametrize("label", ["", " ", "猫", "🐈", "é" * 50, "a\nb"])
def test_odd_names_are_drawn(label):
    result(labels=(label,) * 4).plot()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3000), (3000, 1), (2, 5), (700, 900)])
def test_any_aspect_ratio(height, width):
    drawn = result(pixels=np.full((height, width, 3), 77, np.uint8)).plot()
    factor = PREVIEW / max(height, width)
    assert drawn.width == max(1, round(width * factor)) + PANEL
    assert drawn.height >= 4 * 44
    assert (array(drawn) == 77).all(-1).sum() >= round(height * factor) * round(width * factor)


def test_many_classes_make_a_higher_picture():
    many = result(RNG.standard_normal(40), tuple(str(i) for i in range(40)))
    assert many.plot(40).height > many.plot(5).height == PREVIEW
    assert many.plot(40).height < 40 * 60


def test_notebooks_show_the_picture():
    assert Image.open(io.BytesIO(result()._repr_png_())).size == result().plot().size
