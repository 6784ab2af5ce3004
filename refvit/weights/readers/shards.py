"""Sharded safetensors, as Hugging Face's libraries write them: several files, and an index that says what is where.

The index is JSON: {"metadata": {"total_size": bytes}, "weight_map": {tensor: file}}.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from refvit.errors import WeightsError
from refvit.graph.ir import Array
from refvit.weights.readers.limits import MAX_BYTES, opened, reading, shown
from refvit.weights.readers.safetensors import MAX_HEADER, parse_json, read_file

SUFFIX = ".safetensors"
KIND = "index of shards"
MAX_SHARDS = 256  # each keeps a file descriptor


def read_shards(index_path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors of all shards that a `*.safetensors.index.json` names, and the metadata that all of them have in common.

    Shards are files of the index's own folder, named without a path. They may be symbolic links to anywhere, because in the
    cache of the Hugging Face hub every file is one: whoever can put a link into the folder can put any file there as well.
    The folder is the one where the index was asked for, not the one where the index itself, if it is a link, leads to.
    Index and shards have to agree exactly. How long the arrays keep the files in use is said in `safetensors.read_file`.
    WeightsError for whatever is wrong, in the index or in a shard.
    """
    folder = Path(index_path).parent
    tensors: dict[str, Array] = {}
    common: set[tuple[str, str]] | None = None
    stored = 0
    shards, total_size = _read_index(index_path)
    with reading(index_path, KIND):
        for shard, expected in shards.items():
            if not (folder / shard).is_file():
                raise WeightsError(f"{shown(shard)}, which it names, is not there; put all shards into the folder of the index")
            found, metadata, data_bytes = read_file(folder / shard)
            if missing := expected - found.keys():
                raise WeightsError(f"{shown(shard)} lacks {_some(missing)}, which weight_map places there; get both again")
            if surplus := found.keys() - expected:
                raise WeightsError(
                    f"{shown(shard)} holds {_some(surplus)}, which weight_map does not place there; get both again"
                )
            tensors |= found
            common = set(metadata.items()) if common is None else common & metadata.items()
            stored += data_bytes
            if stored > MAX_BYTES:
                raise WeightsError(f"its shards hold over {MAX_BYTES} bytes in all, the most that is read")
        if total_size not in (None, stored):
            raise WeightsError(
                f"its total_size is {total_size!r:.40}, its shards hold {stored} bytes; get index and shards again"
            )
    return tensors, dict(sorted(common or ()))


def _read_index(path: str | os.PathLike[str]) -> tuple[dict[str, set[str]], Any]:
    """({shard: names of its tensors}, total_size or None)."""
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
        for name, shard in index["weight_map"].items():
            if not isinstance(shard, str) or not _plain(shard):
                raise WeightsError(
                    f"it places tensor {shown(name)} in {shown(shard)}, expected is the name of a {SUFFIX} file in its folder; "
                    "do not use it"
                )
            shards.setdefault(shard, set()).add(name)
        if len(shards) > MAX_SHARDS:
            raise WeightsError(f"it names {len(shards)} shards, at most {MAX_SHARDS} are read; merge them")
        return shards, metadata.get("total_size")


def _plain(name: str) -> bool:
    """Whether a file name is only that, under any operating system: no folder, drive, stream or control character in it."""
    return name.endswith(SUFFIX) and name != SUFFIX and name.isprintable() and not set(name) & set('/\\:*?"<>|')


def _some(names: set[str]) -> str:
    return ", ".join(shown(name) for name in sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
