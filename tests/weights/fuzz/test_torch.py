"""PyTorch checkpoints whose pickles or archives lie: what is read is what loops over the described elements give."""

import dataclasses
import itertools
import math
import struct
import zlib

import numpy as np
import pytest
from helpers import handmade as h
from helpers import judge
from helpers.strategies import EXAMPLES, INTEGERS, ODD, WORDS, try_all
from hypothesis import strategies as st

from refvit.weights.readers.torch_legacy import read_torch_legacy
from refvit.weights.readers.torch_state import state_of
from refvit.weights.readers.torch_zip import read_torch_zip

KINDS = {"FloatStorage": "f", "DoubleStorage": "d", "LongStorage": "q", "ShortStorage": "h", "ByteStorage": "B"}
READABLE = KINDS | {"HalfStorage": "e", "UntypedStorage": "B"}  # as a lie they may fit as well
READERS = {"zip": read_torch_zip, "legacy": read_torch_legacy}


@dataclasses.dataclass
class Stored:
    kind: str
    raw: bytes
    numel: int


@dataclasses.dataclass
class Described:
    """A tensor as the pickle describes it; what is not as in its storage is a lie."""

    name: str
    key: str
    kind: str
    numel: int
    offset: int
    size: list
    stride: list


def read(form):
    return lambda path: state_of(READERS[form](path))[0]


@st.composite
def checkpoints(draw):
    """(storages by key, tensors), all of it true."""
    storages, tensors = {}, []
    for i in range(draw(st.integers(1, 3))):
        kind, numel = draw(st.sampled_from(sorted(KINDS))), draw(st.integers(0, 12))
        raw = draw(st.binary(min_size=numel * struct.calcsize(KINDS[kind]), max_size=numel * struct.calcsize(KINDS[kind])))
        storages[str(i)] = Stored(kind, raw, numel)
        for j in range(draw(st.integers(1, 2))):
            size, stride = draw(st.lists(st.integers(0, 3), max_size=3)), []
            stride = draw(st.lists(st.integers(0, 4), min_size=len(size), max_size=len(size)))
            reach = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if all(size) else 0
            if reach > numel:
                size, stride, reach = [numel], [1], numel
            tensors.append(Described(f"{i}.{j}", str(i), kind, numel, draw(st.integers(0, numel - reach)), size, stride))
    return storages, tensors


@st.composite
def lying(draw):
    storages, tensors = draw(checkpoints())
    for _ in range(draw(st.integers(1, 3))):
        t = draw(st.sampled_from(tensors))
        field = draw(st.sampled_from(["name", "key", "kind", "numel", "offset", "size", "stride"]))
        extents = st.lists(st.integers(0, 5), max_size=4) | st.lists(INTEGERS, max_size=9)
        values = {
            "name": WORDS,
            "key": st.sampled_from(sorted(storages)) | WORDS,
            "kind": st.sampled_from([*READABLE, "ComplexFloatStorage", "QInt8Storage", "x"]),
            "numel": INTEGERS,
            "offset": INTEGERS,
            "size": extents,
            "stride": extents,
        }
        setattr(t, field, draw(values[field]))
    return storages, tensors


def file(form, storages, tensors):
    pairs = [
        (t.name, h.tensor(h.storage(t.key, t.numel, t.kind, legacy=form == "legacy"), t.size, t.stride, t.offset))
        for t in tensors
    ]
    body = h.pickle(h.mapping(pairs))
    if form == "zip":
        return h.torch_zip(body, {key: s.raw for key, s in storages.items()})
    return h.torch_legacy(body, {key: (s.numel, s.raw) for key, s in storages.items()})


def elements(t, storage):
    """Shape and elements, one by one; AssertionError if the description is none of an array in the storage.

    The kind is said by the pickle alone: another one is right as long as the number of bytes is.
    """
    width = struct.calcsize("<" + READABLE[t.kind])
    assert t.numel * width == len(storage.raw)
    assert len(t.size) == len(t.stride) and min([t.offset, *t.size, *t.stride]) >= 0
    assert math.prod(t.size) < 10_000
    values = []
    for index in itertools.product(*map(range, t.size)):
        at = t.offset + sum(i * s for i, s in zip(index, t.stride, strict=True))
        assert at < t.numel
        values.append(storage.raw[at * width : (at + 1) * width])
    return tuple(t.size), b"".join(values)


def as_described(found, storages, tensors):
    assert sorted(found) == sorted(t.name for t in tensors)
    assert len({(t.key, READABLE[t.kind]) for t in tensors}) == len({t.key for t in tensors}) == len(storages)
    for t in tensors:
        a = found[t.name]
        assert a.dtype == np.dtype(READABLE[t.kind])
        assert (a.shape, a.tobytes()) == elements(t, storages[t.key]), t


@EXAMPLES
@pytest.mark.parametrize("form", READERS)
def test_valid_checkpoints_are_read(tmp_path, form, examples):
    def check(case):
        (tmp_path / "x").write_bytes(file(form, *case))
        found = judge.answer(read(form), tmp_path / "x")
        assert found is not None
        as_described(found, *case)

    try_all(examples, checkpoints(), check)


