"""PyTorch's format before 1.6: torch's own files, files made by hand, and damaged ones."""

import collections
import io
import os
import random
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers import handmade as h

from refvit.errors import WeightsError
from refvit.weights.readers import torch_legacy as module
from refvit.weights.readers.torch_legacy import read_torch_legacy
from refvit.weights.readers.torch_state import state_of

HERE = Path(__file__).parent
DATA = HERE / "data"

X = np.random.default_rng(3).standard_normal(12).astype(np.float32)


def vector(key, numel, kind="FloatStorage", size=None, offset=0, **more):
    size = numel if size is None else size
    return h.tensor(h.storage(key, numel, kind, legacy=True, **more), [size], [1], offset)


PLAIN = h.pickle(h.mapping({"w": vector("7", 12)}))
STORED = {"7": (12, X.tobytes())}


@pytest.fixture
def read(tmp_path):
    def run(data):
        path = tmp_path / "x.pth"
        path.write_bytes(data)
        return state_of(read_torch_legacy(path))[0]

    return run


@pytest.fixture
def refused(tmp_path):
    def run(data, match):
        path = tmp_path / "bad.pth"
        path.write_bytes(data)
        with h.memory(1e6), pytest.raises(WeightsError, match=match) as caught:
            read_torch_legacy(path)
        told = str(caught.value)
        assert told.startswith(f"{path}: not a readable PyTorch checkpoint (before 1.6): ")
        assert "\n" not in told and len(told) < 600

    return run


def same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, strict=True, err_msg=name)
        flags = found[name].flags
        assert flags.c_contiguous and flags.aligned and not flags.writeable, name


# torch's own files, see data/make.py


def test_views_dtypes_and_shared_storages():
    a = (np.arange(24, dtype=np.float32) / 8 - 1).reshape(4, 6)
    short = np.arange(5, dtype=np.float32) / 8 - 1
    expected = {
        "a": a,
        "t": a.T,
        "s": a[1:, ::2],
        "e": np.full((3, 2), -1, np.float32),
        "tied": a,
        "h": short[:3].astype(np.float16),
        "b": short,
        "n": np.array(7),
        "m": a > 0,
    }
    arrays, path = state_of(read_torch_legacy(str(DATA / "views_legacy.pth")))
    same(arrays, expected)
    assert path == []
    assert arrays["tied"] is arrays["a"]


def test_nested_in_what_a_trainer_saves():
    saved = read_torch_legacy(DATA / "wrapped_legacy.pth")
    assert list(saved.tree) == ["epoch", "best_acc1", "acc", "args", "state_dict", "optimizer"]
    arrays, path = state_of(saved)
    same(arrays, {"weight": np.array([[-1, -0.875]], np.float32), "bias": np.array([3], np.float32)})
    assert path == ["state_dict", "module."]


# made by hand


def test_storages_in_any_order(read):
    tree = {"w": vector("7", 12), "i": vector("10", 3, "LongStorage"), "b": vector("2", 2, "BFloat16Storage")}
    storages = {
        "10": (3, np.arange(3).tobytes()),
        "2": (2, np.array([0x3F80, 0xC000], "<u2").tobytes()),
        "7": (12, X.tobytes()),
    }
    expected = {"w": X, "i": np.arange(3), "b": np.array([1, -2], np.float32)}
    for order in (["10", "2", "7"], ["7", "10", "2"]):
        same(read(h.torch_legacy(h.pickle(h.mapping(tree)), {key: storages[key] for key in order})), expected)


def test_views_of_storages(read):
    """As files before 0.4 have them: (key of the view, first element, number of elements)."""
    view = h.several(h.text("8"), h.number(4), h.number(6))
    tree = {
        "all": vector("7", 12),
        "view": h.tensor(h.storage("7", 12, legacy=True, view=view), [2, 3], [3, 1]),
        "part": h.tensor(h.storage("7", 12, legacy=True, view=view), [2], [2], 3),
        "end": h.tensor(h.storage("7", 12, legacy=True, view=h.several(h.text("9"), h.number(12), h.number(0))), [0], [1]),
    }
    found = read(h.torch_legacy(h.pickle(h.mapping(tree)), STORED))
    same(found, {"all": X, "view": X[4:10].reshape(2, 3), "part": X[[7, 9]], "end": X[:0]})


def test_empty_storages_and_no_storages(read, tmp_path):
    tree = {"w": vector("7", 12), "e": vector("8", 0)}
    same(read(h.torch_legacy(h.pickle(h.mapping(tree)), {**STORED, "8": (0, b"")})), {"w": X, "e": X[:0]})
    path = tmp_path / "none.pth"
    path.write_bytes(h.torch_legacy(h.pickle(h.mapping({"a": b"K\1"})), {}))
    assert read_torch_legacy(path).tree == {"a": 1}


