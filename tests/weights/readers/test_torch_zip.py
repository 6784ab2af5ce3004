"""PyTorch's zip format, torch's own files and files that no program would write, and the state dicts in them."""

import collections
import dataclasses
import hashlib
import os
import random
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import handmade as h

from refvit.errors import WeightsError
from refvit.weights.readers import torch_zip as module
from refvit.weights.readers.pickle_subset import Opaque
from refvit.weights.readers.torch_state import Tensor, state_of, strip_prefix
from refvit.weights.readers.torch_zip import read_torch_zip

HERE = Path(__file__).parent
DATA = HERE / "data"

RAMP = np.arange(24, dtype=np.float32) / 8 - 1
X = np.random.default_rng(3).standard_normal(12).astype(np.float32)
PLAIN = h.pickle(h.mapping({"w": h.vector("0", 12)}))


@pytest.fixture
def read(tmp_path):
    """read(bytes, ...) -> the arrays of a file with these bytes; the keys that led to them are in read.path."""

    def run(data, key=None, **options):
        path = tmp_path / "x.pth"
        path.write_bytes(data)
        arrays, run.path = state_of(read_torch_zip(path, **options), key=key)
        return arrays

    return run


@pytest.fixture
def refused(tmp_path):
    """refused(bytes, match) -> the message, which has one line, tells the path and ends with what to do."""

    def run(data, match, **options):
        path = tmp_path / "bad.pth"
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=match) as caught:
            read_torch_zip(path, **options)
        told = str(caught.value)
        assert told.startswith(f"{path}: not a readable PyTorch checkpoint (zip): ")
        assert "\n" not in told and len(told) < 600
        return told

    return run


def one(body=PLAIN, **options):
    return h.torch_zip(body, {"0": X.tobytes()}, **options)


# torch's own files, see data/make.py


def expected_views():
    a = RAMP.reshape(4, 6)
    short = np.arange(5, dtype=np.float32) / 8 - 1
    return {
        "a": a,
        "t": np.ascontiguousarray(a.T),
        "s": np.ascontiguousarray(a[1:, ::2]),
        "e": np.full((3, 2), -1, np.float32),
        "tied": a,
        "h": short[:3].astype(np.float16),
        "b": short,
        "n": np.array(7),
        "m": a > 0,
    }


def same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, strict=True, err_msg=name)
        flags = found[name].flags
        assert flags.c_contiguous and flags.aligned and not flags.writeable, name
        assert found[name].dtype.isnative


def test_views_dtypes_and_shared_storages():
    arrays, path = state_of(read_torch_zip(DATA / "views.pth"))
    same(arrays, expected_views())
    assert path == []
    assert arrays["tied"] is arrays["a"]


@pytest.mark.parametrize("name", ["wrapped", "wrapped_p4"])
def test_nested_in_what_a_trainer_saves(name):
    saved = read_torch_zip(str(DATA / f"{name}.pth"))
    tree = saved.tree
    assert list(tree) == ["epoch", "best_acc1", "acc", "args", "state_dict", "optimizer"]
    assert tree["epoch"] == 3
    assert str(tree["args"]) == "argparse.Namespace" and tree["acc"].name == "scalar"
    arrays, path = state_of(saved)
    same(arrays, {"weight": RAMP[:2].reshape(1, 2), "bias": np.array([3], np.float32)})
    assert path == ["state_dict", "module."]


def test_a_whole_module_is_not_a_state_dict():
    saved = read_torch_zip(DATA / "module.pth")
    with pytest.raises(WeightsError, match=r"module.pth: .* an object of 'torch.nn.modules.linear.Linear' and no dict"):
        state_of(saved)


def test_without_checksums():
    with pytest.raises(WeightsError, match=r"no checksum .* give check_crc=False"):
        read_torch_zip(DATA / "no_crc.pth")
    arrays, _ = state_of(read_torch_zip(DATA / "no_crc.pth", check_crc=False))
    same(arrays, {"w": RAMP[:5]})


def test_dtypes_without_a_storage_class_and_quantised_tensors():
    saved = read_torch_zip(DATA / "other.pth")
    with pytest.raises(WeightsError, match=r"tensor 'q' is made by 'torch._utils._rebuild_qtensor'; make it a plain one"):
        state_of(saved)
    del saved.tree["q"]
    same(state_of(saved)[0], {"u": np.ones(3, np.uint16)})


def test_the_files_are_small():
    assert {path.name for path in DATA.glob("*.pth")} >= {"views.pth", "wrapped.pth", "module.pth"}
    assert all(path.stat().st_size < 3072 for path in DATA.glob("*.pth"))


# made by hand


DTYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


@pytest.mark.parametrize("kind", DTYPES)
def test_dtypes(read, kind):
    values = np.random.default_rng(1).integers(-100, 100, 7).astype(DTYPES[kind])
    found = read(h.torch_zip(h.pickle(h.mapping({"w": h.vector("0", 7, kind)})), {"0": values.tobytes()}))
    same(found, {"w": values})


def test_bfloat16_is_exact(read):
    raw = np.arange(65536, dtype=np.uint16)
    data = h.torch_zip(h.pickle(h.mapping({"w": h.vector("0", 65536, "BFloat16Storage")})), {"0": raw.tobytes()})
    found = read(data)["w"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), raw.astype(np.uint32) << 16)


