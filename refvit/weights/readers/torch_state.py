"""The tensors of a PyTorch checkpoint, and the state dict among what else was saved with it.

Reading the pickle gives a tree of dicts, lists and tuples whose tensors are `Tensor` records: which storage, where in it, which
shape. They are checked when they are made. Arrays are made of the tensors of one state dict alone, by `state_of`.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refvit.errors import WeightsError
from refvit.graph.ir import Array
from refvit.weights.readers.limits import (
    MAX_NAME,
    MAX_RANK,
    array_bytes,
    check_bool,
    check_name,
    from_bfloat16,
    native,
    reading,
    shown,
)
from refvit.weights.readers.pickle_subset import Call, Opaque

DTYPES = {
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "bfloat16": "<u2",
    "int8": "i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "uint8": "u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "bool": "?",
}
STORAGES = {  # class of a storage -> dtype and bytes of an element
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    "UntypedStorage": ("uint8", 1),
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
    "QInt8Storage": ("qint8", 1),
    "QUInt8Storage": ("quint8", 1),
    "QInt32Storage": ("qint32", 4),
    "QUInt4x2Storage": ("quint4x2", 1),
    "QUInt2x4Storage": ("quint2x4", 1),
}
WRAPPERS = {  # keys under which trainers save a model beside the optimizer and the like
    "state_dict",
    "model",
    "model_state",
    "model_state_dict",
    "module",
    "net",
    "network",
    "params",
    "weights",
    "ema",
    "ema_state_dict",
    "model_ema",
    "params_ema",
    "state_dict_ema",
    "teacher",
    "student",
}
MAX_WRAPPERS = 4
MAX_NUMBER = 1 << 62  # of anything that is counted
GROWTH = 4  # bytes of a state dict's arrays to those that the file stores: bfloat16 doubles, views may repeat
FREE_BYTES = 1 << 24  # of a checkpoint's arrays, below which no growth is asked for
SHOWN_STATES = 8


@dataclass(slots=True, eq=False)
class Storage:
    """A run of elements in the file. `start` is its byte there, known once the file's storages are found."""

    data: mmap.mmap
    dtype: str
    itemsize: int
    numel: int
    start: int = -1


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """Elements first ... first + numel - 1 of a storage."""

    storage: Storage
    first: int
    numel: int


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """The elements sum(index * stride) from byte `begin` of a storage on. `problem` says why there is no array of them."""

    storage: Storage
    begin: int
    dtype: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    problem: str = ""


@dataclass(frozen=True)
class Saved:
    """What a reader found: dicts, lists and tuples with `Tensor` records and `Opaque` objects, and the file they are in."""

    path: str | os.PathLike[str]
    tree: Any


# what the pickle calls


def storage_id(pid: tuple[Any, ...], parts: int) -> tuple[str, str, int, int]:
    """Key, dtype, bytes of an element and number of elements from the id ("storage", class, key, location, numel, ...)."""
    if pid[:1] == ("module",):
        raise WeightsError("a whole module was saved; load it with the program that made it and save its state_dict()")
    if len(pid) != parts or pid[0] != "storage":
        raise WeightsError(f"an id of {len(pid)} parts, expected is that of a storage, with {parts}; get the file again")
    kind, key, numel = pid[1], pid[2], pid[4]
    if type(kind) is not Opaque or kind.name not in STORAGES or kind.module not in ("torch", "torch.storage", "torch.cuda"):
        named = shown(str(kind)) if type(kind) is Opaque else f"a {type(kind).__name__}"
        raise WeightsError(f"a storage of the unknown class {named}; save the state_dict() as float32")
    if type(key) is not str or len(key) > MAX_NAME or not _counts(numel):
        raise WeightsError("a storage whose key is no short text or whose size is no number; get the file again")
    return key, *STORAGES[kind.name], numel


def _counts(*numbers: Any) -> bool:
    return all(type(n) is int and 0 <= n < MAX_NUMBER for n in numbers)


def _tensor(view: Any, offset: Any, size: Any, stride: Any, dtype: str = "", problem: str = "") -> Tensor:
    """A record of which every element is in the view. `dtype` is given where the storage has bytes only."""
    if type(view) is not View or (dtype and view.storage.dtype != "uint8"):
        raise WeightsError("a tensor without a storage of its own kind; get the file again")
    if any(type(t) is not tuple or len(t) > MAX_RANK for t in (size, stride)) or len(size) != len(stride):
        raise WeightsError(f"size and stride have to be two tuples of at most {MAX_RANK} numbers; get the file again")
    if not _counts(offset, *size, *stride):
        raise WeightsError("offset, size and stride have to be whole numbers from 0 on; get the file again")
    itemsize, numel = view.storage.itemsize, view.numel
    if dtype in DTYPES:
        itemsize = np.dtype(DTYPES[dtype]).itemsize
        numel //= itemsize
    dtype = dtype or view.storage.dtype
    if dtype not in DTYPES:
        problem = f"is {shown(dtype)}"
    reach = 0  # of an empty tensor: its offset may be anything
    if all(size):
        reach = offset + 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if reach > numel:
        raise WeightsError(f"its elements reach {reach}, its storage has {numel}; get the file again")
    return Tensor(view.storage, view.first * view.storage.itemsize + offset * itemsize, dtype, size, stride, problem)


