"""Every kind of source that `read` and `expand` take, and every way in which it can be wrong."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from refvit.errors import ImageError
from refvit.vision import pixels
from refvit.vision.intake import expand, read

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
NOISE = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encode(image, format, **options):
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, format, **options)
    return file.getvalue()


def message(source, **options):
    with pytest.raises(ImageError) as caught:
        read(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


# what is accepted


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_from_every_kind_of_source(format, tmp_path):
    data = encode(PIXELS, format, **({"lossless": True} if format == "WEBP" else {}))
    path = tmp_path / "a.bin"  # the content decides, not the suffix
    path.write_bytes(data)
    sources = {str(path): str(path), path: str(path), data: "<bytes>", memoryview(data): "<bytes>"}
    for source, name in sources.items():
        picture = read(source)
        assert picture.source == name
        assert picture.notes == ()
        assert picture.size == (7, 5)
        np.testing.assert_array_equal(picture.pixels, PIXELS)
        assert picture.pixels.flags.c_contiguous
        assert not picture.pixels.flags.writeable
    assert np.array_equal(read(bytearray(data)).pixels, PIXELS)
    assert np.array_equal(read(Image.open(io.BytesIO(data))).pixels, PIXELS)


def test_jpeg_and_gif_equal_pillow():
    jpeg, gif = encode(NOISE, "JPEG"), encode(Image.fromarray(NOISE).quantize(16), "GIF")
    for data in (jpeg, gif):
        np.testing.assert_array_equal(read(data).pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_one_pixel():
    for format in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"):
        assert read(encode(np.full((1, 1, 3), 255, np.uint8), format)).pixels.tolist() == [[[255, 255, 255]]]
    assert read(np.zeros((1, 1, 3), np.uint8)).pixels.shape == (1, 1, 3)


def test_arrays_are_copied_whatever_their_layout():
    base = NOISE.copy()
    frozen = base.copy()
    frozen.flags.writeable = False
    for array in (base, base[::-1, ::2], base[:, :, ::-1], np.asfortranarray(base), frozen):
        picture = read(array)
        np.testing.assert_array_equal(picture.pixels, array)
        assert picture.pixels.flags.c_contiguous
        assert not picture.pixels.flags.writeable
        assert not np.shares_memory(picture.pixels, array)
        assert picture.source == "<array>"
    assert base.flags.writeable
    assert not frozen.flags.writeable


def test_pil_images_are_left_alone():
    image = Image.fromarray(PIXELS)
    picture = read(image)
    image.putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(picture.pixels, PIXELS)
    assert picture.source == "<image>"
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    palette.info["transparency"] = b"\x00\xff"
    before = palette.im.getpalette("RGBA", "RGBA")
    assert read(palette).pixels.tolist() == [[[255, 255, 255], [40, 50, 60]]]
    assert palette.mode == "P"
    assert palette.im.getpalette("RGBA", "RGBA") == before


# what is refused


def test_paths_that_are_no_image(tmp_path):
    assert "does not exist" in message(tmp_path / "nowhere" / "a.png")
    assert "nowhere" in message(tmp_path / "nowhere" / "a")
    assert "no such file" in message(tmp_path / "a.png")
    assert "a.png" in message(tmp_path / "a.png")
    assert "folder" in message(tmp_path)
    empty, text = tmp_path / "empty.png", tmp_path / "text.png"
    empty.touch()
    text.write_text("not an image")
    assert "empty" in message(empty)
    assert "empty" in message(b"")
    told = message(text)
    assert "text.png" in told
    assert "not an image" in told
    assert all(format in told for format in pixels.FORMATS)
    assert "cannot be opened" in message("nul\0byte.png")
    assert "folder" not in message("line\nbreak.png")
    assert "device" in message("/dev/null")


def test_other_formats_are_refused():
    for format in ("ICO", "PCX", "SGI", "DDS"):
        assert "expected JPEG" in message(encode(Image.new("RGB", (16, 16)), format))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_truncated(format):
    image = Image.fromarray(NOISE).quantize(32) if format == "GIF" else NOISE
    data = encode(image, format)
    whole = read(data).pixels
    for n in {*range(1, 40), *range(40, len(data) - 40, 211), *range(len(data) - 40, len(data))}:
        try:
            pixels = read(data[:n]).pixels
        except ImageError:
            pass
        else:  # only where nothing but a trailer is missing
            np.testing.assert_array_equal(pixels, whole, err_msg=f"{format} cut to {n} of {len(data)}")
            assert n > len(data) - 40
    for format_of_note in ("JPEG", "PNG"):
        cut = encode(NOISE, format_of_note)
        assert "damaged or truncated" in message(cut[: len(cut) // 2])


def test_a_huge_file_is_refused_without_reading_it(tmp_path):
    with open(tmp_path / "sparse.tif", "wb") as file:
        file.truncate(pixels.MAX_BYTES + 1)
    assert "bytes" in message(tmp_path / "sparse.tif")


class Tensor:
    ndim, shape = 3, (3, 4, 4)

    def __array__(self):
        return np.zeros(self.shape)

    def __iter__(self):
        return iter([])


@pytest.mark.parametrize("source", [None, 3, 1.5, object(), Tensor(), io.BytesIO(b"x")])
def test_unknown_kinds(source):
    assert "expected a path" in message(source)
    with pytest.raises(ImageError, match="expected a path"):
        expand(source)


def test_unknown_kinds_are_told_the_way():
    assert "np.asarray" in message(Tensor())
    assert ".read()" in message(io.BytesIO(b"x"))


def test_closed_pil_image(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(PIXELS, "PNG"))
    image = Image.open(path)
    image.close()
    assert "<image>" in message(image)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP"]),
    st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=4)), max_size=6),
    st.integers(0, 2**16),
)
def test_mutated_files_raise_nothing_but_image_errors(format, edits, end):
    data = bytearray(encode(NOISE[:16, :16], format))
    for at, new in edits:
        at %= len(data)
        data[at : at + len(new)] = new
    try:
        picture = read(bytes(data[: end % (2 * len(data)) + 1]))
    except ImageError:
        return
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.shape[2] == 3


# one or many


def names(source):
    many, sources = expand(source)
    assert many
    return [Path(item).name for item in sources]


@pytest.fixture
def folder(tmp_path):
    for name in ("img10.png", "img2.JPG", "Img1.png", ".hidden.png", "notes.txt", "sub/deep.png", "folder.png/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_one_source(folder):
    image = Image.new("RGB", (1, 1))
    for source in (folder / "img10.png", str(folder / "none.png"), b"x", image, PIXELS):
        many, sources = expand(source)
        assert not many
        assert [item is source for item in sources] == [True]


def test_folders(folder):
    assert names(folder) == names(str(folder)) == ["Img1.png", "img2.JPG", "img10.png"]
    (folder / "bare").mkdir()
    with pytest.raises(ImageError, match=r"without images.*\.jpg"):
        expand(folder / "bare")


def test_globs(folder):
    assert names(f"{folder}/*.png") == ["Img1.png", "img10.png"]
    assert names(folder / "**" / "*.png") == ["Img1.png", "img10.png", "deep.png"]
    with pytest.raises(ImageError, match="no file matches"):
        expand(f"{folder}/*.gif")
    (folder / "a[1].png").touch()
    many, sources = expand(f"{folder}/a[1].png")  # a file of that name wins over the pattern
    assert not many
    assert list(sources) == [f"{folder}/a[1].png"]


def test_iterables_are_lazy(folder):
    def numbers():
        yield PIXELS
        raise RuntimeError("asked for too much")

    many, sources = expand(numbers())
    assert many
    assert next(sources) is PIXELS
    many, sources = expand([folder, PIXELS])
    assert many
    assert "folder" in message(next(sources))
    assert expand([])[0]
    assert list(expand(())[1]) == []
    assert list(expand(np.array(["a.png", "b.png"]))[1]) == ["a.png", "b.png"]


def test_batches():
    many, sources = expand(np.stack([PIXELS, PIXELS]))
    assert many
    assert [read(item).size for item in sources] == [(7, 5)] * 2
    assert list(expand(np.zeros((0, 4, 4, 3), np.uint8))[1]) == []
    with pytest.raises(ImageError, match="uint8"):
        expand(np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(ImageError, match="transpose"):
        expand(np.zeros((2, 3, 4, 4), np.uint8))