def test_python_2(read):
    key = b"U\x01w"
    source = h.several(b"U\x07storage", h.name("torch", "FloatStorage"), b"U\x017", b"U\x03cpu", b"K\x0c", b"N") + b"Q"
    tensor = h.call(h.name("torch._utils", "_rebuild_tensor"), source, b"K\0", h.numbers([12]), h.numbers([1]))
    body = h.pickle(h.call(h.name("collections", "OrderedDict"), b"](](" + key + tensor + b"ee"))
    same(read(h.torch_legacy(body, STORED)), {"w": X})


def test_other_protocols_of_the_pickles(read):
    same(read(h.torch_legacy(h.pickle(h.mapping({"w": vector("7", 12)}), 4), STORED)), {"w": X})


# refused


def test_other_formats(tmp_path, refused):
    with io.BytesIO() as out:
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name in ("sys_info", "pickle", "tensors", "storages"):
                info = tarfile.TarInfo(name)
                info.size = 4
                tar.addfile(info, io.BytesIO(b"\x80\x02N."))
        refused(out.getvalue(), r"a tar archive, as torch wrote before 0.1.10; load it by torch and save it again")
    refused(h.torch_zip(h.pickle(b"}"), {}), r"starts with b'PK.x03.x04.*magic number")
    refused(b"\x93NUMPY\x01\x00" + bytes(300), "magic number")
    refused(h.pickle(h.mapping({"a": b"N"})), "magic number")
    refused(h.pickle(b"N"), "magic number")
    refused(h.pickle(b"\x88"), "magic number")
    refused(b"x", "magic number")
    refused(b"", "it is empty")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"magic": h.pickle(h.number(0x1950A86A20F9469CFC6D))}, "magic number"),
        ({"version": 1002}, "big-endian"),
        ({"protocol": h.pickle(b"M\xea\x03")}, "not of protocol 1001"),
        ({"protocol": h.pickle(b"\x88")}, "not of protocol 1001"),
        ({"little": False}, "big-endian machine"),
        ({"keys": []}, "lists 0 storages, its tensors have 1 others"),
        ({"keys": ["8"]}, "lists 1 storages"),
        ({"keys": ["7", "7"]}, "lists 2 storages"),
        ({"keys": ["7", "8"]}, "lists 2 storages"),
        ({"suffix": b"\0"}, "1 bytes follow its last storage"),
        ({"suffix": b"x" * 100}, "100 bytes follow its last storage"),
    ],
)
def test_the_frame(refused, options, match):
    refused(h.torch_legacy(PLAIN, STORED, **options), match)


@pytest.mark.parametrize(
    ("storages", "match"),
    [
        ({"7": (11, X.tobytes())}, "has 11 elements, 12 are declared"),
        ({"7": (13, X.tobytes())}, "has 13 elements, 12 are declared"),
        ({"7": (-1, X.tobytes())}, "has -1 elements, 12 are declared"),
        ({"7": (2**62, X.tobytes())}, "elements, 12 are declared"),
        ({"7": (12, X.tobytes()[:-1])}, "ends within storage '7'"),
        ({"7": (12, b"")}, "ends within storage '7'"),
        ({}, "lists 0 storages"),
    ],
)
def test_storages_that_lie(refused, storages, match):
    refused(h.torch_legacy(PLAIN, storages), match)


HUGE = 2**61


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (vector("7", HUGE), "ends within storage '7'"),
        (vector("7", 2**64), "whose size is no number"),
        (vector("7", 12, size=13), "reach 13, its storage has 12"),
        (vector("7", 12, offset=1), "reach 13"),
        (vector("7", 12, offset=HUGE), "reach"),
        (vector("7", 12, size=HUGE), "reach"),
        (h.tensor(h.storage("7", 12), [12], [1]), "an id of 5 parts, expected is that of a storage, with 6"),
        (vector("7", 12, view=h.numbers([1, 0, 13])), "a view of storage '7' is outside of its 12"),
        (vector("7", 12, view=h.numbers([1, 13, 0])), "is outside of its 12"),
        (vector("7", 12, view=h.numbers([1, -1, 3])), "is outside of its 12"),
        (vector("7", 12, view=h.numbers([1, 3, -1])), "is outside of its 12"),
        (vector("7", 12, view=h.numbers([1, 2])), "not described by three values"),
        (vector("7", 12, view=b"K\1"), "not described by three values"),
        (vector("7", 12, view=h.several(b"N", b"N", b"N")), "is outside"),
        (vector("7", 12, view=h.numbers([1, 2, 5])), "reach 12, its storage has 5"),
        (b"]" + vector("7", 12) + b"a" + vector("7", 11) + b"a", "storage '7' is declared in two ways"),
        (b"]" + vector("7", 12) + b"a" + vector("7", 12, "IntStorage") + b"a", "storage '7' is declared in two ways"),
        (h.several(h.text("module"), h.name("my.nets", "Net"), b"N", b"N") + b"Q", "a whole module was saved"),
        (h.call(h.name("os", "mkdir"), h.text("/nowhere/canary")), "nothing was run"),
    ],
)
def test_trees_that_lie(refused, value, match):
    refused(h.torch_legacy(h.pickle(h.mapping({"w": value})), STORED), match)


