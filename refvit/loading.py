"""From names, files and arrays to weights, with single fields replaced where the caller says so."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refvit.errors import ConfigError, UnknownModelError, WeightsError
from refvit.graph.ir import Array
from refvit.models import architecture, matching
from refvit.stored import named as with_names
from refvit.stored import replaced
from refvit.vision import postprocess
from refvit.vision.labels import read_labels
from refvit.vision.preprocess import Preprocess
from refvit.weights import repository
from refvit.weights.embedded import DEFAULT, EMBEDDED, FILE, how_to_get, load_embedded
from refvit.weights.hub import fetch, known, model_of
from refvit.weights.readers.checkpoint import read_checkpoint
from refvit.weights.store import KEY, Weights

Labels = Sequence[str] | str | os.PathLike[str]
WeightsSource = str | os.PathLike[str] | Mapping[str, Array]
READING = ("key", "check_crc")  # options of `load` that `read_checkpoint` takes
OPTIONS = (  # of `infer` and `load`, beside the fields
    "image", "model", "weights", "backend", "dtype", "device", "threads", "boxes", "batch_size", "allow_url", "labels",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Overrides:
    """Fields that replace those of the weights, by where they belong."""

    preprocess: dict[str, Any]
    postprocess: dict[str, Any]
    config: dict[str, Any]


def check_options(fields: Mapping[str, Any]) -> None:
    """ConfigError for fields that are none, before anything is read."""
    sort({name: value for name, value in fields.items() if name not in READING})


def sort(fields: Mapping[str, Any]) -> Overrides:
    """Whose field each is; ConfigError suggests what was meant by a name that is nobody's."""
    places = Overrides({}, {}, {})
    owners = [
        ([f.name for f in dataclasses.fields(Preprocess)], places.preprocess),
        (postprocess.names(), places.postprocess),
        ([name for arch in matching("*") for name in arch.options], places.config),
    ]
    for name, value in fields.items():
        place = next((place for names, place in owners if name in names), None)
        if place is None and name in OPTIONS:
            raise ConfigError(f"{name}: an argument of its own, of infer and not of load, or given twice")
        if place is None:
            known = list(OPTIONS)
            known += [name for names, _ in owners for name in names if name not in known]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(dict.fromkeys(known))}"
            raise ConfigError(f"unknown option {name!r}; {hint}")
        place[name] = value
    return places


def find(model: str | None, weights: WeightsSource | None, overrides: Overrides, *, tag: str = "", **reading: Any) -> Weights:
    """The weights that `refvit.load(model, weights)` means.

    weights: arrays, a path, or the id of a repository of the hub, see `repository`. A path that exists always goes first. Tags
        and ids cannot be taken for each other: an id has a slash, and a tag is given as the model.
    tag: what the weights are called, where the name does not say it
    reading: key and check_crc of `read_checkpoint`
    """
    if not isinstance(model, (str, type(None))):
        raise ConfigError(f"model: a name from list_models() expected, got {type(model).__name__}")
    if not isinstance(weights, (str, os.PathLike, Mapping, type(None))):
        raise ConfigError(
            f"weights: a file, a folder, an id of the hub or a dict of arrays expected, got {type(weights).__name__}"
        )
    if model is None and weights is None:
        model = DEFAULT
    name, _, given_tag = (model or "").partition(".")
    if model is not None:
        architecture(name)  # an unknown name is the first thing to say
    if weights is None:
        assert model is not None
        return replaced(_by_tag(model), **vars(overrides))
    from weights_convert import convert, convert_checkpoint

    if weights == "":
        raise ConfigError("weights: a file, a folder or an id of the hub expected, got an empty text")
    options = {"model": name or None, "tag": given_tag or tag, **vars(overrides)}
    taken = WeightsError(f"{model} is the name of weights that come with refvit; give {name} or another tag with weights")
    if isinstance(weights, Mapping):
        if model in EMBEDDED:
            raise taken
        return convert(weights, **options)
    path, folder, origin = _located(weights)
    options["model"] = options["model"] or model_of(origin.get("repository", ""))
    checkpoint = read_checkpoint(path, **reading)
    if KEY in checkpoint.metadata:
        options |= {"model": model, "tag": tag}  # a tag in the name is asserted, as the model is
    elif model in EMBEDDED:
        raise taken
    return convert_checkpoint(checkpoint, folder=folder, source=origin, **options)


def _located(weights: str | os.PathLike[str]) -> tuple[Path, Path, dict[str, Any]]:
    """(file or folder, where its configuration may lie, what to record of where it was got)."""
    place = repository.parse(weights) if isinstance(weights, str) else None
    if place is None:
        return Path(weights), Path(weights), {}
    got = repository.fetch(place)
    origin = {"repository": got.repository, "revision": got.commit}
    return got.file, got.file if got.alone else got.file.parent, origin


def _by_tag(name: str) -> Weights:
    """Weights that need no file: embedded, or of the hub."""
    if name in EMBEDDED:
        return load_embedded(name)
    model, dot, _ = name.partition(".")
    if known(name):
        return fetch(name)
    if dot:
        raise UnknownModelError(f"{name}: refvit knows no such weights; {how_to_get(model)}", FILE)
    raise WeightsError(f"{name}: its weights do not come with refvit; {how_to_get(name)}", FILE)


def named(weights: Weights, labels: Labels) -> Weights:
    """The same with other names of the classes, given or in a file."""
    return with_names(weights, read_names(labels))


def read_names(labels: Labels) -> Sequence[str]:
    """Names of classes, read if they are in a file."""
    return read_labels(labels) if isinstance(labels, (str, os.PathLike)) else labels
