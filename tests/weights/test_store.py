"""Weights files: what is written is read, and whatever happens to a file on the way is noticed."""

import dataclasses
import hashlib
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from refvit import files
from refvit.errors import WeightsError
from refvit.weights.store import FORMAT_VERSION, Weights, _header_digest, digest, load, read_safetensors, save

RNG = np.random.default_rng(1)
PARAMS = {
    "stem.weight": RNG.standard_normal((2, 3, 1, 1)).astype(np.float32),
    "stem.bias": RNG.standard_normal(2).astype(np.float32),
    "scale": np.array([0.5], np.float32),
    "empty": np.zeros((0, 4), np.float32),
}


def weights(**changes):
    fields = {
        "model": "toy",
        "tag": "made_up",
        "config": {"widths": [1, 2], "eps": 1e-5},
        "preprocess": {"resize": 8, "mean": [0.1, 0.2, 0.3]},
        "labels": ("Katze", "猫", "a, b"),
        "source": {"file": "x.pth", "sha256": "0" * 64},
        "params": PARAMS,
    }
    return Weights(**{**fields, **changes})


def same(a, b):
    assert sorted(a.params) == sorted(b.params)
    for name, value in a.params.items():
        assert b.params[name].dtype == value.dtype
        np.testing.assert_array_equal(b.params[name], value, strict=True)
    for field in ("model", "tag", "config", "preprocess", "labels", "source"):
        assert getattr(a, field) == getattr(b, field), field


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return save(weights(), tmp_path_factory.mktemp("store") / "toy.safetensors").read_bytes()


# round trips


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("labels", [None, ("x", "y", "ü")])
def test_round_trip(tmp_path, dtype, labels):
    params = {name: RNG.standard_normal(a.shape).astype(dtype) for name, a in PARAMS.items()}
    written = weights(params=params, labels=labels)
    path = save(written, str(tmp_path / "deeper" / "a.safetensors"))
    assert path == tmp_path / "deeper" / "a.safetensors"
    read = load(path)
    same(written, read)
    assert read.sha256 == written.sha256
    assert read.name == "toy.made_up"
    assert weights(tag="").name == "toy"


def test_metadata_is_there_for_other_tools(tmp_path):
    tensors, metadata = read_safetensors(save(weights(), tmp_path / "a.safetensors"))
    header = json.loads(metadata["refvit"])
    assert header["format_version"] == FORMAT_VERSION == 1
    assert header["labels"] == ["Katze", "猫", "a, b"]
    assert sorted(tensors) == sorted(PARAMS)


def test_casting_on_the_way(tmp_path):
    half = load(save(weights(), tmp_path / "a.safetensors", dtype="float16"))
    for name, a in PARAMS.items():
        np.testing.assert_array_equal(half.params[name], a.astype(np.float16), strict=True)
    assert half.sha256 != weights().sha256
    with pytest.raises(WeightsError, match="float16, float32, float64"):
        save(weights(), tmp_path / "b.safetensors", dtype="bfloat16")
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("value", [65520.0, -1e5, 1e38])
def test_overflow_into_float16_is_refused(tmp_path, value):
    params = {**PARAMS, "big": np.array([1.0, value], np.float32)}
    with pytest.raises(WeightsError, match="big holds values too large for float16"):
        save(weights(params=params), tmp_path / "a.safetensors", dtype="float16")
    assert list(tmp_path.iterdir()) == []
    save(weights(params={**PARAMS, "big": np.array([65504.0, np.inf], np.float32)}), tmp_path / "b", dtype="float16")


def test_strided_and_big_endian_tensors_are_written_as_they_read(tmp_path):
    a = RNG.standard_normal((4, 6)).astype(np.float32)
    odd = {"t": a.T, "reverse": a[::-1, ::2], "big_endian": a.astype(">f4")}
    read = load(save(weights(params=odd), tmp_path / "a.safetensors"))
    np.testing.assert_array_equal(read.params["t"], a.T)
    np.testing.assert_array_equal(read.params["reverse"], a[::-1, ::2])
    np.testing.assert_array_equal(read.params["big_endian"], a)


def test_scalars_stay_scalars(tmp_path):
    scalar = {"scale": np.array(0.5, np.float32)}
    assert digest(scalar) != digest({"scale": np.array([0.5], np.float32)})
    assert load(save(weights(params=scalar), tmp_path / "a.safetensors")).params["scale"].shape == ()


def test_params_are_read_only(tmp_path):
    read = load(save(weights(), tmp_path / "a.safetensors"))
    for params in (read.params, read.astype("float32"), read.astype("float64")):
        with pytest.raises(ValueError, match="read-only"):
            params["stem.bias"][0] = 1
    own = {name: a.copy() for name, a in PARAMS.items()}
    assert weights(params=own).astype("float32")["stem.bias"].flags.writeable is False
    own["stem.bias"][0] = 3  # the caller's own array stays his
    with pytest.raises(dataclasses.FrozenInstanceError):
        read.model = "other"


