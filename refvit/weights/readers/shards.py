"""Sharded checkpoints, as Hugging Face's libraries write them: several files, and an index that says what is where.

The index is JSON: {"metadata": {"total_size": bytes}, "weight_map": {tensor: file}}. The files are safetensors, or, named .bin,
state dicts of PyTorch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from refvit.errors import WeightsError
from refvit.graph.ir import Array
from refvit.weights.readers.limits import MAX_BYTES, MAX_ENTRIES, opened, reading, shown
from refvit.weights.readers.safetensors import MAX_HEADER, parse_json, read_file
from refvit.weights.readers.torch_state import FREE_BYTES, shard_of
from refvit.weights.readers.torch_zip import read_torch_zip

SAFETENSORS, TORCH = ".safetensors", ".bin"
KIND = "index of shards"
MAX_SHARDS = 256  # each keeps a file descriptor


class Index(NamedTuple):
    """What an index says: the names of each shard's tensors by the shard's file name, and the bytes of all, or None."""

    shards: dict[str, set[str]]
    total_size: Any


def read_shards(index_path: str | os.PathLike[str], *, check_crc: bool = True) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors of all shards that a `*.safetensors.index.json` or `*.bin.index.json` names, and the metadata common to all.

    check_crc: False for PyTorch's shards that were written without checksums

    Shards are files of the index's own folder, named without a path. They may be symbolic links to anywhere, because in the
    cache of the Hugging Face hub every file is one: whoever can put a link into the folder can put any file there as well.
    The folder is the one where the index was asked for, not the one where the index itself, if it is a link, leads to.
    Index and shards have to agree exactly. How long the arrays keep the files in use is said in `safetensors.read_file`.
    WeightsError for whatever is wrong, in the index or in a shard.
    """
    folder = Path(index_path).parent
    tensors: dict[str, Array] = {}
    common: set[tuple[str, str]] | None = None
    stored = {0}  # bytes, as they may be counted
    free = FREE_BYTES
    shards, total_size = read_index(index_path)
    with reading(index_path, KIND):
        for shard in shards:
            if not (folder / shard).is_file():
                raise WeightsError(f"{shown(shard)}, which it names, is not there; put all shards into the folder of the index")
        if (size := sum((folder / shard).stat().st_size for shard in shards)) > MAX_BYTES:
            raise WeightsError(
                f"its shards have {size} bytes in all, at most {MAX_BYTES} are read; leave out what is no weight"
            )
        for shard, expected in shards.items():
            found, metadata, data_bytes = _read_shard(folder / shard, check_crc, free)
            free = max(free - sum(a.nbytes for a in found.values()), 0)
            if missing := expected - found.keys():
                raise WeightsError(f"{shown(shard)} lacks {_some(missing)}, which weight_map places there; get both again")
            if surplus := found.keys() - expected:
                raise WeightsError(
                    f"{shown(shard)} holds {_some(surplus)}, which weight_map does not place there; get both again"
                )
            tensors |= found
            common = set(metadata.items()) if common is None else common & metadata.items()
            stored = {min(stored) + min(data_bytes), max(stored) + max(data_bytes)}
            if max(stored) > MAX_BYTES:
                raise WeightsError(f"its shards hold over {MAX_BYTES} bytes in all, the most that is read")
        if total_size not in (None, *stored):
            held = " or ".join(map(str, sorted(stored)))
            raise WeightsError(
                f"its total_size is {total_size!r:.40}, its shards hold {held} bytes; get index and shards again"
            )
    return tensors, dict(sorted(common or ()))


def _read_shard(path: Path, check_crc: bool, free: int) -> tuple[dict[str, Array], dict[str, str], set[int]]:
    """(tensors, metadata, their bytes as stored, in each way of counting them)."""
    if path.suffix == TORCH:
        tensors, counts = shard_of(read_torch_zip(path, check_crc=check_crc), free)
        return tensors, {}, counts
    tensors, metadata, data_bytes = read_file(path)
    return tensors, metadata, {data_bytes}


def read_index(path: str | os.PathLike[str]) -> Index:
    """What an index says; errors as in `read_shards`. The names of shards are plain: no path, and one suffix for all."""
    with opened(path) as (f, size), reading(path, KIND):
        if size > MAX_HEADER:
            raise WeightsError(f"it has {size} bytes, at most {MAX_HEADER} are expected")
        index = parse_json(f.read(size))
        if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict) or not index["weight_map"]:
            raise WeightsError(
                "it has no weight_map from tensors to files; give the *.safetensors.index.json of the repository"
            )
        metadata = index.get("metadata", {})
        if not isinstance(metadata, dict):
            raise WeightsError(f"its metadata is {shown(metadata)}, expected is a map; get the file again")
        shards: dict[str, set[str]] = {}
        suffix = TORCH if all(isinstance(s, str) and s.endswith(TORCH) for s in index["weight_map"].values()) else SAFETENSORS
        for name, shard in index["weight_map"].items():
            if not isinstance(shard, str) or not _plain(shard, suffix):
                raise WeightsError(
                    f"it places tensor {shown(name)} in {shown(shard)}, expected is the name of a {suffix} file in its folder; "
                    "do not use it"
                )
            shards.setdefault(shard, set()).add(name)
        if (count := len(index["weight_map"])) > MAX_ENTRIES:
            raise WeightsError(f"it places {count} tensors, at most {MAX_ENTRIES} are read; split it")
        if len(shards) > MAX_SHARDS:
            raise WeightsError(f"it names {len(shards)} shards, at most {MAX_SHARDS} are read; merge them")
        return Index(shards, metadata.get("total_size"))


def _plain(name: str, suffix: str) -> bool:
    """Whether a file name is only that, under any operating system: no folder, drive, stream or control character in it."""
    return name.endswith(suffix) and name != suffix and name.isprintable() and not set(name) & set('/\\:*?"<>|')


def _some(names: set[str]) -> str:
    return ", ".join(shown(name) for name in sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
