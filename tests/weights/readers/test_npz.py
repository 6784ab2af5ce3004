"""Our reader of .npz against NumPy's: never more than it, with its values, and nothing that has two meanings."""

import io
import random
import re
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from refvit.errors import WeightsError
from refvit.weights.readers import limits
from refvit.weights.readers import npz as reader
from refvit.weights.readers.npz import read_npz

RNG = np.random.default_rng(9)
DTYPES = ["float16", "float32", "float64", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)), "bool"]
SHAPES = [(), (1,), (0,), (7,), (3, 0, 2), (2, 3), (1, 2, 1, 3, 1, 1, 2, 1)]
SAVERS = [np.savez, np.savez_compressed]


def random_array(dtype, shape):
    """Any bit pattern, NaN and infinities too; booleans are 0 or 1."""
    if dtype == "bool":
        return RNG.integers(0, 2, shape).astype(bool)
    raw = RNG.integers(0, 256, (*shape, np.dtype(dtype).itemsize), dtype=np.uint8)
    return raw.reshape(-1).view(dtype).reshape(shape)


def same(a, b):
    """Same dtype, shape and bits, and as the rest of the program expects arrays."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()
    assert a.dtype.isnative and a.flags.c_contiguous and a.flags.aligned and not a.flags.writeable


def npy(a, version=None):
    f = io.BytesIO()
    np.lib.format.write_array(f, a, version=version, allow_pickle=True)
    return f.getvalue()


def npy_of(header, data=b"", version=1, length=None):
    """A .npy file with any text as its header."""
    header = header if isinstance(header, bytes) else header.encode("latin-1")
    n = len(header) if length is None else length
    return b"\x93NUMPY" + bytes((version, 0)) + n.to_bytes(2 if version == 1 else 4, "little") + header + data


class Zip:
    """A zip archive, every field of which can be told a lie. Written from the description of the format."""

    def __init__(self):
        self.body, self.directory, self.count = b"", b"", 0

    def add(self, name, content, *, deflate=False, flags=0, descriptor=None, local=None, gap=b"", **lies):
        """lies: fields of the directory; local: fields of the local header, where it is to differ from the directory."""
        raw = name.encode() if isinstance(name, str) else name
        packed = content
        if deflate:
            engine = zlib.compressobj(wbits=-15)
            packed = engine.compress(content) + engine.flush()
        fields = {"version": 20, "flags": flags, "method": 8 * deflate, "crc": zlib.crc32(content), "packed": len(packed)}
        fields |= {"size": len(content), "name": raw, "extra": b"", "comment": b"", "disk": 0, "mode": 0o600}
        fields |= {"offset": len(self.body)} | lies
        here = fields | (local or {})
        data = fields.get("data", packed)
        self.body += b"PK\3\4" + self.header(here) + here["name"] + here["extra"] + data + (descriptor or b"") + gap
        last = (len(fields["comment"]), fields["disk"], 0, fields["mode"] << 16, fields["offset"])
        self.directory += b"PK\1\2\x1e\3" + self.header(fields) + struct.pack("<3H2L", *last)
        self.directory += fields["name"] + fields["extra"] + fields["comment"]
        self.count += 1
        return self

    def header(self, f):
        """What both headers have after the signature, in the directory after the version that wrote it, too."""
        sizes = (f["crc"], f["packed"], f["size"], len(f["name"]), len(f["extra"]))
        return struct.pack("<5H3L2H", f["version"], f["flags"], f["method"], 0, 33, *sizes)

    def bytes(self, *, prefix=b"", between=b"", suffix=b"", comment=b"", **lies):
        end = {"disk": 0, "disk2": 0, "here": self.count, "count": self.count, "length": len(self.directory)}
        end |= {"start": len(self.body)} | lies
        last = b"PK\5\6" + struct.pack("<4H2LH", *end.values(), len(comment))
        return prefix + self.body + between + self.directory + last + comment + suffix


A = random_array("float32", (2, 3))
ONE = npy(A)


ENGINE = zlib.compressobj(wbits=-15)
PACKED = ENGINE.compress(ONE) + ENGINE.flush()


def one(**changes):
    return Zip().add("a.npy", ONE, **changes).bytes()


def write(folder, content):
    path = folder / "a.npz"
    path.write_bytes(content)
    return path


def refused(path, message):
    with pytest.raises(WeightsError) as info:
        read_npz(path)
    text = str(info.value)
    assert text.startswith(f"{path}: "), text
    assert re.search(message, text[len(str(path)) :]), text
    assert text.isprintable()
    assert len(text) < 600 + len(str(path))
    return text


# what is read


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("save", SAVERS)
def test_every_dtype_shape_and_order(tmp_path, dtype, save):
    written = {}
    for i, shape in enumerate(SHAPES):
        a = random_array(dtype, shape)
        written |= {f"block_{i}/kernel": a, f"{i}/fortran": np.asfortranarray(a) if a.ndim else a, f"{i}.T": a.T}
        written[f"{i}/swapped"] = a.astype(a.dtype.newbyteorder())  # big-endian, here
        if a.ndim == 1:
            written[f"{i}/strided"] = a[::-2]
    with open(tmp_path / "a", "wb") as f:
        save(f, **written)
    read = read_npz(str(tmp_path / "a"))
    assert read.keys() == written.keys()
    for name, a in written.items():
        same(read[name], np.asarray(a, a.dtype.newbyteorder("="), order="C"))


def test_big_endian_by_hand(tmp_path):
    header = "{'descr': '>f4', 'fortran_order': True, 'shape': (2, 2), }\n"
    content = npy_of(header, bytes.fromhex("3f800000 40000000 c0400000 40800000"))  # 1, 2, -3, 4
    read = read_npz(write(tmp_path, Zip().add("a.npy", content).bytes()))["a"]
    same(read, np.array([[1, -3], [2, 4]], np.float32))


@pytest.mark.parametrize("descr", ["|V2", "<V2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_bfloat16_is_exact(tmp_path, descr, order):
    patterns = np.arange(2**16, dtype="<u2").reshape(256, 256)
    header = f"{{'descr': '{descr}', 'fortran_order': {order == 'F'}, 'shape': (256, 256), }}\n"
    read = read_npz(write(tmp_path, Zip().add("a.npy", npy_of(header, patterns.tobytes(order))).bytes()))["a"]
    same(read, np.frombuffer(b"".join(struct.pack("<HH", 0, p) for p in range(2**16)), "<f4").reshape(256, 256))
    assert read[0xC0, 0x49] == -3.140625


def test_bfloat16_as_numpy_saves_it(tmp_path):
    raw = np.array([0x3F80, 0xC000, 0x7F80], "<u2")
    np.savez(tmp_path / "a.npz", w=raw.view("V2"), s=np.array(0x4020, "<u2").view("V2"), e=np.zeros((0, 2), "V2"))
    read = read_npz(tmp_path / "a.npz")
    same(read["w"], np.array([1, -2, np.inf], np.float32))
    same(read["s"], np.array(2.5, np.float32))
    same(read["e"], np.zeros((0, 2), np.float32))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions(tmp_path, version):
    same(read_npz(write(tmp_path, Zip().add("a.npy", npy(A, version)).bytes()))["a"], A)


class NoSeek(io.RawIOBase):
    """A stream, a socket, or the file of an object store: sizes then follow the data."""

    def __init__(self):
        self.content = b""

    def writable(self):
        return True

    def write(self, data):
        self.content += bytes(data)
        return len(data)


@pytest.mark.parametrize("save", SAVERS)
def test_written_into_a_stream(tmp_path, save):
    stream = NoSeek()
    save(stream, a=A, b=A.T, c=np.zeros(0, np.int8))
    assert struct.unpack_from("<H", stream.content, 6)[0] & 8  # this is what is tested
    read = read_npz(write(tmp_path, stream.content))
    same(read["a"], A)
    same(read["b"], np.asarray(A.T, order="C"))
    same(read["c"], np.zeros(0, np.int8))


def test_plain_zip_of_another_writer(tmp_path):
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        z.writestr("a.npy", ONE)
        z.writestr("params/größe/w.npy", npy(A.T), zipfile.ZIP_STORED)
    read = read_npz(write(tmp_path, f.getvalue()))
    assert list(read) == ["a", "params/größe/w"]
    same(read["params/größe/w"], np.asarray(A.T, order="C"))


def test_the_zips_of_these_tests(tmp_path):
    for deflate in (False, True):
        same(read_npz(write(tmp_path, one(deflate=deflate)))["a"], A)
        with np.load(tmp_path / "a.npz") as theirs:
            assert theirs["a"].tobytes() == A.tobytes()
    for layout in ("<4s3L", "<4sL2Q"):
        descriptor = struct.pack(layout, b"PK\7\b", zlib.crc32(ONE), len(ONE), len(ONE))
        local = {"crc": 0, "packed": 0, "size": 0}
        same(read_npz(write(tmp_path, one(flags=8, descriptor=descriptor, local=local)))["a"], A)


def test_a_stream_that_begins_with_nothing(tmp_path):
    """Empty blocks are allowed, and more of them than are read at once."""
    data = b"\0\0\0\xff\xff" * limits.CHUNK + PACKED
    same(read_npz(write(tmp_path, one(deflate=True, data=data, packed=len(data))))["a"], A)


def test_empty_archive(tmp_path):
    np.savez(tmp_path / "a.npz")
    assert read_npz(tmp_path / "a.npz") == {}


def test_names(tmp_path):
    names = ["Transformer/encoderblock_0/LayerNorm_0/scale", "conv:0", "a.b", "..a", "a..", "größe", "x" * 1000, " "]
    content = Zip()
    for name in names:
        content.add(name + ".npy", ONE, flags=1 << 11)
    assert list(read_npz(write(tmp_path, content.bytes()))) == names


def test_fields_in_any_order(tmp_path):
    header = "{'shape' :( 2,3 ),'fortran_order':False , 'descr':'<f4'}"
    same(read_npz(write(tmp_path, Zip().add("a.npy", npy_of(header, A.tobytes())).bytes()))["a"], A)


@pytest.mark.parametrize("shift", range(1, 8))
def test_unaligned_data_are_handed_out_aligned(tmp_path, shift):
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (5,), }".ljust(70 + shift)
    a = random_array("float64", (5,))
    same(read_npz(write(tmp_path, Zip().add("a.npy", npy_of(header, a.tobytes())).bytes()))["a"], a)


@pytest.mark.parametrize("save", SAVERS)
def test_memory_is_that_of_the_content(tmp_path, save):
    """16 MiB in four members, one after the other, none of them twice."""
    save(tmp_path / "a.npz", **{str(i): random_array("float32", (2**20,)) for i in range(4)})
    tracemalloc.start()
    try:
        arrays = read_npz(tmp_path / "a.npz")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(arrays) == 4
    assert 2**24 < peak < 2**24 + 8 * limits.CHUNK


# arrays that are refused


OBJECTS = {
    "objects": (np.array([{}, None], object), "holds Python objects, which could run anything"),
    "text": (np.array(["ab", "c"]), "holds text"),
    "bytes": (np.array([b"ab", b"c"]), "holds text"),
    "dates": (np.array(["2026-01-01"], "datetime64[D]"), "holds dates"),
    "spans": (np.array([3], "timedelta64[s]"), "holds spans of time"),
    "complex": (np.array([1j]), "holds complex numbers"),
    "complex64": (np.array([1j], np.complex64), "holds complex numbers"),
    "float8": (np.zeros(3, "V1"), "holds raw bytes"),
    "void": (np.zeros(3, "V4"), "holds raw bytes"),
    "long double": (np.zeros(3, np.longdouble), "another dtype" if np.dtype(np.longdouble).itemsize > 8 else ""),
    "structured": (np.zeros(3, [("a", "<f4"), ("b", "<i4")]), "expected are descr, fortran_order and shape of a plain array"),
    "subarrays": (np.zeros(3, [("a", "<f4", (2, 2))]), "of a plain array"),
}


@pytest.mark.parametrize("case", OBJECTS)
@pytest.mark.parametrize("save", SAVERS)
def test_dtypes_that_are_refused(tmp_path, case, save):
    a, message = OBJECTS[case]
    if not message:
        pytest.skip("long double is double here")
    save(tmp_path / "a.npz", fine=A, odd=a)
    refused(tmp_path / "a.npz", f"tensor 'odd' .*{message}.*; .*save")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def test_pickles_are_never_opened(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([Bomb()], object))
    refused(tmp_path / "a.npz", "Python objects")
    pickle = npy(np.array([Bomb()], object))
    data = pickle[pickle.index(b"\n") + 1 :]
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({len(data)},), }}\n"
    assert read_npz(write(tmp_path, Zip().add("a.npy", npy_of(header, data)).bytes()))["a"].tobytes() == data


RIGHT = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
PLAIN = "descr, fortran_order and shape of a plain array"
HEADERS = {
    "a call": ("__import__('os').abort()", PLAIN),
    "a call in a value": ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, __import__('os').abort()), }", PLAIN),
    "a comprehension": ("{'descr': '<f4', 'fortran_order': False, 'shape': tuple(i for i in (2, 3)), }", PLAIN),
    "arithmetic": ("{'descr': '<f4', 'fortran_order': False, 'shape': (9**9**9, 3), }", PLAIN),
    "sum": ("{'descr': '<f4', 'fortran_order': False, 'shape': (1+1, 3), }", PLAIN),
    "nesting": ("(" * 1000, PLAIN),
    "minus signs": ("-" * 2000 + "1", PLAIN),
    "brackets": ("{" * 2000, PLAIN),
    "spaces": (RIGHT[:-1] + " " * 1500 + "x}", PLAIN),
    "commas": ("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1, " * 600 + "x), }", PLAIN),
    "empty": ("", PLAIN),
    "space in front": (" " + RIGHT, PLAIN),
    "text behind": (RIGHT + "x", PLAIN),
    "two lines behind": (RIGHT + "\n\n", PLAIN),
    "NUL": (RIGHT + "\0", PLAIN),
    "tab": (RIGHT.replace(" ", "\t"), PLAIN),
    "not ASCII": (RIGHT.replace("descr", "descr\xe9"), PLAIN),
    "full-width digits": (RIGHT.replace("(2", "(\uff12").encode(), PLAIN),
    "descr twice": ("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", PLAIN),
    "descr twice, no shape": ("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, }", PLAIN),
    "one more": (RIGHT[:-1] + "'x': 1, }", PLAIN),
    "no descr": ("{'fortran_order': False, 'shape': (2, 3), }", PLAIN),
    "no shape": ("{'descr': '<f4', 'fortran_order': False, }", PLAIN),
    "no order": ("{'descr': '<f4', 'shape': (2, 3), }", PLAIN),
    "no commas": (RIGHT.replace(",", ""), PLAIN),
    "list": (RIGHT.replace("(2, 3)", "[2, 3]"), PLAIN),
    "number": (RIGHT.replace("(2, 3)", "6"), PLAIN),
    "number in brackets": (RIGHT.replace("(2, 3)", "(6)"), PLAIN),
    "negative": (RIGHT.replace("(2, 3)", "(-2, -3)"), PLAIN),
    "fraction": (RIGHT.replace("(2, 3)", "(2.0, 3)"), PLAIN),
    "Python 2": (RIGHT.replace("(2, 3)", "(2L, 3L)"), PLAIN),
    "underscore": (RIGHT.replace("(2, 3)", "(0_2, 3)"), PLAIN),
    "leading zero": (RIGHT.replace("(2, 3)", "(02, 3)"), PLAIN),
    "two commas": (RIGHT.replace("(2, 3)", "(2,, 3)"), PLAIN),
    "comma alone": (RIGHT.replace("(2, 3)", "(,)"), PLAIN),
    "30 digits": (RIGHT.replace("(2, 3)", f"({10**29},)"), PLAIN),
    "order as a number": (RIGHT.replace("False", "0"), PLAIN),
    "order as text": (RIGHT.replace("False", "'False'"), PLAIN),
    "order None": (RIGHT.replace("False", "None"), PLAIN),
    "descr as a list": (RIGHT.replace("'<f4'", "[('', '<f4')]"), PLAIN),
    "descr as bytes": (RIGHT.replace("'<f4'", "b'<f4'"), PLAIN),
    "descr None": (RIGHT.replace("'<f4'", "None"), PLAIN),
    "backslash": (RIGHT.replace("<f4", "<f\\x34"), PLAIN),
    "rank 9": (RIGHT.replace("(2, 3)", "(1, 1, 1, 1, 1, 1, 1, 2, 3)"), "at most 8 whole numbers"),
    "2**62": (RIGHT.replace("(2, 3)", f"({2**62 + 6},)"), "over 17179869184 bytes"),
    "2**32 squared": (RIGHT.replace("(2, 3)", f"({2**32}, {2**32})"), "over 17179869184 bytes"),
    "huge and empty": (RIGHT.replace("(2, 3)", f"({2**60}, 0)"), "over 17179869184 bytes"),
    "more than there is": (RIGHT.replace("3", "4"), r"has 24 bytes, its dtype <f4 and shape \(2, 4\) need 32"),
    "less than there is": (RIGHT.replace("3", "2"), "has 24 bytes, .* need 16"),
    "nothing of what there is": (RIGHT.replace("3", "0"), "has 24 bytes, .* need 0"),
    "of another dtype": (RIGHT.replace("<f4", "<f8"), "has 24 bytes, .* need 48"),
    "booleans": (RIGHT.replace("<f4", "|b1").replace("3", "12"), "other than 0 and 1"),
    "dtype empty": (RIGHT.replace("<f4", ""), "holds another dtype"),
    "no byte order": (RIGHT.replace("<f4", "f4"), "holds another dtype .'f4'."),
    "order of the machine": (RIGHT.replace("<f4", "=f4"), "holds another dtype"),
    "order does not matter": (RIGHT.replace("<f4", "|f4"), "holds another dtype"),
    "name of a dtype": (RIGHT.replace("<f4", "float32"), "holds another dtype"),
    "two dtypes": (RIGHT.replace("<f4", "<f2,<f2"), "holds another dtype"),
    "a shape in the dtype": (RIGHT.replace("<f4", "2<f2"), "holds another dtype"),
    "big-endian void": (RIGHT.replace("<f4", ">V2"), "holds raw bytes"),
    "a terminal's commands": (RIGHT.replace("<f4", "\x1b[2J"), "holds another dtype"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_header_of_an_array(tmp_path, case):
    header, message = HEADERS[case]
    data = b"\2" * 24
    assert read_npz(write(tmp_path, Zip().add("a.npy", npy_of(RIGHT, data)).bytes()))["a"].shape == (2, 3)
    refused(write(tmp_path, Zip().add("a.npy", npy_of(header, data)).bytes()), f"tensor 'a' .*{message}")


STARTS = {
    "empty": b"",
    "magic alone": b"\x93NUMPY",
    "no header": b"\x93NUMPY\1\0",
    "half a length": b"\x93NUMPY\1\0v",
    "half a length of version 2": b"\x93NUMPY\2\0v\0\0",
    "other magic": b"\x93NUMPI" + ONE[6:],
    "version 0": ONE[:6] + b"\0\0" + ONE[8:],
    "version 4": ONE[:6] + b"\4\0" + ONE[8:],
    "version 1.1": ONE[:6] + b"\1\1" + ONE[8:],
    "header longer than the file": npy_of(RIGHT, length=len(RIGHT) + 1),
    "header of 4 GB": npy_of(RIGHT, version=2, length=2**32 - 1),
    "header of 2049 bytes": npy_of(RIGHT.ljust(2049), A.tobytes()),
    "text": b"not an array at all",
}


@pytest.mark.parametrize("case", STARTS)
def test_start_of_an_array(tmp_path, case):
    assert read_npz(write(tmp_path, Zip().add("a.npy", npy_of(RIGHT.ljust(2048), A.tobytes())).bytes()))
    refused(write(tmp_path, Zip().add("a.npy", STARTS[case]).bytes()), "tensor 'a' does not begin as .npy of version 1 to 3")


# archives that are refused


def extra(number, data):
    return struct.pack("<2H", number, len(data)) + data


TRUE = (zlib.crc32(ONE), len(ONE), len(ONE))
ZERO = {"crc": 0, "packed": 0, "size": 0}
LARGE = {"packed": 2**32 - 1, "size": 2**32 - 1}
OTHER = "another in the directory than in its place"
MEMBERS = {
    "not called .npy": (Zip().add("a", ONE).bytes(), "is not called .npy"),
    "a folder": (Zip().add("a/", b"").add("a/b.npy", ONE).bytes(), "'a/' is not called .npy"),
    "PyTorch": (Zip().add("archive/data.pkl", b"\x80\x02}.").bytes(), "is not called .npy"),
    "no name": (Zip().add("", ONE).bytes(), "1 to 1000 printable"),
    "only a suffix": (Zip().add(".npy", ONE).bytes(), "1 to 1000 printable"),
    "NUL in the name": (Zip().add("a\0.npy", ONE).bytes(), "printable"),
    "a terminal's commands": (Zip().add("\x1b[2J.npy", ONE).bytes(), "printable"),
    "override of the direction": (Zip().add("\u202e.npy", ONE, flags=1 << 11).bytes(), "printable"),
    "UTF-8 without saying so": (Zip().add("ä.npy", ONE).bytes(), "codec"),
    "not UTF-8": (Zip().add(b"\xe4.npy", ONE, flags=1 << 11).bytes(), "codec"),
    "long name": (Zip().add("x" * 1001 + ".npy", ONE).bytes(), "1 to 1000 printable"),
    "absolute": (Zip().add("/etc/a.npy", ONE).bytes(), "leads out of the archive"),
    "parent": (Zip().add("../a.npy", ONE).bytes(), "leads out of the archive"),
    "parent inside": (Zip().add("a/../../b.npy", ONE).bytes(), "leads out of the archive"),
    "dot": (Zip().add("a/./b.npy", ONE).bytes(), "leads out of the archive"),
    "two slashes": (Zip().add("a//b.npy", ONE).bytes(), "leads out of the archive"),
    "backslash": (Zip().add("..\\a.npy", ONE).bytes(), "leads out of the archive"),
    "twice": (Zip().add("a.npy", ONE).add("a.npy", npy(A + 1)).bytes(), "two members 'a'"),
    "twice the same": (Zip().add("b.npy", ONE).add("a.npy", ONE).add("b.npy", ONE).bytes(), "two members 'b'"),
    "another name in its place": (one(local={"name": b"b.npy"}), OTHER),
    "another case in its place": (one(local={"name": b"A.npy"}), OTHER),
    "another method in its place": (one(local={"method": 8}), OTHER),
    "other flags in its place": (one(local={"flags": 2}), OTHER),
    "another CRC in its place": (one(local={"crc": 1}), OTHER),
    "another size in its place": (one(local={"size": len(ONE) + 1}), OTHER),
    "another packed size in its place": (one(local={"packed": len(ONE) - 1}), OTHER),
    "zeros in its place": (one(local=ZERO), OTHER),
    "zip64 lie in its place": (one(local={**LARGE, "extra": extra(1, struct.pack("<2Q", 2**40, len(ONE)))}), OTHER),
    "zip64 without sizes": (one(local=LARGE), "get the file again"),
    "zip64 with half of them": (one(local={**LARGE, "extra": extra(1, struct.pack("<Q", len(ONE)))}), "get the file again"),
    "zip64 for one size": (one(local={"size": 2**32 - 1, "extra": extra(1, struct.pack("<2Q", len(ONE), len(ONE)))}), OTHER),
    "zip64 in the directory": (one(**LARGE, extra=extra(1, struct.pack("<2Q", len(ONE), len(ONE)))), "not that of a plain zip"),
    "zip64 sizes in the directory": (one(**LARGE), "sizes that contradict"),
    "needless zip64 in the directory": (
        one(extra=extra(1, struct.pack("<2Q", 5, 5)), local={"extra": b""}),
        "not that of a plain zip",
    ),
    "another name in the directory": (
        one(extra=extra(0x7075, b"\1" + bytes(4) + b"b.npy"), local={"extra": b""}),
        "not that of a plain zip",
    ),
    "another name behind the first": (one(local={"extra": extra(0x7075, b"\1" + bytes(4) + b"b.npy")}), OTHER),
    "torn extra field": (one(extra=struct.pack("<2H", 9, 50), local={"extra": b""}), "extra field"),
    "three bytes of extra field": (one(extra=b"abc", local={"extra": b""}), "get the file again"),
    "extra field twice": (one(local={"extra": extra(9, b"x") * 2}), "extra field"),
    "encrypted": (one(flags=1), "flags 0x1, .* not encrypted"),
    "strongly encrypted": (one(flags=64), "not encrypted"),
    "encrypted directory": (one(flags=1 << 13), "not encrypted"),
    "patch": (one(flags=1 << 5), "flags 0x20"),
    "encrypted in its place": (one(local={"flags": 1}), OTHER),
    "later version": (one(version=46), "not that of a plain zip"),
    "later version in its place": (one(local={"version": 46}), OTHER),
    "bzip2": (one(method=12), "method 12"),
    "lzma": (one(method=14), "method 14"),
    "deflate64": (one(method=9), "method 9"),
    "method 65535": (one(method=65535), "method 65535"),
    "comment": (one(comment=b"hello"), "not that of a plain zip"),
    "on another disk": (one(disk=1), "not that of a plain zip"),
    "link": (one(mode=0o120777), "a link or device"),
    "folder by its mode": (one(mode=0o040700), "a link or device"),
    "device": (one(mode=0o020666), "a link or device"),
    "wrong CRC": (one(crc=TRUE[0] ^ 1), "size or CRC is wrong"),
    "wrong CRC, deflated": (one(crc=TRUE[0] ^ 1, deflate=True), "size or CRC is wrong"),
    "CRC 0": (one(crc=0), "size or CRC is wrong"),
    "changed content": (one(data=ONE[:-1] + bytes((ONE[-1] ^ 1,))), "size or CRC is wrong"),
    "stored with two sizes": (one(size=len(ONE) + 1), "sizes that contradict"),
    "deflated to more": (one(deflate=True, size=len(ONE) - 1), "size or CRC is wrong"),
    "deflated to less": (one(deflate=True, size=len(ONE) + 1), "size or CRC is wrong"),
    "deflated to nothing": (one(deflate=True, size=0), "size or CRC is wrong"),
    "cut stream": (one(deflate=True, data=PACKED[:-1], packed=len(PACKED) - 1), "does not end where it has to"),
    "bytes behind the stream": (one(deflate=True, data=PACKED + b"x", packed=len(PACKED) + 1), "does not end where it has to"),
    "many bytes behind the stream": (
        one(deflate=True, data=PACKED + bytes(3 * limits.CHUNK), packed=len(PACKED) + 3 * limits.CHUNK),
        "does not end where it has to",
    ),
    "two streams": (one(deflate=True, data=PACKED * 2, packed=len(PACKED) * 2), "does not end where it has to"),
    "no stream": (one(deflate=True, data=b"", packed=0), "does not end where it has to"),
    "broken stream": (one(deflate=True, data=b"\xff" * 50, packed=50), "invalid"),
    "zlib's header": (one(deflate=True, data=zlib.compress(ONE), packed=len(zlib.compress(ONE))), "invalid|does not end"),
    "endless empty blocks": (one(deflate=True, data=b"\0\0\0\xff\xff" * 9999, packed=5 * 9999), "does not end where it has to"),
    "no descriptor": (one(flags=8, local=ZERO), "overlap, leave gaps"),
    "descriptor without signature": (one(flags=8, local=ZERO, descriptor=struct.pack("<3L", *TRUE)), "overlap, leave gaps"),
    "descriptor with another CRC": (one(flags=8, local=ZERO, descriptor=struct.pack("<4s3L", b"PK\7\b", 1, *TRUE[1:])), "gaps"),
    "descriptor with another size": (
        one(flags=8, local=ZERO, descriptor=struct.pack("<4s3L", b"PK\7\b", *TRUE[:2], 9)),
        "gaps",
    ),
    "descriptor unannounced": (one(descriptor=struct.pack("<4s3L", b"PK\7\b", *TRUE)), "overlap, leave gaps"),
    "gap at the end": (one(gap=b"x"), "overlap, leave gaps"),
    "gap between": (Zip().add("a.npy", ONE, gap=b"12").add("b.npy", ONE).bytes(), "overlap, leave gaps, .*at 'a'"),
    "member that is not listed": (Zip().add("a.npy", ONE, gap=one()[: -22 - 51]).bytes(), "overlap, leave gaps"),
    "two at one place": (Zip().add("a.npy", ONE).add("a.npy", ONE, offset=0).bytes(), "two members"),
    "two names at one place": (Zip().add("a.npy", ONE).add("b.npy", ONE, offset=0).bytes(), "overlap, leave gaps"),
    "offset into another": (Zip().add("a.npy", ONE).add("b.npy", ONE, offset=40).bytes(), "overlap, leave gaps"),
    "offset behind the end": (one(offset=2**31), "overlap, leave gaps"),
    "longer than the archive": (one(packed=2**31, size=2**31), "times the file|overlap"),
    "first not at the start": (one(offset=1), "overlap, leave gaps"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_members(tmp_path, case):
    content, message = MEMBERS[case]
    refused(write(tmp_path, content), message)


def test_overlap_by_quoting(tmp_path):
    """The bomb of David Fifield: the first member's data are, as a stored block, the header and the data of the second."""
    second = Zip().add("b.npy", ONE, deflate=True)
    quoted = second.body
    block = struct.pack("<BHH", 0, 30 + 5, (30 + 5) ^ 0xFFFF) + quoted
    content = quoted[:35] + zlib.decompress(quoted[35:], wbits=-15)
    first = Zip().add("a.npy", content, method=8, data=block, packed=len(block))
    archive = Zip()
    archive.body, archive.count = first.body, 2
    offset = len(first.body) - len(quoted)
    archive.directory = first.directory + second.directory[:42] + struct.pack("<L", offset) + second.directory[46:]
    raw = archive.bytes()
    with zipfile.ZipFile(io.BytesIO(raw)) as z:
        assert z.getinfo("b.npy").header_offset == offset
    refused(write(tmp_path, raw), "overlap, leave gaps, .*at 'a'")


