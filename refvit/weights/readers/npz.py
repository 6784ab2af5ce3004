"""NumPy's .npz archives: the container, checked before anything is unpacked, and the arrays in it.

An archive is a zip of .npy members. Two programs that disagree about a zip see two different contents, so this one has to be
unambiguous: members without gap or overlap from the first byte to the directory, nothing behind that, every local header in
agreement with the directory, and every CRC right. Nothing is pickled or evaluated: what would need it is refused.
"""

from __future__ import annotations

import itertools
import os
import re
import struct
import zlib
from collections.abc import Iterator
from io import BufferedReader
from typing import NamedTuple

import numpy as np

from refvit.errors import WeightsError
from refvit.graph.ir import Array
from refvit.weights.readers.limits import (
    CHUNK,
    FREE_BYTES,
    MAX_BYTES,
    MAX_NAME,
    MAX_RATIO,
    array_bytes,
    check_bool,
    check_name,
    from_bfloat16,
    native,
    opened,
    reading,
    shown,
)

# zip, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
END = struct.Struct("<4s4H2LH")  # 4.3.16: signature, two disks, two counts of members, the directory's size and offset, comment
CENTRAL = struct.Struct("<4s6H3L5H2L")  # 4.3.12: a member in the directory
LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7: the same in front of its data
# 4.3.9: a descriptor, behind the data that were written into a stream; by its length
DESCRIPTORS = {16: struct.Struct("<4s3L"), 24: struct.Struct("<4sL2Q")}
STORED, DEFLATED = 0, 8
DESCRIPTOR, UTF8 = 1 << 3, 1 << 11  # flags: a descriptor follows; the name is UTF-8
EFFORT = 0b110  # flags in which deflate notes how hard it tried
NEWEST = 45  # version of the format in tenths, that of zip64; readers differ in what they do with later ones
ZIP64, MANY = 0xFFFFFFFF, 0xFFFF  # stand where the true number is in a field of zip64
ZIP64_FIELD, NAME_FIELD = 0x0001, 0x7075  # extra fields: large sizes, and another name
FILE_TYPE, REGULAR = 0o170000, 0o100000  # of Unix's file mode

# npy, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
MAGIC = b"\x93NUMPY"
LENGTH_BYTES = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}  # by version
MAX_NPY_HEADER = 2048  # bytes: eight extents of twenty digits need 250
INTEGER = r"(?:0|[1-9][0-9]{0,19})"
FIELDS = (
    r" *'descr' *: *'(?P<descr>[^'\\]*)' *",
    r" *'fortran_order' *: *(?P<fortran_order>True|False) *",
    rf" *'shape' *: *\( *(?P<shape>(?:{INTEGER},(?: *{INTEGER},)*(?: *{INTEGER})?)?) *\) *",
)
HEADER = re.compile(r"\{(?:(?:" + "|".join(FIELDS) + r")(?:,|(?=\}))){3} *\} *\n?")  # three fields, in any order
DTYPES = {"|b1", "|i1", "|u1"} | {
    order + kind for order in "<>" for kind in ("f2", "f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8")
}
BFLOAT16 = {"|V2", "<V2"}  # as what NumPy writes it, not knowing it
REFUSED = {
    "O": "Python objects, which could run anything",
    "U": "text",
    "S": "text",
    "M": "dates",
    "m": "spans of time",
    "c": "complex numbers",
    "V": "raw bytes",
}


class Member(NamedTuple):
    """A file in the archive, as the directory describes it."""

    file_name: bytes
    flags: int
    method: int
    crc: int
    packed: int  # bytes in the archive
    size: int  # bytes unpacked
    offset: int  # of its local header
    begin: int = 0  # of its data

    @property
    def name(self) -> str:
        """Of the array: that of the file without .npy. It may have slashes, but never becomes a path."""
        return self.file_name.decode("utf-8" if self.flags & UTF8 else "ascii").removesuffix(".npy")


def read_npz(path: str | os.PathLike[str], widened: set[str] | None = None) -> dict[str, Array]:
    """Arrays of an .npz archive, stored or compressed, read-only, native and in C order.

    bfloat16, which NumPy stores as two raw bytes, becomes float32, which is exact; floats, integers and booleans stay as they
    are. Members are unpacked one after the other into the memory that they keep. The archive is under 4 GiB. WeightsError for
    whatever is wrong with it, and for objects, text, dates, complex and other void dtypes. widened: gets the names of those
    that were bfloat16.
    """
    bfloat16 = set[str]() if widened is None else widened
    with opened(path) as (f, size), reading(path, "npz archive"):
        return {member.name: _array(_content(f, member), member.name, bfloat16) for member in _members(f, size)}


# the container


