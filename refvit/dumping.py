"""Golden intermediates in files, for an implementation that starts from nothing or cannot run Python."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refvit.crosscheck.candidates.dumps import KIND, MANIFEST
from refvit.crosscheck.forms import FileNames, Form, fixed_point
from refvit.crosscheck.maps import maps
from refvit.crosscheck.segments import run
from refvit.crosscheck.subject import Given, given, reference
from refvit.errors import ConfigError
from refvit.graph.ir import Array, Graph
from refvit.loading import WeightsSource
from refvit.model import Model

VERSION = 1


def dump(
    model: str | Model,
    output: str | os.PathLike[str],
    *,
    weights: WeightsSource | None = None,
    image: Any = None,
    input: Any = None,
    nodes: str | Sequence[str] = "*",
    format: str = "npy",
    dtype: str = "float32",
    fixed_point: Any = None,
    layout: str = "nchw",
    tile: tuple[int, int] | None = None,
    weights_too: bool = False,
    force: bool = False,
    **fields: Any,
) -> dict[str, Any]:
    """Write what the model computes on the way, in float64, to files in the folder `output`; returns its manifest.

    model, weights, fields: as in `refvit.load`, or a loaded Model
    image, input: an image as `refvit.infer` takes, or x, floating (n, 3, h, w), already pre-processed; without either the input
        is seeded. Everything is computed from the input as it is stored: in fixed point that is the rounded one.
    nodes: wildcard patterns of the names of `Model.intermediates`; the input and the outputs are always there
    format: "npy"; "bin", raw little-endian; "hex", one word a line, as $readmemh reads it
    dtype: "float32" or "float64", what the float64 values are rounded to
    fixed_point: (s, f) writes integers instead, with a sign, s integer and f fraction bits; rounded half to even, saturating.
        How many saturated is in the manifest, and a warning says so.
    layout: "nchw", or "nhwc" for maps with channels last and convolutions' weights as (k, r, s, c)
    tile: (rows, columns) cuts every map into tiles, each in its own file
    weights_too: the parameters in the same form, in the folder "weights"
    force: replace what an earlier dump wrote there

    The folder appears whole or not at all. manifest.json names each value's file, shape, dtype, layout, scale, zero point and
    sha256, the model, the weights' sha256, the pre-processing and versions. `refvit.check(folder, model)` reads it back.

    Raises ConfigError, ShapeError, ImageError, WeightsError, which say what to do.
    """
    form = _form(format, dtype, fixed_point, layout, tile)
    target = _target(output, force)
    golden = reference(model, weights, fields)
    seen = given(golden, image, input)
    graph = golden.graph(seen.x.shape, expand=True)
    wanted = _wanted(graph, [nodes] if isinstance(nodes, str) else list(nodes))
    facts = _facts(golden, graph, seen, form, wanted)
    temporary = target.parent / f".refvit-{secrets.token_hex(8)}.tmp"
    temporary.mkdir(parents=True)
    try:
        writer = _Writer(temporary, form)
        spatial = maps(graph)
        for name, a in _values(graph, form.kept(seen.x), set(wanted)):
            also = {"also": wanted[name][1:]} if len(wanted[name]) > 1 else {}
            facts["values"].append({"name": wanted[name][0], **also, **writer.value(wanted[name][0], a, name in spatial)})
        kernels = {node.inputs[1] for node in graph if node.op == "conv2d"}
        for name, parameter in graph.params.items() if weights_too else ():
            facts["parameters"].append({"name": name, **writer.parameter(name, parameter, name in kernels)})
        text = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False)
        (temporary / MANIFEST).write_text(text, "utf-8")
        _replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _warn([e for part in ("values", "parameters") for e in facts[part] if e.get("saturated")], form)
    return facts


def _form(format: str, dtype: str, fixed: Any, layout: str, tile: Any) -> Form:
    return Form(format, dtype, fixed_point(fixed), layout, tuple(tile) if isinstance(tile, list) else tile)


def _target(output: str | os.PathLike[str], force: bool) -> Path:
    """The folder to make. ConfigError where something is in the way, before any work is done."""
    if not os.fspath(output):
        raise ConfigError("output: the name of a folder expected, got an empty text", "output")
    target = Path(os.path.realpath(output))
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return target
    if not target.is_dir():
        raise ConfigError(f"{output}: a file; give the name of a folder that does not exist yet")
    if not force:
        raise ConfigError(f"{output}: exists; give another folder, or force=True to replace an earlier dump", "force=True")
    try:
        earlier = json.loads((target / MANIFEST).read_text("utf-8")).get("kind") == KIND
    except (OSError, ValueError, AttributeError):
        earlier = False
    if not earlier:
        raise ConfigError(
            f"{output}: not replaced, because no {MANIFEST} there says that an earlier dump made it; remove it first"
        )
    return target


def _replace(temporary: Path, target: Path) -> None:
    """The new folder at its place; of an earlier one nothing stays."""
    old = target.parent / f".refvit-{secrets.token_hex(8)}.old"
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(temporary, target)
    except BaseException:
        if old.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _wanted(graph: Graph, patterns: list[str]) -> dict[str, list[str]]:
    """Value -> those of its names that were asked for; the input and the outputs are always among them."""
    names = {**{name: name for name in graph.inputs}, **graph.names()}
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise ConfigError(f"nodes: wildcard patterns of names expected, got {pattern!r:.60}")
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, list(names), 3) or list(names)[:3]
            raise ConfigError(
                f"nodes: no name matches {pattern!r}; there are {', '.join(near)} and {len(names) - len(near)} more"
            )
    always = {*graph.inputs, *graph.outputs.values()}
    wanted: dict[str, list[str]] = {}
    for name, value in names.items():
        if any(fnmatch.fnmatchcase(name, p) for p in patterns) or (name == value and name in always):
            wanted.setdefault(value, []).append(name)
    return wanted


def _values(graph: Graph, x: Array, wanted: set[str]) -> Iterator[tuple[str, Array]]:
    """The wanted values as they are computed."""
    start = dict.fromkeys(graph.inputs, x)
    yield from start.items()
    yield from run(graph, start, graph.params, wanted)


class _Writer:
    """Files of one folder, and what the manifest says of each."""

    def __init__(self, folder: Path, form: Form) -> None:
        self.folder, self.form, self.names = folder, form, FileNames()

    def value(self, name: str, a: Array, spatial: bool) -> dict[str, Any]:
        form, last = self.form, self.form.layout == "nhwc"
        words, saturated = form.words(a.transpose(0, 2, 3, 1) if spatial and last else a)
        entry = self._entry(words, saturated, form.layout if spatial else None)
        if form.tile is None or not spatial:
            return entry | self._write(words, name, "")
        rows, columns = form.tile
        first = 1 if last else 2
        h, w = words.shape[first : first + 2]
        tiles = []
        for row in range(0, h, rows):
            for column in range(0, w, columns):
                where = (slice(None),) * first + (slice(row, row + rows), slice(column, column + columns))
                part = words[where]
                place = {"row": row, "column": column, "shape": list(part.shape)}
                tiles.append(place | self._write(part, f"{name}.r{row}c{column}", ""))
        return entry | {"tiles": tiles}

    def parameter(self, name: str, a: Any, kernel: bool) -> dict[str, Any]:
        last = self.form.layout == "nhwc"
        words, saturated = self.form.words(a.transpose(0, 2, 3, 1) if kernel and last else a)
        return self._entry(words, saturated, ("krsc" if last else "kcrs") if kernel else None) | self._write(
            words, name, "weights"
        )

    def _entry(self, words: Array, saturated: int, layout: str | None) -> dict[str, Any]:
        entry = {
            "shape": list(words.shape),
            "dtype": words.dtype.name,
            "layout": layout,
            "scale": self.form.scale,
            "zero_point": 0,
        }
        fixed = self.form.fixed_point
        if fixed:
            entry |= {"bits": fixed.bits, "integer_bits": fixed.integer, "fraction_bits": fixed.fraction}
            entry["saturated"] = saturated
        return entry

    def _write(self, words: Array, name: str, folder: str) -> dict[str, str]:
        data = self.form.encoded(words)
        (self.folder / folder).mkdir(exist_ok=True)
        file = self.names(name, f".{self.form.format}")
        (self.folder / folder / file).write_bytes(data)
        return {"file": f"{folder}/{file}" if folder else file, "sha256": hashlib.sha256(data).hexdigest()}


def _facts(model: Model, graph: Graph, seen: Given, form: Form, wanted: Mapping[str, list[str]]) -> dict[str, Any]:
    provenance = model._provenance()
    fixed = form.fixed_point
    return {
        "kind": KIND,
        "version": VERSION,
        "model": model.name,
        "task": model.task,
        "weights_sha256": provenance["weights_sha256"],
        "weights_source": provenance["weights_source"],
        "input": {"name": wanted[next(iter(graph.inputs))][0], "what": seen.text, "notes": list(seen.notes)},
        "preprocess": provenance["preprocess"],
        "computed_in": "float64",
        "format": form.format,
        "layout": form.layout,
        "fixed_point": fixed and {"integer_bits": fixed.integer, "fraction_bits": fixed.fraction, "rounding": "half to even"},
        "tile": form.tile and list(form.tile),
        "outputs": {public: wanted[value][0] for public, value in graph.outputs.items()},
        "versions": provenance["versions"],
        "values": [],
        "parameters": [],
    }


def _warn(saturated: list[dict[str, Any]], form: Form) -> None:
    if saturated and form.fixed_point:
        worst = max(saturated, key=lambda e: e["saturated"])
        fixed = form.fixed_point
        warnings.warn(
            f"{len(saturated)} arrays hold values that do not fit into {fixed.integer} integer bits and were saturated, most "
            f"of them {worst['name']}: {worst['saturated']} of {int(np.prod(worst['shape'])):,}; give more integer bits",
            stacklevel=3,
        )
