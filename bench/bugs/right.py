"""Right implementations, every one of which must match: other libraries, precisions, optimisation levels, layouts, backends."""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.bugs import files, inputs
from bench.bugs.onnx_models import exported
from bench.bugs.sites import Torch
from bench.bugs.subjects import CLASSES, SUBJECTS, Reference, Subject, reference
from bench.bugs.torch_models import build, result
from refvit.graph.ir import Array

DEFECT = 1e-3  # of the largest value: in float32 two right runtimes differ by a hundredth of that on these models
LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_LAYOUT", "ENABLE_ALL")
Make = Callable[[Reference, str, Path, np.random.Generator], tuple[Any, dict[str, Any]]]
Judge = Callable[[Any, Reference, Path], float]


@dataclass(frozen=True)
class Right:
    """A way to run a model that is right. forms: whether the libraries' versions of a model differ in it; else it is refvit's.

    judge: of a runtime that may be wrong itself, how far its answers are from those of another one on the same file, relative
    to the largest; refvit has no part in it
    """

    name: str
    make: Make
    forms: bool = True
    judge: Judge | None = None


@dataclass(frozen=True)
class Cell:
    """A way with a model."""

    right: Right
    subject: Subject
    form: str

    def __str__(self) -> str:
        return f"{self.right.name}; {self.subject.name}; {self.form}"


@dataclass(frozen=True)
class Drawn:
    """One run: candidate and options are for `refvit.check`."""

    right: Right
    reference: Reference
    form: str
    candidate: Any
    options: dict[str, Any]

    def defect(self, folder: Path) -> float | None:
        """How wrong the runtime's own answer is, None if it is right."""
        wrong = 0.0 if self.right.judge is None else self.right.judge(self.candidate, self.reference, folder)
        return None if wrong <= DEFECT else wrong