def test_random_views(read):
    """Any offset, size and stride, compared with an index computation."""
    rng = np.random.default_rng(7)
    storage = rng.standard_normal(200).astype(np.float32)
    tensors, expected = {}, {}
    while len(tensors) < 60:
        rank = int(rng.integers(0, 5))
        size, stride = rng.integers(0, 5, rank).tolist(), rng.integers(0, 40, rank).tolist()
        offset = int(rng.integers(0, 60))
        if offset + sum(max(n - 1, 0) * s for n, s in zip(size, stride, strict=True)) >= 200:
            continue
        name = f"t{len(tensors)}"
        tensors[name] = h.tensor(h.storage("0", 200), size, stride, offset)
        index = np.array([offset + np.dot(i, stride) for i in np.ndindex(*size)], int).reshape(size)
        expected[name] = storage[index]
    same(read(h.torch_zip(h.pickle(h.mapping(tensors)), {"0": storage.tobytes()})), expected)


def test_other_rebuild_functions(read):
    source, size, stride = h.storage("0", 12), h.numbers([3, 4]), h.numbers([4, 1])
    plain = h.call(h.name("torch._utils", "_rebuild_tensor"), source, b"K\0", size, stride)
    shape = h.call(h.name("torch", "Size"), size)
    sized = h.call(h.name("torch._utils", "_rebuild_tensor_v2"), source, b"K\0", shape, stride, b"\x89", h.ORDERED)
    parameter = h.call(h.name("torch._utils", "_rebuild_parameter"), plain, b"\x88", h.ORDERED)
    stateful = h.call(h.name("torch._utils", "_rebuild_parameter_with_state"), plain, b"\x88", h.ORDERED, b"}")
    tree = {"plain": plain, "sized": sized, "parameter": parameter, "stateful": stateful}
    found = read(one(body=h.pickle(h.mapping(tree))))
    same(found, dict.fromkeys(tree, X.reshape(3, 4)))
    rebuilt = h.name("torch._utils", "_rebuild_tensor_v3")
    raw = h.storage("0", 48, "UntypedStorage", module="torch.storage")
    for dtype, expected in (("float32", X), ("uint32", X.view(np.uint32)), ("uint64", X.view(np.uint64))):
        args = [h.numbers([expected.size - 1]), h.numbers([1]), b"\x89", h.ORDERED, h.name("torch", dtype)]
        body = h.pickle(h.mapping({"w": h.call(rebuilt, raw, b"K\1", *args)}))
        same(read(one(body=body)), {"w": expected[1:]})


def test_storages_named_as_old_torch_does(read):
    body = h.pickle(h.mapping({"w": h.vector("94339271755536", 12, module="torch.cuda")}))
    same(read(h.torch_zip(body, {"94339271755536": X.tobytes()})), {"w": X})


def test_the_stride_of_a_single_element_does_not_matter(read):
    tree = {"a": h.tensor(h.storage("0", 12), [1, 3], [2**61, 2]), "b": h.tensor(h.storage("0", 12), [3, 1], [2, 2**61])}
    same(read(one(h.pickle(h.mapping(tree)))), {"a": X[None, :5:2], "b": X[:5:2, None]})


def test_empty_tensors(read):
    tree = {"e": h.tensor(h.storage("1", 0), [0, 3], [3, 1]), "z": h.tensor(h.storage("0", 12), [2, 0], [1, 1], 99)}
    found = read(h.torch_zip(h.pickle(h.mapping(tree)), {"0": X.tobytes(), "1": b""}))
    same(found, {"e": np.zeros((0, 3), np.float32), "z": np.zeros((2, 0), np.float32)})


def test_other_programs_may_have_packed_it(tmp_path):
    """Python's zipfile writes sizes into the local headers, and no zip64 records."""
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("top/data.pkl", PLAIN)
        z.writestr("top/data/0", X.tobytes())
    same(state_of(read_torch_zip(path))[0], {"w": X})
    with path.open("wb") as f, zipfile.ZipFile(Unseekable(f), "w") as z:  # with flag 3 and descriptors
        z.writestr("top/data.pkl", PLAIN)
        z.writestr("top/data/0", X.tobytes())
    same(state_of(read_torch_zip(path))[0], {"w": X})


class Unseekable:
    def __init__(self, f):
        self.write, self.flush = f.write, f.flush


def test_zipfile_reads_what_the_tests_write(tmp_path):
    """So that files are refused for their lies and not for how the tests write them."""
    (tmp_path / "x.pth").write_bytes(one())
    with zipfile.ZipFile(tmp_path / "x.pth") as z:
        assert z.testzip() is None
        assert z.read("archive/data/0") == X.tobytes()


# which state dict


def wrap(*storages, **tree):
    """A file whose tree has the given vectors and dicts."""

    def piece(value):
        return h.mapping({k: piece(v) for k, v in value.items()}) if isinstance(value, dict) else value

    return h.torch_zip(h.pickle(piece(tree)), dict(storages) or {"0": X.tobytes()})


W = h.vector("0", 12)


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"w": W}, []),
        ({"state_dict": {"w": W}}, ["state_dict"]),
        ({"model": {"state_dict": {"w": W}}, "epoch": b"K\1"}, ["model", "state_dict"]),
        ({"net": {"w": W}, "optimizer": {"state": {"w": {"exp_avg": W}}}}, ["net"]),
        ({"state_dict_ema": {"module.w": W}}, ["state_dict_ema", "module."]),
        ({"module.w": W}, ["module."]),
        ({"module": {"w": W}}, ["module"]),
        ({"model": {"w": W}, "rng_state": h.vector("1", 48, "ByteStorage")}, ["model"]),
        ({"model": {"w": W}, "best": h.tensor(h.storage("0", 12), [], [])}, ["model"]),
        ({"model": {"w": W, "step": b"K\1", "name": h.text("x"), "config": {"a": b"N"}}}, ["model"]),
    ],
    ids=lambda value: "/".join(value) if isinstance(value, list) else "",
)
def test_wrappers(read, tree, path):
    more = [("1", X.tobytes())] if "rng_state" in tree else []
    same(read(wrap(("0", X.tobytes()), *more, **tree)), {"w": X})
    assert read.path == path