def _rebuild(args: tuple[Any, ...]) -> Tensor:
    """_rebuild_tensor(storage, offset, size, stride) and _v2(..., requires_grad, hooks[, flags])."""
    if len(args) not in (4, 6, 7):
        raise WeightsError(f"a tensor made from {len(args)} values, not 4, 6 or 7; get the file again")
    view, offset, size, stride = args[:4]
    return _tensor(view, offset, size, stride, problem="has flags, such as conj or neg" if len(args) == 7 and args[6] else "")


def _rebuild_v3(args: tuple[Any, ...]) -> Tensor:
    """_rebuild_tensor_v3(bytes, offset, size, stride, requires_grad, hooks, dtype[, flags])."""
    if len(args) not in (7, 8) or type(args[6]) is not Opaque:
        raise WeightsError("a tensor of bytes that lacks its dtype; get the file again")
    view, offset, size, stride, _, _, dtype = args[:7]
    flags = "has flags" if len(args) == 8 and args[7] else ""
    return _tensor(view, offset, size, stride, str(dtype).removeprefix("torch."), flags)


def _parameter(args: tuple[Any, ...]) -> Any:
    """_rebuild_parameter(tensor, requires_grad, hooks), and the same with a state."""
    if not args or not _is_tensor(args[0]):
        raise WeightsError("a parameter that is not made from a tensor; get the file again")
    return args[0]


def _size(args: tuple[Any, ...]) -> Any:
    if len(args) != 1 or type(args[0]) is not tuple:
        raise WeightsError("a torch.Size that is not made from a tuple; get the file again")
    return args[0]


CALLS: Mapping[tuple[str, str], Call] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch", "Size"): _size,
}


# the state dict


def state_of(saved: Saved, *, key: str | None = None) -> tuple[dict[str, Array], list[str]]:
    """(arrays by name, the keys that led to them) of the one state dict in what a reader found.

    Wrappers such as {"state_dict": ..., "optimizer": ...} are looked into. Where several state dicts are found, or one under
    a key that is not usual, `key` says which: "model_ema", or "ema.model" for nested ones, or "" for the outermost dict. What
    is not a tensor is left out. If all names begin with "module." (DataParallel), that is removed, and "module." ends the keys.

    The arrays are read-only, native and contiguous; bfloat16 becomes float32, which is exact. Where possible they are windows
    into the file, which must not be rewritten in place while they are used. Tensors that are the same in the file are the same
    array. WeightsError if the choice is open, or for tensors that NumPy has no array for, by their names.
    """
    with reading(saved.path, "PyTorch checkpoint"):
        path, found = _choose(_states(saved.tree), saved.tree, key)
        arrays, prefix = strip_prefix(_arrays(found), ("module.",))
        return arrays, [*path, *([prefix] if prefix else [])]


def shard_of(saved: Saved, free: int = FREE_BYTES) -> tuple[dict[str, Array], set[int]]:
    """(arrays by name, bytes as stored) of a file that is one state dict and nothing else, as the shards of a checkpoint are.

    Names stay as they are. The bytes are counted in two ways: those of the storages, and those of the tensors' elements, which
    differ where tensors are parts of a storage or share one. Otherwise as `state_of`.

    free: bytes of arrays for which no growth is asked; those of all shards together are bounded by what the caller leaves here
    """
    with reading(saved.path, "PyTorch checkpoint"):
        if type(saved.tree) is not dict:
            raise WeightsError("a shard is a dict of names and tensors; save the state_dict() again")
        if strange := [name for name, value in saved.tree.items() if type(name) is not str or not _is_tensor(value)]:
            raise WeightsError(f"{shown(strange[0])} in it is no tensor, as all in a shard are; get the file again")
        arrays = _arrays(saved.tree, free)
        tensors = list(saved.tree.values())
        elements = sum(math.prod(t.size) * np.dtype(DTYPES[t.dtype]).itemsize for t in tensors)
        return arrays, {elements, sum(s.numel * s.itemsize for s in {t.storage for t in tensors})}


