"""PyTorch checkpoints as torch.save writes them since 1.6: a zip archive with a pickle and the storages.

The archive is parsed once, here, and what was parsed is what is used. Everything in which programs could read it differently is
refused: entries that are compressed, hidden, doubled or overlapping, bytes between them, headers that contradict each other.

Layout: PREFIX/data.pkl, PREFIX/data/KEY for every storage, and a few small entries that describe the archive. Zip: PKWARE's
APPNOTE.TXT. torch leaves sizes and CRC of local headers empty (flag bit 3), pads entries through their extra field, and always
writes the zip64 records at the end.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import struct
import zlib
from dataclasses import dataclass
from typing import Any

from refvit.errors import WeightsError
from refvit.weights.readers.limits import MAX_ENTRIES, MAX_NAME, opened, reading, shown
from refvit.weights.readers.pickle_subset import load
from refvit.weights.readers.torch_state import CALLS, Saved, Storage, View, storage_id

END = struct.Struct("<4s4H2LH")  # signature, 2 disks, 2 counts, size and offset of the directory, length of a comment
END64 = struct.Struct("<4sQ2H2L4Q")  # signature, size, 2 versions, 2 disks, 2 counts, size and offset of the directory
LOCATOR = struct.Struct("<4sLQL")  # signature, disk, offset of END64, number of disks
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
SATURATED = 0xFFFFFFFF  # the true value is in the zip64 extra field
SIZES_FOLLOW, UTF8 = 1 << 3, 1 << 11  # flags

NOTES = {"version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}
MAX_NOTE = 1000  # bytes
STORAGE = re.compile(r"data/[0-9]{1,20}")


@dataclass(frozen=True)
class Entry:
    """What the central directory says, and where the data is."""

    name: str
    flags: int
    crc: int
    size: int
    header: int  # byte of the local header
    start: int = 0  # byte of the data


def read_torch_zip(path: str | os.PathLike[str], *, check_crc: bool = True) -> Saved:
    """What was saved, for `torch_state.state_of`.

    check_crc: False for files that were written without checksums (torch.serialization.set_crc32_options(False))

    Nothing in the file is run, and its tensors stay in it until they are used. WeightsError for whatever is wrong with it.
    """
    with opened(path) as (f, size), reading(path, "PyTorch checkpoint (zip)"):
        if size < END.size:
            raise WeightsError(f"it has {size} bytes; get it again")
        data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        entries = _contents(_entries(data))
        if check_crc:
            for entry in entries.values():
                _check_crc(data, entry)
        if "byteorder" in entries and bytes(_content(data, entries["byteorder"])) != b"little":
            raise WeightsError("it was written on a big-endian machine; load it by torch and save it again on another")
        return Saved(path, _load(data, entries))


def _load(data: mmap.mmap, entries: dict[str, Entry]) -> Any:
    storages: dict[str, Storage] = {}

    def storage_of(pid: tuple[Any, ...]) -> View:
        key, dtype, itemsize, numel = storage_id(pid, 5)
        entry = entries.get(f"data/{key}")
        if entry is None:
            raise WeightsError(f"storage {shown(key)} is not in the archive; get the file again")
        if numel * itemsize != entry.size:
            raise WeightsError(
                f"storage {shown(key)} has {entry.size} bytes, {numel} of {dtype} are declared; get the file again"
            )
        storage = storages.setdefault(key, Storage(data, dtype, itemsize, numel, entry.start))
        if storage.dtype != dtype:
            raise WeightsError(f"storage {shown(key)} is both {storage.dtype} and {dtype}; get the file again")
        return View(storage, 0, numel)

    pickle = _content(data, entries["data.pkl"])
    tree, end = load(pickle, calls=CALLS, persistent=storage_of)
    if end != len(pickle):
        raise WeightsError(f"{len(pickle) - end} bytes follow its pickle; get the file again")
    if unused := [name for name in entries if name.startswith("data/") and name[5:] not in storages]:
        raise WeightsError(f"{shown(unused[0])} belongs to no tensor; get the file again")
    return tree


def _contents(entries: list[Entry]) -> dict[str, Entry]:
    """The entries by their names without the prefix that all have. WeightsError if they are not those of a checkpoint."""
    prefix = entries[0].name.partition("/")[0] + "/"
    contents: dict[str, Entry] = {}
    for entry in entries:
        name = entry.name.removeprefix(prefix)
        if not entry.name.startswith(prefix) or (name != "data.pkl" and name not in NOTES and not STORAGE.fullmatch(name)):
            raise WeightsError(
                f"its entry {shown(entry.name)} is none of a checkpoint; save the state_dict() alone by torch.save"
            )
        if name in contents:
            raise WeightsError(f"it has two entries {shown(entry.name)}; do not use it")
        if name in NOTES and entry.size > MAX_NOTE:
            raise WeightsError(f"its entry {shown(entry.name)} has {entry.size} bytes, expected are a few; get the file again")
        contents[name] = entry
    if "data.pkl" not in contents:
        raise WeightsError("it is a zip archive without data.pkl, not a checkpoint of torch.save")
    return contents


def _content(data: mmap.mmap, entry: Entry) -> memoryview:
    return memoryview(data)[entry.start : entry.start + entry.size]


def _check_crc(data: mmap.mmap, entry: Entry) -> None:
    found = zlib.crc32(_content(data, entry))
    if found != entry.crc and not entry.crc:
        raise WeightsError(
            f"entry {shown(entry.name)} has no checksum (CRC); if torch wrote the file so on purpose, give check_crc=False",
            "check_crc=False",
        )
    if found != entry.crc:
        raise WeightsError(
            f"entry {shown(entry.name)} is damaged: CRC {found:08x}, {entry.crc:08x} expected; get the file again"
        )


# the zip archive


def _damaged(what: str) -> WeightsError:
    return WeightsError(
        f"its zip structure is damaged or not by torch.save: {what}; get it again, or load and save it by torch"
    )


def _unpack(layout: struct.Struct, data: mmap.mmap, start: int, signature: bytes) -> tuple[Any, ...]:
    if start < 0 or start + layout.size > len(data) or data[start : start + 4] != signature:
        raise _damaged(f"{signature!r} expected at byte {start}")
    return layout.unpack_from(data, start)[1:]


def _entries(data: mmap.mmap) -> list[Entry]:
    """All entries in the order of the file, which they cover without gap or overlap from its first byte to the directory."""
    count, position, end = _directory(data)
    directory = position
    entries = []
    for _ in range(count):
        entry, position = _central(data, position, end)
        entries.append(entry)
    if position != end:
        raise _damaged("the directory's size and the number of entries contradict each other")
    if not entries:
        raise _damaged("it has no entries")
    entries.sort(key=lambda entry: entry.header)
    located = []
    reached = 0
    for entry, following in zip(entries, [*(e.header for e in entries[1:]), directory], strict=True):
        if entry.header != reached:
            raise _damaged(f"bytes {reached} to {entry.header} belong to no entry")
        start = _local(data, entry)
        _check_end(data, entry, start + entry.size, following)
        located.append(Entry(entry.name, entry.flags, entry.crc, entry.size, entry.header, start))
        reached = following
    return located


def _directory(data: mmap.mmap) -> tuple[int, int, int]:
    """(number of entries, first byte, byte after the last) of the central directory."""
    end = len(data) - END.size
    disk, first_disk, here, count, size, start, comment = _unpack(END, data, end, b"PK\5\6")
    if data[max(end - LOCATOR.size, 0) : end][:4] == b"PK\6\7":
        small = (here, count, size, start)
        end -= LOCATOR.size
        located = _unpack(LOCATOR, data, end, b"PK\6\7")
        end -= END64.size
        rest, _, _, disk, first_disk, here, count, size, start = _unpack(END64, data, end, b"PK\6\6")
        large = (here, count, size, start)
        limits = (0xFFFF, 0xFFFF, SATURATED, SATURATED)
        if located != (0, end, 1) or rest != END64.size - 12:
            raise _damaged("the zip64 records do not follow each other")
        if any(s not in (n, limit) for s, n, limit in zip(small, large, limits, strict=True)):
            raise _damaged("the zip64 records contradict the others")
    if disk or first_disk or comment or here != count or count > MAX_ENTRIES or start + size != end:
        raise _damaged(
            f"{count} entries (at most {MAX_ENTRIES}) in bytes {start} to {start + size}, the directory ends at {end}"
        )
    return count, start, end


def _central(data: mmap.mmap, position: int, end: int) -> tuple[Entry, int]:
    """The entry that the directory describes at `position`, and where the next one is described."""
    fields = _unpack(CENTRAL, data, position, b"PK\1\2")
    _, _, flags, method, _, _, crc, stored, size, name_size, extra_size, comment, disk, _, attributes, header = fields
    position += CENTRAL.size
    raw, extra = data[position : position + name_size], data[position + name_size : position + name_size + extra_size]
    position += name_size + extra_size
    name = _name(raw)
    if position > end or comment or disk:
        raise _damaged(f"the directory's description of {shown(name)}")
    if flags & ~(SIZES_FOLLOW | UTF8):
        raise WeightsError(f"entry {shown(name)} is encrypted or otherwise unusual (flags {flags:#x}); do not use the file")
    if name.split("/")[1:2] in (["code"], ["constants.pkl"]):
        raise WeightsError("it is a TorchScript archive, a program; torch.jit.load it and torch.save its state_dict()")
    if method:
        raise WeightsError(
            f"entry {shown(name)} is compressed, as torch.save does not; unpack it and load and save it by torch"
        )
    if stat.S_IFMT(attributes >> 16) not in (0, stat.S_IFREG):
        raise WeightsError(f"entry {shown(name)} is a link or another thing that is not a file; do not use the file")
    size, stored, header = _zip64([size, stored, header], extra, name)
    if stored != size:
        raise _damaged(f"{shown(name)} has {size} bytes and {stored} stored ones")
    return Entry(name, flags, crc, size, header), position


def _name(raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise _damaged(f"an entry's name is not UTF-8: {raw[:80]!r}") from None
    parts = name.split("/")
    if len(name) > MAX_NAME or not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise WeightsError(f"an entry is called {shown(name)}, which is no plain path; do not use the file")
    return name


def _zip64(values: list[int], extra: bytes, name: str) -> list[int]:
    """The values, those that are saturated replaced by the ones of the zip64 extra field, which has to hold exactly those."""
    larger = b""
    while extra:
        kind, size = struct.unpack("<2H", extra[:4]) if len(extra) >= 4 else (0, SATURATED)
        if size > len(extra) - 4 or (kind == 1 and larger):
            raise _damaged(f"an extra field of {shown(name)}")
        if kind == 1:
            larger = extra[4 : 4 + size]
        extra = extra[4 + size :]
    if len(larger) != 8 * values.count(SATURATED):
        raise _damaged(f"the zip64 sizes of {shown(name)}")
    given = iter(struct.unpack(f"<{len(larger) // 8}Q", larger))
    return [next(given) if value == SATURATED else value for value in values]


def _local(data: mmap.mmap, entry: Entry) -> int:
    """The byte at which the entry's data starts. WeightsError unless its local header agrees with the directory."""
    _, flags, method, _, _, crc, stored, size, name_size, extra_size = _unpack(LOCAL, data, entry.header, b"PK\3\4")
    start = entry.header + LOCAL.size + name_size
    known = {entry.size, SATURATED} if entry.size >= SATURATED else {entry.size}
    told = crc == entry.crc and {stored, size} <= known
    left_out = flags & SIZES_FOLLOW and (crc, stored, size) == (0, 0, 0)
    if flags != entry.flags or method or data[start - name_size : start] != entry.name.encode() or not (told or left_out):
        raise WeightsError(f"entry {shown(entry.name)} is called or described differently where it starts; do not use the file")
    return start + extra_size


def _check_end(data: mmap.mmap, entry: Entry, end: int, following: int) -> None:
    """WeightsError unless nothing is between the data and what follows but, where a flag says so, CRC and sizes once more."""
    expected = [b""]
    if entry.flags & SIZES_FOLLOW:
        expected = [struct.pack("<4sL2Q", b"PK\7\10", entry.crc, entry.size, entry.size)]
        if entry.size < SATURATED:
            expected.append(struct.pack("<4s3L", b"PK\7\10", entry.crc, entry.size, entry.size))
    if end > following or following - end > 24 or data[end:following] not in expected:
        raise _damaged(f"{shown(entry.name)} and what follows it overlap, or there is something between them")