def test_small_state_dicts_count_where_nothing_else_is(read):
    single = h.tensor(h.storage("0", 12), [], [], 3)
    same(read(wrap(n=single)), {"n": X[3]})
    same(read(wrap(model={"n": single}, note=h.text("x"))), {"n": X[3]})


def test_the_choice_is_not_made_for_the_user(read):
    ema = h.tensor(h.storage("0", 12), [3], [1], 6)
    data = wrap(model={"w": W}, model_ema={"w": ema}, args=h.name("argparse", "Namespace"))
    with pytest.raises(WeightsError, match=r"say which one by key='model' \(1 tensors\) or key='model_ema' \(1 tensors\)"):
        read(data)
    same(read(data, key="model"), {"w": X})
    same(read(data, key="model_ema"), {"w": X[6:9]})
    assert read.path == ["model_ema"]
    with pytest.raises(WeightsError, match=r"none or several are 'teacher'; say which one by key='model'"):
        read(data, key="teacher")


def test_keys_lead_anywhere(read):
    data = wrap(w=W, models={"a": {"w": h.tensor(h.storage("0", 12), [2], [1])}, "b": {"x": {"w": W}}}, optimizer={"w": W})
    same(read(data, key=""), {"w": X})
    same(read(data, key="models.a"), {"w": X[:2]})
    same(read(data, key="models.b"), {"w": X})
    assert read.path == ["models", "b", "x"]
    same(read(data, key="optimizer"), {"w": X})
    with pytest.raises(WeightsError, match="none or several are 'models'"):
        read(data, key="models")
    same(read(data), {"w": X})  # of all these, only the outermost is a usual place


def test_unusual_keys_have_to_be_said(read):
    with pytest.raises(WeightsError, match=r"it holds 1 sets of tensors; say which one by key='generator' \(1 tensors\)"):
        read(wrap(generator={"w": W}))


@pytest.mark.parametrize("body", [b"N", b"}", b"]", h.text("x"), h.mapping({"a": b"}"}), h.mapping([(b"K\1", b"N")])])
def test_no_tensors_at_all(tmp_path, body):
    path = tmp_path / "x.pth"
    path.write_bytes(h.torch_zip(h.pickle(body), {}))
    with pytest.raises(WeightsError, match=r"and no dict of names and tensors; .* save the state_dict\(\)"):
        state_of(read_torch_zip(path))


@pytest.mark.parametrize("body", [W, b"]" + W + b"a", h.mapping([(b"K\1", W)])])
def test_tensors_without_names(read, body):
    with pytest.raises(WeightsError, match="no dict of names and tensors"):
        read(one(body=h.pickle(body)))


def test_how_deep_wrappers_are_looked_into(read):
    def nested(depth):
        tree = {"w": W}
        for _ in range(depth):
            tree = {"model": tree}
        return wrap(**tree)

    same(read(nested(4)), {"w": X})
    assert read.path == ["model"] * 4
    with pytest.raises(WeightsError, match="no dict of names and tensors"):
        read(nested(5))


def test_recursive_trees(read):
    ring = b"}q\x09(" + h.text("model") + b"h\x09" + h.text("w") + W + b"u"
    same(read(one(body=h.pickle(ring))), {"w": X})


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (h.vector("0", 6, "ComplexFloatStorage"), "is 'complex64'"),
        (h.vector("0", 3, "ComplexDoubleStorage"), "is 'complex128'"),
        (h.vector("0", 48, "QInt8Storage"), "is 'qint8'"),
        (
            h.call(h.name("torch._utils", "_rebuild_sparse_tensor"), b"N", b"N"),
            "is made by 'torch._utils._rebuild_sparse_tensor'",
        ),
        (h.call(h.name("torch._tensor", "_rebuild_from_type_v2"), b"N"), "is made by 'torch._tensor._rebuild_from_type_v2'"),
        (h.call(h.name("numpy.core.multiarray", "_reconstruct"), b"N"), "is made by 'numpy.core.multiarray._reconstruct'"),
        (h.tensor(h.storage("0", 12), [12], [1], flags=h.mapping({"neg": b"\x88"})), "has flags, such as conj or neg"),
        (
            h.call(
                h.name("torch._utils", "_rebuild_tensor_v3"),
                h.storage("0", 48, "UntypedStorage"),
                *(b"K\0", h.numbers([48]), h.numbers([1]), b"\x89", h.ORDERED, h.name("torch", "float8_e4m3fn")),
            ),
            "is 'float8_e4m3fn'",
        ),
    ],
)
def test_tensors_that_numpy_lacks_are_named(read, value, match):
    data = h.torch_zip(h.pickle(h.mapping({"v": h.vector("1", 12), "conv.w": value})), {"0": X.tobytes(), "1": X.tobytes()})
    if b"storage" not in value:
        data = h.torch_zip(h.pickle(h.mapping({"v": W, "conv.w": value})), {"0": X.tobytes()})
    with pytest.raises(WeightsError, match=f"tensor 'conv.w' {match}; make it a plain one"):
        read(data)
    # where no tensor is expected it does not matter
    wrapped = h.pickle(h.mapping({"state_dict": h.mapping({"v": h.vector("1", 12)}), "optimizer": h.mapping({"o": value})}))
    storages = {"1": X.tobytes()} | ({"0": X.tobytes()} if b"storage" in value else {})
    same(read(h.torch_zip(wrapped, storages)), {"v": X})