def _members(f: BufferedReader, size: int) -> list[Member]:
    """All members, in the order of their data, once directory and local headers account for every byte of the archive."""
    listed, start = _directory(f, size)
    names = set()
    for member in listed:
        check_name(member.name)
        if not member.file_name.endswith(b".npy"):
            raise WeightsError(f"its member {shown(member.name)} is not called .npy; save the arrays alone by numpy.savez")
        if "\\" in member.name or not {"", ".", ".."}.isdisjoint(member.name.split("/")):
            raise WeightsError(f"its member {shown(member.name)} leads out of the archive; do not use it")
        if member.name in names:
            raise WeightsError(f"it has two members {shown(member.name)}; save it again by numpy.savez")
        names.add(member.name)
    total = sum(member.size for member in listed)
    if total > MAX_BYTES or (total > FREE_BYTES and total > MAX_RATIO * size):
        raise WeightsError(
            f"its {size} bytes would unpack to {total}, at most {MAX_BYTES} and {MAX_RATIO} times the file are; "
            "if it is to be trusted, save it again by numpy.savez, uncompressed"
        )
    members = []
    reached = 0
    gap = "its members overlap, leave gaps, or have bytes around them, at {}; save it again by numpy.savez"
    listed.sort(key=lambda member: member.offset)
    for member, following in itertools.zip_longest(listed, listed[1:]):
        follows = following.offset if following else start
        if member.offset != reached:
            raise WeightsError(gap.format(shown(member.name)))
        begin = _check_local(f, member)
        if not _ends(f, member, begin + member.packed, follows):
            raise WeightsError(gap.format(shown(member.name)))
        reached = follows
        members.append(member._replace(begin=begin))
    if reached != start:
        raise WeightsError(f"it has {start} bytes in front of the directory of no member; get the file again")
    return members


def _directory(f: BufferedReader, size: int) -> tuple[list[Member], int]:
    """(members as listed, offset of the list)."""
    f.seek(max(size - END.size, 0))
    tail = f.read(END.size)
    if tail[:4] != b"PK\5\6" or len(tail) < END.size or tail[-2:] != b"\0\0":
        raise WeightsError("it does not end as a zip archive without comment; it is cut off, appended to, or of another format")
    _, disk, directory_disk, here, count, length, start, _ = END.unpack(tail)
    if count == MANY or ZIP64 in (length, start):
        raise WeightsError("it is a zip64 archive (4 GiB, or 65535 members); load it by NumPy and save it as safetensors")
    if disk or directory_disk or here != count or start + length != size - END.size:
        raise WeightsError(
            "its last bytes contradict its size; it is cut off, or has bytes in front or behind; get the file again"
        )
    if length > count * (CENTRAL.size + 4 * MAX_NAME):
        raise WeightsError(f"its directory of {count} members has {length} bytes; save it again by numpy.savez")
    f.seek(start)
    directory = f.read(length)
    members = []
    position = 0
    for _ in range(count):
        fields = CENTRAL.unpack_from(directory, position)
        signature, _, version, flags, method, _, _, crc, packed, unpacked, *lengths, disk, _, attributes, offset = fields
        position += CENTRAL.size
        name = directory[position : position + lengths[0]]
        extra = directory[position + lengths[0] : position + lengths[0] + lengths[1]]
        position += sum(lengths)
        member = Member(name, flags, method, crc, packed, unpacked, offset)
        if signature != b"PK\1\2" or version > NEWEST or disk or lengths[2] or {ZIP64_FIELD, NAME_FIELD} & _extra(extra).keys():
            raise WeightsError(
                f"its directory is damaged, or not that of a plain zip, at {shown(name)}; save it again by numpy.savez"
            )
        if flags & ~(DESCRIPTOR | UTF8 | EFFORT) or method not in (STORED, DEFLATED):
            raise WeightsError(
                f"its member {shown(member.name)} has method {method} and flags {flags:#x}, readable are stored or "
                "deflated ones, not encrypted; save it again by numpy.savez"
            )
        if ZIP64 in (packed, unpacked, offset) or (method == STORED and packed != unpacked):
            raise WeightsError(f"its member {shown(member.name)} has sizes that contradict each other; get the file again")
        if attributes >> 16 & FILE_TYPE not in (0, REGULAR):
            raise WeightsError(f"its member {shown(member.name)} is a link or device, not a file; do not use it")
        members.append(member)
    if position != length:
        raise WeightsError(f"its directory has {length} bytes, its {count} members take {position}; get the file again")
    return members, start


def _check_local(f: BufferedReader, member: Member) -> int:
    """Offset of the member's data; WeightsError unless its local header says what the directory says."""
    f.seek(member.offset)
    signature, version, flags, method, _, _, crc, packed, size, name_length, extra_length = LOCAL.unpack(f.read(LOCAL.size))
    name, extra = f.read(name_length), _extra(f.read(extra_length))
    if packed == size == ZIP64:  # as numpy.savez writes it, whatever the size
        size, packed = struct.unpack("<2Q", extra.get(ZIP64_FIELD, b""))
    same = (signature, flags, method, name) == (b"PK\3\4", member.flags, member.method, member.file_name)
    sizes = [(member.crc, member.packed, member.size)] + [(0, 0, 0)] * bool(flags & DESCRIPTOR)
    if not same or (crc, packed, size) not in sizes or version > NEWEST or NAME_FIELD in extra:
        raise WeightsError(f"its member {shown(member.name)} is another in the directory than in its place; do not use it")
    return member.offset + LOCAL.size + name_length + extra_length


