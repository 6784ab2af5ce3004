"""Our reader of safetensors against the library: as permissive as the format, never more than the library, with its values."""

import gc
import json
import os
import random
import re
import struct
import sys
import tracemalloc

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save, save_file

from refvit.errors import WeightsError
from refvit.weights.readers import limits
from refvit.weights.readers import safetensors as reader
from refvit.weights.readers.safetensors import read_file, read_safetensors

RNG = np.random.default_rng(3)
NAMES = {  # of the library and the format
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
DTYPES = sorted(set(NAMES) - {"bfloat16"})
SHAPES = [(), (1,), (0,), (7,), (3, 0, 2), (2, 3), (1, 2, 1, 3, 1, 1, 2, 1)]


def random_array(dtype, shape):
    """Any bit pattern, NaN and infinities too; booleans are 0 or 1."""
    if dtype == "bool":
        return RNG.integers(0, 2, shape).astype(bool)
    size = np.dtype(dtype).itemsize
    raw = RNG.integers(0, 256, (*shape, size), dtype=np.uint8)
    return raw.reshape(-1).view(dtype).reshape(shape)


def same(a, b):
    """Same dtype, shape and bits."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


def build(header, data=b"", length=None):
    """A file out of a header as it is to stand there: text, bytes, or what JSON can say."""
    if not isinstance(header, (bytes, str)):
        header = json.dumps(header)
    raw = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype="F32", shape=(1,), begin=0, end=4):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write(folder, content):
    path = folder / "a.safetensors"
    path.write_bytes(content)
    return path


def refused(path, message):
    with pytest.raises(WeightsError) as info:
        read_safetensors(path)
    text = str(info.value)
    assert text.startswith(f"{path}: "), text
    assert re.search(message, text[len(str(path)) :]), text
    assert text.isprintable()
    assert len(text) < 600 + len(str(path))
    return text


# what is read


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_shape_of_the_library(tmp_path, dtype):
    written = {f"layer.{i}.{'x' * i}": random_array(dtype, shape) for i, shape in enumerate(SHAPES)}
    save_file(written, tmp_path / "a", {"format": "np", "Größe": "ein\nText"})
    tensors, metadata = read_safetensors(tmp_path / "a")
    assert metadata == {"format": "np", "Größe": "ein\nText"}
    assert tensors.keys() == written.keys()
    for name, a in written.items():
        same(tensors[name], a)


def test_all_dtypes_in_one_file(tmp_path):
    written = {f"{dtype}.{i}": random_array(dtype, shape) for dtype in DTYPES for i, shape in enumerate(SHAPES)}
    save_file(written, tmp_path / "a")
    tensors, metadata = read_safetensors(str(tmp_path / "a"))
    assert metadata == {}
    assert tensors.keys() == written.keys()
    for name, a in written.items():
        same(tensors[name], a)


def test_every_bfloat16_is_exact(tmp_path):
    patterns = list(range(2**16))
    data = struct.pack("<65536H", *patterns)
    content = build({"w": entry("BF16", (256, 256), 0, 2**17)}, data)
    a = read_safetensors(write(tmp_path, content))[0]["w"]
    assert (a.dtype, a.shape) == (np.float32, (256, 256))
    assert a.tobytes() == b"".join(struct.pack("<HH", 0, p) for p in patterns)
    assert a[0x3F, 0x80] == 1.0  # by hand: 0x3F80
    assert a[0xC0, 0x49] == -3.140625
    assert np.isposinf(a[0x7F, 0x80])
    assert a.flags.writeable is False


def test_bfloat16_scalars_and_nothing(tmp_path):
    header = {"s": entry("BF16", (), 0, 2), "e": entry("BF16", (0, 3), 2, 2)}
    tensors = read_safetensors(write(tmp_path, build(header, struct.pack("<H", 0x4020))))[0]
    same(tensors["s"], np.array(2.5, np.float32))
    same(tensors["e"], np.zeros((0, 3), np.float32))


def test_no_tensors(tmp_path):
    assert read_safetensors(write(tmp_path, save({}))) == ({}, {})
    assert read_safetensors(write(tmp_path, build("{}"))) == ({}, {})
    assert read_safetensors(write(tmp_path, build('{"__metadata__": {}}'))) == ({}, {})


def test_order_of_the_header_is_free_and_spaces_may_follow_it(tmp_path):
    header = {"second": entry("U8", (2,), 4, 6), "nothing": entry("F32", (0,), 4, 4), "first": entry()}
    path = write(tmp_path, build(json.dumps(header) + " " * 13, struct.pack("<fBB", 1.5, 7, 9)))
    file = read_file(path)
    assert [(name, a.tolist()) for name, a in file.tensors.items()] == [("first", [1.5]), ("nothing", []), ("second", [7, 9])]
    assert file.data_bytes == 6


@pytest.mark.parametrize("shift", range(1, 8))
def test_tensors_that_the_file_does_not_align(tmp_path, shift):
    """The format asks for no alignment. All that we hand out is aligned nevertheless."""
    a, b = random_array("float32", (5,)), random_array("float64", (3,))
    header = {"pad": entry("U8", (shift,), 0, shift)}
    header["a"] = entry("F32", (5,), shift, shift + 20)
    header["b"] = entry("F64", (3,), shift + 20, shift + 44)
    tensors, _ = read_safetensors(write(tmp_path, build(header, bytes(shift) + a.tobytes() + b.tobytes())))
    same(tensors["a"], a)
    same(tensors["b"], b)
    for t in tensors.values():
        assert t.flags.aligned and t.flags.c_contiguous
        assert not t.flags.writeable


def test_nothing_can_be_written(tmp_path):
    path = write(tmp_path, save({"w": random_array("float32", (4,)), "h": random_array("bool", (3,))}))
    before = path.read_bytes()
    for a in read_safetensors(path)[0].values():
        with pytest.raises(ValueError, match="read-only"):
            a[0] = 1
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            a.flags.writeable = True
    assert path.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps files that are in use")
def test_arrays_outlive_the_file_and_let_go_of_it(tmp_path):
    a = random_array("float32", (1000,))
    path = write(tmp_path, save({"w": a, "v": a}))
    counted = os.path.isdir("/proc/self/fd")
    gc.collect()
    before = len(os.listdir("/proc/self/fd")) if counted else 0
    tensors, _ = read_safetensors(path)
    other = tmp_path / "b"
    other.write_bytes(b"something else")
    os.replace(other, path)
    same(tensors["w"], a)
    path.unlink()
    last = tensors.pop("v")
    del tensors
    same(last, a)
    del last
    gc.collect()
    assert not counted or len(os.listdir("/proc/self/fd")) == before


def test_reading_allocates_next_to_nothing(tmp_path):
    """64 MiB of float32 stay on the disk until they are used; bfloat16 needs the float32 that it becomes."""
    n = 2**26
    content = build(json.dumps({"w": entry("F32", (n // 4,), 0, n)}).ljust(120))
    path = write(tmp_path, content)
    os.truncate(path, len(content) + n)
    half = tmp_path / "half"
    content = build({"w": entry("BF16", (n // 8,), 0, n // 4)})  # aligned or not
    half.write_bytes(content)
    os.truncate(half, len(content) + n // 4)
    for file, most in ((path, 2**18), (half, n // 2 + 2**18)):
        gc.collect()
        tracemalloc.start()
        try:
            tensors, _ = read_safetensors(file)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < most
        assert tensors["w"][-1] == 0


# what is refused


def test_not_a_file(tmp_path):
    refused(tmp_path / "gone", "no such weights file")
    refused(tmp_path, "not a file")
    refused(tmp_path / ("x" * 5000), "no such weights file|cannot be read")
    with pytest.raises(WeightsError, match="no such weights file"):
        read_safetensors("a\0b")
    refused(write(tmp_path, b"x") / "below", "no such weights file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a file")


def test_a_failing_disk(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    path = write(tmp_path, save({"w": random_array("float32", (4,))}))
    monkeypatch.setattr(reader.mmap, "mmap", fail)
    refused(path, "the system refused .Input/output error")


def test_an_error_of_the_disk_is_an_error_of_the_file(tmp_path):
    path = write(tmp_path, b"{}")
    with pytest.raises(WeightsError, match=re.escape(f"{path}: cannot be read (Input/output error)")), limits.opened(path):
        raise OSError(5, "Input/output error")


def test_too_little_memory(tmp_path, monkeypatch):
    def fail(_):
        raise MemoryError

    path = write(tmp_path, build({"w": entry("BF16", (2,))}, bytes(4)))
    monkeypatch.setattr(reader, "from_bfloat16", fail)
    refused(path, "not enough memory")


def test_too_large_a_file(tmp_path, monkeypatch):
    content = save({"w": random_array("float32", (4,))})
    path = write(tmp_path, content)
    monkeypatch.setattr(limits, "MAX_BYTES", len(content))
    read_safetensors(path)
    monkeypatch.setattr(limits, "MAX_BYTES", len(content) - 1)
    refused(path, f"{len(content)} bytes, at most {len(content) - 1} are read")


def test_git_lfs_pointer(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    refused(write(tmp_path, pointer), "Git LFS pointer.*git lfs pull")


def test_too_many_tensors(tmp_path, monkeypatch):
    path = write(tmp_path, build({f"t{i}": entry("F32", (0,), 0, 0) for i in range(5)}))
    monkeypatch.setattr(reader, "MAX_ENTRIES", 5)
    assert len(read_safetensors(path)[0]) == 5
    monkeypatch.setattr(reader, "MAX_ENTRIES", 4)
    refused(path, "5 tensors, at most 4")


LENGTHS = {
    "empty": (b"", "0 bytes"),
    "no length": (b"\0" * 7, "7 bytes"),
    "nothing behind the length": (struct.pack("<Q", 0), "header begins with b''"),
    "empty header": (build("", b"xxxx"), "header begins with b''"),
    "longer than the file": (build("{}", length=3), "header of 3 bytes"),
    "all ones": (build("{}", length=2**64 - 1), f"header of {2**64 - 1} bytes"),
    "negative": (build("{}", length=2**63), f"header of {2**63} bytes"),
    "shorter than the header": (build("{}", length=1), "get the file again"),
    "big-endian": (struct.pack(">Q", 2) + b"{}", "header of"),
    "pickle": (b"\x80\x02}q\x00." * 4, "of another format"),
    "zip": (b"PK\3\4" + bytes(60), "header of|begins with"),
    "web page": (b"<!DOCTYPE html><html></html>", "header of"),
}


@pytest.mark.parametrize("case", LENGTHS)
def test_length_of_the_header(tmp_path, case):
    content, message = LENGTHS[case]
    refused(write(tmp_path, content), message)


def test_a_header_of_100_mb_is_the_largest(tmp_path, monkeypatch):
    path = write(tmp_path, struct.pack("<Q", 100_000_001) + b"{}")
    os.truncate(path, 100_000_009)  # it would be complete
    refused(path, "header of 100000001 bytes, expected are at most 100000000")
    monkeypatch.setattr(reader, "MAX_HEADER", 16)
    read_safetensors(write(tmp_path, build("{}" + " " * 14)))
    refused(write(tmp_path, build("{}" + " " * 15)), "header of 17 bytes")


JSON = {
    "leading space": (' {"a":%s}', "begins with b' '"),
    "byte order mark": ('\ufeff{"a":%s}', "begins with"),
    "list": ('["a",%s]', "begins with"),
    "not UTF-8": (b'{"a\xff":%s}', "codec"),
    "UTF-16": ('{"a":%s}'.encode("utf-16-le"), "get the file again"),
    "two documents": ('{"a":%s}{}', "Extra data"),
    "NUL behind it": ('{"a":%s}\0', "Extra data"),
    "not closed": ('{"a":%s', "get the file again"),
    "comma at the end": ('{"a":%s,}', "get the file again"),
    "comment": ('{"a":%s/**/}', "get the file again"),
    "single quotes": ("{'a':%s}", "get the file again"),
    "control character": ('{"a\n":%s}', "Invalid control character"),
    "tensor twice": ('{"a":%s,"a":%s}', "has the key 'a' twice"),
    "tensor twice, escaped": ('{"a":%s,"\\u0061":%s}', "has the key 'a' twice"),
    "metadata twice": ('{"__metadata__":{},"a":%s,"__metadata__":{}}', "'__metadata__' twice"),
    "key of the metadata twice": ('{"__metadata__":{"k":"1","k":"2"},"a":%s}', "'k' twice"),
    "dtype twice": ('{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "'dtype' twice"),
    "offsets twice": ('{"a":{"data_offsets":[0,0],"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "'data_offsets' twice"),
    "half a surrogate pair": ('{"\\ud800":%s}', "surrogates not allowed"),
    "half a surrogate pair in the metadata": ('{"__metadata__":{"k":"\\udc00"},"a":%s}', "surrogates not allowed"),
    "metadata null": ('{"__metadata__":null,"a":%s}', "__metadata__ is not a map from text to text"),
    "metadata text": ('{"__metadata__":"x","a":%s}', "__metadata__ is not a map"),
    "metadata list": ('{"__metadata__":[["k","v"]],"a":%s}', "__metadata__ is not a map"),
    "metadata with a number": ('{"__metadata__":{"k":1},"a":%s}', "__metadata__ is not a map"),
    "metadata with a map": ('{"__metadata__":{"k":{}},"a":%s}', "__metadata__ is not a map"),
    "metadata with null": ('{"__metadata__":{"k":null},"a":%s}', "__metadata__ is not a map"),
    "tensor called as the metadata": ('{"__metadata__":%s}', "__metadata__ is not a map"),
    "NaN": ('{"__metadata__":{"k":NaN},"a":%s}', "holds NaN"),
    "Infinity": ('{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}', "holds Infinity"),
    "-Infinity": ('{"a":{"dtype":"F32","shape":[-Infinity],"data_offsets":[0,4]}}', "holds -Infinity"),
    "deep": ('{"a":' + "[" * 200_000 + "]" * 200_000 + "}", "recursion|nested"),
    "deep maps": ('{"a":' * 200_000, "recursion|nested"),
    "long number": ('{"a":' + "9" * 100_000 + "}", "dtype, shape, data_offsets"),
    "entry null": ('{"a":null}', "dtype, shape, data_offsets"),
    "entry list": ('{"a":["F32",[1],[0,4]]}', "dtype, shape, data_offsets"),  # the library takes it
    "entry empty": ('{"a":{}}', "dtype, shape, data_offsets"),
    "no dtype": ('{"a":{"shape":[1],"data_offsets":[0,4]}}', "dtype, shape, data_offsets"),
    "no shape": ('{"a":{"dtype":"F32","data_offsets":[0,4]}}', "dtype, shape, data_offsets"),
    "no offsets": ('{"a":{"dtype":"F32","shape":[1]}}', "dtype, shape, data_offsets"),
    "one more": ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"scale":[2]}}', "and nothing else"),
    "name empty": ('{"":%s}', "1 to 1000 printable"),
    "name with NUL": ('{"a\\u0000":%s}', "printable"),
    "name with a terminal's commands": ('{"\\u001b[2J\\u202e":%s}', "printable"),
    "name too long": ('{"' + "n" * 1001 + '":%s}', "1 to 1000 printable"),
}


@pytest.mark.parametrize("case", JSON)
def test_json(tmp_path, case):
    header, message = JSON[case]
    one = json.dumps(entry())
    header = header.replace(b"%s", one.encode()) if isinstance(header, bytes) else header.replace("%s", one)
    refused(write(tmp_path, build(header, bytes(4))), message)


@pytest.mark.parametrize(
    "filling",
    [b"[]," * 400_000, b"{}," * 400_000, b'"ab",' * 1_200_000, b"1," * 1_200_000],
    ids=["lists", "maps", "text", "numbers"],
)
def test_a_header_of_tiny_values_is_not_unfolded(tmp_path, filling):
    """As Python objects they would take twenty times the size of the file."""
    content = build(b'{"a":[' + filling + b"0]}")
    path = write(tmp_path, content)
    tracemalloc.start()
    try:
        refused(path, "more than 1048576 values" if filling.count(b",") > 2**20 else "more than 1048576 values|nothing else")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(content) + 2**27


ENTRIES = {
    "unknown dtype": (entry("F33"), "dtype 'F33', readable are F64, F32"),
    "small letters": (entry("f32"), "dtype 'f32'"),
    "F8_E5M2": (entry("F8_E5M2", (4,)), "tensor 'a' has dtype 'F8_E5M2'.*convert it to F32"),
    "F8_E4M3": (entry("F8_E4M3", (4,)), "tensor 'a' has dtype 'F8_E4M3'"),
    "F4": (entry("F4", (8,)), "dtype 'F4'"),
    "complex": (entry("C64", (1,), 0, 8), "dtype 'C64'"),
    "dtype null": (entry(None), "dtype"),
    "dtype list": (entry(["F32"]), "dtype"),
    "shape null": ({**entry(), "shape": None}, "shape"),
    "shape number": ({**entry(), "shape": 1}, "shape"),
    "shape text": ({**entry(), "shape": "1"}, "shape"),
    "shape map": ({**entry(), "shape": {}}, "shape"),
    "negative extent": (entry("F32", (-1,)), r"shape \[-1\], expected are at most 8 whole numbers"),
    "two negative extents": (entry("F32", (-1, -1)), "whole numbers"),
    "fraction": (entry("F32", (1.0,)), "whole numbers"),
    "boolean extent": (entry("F32", (True,)), "whole numbers"),
    "extent as text": (entry("F32", ("1",)), "whole numbers"),
    "extent null": (entry("F32", (None,)), "whole numbers"),
    "nested shape": (entry("F32", ([1],)), "whole numbers"),
    "rank 9": (entry("F32", (1,) * 9), "at most 8"),
    "rank 100000": (entry("F32", (1,) * 100_000), "at most 8"),
    "overflow of 64 bits to 4 bytes": (entry("F32", (2**62 + 1,)), "over 17179869184 bytes"),
    "overflow of 64 bits to 0": (entry("F32", (2**32, 2**32)), "over 17179869184 bytes"),
    "huge and empty": (entry("F32", (2**40, 0), 0, 0), "over 17179869184 bytes"),
    "2**64": (entry("F32", (2**64,)), "over 17179869184 bytes"),
    "10**30": (entry("F32", (10**30,)), "whole numbers"),
    "too many bytes for the shape": (entry("F32", (), 0, 8), "has 8 bytes, its dtype F32 and shape .* need 4"),
    "too few bytes for the shape": (entry("F32", (2,), 0, 4), "has 4 bytes, .* need 8"),
    "of another dtype": (entry("F64", (1,), 0, 4), "has 4 bytes, .* need 8"),
    "reversed offsets": (entry("F32", (1,), 4, 0), "has -4 bytes"),
    "reversed and empty": (entry("F32", (0,), 4, 0), "has -4 bytes"),
    "negative begin": (entry("F32", (1,), -4, 0), "begins at byte -4"),
    "offsets behind the file": (entry("F32", (1,), 8, 12), "begins at byte 8"),
    "offsets of 2**64": (entry("F32", (1,), 2**64 - 4, 2**64), "begins at byte"),
    "three offsets": ({**entry(), "data_offsets": [0, 2, 4]}, "data_offsets"),
    "one offset": ({**entry(), "data_offsets": [4]}, "data_offsets"),
    "offsets null": ({**entry(), "data_offsets": None}, "data_offsets"),
    "fractional offset": ({**entry(), "data_offsets": [0, 4.0]}, "data_offsets"),
    "boolean offset": ({**entry("U8", (1,)), "data_offsets": [False, True]}, "data_offsets"),
    "boolean of 2": (entry("BOOL", (4,)), "other than 0 and 1"),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_entry_of_a_tensor(tmp_path, case):
    described, message = ENTRIES[case]
    refused(write(tmp_path, build({"a": described}, b"\1\2\0\1")), message)


@pytest.mark.parametrize("number", ["-0", "0.0", "0e0", "1e-5", "00"])
def test_zero_is_written_in_one_way(tmp_path, number):
    header = '{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,0]}}'
    read_safetensors(write(tmp_path, build(header % "0")))
    refused(write(tmp_path, build(header % number)), "whole numbers|delimiter")


COVER = {
    "gap in front": ({"a": entry(begin=1, end=5)}, 5, "begins at byte 1 .* expected is 0"),
    "gap between": ({"a": entry(), "b": entry(begin=5, end=9)}, 9, "'b' begins at byte 5 .* expected is 4"),
    "overlap": ({"a": entry(), "b": entry(begin=2, end=6)}, 6, "'b' begins at byte 2 .* expected is 4"),
    "the same bytes twice": ({"a": entry(), "b": entry()}, 4, "'b' begins at byte 0 .* expected is 4"),
    "hole at the end": ({"a": entry()}, 5, "take 4 bytes, but 5 follow"),
    "file too short": ({"a": entry(), "b": entry(begin=4, end=8)}, 7, "take 8 bytes, but 7 follow"),
    "empty one inside another": ({"a": entry(), "b": entry("F32", (0,), 2, 2)}, 4, "'b' begins at byte 2"),
    "empty one behind the end": ({"a": entry(), "b": entry("F32", (0,), 9, 9)}, 4, "'b' begins at byte 9"),
    "no tensors but bytes": ({}, 1, "take 0 bytes, but 1 follow"),
    "many on the same bytes": ({f"t{i}": entry("U8", (1000,), 0, 1000) for i in range(1000)}, 1000, "expected is 1000"),
}


@pytest.mark.parametrize("case", COVER)
def test_offsets_cover_the_file(tmp_path, case):
    header, size, message = COVER[case]
    refused(write(tmp_path, build(header, bytes(size))), message)


# damage, and the library as the judge


def toy():
    """All dtypes, some shapes, metadata: about a kilobyte. Not the library's, whose writer of bfloat16 changes."""
    header, data = {"__metadata__": {"format": "np"}}, b""
    for i, (name, code) in enumerate(sorted(NAMES.items())):
        shape = SHAPES[i % len(SHAPES)]
        added = random_array("uint16" if code == "BF16" else name, shape).tobytes()
        header[f"t.{i}"] = entry(code, shape, len(data), len(data) + len(added))
        data += added
    return build(header, data)


def judge(path, content):
    """Whether we read it; the library then does so too, and finds the same."""
    path.write_bytes(content)
    try:
        tensors, metadata = read_safetensors(path)
    except WeightsError as error:
        if not str(error).startswith(f"{path}: "):
            raise
        return False
    theirs = dict(safetensors.deserialize(content))
    assert tensors.keys() == theirs.keys()
    for name, a in tensors.items():
        assert list(a.shape) == theirs[name]["shape"]
        data = a.tobytes()
        if theirs[name]["dtype"] == "BF16":
            assert a.dtype == np.float32
            assert not any(data[0::4]) and not any(data[1::4])
            data = bytes(byte for i, byte in enumerate(data) if i % 4 > 1)
        else:
            assert NAMES[a.dtype.name] == theirs[name]["dtype"]
        assert data == bytes(theirs[name]["data"])
    with safetensors.safe_open(path, "numpy") as f:
        assert metadata == (f.metadata() or {})
    return True


def test_the_judge_accepts_the_toy(tmp_path):
    assert judge(tmp_path / "a", toy())


def test_cut_off_anywhere(tmp_path):
    content = toy()
    for n in range(len(content)):
        assert not judge(tmp_path / "a", content[:n])
    assert not judge(tmp_path / "a", content + b"\0")


def test_6000_random_changes_of_bytes(tmp_path):
    content = toy()
    chance = random.Random(5)
    read = 0
    for _ in range(6000):
        raw = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 5))):
            i = chance.randrange(len(raw))
            raw[i] = chance.choice(
                (raw[i] ^ 1 << chance.randrange(8), chance.randrange(256), ord(chance.choice('0123456789",:[]{} -')))
            )
        read += judge(tmp_path / "a", bytes(raw))
    assert 200 < read < 5000  # neither all nor none


