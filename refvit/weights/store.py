"""refvit's weights files: safetensors, with everything that a result depends on in the metadata.

Beside the tensors, in the canonical names of the model, a file holds the config, the labels, the pre-processing, where the
weights came from, and a digest of the tensors, so that a file that was changed on the way is noticed. Nothing is executed on
reading, nothing is guessed, and a file is written whole or not at all.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refvit.errors import WeightsError
from refvit.files import write_atomic
from refvit.graph.ir import Array

FORMAT_VERSION = 1
DTYPES = ("float16", "float32", "float64")


@dataclass(frozen=True)
class Weights:
    """A converted checkpoint. `params` are read-only arrays in canonical names; `labels` is None without class names."""

    model: str  # name in the registry
    tag: str  # what follows the dot: mobilevit_xxs.cifar10
    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    labels: tuple[str, ...] | None
    source: Mapping[str, Any]  # layout, file name and sha256 of what was converted, and whatever else was recorded
    params: Mapping[str, Array]

    @property
    def name(self) -> str:
        return f"{self.model}.{self.tag}" if self.tag else self.model

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the tensors, see `digest`."""
        return digest(self.params)

    def astype(self, dtype: str) -> dict[str, Array]:
        """The parameters in another dtype, read-only."""
        return {name: _frozen(a.astype(dtype, copy=False)) for name, a in self.params.items()}


def _frozen(a: Array) -> Array:
    a = a.view()
    a.flags.writeable = False
    return a


def digest(params: Mapping[str, Array]) -> str:
    """sha256 over names, dtypes, shapes and little-endian bytes of the tensors, in the order of the names."""
    h = hashlib.sha256()
    for name in sorted(params):
        a = np.ascontiguousarray(params[name])
        a = a.astype(a.dtype.newbyteorder("<"), copy=False)
        h.update(f"{name} {a.dtype.name} {a.shape}\n".encode())
        h.update(a.data)
    return h.hexdigest()


def save(weights: Weights, path: str | os.PathLike[str], *, dtype: str | None = None) -> Path:
    """Write `weights` to `path`, tensors as `dtype` (default: as they are). An existing file is replaced in one step.

    WeightsError if the dtype is unknown or a value does not survive it.
    """
    from safetensors.numpy import save as serialise

    path = Path(path)
    params = dict(weights.params)
    if dtype is not None:
        if dtype not in DTYPES:
            raise WeightsError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        with np.errstate(over="ignore"):
            cast = {name: a.astype(dtype) for name, a in params.items()}
        if lost := [n for n, a in cast.items() if not np.array_equal(np.isfinite(a), np.isfinite(params[n]))]:
            raise WeightsError(f"{lost[0]}: its values do not fit into {dtype}")
        params = cast
    header = {
        "format_version": FORMAT_VERSION,
        "model": weights.model,
        "tag": weights.tag,
        "config": dict(weights.config),
        "preprocess": dict(weights.preprocess),
        "labels": None if weights.labels is None else list(weights.labels),
        "source": dict(weights.source),
        "sha256": digest(params),
    }
    data = serialise({n: np.ascontiguousarray(a) for n, a in params.items()}, {"refvit": json.dumps(header)})
    write_atomic(path, data)
    return path


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors (read-only) and metadata of any safetensors file; WeightsError for whatever is wrong with it."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file" if not path.exists() else f"{path}: not a file")
    try:
        with safe_open(path, framework="numpy") as f:
            metadata = dict(f.metadata() or {})
            return {name: _frozen(f.get_tensor(name)) for name in f.keys()}, metadata  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, TypeError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error


def load(path: str | os.PathLike[str]) -> Weights | None:
    """Read a file that `save` wrote; None if it is a safetensors file of another origin.

    WeightsError if the file is corrupt, its digest is wrong or its format is newer than this version of refvit.
    """
    params, metadata = read_safetensors(path)
    if "refvit" not in metadata:
        return None
    try:
        header = json.loads(metadata["refvit"])
        version = header["format_version"]
        if version > FORMAT_VERSION:
            raise WeightsError(
                f"{path}: written in weights format {version}; this refvit reads up to {FORMAT_VERSION}: upgrade refvit"
            )
        weights = Weights(
            model=header["model"],
            tag=header["tag"],
            config=header["config"],
            preprocess=header["preprocess"],
            labels=None if header["labels"] is None else tuple(header["labels"]),
            source=header["source"],
            params=params,
        )
        expected = header["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: its refvit metadata is damaged ({error!r})") from error
    if weights.sha256 != expected:
        raise WeightsError(
            f"{path}: the tensors are not those that were written: sha256 {weights.sha256[:16]}..., {str(expected)[:16]}... "
            "expected; get the file again"
        )
    return weights