def test_names_of_functions_and_dtypes_do_not_steer_a_terminal(read):
    made = h.call(h.name("torch._utils", "_rebuild\x1b[2J"), b"N")
    rest = (b"K\0", h.numbers([48]), h.numbers([1]), b"\x89", h.ORDERED, h.name("torch", "float8\x1b[2J"))
    typed = h.call(h.name("torch._utils", "_rebuild_tensor_v3"), h.storage("0", 48, "UntypedStorage"), *rest)
    for value, storages in ((made, {}), (typed, {"0": X.tobytes()})):
        with pytest.raises(WeightsError, match="make it a plain one") as caught:
            read(h.torch_zip(h.pickle(h.mapping({"w": value})), storages))
        assert str(caught.value).isprintable()


def test_booleans_are_0_or_1(read):
    with pytest.raises(WeightsError, match="tensor 'm' is of booleans"):
        read(h.torch_zip(h.pickle(h.mapping({"m": h.vector("0", 3, "BoolStorage")})), {"0": b"\0\1\2"}))


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31m", "\ud800", "x" * 2000])
def test_names_can_be_printed(read, name):
    with pytest.raises(WeightsError, match="printable characters"):
        read(one(body=h.pickle(h.mapping({"v": W, name: W}))))


def test_strip_prefix():
    state = {"model.a": 1, "model.b": 2}
    assert strip_prefix(state, ("net.", "model.")) == ({"a": 1, "b": 2}, "model.")
    assert strip_prefix(state, ("net.",)) == (state, "")
    assert strip_prefix({**state, "c": 3}, ("model.",)) == ({**state, "c": 3}, "")
    assert strip_prefix({"model.": 1}, ("model.",)) == ({"model.": 1}, "")
    assert strip_prefix({}, ("model.",)) == ({}, "")
    nested = {"module.module.a": 1}
    assert strip_prefix(nested, ("module.",)) == ({"module.a": 1}, "module.")


# tensors that lie


HUGE = 2**61


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (h.vector("0", 13), "has 48 bytes, 13 of float32 are declared"),
        (h.vector("0", 11), "has 48 bytes, 11 of float32 are declared"),
        (h.vector("0", 12, "DoubleStorage"), "has 48 bytes, 12 of float64"),
        (h.vector("0", 2**62 + 12), "whose size is no number"),
        (h.vector("0", HUGE), "declared"),
        (h.vector("9", 12), "storage '9' is not in the archive"),
        (h.vector("../../x", 12), "is not in the archive"),
        (h.vector("0", 12, "FancyStorage"), "unknown class 'torch.FancyStorage'"),
        (h.vector("0", 12, module="evil"), "unknown class 'evil.FloatStorage'"),
        (h.tensor(h.storage("0", 12), [13], [1]), "reach 13, its storage has 12"),
        (h.tensor(h.storage("0", 12), [12], [1], 1), "reach 13"),
        (h.tensor(h.storage("0", 12), [3, 4], [4, 2]), "reach 15"),
        (h.tensor(h.storage("0", 12), [2], [HUGE]), f"reach {HUGE + 1}"),
        (h.tensor(h.storage("0", 12), [1], [1], HUGE), f"reach {HUGE + 1}"),
        (h.tensor(h.storage("0", 12), [HUGE, HUGE], [HUGE, HUGE]), "reach"),  # would wrap around in 64 bits
        (h.tensor(h.storage("0", 12), [2**64 + 1], [1]), "whole numbers"),
        (h.tensor(h.storage("0", 12), [3], [2**64]), "whole numbers"),
        (h.tensor(h.storage("0", 12), [1], [1], 2**100), "whole numbers"),
        (h.tensor(h.storage("0", 12), [-1], [1]), "whole numbers"),
        (h.tensor(h.storage("0", 12), [3], [-1], 5), "whole numbers"),
        (h.tensor(h.storage("0", 12), [3], [1], -1), "whole numbers"),
        (h.tensor(h.storage("0", 12), [3], [1, 1]), "of at most 8 numbers"),
        (h.tensor(h.storage("0", 12), [1] * 9, [1] * 9), "of at most 8 numbers"),
        (h.tensor(b"N", [3], [1]), "without a storage"),
        (h.tensor(h.several(h.text("storage")), [3], [1]), "without a storage"),
        (h.several(h.text("module"), h.name("a", "B"), b"N", b"N") + b"Q", "a whole module was saved"),
        (h.several(h.text("other"), b"N", b"N", b"N", b"N") + b"Q", "an id of 5 parts, expected is that of a storage"),
        (h.several(h.text("storage")) + b"Q", "an id of 1 parts"),
        (b")Q", "an id of 0 parts"),
        (h.several(h.text("storage"), b"N", h.text("0"), h.text("cpu"), b"K\x0c") + b"Q", "unknown class a NoneType"),
        (h.several(h.text("storage"), h.name("torch", "FloatStorage"), b"K\0", b"N", b"K\x0c") + b"Q", "no short text"),
        (h.storage("0" * 5000, 12), "no short text"),
        (h.storage("0", 12) + b"K\1K\2s", "items are set in a View"),
        (W + b"K\1K\2s", "items are set in a Tensor"),
        (W + b"}b", "attributes are given to a Tensor"),
        (h.call(h.name("torch._utils", "_rebuild_tensor_v2"), h.storage("0", 12)), "made from 1 values"),
        (h.call(h.name("torch._utils", "_rebuild_parameter"), b"N"), "not made from a tensor"),
        (h.call(h.name("torch._utils", "_rebuild_parameter")), "not made from a tensor"),
        (h.call(h.name("torch._utils", "_rebuild_tensor_v3"), W), "lacks its dtype"),
        (h.call(h.name("torch", "Size"), b"K\1"), "not made from a tuple"),
        (h.call(h.name("torch", "Size"), b")", b")"), "not made from a tuple"),
        (
            h.call(
                h.name("torch._utils", "_rebuild_tensor_v3"),
                h.storage("0", 12),
                *(b"K\0", h.numbers([6]), h.numbers([1]), b"\x89", h.ORDERED, h.name("torch", "float64")),
            ),
            "without a storage of its own kind",
        ),
        (
            h.call(
                h.name("torch._utils", "_rebuild_tensor_v3"),
                h.storage("0", 48, "UntypedStorage"),
                *(b"K\0", h.numbers([7]), h.numbers([1]), b"\x89", h.ORDERED, h.name("torch", "float64")),
            ),
            "reach 7, its storage has 6",
        ),
    ],
)
def test_tensors_that_lie(refused, value, match):
    told = refused(one(body=h.pickle(h.mapping({"other": b"N", "layer.w": value}))), match)
    if "reach" in match:
        assert "'layer.w': its elements" in told