def _torch(kind: torch.dtype = torch.float32, *, last: bool = False, compiled: bool = False) -> Make:
    def make(r: Reference, form: str, folder: Path, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
        module = build(r, form).to(kind)
        if last:
            module = module.to(memory_format=torch.channels_last)
        if compiled:
            module = torch.compile(module)
        return module, {"input": r.x}

    return make


def _onnxruntime(level: str, way: str, everything: bool) -> Make:
    """As a function, because the level is onnxruntime's. way: "refvit", "traced" or "exported"."""

    def make(r: Reference, form: str, folder: Path, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
        import onnx
        import onnxruntime

        form = {"refvit": "refvit", "traced": f"{form} traced", "exported": form}[way]
        model = onnx.load_from_string(_bytes(r, form))
        if everything:
            outputs = {o.name for o in model.graph.output}
            kept = [t for node in model.graph.node for t in node.output if t and t not in outputs]
            model.graph.output.extend(onnx.ValueInfoProto(name=t) for t in kept)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]

        def function(x: Array) -> dict[str, Array]:
            found = session.run(names, {session.get_inputs()[0].name: x.astype(np.float32)})
            return {n: a for n, a in zip(names, found, strict=True) if isinstance(a, np.ndarray) and a.dtype == np.float32}

        return function, {"input": r.x}

    return make


def _bytes(r: Reference, form: str) -> bytes:
    if form != "refvit":
        return exported(r, form)
    from refvit.graph.onnx import to_onnx

    return to_onnx(r.graph, r.weights.params)


def _onnx_file(way: str) -> Make:
    """The file itself, as `refvit check` runs it."""

    def make(r: Reference, form: str, folder: Path, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
        (folder / "right.onnx").write_bytes(_bytes(r, {"refvit": "refvit", "traced": f"{form} traced", "exported": form}[way]))
        return str(folder / "right.onnx"), {"input": r.x}

    return make


def _openvino(r: Reference, form: str, folder: Path, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
    """A function of outputs alone: OpenVINO fuses, and shows nothing else."""
    import openvino

    (folder / "right.onnx").write_bytes(_bytes(r, "refvit"))
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(folder / "right.onnx"), "CPU", options)
    return (lambda x: {o.any_name: np.array(a) for o, a in compiled(x.astype(np.float32)).items()}), {"input": r.x}


def _against_onnxruntime(candidate: Any, r: Reference, folder: Path) -> float:
    """onnxruntime without any optimisation on the file that the candidate was made of."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(folder / "right.onnx", options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    right, got = session.run(names, {session.get_inputs()[0].name: r.x.astype(np.float32)}), candidate(r.x)
    return max(float(np.abs(got[name] - a).max() / np.abs(a).max()) for name, a in zip(names, right, strict=True))


def _backend(backend: str) -> Make:
    def make(r: Reference, form: str, folder: Path, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
        import refvit

        return refvit.load(weights=str(r.file(folder)), backend=backend), {"input": r.x}

    return make


def _function(r: Reference, form: str, folder: Path, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
    module = build(r, form)
    return (lambda x: result(module(torch.from_numpy(x.astype(np.float32)))).numpy()), {"input": r.x}


def _dump(r: Reference, form: str, folder: Path, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
    c, style = Torch(r, form), files.draw(rng)
    arrays = {"input": r.x} | files.values(c, files.chosen(c, style, rng))
    return str(files.write(folder / "dump", arrays, style, tuple(r.graph.outputs.values()))), {"input": r.x}


def _int8(r: Reference, form: str, folder: Path, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
    """Results in 8 bits with their scales."""
    c, style = Torch(r, form), files.Style(str(rng.choice(["npy", "bin", "hex"])), bool(rng.random() < 0.7), False, 1.0)
    scales = files.quantise(c)
    arrays = {"input": r.x} | files.values(c, [value for value in r.graph.nodes if value in scales])
    path = files.write(folder / "dump", arrays, style, tuple(r.graph.outputs.values()), scales)
    return str(path), {"input": r.x, "arithmetic": "int8"}


def _image(r: Reference, form: str, folder: Path, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
    c, style, size = Torch(r, form), files.draw(rng), r.subject.size
    path = inputs.picture(folder, rng, size, turned=bool(rng.random() < 0.3))
    order = r.weights.preprocess["channel_order"]
    x = inputs.read(path, inputs.Way(int(min(size) / 0.875), size, bgr=order == "bgr"))
    arrays = {"input": x} | files.values(c, files.chosen(c, style, rng), x=x)
    return str(files.write(folder / "dump", arrays, style, tuple(r.graph.outputs.values()))), {"image": str(path)}


def _fixed(r: Reference, form: str, folder: Path, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
    """ONNX of refvit under onnxruntime with nothing but its outputs asked for."""
    (folder / "right.onnx").write_bytes(_bytes(r, "refvit"))
    return str(folder / "right.onnx"), {"input": r.x, "outputs_only": True}


RIGHT = (
    *(Right(f"torch {str(k).removeprefix('torch.')}", _torch(k)) for k in (torch.float32, torch.bfloat16, torch.float16)),
    Right("torch float64", _torch(torch.float64)),
    Right("torch channels_last", _torch(last=True)),
    Right("torch.compile", _torch(compiled=True)),
    *(
        Right(f"onnxruntime {level}, {way}, {'everything' if e else 'outputs'}", _onnxruntime(level, way, e), way != "refvit")
        for level, way, e in itertools.product(LEVELS, ("refvit", "traced"), (True, False))
    ),
    Right("onnxruntime ENABLE_ALL, exported, everything", _onnxruntime("ENABLE_ALL", "exported", True)),
    *(Right(f"onnx file, {way}", _onnx_file(way), way != "refvit") for way in ("refvit", "traced", "exported")),
    Right("onnx file, outputs alone", _fixed, False),
    Right("openvino", _openvino, False, judge=_against_onnxruntime),
    Right("refvit on numba", _backend("numba"), False),
    Right("refvit on numpy", _backend("numpy"), False),
    Right("function", _function),
    Right("dump", _dump),
    Right("dump of int8", _int8),
    Right("dump behind an image", _image),
)  # fmt: skip


def _fits(right: Right, subject: Subject) -> bool:
    """Images are read for classifiers; HRViT's are read no otherwise than the others', and its dumps are long."""
    return right.make is not _image or (subject.config.num_classes == CLASSES and not subject.model.startswith("hrvit"))


@functools.cache
def grid() -> tuple[Cell, ...]:
    """Every way with every model, once. The ways take turns, each time with another model, so that a part of it has all."""
    rows = [
        [Cell(r, s, form) for s in SUBJECTS.values() if _fits(r, s) for form in (s.forms if r.forms else ("refvit",))]
        for r in RIGHT
    ]
    turns = range(max(len(row) for row in rows))
    return tuple(row[(turn + i) % len(row)] for turn in turns for i, row in enumerate(rows) if turn < len(row))


def cell(number: int) -> Cell:
    """The n-th run; after the last cell comes the first again, with other weights."""
    return grid()[number % len(grid())]


def make(chosen: Cell, seed: int, folder: Path) -> Drawn:
    """RefusedError where no file can be made of it."""
    rng = np.random.default_rng([seed, zlib.crc32(str(chosen).encode())])
    order = "bgr" if chosen.right.make is _image and rng.random() < 0.3 else "rgb"
    truth = reference(chosen.subject, rng, order)
    candidate, options = chosen.right.make(truth, chosen.form, folder, rng)
    return Drawn(chosen.right, truth, chosen.form, candidate, options)
