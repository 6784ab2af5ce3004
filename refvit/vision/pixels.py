"""Decoded images: from Pillow, or an ndarray, to RGB uint8 pixels under documented rules.

All that can be wrong leaves as an `ImageError` that names the source. No global state of Pillow is read or changed on
purpose, so everything here is safe in threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError

from refvit.errors import ImageError

if TYPE_CHECKING:
    import numpy.typing as npt

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
MAX_PIXELS = 2**27  # of one image
MAX_BYTES = 2**29  # of one file
PREVIEW, LARGE_PREVIEW = 480, 1280  # pixels of the longer side of what a Result keeps: to name it, and to draw on it
# By EXIF orientation 2 to 8: the names of Image.Transpose that turn the image upright.
_TURNS = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
_UPRIGHT = {tag: Image.Transpose[turn] for tag, turn in enumerate(_TURNS, 2)}


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded image: `pixels` is uint8 (h, w, 3) RGB, contiguous and read-only; `size` is (width, height).

    `source` is the path or URL, or "<bytes>", "<array>", "<image>". `notes` are one-liners on what was done to the image.
    """

    pixels: npt.NDArray[np.uint8]
    source: str
    notes: tuple[str, ...]
    size: tuple[int, int]  # after the EXIF orientation; of a preview that of the original

    def preview(self, task: str = "classification") -> Picture:
        """The same with at most PREVIEW pixels a side: a thousand results must not hold a thousand photographs.

        Answers of other tasks than classification are drawn on the picture, which then has up to LARGE_PREVIEW.
        """
        side = PREVIEW if task == "classification" else LARGE_PREVIEW
        if max(self.size) <= side:
            return self
        small = Image.fromarray(self.pixels)
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        return seal(np.asarray(small), self.source, list(self.notes), self.size)


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


def decode(file: BinaryIO, length: int, name: str) -> Picture:
    """Decode an image file of `length` bytes that is open at its start."""
    if length == 0:
        raise ImageError(f"{name}: empty (0 bytes); expected an image file, so copy or download it again")
    if length > MAX_BYTES:
        raise ImageError(f"{name}: {length} bytes; at most {MAX_BYTES} are read, so make the file smaller")
    head = file.read(16)
    # Pillow has no opener named MPO: its JPEG opener finds out.
    with blame(name, head), Image.open(file, formats=[f for f in FORMATS if f != "MPO"]) as image:
        _check_size(*image.size, name)
        frames = getattr(image, "n_frames", 1)  # before load(), which may close the file
        notes = [f"frame 1 of {frames} used"] if frames > 1 and image.format != "MPO" else []
        return from_pillow(image, name, notes)


def from_pillow(image: Image.Image, name: str, notes: list[str]) -> Picture:
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
    return seal(np.asarray(rgb if turn is None else rgb.transpose(turn)), name, notes)


def _orientation(image: Image.Image, notes: list[str]) -> int:
    # Not ImageOps.exif_transpose: it also rewrites the EXIF block, which fails for blocks that cameras really write.
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception as error:  # a broken block fails in any way, and the pixels are fine without it
        notes.append(f"EXIF unreadable ({one_line(error)}), orientation unknown")
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


@contextmanager
def blame(name: str, head: bytes = b"") -> Iterator[None]:
    """Whatever Pillow raises (OSError, SyntaxError, ValueError, struct.error) becomes an ImageError about `name`."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise ImageError(f"{name}: not an image, or damaged: it begins with {head!r}; expected {formats}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: too large for Pillow ({one_line(error)}); shrink it first") from error
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to decode it; shrink it first") from error
    except Exception as error:
        raise ImageError(f"{name}: damaged or truncated ({one_line(error)}); copy or export the image again") from error


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} pixels; at most {MAX_PIXELS} in all are read, so shrink it first")


def seal(pixels: npt.NDArray[np.uint8], name: str, notes: list[str], size: tuple[int, int] | None = None) -> Picture:
    """A Picture of pixels that nobody else writes to."""
    pixels.flags.writeable = False
    return Picture(pixels, name, tuple(notes), size or (pixels.shape[1], pixels.shape[0]))


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
