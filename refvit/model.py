"""A model with its weights, on a backend: numbers in and out, or images in and answers out."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import Any

import numpy as np

from refvit import backends
from refvit.errors import ConfigError, ImageError, RefvitError, ShapeError, UnsupportedError, WeightsError
from refvit.graph.cost import Summary, summarise
from refvit.graph.ir import Array, Graph, Shape, ShapeOnly, dims
from refvit.graph.profile import Profile
from refvit.graph.trace import trace
from refvit.models import architecture, config_from_dict
from refvit.vision.attention import SOFTMAX, Attention, attention_maps, check_attends, query_point, seen
from refvit.vision.intake import describe, expand, read
from refvit.vision.labels import check_labels
from refvit.vision.pixels import Picture, seal
from refvit.vision.postprocess import from_dict
from refvit.vision.preprocess import Preprocess
from refvit.vision.result import Result
from refvit.vision.tasks import Facts, Plan, check
from refvit.vision.tasks import plan as make_plan
from refvit.weights.check import require
from refvit.weights.embedded import DEFAULT, say_once
from refvit.weights.store import DTYPES, Weights

SHAPES = 16  # input shapes whose graphs are kept ready
LONGEST = 2**20  # of an axis of the input
BATCH, BATCH_PIXELS = 8, 2**21  # inputs computed at once by default, and how large they may be together


class Model:
    """What `refvit.load` returns. It has no state that a call changes: any number of threads may share one.

    name, task: as in `refvit.list_models`, the name with its weights tag
    config, preprocess, postprocess, labels: as recorded with the weights
    backend, dtype, threads: what it runs on, in, and with how many; threads is None where the backend does not decide it
    input_size: (h, w) that the weights were evaluated at
    """

    def __init__(self, weights: Weights, *, backend: str = "auto", dtype: Any = None, threads: int | None = None) -> None:
        arch = architecture(weights.model)
        self._forward = arch.forward
        self.name, self.task = weights.name, arch.task
        self.config = config_from_dict(arch.config, weights.config)
        self.preprocess = Preprocess.from_dict(weights.preprocess)
        self.postprocess = from_dict(self.task, weights.postprocess)
        self.labels = None if weights.labels is None else check_labels(weights.labels, self.config.num_classes)
        self.dtype = _dtype_name(dtype)
        self._backend = backends.get(backend, self.dtype)
        self.backend = self._backend.__name__.rpartition(".")[2]
        self.threads, self._threads = self._backend.check_threads(threads), threads
        require(f"weights {weights.name}", arch.parameters(self.config), weights.params)
        self._weights, self._params = weights, weights.astype(self.dtype)
        if wrong := [n for n, a in self._params.items() if not np.isfinite(a).all()]:
            raise WeightsError(f"weights {weights.name}: {wrong[0]} holds NaN or infinite values; get the weights again")
        self.input_size = self.preprocess.input_size or arch.input_size
        align_corners = getattr(self.config, "align_corners", False)
        self._facts = Facts(
            self.task, self.config.num_classes, self.labels, self.preprocess, self.postprocess, arch.multiple, align_corners
        )
        check(self._facts)
        # of what it needs and not of the model, which would then be held by itself until the collector runs
        compile_shape = functools.partial(_compile, self._backend, self.threads, self._forward, self._params, self.config)
        self._executable = functools.lru_cache(SHAPES)(compile_shape)

    def __reduce__(self) -> Any:
        return functools.partial(Model, backend=self.backend, dtype=self.dtype, threads=self._threads), (self._weights,)

    def __repr__(self) -> str:
        return f"Model({self.name}, backend={self.backend}, dtype={self.dtype})"

    def __call__(self, x: Array) -> Array | dict[str, Array]:
        """Run on `x`, floating (n, 3, h, w), already pre-processed; it is cast to the model's dtype and not written to.

        Raw outputs: classification gives logits (n, classes); segmentation logits (n, classes, h / s, w / s) at the head's
        stride; pose estimation heatmaps (n, joints, h / 4, w / 4); detection {"scores": (n, anchors, classes), "boxes": (n,
        anchors, 4)} before softmax and decoding. ShapeError or ConfigError say what is wrong with x.
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

    def profile(self, x: Array, *, runs: int = 20) -> Profile:
        """Where the time goes, for x as in a call: each step's time, MACs, GFLOP/s and bytes, medians over `runs` calls.

        `print` it, or `.save("profile.svg")`. UnsupportedError on the numpy backend, which is not made to be timed.
        """
        if not isinstance(runs, int) or isinstance(runs, bool) or runs < 1:
            raise ConfigError(f"runs: a whole number of at least 1 expected, got {runs!r}")
        x = self._check(x)
        executable = self._executable(x.shape)
        if not hasattr(executable, "profile"):
            raise UnsupportedError(f"profile: the {self.backend} backend has none; load the model with backend='numba'")
        found: Profile = executable.profile(self.name, x, runs)
        return found

    def infer(
        self, image: Any, *, boxes: Any = None, batch_size: int | None = None, allow_url: bool = False
    ) -> Result | Iterator[Result]:
        """Answer for one image (a Result), or for many (an iterator of Results, in order, read as it advances).

        image: path, URL (with allow_url), bytes, PIL image, RGB uint8 ndarray (h, w, 3); or many of them: a folder, a glob
        pattern, an iterable. ImageError if the one image cannot be read; among many, its Result carries `.error` instead.
        boxes: of the people in the image, for pose estimation: rows x, y, width, height in pixels, with the detector's score
        behind if there is one; of many images an iterable of such, one for each. Default: the whole image is one person.
        batch_size: inputs to compute at once, default 8, fewer of large ones; inputs of different sizes never share a batch.
        """
        if batch_size is not None and (not isinstance(batch_size, (int, np.integer)) or batch_size is True or batch_size < 1):
            raise ConfigError(f"batch_size: a whole number of at least 1 expected, got {batch_size!r}")
        if boxes is not None and self.task != "pose":
            raise ConfigError(f"boxes: only pose estimation looks at people in given boxes; {self.name} is for {self.task}")
        if self.name == DEFAULT:
            say_once()
        many, sources = expand(image, allow_url=allow_url)
        if many:
            if boxes is not None and not isinstance(boxes, Iterable):
                raise ConfigError(f"boxes: an entry for each image expected, got {boxes!r:.60}")
            return self._infer_many(_pair(sources, boxes), batch_size, allow_url)
        (source,) = sources
        picture, plan = self._prepare(source, boxes, allow_url)
        return self._answer([picture], [plan], batch_size)[0]

    def attention(self, image: Any, *, at: tuple[int, int] | None = None, allow_url: bool = False) -> Attention:
        """Where the model looks in one image: of ViT and DeiT its class token, of MobileViT and HRViT the pixel `at`.

        image: path, URL (with allow_url), bytes, PIL image or RGB uint8 ndarray (h, w, 3). Of several inputs that `infer` would
        run for it (scales, windows, mirror images) the first counts.
        at: (x, y), whole numbers from the upper left corner of the picture that the network sees, which is the image resized,
        cropped and padded: `.picture` of the result. By default its centre. Not for ViT.

        The weights come from the NumPy definitions, as all `intermediates`. UnsupportedError for HRNet, ImageError if the image
        cannot be read, ConfigError for many images and for what is no pixel.
        """
        check_attends(self.name, self._params)
        many, sources = expand(image, allow_url=allow_url)
        if many:
            raise ConfigError("attention: one image expected, got a folder, pattern or collection; give its images one by one")
        picture, plan = self._prepare(next(sources), None, allow_url)
        x = plan.inputs[0]
        graph = self.graph((1, *x.shape))
        at = query_point(graph, at)
        maps, rollout = attention_maps(graph, self.intermediates(x[None], SOFTMAX), at)
        shown = seal(seen(x, self.preprocess), picture.source, list(picture.notes))
        return Attention(maps, rollout, at, shown, self._provenance() | plan.notes)

    def _infer_many(self, jobs: Iterator[tuple[Any, Any]], batch_size: int | None, allow_url: bool) -> Iterator[Result]:
        ended: Exception | None = None
        while ended is None:
            chunk: list[tuple[str, Picture, Plan] | Result] = []
            inputs = 0
            try:
                while inputs < (batch_size or BATCH):
                    source, boxes = next(jobs)
                    try:
                        picture, plan = self._prepare(source, boxes, allow_url)
                        chunk.append((picture.source, picture, plan))
                        inputs += max(1, len(plan.inputs))
                    except RefvitError as error:
                        chunk.append(Result(describe(source), error=error, provenance=self._provenance()))
                        inputs += 1
            except Exception as error:  # StopIteration, or the caller's own: first give what there is
                ended = error
            ready = [item for item in chunk if not isinstance(item, Result)]
            answers = iter(self._answer_each([p for _, p, _ in ready], [plan for _, _, plan in ready], batch_size))
            yield from (item if isinstance(item, Result) else next(answers) for item in chunk)
        if not isinstance(ended, StopIteration):
            raise ended

    def _prepare(self, source: Any, boxes: Any, allow_url: bool) -> tuple[Picture, Plan]:
        picture = read(source, allow_url=allow_url)
        try:
            return picture, make_plan(self._facts, picture.pixels, boxes)
        except ImageError as error:
            raise ImageError(f"{picture.source}: {error}") from None

    def _answer_each(self, pictures: list[Picture], plans: list[Plan], batch_size: int | None) -> list[Result]:
        """As `_answer`, but what the network cannot take, or memory does not hold, is that image's error alone."""
        try:
            return self._answer(pictures, plans, batch_size)
        except (RefvitError, MemoryError) as error:
            if len(pictures) > 1:
                pairs = zip(pictures, plans, strict=True)
                return [r for picture, plan in pairs for r in self._answer_each([picture], [plan], batch_size)]
            shape = plans[0].inputs[0].shape
            reason = f"not enough memory for {dims(shape)} pixels" if isinstance(error, MemoryError) else error
            failure = ImageError(f"{pictures[0].source}: {reason}")
            return [Result(pictures[0].source, error=failure, provenance=self._provenance())]

    def _answer(self, pictures: list[Picture], plans: list[Plan], batch_size: int | None) -> list[Result]:
        outputs = iter(self._compute([x for plan in plans for x in plan.inputs], batch_size))
        results = []
        for picture, plan in zip(pictures, plans, strict=True):
            answer = plan.finish([next(outputs) for _ in plan.inputs])
            results.append(Result(picture.source, answer, picture.preview(self.task), self._provenance() | plan.notes))
        return results

    def _compute(self, inputs: list[Array], batch_size: int | None) -> list[Any]:
        """The raw output of every input (3, h, w), without batch axis. Inputs of one shape share batches."""
        outputs: list[Any] = [None] * len(inputs)
        groups: dict[Shape, list[int]] = {}
        for i, x in enumerate(inputs):
            groups.setdefault(x.shape, []).append(i)
        for shape, group in groups.items():
            step = batch_size or max(1, min(BATCH, BATCH_PIXELS // (shape[1] * shape[2])))
            for batch in (group[k : k + step] for k in range(0, len(group), step)):
                y = self(np.stack([inputs[i] for i in batch]))
                for k, i in enumerate(batch):
                    outputs[i] = {name: a[k] for name, a in y.items()} if isinstance(y, dict) else y[k]
        return outputs

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
            "postprocess": self.postprocess.to_dict(),
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


def _compile(backend: Any, threads: int | None, forward: Any, params: dict[str, Array], config: Any, shape: Shape) -> Any:
    return backend.compile_graph(trace(forward, shape, params, config=config), threads)


def _pair(sources: Iterator[Any], boxes: Any) -> Iterator[tuple[Any, Any]]:
    """Every image with its boxes; ConfigError, where they end, if there are more of one than of the other."""
    end = object()
    given = repeat(None) if boxes is None else chain(boxes, repeat(end))
    count = 0
    for count, (source, entry) in enumerate(zip(sources, given, strict=False), 1):
        if entry is end:
            raise ConfigError(f"boxes: as many entries as images expected, got {count - 1}, and there are more images")
        yield source, entry
    if boxes is not None and next(given) is not end:
        raise ConfigError(f"boxes: as many entries as images expected, got more than {count}")


def architecture_graph(name: str, size: tuple[int, int] | None = None, batch: int = 1) -> Graph:
    """The graph of a registered model without any weights, to count or draw; size (h, w) defaults to the published one."""
    arch = architecture(name)
    shape = (batch, 3, *(size or arch.input_size))
    params = {n: ShapeOnly(s) for n, s in arch.parameters(arch.config)}
    return trace(arch.forward, _check_shape(shape), params, config=arch.config)


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
