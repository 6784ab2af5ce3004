"""What the readers share: how much they take, and how they say that a file is refused.

A file is not trusted. Its size, the number of its entries and every shape in it are checked before anything is allocated, so
that a small file can neither fill the memory nor keep a processor busy, and whatever is wrong with it is one WeightsError.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from refvit.errors import WeightsError
from refvit.graph.ir import Array

# The first two are of a file, and of all files of a sharded checkpoint together.
MAX_BYTES = 2**34  # of files, and of all tensors as stored: the largest model of the registry takes 2.5 GB
MAX_ENTRIES = 2**16  # tensors or archive members: a network has hundreds to thousands
MAX_RANK = 8
MAX_RATIO = 100  # of an archive to its file: weights hardly compress, tables of zeros do
FREE_BYTES = 2**26  # below this size no ratio is asked for
CHUNK = 2**18  # bytes read at once
MAX_NAME = 1000  # characters
LFS_POINTER = b"version https://git-lfs."
SHOWN = 80  # characters of a name in a message

DAMAGED = (OSError, ValueError, ArithmeticError, MemoryError, RecursionError, EOFError, struct.error, zlib.error)


def shown(name: object) -> str:
    """A name out of a file for a message: quoted, cut, and without characters that a terminal would obey."""
    text = name if isinstance(name, str) else f"{name!r:.{SHOWN}}"
    return repr(text[:SHOWN]) + ("..." if len(text) > SHOWN else "")


@contextmanager
def reading(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Whatever goes wrong inside leaves as a WeightsError that begins with the path and the kind of thing expected there."""
    try:
        yield
    except DAMAGED as error:
        if isinstance(error, WeightsError):
            reason = str(error)
        elif isinstance(error, MemoryError):
            reason = "there is not enough memory for what it describes"
        elif isinstance(error, OSError):
            reason = f"the system refused ({error.strerror or error})"
        else:
            reason = f"{error}; get the file again"
        raise WeightsError(f"{path}: not a readable {kind}: {reason}") from error


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[BufferedReader, int]]:
    """An ordinary file, open for reading, and its size in bytes. WeightsError if it is missing, no file, or too large."""
    path = Path(path)
    try:
        if not path.is_file():  # a device or a pipe could be read for ever
            raise WeightsError(f"{path}: no such weights file" if not path.exists() else f"{path}: not a file")
        with path.open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            if size > MAX_BYTES:
                raise WeightsError(f"{path}: {size} bytes, at most {MAX_BYTES} are read; leave out what is no weight")
            if f.read(len(LFS_POINTER)) == LFS_POINTER:
                raise WeightsError(
                    f"{path}: a Git LFS pointer, not the weights themselves; run git lfs pull where it came from"
                )
            f.seek(0)
            yield f, size
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error


def check_name(name: str) -> None:
    """WeightsError unless a tensor's name can be printed as it is; the messages of everything that follows do so."""
    if not name or not name.isprintable() or len(name) > MAX_NAME:
        raise WeightsError(
            f"a tensor is called {shown(name)}, expected are 1 to {MAX_NAME} printable characters; rename it where it was made"
        )


def array_bytes(shape: tuple[Any, ...] | list[Any], itemsize: int, name: str) -> int:
    """Bytes of an array of that shape, in exact integers; WeightsError if no array could have it. `name` is for the message."""
    given = f"tensor {shown(name)} has the shape {shape!r:.{SHOWN}}"
    if len(shape) > MAX_RANK or any(type(d) is not int or d < 0 for d in shape):
        raise WeightsError(f"{given}, expected are at most {MAX_RANK} whole numbers; get the file again")
    if math.prod(max(d, 1) for d in shape) * itemsize > MAX_BYTES:  # an extent of 0 does not excuse the others
        raise WeightsError(f"{given}, which is over {MAX_BYTES} bytes, the most that is read; get the file again")
    return math.prod(shape) * itemsize


def from_bfloat16(raw: Array) -> Array:
    """uint16 patterns of bfloat16 -> float32, exactly: bfloat16 is the upper half of float32."""
    bits = raw.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def check_bool(raw: Array, name: str) -> None:
    """WeightsError unless every byte of `raw` is 0 or 1: what another value means is every reader's own guess."""
    if raw.size and raw.view(np.uint8).max() > 1:
        raise WeightsError(f"tensor {shown(name)} is of booleans, but holds bytes other than 0 and 1; get the file again")


def native(a: Array) -> Array:
    """The array as everything that follows expects it: native byte order, C order, aligned, read-only; copied if needed."""
    a = np.require(a, a.dtype.newbyteorder("="), ("C", "A"))
    a.flags.writeable = False
    return a
