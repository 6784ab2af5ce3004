"""Sharded checkpoints: index and shards have to agree in everything, and no name leaves the folder."""

import json
import os
import re

import numpy as np
import pytest
from helpers import handmade
from safetensors.numpy import save, save_file

from refvit.errors import WeightsError
from refvit.weights.readers import shards as reader
from refvit.weights.readers.checkpoint import read_checkpoint
from refvit.weights.readers.shards import read_shards

RNG = np.random.default_rng(4)
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TENSORS = {
    ONE: {"a.weight": RNG.standard_normal((3, 4)).astype(np.float32), "a.bias": RNG.standard_normal(3).astype(np.float16)},
    TWO: {"b.scale": np.array(7, np.int64), "b.empty": np.zeros((0, 5), np.float64)},
}
MAP = {name: shard for shard, tensors in TENSORS.items() for name in tensors}
TOTAL = 48 + 6 + 8  # by hand


@pytest.fixture
def folder(tmp_path):
    for shard, tensors in TENSORS.items():
        save_file(tensors, tmp_path / shard, {"format": "np", "shard": shard})
    return tmp_path


def index(folder, content=None, **changes):
    """The index, with other fields than the right ones, or with any content."""
    path = folder / "model.safetensors.index.json"
    fields = {"metadata": {"total_size": TOTAL}, "weight_map": MAP, **changes}
    fields = {key: value for key, value in fields.items() if value != "leave out"}
    path.write_bytes(json.dumps(fields).encode() if content is None else content)
    return path


def right(path):
    tensors, metadata = read_shards(path)
    assert tensors.keys() == MAP.keys()
    for shard in TENSORS.values():
        for name, a in shard.items():
            np.testing.assert_array_equal(tensors[name], a, strict=True)
            assert not tensors[name].flags.writeable
    assert metadata == {"format": "np"}  # what the shards have in common


def refused(path, message):
    with pytest.raises(WeightsError) as info:
        read_shards(path)
    text = str(info.value)
    assert text.startswith(f"{path}: "), text
    assert re.search(message, text[len(str(path)) :]), text
    assert text.isprintable()
    assert len(text) < 600 + 2 * len(str(path))


def test_two_shards(folder):
    right(index(folder))
    right(str(index(folder)))


def test_from_the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    right(index(folder).name)


@pytest.mark.parametrize(
    "metadata",
    [
        "leave out",
        {},
        {"total_size": None},
        {"total_size": float(TOTAL)},
        {"total_size": TOTAL, "total_parameters": 15, "x": [{}]},
    ],
)
def test_metadata_of_the_index(folder, metadata):
    right(index(folder, metadata=metadata))


def test_one_shard_and_no_metadata(tmp_path):
    save_file({"x": TENSORS[ONE]["a.weight"]}, tmp_path / ONE)
    tensors, metadata = read_shards(index(tmp_path, weight_map={"x": ONE}, metadata={"total_size": 48}))
    assert (list(tensors), metadata) == (["x"], {})


def test_total_size_is_that_of_bfloat16_in_the_file(tmp_path):
    header = b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    (tmp_path / ONE).write_bytes(len(header).to_bytes(8, "little") + header + b"\x80\x3f\0\xc0")
    tensors, _ = read_shards(index(tmp_path, weight_map={"w": ONE}, metadata={"total_size": 4}))
    np.testing.assert_array_equal(tensors["w"], np.array([1, -2], np.float32), strict=True)