TOKENS = re.compile(r'"[^"]*"|\d+|.')
OTHERS = (
    *('"F32"', '"BF16"', '"U8"', '"BOOL"', '"F8_E5M2"', '"t.1"', '"dtype"', '"shape"', '"__metadata__"', '"\\u0074.1"', '"x"'),
    *("0", "1", "2", "4", "-1", "-0", "1.0", "1e1", "4294967296", "18446744073709551616", "null", "true", "NaN"),
    *("{", "}", "[", "]", ",", ":", " ", "{}", "[]", "[0]"),
)


def test_6000_random_changes_of_the_header(tmp_path):
    """On the level of JSON: tokens replaced, removed, repeated, swapped."""
    content = toy()
    length = int.from_bytes(content[:8], "little")
    tokens, data = TOKENS.findall(content[8 : 8 + length].decode().strip()), content[8 + length :]
    chance = random.Random(6)
    read = 0
    for _ in range(6000):
        changed = list(tokens)
        for _ in range(chance.choice((1, 1, 2, 3))):
            i, j = chance.randrange(len(changed)), chance.randrange(len(changed))
            match chance.randrange(5):
                case 0 | 1:
                    changed[i] = chance.choice(OTHERS)
                case 2:
                    changed[i], changed[j] = changed[j], changed[i]
                case 3:
                    changed.insert(i, chance.choice(OTHERS))
                case 4:
                    del changed[i]
        read += judge(tmp_path / "a", build("".join(changed), data))
    assert 50 < read < 5000