@pytest.mark.parametrize("where", range(5))
def test_code_in_any_of_the_pickles(tmp_path, refused, where):
    canary = tmp_path / "canary"
    evil = h.pickle(h.call(h.name("os", "mkdir"), h.text(str(canary))))
    parts = [h.MAGIC, h.PROTOCOL, h.pickle(h.mapping({"protocol_version": h.number(1001), "little_endian": b"\x88"}))]
    parts += [PLAIN, h.pickle(b"]" + h.text("7") + b"a")]
    parts[where] = evil
    refused(b"".join(parts) + struct.pack("<q", 12) + X.tobytes(), "nothing was run|magic number")
    assert not canary.exists()


@pytest.mark.parametrize("keys", [b"}", b")", h.text("7"), b"](K\x07e", b"N"])
def test_keys_are_a_list_of_texts(refused, keys):
    system = h.mapping({"protocol_version": h.number(1001), "little_endian": b"\x88"})
    data = h.MAGIC + h.PROTOCOL + h.pickle(system) + PLAIN + h.pickle(keys) + struct.pack("<q", 12) + X.tobytes()
    refused(data, "its keys are not a list")


def test_no_persistent_ids_outside_of_the_tree(refused):
    data = h.torch_legacy(PLAIN, STORED)
    listed = h.pickle(b"](" + h.text("7") + b"e")
    start = data.index(listed)
    refused(data[:start] + h.pickle(h.storage("7", 12, legacy=True)) + data[start + len(listed) :], "as a persistent id")


def test_many_storages(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_ENTRIES", 0)
    path = tmp_path / "x.pth"
    path.write_bytes(h.torch_legacy(PLAIN, STORED))
    with pytest.raises(WeightsError, match="at most 0 texts"):
        read_torch_legacy(path)


def test_what_is_no_file(tmp_path):
    with pytest.raises(WeightsError, match="no such weights file"):
        read_torch_legacy(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="not a file"):
        read_torch_legacy(tmp_path)


def test_memory_of_a_64_mb_checkpoint(tmp_path):
    """Nothing aligns the storages here, so the arrays are copies."""
    count, numel = 8, 2_000_000
    raw = np.random.default_rng(0).standard_normal(numel).astype(np.float32).tobytes()
    tree = {f"w{i}": vector(str(i), numel) for i in range(count)}
    path = tmp_path / "x.pth"
    path.write_bytes(h.torch_legacy(h.pickle(h.mapping(tree)), {str(i): (numel, raw) for i in range(count)}))
    with h.memory(1.02 * path.stat().st_size):
        arrays, _ = state_of(read_torch_legacy(path))
    assert all(a.tobytes() == raw for a in arrays.values())


# damage


@pytest.mark.parametrize("name", ["views_legacy", "wrapped_legacy"])
def test_truncated_at_every_byte(tmp_path, name):
    data = (DATA / f"{name}.pth").read_bytes()
    path = tmp_path / "x.pth"
    path.write_bytes(data)
    for n in range(len(data) - 1, -1, -1):
        os.truncate(path, n)
        with pytest.raises(WeightsError):
            read_torch_legacy(path)


@pytest.mark.parametrize("name", ["views_legacy", "wrapped_legacy"])
def test_flipped_bytes(tmp_path, name):
    """2 x 2500 damaged files: refused, or arrays whose values are bytes of the file. The format has no checksums."""
    data = (DATA / f"{name}.pth").read_bytes()
    rng = random.Random(name)
    path = tmp_path / "x.pth"
    outcomes = collections.Counter()
    for _ in range(2500):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            damaged[rng.randrange(len(damaged))] ^= rng.randrange(1, 256)
        h.put(path, damaged)
        try:
            arrays, _ = state_of(read_torch_legacy(path))
        except WeightsError:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        for a in arrays.values():
            assert a.nbytes < 2**24
            assert not a.flags.writeable
            for v in a.ravel()[:10]:
                raw = v.tobytes()
                assert raw in damaged or (a.dtype == np.float32 and raw[2:] in damaged and raw[:2] == bytes(2))
    assert min(outcomes.values()) > 200
