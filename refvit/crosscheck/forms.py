"""How golden values are written: as floats or fixed-point integers, in .npy, raw .bin or .hex, channels first or last.

What a reader needs to undo it is in the manifest: dtype, shape, layout, scale, and for hex the number of bits of a word.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from refvit.errors import ConfigError
from refvit.graph.ir import Array

FORMATS = ("npy", "bin", "hex")
DTYPES = ("float32", "float64")
LAYOUTS = ("nchw", "nhwc")
WIDEST = 53  # bits of a fixed-point word: so many does a float64 hold exactly
LONGEST_NAME = 120  # of a file, below what any file system takes
RESERVED = {"con", "prn", "aux", "nul", *(f"{device}{i}" for device in ("com", "lpt") for i in range(1, 10))}  # on Windows


@dataclass(frozen=True)
class FixedPoint:
    """A sign, `integer` bits and `fraction` bits: whole multiples of 2^-fraction in [-2^integer, 2^integer - 2^-fraction].

    Rounding is half to even, overflow saturates: ap_fixed<1 + s + f, 1 + s, AP_RND_CONV, AP_SAT> of HLS, Qs.f where the sign is
    not counted.
    """

    integer: int
    fraction: int

    def __post_init__(self) -> None:
        pair = (self.integer, self.fraction)
        whole = all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in pair)
        if not whole or not 1 <= sum(pair) < WIDEST:
            raise ConfigError(
                f"fixed_point={pair!r}: integer and fraction bits beside the sign expected, whole numbers of at least 0, "
                f"1 to {WIDEST - 1} together, such as 3,12",
                f"fixed_point={pair!r}",
            )

    @property
    def bits(self) -> int:
        return 1 + self.integer + self.fraction

    @property
    def scale(self) -> float:
        """What the integer 1 stands for."""
        return 2.0**-self.fraction

    @property
    def dtype(self) -> str:
        """The smallest signed integer that holds it."""
        return next(f"int{width}" for width in (8, 16, 32, 64) if self.bits <= width)

    def quantise(self, a: Array) -> tuple[Array, int]:
        """(integers, how many of them saturated) of floats that are finite."""
        words = np.rint(np.asarray(a, np.float64) * 2.0**self.fraction)  # a power of two loses nothing, rint is half to even
        top = 2.0 ** (self.bits - 1)
        saturated = int(np.count_nonzero((words < -top) | (words > top - 1)))
        return np.clip(words, -top, top - 1).astype(self.dtype), saturated


@dataclass(frozen=True)
class Form:
    """What was asked for. ConfigError for what does not exist."""

    format: str = "npy"
    dtype: str = "float32"
    fixed_point: FixedPoint | None = None
    layout: str = "nchw"
    tile: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, given, known in (
            ("format", self.format, FORMATS), ("dtype", self.dtype, DTYPES), ("layout", self.layout, LAYOUTS),
        ):  # fmt: skip
            if given not in known:
                raise ConfigError(f"{name}={given!r}: one of {', '.join(known)} expected", f"{name}={given!r}")
        pair = self.tile if isinstance(self.tile, tuple) and len(self.tile) == 2 else (None,)
        if self.tile is not None and not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in pair):
            raise ConfigError(f"tile={self.tile!r}: rows and columns of a tile, two whole numbers above 0, expected", "tile=")

    @property
    def stored(self) -> str:
        """The dtype in the files."""
        return self.fixed_point.dtype if self.fixed_point else self.dtype

    @property
    def bits(self) -> int:
        """Of one word: the digits of a .hex file are as many as these need."""
        return self.fixed_point.bits if self.fixed_point else 8 * np.dtype(self.dtype).itemsize

    @property
    def scale(self) -> float:
        return self.fixed_point.scale if self.fixed_point else 1.0

    def words(self, a: Array) -> tuple[Array, int]:
        """(the array as it is stored, how many of its values saturated)."""
        if self.fixed_point:
            return self.fixed_point.quantise(a)
        with np.errstate(over="ignore"):
            words = a.astype(self.dtype)
        return words, int(np.count_nonzero(np.isinf(words)))

    def kept(self, a: Array) -> Array:
        """What a reader gets back, float64."""
        return self.words(a)[0].astype(np.float64) * self.scale

    def encoded(self, words: Array) -> bytes:
        """The content of a file: elements in C order, little-endian where they are bytes, one a line where they are text."""
        if self.format == "npy":
            file = io.BytesIO()
            np.save(file, np.ascontiguousarray(words), allow_pickle=False)
            return file.getvalue()
        if self.format == "bin":
            return words.astype(words.dtype.newbyteorder("<")).tobytes()
        return hex_lines(words, self.bits)


def hex_lines(words: Array, bits: int) -> bytes:
    """One word a line, as $readmemh reads it: two's complement of `bits` bits, or the bits of an IEEE number."""
    unsigned = np.ascontiguousarray(words).reshape(-1).view(f"u{words.dtype.itemsize}")
    if bits < 8 * words.dtype.itemsize:
        unsigned = unsigned & np.array(2**bits - 1, unsigned.dtype)
    every, digits = 2 * words.dtype.itemsize, -(-bits // 4)
    text = unsigned.astype(unsigned.dtype.newbyteorder(">")).tobytes().hex().encode()
    lines = np.full((unsigned.size, digits + 1), ord("\n"), np.uint8)
    lines[:, :digits] = np.frombuffer(text, np.uint8).reshape(-1, every)[:, every - digits :]
    return lines.tobytes()


class FileNames:
    """Names of values -> names of files, different in any file system, in which capital letters may not count."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def __call__(self, name: str, suffix: str) -> str:
        """`suffix` with its dot. The same name asked for again is another file."""
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:LONGEST_NAME].strip(".") or "_"
        if stem.partition(".")[0].lower() in RESERVED or stem.startswith("-"):
            stem = f"_{stem}"
        file, i = stem + suffix, 1
        while file.lower() in self.taken:
            i += 1
            file = f"{stem}_{i}{suffix}"
        self.taken.add(file.lower())
        return file


def fixed_point(given: Any) -> FixedPoint | None:
    """None, a FixedPoint, or a pair (integer bits, fraction bits)."""
    if given is None or isinstance(given, FixedPoint):
        return given
    pair = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    if len(pair) != 2:
        raise ConfigError(f"fixed_point={given!r}: a pair, integer and fraction bits beside the sign, expected", "fixed_point=")
    return FixedPoint(*pair)
