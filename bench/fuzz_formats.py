"""What bench.fuzz damages: of every reader the first inputs, how a file is made of an input, and who else reads it.

A change inside of an archive is noticed by its checksum. Where an input is only a part of a file (a header, an array, a pickle)
the file is put together around it with lengths and checksums that are right, so that what reads the part is reached.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from helpers import files, handmade, judge  # of the tests

from refvit.errors import WeightsError
from refvit.weights.readers.checkpoint import read_checkpoint
from refvit.weights.readers.npz import read_npz
from refvit.weights.readers.pickle_subset import load
from refvit.weights.readers.safetensors import read_safetensors
from refvit.weights.readers.shards import read_shards
from refvit.weights.readers.torch_legacy import read_torch_legacy
from refvit.weights.readers.torch_state import CALLS, Storage, View, state_of, storage_id
from refvit.weights.readers.torch_zip import read_torch_zip

Tensors = Mapping[str, Any]

TOKENS = [  # what random bytes hardly hit
    b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\7\10", b"\xff\xff\xff\xff", b"\x93NUMPY", b"'descr'",
    b"'shape'", b"'<f4'", b"'|V2'", b"'|O'", b'"dtype"', b'"BF16"', b'"BOOL"', b'"shape"', b'"data_offsets"', b'"__metadata__"',
    b'"weight_map"', b"18446744073709551616", b"-1", b"1e9", b"NaN", b"[[[[", b"\\ud800", b"archive/data/0",
    b"archive/data.pkl",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_tensor_v3\n", b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nFloatStorage\n", b"ctorch\nBFloat16Storage\n", b"ctorch\nUntypedStorage\n", b"cos\nsystem\n",
    b"ccollections\nOrderedDict\n", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x80\x02", b"q\x00h\x00", b"X\x01\0\0\0w",
]  # fmt: skip


@dataclass(frozen=True)
class Format:
    """first: inputs; read: file -> tensors; build: input -> file; same: compares with what another program reads in the file;
    beside: further files of its folder."""

    first: list[bytes]
    read: Callable[[Path], Tensors]
    build: Callable[[bytes], bytes] = bytes
    same: Callable[[Tensors, Path], None] | None = None
    beside: Mapping[str, bytes] = field(default_factory=dict)


ROOT = Path(__file__).parent.parent
RNG = np.random.default_rng(8)
STATE = {"a.weight": RNG.standard_normal((3, 4)).astype(np.float32), "b": np.array(7), "m": np.array([True, False])}
OTHER = {"w": RNG.standard_normal((2, 3)).astype(np.float16), "e": np.zeros((0, 2)), "v": np.full(3, 2, np.int32)}


def npy(a: Any) -> bytes:
    f = io.BytesIO()
    np.lib.format.write_array(f, a, allow_pickle=False)
    return f.getvalue()


def zip_of(array: bytes) -> bytes:
    crc = handmade.zlib.crc32(array)
    entry = handmade.Entry("a.npy", array, flags=0, local_sizes=(crc, len(array), len(array)), local_extra=b"")
    return handmade.archive([entry], zip64=False)


SAFETENSORS = [files.safetensors_file(STATE, {"format": "np"}), files.safetensors_file(OTHER)]
HEADER = 8 + int.from_bytes(SAFETENSORS[0][:8], "little")
NPZ = [files.npz_file(STATE), files.npz_file(OTHER, compressed=True)]
ARRAYS = [npy(a) for a in (*STATE.values(), *OTHER.values(), STATE["a.weight"].astype(">f8").T, OTHER["w"].view("V2"))]
SHARDS = files.shard_files(STATE) | files.shard_files(STATE, "bin")
INDICES = [raw for name, raw in SHARDS.items() if name.endswith(".json")]
SAVED = {p.stem: p.read_bytes() for p in sorted((ROOT / "tests" / "weights" / "readers" / "data").glob("*.pth"))}  # by torch
ZIPPED = [raw for name, raw in SAVED.items() if "legacy" not in name]
OLDER = [raw for name, raw in SAVED.items() if "legacy" in name]
STORAGES = {str(i): bytes(range(96)) for i in range(3)}
VECTORS = {"w": handmade.vector("0", 24), "b": handmade.vector("1", 48, "BFloat16Storage")}
STRIDED = handmade.tensor(handmade.storage("2", 24), [2, 3], [1, 4], 3)
PICKLES = [
    handmade.pickle(handmade.mapping({"state_dict": handmade.mapping(VECTORS | {"t": STRIDED}), "epoch": handmade.number(1)})),
    handmade.pickle(handmade.mapping(VECTORS | {"t": STRIDED}, handmade.ORDERED)),
]


def pickled(path: Path) -> Tensors:
    """The pickle machine alone, whose errors do not know of a path."""

    def view(pid: tuple[Any, ...]) -> View:
        _, dtype, itemsize, numel = storage_id(pid, 5)
        return View(Storage(None, dtype, itemsize, numel), 0, numel)  # type: ignore[arg-type]

    try:
        load(memoryview(path.read_bytes()), calls=CALLS, persistent=view)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    return {}


def _safetensors(path: Path) -> Tensors:
    return read_safetensors(path)[0]


def _torch_zip(path: Path) -> Tensors:
    return state_of(read_torch_zip(path))[0]


FORMATS = {
    "safetensors": Format(SAFETENSORS, _safetensors, same=judge.as_the_library),
    "safetensors header": Format(
        [SAFETENSORS[0][8:HEADER]],
        _safetensors,
        lambda header: len(header).to_bytes(8, "little") + header + SAFETENSORS[0][HEADER:],
        judge.as_the_library,
    ),
    "index of shards": Format(INDICES, lambda path: read_shards(path)[0], beside=SHARDS),
    "npz": Format(NPZ, read_npz, same=judge.as_numpy),
    "array of an npz": Format(ARRAYS, read_npz, zip_of, judge.as_numpy),
    "torch zip": Format(ZIPPED, _torch_zip),
    "pickle of a torch zip": Format(PICKLES, _torch_zip, lambda body: handmade.torch_zip(body, STORAGES)),
    "torch legacy": Format(OLDER, lambda path: state_of(read_torch_legacy(path))[0]),
    "pickle": Format(PICKLES, pickled),
    "any, by its content": Format(
        [*SAFETENSORS, *NPZ, *ZIPPED, *OLDER, *INDICES], lambda path: read_checkpoint(path).tensors, beside=SHARDS
    ),
}
