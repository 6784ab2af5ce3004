"""From Pillow's modes, frames and orientations, and from arrays, to RGB uint8: against values known before."""

import io
import struct
import time
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from refvit.errors import ImageError
from refvit.vision import pixels
from refvit.vision.intake import read

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encode(image, format, **options):
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, format, **options)
    return file.getvalue()


def png(width, height, depth, colour, rows, extra=b""):
    """A PNG file from its parts, written without Pillow."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def message(source, **options):
    with pytest.raises(ImageError) as caught:
        read(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


# modes


def over_white(colour, alpha):
    return [round((c * alpha + 255 * (255 - alpha)) / 255) for c in colour]


def test_alpha_over_white_for_every_value_and_alpha():
    value, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    exact = np.rint((value / 255.0 * alpha / 255.0 + 1 - alpha / 255.0) * 255).astype(np.uint8)
    for image in (np.dstack([value] * 3 + [alpha]), np.dstack([value, alpha])):  # RGBA, LA
        picture = read(encode(image, "PNG"))
        np.testing.assert_array_equal(picture.pixels, np.dstack([exact] * 3))
        assert picture.notes == ("alpha composited over white",)
    opaque = read(encode(np.dstack([PIXELS, np.full((5, 7), 255, np.uint8)]), "PNG"))
    np.testing.assert_array_equal(opaque.pixels, PIXELS)
    assert opaque.notes == ()


def one(mode, value):
    return read(Image.new(mode, (1, 1), value))


def test_modes_by_hand():
    assert one("1", 1).pixels.tolist() == [[[255] * 3]]
    assert one("L", 77).pixels.tolist() == [[[77] * 3]]
    assert one("RGBX", (1, 2, 3, 9)).pixels.tolist() == [[[1, 2, 3]]]
    assert one("LA", (100, 51)).pixels.tolist() == [[over_white([100] * 3, 51)]]
    assert one("RGBA", (10, 200, 0, 128)).pixels.tolist() == [[over_white((10, 200, 0), 128)]]
    assert one("La", (20, 51)).pixels.tolist() == [[[20 + 204] * 3]]
    assert one("RGBa", (5, 100, 0, 128)).pixels.tolist() == [[[5 + 127, 100 + 127, 127]]]
    assert one("RGBa", (5, 100, 0, 128)).notes == ("alpha composited over white",)
    assert one("HSV", (0, 255, 255)).pixels.tolist() == [[[255, 0, 0]]]
    # JFIF: R = Y + 1.402 (Cr - 128) and so on
    y, cb, cr = 100, 90, 180
    exact = [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)]
    np.testing.assert_allclose(one("YCbCr", (y, cb, cr)).pixels[0, 0], exact, atol=1)


def test_lab():
    lab = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    image = ImageCms.applyTransform(Image.new("RGB", (1, 1), (200, 60, 30)), ImageCms.buildTransform(*lab[::-1], "RGB", "LAB"))
    assert image.mode == "LAB"
    np.testing.assert_allclose(read(image).pixels[0, 0], (200, 60, 30), atol=3)


def test_palettes():
    image = Image.new("P", (3, 1))
    image.putpalette([9, 8, 7, 40, 50, 60, 100, 110, 120])
    image.putdata([0, 1, 2])
    assert read(encode(image, "PNG")).pixels.tolist() == [[[9, 8, 7], [40, 50, 60], [100, 110, 120]]]
    clear = read(encode(image, "PNG", transparency=1))
    assert clear.pixels.tolist() == [[[9, 8, 7], [255] * 3, [100, 110, 120]]]
    assert len(clear.notes) == 1
    half = read(encode(image, "PNG", transparency=bytes([255, 128, 0])))
    assert half.pixels.tolist() == [[[9, 8, 7], over_white((40, 50, 60), 128), [255] * 3]]
    gif = read(encode(image, "GIF", transparency=2))
    assert gif.pixels.tolist() == [[[9, 8, 7], [40, 50, 60], [255] * 3]]
    pa = image.convert("PA")
    pa.putpixel((1, 0), (1, 0))
    assert read(pa).pixels.tolist() == [[[9, 8, 7], [255] * 3, [100, 110, 120]]]


def chunk_trns(values):
    data = struct.pack(f">{len(values)}H", *values)
    return struct.pack(">I", len(data)) + b"tRNS" + data + struct.pack(">I", zlib.crc32(b"tRNS" + data))


def test_transparent_colours():
    rgb = read(png(2, 1, 8, 2, bytes([0, 1, 2, 3, 4, 5, 6]), chunk_trns((4, 5, 6))))
    assert rgb.pixels.tolist() == [[[1, 2, 3], [255] * 3]]
    assert read(png(2, 1, 8, 0, bytes([0, 10, 20]), chunk_trns((10,)))).pixels[0, :, 0].tolist() == [255, 20]
    assert read(png(8, 1, 1, 0, bytes([0, 0b10101010]), chunk_trns((0,)))).pixels.min() == 255
    grey = read(png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 1000, 2570), chunk_trns((1000,))))
    assert grey.pixels[0, :, 0].tolist() == [255, 10]
    assert len(grey.notes) == 2


VALUES = [0, 128, 129, 257, 385, 386, 32768, 40000, 65407, 65535]  # both sides of each rounding
BYTES = [0, 0, 1, 1, 1, 2, 128, 156, 255, 255]


def test_16_bit_grey_is_scaled_not_clipped():
    rows = b"\0" + struct.pack(">10H", *VALUES)
    image = Image.fromarray(np.array([VALUES], np.uint16))
    assert image.mode == "I;16"
    big = Image.frombytes("I;16B", (10, 1), rows[1:])
    pgm = b"P5 10 1 65535\n" + rows[1:]
    for source in (png(10, 1, 16, 0, rows), encode(image, "TIFF"), encode(big, "TIFF"), pgm, image, big):
        picture = read(source)
        assert picture.pixels[0].tolist() == [[b] * 3 for b in BYTES]
        assert picture.notes == ("16-bit grey scaled by 1/257",)
    old = Image.fromarray(np.array([VALUES], np.int32))  # how older Pillow versions decode such a PNG
    old.format = "PNG"
    assert read(old).pixels[0].tolist() == [[b] * 3 for b in BYTES]


def test_grey_of_unknown_range_is_refused():
    assert "32-bit integer" in message(Image.new("I", (2, 2), 70000))
    assert "floating-point" in message(Image.new("F", (2, 2), 0.5))
    assert "mode I" in message(encode(Image.new("I", (2, 2), 70000), "TIFF"))
    tiff = encode(Image.fromarray(np.array([VALUES], np.uint16)), "TIFF")
    photometric = struct.pack("<HHII", 262, 3, 1, 1)
    assert tiff.count(photometric) == 1
    assert "white-is-zero" in message(tiff.replace(photometric, struct.pack("<HHII", 262, 3, 1, 0)))


def test_cmyk():
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], np.uint8)
    expected = [[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0]]
    picture = read(Image.frombytes("CMYK", (4, 1), inks.tobytes()))
    assert picture.pixels[0].tolist() == expected
    assert picture.notes == ("CMYK converted without a colour profile",)
    for k, colour in enumerate(expected):  # Adobe's JPEGs hold inverted inks; Pillow writes and reads them so
        data = encode(Image.new("CMYK", (16, 16), tuple(inks[0, k].tolist())), "JPEG", quality=100)
        assert b"Adobe" in data
        np.testing.assert_allclose(read(data).pixels[8, 8], colour, atol=3)


# frames and orientation


def test_first_of_many_frames():
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "lime", "blue")]
    for format, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        picture = read(encode(frames[0], format, save_all=True, append_images=frames[1:], **options))
        assert picture.notes == ("frame 1 of 3 used",), format
        assert picture.pixels[0, 0].tolist() == [255, 0, 0]
    mpo = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(mpo)).format == "MPO"
    picture = read(mpo)
    assert picture.notes == ()
    assert np.abs(picture.pixels[0, 0].astype(int) - (255, 0, 0)).max() <= 2


# The letter F as it should be seen, and how a camera of each orientation stores it (row 0 is ..., column 0 is ...).
UPRIGHT = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]], np.uint8) * 255
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: UPRIGHT.T[::-1],  # row 0 is the right side, column 0 the top
    7: UPRIGHT.T[::-1, ::-1],
    8: UPRIGHT.T[:, ::-1],  # row 0 is the left side, column 0 the bottom
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "PIL"])
def test_exif_orientation(orientation, format):
    stored = Image.fromarray(np.kron(STORED[orientation], np.ones((16, 16), np.uint8))).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    if format == "PIL":
        source = Image.open(io.BytesIO(encode(stored, "PNG", exif=exif)))
    else:
        source = encode(stored, format, exif=exif)
    picture = read(source)
    assert picture.size == (48, 64)
    np.testing.assert_allclose(picture.pixels[8::16, 8::16, 0].astype(int), UPRIGHT, atol=12)
    assert picture.notes == (() if orientation == 1 else (f"EXIF orientation {orientation} applied",))
    if format == "PIL":
        assert source.size == stored.size
        assert source.getexif()[0x0112] == orientation


def test_broken_exif_does_not_cost_the_image():
    picture = read(encode(PIXELS, "PNG", exif=b"Exif\0\0nonsense that is no TIFF header"))
    np.testing.assert_array_equal(picture.pixels, PIXELS)
    assert "EXIF unreadable" in picture.notes[0]


# size


def test_bombs_fail_from_the_header():
    tracemalloc.start()
    start = time.perf_counter()
    for side in (60000, 12000):  # beyond Pillow's limit, and between ours and Pillow's
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            told = message(png(side, side, 8, 2, b"\0" * 100))
        assert str(side * side) in told or f"{side} x {side}" in told
    assert time.perf_counter() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_pillows_warning_as_an_error_is_an_image_error():
    data = png(10000, 10000, 8, 2, b"\0" * 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "too large for Pillow" in message(data)


def test_limits(monkeypatch, tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    path = tmp_path / "a.png"
    path.write_bytes(data := encode(PIXELS, "PNG"))
    monkeypatch.setattr(pixels, "MAX_PIXELS", 35)
    assert read(path).pixels.size == 105
    monkeypatch.setattr(pixels, "MAX_PIXELS", 34)
    for source in (path, data, PIXELS, Image.fromarray(PIXELS)):
        assert "7 x 5" in message(source)
    monkeypatch.setattr(pixels, "MAX_BYTES", len(data) - 1)
    assert f"{len(data)} bytes" in message(path)
    assert f"{len(data)} bytes" in message(data)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_arrays_that_are_no_image():
    x = np.zeros((4, 6, 3), np.uint8)
    wrong = {
        "np.stack": x[..., 0],
        "np.repeat": x[..., :1],
        "transpose(1, 2, 0)": x.transpose(2, 0, 1),
        "x[..., :3]": np.zeros((4, 6, 4), np.uint8),
        "one by one": x[None],
        "reshape": np.zeros((4, 6, 5), np.uint8),
        "no pixels": x[:0],
        '(x * 255).round().astype("uint8")': x.astype(np.float32),
        "x / 257": x.astype(np.uint16),
        '"uint8") * 255': x.astype(bool),
        "[0, 255]": x.astype(np.int64),
    }
    for cure, array in wrong.items():
        assert cure in message(array), cure
    assert "NaN" in message(np.full((4, 6, 3), np.nan))
    assert "NaN" not in message(x.astype(float))
    assert "no pixels" in message(x[:, :0])
    assert "no pixels" in message(Image.new("RGB", (0, 5)))