@EXAMPLES
@pytest.mark.parametrize("form", READERS)
def test_descriptions_that_lie(tmp_path, form, examples):
    def check(case):
        (tmp_path / "x").write_bytes(file(form, *case))
        if (found := judge.answer(read(form), tmp_path / "x")) is not None:
            as_described(found, *case)
            return True

    assert 0 < try_all(5 * examples, lying(), check) < 1


FIELDS = {"flags": 16, "method": 16, "crc": 32, "size": 32, "stored": 32, "local_flags": 16, "local_method": 16}
FIELDS |= {"attributes": 32, "disk": 16, "header": 32}
ENDS = {"count": 16, "size": 32, "start": 32, "count64": 64, "size64": 64, "start64": 64, "locator": 64}


@st.composite
def lying_archives(draw):
    """(what it would hold if it were true, an archive with one to three lies in the fields of the zip)."""
    storages, tensors = draw(checkpoints())
    pairs = [(t.name, h.tensor(h.storage(t.key, t.numel, t.kind), t.size, t.stride, t.offset)) for t in tensors]
    entries = h.torch_entries(h.pickle(h.mapping(pairs)), {key: s.raw for key, s in storages.items()})
    numbers, ends, renamed = INTEGERS | st.integers(0, 700), {}, False
    for _ in range(draw(st.integers(1, 3))):
        i = draw(st.integers(0, len(entries) - 1))
        lie = draw(
            st.sampled_from(
                [*FIELDS, "name", "local_name", "local_sizes", "bytes", "flip", "flip", "flip", "repeated", "end", "order"]
            )
        )
        if lie == "end":
            field = draw(st.sampled_from(sorted(ENDS)))
            ends[field] = draw(numbers) % 2 ** ENDS[field]
            continue
        if lie == "order":
            entries = draw(st.permutations(entries))
            continue
        if lie == "bytes":
            lie = draw(st.sampled_from(["extra", "local_extra", "comment", "descriptor", "before"]))
            value = draw(st.binary(max_size=24) | st.sampled_from([b"\1\0\10\0" + bytes(8), b"up\5\0" + bytes(5), b"PK\3\4"]))
        elif lie == "repeated":
            value = True
        elif lie == "flip":
            lie, value = "crc", zlib.crc32(entries[i].data)  # as it was
            entries[i] = dataclasses.replace(entries[i], data=entries[i].data[:-1] + bytes([(entries[i].data or b"0")[-1] ^ 1]))
        elif lie == "local_sizes":
            value = tuple(n % 2**32 for n in draw(st.tuples(numbers, numbers, numbers)))
        elif lie in FIELDS:
            value = draw(numbers) % 2 ** FIELDS[lie]
        else:
            if lie == "name" and renamed:  # two that change their names with each other are another checkpoint
                continue
            renamed = lie == "name"
            value = draw(WORDS | WORDS.map(lambda w: "archive/" + w) | st.sampled_from([e.name for e in entries]))
        entries[i] = dataclasses.replace(entries[i], **{lie: value})
    return storages, tensors, h.archive(entries, zip64=draw(st.booleans()), **ends)


@EXAMPLES
def test_archives_that_lie(tmp_path, examples):
    def check(case):
        storages, tensors, content = case
        (tmp_path / "x").write_bytes(content)
        if (found := judge.answer(read("zip"), tmp_path / "x")) is not None:
            as_described(found, storages, tensors)
            return True

    assert 0 < try_all(5 * examples, lying_archives(), check) < 1


@st.composite
def lying_streams(draw):
    """The same for the format before 1.6, which has counts and keys instead of an archive."""
    storages, tensors = draw(checkpoints())
    pairs = [(t.name, h.tensor(h.storage(t.key, t.numel, t.kind, legacy=True), t.size, t.stride, t.offset)) for t in tensors]
    counts = {key: s.numel for key, s in storages.items()}
    options = {}
    lie = draw(st.sampled_from(["count", "keys", "little", "version", "suffix", "magic", "protocol", "cut"]))
    if lie == "count":
        counts[draw(st.sampled_from(sorted(counts)))] = (draw(INTEGERS) + 2**63) % 2**64 - 2**63
    elif lie == "keys":
        options["keys"] = draw(st.lists(st.sampled_from(sorted(storages)) | WORDS, max_size=4))
    elif lie in ("little", "version"):
        options[lie] = draw(st.booleans() if lie == "little" else INTEGERS)
    elif lie != "cut":
        options[lie] = draw(st.binary(max_size=9) | ODD.filter(lambda v: type(v) is int).map(lambda n: h.pickle(h.number(n))))
    content = h.torch_legacy(h.pickle(h.mapping(pairs)), {key: (counts[key], s.raw) for key, s in storages.items()}, **options)
    return storages, tensors, content[: draw(st.integers(0, len(content) - 1))] if lie == "cut" else content


@EXAMPLES
def test_streams_that_lie(tmp_path, examples):
    def check(case):
        storages, tensors, content = case
        (tmp_path / "x").write_bytes(content)
        if (found := judge.answer(read("legacy"), tmp_path / "x")) is not None:
            as_described(found, storages, tensors)
            return True

    assert 0 < try_all(3 * examples, lying_streams(), check) < 1
