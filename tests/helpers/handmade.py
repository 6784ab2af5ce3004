"""Writers of PyTorch checkpoints, part by part, so that tests can make files that no program would write.

A pickle is put together from pieces of bytes, each of which leaves one value on the stack.
"""

import struct
import tracemalloc
import zlib
from contextlib import contextmanager
from dataclasses import dataclass

# pickles


def pickle(body, protocol=2):
    return bytes([0x80, protocol]) + body + b"."


def text(s):
    raw = s.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(n):
    if 0 <= n < 256:
        return b"K" + bytes([n])
    raw = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module, attribute):
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def several(*parts):
    return b"(" + b"".join(parts) + b"t"


def call(function, *parts):
    return function + several(*parts) + b"R"


def mapping(pairs, new=b"}"):
    items = pairs.items() if isinstance(pairs, dict) else pairs
    return new + b"(" + b"".join((text(k) if isinstance(k, str) else k) + v for k, v in items) + b"u"


def numbers(values):
    return several(*map(number, values))


ORDERED = call(name("collections", "OrderedDict"))


def storage(key, numel, kind="FloatStorage", legacy=False, view=b"N", module="torch"):
    parts = [text("storage"), name(module, kind), text(key), text("cpu"), number(numel)]
    return several(*parts, *([view] if legacy else [])) + b"Q"


def tensor(source, size, stride, offset=0, flags=None):
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    rest = [] if flags is None else [flags]
    return call(rebuild, source, number(offset), numbers(size), numbers(stride), b"\x89", ORDERED, *rest)


def vector(key, numel, kind="FloatStorage", **more):
    return tensor(storage(key, numel, kind, **more), [numel], [1])


# zip archives


@dataclass
class Entry:
    """What is written for an entry; fields that are None follow from the others, as torch has them."""

    name: str
    data: bytes
    flags: int = 0x0808
    method: int = 0
    crc: int | None = None
    size: int | None = None  # in the directory
    stored: int | None = None
    local_name: str | None = None
    local_flags: int | None = None
    local_method: int | None = None
    local_sizes: tuple[int, int, int] = (0, 0, 0)  # CRC, stored, size
    local_extra: bytes | None = None  # padding, so that the data starts at a multiple of 64
    extra: bytes = b""
    attributes: int = 0
    disk: int = 0
    comment: bytes = b""
    descriptor: bytes | None = None
    header: int | None = None  # in the directory
    before: bytes = b""
    repeated: bool = False  # listed in the directory, not written


def archive(entries, prefix=b"", suffix=b"", comment=b"", zip64=True, between=b"", **lies):
    """A zip archive. `lies` replace fields of the records at the end: count, size, start, and the same with 64 behind."""
    out = bytearray(prefix)
    directory = b""
    last = 0
    for e in entries:
        crc = zlib.crc32(e.data) if e.crc is None else e.crc
        size = len(e.data) if e.size is None else e.size
        stored = size if e.stored is None else e.stored
        out += e.before
        header = len(out) if e.header is None else e.header
        raw, local = e.name.encode(), (e.name if e.local_name is None else e.local_name).encode()
        if e.repeated:
            header = last if e.header is None else e.header
        else:
            last = len(out)
            flags = e.flags if e.local_flags is None else e.local_flags
            pad = -(len(out) + 30 + len(local) + 4) % 64
            extra = struct.pack("<2sH", b"FB", pad) + b"Z" * pad if e.local_extra is None else e.local_extra
            method = e.method if e.local_method is None else e.local_method
            out += struct.pack("<4s5H3L2H", b"PK\3\4", 0, flags, method, 0, 0, *e.local_sizes, len(local), len(extra))
            out += local + extra + e.data
            if e.descriptor is not None:
                out += e.descriptor
            elif e.flags & 8:
                out += struct.pack("<4s3L", b"PK\7\10", crc, stored, size)
        fields = (0, 0, e.flags, e.method, 0, 0, crc, stored, size, len(raw), len(e.extra), len(e.comment), e.disk, 0)
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", *fields, e.attributes, header) + raw + e.extra + e.comment
    out += between
    start = len(out)
    out += directory
    end = {"count": len(entries), "size": len(directory), "start": start}
    large = {key: lies.get(f"{key}64", value) for key, value in end.items()}
    small = {key: lies.get(key, value) for key, value in end.items()}
    if zip64:
        position = len(out)
        counts = (large["count"], large["count"], large["size"], large["start"])
        out += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 0, 0, 0, 0, *counts)
        out += struct.pack("<4sLQL", b"PK\6\7", 0, lies.get("locator", position), 1)
    counts = (small["count"], small["count"], small["size"], small["start"], len(comment))
    out += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *counts) + comment
    return bytes(out + suffix)


def torch_entries(body, storages, top="archive"):
    """The entries of a checkpoint: `body` is the pickle, `storages` maps keys to bytes."""
    entries = [Entry(f"{top}/data.pkl", body), Entry(f"{top}/byteorder", b"little")]
    entries += [Entry(f"{top}/data/{key}", raw, flags=0x0808 if raw else 0x0800) for key, raw in storages.items()]
    return [*entries, Entry(f"{top}/version", b"3\n"), Entry(f"{top}/.data/serialization_id", b"1" * 40)]


def torch_zip(body, storages, **options):
    return archive(torch_entries(body, storages), **options)


# the format before 1.6

MAGIC = pickle(b"\x8a\n" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little"))
PROTOCOL = pickle(b"M\xe9\x03")


def torch_legacy(body, storages, keys=None, little=True, version=1001, magic=MAGIC, protocol=PROTOCOL, suffix=b""):
    """`storages` maps keys to (number of elements, bytes)."""
    sizes = mapping({"short": number(2), "int": number(4), "long": number(4)})
    system = {"protocol_version": number(version), "little_endian": b"\x88" if little else b"\x89", "type_sizes": sizes}
    listed = pickle(b"](" + b"".join(text(k) for k in (storages if keys is None else keys)) + b"e")
    data = b"".join(struct.pack("<q", n) + raw for n, raw in storages.values())
    return magic + protocol + pickle(mapping(system)) + body + listed + data + suffix


@contextmanager
def memory(most):
    """Inside, at most `most` bytes may be allocated at a time."""
    tracemalloc.start()
    try:
        yield
        top = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert top <= most, f"{top} bytes"


def put(path, data):
    """Overwrite a file by one of the same length: many times faster than to write it anew."""
    if path.exists() and path.stat().st_size == len(data):
        with path.open("r+b") as f:
            f.write(data)
    else:
        path.write_bytes(data)
