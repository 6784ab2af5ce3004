"""Archives of NumPy whose headers lie, those of the zip and those of the arrays: what is read, NumPy reads as well."""

import dataclasses
import io
import zlib

import numpy as np
import pytest
from helpers import handmade, judge
from helpers.strategies import EXAMPLES, INTEGERS, WORDS, arrays, same, states, try_all
from hypothesis import strategies as st

from refvit.weights.readers.npz import read_npz

LIMITS = {
    "flags": 16,
    "method": 16,
    "crc": 32,
    "size": 32,
    "stored": 32,
    "header": 32,
    "local_flags": 16,
    "local_method": 16,
    "disk": 16,
}
DESCRS = ["<f4", ">f4", "|b1", "|V2", "|O", "<U1", "<c8", "<M8[s]", "=f4", "f4", "<f3", "<i16", ">i2", "|u1"]
ENDS = {"count": 16, "size": 32, "start": 32}


def entry(name, content, deflate=False):
    """A member as NumPy writes it into a file."""
    raw = content
    if deflate:
        engine = zlib.compressobj(wbits=-15)
        raw = engine.compress(content) + engine.flush()
    crc = zlib.crc32(content)
    sizes = (crc, len(raw), len(content))
    common = {"flags": 0, "method": 8 * deflate, "crc": crc, "size": len(content), "stored": len(raw)}
    return handmade.Entry(name, raw, **common, local_sizes=sizes, local_extra=b"")


def npy(a):
    f = io.BytesIO()
    np.lib.format.write_array(f, a, allow_pickle=False)
    return f.getvalue()


@st.composite
def lying_zips(draw):
    state = {name: a for name, a in draw(states()).items() if name.isascii()} | {"w": np.arange(3)}
    entries = [entry(f"{name}.npy", npy(a), draw(st.booleans())) for name, a in state.items()]
    ends = {}
    for _ in range(draw(st.integers(1, 3))):
        i = draw(st.integers(0, len(entries) - 1))
        lie = draw(
            st.sampled_from([*LIMITS, "name", "local_name", "local_sizes", "extra", "data", "flip", "twice", "before", "end"])
        )
        numbers = INTEGERS | st.integers(0, 400)
        if lie == "end":
            field = draw(st.sampled_from(sorted(ENDS)))
            ends[field] = draw(numbers) % 2 ** ENDS[field]
            continue
        if lie == "twice":
            entries.append(dataclasses.replace(entries[i], repeated=draw(st.booleans())))
            continue
        if lie in LIMITS:
            value = draw(numbers) % 2 ** LIMITS[lie]
        elif lie in ("name", "local_name"):
            value = draw(WORDS.map(lambda w: w + ".npy") | WORDS | st.sampled_from([e.name for e in entries]))
        elif lie == "local_sizes":
            value = tuple(n % 2**32 for n in draw(st.tuples(numbers, numbers, numbers)))
        elif lie == "data":
            value = entries[i].data[: draw(st.integers(0, len(entries[i].data)))]
        elif lie == "flip":  # its last byte, which is of the array
            lie, value = "data", entries[i].data[:-1] + bytes([entries[i].data[-1] ^ 1 if entries[i].data else 0])
        else:
            value = draw(st.binary(max_size=24) | st.sampled_from([b"\1\0\10\0" + bytes(8), b"up\5\0" + bytes(5), b"PK\3\4"]))
        entries[i] = dataclasses.replace(entries[i], **{lie: value})
    return handmade.archive(entries, zip64=draw(st.booleans()), **ends)


@st.composite
def lying_arrays(draw):
    """Under checksums that are right."""
    a = draw(arrays())
    fields = [("descr", repr(a.dtype.str)), ("fortran_order", "False"), ("shape", repr(a.shape))]
    data, version, end, length = a.tobytes(), b"\1\0", draw(st.sampled_from(["}\n", "}", " }", ", }\n"])), None
    for _ in range(draw(st.integers(1, 2))):
        lie = draw(st.sampled_from(["descr", "fortran_order", "shape", "field", "text", "version", "length", "data", "order"]))
        if lie == "descr":
            fields[0] = ("descr", repr(draw(st.sampled_from(DESCRS) | WORDS)))
        elif lie == "fortran_order":
            fields[1] = ("fortran_order", repr(draw(st.sampled_from([True, 0, None, "True"]))))
        elif lie == "shape":
            fields[2] = ("shape", repr(tuple(draw(st.lists(INTEGERS | st.integers(0, 8), max_size=9)))))
        elif lie == "field":
            i = draw(st.integers(0, 2))
            fields = draw(st.sampled_from([fields[:i] + fields[i + 1 :], [*fields, fields[i]], [*fields, ("x", "1")]]))
        elif lie == "text":
            end = draw(st.sampled_from(["", "}}", "} ", "}\n\n", "}\0", "}#", "or 1}"]))
        elif lie == "version":
            version = draw(st.binary(min_size=2, max_size=2) | st.sampled_from([b"\2\0", b"\3\0"]))
        elif lie == "length":
            length = draw(st.integers(0, 2**16 - 1) | st.integers(50, 80))
        elif lie == "data":
            data = draw(st.sampled_from([data[1:], data + b"\0", data + data, b"\2" * len(data), b""]))
        else:
            fields = draw(st.permutations(fields))
        if len(fields) < 3:
            break
    header = ("{" + ", ".join(f"'{name}': {value}" for name, value in fields) + end).encode("utf-8", "replace")
    width = 2 if version == b"\1\0" else 4
    size = (len(header) if length is None else length).to_bytes(width, "little")
    content = b"\x93NUMPY" + version + size + header + data
    return handmade.archive([entry("a.npy", content, draw(st.booleans()))], zip64=False)


@EXAMPLES
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_valid_archives_are_read(tmp_path, save, examples):
    def check(state):
        with (tmp_path / "x").open("wb") as f:
            save(f, **state)
        same(judge.answer(read_npz, tmp_path / "x"), state)

    try_all(examples, states().filter(lambda state: "file" not in state), check)


@EXAMPLES
def test_members_made_by_hand_are_read(tmp_path, examples):
    """Otherwise nothing that lies about them would be refused for its lie."""

    def check(state):
        entries = [entry(f"{name}.npy", npy(a), bool(i % 2)) for i, (name, a) in enumerate(state.items())]
        (tmp_path / "x").write_bytes(handmade.archive(entries, zip64=False))
        same(judge.answer(read_npz, tmp_path / "x"), state)

    try_all(examples, states().filter(lambda state: all(map(str.isascii, state))), check)


@EXAMPLES
@pytest.mark.parametrize("lying", [lying_zips(), lying_arrays()], ids=["zip", "array"])
def test_headers_that_lie(tmp_path, lying, examples):
    def check(content):
        (tmp_path / "x").write_bytes(content)
        if (found := judge.answer(read_npz, tmp_path / "x")) is not None:
            judge.as_numpy(found, tmp_path / "x")
            return True

    assert 0 < try_all(5 * examples, lying, check) < 1
