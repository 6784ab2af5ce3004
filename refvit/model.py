"""A model with its weights, on a backend: numbers in and out, or images in and answers out."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refvit import backends
from refvit.errors import ConfigError, ImageError, RefvitError, ShapeError, UnsupportedError, WeightsError
from refvit.graph.cost import Summary, summarise
from refvit.graph.ir import Array, Graph, Shape, ShapeOnly, dims
from refvit.graph.trace import trace
from refvit.models import architecture
from refvit.vision.intake import describe, expand, read
from refvit.vision.labels import check_labels
from refvit.vision.pixels import Picture
from refvit.vision.preprocess import Preprocess
from refvit.vision.result import Result
from refvit.weights.check import require
from refvit.weights.embedded import DEFAULT, say_once
from refvit.weights.store import DTYPES, Weights

SHAPES = 16  # input shapes whose graphs are kept ready
LONGEST = 2**20  # of an axis of the input


class Model:
    """What `refvit.load` returns. It has no state that a call changes: any number of threads may share one.

    name, task: as in `refvit.list_models`, the name with its weights tag
    config, preprocess, labels: as recorded with the weights
    backend, dtype: what it runs on and in
    input_size: (h, w) that the weights were evaluated at
    """

    def __init__(self, weights: Weights, *, backend: str = "auto", dtype: Any = None) -> None:
        arch = architecture(weights.model)
        self._forward = arch.forward
        self.name, self.task = weights.name, arch.task
        self.config = config_from_dict(arch.config, weights.config)
        self.preprocess = Preprocess.from_dict(weights.preprocess)
        self.labels = None if weights.labels is None else check_labels(weights.labels, self.config.num_classes)
        self.dtype = _dtype_name(dtype)
        self._backend = backends.get(backend)
        self.backend = self._backend.__name__.rpartition(".")[2]
        require(f"weights {weights.name}", arch.parameters(self.config), weights.params)
        self._weights, self._params = weights, weights.astype(self.dtype)
        if wrong := [n for n, a in self._params.items() if not np.isfinite(a).all()]:
            raise WeightsError(f"weights {weights.name}: {wrong[0]} holds NaN or infinite values; get the weights again")
        self.input_size = self.preprocess.input_size or arch.input_size
        self._executable = functools.lru_cache(SHAPES)(self._compile)

    def __reduce__(self) -> Any:
        return functools.partial(Model, backend=self.backend, dtype=self.dtype), (self._weights,)

    def __repr__(self) -> str:
        return f"Model({self.name}, backend={self.backend}, dtype={self.dtype})"

    def __call__(self, x: Array) -> Array | dict[str, Array]:
        """Run on `x`, floating (n, 3, h, w), already pre-processed; it is cast to the model's dtype and not written to.

        Classification gives logits (n, classes). ShapeError or ConfigError say what is wrong with x.
        """
        x = self._check(x)
        outputs: dict[str, Array] = self._executable(x.shape)(x)
        return outputs["output"] if list(outputs) == ["output"] else outputs

    def intermediates(self, x: Array, keep: str = "*") -> dict[str, Array]:
        """Every value whose name matches the wildcard pattern `keep`, in the order of execution, for x (n, 3, h, w).

        Names are module paths: "stages.2.1.transformer.0.attn" is what that module returns, "...attn.attention.softmax" the
        attention weights. The values come from the NumPy definitions in the model's dtype, whatever the backend. ConfigError
        if nothing matches.
        """
        if not isinstance(keep, str):
            raise ConfigError(f"intermediates: keep is one wildcard pattern, got {keep!r:.60}")
        x = self._check(x)
        graph = self.graph(x.shape, expand=True)
        wanted = {name: value for name, value in graph.names().items() if fnmatch.fnmatchcase(name, keep)}
        if not wanted:
            raise ConfigError(f"intermediates: no name matches {keep!r}; the first are {', '.join(list(graph.names())[:5])}")
        return dict(backends.get("numpy").compile_graph(graph.with_outputs(wanted))(x))

    def graph(self, shape: Shape | None = None, *, expand: bool = False) -> Graph:
        """The graph for an input of `shape` (n, 3, h, w), by default one image of the size the weights were evaluated at.

        expand: show what attention, unfold and fold consist of.
        """
        shape = (1, 3, *self.input_size) if shape is None else tuple(shape)
        return trace(self._forward, _check_shape(shape), self._params, expand=expand, config=self.config)

    def summary(self, shape: Shape | None = None, *, depth: int = 1) -> Summary:
        """Parameters, MACs and bytes by block, for an input of `shape` as in `graph`; `depth` opens the blocks further."""
        return summarise(self.name, self.graph(shape), depth)

    def infer(self, image: Any, *, batch_size: int | None = None, allow_url: bool = False) -> Result | Iterator[Result]:
        """Answer for one image (a Result), or for many (an iterator of Results, in order, read as it advances).

        image: path, URL (with allow_url), bytes, PIL image, RGB uint8 ndarray (h, w, 3); or many of them: a folder, a glob
        pattern, an iterable. ImageError if the one image cannot be read; among many, its Result carries `.error` instead.
        batch_size: images to compute at once, default 8; images of different sizes never share a batch.
        """
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise ConfigError(f"batch_size: a whole number of at least 1 expected, got {batch_size!r}")
        if self.task != "classification":
            raise UnsupportedError(
                f"{self.name}: infer answers for classification; for {self.task} call model(x), which is raw"
            )
        if self.name == DEFAULT:
            say_once()
        many, sources = expand(image, allow_url=allow_url)
        if many:
            return self._infer_many(sources, batch_size or 8, allow_url)
        (source,) = sources
        picture, x = self._prepare(source, allow_url)
        (result,) = self._answer([picture], [x])
        return result

    def _infer_many(self, sources: Iterator[Any], batch_size: int, allow_url: bool) -> Iterator[Result]:
        ended: Exception | None = None
        while ended is None:
            chunk: list[Any] = []
            try:
                while len(chunk) < batch_size:
                    chunk.append(next(sources))
            except Exception as error:  # StopIteration, or the caller's own: first give what there is
                ended = error
            answers: dict[int, Result] = {}
            ready: dict[Shape, list[tuple[int, Picture, Array]]] = {}
            for i, source in enumerate(chunk):
                try:
                    picture, x = self._prepare(source, allow_url)
                    ready.setdefault(x.shape, []).append((i, picture, x))
                except RefvitError as error:
                    answers[i] = Result(describe(source), error=error, provenance=self._provenance())
            for group in ready.values():
                indices, pictures, inputs = zip(*group, strict=True)
                answers.update(zip(indices, self._answer_each(list(pictures), list(inputs)), strict=True))
            yield from (answers[i] for i in range(len(chunk)))
        if not isinstance(ended, StopIteration):
            raise ended

    def _prepare(self, source: Any, allow_url: bool) -> tuple[Picture, Array]:
        picture = read(source, allow_url=allow_url)
        try:
            return picture, self.preprocess(picture.pixels)
        except ImageError as error:
            raise ImageError(f"{picture.source}: {error}") from None

    def _answer_each(self, pictures: list[Picture], inputs: list[Array]) -> list[Result]:
        """As `_answer`, but what the network cannot take, or memory does not hold, is that image's error alone."""
        try:
            return self._answer(pictures, inputs)
        except (RefvitError, MemoryError) as error:
            if len(pictures) > 1:
                return [r for p, x in zip(pictures, inputs, strict=True) for r in self._answer_each([p], [x])]
            reason = f"not enough memory for {dims(inputs[0].shape)} pixels" if isinstance(error, MemoryError) else error
            failure = ImageError(f"{pictures[0].source}: {reason}")
            return [Result(pictures[0].source, error=failure, provenance=self._provenance())]

    def _answer(self, pictures: list[Picture], inputs: list[Array]) -> list[Result]:
        logits = self(np.stack(inputs))
        assert isinstance(logits, np.ndarray)
        provenance = self._provenance()
        return [Result(p.source, y, self.labels, p.preview(), provenance) for p, y in zip(pictures, logits, strict=True)]

    def _provenance(self) -> dict[str, Any]:
        import PIL

        from refvit import __version__

        return {
            "model": self.name,
            "weights_sha256": self._weights.sha256,
            "weights_source": dict(self._weights.source),
            "backend": self.backend,
            "dtype": self.dtype,
            "preprocess": self.preprocess.to_dict(),
            "versions": {"refvit": __version__, "numpy": np.__version__, "pillow": PIL.__version__},
        }

    def _check(self, x: Array) -> Array:
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
            what = f"{x.dtype} array" if isinstance(x, np.ndarray) else type(x).__name__
            raise ConfigError(f"{self.name}: a floating-point ndarray (n, 3, h, w) expected, got {what}; for images use .infer")
        _check_shape(x.shape)
        with np.errstate(over="ignore"):
            cast = x.astype(self.dtype, copy=False)
        if bad := x.size - np.count_nonzero(np.isfinite(cast)):
            what = "too large for " + self.dtype if np.isfinite(x).all() else "NaN or infinite"
            raise ConfigError(f"{self.name}: {bad} of the {x.size} input values are {what}; finite ones expected")
        return cast

    def _compile(self, shape: Shape) -> Any:
        return self._backend.compile_graph(self.graph(shape))