def test_the_links_of_the_hub_cache(folder):
    """snapshots/<revision>/<name> are links into blobs/, whose files are called by their digest."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "1234"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for i, name in enumerate((index(folder).name, ONE, TWO)):
        (folder / name).rename(blobs / str(i))
        try:
            (snapshot / name).symlink_to(os.path.join("..", "..", "blobs", str(i)))
        except OSError:
            pytest.skip("links cannot be made here")
    right(snapshot / "model.safetensors.index.json")


# refused


NAMES = {
    "parent": f"../{ONE}",
    "deep parent": f"../../etc/{ONE}",
    "absolute": f"/tmp/{ONE}",
    "folder": f"sub/{ONE}",
    "this folder": f"./{ONE}",
    "backslashes": f"..\\{ONE}",
    "drive": f"C:{ONE}",
    "stream": f"{ONE}:x.safetensors",
    "share": f"\\\\host\\share\\{ONE}",
    "address": f"https://host/{ONE}",
    "NUL": f"{ONE}\0.safetensors",
    "new line": f"\n{ONE}",
    "override of the direction": f"\u202e{ONE}",
    "half a surrogate pair": f"\ud800{ONE}",
    "empty": "",
    "dot": ".",
    "dots": "..",
    "only a suffix": ".safetensors",
    "pickle": "pytorch_model.bin",
    "the index itself": "model.safetensors.index.json",
    "null": None,
    "number": 1,
    "list": [ONE],
    "long": "x" * 5000,
}


@pytest.mark.parametrize("case", NAMES)
def test_names_of_shards(folder, case):
    """Where they would lead, a file is there: it is the name that is refused."""
    (folder / "sub").mkdir()
    for place in (folder / "sub" / ONE, folder.parent / ONE):
        place.write_bytes((folder / ONE).read_bytes())
    path = index(folder, weight_map={**MAP, "a.weight": NAMES[case], "a.bias": NAMES[case]})
    refused(path, "surrogates" if "surrogate" in case else "expected is the name of a .safetensors file in its folder")


CONTENT = {
    "empty": (b"", "get the file again"),
    "not JSON": (b"model", "get the file again"),
    "not UTF-8": (b'{"weight_map": {"\xff": 1}}', "codec"),
    "list": (b"[]", "no weight_map"),
    "text": (b'"weight_map"', "no weight_map"),
    "null": (b"null", "no weight_map"),
    "map twice": (b'{"weight_map": {}, "weight_map": {}}', "'weight_map' twice"),
    "tensor twice": (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' twice"),
    "tensor twice, escaped": (b'{"weight_map": {"a": "x.safetensors", "\\u0061": "x.safetensors"}}', "'a' twice"),
    "total_size twice": (b'{"metadata": {"total_size": 1, "total_size": 2}, "weight_map": {}}', "'total_size' twice"),
    "NaN": (b'{"metadata": {"total_size": NaN}, "weight_map": {}}', "holds NaN"),
    "deep": (b"[" * 100_000, "recursion|nested"),
    "tiny values": (b"[" + b"[]," * 1_000_000, "more than 1048576 values"),
    "a config": (b'{"model_type": "vit", "hidden_size": 768}', "no weight_map"),
}


@pytest.mark.parametrize("case", CONTENT)
def test_content_of_the_index(folder, case):
    content, message = CONTENT[case]
    refused(index(folder, content), message)


@pytest.mark.parametrize("weight_map", ["leave out", {}, [], None, "x", [["a.weight", ONE]]])
def test_no_map(folder, weight_map):
    refused(index(folder, weight_map=weight_map), "no weight_map")


@pytest.mark.parametrize("metadata", [None, [], "x", 5])
def test_metadata_that_is_no_map(folder, metadata):
    refused(index(folder, metadata=metadata), "its metadata is .* expected is a map")


@pytest.mark.parametrize("total", [TOTAL - 1, TOTAL + 1, 0, -TOTAL, TOTAL + 0.5, str(TOTAL), [TOTAL], 2**70, 1e300])
def test_total_size(folder, total):
    refused(index(folder, metadata={"total_size": total}), f"total_size is .* its shards hold {TOTAL} bytes")


def test_index_that_is_no_file(folder):
    refused(folder / "gone.json", "no such weights file")
    refused(folder, "not a file")


def test_missing_shard(folder):
    path = index(folder)
    (folder / TWO).unlink()
    refused(path, f"'{TWO}', which it names, is not there; put all shards into the folder")
    (folder / TWO).mkdir()
    refused(path, f"'{TWO}', which it names, is not there")


def test_dangling_link(folder):
    path = index(folder)
    (folder / TWO).unlink()
    try:
        (folder / TWO).symlink_to("nowhere")
    except OSError:
        pytest.skip("links cannot be made here")
    refused(path, "is not there")


def test_tensor_that_its_shard_lacks(folder):
    refused(index(folder, weight_map={**MAP, "c": TWO}), f"'{TWO}' lacks 'c'")
    refused(index(folder, weight_map={**MAP, **{f"c{i}": TWO for i in range(9)}}), "lacks 'c0', 'c1', 'c2' and 6 more")


def test_tensor_that_the_map_lacks(folder):
    less = {name: shard for name, shard in MAP.items() if name != "a.bias"}
    refused(index(folder, weight_map=less), f"'{ONE}' holds 'a.bias', which weight_map does not place there")


def test_tensor_placed_elsewhere(folder):
    refused(index(folder, weight_map={**MAP, "a.bias": TWO}), f"'{ONE}' holds 'a.bias'")
    refused(index(folder, weight_map={**MAP, "b.scale": ONE}), f"'{ONE}' lacks 'b.scale'")


def test_tensor_in_two_shards(folder):
    save_file({**TENSORS[TWO], "a.bias": TENSORS[ONE]["a.bias"]}, folder / TWO)
    refused(index(folder), f"'{TWO}' holds 'a.bias'")
    refused(index(folder, weight_map={**MAP, "a.bias": TWO}), f"'{ONE}' holds 'a.bias'")


def test_one_file_under_two_names(folder):
    """A link, or a file system that ignores case, would give every tensor twice."""
    copy = "Model.safetensors"
    (folder / copy).write_bytes((folder / ONE).read_bytes())
    refused(index(folder, weight_map={**MAP, "a.bias": copy}), f"'{ONE}' holds 'a.bias'")
    refused(index(folder, weight_map={**MAP, "a2": copy}), f"'{copy}' lacks 'a2'")


def test_damaged_shard(folder):
    path = index(folder)
    content = (folder / TWO).read_bytes()
    (folder / TWO).write_bytes(content[:-1])
    refused(path, f"{TWO}: not a readable safetensors file: its tensors take 8 bytes, but 7 follow")
    (folder / TWO).write_bytes(save({}))
    refused(path, "lacks 'b.empty', 'b.scale'")


def test_too_much(folder, monkeypatch):
    path = index(folder)
    monkeypatch.setattr(reader, "MAX_SHARDS", 1)
    refused(path, "2 shards, at most 1")
    monkeypatch.undo()
    size = sum((folder / shard).stat().st_size for shard in TENSORS)
    monkeypatch.setattr(reader, "MAX_BYTES", size - 1)
    refused(path, f"have {size} bytes in all, at most {size - 1}")
    monkeypatch.setattr(reader, "MAX_BYTES", size)
    right(path)
    monkeypatch.setattr(reader, "MAX_ENTRIES", 3)
    refused(path, "places 4 tensors, at most 3")
    monkeypatch.setattr(reader, "MAX_ENTRIES", 4)
    right(path)
    monkeypatch.setattr(reader, "MAX_HEADER", path.stat().st_size - 1)
    refused(path, "bytes, at most")


def test_cut_off_anywhere(folder):
    path = index(folder)
    content = path.read_bytes()
    for n in range(len(content)):
        path.write_bytes(content[:n])
        refused(path, "")


def test_2000_random_changes_of_the_index(folder):
    """Whatever is still read is all that the shards hold."""
    path = index(folder)
    content = path.read_bytes()
    chance = np.random.default_rng(8)
    read = 0
    for _ in range(2000):
        raw = bytearray(content)
        for _ in range(chance.integers(1, 3)):
            raw[chance.integers(len(raw))] = chance.choice((*b' "{}[],:.\\/0159ab', chance.integers(256)))
        path.write_bytes(raw)
        try:
            right(path)
            read += 1
        except WeightsError as error:
            if not str(error).startswith(f"{path}: "):
                raise
    assert 5 < read < 1000


# shards of PyTorch


TORCH = {shard.replace("model-", "pytorch_model-").replace("safetensors", "bin"): tensors for shard, tensors in TENSORS.items()}
BIN_ONE, BIN_TWO = TORCH
BIN_MAP = {name: shard for shard, tensors in TORCH.items() for name in tensors}


def torch_parts(tensors, extra=()):
    """Pickle and storages of a state dict, behind extra pairs."""
    kinds = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage", "float64": "DoubleStorage"}
    pairs, storages = list(extra), {}
    for i, (name, a) in enumerate(tensors.items()):
        strides = [s // a.itemsize for s in np.ascontiguousarray(a).strides][: a.ndim]
        pairs.append((name, handmade.tensor(handmade.storage(str(i), a.size, kinds[a.dtype.name]), a.shape, strides)))
        storages[str(i)] = a.tobytes()
    return handmade.pickle(handmade.mapping(pairs)), storages


@pytest.fixture
def bins(tmp_path):
    for shard, tensors in TORCH.items():
        (tmp_path / shard).write_bytes(handmade.torch_zip(*torch_parts(tensors)))
    return tmp_path


def bin_index(folder, weight_map=BIN_MAP, total=TOTAL):
    path = folder / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return path


def test_two_shards_of_pytorch(bins):
    tensors, metadata = read_shards(bin_index(bins))
    assert tensors.keys() == BIN_MAP.keys() and metadata == {}
    for shard in TORCH.values():
        for name, a in shard.items():
            np.testing.assert_array_equal(tensors[name], a, strict=True)
            assert not tensors[name].flags.writeable
    assert read_checkpoint(bins).file.name == "pytorch_model.bin.index.json"
    assert read_checkpoint(bins).tensors.keys() == BIN_MAP.keys()


def test_shards_of_pytorch_agree_with_their_index(bins):
    refused(bin_index(bins, {**BIN_MAP, "c": BIN_TWO}), f"'{BIN_TWO}' lacks 'c'")
    refused(bin_index(bins, {**BIN_MAP, "a.bias": BIN_TWO}), f"'{BIN_ONE}' holds 'a.bias'")
    for total in (TOTAL - 1, TOTAL + 1, "62"):
        refused(bin_index(bins, total=total), f"total_size is .* its shards hold {TOTAL} bytes")
    refused(bin_index(bins, {**BIN_MAP, "a.bias": f"../{BIN_ONE}"}), r"expected is the name of a \.bin file in its folder")
    save_file(TENSORS[TWO], bins / TWO)
    mixed = {name: TWO if shard == BIN_TWO else shard for name, shard in BIN_MAP.items()}
    refused(bin_index(bins, mixed), r"expected is the name of a \.safetensors file in its folder")
    (bins / BIN_TWO).unlink()
    refused(bin_index(bins), f"'{BIN_TWO}', which it names, is not there")


def test_the_total_of_parts_of_a_storage_may_be_that_of_the_storage(bins):
    """Newer writers count storages and older ones elements: half of one is used here."""
    body = handmade.pickle(handmade.mapping([("x", handmade.tensor(handmade.storage("0", 8), (4,), (1,)))]))
    (bins / BIN_ONE).write_bytes(handmade.torch_zip(body, {"0": np.arange(8, dtype=np.float32).tobytes()}))
    for total in (16, 32):
        tensors, _ = read_shards(bin_index(bins, {"x": BIN_ONE}, total))
        assert tensors["x"].tolist() == [0, 1, 2, 3]
    refused(bin_index(bins, {"x": BIN_ONE}, 24), "its shards hold 16 or 32 bytes")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([("epoch", handmade.number(3))], "'epoch' in it is no tensor"),
        ([("state_dict", handmade.mapping({}))], "'state_dict' in it is no tensor"),
        ([(handmade.number(3), handmade.number(3))], "3 in it is no tensor|'3' in it is no tensor"),
    ],
)
def test_a_shard_is_a_state_dict_and_nothing_else(bins, extra, message):
    (bins / BIN_ONE).write_bytes(handmade.torch_zip(*torch_parts(TORCH[BIN_ONE], extra)))
    refused(bin_index(bins), message)


def test_a_shard_that_is_no_zip_or_no_dict(bins):
    (bins / BIN_ONE).write_bytes(handmade.torch_zip(handmade.pickle(handmade.number(3)), {}))
    refused(bin_index(bins), "a shard is a dict of names and tensors")
    (bins / BIN_ONE).write_bytes((bins / BIN_TWO).read_bytes()[:-1])
    refused(bin_index(bins), "zip structure is damaged")
    save_file(TENSORS[ONE], bins / BIN_ONE)  # safetensors under that name
    refused(bin_index(bins), "not a readable PyTorch checkpoint")


def test_checksums_of_shards(bins):
    entries = handmade.torch_entries(*torch_parts(TORCH[BIN_ONE]))
    for entry in entries:
        entry.crc = 0
    (bins / BIN_ONE).write_bytes(handmade.archive(entries))
    path = bin_index(bins)
    refused(path, "no checksum")
    assert read_shards(path, check_crc=False)[0].keys() == BIN_MAP.keys()
    assert read_checkpoint(path, check_crc=False).tensors.keys() == BIN_MAP.keys()


def test_2000_random_changes_of_a_shard(bins):
    """Under its checksums: refused, or the tensors that were written."""
    path, content = bin_index(bins), (bins / BIN_ONE).read_bytes()
    expected = read_shards(path)[0]
    chance, read = np.random.default_rng(3), 0
    for _ in range(2000):
        raw = bytearray(content)
        for _ in range(chance.integers(1, 3)):
            raw[chance.integers(len(raw))] ^= chance.integers(1, 256)
        handmade.put(bins / BIN_ONE, raw)
        try:
            found = read_shards(path)[0]
        except WeightsError as error:
            if not str(error).startswith(f"{path}: "):
                raise
            continue
        read += 1
        for name, a in expected.items():
            np.testing.assert_array_equal(found[name], a, strict=True)
    assert 20 < read < 1500