def test_a_storage_has_one_dtype(refused):
    body = h.pickle(h.mapping({"a": h.vector("0", 12), "b": h.vector("0", 12, "IntStorage")}))
    refused(one(body=body), "storage '0' is both float32 and int32")


def test_storages_without_a_tensor(refused):
    refused(h.torch_zip(PLAIN, {"0": X.tobytes(), "1": b"hidden"}), "'data/1' belongs to no tensor")


def test_expanded_tensors_do_not_fill_the_memory(read):
    bomb = h.tensor(h.storage("0", 12), [2**20, 2**10], [0, 0])  # 4 GiB from 4 bytes
    terabytes = h.tensor(h.storage("0", 12), [2**40], [0])
    many = {f"w{i}": h.tensor(h.storage("0", 12), [2**20], [0], i) for i in range(8)}  # 4 MiB each
    for tree, match in (
        ({"w": W, "b": bomb}, "its tensors would take 4294967344 bytes, but only 48 are stored"),
        ({"w": terabytes}, "tensor 'w' has the shape .1099511627776,., which is over"),
        ({"w": h.tensor(h.storage("0", 12), [0, 2**40], [1, 1])}, "which is over"),
        (many, "they repeat"),
    ):
        with h.memory(1e6), pytest.raises(WeightsError, match=match):
            read(one(body=h.pickle(h.mapping(tree))))
    few = read(one(body=h.pickle(h.mapping({"w": many["w0"]}))))["w"]  # a little may repeat
    assert few.shape == (2**20,) and (few == X[0]).all()


# archives that lie


def changed(index=-3, **fields):
    """The file with fields of one entry replaced; by default of data/0."""
    entries = h.torch_entries(PLAIN, {"0": X.tobytes()})
    entries[index] = dataclasses.replace(entries[index], **fields)
    return h.archive(entries)


def added(entry, at=None):
    entries = h.torch_entries(PLAIN, {"0": X.tobytes()})
    entries.insert(len(entries) if at is None else at, entry)
    return h.archive(entries)


def test_the_writer_is_truthful_by_default(read):
    same(read(changed()), {"w": X})
    same(read(one(zip64=False)), {"w": X})


def deflated(data):
    engine = zlib.compressobj(wbits=-15)
    return engine.compress(data) + engine.flush()


