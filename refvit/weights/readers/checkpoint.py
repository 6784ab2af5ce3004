"""Any weights file or folder: which format it is, told by its content and never by its name, and what is in it."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from refvit.errors import WeightsError
from refvit.graph.ir import Array
from refvit.weights.readers.limits import opened
from refvit.weights.readers.npz import read_npz
from refvit.weights.readers.safetensors import read_safetensors
from refvit.weights.readers.shards import read_index, read_shards
from refvit.weights.readers.torch_legacy import read_torch_legacy
from refvit.weights.readers.torch_state import state_of
from refvit.weights.readers.torch_zip import read_torch_zip

HEAD = 512
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled magic number
REFUSED = (  # first bytes, and what such a file is
    (b"\x89HDF", "an HDF5 file (Keras); export it to safetensors"),
    (b"\x08\x07", "an ONNX model; convert the checkpoint that it was exported from"),
    (b"\x08\x08", "an ONNX model; convert the checkpoint that it was exported from"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"<!DOC", "a web page; download the file itself"),
    (b"<html", "a web page; download the file itself"),
)
IN_A_FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Checkpoint:
    """tensors by name; format is "safetensors", "shards", "npz" or "torch"; metadata as the file has it, text to text.

    file: what was read, in a folder one of its files
    wrappers: the keys that led to the tensors in a nested PyTorch file
    """

    file: Path
    format: str
    tensors: Mapping[str, Array]
    metadata: Mapping[str, str] = field(default_factory=dict)
    wrappers: tuple[str, ...] = ()

    @functools.cached_property
    def sha256(self) -> str:
        """Of the file; of shards what `sha256sum INDEX SHARDS... | LC_ALL=C sort | sha256sum` says.

        Computed when it is asked for, since refvit's own files have a digest of their tensors.
        """
        if self.format != "shards":
            return _sha256(self.file)
        names = [self.file.name, *read_index(self.file).shards]
        listed = sorted(f"{_sha256(self.file.with_name(name))}  {name}\n" for name in names)
        return hashlib.sha256("".join(listed).encode()).hexdigest()


def read_checkpoint(path: str | os.PathLike[str], *, key: str | None = None, check_crc: bool = True) -> Checkpoint:
    """Read a file, or a folder as the Hugging Face hub has them. Nothing in it is executed.

    key: which of several nested checkpoints of a PyTorch file
    check_crc: False accepts a PyTorch file that was written without checksums

    WeightsError says what is wrong and what to do.
    """
    path = Path(path)
    try:
        folder = path.is_dir()
    except (OSError, ValueError) as error:
        raise WeightsError(f"{str(path)[:80]!r}: no name of a file ({error}); check it") from error
    if folder:
        found = [path / name for name in IN_A_FOLDER if (path / name).is_file()]
        if not found:
            raise WeightsError(f"{path}: a folder with none of {', '.join(IN_A_FOLDER)}; give the weights file itself")
        path = found[0]
    with opened(path) as (f, size):
        if not size:
            raise WeightsError(f"{path}: empty (0 bytes); copy or download it again")
        head = f.read(HEAD)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:  # first: a length may look like anything
        _no_key(path, key)
        tensors, metadata = read_safetensors(path)
        return Checkpoint(path, "safetensors", tensors, metadata)
    for start, what in REFUSED:
        if head.startswith(start):
            raise WeightsError(f"{path}: {what}")
    if head[:4] == b"PK\x03\x04":
        if _is_npz(head):
            _no_key(path, key)
            return Checkpoint(path, "npz", read_npz(path))
        tensors, wrappers = state_of(read_torch_zip(path, check_crc=check_crc), key=key)
        return Checkpoint(path, "torch", tensors, wrappers=tuple(wrappers))
    if head.startswith(LEGACY) or head[257:262] == b"ustar":
        tensors, wrappers = state_of(read_torch_legacy(path), key=key)
        return Checkpoint(path, "torch", tensors, wrappers=tuple(wrappers))
    if head[:1] == b"{":
        _no_key(path, key)
        tensors, metadata = read_shards(path, check_crc=check_crc)
        return Checkpoint(path, "shards", tensors, metadata)
    if head[8:9] == b"{":
        read_safetensors(path)  # raises: the header is longer than the file
    raise WeightsError(f"{path}: none of safetensors, .npz and PyTorch; it begins with {head[:8]!r}")


def _sha256(path: Path) -> str:
    with opened(path) as (f, _):
        return hashlib.file_digest(f, "sha256").hexdigest()


def _no_key(path: Path, key: str | None) -> None:
    if key is not None:
        raise WeightsError(f"{path}: key {key!r:.60} given, but only PyTorch files nest checkpoints; leave it out")


def _is_npz(head: bytes) -> bool:
    """By the name of the first entry: every one of an .npz ends in .npy, none of a PyTorch file does."""
    length = int.from_bytes(head[26:28], "little")
    return head[30 : 30 + length].endswith(b".npy")