# digest


def test_digest_by_hand():
    a = np.array([1.0, -2.0], np.float32)
    expected = hashlib.sha256(b"a float32 (2,)\n" + struct.pack("<2f", 1.0, -2.0)).hexdigest()
    assert digest({"a": a}) == expected
    assert digest({"a": a.astype(">f4")}) == expected


def test_digest_changes_with_anything():
    base = {"a": np.arange(4, dtype=np.float32), "b": np.zeros(2, np.float32)}
    seen = {digest(base)}
    for i in range(16):
        raw = bytearray(base["a"].tobytes())
        raw[i] ^= 1
        seen.add(digest({**base, "a": np.frombuffer(bytes(raw), np.float32)}))
    seen.add(digest({"a": base["a"]}))
    seen.add(digest({"a": base["a"], "c": base["b"]}))
    seen.add(digest({"a": base["b"], "b": base["a"]}))
    seen.add(digest({**base, "a": base["a"].reshape(2, 2)}))
    seen.add(digest({**base, "a": base["a"].astype(np.float64)}))
    seen.add(digest({**base, "b": -base["b"]}))  # the sign of zero
    assert len(seen) == 23
    assert digest(dict(reversed(base.items()))) == digest(base)


# atomic


@pytest.mark.parametrize("step", ["replace", "fsync", "fdopen"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = save(weights(), tmp_path / "a.safetensors")
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        save(weights(tag="new"), path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    save(weights(tag="new"), path)
    assert load(path).tag == "new"


def test_an_interrupt_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(weights(), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        path = save(weights(), tmp_path / "a.safetensors")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


# corruption


def faithful_or_refused(path, written):
    """load either raises WeightsError in one line, says "not refvit's", or gives the same tensors."""
    try:
        read = load(path)
    except WeightsError as error:
        told = str(error)
    else:
        told = ""
    if told:
        assert str(path) in told
        assert "\n" not in told
        return False
    if read is None:
        return False
    assert digest(read.params) == digest(written.params)
    return True


def test_truncated_anywhere(tmp_path, file):
    path = tmp_path / "a.safetensors"
    for n in {*range(0, 64), *range(64, len(file), 17), *range(len(file) - 40, len(file))}:
        path.write_bytes(file[:n])
        with pytest.raises(WeightsError):
            load(path)
    path.write_bytes(file + b"\0")
    assert not faithful_or_refused(path, weights())


@pytest.mark.parametrize("mask", [0x01, 0x10, 0x80, 0xFF])
def test_one_byte_flipped_anywhere(tmp_path, file, mask):
    path = tmp_path / "a.safetensors"
    data_starts = 8 + struct.unpack("<Q", file[:8])[0]
    for i in {*range(0, 200, 3), *range(200, data_starts, 7), *range(data_starts, len(file))}:
        path.write_bytes(file[:i] + bytes([file[i] ^ mask]) + file[i + 1 :])
        loaded = faithful_or_refused(path, weights())
        assert not (loaded and i >= data_starts), f"a flip of tensor byte {i} was not noticed"


def test_random_bytes_after_a_plausible_length(tmp_path):
    path = tmp_path / "a.safetensors"
    for n in (0, 1, 7, 8, 9, 100, 5000):
        path.write_bytes(RNG.bytes(n))
        with pytest.raises(WeightsError):
            load(path)
        path.write_bytes(struct.pack("<Q", n) + RNG.bytes(n))
        with pytest.raises(WeightsError):
            load(path)
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(WeightsError):
        load(path)


def test_what_is_no_file(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("these are not weights\n" * 10)
    (tmp_path / "page.html").write_text("<!DOCTYPE html><html>not found</html>")
    for name in ("empty", "text", "page.html"):
        with pytest.raises(WeightsError, match=f"{name}: not a readable safetensors file"):
            load(tmp_path / name)
    with pytest.raises(WeightsError, match="gone: no such weights file"):
        load(tmp_path / "gone")
    with pytest.raises(WeightsError, match="not a file"):
        load(str(tmp_path))


def test_files_of_another_origin_are_not_ours(tmp_path):
    for metadata in (None, {"format": "pt"}):
        save_file(PARAMS, tmp_path / "a.safetensors", metadata)
        assert load(tmp_path / "a.safetensors") is None


def patched(path, file_bytes, **changes):
    """The file with other refvit metadata around the same tensors."""
    Path(path).write_bytes(file_bytes)
    tensors, metadata = read_safetensors(path)
    header = json.loads(metadata["refvit"])
    for key, value in changes.items():
        if value is KeyError:
            del header[key]
        else:
            header[key] = value
    save_file({n: a.copy() for n, a in tensors.items()}, path, {"refvit": json.dumps(header)})
    return path


def test_a_newer_format_asks_for_an_upgrade(tmp_path, file):
    path = patched(tmp_path / "a.safetensors", file, format_version=FORMAT_VERSION + 1)
    with pytest.raises(WeightsError, match=r"format 2; this refvit reads up to 1: upgrade refvit"):
        load(path)


def test_a_wrong_digest_is_told(tmp_path, file):
    path = patched(tmp_path / "a.safetensors", file, sha256="f" * 64)
    with pytest.raises(WeightsError, match=r"sha256 .* expected"):
        load(path)


def rewritten(path, file_bytes, change):
    """The file with other refvit metadata, under the digest that belongs to them; `change` is of their text."""
    Path(path).write_bytes(file_bytes)
    tensors, metadata = read_safetensors(path)
    text = change(metadata["refvit"])
    header = json.loads(text)
    text = text.replace(header["header_sha256"], _header_digest(header))
    save_file({n: a.copy() for n, a in tensors.items()}, path, {"refvit": text})
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"tag": "made_up"', '"tag": "a", "tag": "made_up"', "the key 'tag' twice"),
        ("Katze", "\\ud800", "surrogates"),
        ('"x.pth"', '["\\ud800"]', "surrogates"),
        ('"eps": 1e-05', '"eps": NaN', "NaN"),
        ('"eps": 1e-05', '"eps": 1e999', "not JSON compliant"),
        ('"eps": 1e-05', '"eps": ' + "[" * 70 + "]" * 70, "more than 64 deep"),
        ('"format_version": 1', '"format_version": -1', "format_version is -1"),
        ('"format_version": 1', '"format_version": 0', "format_version is 0"),
        ('"format_version": 1', '"format_version": true', "format_version is True"),
        ('"format_version": 1', '"format_version": 0.5', "format_version is 0.5"),
        ('"file": "x.pth"', '"assumed": {"file": 1}', "list of names expected in source.assumed"),
        ('"file": "x.pth"', '"left_out": {"why": "x"}', "list of names expected in why"),
    ],
)
def test_metadata_that_are_read_differently_or_not_at_all(tmp_path, file, old, new, message):
    assert load(rewritten(tmp_path / "a.safetensors", file, lambda text: text)).tag == "made_up"

    def change(text):
        assert old in text
        return text.replace(old, new)

    with pytest.raises(WeightsError, match=f"metadata is damaged .*{message}"):
        load(rewritten(tmp_path / "a.safetensors", file, change))


@pytest.mark.parametrize(
    "changes", [{"labels": ("\ud800", "b")}, {"config": {"eps": float("nan")}}, {"source": {"a": np.float32(1)}}], ids=str
)
def test_what_could_not_be_read_is_not_written(tmp_path, changes):
    with pytest.raises(WeightsError, match="cannot be written as JSON"):
        save(weights(**changes), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["format_version", "model", "tag", "config", "preprocess", "labels", "source", "sha256"])
def test_a_missing_entry_is_damage(tmp_path, file, key):
    with pytest.raises(WeightsError, match=f"metadata is damaged.*{key}"):
        load(patched(tmp_path / "a.safetensors", file, **{key: KeyError}))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"', "{}", "\0", '{"format_version": "1"}', "NaN"])
def test_damaged_metadata(tmp_path, text):
    save_file(PARAMS, tmp_path / "a.safetensors", {"refvit": text})
    with pytest.raises(WeightsError, match="metadata is damaged"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"config": None},
        {"preprocess": []},
        {"model": 5},
        {"tag": None},
        {"source": "text"},
        {"labels": "one string"},
        {"labels": [1, 2]},
        {"format_version": -3},
    ],
    ids=str,
)
def test_an_entry_of_another_kind_is_damage(tmp_path, file, changes):
    with pytest.raises(WeightsError, match=r"metadata (is damaged|are not those)"):
        load(patched(tmp_path / "a.safetensors", file, **changes))


def test_deeply_nested_metadata(tmp_path):
    save_file(PARAMS, tmp_path / "a.safetensors", {"refvit": "[" * 100_000})
    with pytest.raises(WeightsError, match="metadata is damaged"):
        load(tmp_path / "a.safetensors")


def test_a_dtype_that_numpy_lacks(tmp_path):
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(WeightsError, match=r"a\.safetensors"):
        load(path)


@pytest.mark.parametrize(
    "changes", [{"labels": ["Hund", "猫", "a, b"]}, {"preprocess": {"resize": 9, "mean": [0.1, 0.2, 0.3]}}]
)
def test_changed_labels_and_preprocessing_are_noticed(tmp_path, file, changes):
    with pytest.raises(WeightsError, match="sha256"):
        load(patched(tmp_path / "a.safetensors", file, **changes))
