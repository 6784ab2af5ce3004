"""Files that another implementation wrote: an .npz, a folder of .npy, or one of raw files with a manifest (see `manifest`).

They are what was computed once, on one input. Where that input is among them, `input` gives it back. Nothing is unpickled.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refvit.crosscheck.candidates.collect import as_array, dtype_of, floats
from refvit.crosscheck.candidates.manifest import Entry, read_entry, read_npy
from refvit.crosscheck.observed import Observed
from refvit.errors import ConfigError
from refvit.graph.ir import Array
from refvit.weights.readers.npz import read_npz
from refvit.weights.readers.safetensors import strict_json

MANIFEST = "manifest.json"
KIND = "refvit dump"  # of the manifests that it writes
INPUTS = ("input", "x", "pixel_values", "image", "images", "input.1", "input_0", "inputs", "data")  # usual names of the input
OUTPUTS = ("output", "logits", "scores", "boxes", "heatmaps")  # and of results
EXAMPLE = '{"stem.conv": {"file": "stem_conv.bin", "shape": [1, 16, 128, 128], "dtype": "float32", "layout": "nchw"}}'
LARGEST = 2**24  # bytes of a manifest


class Dumps:
    """A candidate that has run already.

    source: an .npz or a folder, or names and arrays. ConfigError or WeightsError say what is wrong with it.
    model, weights_sha256: what `refvit.dump` made it from, empty for what others made
    """

    def __init__(self, source: str | os.PathLike[str] | Mapping[str, Any], *, name: str = "") -> None:
        self._outputs: tuple[str, ...] = ()
        self._entries: dict[str, Entry] = {}
        self._parameters: dict[str, Array] = {}
        self._left_out: list[str] = []
        self._empty: list[str] = []
        self.model = self.weights_sha256 = ""
        self._input_name = ""
        if isinstance(source, Mapping):
            self.name = name or "arrays"
            self._add_plain((name, value, dtype_of(value)) for name, value in source.items())
        else:
            path = Path(source)
            self.name = name or path.name or str(path)
            self._read(path)
        if not self._entries:
            raise ConfigError(f"{self.name}: no array of floating-point numbers in it" + self._hint())
        named = tuple(n for n in OUTPUTS if n in self._entries)
        self._outputs = self._outputs or named

    @property
    def input(self) -> Array | None:
        """What it was computed from, floating (n, 3, h, w), if a dump has a usual name of it and such a shape."""
        for name in (self._input_name, *INPUTS):
            if name in self._entries:
                a, layout = self._entries[name].array, self._entries[name].layout
                a = a if a.ndim == 4 else a[None]
                if a.ndim == 4 and (layout.endswith("nhwc") or (not layout and a.shape[1] != 3)) and a.shape[3] == 3:
                    a = a.transpose(0, 3, 1, 2)
                if a.ndim == 4 and a.shape[1] == 3:
                    return np.ascontiguousarray(a, np.float64 if a.dtype == np.float64 else np.float32)
        return None

    def run(self, x: Array) -> Observed:
        """What there is; x, which it was made for, is not looked at."""
        notes = []
        if self._left_out:
            more = f" and {len(self._left_out) - 3} more" if len(self._left_out) > 3 else ""
            notes.append(
                f"{', '.join(self._left_out[:3])}{more}: integers without a scale, not compared; {MANIFEST} can give one"
            )
        if self._empty:
            notes.append(f"{', '.join(self._empty[:3])}: without any number, not compared")
        if fixed := sorted({e.dtype for e in self._entries.values() if "," in e.dtype}):
            notes.append(f"fixed point, integer and fraction bits beside the sign: {'; '.join(fixed)}")
        return Observed(
            {n: e.array for n, e in self._entries.items()},
            self._outputs,
            self._parameters,
            {n: e.layout for n, e in self._entries.items() if e.layout},
            {n: e.grid for n, e in self._entries.items() if e.grid is not None},
            {n: e.computed for n, e in self._entries.items()},
            notes=tuple(notes),
        )

    def _hint(self) -> str:
        if not self._left_out:
            return ""
        return f"; {', '.join(self._left_out[:3])} holds integers, for which {MANIFEST} has to give a scale"

    def _read(self, path: Path) -> None:
        if path.is_dir():
            self._read_folder(path)
        elif not path.exists():
            raise ConfigError(f"{path}: no such file or folder")
        elif path.suffix == ".npz":
            bfloat16 = set[str]()
            arrays = read_npz(path, bfloat16)
            self._add_plain((n, a, "bfloat16" if n in bfloat16 else a.dtype.name) for n, a in arrays.items())
        elif path.suffix == ".npy":
            self._add_plain([(path.stem, *read_npy(path))])
        elif path.suffix == ".json":
            self._read_manifest(path)
        else:
            raise ConfigError(f"{path}: an .npz, a folder, or its manifest, a .json, expected")

    def _read_folder(self, folder: Path) -> None:
        files = sorted((p for p in folder.rglob("*.npy") if p.is_file()), key=lambda p: natural(str(p)))
        manifests = [] if files else sorted(folder.glob("*.json"))  # beside arrays only what is called so is one
        if (folder / MANIFEST).is_file():
            manifests = [folder / MANIFEST]
        if len(manifests) > 1:
            names = ", ".join(m.name for m in manifests[:3])
            raise ConfigError(f"{folder}: {names} might be its manifest; call the right one {MANIFEST}")
        if manifests:
            self._read_manifest(manifests[0])
            return
        if not files:
            raw = next((p.name for p in sorted(folder.iterdir()) if p.suffix in (".bin", ".hex")), "")
            needs = f"; {raw} needs a {MANIFEST} such as {EXAMPLE}" if raw else f"; no .npy and no {MANIFEST} in it"
            raise ConfigError(f"{folder}: not a folder of dumps{needs}")
        self._add_plain((p.relative_to(folder).with_suffix("").as_posix(), *read_npy(p)) for p in files)

    def _read_manifest(self, path: Path) -> None:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path}: over {LARGEST} bytes, not a manifest")
        try:
            facts = strict_json(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:  # a WeightsError is a ValueError
            raise ConfigError(f"{path}: not a readable manifest: {error!s:.200}") from error
        if not isinstance(facts, dict) or not facts:
            raise ConfigError(f"{path}: an object of names expected, such as {EXAMPLE}")
        folder, listed = path.parent, isinstance(facts.get("values"), list)
        for name, given in _unique(path, facts["values"]) if listed else facts.items():
            self._entries[name] = read_entry(folder, name, given)
        if listed:
            self._read_facts(path, facts)

    def _read_facts(self, path: Path, facts: Mapping[str, Any]) -> None:
        """What `refvit.dump` says beside the values: parameters, which are results, which is the input."""
        parameters = facts.get("parameters", [])
        for name, given in _unique(path, parameters) if isinstance(parameters, list) else ():
            self._parameters[name] = read_entry(path.parent, name, given, parameter=True).array
        outputs, given = facts.get("outputs"), facts.get("input")
        if isinstance(outputs, dict):
            self._outputs = tuple(n for n in outputs.values() if isinstance(n, str) and n in self._entries)
        if isinstance(given, dict) and given.get("name") in self._entries:
            self._input_name = given["name"]
        if facts.get("kind") == KIND:  # others mean what they like by these
            self.model, self.weights_sha256 = str(facts.get("model", "")), str(facts.get("weights_sha256", ""))

    def _add_plain(self, items: Iterable[tuple[Any, Any, str]]) -> None:
        """Names, arrays and their dtypes, of which nothing else is said."""
        for name, value, dtype in items:
            if isinstance(name, str) and getattr(value, "size", 1) == 0:
                self._empty.append(name)
                continue
            a = as_array(value)
            if not isinstance(name, str) or a is None:
                raise ConfigError(
                    f"{self.name}: names and arrays of real numbers expected, got {name!r:.60}: {type(value).__name__}"
                )
            if floats(a):
                self._entries[name] = Entry(a, "", a.dtype.name, dtype or a.dtype.name)
            else:
                self._left_out.append(name)


def _unique(path: Path, values: list[Any]) -> Iterator[tuple[str, Any]]:
    """The name and the rest of each entry of a list. ConfigError for a name that is missing or there twice."""
    seen: set[str] = set()
    for given in values:
        name = given.get("name") if isinstance(given, dict) else None
        if not isinstance(name, str) or name in seen:
            what = "is there twice" if isinstance(name, str) else "is no name of an entry"
            raise ConfigError(f"{path}: {name!r:.60} {what}")
        seen.add(name)
        yield name, given


def natural(name: str) -> list[Any]:
    """A key that sorts "t2" before "t10"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
