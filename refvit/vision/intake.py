"""From whatever the user has (path, URL, bytes, PIL image, ndarray; one or many) to RGB uint8 pixels.

Two functions: `read` makes one `Picture` of one source, `expand` tells one source from many. All that can be wrong
with an input leaves as an `ImageError` that names the source. No global state of Pillow is read or changed on purpose,
so both are safe in threads.
"""

from __future__ import annotations

import glob
import io
import os
import re
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, UnidentifiedImageError

from refvit.errors import ImageError

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
SUFFIXES = tuple(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .bmp .tif .tiff .gif .ppm .pgm .pbm .pnm".split()  # noqa: SIM905
)
MAX_PIXELS = 2**27  # of one image
MAX_BYTES = 2**29  # of one file
MAX_URL_BYTES = 2**26
URL_SECONDS = 30.0  # for each answer of the server, and for the whole body

KINDS = "a path, folder, glob, URL, bytes, PIL image, RGB uint8 ndarray (h, w, 3), or an iterable of them"
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://|data:")
# By EXIF orientation 2 to 8: the names of Image.Transpose that turn the image upright.
_TURNS = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
_UPRIGHT = {tag: Image.Transpose[turn] for tag, turn in enumerate(_TURNS, 2)}


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded image: `pixels` is uint8 (h, w, 3) RGB, contiguous and read-only.

    `source` is the path or URL, or "<bytes>", "<array>", "<image>"; `notes` are lines on what was done to the image.
    """

    pixels: npt.NDArray[np.uint8]
    source: str
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, after the EXIF orientation."""
        return self.pixels.shape[1], self.pixels.shape[0]


def read(source: object, *, allow_url: bool = False) -> Picture:
    """Decode one image: a path, URL, bytes, PIL image, or RGB uint8 ndarray (h, w, 3).

    A PIL image counts as its current frame; of a file with several frames the first is used. The EXIF orientation is
    applied. Colour profiles are ignored, as torchvision and timm do. How each Pillow mode becomes RGB:

    mode                    result
    1, L, P, RGB, RGBX      Pillow's conversion (X is dropped; 16-bit colour keeps its high byte, as Pillow decodes it)
    LA, PA, RGBA            composited over white; so are P, L, RGB, 1 and I;16 with a transparent colour
    La, RGBa                premultiplied: colour + (255 - alpha)
    CMYK, YCbCr, HSV, LAB   Pillow's conversion (Adobe's inverted CMYK JPEGs included)
    I;16 and its variants   16-bit grey, round(value / 257); a TIFF that is 12-bit or white-is-zero is refused
    I                       as I;16 if it comes from a PNG or PPM file, whose I is 16-bit; refused otherwise
    F                       refused: the range of the values is anybody's guess

    Raises ImageError for everything that cannot be read. (A program that set Pillow's `LOAD_TRUNCATED_IMAGES` has
    asked for grey areas in truncated files, and gets them.)
    """
    if isinstance(source, np.ndarray):
        return _seal(np.array(check_array(source), order="C"), "<array>", [])
    if isinstance(source, Image.Image):
        with _blame("<image>"):
            return _picture(source, "<image>", [])
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(data := bytes(source)), len(data), "<bytes>")
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError(_unknown(source))
    path = os.fsdecode(source)
    name = _shown(path)
    if isinstance(source, str) and _URL.match(source):
        if not allow_url:
            raise ImageError(f"{name}: a URL, and reading from the network is off; pass allow_url=True to allow it")
        data = _download(source, name)
        return _decode(io.BytesIO(data), len(data), name)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name}: a folder where one image is expected; give the files in it one by one")
        if not stat.S_ISREG(status.st_mode):  # a pipe or device could block, and never end
            raise ImageError(f"{name}: a pipe or device where a regular file is expected; pass its content as bytes")
        with open(path, "rb") as file:
            return _decode(file, status.st_size, name)
    except FileNotFoundError:
        folder = os.path.dirname(path)
        missing = bool(folder) and not os.path.isdir(folder)
        hint = f"its folder {_shown(folder)} does not exist" if missing else f"looked from {_shown(os.getcwd())}"
        raise ImageError(f"{name}: no such file ({hint}); check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: cannot be opened ({_line(error)}); check the path and its permissions") from error


