"""A model with its weights, on a backend: numbers in and out, or images in and answers out."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refvit import backends
from refvit.errors import ConfigError, RefvitError, ShapeError
from refvit.graph.cost import Summary, summarise
from refvit.graph.ir import Array, Graph, Shape, ShapeOnly, dims
from refvit.graph.trace import trace
from refvit.models import architecture
from refvit.vision.intake import expand, read
from refvit.vision.labels import check_labels
from refvit.vision.pixels import Picture
from refvit.vision.preprocess import Preprocess
from refvit.vision.result import Result
from refvit.weights.check import require
from refvit.weights.store import DTYPES, Weights

SHAPES = 16  # input shapes whose graphs are kept ready


class Model:
    """What `refvit.load` returns. It has no state that a call changes: any number of threads may share one.

    name, task: as in `refvit.list_models`, the name with its weights tag
    config, preprocess, labels: as recorded with the weights
    backend, dtype: what it runs on and in
    """

    def __init__(self, weights: Weights, *, backend: str = "auto", dtype: str | None = None) -> None:
        arch = architecture(weights.model)
        self._forward = arch.forward
        self.name, self.task = weights.name, arch.task
        self.config = config_from_dict(type(arch.config), weights.config)
        self.preprocess = Preprocess.from_dict(weights.preprocess)
        self.labels = None if weights.labels is None else check_labels(weights.labels, self.config.num_classes)
        self.dtype = dtype or "float32"
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self._backend = backends.get(backend)
        self.backend = self._backend.__name__.rpartition(".")[2]
        require(f"weights {weights.name}", dict(arch.parameters(self.config)), weights.params)
        self._params = weights.astype(self.dtype)
        self._source, self._sha256 = dict(weights.source), weights.sha256
        self._input_size = self.preprocess.input_size or arch.input_size
        self._executable = functools.lru_cache(SHAPES)(self._compile)

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

        Names are module paths: "stages.2.1.transformer.0.attn" is what that module returns, "...attn.softmax" the attention
        weights. The values come from the NumPy definitions in the model's dtype, whatever the backend. ConfigError if nothing
        matches.
        """
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
        shape = (1, 3, *self._input_size) if shape is None else tuple(shape)
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
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        many, sources = expand(image, allow_url=allow_url)
        if many:
            return self._infer_many(sources, batch_size or 8, allow_url)
        (source,) = sources
        picture = read(source, allow_url=allow_url)
        (result,) = self._answer([picture], [self.preprocess(picture.pixels)])
        return result

    def _infer_many(self, sources: Iterator[Any], batch_size: int, allow_url: bool) -> Iterator[Result]:
        while chunk := list(itertools.islice(sources, batch_size)):
            failed: dict[int, Result] = {}
            ready: list[tuple[int, Picture, Array]] = []
            for i, source in enumerate(chunk):
                try:
                    picture = read(source, allow_url=allow_url)
                    ready.append((i, picture, self.preprocess(picture.pixels)))
                except RefvitError as error:
                    failed[i] = Result(_source_name(source), error=error, provenance=self._provenance())
            answers = dict(failed)
            for _, group in itertools.groupby(sorted(ready, key=lambda r: r[2].shape), key=lambda r: r[2].shape):
                indices, pictures, inputs = zip(*group, strict=True)
                answers.update(zip(indices, self._answer(list(pictures), list(inputs)), strict=True))
            yield from (answers[i] for i in range(len(chunk)))

    def _answer(self, pictures: list[Picture], inputs: list[Array]) -> list[Result]:
        logits = self(np.stack(inputs))
        assert isinstance(logits, np.ndarray)
        provenance = self._provenance()
        return [Result(p.source, y, self.labels, p, provenance) for p, y in zip(pictures, logits, strict=True)]

    def _provenance(self) -> dict[str, Any]:
        import PIL

        from refvit import __version__

        return {
            "model": self.name,
            "weights_sha256": self._sha256,
            "weights_source": self._source,
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
        if bad := x.size - np.count_nonzero(np.isfinite(x)):
            raise ConfigError(f"{self.name}: {bad} of the {x.size} input values are NaN or infinite; finite ones expected")
        return x.astype(self.dtype, copy=False)

    def _compile(self, shape: Shape) -> Any:
        return self._backend.compile_graph(self.graph(shape))


def architecture_graph(name: str, size: tuple[int, int] | None = None, batch: int = 1) -> Graph:
    """The graph of a registered model without any weights, to count or draw; size (h, w) defaults to the published one."""
    arch = architecture(name)
    shape = (batch, 3, *(size or arch.input_size))
    params = {n: ShapeOnly(s) for n, s in arch.parameters(arch.config)}
    return trace(arch.forward, _check_shape(shape), params, config=arch.config)


def config_from_dict(cls: type, values: Mapping[str, Any]) -> Any:
    """A config dataclass from its `dataclasses.asdict`; ConfigError lists unknown and missing keys. Lists become tuples."""
    names = {f.name for f in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - names):
        raise ConfigError(f"{cls.__name__}: unknown {', '.join(unknown)}; known are {', '.join(sorted(names))}")
    if missing := sorted(names - set(values)):
        raise ConfigError(f"{cls.__name__}: {', '.join(missing)} missing")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _check_shape(shape: Shape) -> Shape:
    if len(shape) != 4 or shape[1] != 3 or min(shape) < 1:
        given = dims(shape) or "a scalar"
        raise ShapeError(f"input: (n, 3, h, w) with at least one image and one pixel expected, got {given}")
    return shape


def _source_name(source: Any) -> str:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    return "<array>" if isinstance(source, np.ndarray) else str(source)