ZERO_BOMB = deflated(bytes(10**7))
LIES = {
    "compressed": (changed(data=ZERO_BOMB, method=8, size=10**7, stored=len(ZERO_BOMB), crc=1), "is compressed"),
    "compressed, says stored": (changed(data=ZERO_BOMB, size=10**7, stored=len(ZERO_BOMB)), "10000000 bytes and"),
    "another method": (changed(method=99), "is compressed"),
    "compressed, says the local header": (changed(local_method=8), "described differently where it starts"),
    "encrypted": (changed(flags=0x0809), "is encrypted or otherwise unusual .flags 0x809"),
    "strongly encrypted": (changed(flags=0x0848), "unusual"),
    "masked headers": (changed(flags=0x2808), "unusual"),
    "other flags locally": (changed(local_flags=0x0809), "described differently where it starts"),
    "other name locally": (changed(local_name="archive/data/9"), "described differently"),
    "longer name locally": (changed(local_name="archive/data/00"), "described differently"),
    "CRC": (changed(crc=12345), "CRC .* 00003039 expected"),
    "no CRC": (changed(crc=0), "check_crc=False"),
    "CRC locally": (changed(local_sizes=(1, 48, 48)), "described differently"),
    "size locally": (changed(local_sizes=(zlib.crc32(X.tobytes()), 48, 47)), "described differently"),
    "saturated size locally": (changed(local_sizes=(zlib.crc32(X.tobytes()), 2**32 - 1, 2**32 - 1)), "described differently"),
    "symbolic link": (changed(attributes=0o120777 << 16), "is a link"),
    "folder": (changed(attributes=0o040777 << 16), "is a link or another thing"),
    "device": (changed(attributes=0o060777 << 16), "is a link or another thing"),
    "shorter": (changed(size=44), "something between"),
    "longer": (changed(size=64), "overlap"),
    "reaches over the next entry": (changed(size=200), "overlap"),
    "longer, without a descriptor": (
        changed(size=200, flags=0x0800, local_sizes=(zlib.crc32(X.tobytes()), 200, 200)),
        "overlap",
    ),
    "beyond the file": (changed(size=10**6), "overlap"),
    "4 GiB": (changed(size=2**32 - 2, stored=2**32 - 2), "overlap"),
    "zip64 without its field": (changed(size=2**32 - 1), "the zip64 sizes of 'archive/data/0'"),
    "zip64 size lies": (
        changed(size=2**32 - 1, stored=48, extra=struct.pack("<2HQ", 1, 8, 2**40)),
        "1099511627776 bytes and 48 stored",
    ),
    "zip64 sizes lie": (changed(size=2**32 - 1, extra=struct.pack("<2H2Q", 1, 16, 2**63, 2**63)), "overlap"),
    "zip64 field that is not needed": (changed(extra=struct.pack("<2HQ", 1, 8, 2**40)), "the zip64 sizes"),
    "two zip64 fields": (
        changed(size=2**32 - 1, stored=48, extra=struct.pack("<2HQ", 1, 8, 48) * 2),
        "an extra field",
    ),
    "cut extra field": (changed(extra=b"\1\0\x10"), "an extra field"),
    "extra field beyond itself": (changed(extra=struct.pack("<2H", 9, 50)), "an extra field"),
    "other disk": (changed(disk=1), "the directory's description"),
    "comment of an entry": (changed(comment=b"hello"), "the directory's description"),
    "header offset": (changed(header=0), "belong to no entry|overlap|expected at byte"),
    "header offset beyond": (changed(header=10**8), "belong to no entry|overlap|expected at byte"),
    "no descriptor": (changed(descriptor=b""), "something between"),
    "descriptor lies": (changed(descriptor=struct.pack("<4s3L", b"PK\7\10", 1, 48, 48)), "something between"),
    "bytes between entries": (changed(before=b"x"), "something between"),
    "bytes before": (one(prefix=b"MZ"), "bytes 0 to 2 belong to no entry"),
    "bytes after": (one(suffix=b"\0"), "expected at byte"),
    "comment": (one(comment=b"x"), "expected at byte"),
    "comment that is not there": (one()[:-2] + b"\1\0", "the directory ends at"),
    "disk": (one(zip64=False)[:-18] + b"\1\0" + one(zip64=False)[-16:], "the directory ends at"),
    "disk of the directory": (one(zip64=False)[:-16] + b"\1\0" + one(zip64=False)[-14:], "the directory ends at"),
    "counts of disks": (one(zip64=False)[:-14] + b"\4\0" + one(zip64=False)[-12:], "the directory ends at"),
    "bytes before the directory": (one(between=b"hidden"), "something between"),
    "duplicate": (added(h.Entry("archive/data/0", X[::-1].tobytes())), "two entries 'archive/data/0'"),
    "duplicate of the pickle": (added(h.Entry("archive/data.pkl", PLAIN)), "two entries 'archive/data.pkl'"),
    "the same entry twice": (added(h.Entry("archive/data/0", X.tobytes(), repeated=True), 3), "overlap"),
    "the same data by two names": (added(h.Entry("archive/data/1", X.tobytes(), repeated=True), 3), "overlap|differently"),
    "data.pkl missing": (h.archive([h.Entry("archive/version", b"3\n")]), "without data.pkl"),
    "no entries": (h.archive([]), "it has no entries"),
    "no entries but data": (h.archive([], prefix=b"x" * 50, start=50), "it has no entries"),
    "TorchScript": (added(h.Entry("archive/constants.pkl", b"")), "TorchScript archive"),
    "TorchScript code": (added(h.Entry("archive/code/__torch__.py", b"x", method=8)), "TorchScript archive"),
    "unexpected": (added(h.Entry("archive/readme.txt", b"x")), "'archive/readme.txt' is none of a checkpoint"),
    "unexpected .data": (added(h.Entry("archive/.data/extern_modules", b"x")), "is none of a checkpoint"),
    "storage that is no number": (added(h.Entry("archive/data/x", b"x")), "is none of a checkpoint"),
    "storage with more than a number": (added(h.Entry("archive/data/1x", b"x")), "is none of a checkpoint"),
    "other digits": (added(h.Entry("archive/data/\u0661", b"x")), "is none of a checkpoint"),
    "other folder": (added(h.Entry("other/data/1", b"x")), "is none of a checkpoint"),
    "no folder": (added(h.Entry("version", b"x")), "is none of a checkpoint"),
    "long note": (changed(index=-2, data=b"3" * 2000), "has 2000 bytes, expected are a few"),
    "big-endian": (changed(index=1, data=b"big"), "big-endian"),
    "parent": (added(h.Entry("archive/../../evil", b"x")), "no plain path"),
    "absolute": (added(h.Entry("/etc/passwd", b"x")), "no plain path"),
    "backslash": (added(h.Entry("archive\\data\\1", b"x")), "no plain path"),
    "drive": (added(h.Entry("C:/data/1", b"x")), "is none of a checkpoint"),
    "NUL": (added(h.Entry("archive/data/1\0", b"x")), "no plain path"),
    "escape": (added(h.Entry("archive/\x1b[2J", b"x")), "no plain path"),
    "empty name": (added(h.Entry("", b"x")), "no plain path"),
    "folder entry": (added(h.Entry("archive/data/", b"")), "no plain path"),
    "count": (one(count=4, count64=4), "contradict each other"),
    "count more": (one(count=9, count64=9), "expected at byte"),
    "count huge": (one(count=2**16 - 1, count64=2**60), "at most 65536"),
    "counts differ": (one(count=4), "zip64 records contradict"),
    "size differs": (one(size=4), "zip64 records contradict"),
    "start differs": (one(start=4), "zip64 records contradict"),
    "directory elsewhere": (one(start=0, start64=0), "the directory ends at"),
    "directory size": (one(size=0, size64=2**64 - 1), "contradict"),
    "locator": (one(locator=0), "do not follow each other"),
    "saturated without zip64": (one(zip64=False, count=0xFFFF, size=2**32 - 1, start=2**32 - 1), "the directory ends at"),
    "trailing bytes in the pickle": (one(body=PLAIN + b"N."), "2 bytes follow its pickle"),
    "no STOP": (one(body=PLAIN[:-1]), "the data ends"),
    "empty pickle": (one(body=b""), "the data ends|check_crc"),
    "npz": (h.archive([h.Entry("a.npy", b"x")]), "none of a checkpoint"),
    "no zip": (b"x" * 100, "expected at byte"),
    "short": (b"PK\5\6", "it has 4 bytes"),
    "empty": (b"", "it has 0 bytes"),
}


