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
from refvit.vision import postprocess
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
    boxes: Any = None,
    batch_size: int | None = None,
    allow_url: bool = False,
    labels: Labels | None = None,
    **fields: Any,
) -> Any:
    """What is in this image? One image gives a Result, many give an iterator of Results.

    image: path, URL (with allow_url=True), bytes, PIL image or RGB uint8 ndarray (h, w, 3); for many images a folder, a glob
        pattern or an iterable. Among many, an unreadable one has a Result with `.error`.
    model, weights, backend, dtype, device, threads, labels, fields: as in `load`; without model and weights the embedded
        ten-class demonstration model answers. The last few models stay loaded. A Model is used as it is.
    boxes: of the people in the image, for pose estimation: (n, 4) x, y, width, height, or (n, 5) with a score behind; of many
        images an iterable of such, one for each. By default the whole image is one person.
    batch_size: inputs computed at once, default 8, fewer of large ones

    Raises ImageError if the one image cannot be read, and what `load` raises.

    >>> refvit.infer("cat.jpg").top(1)
    """
    options = {"backend": backend, "dtype": dtype, "device": device, "threads": threads, "labels": labels}
    if isinstance(model, Model):
        defaults = inspect.signature(load).parameters
        surplus = [name for name, value in options.items() if value is not defaults[name].default]
        surplus += ["weights"] * (weights is not None) + list(fields)
        if surplus:
            raise ConfigError(f"infer: {', '.join(surplus)} cannot be changed on a loaded model; give them to refvit.load")
        ready = model
    else:
        ready = _recent_model(model, weights, options | fields)
    if ready.name == DEFAULT:
        say_once()  # here as well as in Model.infer, so that the warning shows the caller's line and not this one
    return ready.infer(image, boxes=boxes, batch_size=batch_size, allow_url=allow_url)


def load(
    model: str | None = None,
    weights: WeightsSource | None = None,
    *,
    backend: str = "auto",
    dtype: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    labels: Labels | None = None,
    **fields: Any,
) -> Model:
    """A model with its weights, ready to run.

    model: a name of `list_models`, with a weights tag ("mobilevit_xxs.cifar10") where the weights come with refvit
    weights: a safetensors file of refvit's or of a known public layout, or its tensors as a dict of arrays
    backend: "auto" or a name of `info()["backends"]`
    dtype: "float32" (default), "float64" for golden values, "float16"
    device, threads: for backends that have a choice; the numpy backend has none and takes None or "cpu", and None
    labels: names of the classes, or a text or JSON file of them, in place of those that come with the weights
    fields: single fields to replace, by name
        of the pre-processing: resize, crop, enlarge, longest, interpolation, mean, std, channel_order
        of the post-processing, for segmentation: scales, flip, average, window, window_stride, fill_window, pad_multiple,
        to_image; for pose estimation: padding, flip, shift, joint_threshold, oks_threshold; for detection: rule,
        score_threshold
        of the config, what files of foreign layouts do not tell: align_corners (HRNet), gelu, layer_norm_eps, position_resize
        (ViT), output_stride, dilation_rule, rates (DeepLabv3)

    Raises UnknownModelError, WeightsError, ConfigError or BackendError, each of which says what to do.
    """
    overrides = _sort(fields)
    if device not in (None, "cpu"):
        raise ConfigError(f'device: None or "cpu" expected, got {device!r}; no backend here has another device')
    if threads is not None:
        raise ConfigError(
            "threads: the numpy backend uses as many as its BLAS library; set OPENBLAS_NUM_THREADS before starting"
        )
    found = _find_weights(model, weights, overrides)
    if labels is not None:
        names = check_labels(_read_labels(labels), found.config["num_classes"])
        source = {k: v for k, v in found.source.items() if k != "labels"}  # what was said of the labels before
        found = dataclasses.replace(found, labels=names, source=source)
    return Model(found, backend=backend, dtype=dtype)


def _read_labels(labels: Labels) -> Sequence[str]:
    return read_labels(labels) if isinstance(labels, (str, os.PathLike)) else labels


@dataclasses.dataclass(frozen=True)
class _Overrides:
    """Fields that replace those of the weights, by where they belong."""

    preprocess: dict[str, Any]
    postprocess: dict[str, Any]
    config: dict[str, Any]

    def apply(self, found: Weights) -> Weights:
        """To weights in refvit's own format. ConfigError for a field that does not belong to the model."""
        arch = architecture(found.model)
        if unknown := [name for name in self.config if name not in arch.options]:
            raise ConfigError(f"{', '.join(unknown)}: no option of {found.model}; its are {', '.join(arch.options) or 'none'}")
        source = {k: v for k, v in found.source.items() if k not in self.config and k not in self.postprocess}
        return dataclasses.replace(
            found,
            preprocess=Preprocess.from_dict(found.preprocess).replace(**self.preprocess).to_dict(),
            postprocess=postprocess.from_dict(arch.task, {**found.postprocess, **self.postprocess}).to_dict(),
            config={**found.config, **self.config},
            source=source,
        )


def _sort(fields: Mapping[str, Any]) -> _Overrides:
    """Whose field each is; ConfigError suggests what was meant by a name that is nobody's."""
    places = _Overrides({}, {}, {})
    owners = [
        ([f.name for f in dataclasses.fields(Preprocess)], places.preprocess),
        (postprocess.names(), places.postprocess),
        ([name for arch in matching("*") for name in arch.options], places.config),
    ]
    for name, value in fields.items():
        place = next((place for names, place in owners if name in names), None)
        if place is None:
            known = [p for p in inspect.signature(infer).parameters if p != "fields"]
            known += [name for names, _ in owners for name in names if name not in known]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(dict.fromkeys(known))}"
            raise ConfigError(f"unknown option {name!r}; {hint}")
        place[name] = value
    return places


def _find_weights(model: str | None, weights: WeightsSource | None, overrides: _Overrides) -> Weights:
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
            return overrides.apply(load_embedded(model))
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
        options = {"model": name or None, "tag": tag, **vars(overrides)}
        return convert(weights, **options) if isinstance(weights, Mapping) else convert_file(weights, **options)
    if model is not None and (name != found.model or tag not in ("", found.tag)):
        raise WeightsError(f"{file}: holds the weights of {found.name}, not of {model}")
    return overrides.apply(found)


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
