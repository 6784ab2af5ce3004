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
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refvit.errors import WeightsError
from refvit.files import write_atomic
from refvit.graph.ir import Array
from refvit.weights.readers.safetensors import read_safetensors, strict_json

FORMAT_VERSION = 1
KEY = "refvit"  # in the metadata of safetensors
DTYPES = ("float16", "float32", "float64")
CODES = {"float16": "F16", "float32": "F32", "float64": "F64", "int64": "I64"}  # of the safetensors format


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
    postprocess: Mapping[str, Any] = field(default_factory=dict)  # of the task; fields that are missing have their defaults

    @property
    def name(self) -> str:
        return f"{self.model}.{self.tag}" if self.tag else self.model

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the tensors, see `digest`."""
        return digest(self.params)

    def astype(self, dtype: str) -> dict[str, Array]:
        """The parameters in another dtype, read-only. WeightsError if a finite value does not fit into it."""
        with np.errstate(over="ignore"):
            cast = {name: frozen(a.astype(dtype, copy=False)) for name, a in self.params.items()}
        for name, a in cast.items():
            if not np.array_equal(np.isfinite(a), np.isfinite(self.params[name])):
                raise WeightsError(f"weights {self.name}: {name} holds values too large for {dtype}")
        return cast


def frozen(a: Array) -> Array:
    """A view that cannot be written to."""
    a = a.view()
    a.flags.writeable = False
    return a


def digest(params: Mapping[str, Array]) -> str:
    """sha256 over names, dtypes, shapes and little-endian bytes of the tensors, in the order of the names."""
    h = hashlib.sha256()
    for name in sorted(params):
        a = np.asarray(params[name], order="C")
        a = a.astype(a.dtype.newbyteorder("<"), copy=False)
        h.update(f"{name} {a.dtype.name} {a.shape}\n".encode())
        h.update(a.reshape(-1).data)
    return h.hexdigest()


def _header_digest(header: Mapping[str, Any]) -> str:
    """sha256 over everything in the metadata but itself, so that a changed label or eps is noticed like a changed tensor."""
    rest = {key: value for key, value in header.items() if key != "header_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def save(weights: Weights, path: str | os.PathLike[str], *, dtype: str | None = None) -> Path:
    """Write `weights` to `path`, tensors as `dtype` (default: as they are). An existing file is replaced in one step.

    WeightsError if the dtype is unknown or a value does not fit into it, or if something else is no JSON.
    """
    path = Path(path)
    params = weights.params
    if dtype is not None:
        if dtype not in DTYPES:
            raise WeightsError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        params = weights.astype(dtype)
    header = {
        "format_version": FORMAT_VERSION,
        "model": weights.model,
        "tag": weights.tag,
        "config": dict(weights.config),
        "preprocess": dict(weights.preprocess),
        "postprocess": dict(weights.postprocess),
        "labels": None if weights.labels is None else list(weights.labels),
        "source": dict(weights.source),
        "sha256": weights.sha256 if params is weights.params else digest(params),
    }
    try:
        json.dumps(header, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: what belongs to these weights cannot be written as JSON ({error}); change this label or field"
        ) from error
    header["header_sha256"] = _header_digest(header)
    write_atomic(path, serialised(params, {KEY: json.dumps(header)}))
    return path


def serialised(params: Mapping[str, Array], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """A safetensors file in parts, so that nothing is held twice: header, then the tensors, wide items first for alignment."""
    arrays = {n: np.asarray(params[n], order="C") for n in sorted(params, key=lambda n: (-params[n].itemsize, n))}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, a in arrays.items():
        start, end = end, end + a.nbytes
        header[name] = {"dtype": CODES[a.dtype.name], "shape": list(a.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for a in arrays.values():
        yield a.astype(a.dtype.newbyteorder("<"), copy=False).reshape(-1).data


def load(path: str | os.PathLike[str]) -> Weights | None:
    """Read a file that `save` wrote; None if it is a safetensors file of another origin.

    WeightsError if the file is corrupt, its digest is wrong or its format is newer than this version of refvit.
    """
    params, metadata = read_safetensors(path)
    return parse(path, params, metadata) if KEY in metadata else None


def parse(path: str | os.PathLike[str], params: Mapping[str, Array], metadata: Mapping[str, str]) -> Weights:
    """Weights of the tensors and metadata that a file of refvit's holds; errors as in `load`."""
    try:
        header = strict_json(metadata[KEY].encode())
        version = header["format_version"]
        if type(version) is not int or version < 1:
            raise ValueError(f"format_version is {version!r:.40}")
        if version > FORMAT_VERSION:
            raise WeightsError(
                f"{path}: written in weights format {version}; this refvit reads up to {FORMAT_VERSION}: upgrade refvit"
            )
        kinds: dict[str, Any] = {
            "model": str,
            "tag": str,
            "config": dict,
            "preprocess": dict,
            "postprocess": dict,
            "source": dict,
            "labels": (list, type(None)),
        }
        fields = {"postprocess": {}} | {name: header[name] for name in kinds if name != "postprocess" or name in header}
        for name, kind in kinds.items():
            if not isinstance(fields[name], kind):
                raise ValueError(f"{name} is {fields[name]!r:.40}")
        labels = fields.pop("labels")
        assumed, left_out = fields["source"].get("assumed", []), fields["source"].get("left_out", {})
        if not isinstance(left_out, dict):
            raise ValueError(f"source.left_out is {left_out!r:.40}")
        for what, names in (("labels", labels or []), ("source.assumed", assumed), *left_out.items()):
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"a list of names expected in {what:.40}, it has {names!r:.40}")
        weights = Weights(labels=None if labels is None else tuple(labels), params=params, **fields)
        expected, header_expected, header_found = header["sha256"], header["header_sha256"], _header_digest(header)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, WeightsError):
            raise
        reason = f"{error} missing" if isinstance(error, KeyError) else error
        raise WeightsError(f"{path}: its refvit metadata is damaged ({reason}); get the file again") from error
    for what, found, written in (("metadata", header_found, header_expected), ("tensors", weights.sha256, expected)):
        if found != written:
            raise WeightsError(
                f"{path}: its {what} are not those that were written: sha256 {found[:16]}..., {str(written)[:16]}... expected; "
                "get the file again"
            )
    return weights
