"""PyTorch checkpoints as torch.save wrote them before 1.6, and still does on request: pickles, then the storages.

In the order of the file: a magic number, the protocol version, a description of the machine, what was saved, a list of the
storages' keys, each as a pickle; then for every key the number of elements (int64) and the elements. There are no checksums.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

from refvit.errors import WeightsError
from refvit.weights.readers.limits import MAX_ENTRIES, opened, reading, shown
from refvit.weights.readers.pickle_subset import load
from refvit.weights.readers.torch_state import CALLS, Saved, Storage, View, storage_id

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


def read_torch_legacy(path: str | os.PathLike[str]) -> Saved:
    """What was saved, for `torch_state.state_of`.

    Nothing in the file is run, and its tensors stay in it until they are used. WeightsError for whatever is wrong with it. A
    changed byte in a storage cannot be noticed in this format.
    """
    with opened(path) as (f, size), reading(path, "PyTorch checkpoint (before 1.6)"):
        if not size:
            raise WeightsError("it is empty; get it again")
        data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        if data[257:262] == b"ustar":
            raise WeightsError("it is a tar archive, as torch wrote before 0.1.10; load it by torch and save it again")
        storages: dict[str, Storage] = {}
        whole = memoryview(data)
        position = _header(whole)
        tree, position = load(whole, position, calls=CALLS, persistent=lambda pid: _view(pid, data, storages))
        keys, position = load(whole, position)
        _place(storages, keys, data, position)
        return Saved(path, tree)


def _header(data: memoryview) -> int:
    """The position after magic number, protocol and system."""
    try:
        magic, position = load(data)
    except WeightsError:
        magic = None
    if type(magic) is not int or magic != MAGIC:
        raise WeightsError(f"it starts with {bytes(data[:8])!r}, not with torch's magic number; it is of another format")
    protocol, position = load(data, position)
    system, position = load(data, position)
    if type(protocol) is not int or protocol != PROTOCOL or type(system) is not dict:
        raise WeightsError(f"it is not of protocol {PROTOCOL}; load it by torch and save it again")
    if system.get("protocol_version") != PROTOCOL or system.get("little_endian") is not True:
        raise WeightsError("it was written on a big-endian machine; load it by torch and save it again on another")
    return position


def _view(pid: tuple[Any, ...], data: mmap.mmap, storages: dict[str, Storage]) -> View:
    """("storage", class, key, location, numel, None or (key of the view, first element, number of elements))."""
    key, dtype, itemsize, numel = storage_id(pid, 6)
    storage = storages.setdefault(key, Storage(data, dtype, itemsize, numel))
    if (storage.dtype, storage.numel) != (dtype, numel):
        raise WeightsError(f"storage {shown(key)} is declared in two ways; get the file again")
    if pid[5] is None:
        return View(storage, 0, numel)
    if type(pid[5]) is not tuple or len(pid[5]) != 3:
        raise WeightsError(f"a view of storage {shown(key)} that is not described by three values; get the file again")
    _, first, count = pid[5]
    if type(first) is not int or type(count) is not int or first < 0 or count < 0 or first + count > numel:
        raise WeightsError(f"a view of storage {shown(key)} is outside of its {numel} elements; get the file again")
    return View(storage, first, count)


def _place(storages: dict[str, Storage], keys: Any, data: mmap.mmap, position: int) -> None:
    """Find every storage behind the pickles, in the order of `keys`."""
    if type(keys) is not list or not all(type(key) is str for key in keys) or len(keys) > MAX_ENTRIES:
        raise WeightsError(f"its keys are not a list of at most {MAX_ENTRIES} texts; get the file again")
    if len(set(keys)) != len(keys) or set(keys) != storages.keys():
        raise WeightsError(f"it lists {len(keys)} storages, its tensors have {len(storages)} others; get the file again")
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(data[position : position + 8], "little", signed=True)
        storage.start = position + 8
        position = storage.start + storage.numel * storage.itemsize
        if position > len(data):
            raise WeightsError(f"it ends within storage {shown(key)}; get the file again, it is cut off")
        if count != storage.numel:
            raise WeightsError(f"storage {shown(key)} has {count} elements, {storage.numel} are declared; get the file again")
    if position != len(data):
        raise WeightsError(f"{len(data) - position} bytes follow its last storage; get the file again")
