"""Raw arrays in files and the JSON that says what they are: what an embedded, HLS or RTL port writes, and `refvit.dump`.

    {"stem.conv": {"file": "stem_conv.bin", "shape": [1, 128, 128, 16], "dtype": "int8", "layout": "nhwc",
                   "scale": 0.047, "zero_point": 3}, ...}

A value is (integer - zero_point) * scale. dtype "3,12" is fixed point: a sign, 3 integer and 12 fraction bits, in the smallest
integer that holds them. .bin files are little-endian, in C order. .hex files are text as $readmemh reads it: words of as many
bits as the dtype has, comments, @address. .npy files may stand beside them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refvit.crosscheck.layouts import check_layout
from refvit.errors import ConfigError
from refvit.graph.ir import Array, Shape, dims
from refvit.weights.readers.limits import from_bfloat16

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "int64")
FIXED = re.compile(r"(\d{1,2}),(\d{1,2})")
KEYS = {"file", "shape", "dtype", "layout", "scale", "zero_point", "axis", "bits", "tiles"}
BESIDE = {"name", "also", "sha256", "integer_bits", "fraction_bits", "saturated"}  # what else refvit.dump writes
SUFFIXES = (".npy", ".bin", ".hex")
LARGEST = 2**36  # bytes
KERNELS = ("kcrs", "krsc")  # layouts of parameters
WORD = re.compile(r"@?[0-9a-fA-F_]+")
PLAIN = re.compile(r"[0-9a-fA-F\s]+")
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """One array, its numbers as real ones.

    dtype: as it is stored; computed: the arithmetic that this tells, in which integers of more than 8 bits are float32
    grid: the largest scale of its integers, and their zero point; None for floats
    """

    array: Array
    layout: str
    dtype: str
    computed: str
    grid: tuple[float, float] | None = None


def read_entry(folder: Path, name: str, given: Any, parameter: bool = False) -> Entry:
    """The array that an entry of the manifest describes, parameters as (k, c, r, s). ConfigError says what is wrong with it."""
    where = f"{folder.name}: {name!r:.80}"
    if not isinstance(given, Mapping) or not ("file" in given or "tiles" in given):
        raise ConfigError(f'{where}: an object with "file", "shape" and "dtype" expected, got {given!r:.60}')
    if unknown := sorted(given.keys() - KEYS - BESIDE):
        raise ConfigError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(sorted(KEYS))}")
    tiles = given.get("tiles")
    if tiles and not (isinstance(tiles, list) and all(isinstance(tile, Mapping) for tile in tiles)):
        raise ConfigError(
            f'{where}: tiles is {tiles!r:.60}; a list of objects with "file", "shape", "row" and "column" expected'
        )
    layout = _layout(where, given, parameter)
    word = _word(where, given)
    array, stored = _tiles(folder, where, given, word) if tiles else _file(folder, where, given, word)
    real, grid = _real(where, array, given, word, layout)
    if layout == "krsc":
        if real.ndim != 4:
            raise ConfigError(f"{where}: krsc is a layout of four axes, {dims(real.shape)} has {real.ndim}")
        real = real.transpose(0, 3, 1, 2)
    whole = "int8" if (word.bits or 8 * array.dtype.itemsize) <= 8 else "float32"
    return Entry(real, layout, word.name, whole if grid else word.name or stored, grid)


def _layout(where: str, given: Mapping[str, Any], parameter: bool) -> str:
    layout: str = given.get("layout") or ""
    if layout and parameter:
        if layout not in KERNELS:
            raise ConfigError(f"{where}: layout is {layout!r:.60}; of a parameter it is one of {', '.join(KERNELS)}")
    elif layout:
        try:
            check_layout(layout)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return layout


@dataclass(frozen=True)
class Word:
    """How one number is stored. name: as the manifest has it; dtype: of NumPy; bits: of the word; fraction: of fixed point."""

    name: str
    dtype: Any
    bits: int
    fraction: int | None = None


def _word(where: str, given: Mapping[str, Any]) -> Word:
    name = given.get("dtype")
    if name is None and _paths(given)[0].endswith(".npy"):
        return Word("", None, 0)
    if isinstance(name, str) and (match := FIXED.fullmatch(name)):
        integer, fraction = int(match[1]), int(match[2])
        bits = 1 + integer + fraction
        if bits <= 64:
            return Word(name, np.dtype(f"<i{next(w for w in (1, 2, 4, 8) if bits <= 8 * w)}"), bits, fraction)
    if name not in FLOATS + INTEGERS:
        raise ConfigError(
            f"{where}: dtype is {name!r:.40}; expected are {', '.join(FLOATS + INTEGERS)} and fixed point 's,f', "
            "a sign, s integer and f fraction bits, 64 together at most"
        )
    dtype = np.dtype("<u2" if name == "bfloat16" else f"<{np.dtype(name).str[1:]}")
    bits = given.get("bits", 8 * dtype.itemsize)
    if type(bits) is not int or not 0 < bits <= 8 * dtype.itemsize or (bits < 8 * dtype.itemsize and name not in INTEGERS):
        raise ConfigError(f"{where}: bits is {bits!r:.40}; {name} has up to {8 * dtype.itemsize}")
    return Word(name, dtype, bits)


def _paths(given: Mapping[str, Any]) -> list[str]:
    files = [t.get("file") for t in given["tiles"]] if given.get("tiles") else [given.get("file")]
    return [str(f) for f in files]


def _shape(where: str, given: Any) -> Shape:
    shape = given.get("shape") if isinstance(given, Mapping) else None
    if not isinstance(shape, list) or not all(type(s) is int and s > 0 for s in shape) or math.prod(shape) * 8 > LARGEST:
        raise ConfigError(f"{where}: shape is {shape!r:.60}; a list of whole numbers above 0 expected")
    return tuple(shape)


def inside(folder: Path, where: str, file: Any) -> Path:
    """The file of that relative name in the folder. ConfigError if it is missing, or leads out of it."""
    if not isinstance(file, str) or not file or "\\" in file or "\0" in file or os.path.isabs(file):
        raise ConfigError(f"{where}: file is {file!r:.80}; the name of a file in the folder expected")
    path = folder / file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{where}: {file!r:.80} leads out of {folder}; put the file into the folder")
    if not path.is_file():
        raise ConfigError(f"{where}: {file!r:.80} is missing in {folder}")
    return path


def _file(folder: Path, where: str, given: Mapping[str, Any], word: Word) -> tuple[Array, str]:
    """The stored numbers in their shape, and the name of their dtype."""
    path = inside(folder, where, given.get("file"))
    if path.suffix == ".npy":
        a, stored = read_npy(path)
        if "shape" in given and a.shape != _shape(where, given):
            raise ConfigError(f"{where}: {path.name} is {dims(a.shape)}, the manifest says {dims(_shape(where, given))}")
        same = a.dtype.newbyteorder("<") == word.dtype if word.fraction is None else a.dtype.kind == "i"
        if word.dtype is not None and not same and word.name != "bfloat16":
            raise ConfigError(f"{where}: {path.name} holds {a.dtype.name}, the manifest says {word.name}")
        return a, stored
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{where}: {path.name} is none of {', '.join(SUFFIXES)}")
    if word.dtype is None:
        raise ConfigError(f"{where}: dtype is missing, without which {path.name} cannot be read")
    shape = _shape(where, given)
    count = math.prod(shape)
    if path.suffix == ".hex":
        return read_hex(path, count, word).reshape(shape), word.name
    size, needed = path.stat().st_size, count * word.dtype.itemsize
    if size != needed:
        raise ConfigError(f"{where}: {path.name} has {size} bytes, and {dims(shape)} of {word.name} has {needed}")
    return np.fromfile(path, word.dtype).reshape(shape), word.name


def read_npy(path: Path) -> tuple[Array, str]:
    """Numbers only, never pickled objects, and the dtype. bfloat16, which NumPy stores as two raw bytes, becomes float32."""
    try:
        with path.open("rb") as f:
            a = np.lib.format.read_array(f, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise ConfigError(f"{path}: not a readable .npy: {error!s:.200}") from error
    if a.dtype.str in ("|V2", "<V2"):
        return from_bfloat16(a.view(np.uint16)), "bfloat16"
    if a.dtype.kind not in "fiub":
        raise ConfigError(f"{path}: real numbers expected, got {a.dtype}")
    return a, a.dtype.name


def read_hex(path: Path, count: int, word: Word) -> Array:
    """As Verilog's $readmemh: words apart by blanks, _ between digits, comments; @address is the place of the next word."""
    if path.stat().st_size < 2 * count - 1:
        raise ConfigError(f"{path}: {path.stat().st_size} bytes are too few for {count} words, and the shape asks for so many")
    try:
        text = COMMENT.sub(" ", path.read_text("ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a readable text of hexadecimal words: {error!s:.100}") from error
    if PLAIN.fullmatch(text):  # the usual case, much faster; what is wrong with it is said below
        values = [int(token, 16) for token in text.split()]
        if len(values) == count and not max(values, default=0) >> word.bits:
            return _stored(np.array(values, np.uint64), word)
    words: list[int | None] = [None] * count
    at = 0
    for token in text.split():
        if not WORD.fullmatch(token):
            raise ConfigError(f"{path}: {token!r:.40} is no hexadecimal word")
        value = int(token.lstrip("@").replace("_", "") or "0", 16)
        if token.startswith("@"):
            at = value
            continue
        if value >> word.bits:
            raise ConfigError(f"{path}: {token!r:.40} has more than the {word.bits} bits of {word.name}")
        if at >= count:
            raise ConfigError(f"{path}: word {at} is one more than the {count} of the shape")
        if words[at] is not None:
            raise ConfigError(f"{path}: word {at} is there twice")
        words[at], at = value, at + 1
    if None in words:
        raise ConfigError(f"{path}: word {words.index(None)} of {count} is missing")
    return _stored(np.array(words, np.uint64), word)


def _stored(unsigned: Array, word: Word) -> Array:
    """Words as what they stand for, in the dtype."""
    if word.dtype.kind == "i":  # two's complement
        sign = np.uint64(1 << (word.bits - 1))
        return ((unsigned ^ sign).astype(np.int64) - np.int64(sign)).astype(word.dtype)
    return unsigned.astype(f"<u{word.dtype.itemsize}").view(word.dtype)


def _tiles(folder: Path, where: str, given: Mapping[str, Any], word: Word) -> tuple[Array, str]:
    """A map that is cut into rectangles, each in a file of its own."""
    shape = _shape(where, given)
    first = 1 if given.get("layout") == "nhwc" else 2
    parts = [_file(folder, where, tile, word) for tile in given["tiles"]]
    if sum(part.size for part, _ in parts) != math.prod(shape):
        raise ConfigError(f"{where}: the tiles do not cover all of {dims(shape)}, each number once")
    whole, covered = np.zeros(shape, word.dtype or parts[0][0].dtype), np.zeros(shape, bool)
    for tile, (part, _) in zip(given["tiles"], parts, strict=True):
        row, column = tile.get("row"), tile.get("column")
        if type(row) is not int or type(column) is not int or min(row, column) < 0 or part.ndim != 4:
            raise ConfigError(f"{where}: a tile with row, column and a shape of four axes expected, got {tile!r:.80}")
        place = (slice(None),) * first + tuple(slice(o, o + s) for o, s in zip((row, column), part.shape[first:], strict=False))
        if whole[place].shape != part.shape or covered[place].any():
            raise ConfigError(
                f"{where}: the tile at row {row}, column {column} overlaps another, or leads out of {dims(shape)}"
            )
        whole[place], covered[place] = part, True
    return whole, parts[0][1]


def _real(where: str, a: Array, given: Mapping[str, Any], word: Word, layout: str) -> tuple[Array, tuple[float, float] | None]:
    """Real numbers, and the grid that they are on."""
    if word.fraction is not None:
        step = 2.0**-word.fraction
        return a * step, (step, 0.0)
    if word.name == "bfloat16" and a.dtype.kind == "u":
        a = from_bfloat16(a)
    scale, zero = (_numbers(where, key, given.get(key, default)) for key, default in (("scale", None), ("zero_point", 0)))
    if a.dtype.kind == "f":
        if scale is not None and ((scale != 1).any() or (zero is not None and (zero != 0).any())):
            raise ConfigError(f"{where}: is {a.dtype.name} and has a scale or zero point, which only integers have")
        return a, None
    if scale is None or zero is None or (scale <= 0).any():
        raise ConfigError(f"{where}: is {a.dtype.name} and needs a scale above 0, real = (integer - zero_point) * scale")
    axis = _axis(where, a, given, layout, max(scale.size, zero.size))
    along = tuple(-1 if i == axis else 1 for i in range(a.ndim))
    scale, zero = (v.reshape(along if v.size > 1 else ()) for v in (scale, zero))
    return (a - zero) * scale, (float(scale.max()), float(zero.flat[0]))


def _numbers(where: str, key: str, given: Any) -> Array | None:
    if given is None:
        return None
    numbers = given if isinstance(given, list) and given else [given]
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers):
        raise ConfigError(f"{where}: {key} is {given!r:.60}; a number, or a list of one for each channel, expected")
    return np.array(numbers, np.float64)


def _axis(where: str, a: Array, given: Mapping[str, Any], layout: str, count: int) -> int:
    """Of the channels that scales are given for."""
    axis = given.get("axis")
    fitting = [i for i, s in enumerate(a.shape) if s == count]
    if axis is None and count > 1:
        last = layout.endswith(("nhwc", "nlc")) or (len(fitting) == 1 and fitting[0] == a.ndim - 1)
        axis = a.ndim - 1 if last else fitting[0] if len(fitting) == 1 else 1 if layout == "nchw" else None
    if count > 1 and (type(axis) is not int or not -a.ndim <= axis < a.ndim or a.shape[axis] != count):
        raise ConfigError(f'{where}: {count} scales or zero points do not say for which axis of {dims(a.shape)}; say "axis"')
    return 0 if axis is None else axis % a.ndim