def architecture_graph(name: str, size: tuple[int, int] | None = None, batch: int = 1) -> Graph:
    """The graph of a registered model without any weights, to count or draw; size (h, w) defaults to the published one."""
    arch = architecture(name)
    shape = (batch, 3, *(size or arch.input_size))
    params = {n: ShapeOnly(s) for n, s in arch.parameters(arch.config)}
    return trace(arch.forward, _check_shape(shape), params, config=arch.config)


def config_from_dict(published: Any, values: Mapping[str, Any]) -> Any:
    """A config like `published`, a dataclass, from the output of dataclasses.asdict; lists become tuples.

    A field that has a default may be missing: the file is older than the field, and the default is what was meant before.
    ConfigError names unknown and missing keys, and values of another kind than the published ones: numbers are positive, and a
    tuple has as many as there.
    """
    name, fields = type(published).__name__, dataclasses.asdict(published)
    values = {f.name: f.default for f in dataclasses.fields(published) if f.default is not dataclasses.MISSING} | dict(values)
    if unknown := sorted(set(values) - set(fields)):
        raise ConfigError(f"{name}: unknown {', '.join(unknown)}; known are {', '.join(sorted(fields))}")
    if missing := sorted(set(fields) - set(values)):
        raise ConfigError(f"{name}: {', '.join(missing)} missing")
    for key, example in fields.items():
        if not _like(values[key], example):
            raise ConfigError(f"{name}.{key}: something like {example!r} expected, got {values[key]!r:.60}")
    return type(published)(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _like(value: Any, example: Any) -> bool:
    if isinstance(example, tuple):
        fits = isinstance(value, (list, tuple)) and len(value) == len(example)
        return fits and all(_like(v, e) for v, e in zip(value, example, strict=True))
    if isinstance(example, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
    return type(value) is type(example) and (not isinstance(value, int) or isinstance(value, bool) or value > 0)


def _dtype_name(dtype: Any) -> str:
    try:
        name = np.dtype(dtype or "float32").name
    except TypeError:
        name = ""
    if name not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return name


def _check_shape(shape: Shape) -> Shape:
    whole = all(isinstance(s, (int, np.integer)) for s in shape)
    if len(shape) != 4 or not whole or shape[1] != 3 or min(shape) < 1 or max(shape) > LONGEST:
        given = dims(shape) or "a scalar"
        raise ShapeError(f"input: (n, 3, h, w) with at least one image and one pixel, at most {LONGEST}, expected, got {given}")
    return tuple(int(s) for s in shape)