def expand(source: object, *, allow_url: bool = False) -> tuple[bool, Iterator[Any]]:
    """Tell one source from many: (many, iterator over sources, each for `read`).

    Many are: a folder (its files with one of SUFFIXES, not recursive, hidden files skipped), a glob pattern (every file
    that matches, `**` recursive; only if no file has that literal name), a 4-D array, and any iterable, which is walked
    lazily. Files come in natural order: img2 before img10.

    Raises ImageError if the source is of no known kind, a URL that `allow_url` does not allow, a folder without images
    or a pattern without a match. What is wrong with a single item is left to `read`.
    """
    if isinstance(source, np.ndarray):
        if source.ndim == 4 and len(source):
            check_array(source[0])  # what is wrong with one is wrong with all: say it once
        many = source.ndim == 4 or (source.ndim == 1 and source.dtype.kind in "OUT")  # T: NumPy's variable-width str
        return many, iter(source if many else [source])
    if isinstance(source, (Image.Image, bytes, bytearray, memoryview)):
        return False, iter([source])
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        if isinstance(source, str) and _URL.match(source):
            if not allow_url:
                read(source)  # raises
            return False, iter([source])
        try:
            if os.path.isdir(path):
                with os.scandir(path) as entries:
                    found = [e.path for e in entries if e.name.lower().endswith(SUFFIXES) and e.is_file()]
                found = [f for f in found if not os.path.basename(f).startswith(".")]
                if not found:
                    raise ImageError(f"{_shown(path)}: a folder without images; expected files {', '.join(SUFFIXES)}")
            elif glob.has_magic(path) and not os.path.lexists(path):
                found = [f for f in glob.glob(path, recursive=True) if os.path.isfile(f)]
                if not found:
                    raise ImageError(f"{_shown(path)}: no file matches this pattern; check it, and quote it in a shell")
            else:
                return False, iter([source])
        except OSError as error:
            raise ImageError(f"{_shown(path)}: cannot be listed ({_line(error)}); check its permissions") from error
        return True, iter(sorted(found, key=_natural))
    if isinstance(source, Iterable) and not hasattr(source, "read") and getattr(source, "ndim", 1) == 1:
        return True, iter(source)
    raise ImageError(_unknown(source))


def check_array(array: npt.NDArray[Any], name: str = "<array>") -> npt.NDArray[np.uint8]:
    """Return `array` if it is uint8 (h, w, 3); raise an ImageError that says how to make it so if it is not."""
    shape, given = array.shape, f"{name}: an array of shape {array.shape} and dtype {array.dtype}"
    if array.ndim != 3 or shape[2] != 3:
        if array.ndim == 2:
            cure = "a grey image becomes RGB by np.stack([x] * 3, axis=-1)"
        elif array.ndim == 3 and shape[0] == 3:
            cure = "channels first becomes channels last by x.transpose(1, 2, 0)"
        elif array.ndim == 3 and shape[2] == 1:
            cure = "a grey image becomes RGB by np.repeat(x, 3, axis=-1)"
        elif array.ndim == 3 and shape[2] == 4:
            cure = "drop alpha by x[..., :3], or composite it first"
        elif array.ndim == 4:
            cure = "this is a batch: give its images one by one"
        else:
            cure = "reshape it"
        raise ImageError(f"{given}, where uint8 (h, w, 3) RGB is expected; {cure}")
    if array.size == 0:
        raise ImageError(f"{given} has no pixels; expected at least 1 x 1")
    if array.dtype != np.uint8:
        if array.dtype.kind == "f":
            nan = "; it holds NaN, so repair that first" if np.isnan(array).any() else ""
            scaled = 'if it is in [0, 1], (x * 255).round().astype("uint8"), if in [0, 255], x.round().astype("uint8")'
            cure = scaled + nan
        elif array.dtype.kind == "b":
            cure = 'x.astype("uint8") * 255'
        elif array.dtype == np.uint16:
            cure = '(x / 257).round().astype("uint8")'
        else:
            cure = 'bring it to [0, 255] and use x.astype("uint8")'
        raise ImageError(f"{given}, where uint8 is expected; convert it: {cure}")
    _check_size(shape[1], shape[0], name)
    return array


def _decode(file: BinaryIO, length: int, name: str) -> Picture:
    """Decode an image file of `length` bytes that is open at its start."""
    if length == 0:
        raise ImageError(f"{name}: empty (0 bytes); expected an image file, so copy or download it again")
    if length > MAX_BYTES:
        raise ImageError(f"{name}: {length} bytes; at most {MAX_BYTES} are read, so make the file smaller")
    head = file.read(16)
    # Pillow has no opener named MPO: its JPEG opener finds out.
    with _blame(name, head), Image.open(file, formats=[f for f in FORMATS if f != "MPO"]) as image:
        _check_size(*image.size, name)
        frames = getattr(image, "n_frames", 1)  # before load(), which may close the file
        notes = [f"frame 1 of {frames} used"] if frames > 1 and image.format != "MPO" else []
        return _picture(image, name, notes)


def _picture(image: Image.Image, name: str, notes: list[str]) -> Picture:
    """Upright RGB from any Pillow image, which is left as it is."""
    if 0 in image.size:
        raise ImageError(f"{name}: {image.width} x {image.height} has no pixels; expected at least 1 x 1")
    _check_size(*image.size, name)
    orientation = _orientation(image, notes)
    image.load()
    turn = _UPRIGHT.get(_orientation(image, []))  # asked again: Pillow turns a TIFF upright while loading
    rgb = _to_rgb(image, name, notes)
    if orientation in _UPRIGHT:
        notes.append(f"EXIF orientation {orientation} applied")
    return _seal(np.asarray(rgb if turn is None else rgb.transpose(turn)), name, notes)


def _orientation(image: Image.Image, notes: list[str]) -> int:
    # Not ImageOps.exif_transpose: it also rewrites the EXIF block, which fails for blocks that cameras really write.
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception as error:  # a broken block fails in any way, and the pixels are fine without it
        notes.append(f"EXIF unreadable ({_line(error)}), orientation unknown")
        return 1


