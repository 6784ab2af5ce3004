"""The public functions: from names and files to models, from images to answers."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import platform
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from refvit import backends
from refvit.errors import ConfigError
from refvit.graph.cost import parameter_count, total_cost
from refvit.graph.ir import Array
from refvit.loading import READING, Labels, WeightsSource, find, named, read_names, sort
from refvit.model import Model, architecture_graph
from refvit.models import matching
from refvit.vision.result import Result
from refvit.weights import hub, repository
from refvit.weights.embedded import DEFAULT, EMBEDDED, say_once

if TYPE_CHECKING:
    from PIL.Image import Image

    OneImage = bytes | bytearray | Image | Array
else:
    OneImage = Any

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

    model: a name of `list_models`; with a weights tag the weights that come with refvit ("mobilevit_xxs.cifar10") or are on the
        Hugging Face hub ("mobilevit_s.cvnets_in1k", which needs huggingface_hub and is fetched once)
    weights: refvit's own file, or a public checkpoint of a known layout (safetensors and PyTorch's .bin, also in shards, .pth,
        .npz), a folder as the hub has them, a repository of the Hugging Face hub, OWNER/NAME[@REVISION] or
        hf://OWNER/NAME[@REVISION][/FILE] (without hf:// a path that exists goes first), or a dict of arrays
    backend: "numba", compiled kernels; "numpy", the definitions themselves; "auto" is the first of them that works here
    dtype: "float32" (default); on the numpy backend also "float64", for golden values, and "float16"
    device: None or "cpu"
    threads: of the numba backend, by default one for each core that the process may use; numpy uses as many as its BLAS library
    labels: names of the classes, or a text or JSON file of them, in place of those that come with the weights
    fields: single fields to replace, by name
        of the pre-processing: resize, crop, enlarge, longest, interpolation, mean, std, channel_order
        of the post-processing, for segmentation: scales, flip, average, window, window_stride, whole_up_to, fill_window,
        pad_multiple, to_image; for pose estimation: padding, flip, shift, joint_threshold, oks_threshold; for detection: rule,
        score_threshold
        of a PyTorch file: key, which of several nested checkpoints, such as "model_ema"; check_crc=False accepts one that was
        written without checksums
        of the config, what files of foreign layouts do not tell: align_corners (HRNet), gelu, layer_norm_eps, position_resize
        (ViT), output_stride, dilation_rule, rates (DeepLabv3)

    Raises UnknownModelError, WeightsError, ConfigError or BackendError, each of which says what to do.
    """
    reading = {name: fields.pop(name) for name in READING if name in fields}
    overrides = sort(fields)
    if device not in (None, "cpu"):
        raise ConfigError(f'device: None or "cpu" expected, got {device!r}; no backend here has another device')
    found = find(model, weights, overrides, **reading)
    if labels is not None:
        found = named(found, labels)
    return Model(found, backend=backend, dtype=dtype, threads=threads)


_recent: OrderedDict[Any, Model] = OrderedDict()
_lock = threading.Lock()


def _recent_model(model: str | None, weights: WeightsSource | None, options: dict[str, Any]) -> Model:
    """`load`, remembering the last few models. A file that changed is loaded again; a dict of arrays is never remembered."""
    if options["labels"] is not None:
        options["labels"] = read_names(options["labels"])
    if isinstance(weights, Mapping):
        return load(model, weights, **options)
    try:
        stamp: Any = None
        if isinstance(weights, str) and repository.parse(weights):
            stamp = weights  # what a branch leads to is looked up once
        elif weights is not None:
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
    weights: tuple[str, ...]  # tags: of weights that come with refvit, then of those that the Hugging Face hub has

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
            here = tuple(e.partition(".")[2] for e in EMBEDDED if e.partition(".")[0] == a.name)
            params = parameter_count(a.parameters(a.config))
            rows.append(ModelInfo(a.name, a.task, params, a.input_size, here + hub.tags(a.name)))
    return rows


def info() -> dict[str, Any]:
    """Versions, the machine, for each backend whether it can be used here, or else why not and what to do, and what it uses."""
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
        "numba": backends.get("numba").facts() if backends.reason("numba") is None else {},
        "embedded": list(EMBEDDED),
    }
