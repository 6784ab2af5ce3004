"""The public functions: from names and files to models, from images to answers."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import os
import platform
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from refvit import backends
from refvit.errors import ConfigError, UnknownModelError, WeightsError
from refvit.graph.cost import parameter_count, total_cost
from refvit.graph.ir import Array
from refvit.model import Model, architecture_graph
from refvit.models import architecture, matching
from refvit.vision.labels import check_labels, read_labels
from refvit.vision.preprocess import Preprocess
from refvit.vision.result import Result
from refvit.weights.embedded import DEFAULT, EMBEDDED, how_to_get, load_embedded, say_once
from refvit.weights.store import Weights
from refvit.weights.store import load as load_weights

if TYPE_CHECKING:
    from PIL.Image import Image

    OneImage = bytes | bytearray | Image | Array
else:
    OneImage = Any

Labels = Sequence[str] | str | os.PathLike[str]
WeightsSource = str | os.PathLike[str] | Mapping[str, Array]
RECENT = 4  # models that `infer` keeps
Many = list[Any] | tuple[Any, ...] | Iterator[Any]


# One image of a known kind gives a Result, a sequence an iterator; what a path leads to only the file system knows.
@overload
def infer(image: OneImage, model: str | Model | None = None, **options: Any) -> Result: ...
@overload
def infer(image: Many, model: str | Model | None = None, **options: Any) -> Iterator[Result]: ...
@overload
def infer(image: Any, model: str | Model | None = None, **options: Any) -> Any: ...
def infer(
    image: Any,
    model: str | Model | None = None,
    *,
    weights: WeightsSource | None = None,
    backend: str = "auto",
    dtype: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    allow_url: bool = False,
    labels: Labels | None = None,
    **preprocess: Any,
) -> Any:
    """What is in this image? One image gives a Result, many give an iterator of Results.

    image: path, URL (with allow_url=True), bytes, PIL image or RGB uint8 ndarray (h, w, 3); for many images a folder, a glob
        pattern or an iterable. Among many, an unreadable one has a Result with `.error`.
    model, weights, backend, dtype, device, threads, labels, preprocess: as in `load`; without model and weights the embedded
        ten-class demonstration model answers. The last few models stay loaded. A Model is used as it is.
    batch_size: images computed at once (default 8), for many images.

    Raises ImageError if the one image cannot be read, and what `load` raises.

    >>> refvit.infer("cat.jpg").top(1)
    """
    options = {"backend": backend, "dtype": dtype, "device": device, "threads": threads, "labels": labels}
    if isinstance(model, Model):
        defaults = inspect.signature(load).parameters
        surplus = [name for name, value in options.items() if value is not defaults[name].default]
        surplus += ["weights"] * (weights is not None) + list(preprocess)
        if surplus:
            raise ConfigError(f"infer: {', '.join(surplus)} cannot be changed on a loaded model; give them to refvit.load")
        ready = model
    else:
        ready = _recent_model(model, weights, options | preprocess)
    if ready.name == DEFAULT:
        say_once()  # here as well as in Model.infer, so that the warning shows the caller's line and not this one
    return ready.infer(image, batch_size=batch_size, allow_url=allow_url)


def load(
    model: str | None = None,
    weights: WeightsSource | None = None,
    *,
    backend: str = "auto",
    dtype: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    labels: Labels | None = None,
    **preprocess: Any,
) -> Model:
    """A model with its weights, ready to run.

    model: a name of `list_models`, with a weights tag ("mobilevit_xxs.cifar10") where the weights come with refvit
    weights: a safetensors file of refvit's or of a known public layout, or its tensors as a dict of arrays
    backend: "auto" or a name of `info()["backends"]`
    dtype: "float32" (default), "float64" for golden values, "float16"
    device, threads: for backends that have a choice; the numpy backend has none and takes None or "cpu", and None
    labels: names of the classes, or a text or JSON file of them, in place of those that come with the weights
    preprocess: single fields of the pre-processing to replace: resize, crop, enlarge, interpolation, mean, std, channel_order

    Raises UnknownModelError, WeightsError, ConfigError or BackendError, each of which says what to do.
    """
    _check_names(preprocess)
    if device not in (None, "cpu"):
        raise ConfigError(f'device: None or "cpu" expected, got {device!r}; no backend here has another device')
    if threads is not None:
        raise ConfigError(
            "threads: the numpy backend uses as many as its BLAS library; set OPENBLAS_NUM_THREADS before starting"
        )
    found = _find_weights(model, weights)
    if preprocess:
        fields = Preprocess.from_dict(found.preprocess).replace(**preprocess).to_dict()
        found = dataclasses.replace(found, preprocess=fields)
    if labels is not None:
        names = check_labels(_read_labels(labels), found.config["num_classes"])
        source = {k: v for k, v in found.source.items() if k != "labels"}  # what was said of the labels before
        found = dataclasses.replace(found, labels=names, source=source)
    return Model(found, backend=backend, dtype=dtype)


def _read_labels(labels: Labels) -> Sequence[str]:
    return read_labels(labels) if isinstance(labels, (str, os.PathLike)) else labels


def _check_names(preprocess: Mapping[str, Any]) -> None:
    """What is no option of `infer` or `load` must be a field of the pre-processing; ConfigError suggests what was meant."""
    fields = [f.name for f in dataclasses.fields(Preprocess)]
    for name in preprocess:
        if name not in fields:
            options = [p for p in inspect.signature(infer).parameters if p != "preprocess"]
            near = difflib.get_close_matches(name, options + fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(options + fields)}"
            raise ConfigError(f"unknown option {name!r}; {hint}")


def _find_weights(model: str | None, weights: WeightsSource | None) -> Weights:
    if not isinstance(model, (str, type(None))):
        raise ConfigError(f"model: a name from list_models() expected, got {type(model).__name__}")
    if not isinstance(weights, (str, os.PathLike, Mapping, type(None))):
        raise ConfigError(f"weights: a file or a dict of arrays expected, got {type(weights).__name__}")
    if model is None and weights is None:
        model = DEFAULT
    name, _, tag = (model or "").partition(".")
    if model is not None:
        architecture(name)  # an unknown name is the first thing to say
    if weights is None:
        if model in EMBEDDED:
            return load_embedded(model)
        here = ", ".join(EMBEDDED)
        raise (UnknownModelError if tag else WeightsError)(
            f"{model}: these weights do not come with refvit ({here} does); {how_to_get(name)}"
        )
    file = None if isinstance(weights, Mapping) else Path(weights)
    found = load_weights(file) if file else None
    if found is None:
        from weights_convert import convert, convert_file

        if model in EMBEDDED:
            raise WeightsError(f"{model} is the name of weights that come with refvit; give {name} or another tag with weights")
        if isinstance(weights, Mapping):
            return convert(weights, model=name or None, tag=tag)
        return convert_file(weights, model=name or None, tag=tag)
    if model is not None and (name != found.model or tag not in ("", found.tag)):
        raise WeightsError(f"{file}: holds the weights of {found.name}, not of {model}")
    return found


_recent: OrderedDict[Any, Model] = OrderedDict()
_lock = threading.Lock()


def _recent_model(model: str | None, weights: WeightsSource | None, options: dict[str, Any]) -> Model:
    """`load`, remembering the last few models. A file that changed is loaded again; a dict of arrays is never remembered."""
    if options["labels"] is not None:
        options["labels"] = _read_labels(options["labels"])
    if isinstance(weights, Mapping):
        return load(model, weights, **options)
    try:
        stamp: Any = None
        if weights is not None:
            status = Path(weights).stat()
            stamp = (os.path.realpath(weights), status.st_mtime_ns, status.st_size)
        key = (model, stamp, tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in sorted(options.items())))
        hash(key)
    except (OSError, TypeError, ValueError):  # no such file, which `load` explains; or an option that cannot be compared
        return load(model, weights, **options)
    with _lock:
        if key in _recent:
            _recent.move_to_end(key)
            return _recent[key]
    loaded = load(model, weights, **options)
    with _lock:
        _recent[key] = loaded
        while len(_recent) > RECENT:
            _recent.popitem(last=False)
    return loaded


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """One row of `list_models`."""

    name: str
    task: str
    params: int  # trained values, as published with the default number of classes
    input_size: tuple[int, int]  # (h, w) of the published evaluation
    weights: tuple[str, ...]  # tags that need no file

    @functools.cached_property
    def macs(self) -> int:
        """Multiply-accumulates for one image of `input_size`: convolutions, linear layers and both products of attention."""
        return total_cost(architecture_graph(self.name)).macs


def list_models(pattern: str = "*", task: str | None = None) -> list[ModelInfo]:
    """The models whose names match a wildcard pattern, and whose task is `task` if one is given.

    >>> [m.name for m in refvit.list_models("mobilevit*")]
    """
    rows = []
    for a in matching(pattern):
        if task in (None, a.task):
            tags = tuple(e.partition(".")[2] for e in EMBEDDED if e.partition(".")[0] == a.name)
            rows.append(ModelInfo(a.name, a.task, parameter_count(a.parameters(a.config)), a.input_size, tags))
    return rows


def info() -> dict[str, Any]:
    """Versions, the machine, and for each backend whether it can be used here, or else why not and what to do."""
    from importlib.metadata import PackageNotFoundError, version

    from refvit import __version__

    libraries = {}
    for name in ("numpy", "scipy", "pillow", "safetensors", "numba"):
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            libraries[name] = "not installed"
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "refvit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": affinity,
        "libraries": libraries,
        "backends": {name: backends.reason(name) or "usable" for name in backends.BACKENDS},
        "embedded": list(EMBEDDED),
    }
