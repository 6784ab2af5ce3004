"""From whatever the user has (path, URL, bytes, PIL image, ndarray; one or many) to RGB uint8 pixels.

Two functions: `read` makes one `Picture` of one source, `expand` tells one source from many.
"""

from __future__ import annotations

import glob
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from refvit.errors import ImageError
from refvit.vision.download import download
from refvit.vision.pixels import Picture, blame, check_array, decode, from_pillow, one_line, seal

# fmt: off
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm",
            ".pbm", ".pnm")
# fmt: on
KINDS = "a path, folder, glob, URL, bytes, PIL image, RGB uint8 ndarray (h, w, 3), or an iterable of them"
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://|data:")


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
        return seal(np.array(check_array(source), order="C"), "<array>", [])
    if isinstance(source, Image.Image):
        with blame("<image>"):
            return from_pillow(source, "<image>", [])
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decode(io.BytesIO(data := bytes(source)), len(data), "<bytes>")
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError(_unknown(source))
    path = os.fsdecode(source)
    name = _shown(path)
    if isinstance(source, str) and _URL.match(source):
        if not allow_url:
            raise ImageError(f"{name}: a URL, and reading from the network is off; allow it by allow_url=True, or --allow-url")
        data = download(source, name)
        return decode(io.BytesIO(data), len(data), name)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name}: a folder where one image is expected; give the files in it one by one")
        if not stat.S_ISREG(status.st_mode):  # a pipe or device could block, and never end
            raise ImageError(f"{name}: a pipe or device where a regular file is expected; pass its content as bytes")
        with open(path, "rb") as file:
            return decode(file, status.st_size, name)
    except FileNotFoundError:
        folder = os.path.dirname(path)
        missing = bool(folder) and not os.path.isdir(folder)
        hint = f"its folder {_shown(folder)} does not exist" if missing else f"looked from {_shown(os.getcwd())}"
        raise ImageError(f"{name}: no such file ({hint}); check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: cannot be opened ({one_line(error)}); check the path and its permissions") from error


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
            raise ImageError(f"{_shown(path)}: cannot be listed ({one_line(error)}); check its permissions") from error
        return True, iter(sorted(found, key=_natural))
    if isinstance(source, Iterable) and not hasattr(source, "read") and getattr(source, "ndim", 1) == 1:
        return True, iter(source)
    raise ImageError(_unknown(source))


def describe(source: object) -> str:
    """What a source is called in a Result when it could not be read."""
    if isinstance(source, (str, os.PathLike)):
        return _shown(os.fsdecode(source))
    if isinstance(source, np.ndarray):
        return "<array>"
    if isinstance(source, Image.Image):
        return "<image>"
    return "<bytes>" if isinstance(source, (bytes, bytearray, memoryview)) else f"<{type(source).__name__}>"


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


def _natural(path: str) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", path.casefold())  # the odd parts are the numbers
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path