@pytest.mark.parametrize("lie", LIES)
def test_archives_that_lie(refused, lie):
    data, match = LIES[lie]
    with h.memory(1e6):
        refused(data, match)


def test_code_in_the_pickle(refused, tmp_path):
    canary = tmp_path / "canary"
    run = h.call(h.name("os", "mkdir"), h.text(str(canary)))
    refused(one(body=h.pickle(h.mapping({"w": W, "x": run}))), "the file asks to run 'os.mkdir'")
    refused(one(body=h.pickle(h.mapping({"w": h.tensor(run, [1], [1])}))), "nothing was run")
    assert not canary.exists()


def test_a_hidden_second_archive(refused):
    """Two directories: a program that searches the end record from the front reads another one."""
    refused(h.torch_zip(h.pickle(b"}"), {}) + one(), "directory ends at|expected at byte|zip64 records")
    refused(one() + h.torch_zip(h.pickle(b"}"), {}), "directory ends at|expected at byte|zip64 records")


def test_what_is_no_file(tmp_path):
    with pytest.raises(WeightsError, match="no such weights file"):
        read_torch_zip(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="not a file"):
        read_torch_zip(tmp_path)
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for ever
    with pytest.raises(WeightsError, match="not a file"):
        read_torch_zip(tmp_path / "fifo")


def test_crc_is_not_looked_at_on_request(read):
    damaged = changed(crc=77)
    same(read(damaged, check_crc=False), {"w": X})


