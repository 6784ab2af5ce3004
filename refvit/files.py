"""Writing files whole or not at all, and giving back the memory of mapped ones."""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_atomic(path: Path, data: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file so that a reader sees the old content or all of the new; its folder is made if it is missing.

    data: the content, or its parts in their order
    """
    path = Path(os.path.realpath(path))  # of a link, the file it leads to is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".refvit-{secrets.token_hex(8)}.tmp"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as f:
            for part in [data] if isinstance(data, bytes) else data:
                f.write(part)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def mappings(arrays: Iterable[Any]) -> list[mmap.mmap]:
    """The mapped files that arrays are windows into, each once."""
    found: dict[int, mmap.mmap] = {}
    for array in arrays:
        base = array
        while base is not None and not isinstance(base, mmap.mmap):
            base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
        if base is not None:
            found[id(base)] = base
    return list(found.values())


def release(maps: Iterable[mmap.mmap]) -> None:
    """Give back the memory that pages of read-only mapped files take; whoever reads them again gets them from the file."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for mapped in maps:
            mapped.madvise(mmap.MADV_DONTNEED)