def _arrays(found: dict[Any, Any], free: int = FREE_BYTES) -> dict[str, Array]:
    """The arrays of a state dict; what is not a tensor is left out."""
    same = {}  # name -> what makes it the same array as another
    for name, value in found.items():
        if type(name) is str and _is_tensor(value):
            check_name(name)
            if type(value) is Opaque or value.problem:
                problem = f"is made by {shown(str(value))}" if type(value) is Opaque else value.problem
                raise WeightsError(f"tensor {shown(name)} {problem}; make it a plain one, such as float32, and save again")
            array_bytes(value.size, 8, name)
            same[name] = (value.storage, value.begin, value.dtype, value.size, value.stride)
    total = sum(math.prod(size) * np.dtype(DTYPES[dtype]).itemsize for _, _, dtype, size, _ in set(same.values()))
    stored = sum(s.numel * s.itemsize for s in {s for s, *_ in same.values()})
    if total > max(GROWTH * stored, free):
        raise WeightsError(
            f"its tensors would take {total} bytes, but only {stored} are stored: they repeat; clone() them first"
        )
    made = {what: _array(found[name], name) for name, what in same.items()}
    return {name: made[what] for name, what in same.items()}


def strip_prefix(state: Mapping[str, Array], prefixes: Sequence[str]) -> tuple[dict[str, Array], str]:
    """The state without the first of `prefixes` that all its names have, and that prefix; "" and the same if none is."""
    prefix = next((p for p in prefixes if state and all(len(name) > len(p) and name.startswith(p) for name in state)), "")
    return {name.removeprefix(prefix): value for name, value in state.items()}, prefix


def _array(tensor: Tensor, name: str) -> Array:
    dtype = np.dtype(DTYPES[tensor.dtype])
    if 0 in tensor.size:
        a = np.empty(tensor.size, dtype)
    else:
        strides = [s * dtype.itemsize if n > 1 else 0 for n, s in zip(tensor.size, tensor.stride, strict=True)]
        storage = tensor.storage
        a = np.ndarray(tensor.size, dtype, storage.data, storage.start + tensor.begin, strides)  # NumPy checks the reach again
    if tensor.dtype == "bool":
        check_bool(a, name)
    return native(from_bfloat16(a) if tensor.dtype == "bfloat16" else a)


def _is_tensor(value: Any) -> bool:
    """A record, or what only torch or NumPy can make an array of: sparse, quantised, pickled by NumPy."""
    if type(value) is not Opaque:
        return type(value) is Tensor
    array = value.module.startswith("numpy") and value.name in ("_reconstruct", "_frombuffer")
    return array or value.module in ("torch._utils", "torch._tensor")


def _weighs(state: dict[Any, Any]) -> bool:
    """Whether there is more in it than counters, best accuracies and states of random generators."""
    return any(type(v) is Tensor and v.dtype != "uint8" and math.prod(v.size) > 1 for v in state.values())


def _states(tree: Any) -> dict[tuple[str, ...], dict[Any, Any]]:
    """Every dict that holds tensors, by the text keys that lead to it, outermost first."""
    found: dict[tuple[str, ...], dict[Any, Any]] = {}
    queue: list[tuple[tuple[str, ...], Any]] = [((), tree)] if type(tree) is dict else []
    seen = set()
    for path, node in queue:
        if id(node) not in seen:
            seen.add(id(node))
            if any(_is_tensor(v) for k, v in node.items() if type(k) is str):
                found[path] = node
            if len(path) < MAX_WRAPPERS:
                queue += [((*path, k), v) for k, v in node.items() if type(v) is dict and type(k) is str and len(k) <= MAX_NAME]
    return {path: node for path, node in found.items() if _weighs(node)} or found


def _choose(
    states: dict[tuple[str, ...], dict[Any, Any]], tree: Any, key: str | None
) -> tuple[tuple[str, ...], dict[Any, Any]]:
    """The state dict under `key`, or the only one under usual keys."""
    if not states:
        what = f"an object of {shown(str(tree))}" if type(tree) is Opaque else f"a {type(tree).__name__}"
        raise WeightsError(
            f"it holds {what} and no dict of names and tensors; load it where it was made, save the state_dict()"
        )
    if key is None:
        fit = [path for path in states if WRAPPERS.issuperset(path)]
    else:
        joined = [(".".join(path), path) for path in states]
        fit = [path for name, path in joined if name == key] or [path for name, path in joined if name.startswith(f"{key}.")]
    if len(fit) == 1:
        return fit[0], states[fit[0]]
    listed = fit or list(states)
    keys = [f"key={shown('.'.join(path))}" for path in listed[:SHOWN_STATES]]
    names = [f"{key} ({sum(map(_is_tensor, states[path].values()))} tensors)" for key, path in zip(keys, listed, strict=False)]
    more = f" and {len(listed) - SHOWN_STATES} more" if len(listed) > SHOWN_STATES else ""
    asked = "" if key is None else f", none or several are {shown(key)}"
    raise WeightsError(f"it holds {len(states)} sets of tensors{asked}; say which one by {' or '.join(names)}{more}", *keys)