def test_many_entries(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_ENTRIES", 4)
    path = tmp_path / "x.pth"
    path.write_bytes(one())
    with pytest.raises(WeightsError, match=r"5 entries \(at most 4\)"):
        read_torch_zip(path)


# large files


def sparse_zip64(path, size):
    """A checkpoint with a storage of `size` bytes that the disk does not hold: zeros, and a 1.5 as the last float32."""
    body = h.pickle(h.mapping({"w": h.tensor(h.storage("0", size // 4), [size // 4], [1]), "v": h.vector("1", 12)}))
    front = h.archive([h.Entry("archive/data.pkl", body)], zip64=False)
    position = front.index(b"PK\1\2")
    with path.open("wb") as f:
        f.write(front[:position])
        rows = []
        for key, length in (("0", size), ("1", 48)):
            raw, header = f"archive/data/{key}".encode(), f.tell()
            pad = -(header + 30 + len(raw)) % 64
            f.write(struct.pack("<4s5H3L2H", b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, len(raw), pad) + raw + bytes(pad))
            f.seek(length - 4 if key == "0" else 0, os.SEEK_CUR)
            f.write(np.float32(1.5).tobytes() if key == "0" else X.tobytes())
            crc = 0 if key == "0" else zlib.crc32(X.tobytes())
            f.write(struct.pack("<4sL2Q" if length > 2**32 else "<4s3L", b"PK\7\10", crc, length, length))
            values = [min(v, 2**32 - 1) for v in (length, length, header)]
            saturated = [v for v, s in zip((length, length, header), values, strict=True) if s == 2**32 - 1]
            extra = struct.pack("<2H", 1, 8 * len(saturated)) + b"".join(struct.pack("<Q", v) for v in saturated)
            extra = extra if saturated else b""
            fields = (0, 0, 0x808, 0, 0, 0, crc, *values[:2], len(raw), len(extra), 0, 0, 0, 0, values[2])
            rows.append(struct.pack("<4s6H3L5H2L", b"PK\1\2", *fields) + raw + extra)
        directory = front[position : position + 46 + len("archive/data.pkl")] + b"".join(rows)
        start = f.tell()
        end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 0, 0, 0, 0, 3, 3, len(directory), start)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + len(directory), 1)
        last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 3, 3, len(directory), min(start, 2**32 - 1), 0)
        f.write(directory + end + locator + last)


def test_more_than_4_gib(tmp_path):
    size = 2**32 + 400
    path = tmp_path / "large.pth"
    sparse_zip64(path, size)
    with h.memory(1e6):  # a window into the file
        arrays, _ = state_of(read_torch_zip(path, check_crc=False))
    assert arrays["w"].shape == (size // 4,)
    assert arrays["w"][-1] == 1.5 and not arrays["w"][-100:-1].any()
    np.testing.assert_array_equal(arrays["v"], X)


@pytest.mark.parametrize(
    ("kind", "itemsize", "transposed", "factor"),
    [("FloatStorage", 4, False, 0.05), ("FloatStorage", 4, True, 1.05), ("BFloat16Storage", 2, False, 2.05)],
)
def test_memory_of_a_64_mb_checkpoint(tmp_path, kind, itemsize, transposed, factor):
    """Windows into the file cost nothing, copies what they hold."""
    total, count = 64_000_000, 8
    side = total // count // itemsize // 2
    size, stride = ([2, side], [1, 2]) if transposed else ([2, side], [side, 1])
    tree = {f"w{i}": h.tensor(h.storage(str(i), 2 * side, kind), size, stride) for i in range(count)}
    raw = np.random.default_rng(0).integers(0, 255, total // count, dtype=np.uint8).tobytes()
    path = tmp_path / "x.pth"
    path.write_bytes(h.torch_zip(h.pickle(h.mapping(tree)), {str(i): raw for i in range(count)}))
    with h.memory(factor * total):
        arrays, _ = state_of(read_torch_zip(path))
    expected = np.frombuffer(raw, "<u2" if itemsize == 2 else "<f4").reshape((side, 2) if transposed else (2, side))
    for value in arrays.values():
        bits = expected.astype(np.uint32) << 16 if itemsize == 2 else expected.T if transposed else expected
        np.testing.assert_array_equal(value.view(np.uint32), np.ascontiguousarray(bits).view(np.uint32))


def test_many_tensors(read):
    """5000 tensors, as many as the largest trainers' files have, with memos beyond two bytes' worth of names."""
    tree = {f"layer{i}.weight": h.tensor(h.storage("0", 12), [1], [1], i % 12) for i in range(5000)}
    found = read(one(body=h.pickle(h.mapping(tree))))
    assert len(found) == 5000
    assert all(a == X[i % 12] for i, a in enumerate(found.values()))


# damage


@pytest.mark.parametrize("name", ["views", "wrapped"])
def test_truncated_at_every_byte(tmp_path, name):
    data = (DATA / f"{name}.pth").read_bytes()
    path = tmp_path / "x.pth"
    path.write_bytes(data)
    for n in range(len(data) - 1, -1, -1):
        os.truncate(path, n)
        with pytest.raises(WeightsError):
            read_torch_zip(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(WeightsError):
        read_torch_zip(path)


def fingerprint(saved):
    """Of everything that `state_of` gives and of the rest of the tree."""
    digest = hashlib.sha256()
    for name, a in state_of(saved)[0].items():
        digest.update(f"{name} {a.dtype} {a.shape}".encode() + a.tobytes())

    def add(value):
        if isinstance(value, dict):
            for k, v in value.items():
                digest.update(repr(k).encode())
                add(v)
        elif isinstance(value, (list, tuple)):
            for v in value:
                add(v)
        elif not isinstance(value, Tensor):
            digest.update(str(value).encode() if isinstance(value, Opaque) else repr(value).encode())

    add(saved.tree)
    return digest.hexdigest()


@pytest.mark.parametrize("name", ["views", "wrapped", "wrapped_p4"])
def test_flipped_bytes(tmp_path, name):
    """3 x 2000 damaged files: each is refused, or gives what the undamaged one gives, because everything has a CRC."""
    data = (DATA / f"{name}.pth").read_bytes()
    expected = fingerprint(read_torch_zip(DATA / f"{name}.pth"))
    rng = random.Random(name)
    path = tmp_path / "x.pth"
    outcomes = collections.Counter()
    for _ in range(2000):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            damaged[rng.randrange(len(damaged))] ^= rng.randrange(1, 256)
        h.put(path, damaged)
        try:
            saved = read_torch_zip(path)
        except WeightsError:
            outcomes["refused"] += 1
        else:
            assert fingerprint(saved) == expected
            outcomes["the same"] += 1
    assert min(outcomes.values()) > 100


def test_flipped_bytes_under_right_checksums(tmp_path):
    """4000 pickles that were changed before the archive was written: refused, or arrays out of the storages alone."""
    samples = []
    for name in ("views", "wrapped"):
        body, storages = pickle_of(DATA / f"{name}.pth")
        known = {n: {raw[i : i + n] for raw in storages.values() for i in range(len(raw) - n + 1)} for n in (1, 2, 4, 8)}
        samples.append((body, storages, known, {bytes(2) + v for v in known[2]} | known[4]))
    rng = random.Random(11)
    outcomes = collections.Counter()
    for i in range(4000):
        body, storages, known, known_float32 = samples[i % 2]
        path = tmp_path / f"{i % 2}.pth"
        damaged = bytearray(body)
        for _ in range(rng.choice([1, 1, 2, 4])):
            damaged[rng.randrange(len(damaged))] = rng.choice([rng.randrange(256), rng.choice(body)])
        h.put(path, h.torch_zip(bytes(damaged), storages))
        try:
            arrays, _ = state_of(read_torch_zip(path))
        except WeightsError:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        for a in arrays.values():  # float32 may come from bfloat16
            assert a.nbytes < 2**24
            values = {v.tobytes() for v in a.ravel()[:50]}
            assert values <= (known_float32 if a.dtype == np.float32 else known[a.itemsize])
    assert min(outcomes.values()) > 300


def pickle_of(path):
    """(pickle, {key: bytes}) of a checkpoint, by the standard library's zipfile."""
    with zipfile.ZipFile(path) as z:
        names = {n.partition("/")[2]: n for n in z.namelist()}
        storages = {n[5:]: z.read(full) for n, full in names.items() if n.startswith("data/")}
        return z.read(names["data.pkl"]), storages
