"""An ONNX model under onnxruntime: every value that it computes, by making them all outputs.

Observing can change what is observed: onnxruntime does not fuse across a value that is asked for. So the model also runs as it
is. Where its outputs are then others, by more than rounding, those are judged, and a note says so.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from refvit.crosscheck.candidates.collect import as_array, attempt, floats
from refvit.crosscheck.candidates.located import Located, path_of_scopes, path_of_slashes
from refvit.crosscheck.candidates.onnx_layers import layers
from refvit.crosscheck.observed import Observed
from refvit.errors import BackendError, ConfigError
from refvit.graph.ir import Array, dims

LEVELS = {"none": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
LARGEST = 2**31 - 1  # bytes of a protobuf message
EXTERNAL = "session.model_external_initializers_file_folder_path"
SCOPES = "pkg.torch.onnx.name_scopes"
# Operators of integers, and where among their inputs the scale and the zero point of the result are.
QUANTISED = {"QuantizeLinear": 1, "QLinearConv": 6, "QLinearMatMul": 6, "QLinearAdd": 6, "QLinearMul": 6, "QLinearSigmoid": 3}
INSTALL = "pip install 'refvit[check]'"
SHOWN = 3  # names in a note
CHANGED = 64  # ulp: more than another order of additions makes of a whole network


class OnnxFile:
    """A candidate.

    model: a path, the bytes of a file, or an onnx.ModelProto
    optimisation: of the graph by onnxruntime, "none", "basic", "extended" or "all"
    outputs_only: show the model's own outputs alone, and run it as it is
    providers: onnxruntime's execution providers; by default the CPU's
    """

    def __init__(
        self,
        model: Any,
        *,
        name: str = "",
        optimisation: str = "all",
        outputs_only: bool = False,
        providers: list[Any] | None = None,
    ) -> None:
        if optimisation not in LEVELS:
            raise ConfigError(f"optimisation={optimisation!r}: one of {', '.join(LEVELS)} expected", "optimisation=")
        path = Path(model) if isinstance(model, (str, os.PathLike)) else None
        if path is not None and not path.is_file():
            raise ConfigError(f"{path}: no such ONNX file")
        self.name = name or (path.name if path else "ONNX model")
        self._model, self._path = model, path
        self._level, self._outputs_only = optimisation, outputs_only
        self._providers = providers or ["CPUExecutionProvider"]

    def run(self, x: Array) -> Observed:
        """ConfigError if it cannot be loaded or run, or does not take one image tensor; BackendError for what is to install."""
        plain = self._session(self._bytes() if self._path is None else None)
        feed, said = self._feed(plain, x)
        names = [o.name for o in plain.get_outputs()]
        outputs = attempt(f"{self.name} (an ONNX model)", x.shape, lambda: plain.run(None, feed))
        values = {n: a for n, y in zip(names, outputs, strict=True) if (a := as_array(y)) is not None and floats(a)}
        if self._outputs_only:
            return Located(values, tuple(values), notes=tuple(said))
        return _Opened(self._open(), self._path).observe(self, x, feed, values, said)

    def _bytes(self) -> bytes:
        if isinstance(self._model, (bytes, bytearray, memoryview)):
            return bytes(self._model)
        too_large = f"{self.name}: over 2 GB, which no ONNX message can hold; save it with external data and give its path"
        try:
            data: bytes = self._model.SerializeToString()
        except ValueError as error:
            raise ConfigError(too_large) from error
        if len(data) > LARGEST:
            raise ConfigError(too_large)
        return data

    def _open(self) -> Any:
        """The model as a ModelProto, a copy; large weights stay in their files."""
        try:
            onnx = importlib.import_module("onnx")
        except ImportError as error:
            raise BackendError(
                f"{self.name}: to show its inner values the package onnx is needed, which is not installed; {INSTALL}, or say "
                "outputs_only=True"
            ) from error
        if self._path is None:
            opened = onnx.load_from_string(self._bytes())
        else:
            opened = attempt_load(self.name, lambda: onnx.load(str(self._path), load_external_data=False))
        if opened.functions:
            opened = importlib.import_module("onnx.inliner").inline_local_functions(opened)
        return opened

    def _session(self, data: bytes | None, level: str | None = None) -> Any:
        """`data`, or the file itself."""
        try:
            onnxruntime = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise BackendError(f"{self.name}: onnxruntime is not installed; {INSTALL}") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level or self._level])
        if data is not None and self._path is not None:
            options.add_session_config_entry(EXTERNAL, str(self._path.parent.resolve()))
        source = str(self._path) if data is None else data
        return attempt_load(self.name, lambda: onnxruntime.InferenceSession(source, options, providers=self._providers))

    def _feed(self, session: Any, x: Array) -> tuple[dict[str, Array], list[str]]:
        """The input as this model wants it, and what there is to say about that."""
        wanted = session.get_inputs()
        if len(wanted) != 1:
            names = ", ".join(i.name for i in wanted) or "none"
            raise ConfigError(f"{self.name}: a model of one input, the image, expected; its inputs are {names}")
        name, kind, shape = wanted[0].name, wanted[0].type, wanted[0].shape
        if kind not in FLOATS:
            raise ConfigError(f"{self.name}: its input {name} is a {kind}; floating-point pixels, already normalised, expected")
        given, said = np.asarray(x, FLOATS[kind]), []
        if len(shape) == 4 and shape[3] == 3 and shape[1] != 3:
            given = np.ascontiguousarray(given.transpose(0, 2, 3, 1))
            said.append(f"its input {name} has channels last")
        fixed = [s if isinstance(s, int) and s > 0 else None for s in shape]
        if len(fixed) != 4 or any(s not in (None, t) for s, t in zip(fixed, given.shape, strict=True)):
            says = "x".join("?" if s is None else str(s) for s in fixed)
            raise ConfigError(
                f"{self.name}: its input {name} is {says}, given is {dims(given.shape)}; choose an input of that size, or "
                "export the model with dynamic axes"
            )
        return {name: given}, said


def attempt_load(name: str, load: Any) -> Any:
    """load(); what onnx or onnxruntime raise becomes a ConfigError."""
    try:
        return load()
    except Exception as error:
        raise ConfigError(f"{name}: not a model that can be loaded: {type(error).__name__}: {error!s:.400}") from error


class _Opened:
    """A ModelProto, its constants, and the scales of what it quantises."""

    def __init__(self, proto: Any, path: Path | None) -> None:
        self.proto, self.graph = proto, proto.graph
        self.constants = dict(self._initializers(path))
        for node in self.graph.node:  # what depends on constants alone is one: an identity, dequantised weights
            if node.op_type == "Constant" or (node.input and all(i in self.constants or not i for i in node.input)):
                value = self._folded(node)
                self.constants |= {o: value if i == 0 else None for i, o in enumerate(node.output)}
        self.scales = dict(self._scales())

    def _initializers(self, path: Path | None) -> Iterator[tuple[str, Array | None]]:
        numpy_helper = importlib.import_module("onnx.numpy_helper")

        for tensor in self.graph.initializer:
            yield tensor.name, numpy_helper.to_array(tensor, str(path.parent) if path else "")

    def _folded(self, node: Any) -> Array | None:
        """Of the few operators that exporters leave on constants; None for others."""
        numpy_helper = importlib.import_module("onnx.numpy_helper")

        given = [self.constants.get(i) for i in node.input]
        if node.op_type == "Constant":
            tensor = next((a.t for a in node.attribute if a.name == "value"), None)
            return None if tensor is None else numpy_helper.to_array(tensor)
        if node.op_type == "Identity":
            return given[0]
        if node.op_type == "DequantizeLinear" and all(g is not None for g in given):
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            return _real(given[0], given[1], given[2] if len(given) > 2 else None, axis)
        return None

    def _scales(self) -> Iterator[tuple[str, tuple[Array, Array | None]]]:
        """Scale and zero point of integers, and of the floats that they are unpacked to."""
        for node in self.graph.node:
            at = 1 if node.op_type == "DequantizeLinear" else QUANTISED.get(node.op_type)
            if at is None or len(node.input) <= at or (scale := self.constants.get(node.input[at])) is None:
                continue
            zero = self.constants.get(node.input[at + 1]) if len(node.input) > at + 1 else None
            if node.output[0] not in self.constants:
                yield node.output[0], (scale, zero)

    def observe(self, file: OnnxFile, x: Array, feed: dict[str, Array], plain: dict[str, Array], said: list[str]) -> Observed:
        """Run with every value as an output."""
        onnx = importlib.import_module("onnx")
        existing = {o.name for o in self.graph.output}
        inner = [o for node in self.graph.node for o in node.output if o and o not in self.constants]
        self.graph.output.extend(onnx.ValueInfoProto(name=o) for o in inner if o not in existing)
        session = file._session(self.proto.SerializeToString())
        results = attempt(f"{file.name} (an ONNX model)", x.shape, lambda: session.run(inner, feed))
        values, hidden = dict[str, Array](feed), list[str]()
        scales: dict[str, tuple[float, float]] = {}
        for name, result in zip(inner, results, strict=True):
            a = as_array(result)
            if a is not None and name in self.scales:
                scale, zero = self.scales[name]
                a = a if floats(a) else _real(a, scale, zero, 1)
                scales[name] = float(scale.max()), 0.0 if zero is None or zero.size > 1 else float(zero.reshape(()))
            if a is None or not floats(a):
                hidden.append(name)
            else:
                values[name] = a
        changes = dict(_changes(values, plain))
        values |= {name: plain[name] for name in changes}
        notes = [*said, *self._notes(hidden, changes)]
        parameters = {n: a for n, c in self.constants.items() if c is not None and (a := as_array(c)) is not None and floats(a)}
        return Located(
            values,
            tuple(o.name for o in self.graph.output if o.name in existing & values.keys()),
            parameters,
            scales=scales,
            arithmetic="int8" if scales else None,
            notes=tuple(notes),
            paths=dict(self._paths(values)),
            owners=dict(self._owners(parameters)),
            layers=layers(self.graph.node, {n: parameters.get(n) for n in self.constants}),
            apart=frozenset(changes),
        )

    def _paths(self, values: dict[str, Array]) -> Iterator[tuple[str, str]]:
        for node in self.graph.node:
            if path := self._path(node):
                yield from ((o, path) for o in node.output if o in values)

    def _path(self, node: Any) -> str:
        """By the exporter's word, by the node's or the value's name, or by those of its weights."""
        told = next((path_of_scopes(p.value) for p in node.metadata_props if p.key == SCOPES), "")
        named = [i.rpartition(".")[0] for i in node.input if i in self.constants and "." in i]
        return told or path_of_slashes(node.output[0]) or path_of_slashes(node.name) or next(iter(named), "")

    def _owners(self, parameters: dict[str, Array]) -> Iterator[tuple[str, str]]:
        for node in self.graph.node:
            for i in node.input:
                if i in parameters and (path := self._path(node)):
                    yield i, path

    def _notes(self, hidden: list[str], changes: dict[str, float]) -> Iterator[str]:
        if hidden:
            more = f" and {len(hidden) - SHOWN} more" if len(hidden) > SHOWN else ""
            yield f"{', '.join(hidden[:SHOWN])}{more}: shapes, indices and other integers, not compared"
        if loops := sorted({n.op_type for n in self.graph.node if any(a.g.node or a.graphs for a in n.attribute)}):
            yield f"what is inside of {' and '.join(loops)} is not seen"
        for name, change in changes.items():
            yield (
                f"{name} changes by {change:.1e} of its largest value when inner values are shown, as onnxruntime then fuses "
                "less; it is judged as it is without that, the inner values are not"
            )


def _changes(values: dict[str, Array], plain: dict[str, Array]) -> Iterator[tuple[str, float]]:
    """Outputs that are others in the plain run, by more than rounding, and by how much of their largest value."""
    for name, a in plain.items():
        if np.array_equal(values.get(name, a), a, equal_nan=True):
            continue
        with np.errstate(all="ignore"):
            change = float(np.abs(values[name].astype(np.float64) - a).max() / (np.abs(a).max() or 1.0))
        if not change <= CHANGED * np.finfo(a.dtype).eps:
            yield name, change


def _real(words: Any, scale: Any, zero: Any, axis: int) -> Array:
    """(words - zero) * scale, both for the whole or along an axis."""
    words = np.asarray(words, np.float64)

    def along(a: Any) -> Any:
        a = np.asarray(a, np.float64)
        return a.reshape(()) if a.size == 1 else a.reshape([-1 if i == axis % words.ndim else 1 for i in range(words.ndim)])

    return np.asarray((words - (0.0 if zero is None else along(zero))) * along(scale))