def _to_rgb(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    """The table of `read`. `image` is loaded."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        tags = getattr(image, "tag_v2", {})
        if tags.get(258, (16,)) != (16,) or tags.get(262, 1) != 1:
            raise ImageError(f"{name}: a 12-bit or white-is-zero TIFF; expected 16-bit, black is zero; convert it")
        values = np.asarray(image).astype(np.uint32)
        grey = ((values + 128) // 257).astype(np.uint8)
        notes.append("16-bit grey scaled by 1/257")
        if "transparency" in image.info:
            grey[values == image.info["transparency"]] = 255
            notes.append("alpha composited over white")
        return Image.fromarray(grey).convert("RGB")
    if mode in ("I", "F"):
        what = "32-bit integer" if mode == "I" else "floating-point"
        raise ImageError(f"{name}: {what} grey (mode {mode}) has no known range; scale it to 0..255 and pass 8 bits")
    if mode in ("La", "RGBa"):
        *colour, alpha = image.split()
        bands = [ImageChops.add(band, ImageChops.invert(alpha)) for band in colour]
        rgb = Image.merge("RGB", bands * (3 // len(bands)))
    elif image.has_transparency_data:
        # copy(): converting P with a transparency table writes that table into the palette of the image.
        rgba = (image.copy() if mode == "P" else image).convert("RGBA")
        alpha = rgba.getchannel("A")
        rgb = Image.new("RGB", rgba.size, "white")
        rgb.paste(rgba, mask=alpha)
    else:
        if mode == "CMYK":
            notes.append("CMYK converted without a colour profile")
        return image if mode == "RGB" else image.convert("RGB")
    if alpha.getextrema() != (255, 255):  # a fully opaque alpha channel is nobody's concern
        notes.append("alpha composited over white")
    return rgb


def _download(url: str, name: str) -> bytes:
    if not url.lower().startswith(("http://", "https://")):
        raise ImageError(f"{name}: only http:// and https:// URLs are read; for a local file give its path")
    # An opener without the file, ftp and data handlers, so that no redirect leads there.
    opener = urllib.request.OpenerDirector()
    web = urllib.request
    for handler in (web.ProxyHandler, web.HTTPHandler, web.HTTPSHandler, web.HTTPRedirectHandler):
        opener.add_handler(handler())
    for rest in (web.HTTPDefaultErrorHandler, web.HTTPErrorProcessor, web.UnknownHandler):
        opener.add_handler(rest())
    quoted = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(quoted, headers={"User-Agent": "refvit"})
    end = time.monotonic() + URL_SECONDS
    data = bytearray()
    try:
        with opener.open(request, timeout=URL_SECONDS) as answer:
            expected = int(answer.headers.get("Content-Length", 0))
            while max(len(data), expected) <= MAX_URL_BYTES and (block := answer.read1(2**16)):
                data += block
                if time.monotonic() > end:
                    raise TimeoutError(f"not complete after {URL_SECONDS:g} s")
    except Exception as error:  # URLError, HTTPException, ValueError, UnicodeError ...
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise ImageError(f"{name}: cannot be downloaded ({_line(error)}); check the URL, or the connection") from error
    if max(len(data), expected) > MAX_URL_BYTES:
        raise ImageError(f"{name}: more than {MAX_URL_BYTES} bytes; download it and give the path")
    if len(data) < expected:
        raise ImageError(f"{name}: the connection ended after {len(data)} of {expected} bytes; try again")
    return bytes(data)


@contextmanager
def _blame(name: str, head: bytes = b"") -> Iterator[None]:
    """Whatever Pillow raises (OSError, SyntaxError, ValueError, struct.error) becomes an ImageError about `name`."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise ImageError(f"{name}: not an image, or damaged: it begins with {head!r}; expected {formats}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: too large for Pillow ({_line(error)}); shrink it first") from error
    except Exception as error:
        raise ImageError(f"{name}: damaged or truncated ({_line(error)}); copy or export the image again") from error


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} pixels; at most {MAX_PIXELS} in all are read, so shrink it first")


def _seal(pixels: npt.NDArray[np.uint8], name: str, notes: list[str]) -> Picture:
    pixels.flags.writeable = False
    return Picture(pixels, name, tuple(notes))


def _unknown(source: object) -> str:
    kind = f"{type(source).__module__}.{type(source).__qualname__}".removeprefix("builtins.")
    cure = ""
    if hasattr(source, "read"):
        cure = "; of an open file pass the path, or what .read() gives"
    elif hasattr(source, "__array__"):
        cure = "; make an ndarray of it by np.asarray(x)"
    return f"image: {kind} is not an image; expected {KINDS}{cure}"


def _shown(name: str) -> str:
    """A path or URL for a one-line message: short, and printable whatever bytes are in a file name."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)
    return repr(text) if not text else text if len(text) <= 300 else text[:300] + "..."


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _natural(path: str) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", path.casefold())  # the odd parts are the numbers
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path
