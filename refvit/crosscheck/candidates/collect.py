"""What every candidate returns: arrays and tensors of any library, alone or in tuples, lists, dicts and records of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from refvit.errors import ConfigError
from refvit.graph.ir import Array, dims

ROOT = "output"  # what the result of the whole is called
DEPTH = 8  # of tuples in tuples
R = TypeVar("R")


def leaves(value: Any, name: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Name and value of everything in `value` that is no container: name[0], name[key], name[key][0] ...; None is left out."""
    items: Any
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (tuple, list)):
        items = enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    else:
        if value is not None:
            yield name, value
        return
    if depth < DEPTH:
        for key, item in items:
            yield from leaves(item, f"{name}[{key}]", depth + 1)


def as_array(value: Any) -> Array | None:
    """A copy as an ndarray of a real dtype, or None for what is none: text, objects, complex numbers, empty arrays.

    Tensors of torch, TensorFlow and JAX are asked for their numbers. bfloat16 becomes float32, which is exact.
    """
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    if hasattr(value, "numpy") and callable(value.numpy):
        value = value.numpy()
    try:
        a = np.array(value, order="C")
    except (TypeError, ValueError):
        return None
    if a.dtype.name == "bfloat16":  # of ml_dtypes, which NumPy counts as raw bytes
        a = a.astype(np.float32)
    return a if a.dtype.kind in "fiub" and a.size else None


def dtype_of(value: Any) -> str:
    """The name of the dtype that an array or tensor of any library has, "" for what has none."""
    dtype = getattr(value, "dtype", "")
    return str(getattr(dtype, "name", dtype)).rpartition(".")[2]


def floats(a: Array) -> bool:
    """Whether it can be a value of a network, and not an index or a mask."""
    return a.dtype.kind == "f"


def attempt(what: str, shape: tuple[int, ...], run: Callable[[], R]) -> R:
    """run(); what somebody else's code raises becomes a ConfigError that says what was done."""
    try:
        return run()
    except (Exception, SystemExit) as error:  # an exit code of somebody else's must not become ours
        text = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{what} failed for an input of {dims(shape)}: {text:.400}") from error