def _ends(f: BufferedReader, member: Member, end: int, follows: int) -> bool:
    """Whether nothing but the descriptor, if there has to be one, is between the data's end and what follows."""
    if not member.flags & DESCRIPTOR:
        return end == follows
    if follows - end not in DESCRIPTORS:
        return False
    f.seek(end)
    layout = DESCRIPTORS[follows - end]
    return layout.unpack(f.read(layout.size)) == (b"PK\7\b", member.crc, member.packed, member.size)


def _extra(extra: bytes) -> dict[int, bytes]:
    """Extra fields by their number."""
    fields = {}
    position = 0
    while position < len(extra):
        number, length = struct.unpack_from("<2H", extra, position)
        position += 4 + length
        if number in fields or position > len(extra):
            raise WeightsError("an extra field of its zip headers is damaged; get the file again")
        fields[number] = extra[position - length : position]
    return fields


def _content(f: BufferedReader, member: Member) -> Array:
    """The unpacked bytes of a member."""
    content = np.empty(member.size, np.uint8)
    crc = done = 0
    f.seek(member.begin)
    pieces = _inflated(f, member.packed) if member.method == DEFLATED else _stored(f, member.packed)
    for piece in pieces:
        done += len(piece)
        if done > member.size:
            break
        content[done - len(piece) : done] = np.frombuffer(piece, np.uint8)
        crc = zlib.crc32(piece, crc)
    if done != member.size or crc != member.crc:
        raise WeightsError(f"its member {shown(member.name)} is damaged: its size or CRC is wrong; get the file again")
    return content


def _stored(f: BufferedReader, left: int) -> Iterator[bytes]:
    while piece := f.read(min(left, CHUNK)):
        left -= len(piece)
        yield piece


def _inflated(f: BufferedReader, left: int) -> Iterator[bytes]:
    """Unpacked pieces of at most CHUNK bytes; WeightsError unless the stream ends with its last byte."""
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    while not engine.eof:
        fresh = b"" if engine.unconsumed_tail else f.read(min(left, CHUNK))
        left -= len(fresh)
        piece = engine.decompress(engine.unconsumed_tail or fresh, CHUNK)
        if not piece and not fresh:
            break
        yield piece
    if left or engine.unused_data or not engine.eof:
        raise WeightsError("a compressed member does not end where it has to; get the file again")


# the arrays


def _array(content: Array, name: str, bfloat16: set[str]) -> Array:
    """What a .npy file holds, as a window into its bytes wherever these are native and in C order."""
    head = content[:12].tobytes()
    width = LENGTH_BYTES.get(head[6:8], 0)
    begin = 8 + width
    length = int.from_bytes(head[8:begin], "little")
    if head[:6] != MAGIC or not width or length > min(MAX_NPY_HEADER, content.size - begin):
        raise WeightsError(f"tensor {shown(name)} does not begin as .npy of version 1 to 3; save it again by numpy.savez")
    text = content[begin : begin + length].tobytes().decode("latin-1")
    header = HEADER.fullmatch(text)
    if header is None or None in (header["descr"], header["fortran_order"], header["shape"]):
        raise WeightsError(
            f"tensor {shown(name)} has the header {shown(text)}, expected are descr, fortran_order and shape of a plain array; "
            "save it again by numpy.savez"
        )
    descr = header["descr"]
    if descr not in DTYPES | BFLOAT16:
        what = REFUSED.get(descr.lstrip("<>|=")[:1], "another dtype")
        raise WeightsError(
            f"tensor {shown(name)} holds {what} ({shown(descr)}), expected are floats of 2 to 8 bytes, integers or booleans; "
            "convert it, or leave it out, and save again by numpy.savez"
        )
    dtype = np.dtype("<u2" if descr in BFLOAT16 else descr)
    shape = tuple(int(extent) for extent in header["shape"].split(",") if extent.strip())
    data = content[begin + length :]
    if array_bytes(shape, dtype.itemsize, name) != data.size:
        raise WeightsError(
            f"tensor {shown(name)} has {data.size} bytes, its dtype {descr} and shape {shape} need "
            f"{array_bytes(shape, dtype.itemsize, name)}; get the file again"
        )
    a = data.view(dtype).reshape(shape, order="F" if header["fortran_order"] == "True" else "C")
    if descr in BFLOAT16:
        a = from_bfloat16(a)
        bfloat16.add(name)
    elif dtype == np.bool_:
        check_bool(a, name)
    return native(a)