PLAIN_ONE = Zip().add("a.npy", ONE)
ARCHIVES = {
    "empty file": (b"", "does not end as a zip archive"),
    "short": (b"PK\5\6", "does not end as a zip archive"),
    "short, without comment": (b"PK\5\6\0\0", "does not end as a zip archive"),
    "an array": (ONE, "does not end as a zip archive"),
    "comment": (PLAIN_ONE.bytes(comment=b"x"), "without comment"),
    "another archive as the comment": (PLAIN_ONE.bytes(comment=Zip().add("b.npy", ONE).bytes()), "contradict its size"),
    "bytes behind": (PLAIN_ONE.bytes(suffix=b"\0"), "does not end as a zip archive"),
    "bytes in front": (PLAIN_ONE.bytes(prefix=b"#!/bin/sh\n"), "contradict its size"),
    "a whole archive in front": (PLAIN_ONE.bytes(prefix=one()), "contradict its size"),
    "bytes in front, offset moved": (PLAIN_ONE.bytes(prefix=b"#!", start=len(PLAIN_ONE.body) + 2), "another in|extra field"),
    "bytes in front of nothing": (
        Zip().bytes(prefix=b"#!/bin/sh\n", start=10),
        "10 bytes in front of the directory of no member",
    ),
    "bytes before the directory": (PLAIN_ONE.bytes(between=b"xy"), "contradict its size"),
    "bytes before the directory, offset moved": (PLAIN_ONE.bytes(between=b"xy", start=len(PLAIN_ONE.body) + 2), "leave gaps"),
    "directory too short": (PLAIN_ONE.bytes(length=50), "contradict its size"),
    "directory elsewhere": (PLAIN_ONE.bytes(start=0), "contradict its size"),
    "count too large": (PLAIN_ONE.bytes(count=2, here=2), "get the file again"),
    "count too small": (Zip().add("a.npy", ONE).add("b.npy", ONE).bytes(count=1, here=1), "its 1 members take 51"),
    "count 0": (PLAIN_ONE.bytes(count=0, here=0), "directory of 0 members has 51 bytes"),
    "counts differ": (PLAIN_ONE.bytes(here=0), "contradict its size"),
    "disk 1": (PLAIN_ONE.bytes(disk=1), "contradict its size"),
    "directory on disk 1": (PLAIN_ONE.bytes(disk2=1), "contradict its size"),
    "zip64 by the count": (PLAIN_ONE.bytes(count=0xFFFF, here=0xFFFF), "zip64.*save it as safetensors"),
    "zip64 by the length": (PLAIN_ONE.bytes(length=2**32 - 1), "zip64"),
    "zip64 by the offset": (PLAIN_ONE.bytes(start=2**32 - 1), "zip64"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives(tmp_path, case):
    content, message = ARCHIVES[case]
    refused(write(tmp_path, content), message)


def test_zeros_are_unpacked_up_to_a_limit(tmp_path, monkeypatch):
    """Zeros deflate to a thousandth. Small ones are common in new models, large ones are a bomb."""
    size = 2**22
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(size, np.uint8))
    assert (tmp_path / "a.npz").stat().st_size < size / 100
    assert not read_npz(tmp_path / "a.npz")["a"].any()
    monkeypatch.setattr(reader, "FREE_BYTES", size)  # the content is a little larger, by its header
    tracemalloc.start()
    try:
        refused(tmp_path / "a.npz", f"bytes would unpack to {size + 128}, at most .* and 100 times the file are")
        assert tracemalloc.get_traced_memory()[1] < size / 4  # refused before unpacking
    finally:
        tracemalloc.stop()
    monkeypatch.setattr(reader, "MAX_RATIO", 10_000)
    assert read_npz(tmp_path / "a.npz")
    monkeypatch.setattr(reader, "MAX_BYTES", size)
    refused(tmp_path / "a.npz", f"at most {size}")


def test_many_small_bombs(tmp_path, monkeypatch):
    content = Zip()
    for i in range(50):
        content.add(f"{i}.npy", npy(np.zeros(10_000, np.uint8)), deflate=True)
    monkeypatch.setattr(reader, "FREE_BYTES", 100_000)
    monkeypatch.setattr(reader, "MAX_RATIO", 20)
    refused(write(tmp_path, content.bytes()), "times the file")


def test_a_member_that_says_less_than_it_unpacks_to(tmp_path):
    """The directory promises a kilobyte, the stream holds 64 MiB: it is left as soon as the kilobyte is over."""
    content = one(deflate=True, size=1000, data=(packed := zlib.compressobj(wbits=-15)).compress(bytes(2**26)) + packed.flush())
    n = len(content) - 22 - 51 - 35
    raw = Zip().add("a.npy", ONE, method=8, size=1000, packed=n, data=content[35 : 35 + n]).bytes()
    tracemalloc.start()
    try:
        refused(write(tmp_path, raw), "size or CRC is wrong")
        assert tracemalloc.get_traced_memory()[1] < 8 * limits.CHUNK
    finally:
        tracemalloc.stop()


def test_not_a_file(tmp_path, monkeypatch):
    refused(tmp_path / "gone", "no such weights file")
    refused(tmp_path, "not a file")
    refused(write(tmp_path, b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"), "git lfs pull")
    monkeypatch.setattr(limits, "MAX_BYTES", 100)
    refused(write(tmp_path, one()), "at most 100 are read")


def test_too_little_memory(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(reader, "_content", fail)
    refused(write(tmp_path, one()), "not enough memory")


# damage, and NumPy as the judge


def toy(save):
    f = io.BytesIO()
    save(
        f,
        a=random_array("float32", (2, 3)),
        b=np.array(True),
        c=random_array("int16", (2, 2)).astype(">i2").T,
        d=np.zeros((0, 3)),
    )
    return f.getvalue()


def judge(path, content):
    """Whether we read it; NumPy then does so too, and finds the same."""
    path.write_bytes(content)
    try:
        read = read_npz(path)
    except WeightsError as error:
        if not str(error).startswith(f"{path}: "):
            raise
        return False
    with np.load(path, allow_pickle=False) as theirs:
        assert list(read) == theirs.files
        for name, a in read.items():
            b = theirs[name]
            if b.dtype == "V2":
                b = (b.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            same(a, np.asarray(b, b.dtype.newbyteorder("="), order="C"))
    return True


@pytest.mark.parametrize("save", SAVERS)
def test_cut_off_anywhere(tmp_path, save):
    content = toy(save)
    assert judge(tmp_path / "a", content)
    for n in range(len(content)):
        assert not judge(tmp_path / "a", content[:n])
    assert not judge(tmp_path / "a", content + b"\0")


@pytest.mark.parametrize("save", SAVERS)
def test_every_bit_of_the_archive_matters(tmp_path, save):
    """Apart from dates, versions and attributes, which say nothing of the content, any flipped bit is noticed."""
    f = io.BytesIO()
    save(f, a=random_array("float32", (2,)))
    content = f.getvalue()
    directory = content.index(b"PK\1\2")
    quiet = {4, 5, *range(10, 14), *range(directory + 4, directory + 8), *range(directory + 12, directory + 16)}
    quiet |= set(range(directory + 36, directory + 42))
    if save is np.savez_compressed:
        quiet.add(directory - 1)  # the bits between the end of the stream and the end of its last byte
    for i in range(len(content)):
        for bit in range(8):
            raw = bytearray(content)
            raw[i] ^= 1 << bit
            read = judge(tmp_path / "a", bytes(raw))
            assert not read or i in quiet, (i, bit)


@pytest.mark.parametrize("save", SAVERS)
def test_3000_random_changes_of_bytes(tmp_path, save):
    content = toy(save)
    chance = random.Random(7)
    read = 0
    for _ in range(3000):
        raw = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 5))):
            i = chance.randrange(len(raw))
            raw[i] = chance.choice((raw[i] ^ 1 << chance.randrange(8), chance.randrange(256), 0, 255))
        read += judge(tmp_path / "a", bytes(raw))
    assert 50 < read < 1500


def test_5000_random_changes_of_arrays(tmp_path):
    """The same inside of the members, under CRCs that are right, so that .npy headers and data are what is tested."""
    chance = random.Random(8)
    members = [npy(random_array(dtype, (2, 3))) for dtype in ("float32", ">i2", "bool", "uint64")]
    members.append(npy_of(RIGHT.replace("<f4", "|V2").replace("3", "6"), A.tobytes()))
    read = 0
    for _ in range(5000):
        raw = bytearray(chance.choice(members))
        for _ in range(chance.choice((1, 1, 2))):
            i = chance.randrange(len(raw))
            raw[i] = chance.choice(
                (raw[i] ^ 1 << chance.randrange(8), chance.randrange(256), ord(chance.choice("0123456789,()<>|'fiubV ")))
            )
        read += judge(tmp_path / "a", Zip().add("a.npy", bytes(raw), deflate=chance.random() < 0.5).bytes())
    assert 200 < read < 4000
