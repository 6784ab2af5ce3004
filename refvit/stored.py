"""Weights out of refvit's own files: whether they fit their model, and what the caller says in place of what was recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from refvit.errors import ConfigError, WeightsError
from refvit.models import architecture, config_from_dict
from refvit.vision import postprocess as post
from refvit.vision.labels import check_labels
from refvit.vision.preprocess import Preprocess
from refvit.weights.check import require
from refvit.weights.readers.checkpoint import Checkpoint
from refvit.weights.store import Weights, parse


def of_checkpoint(
    checkpoint: Checkpoint,
    *,
    model: str | None = None,
    tag: str = "",
    labels: Sequence[str] | None = None,
    preprocess: Mapping[str, Any] | None = None,
    postprocess: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
) -> Weights:
    """What `store.save` wrote, once its tensors and labels are those of its model.

    model: NAME or NAME.TAG, an assertion
    tag: another one than is recorded
    labels, preprocess, postprocess, config: as in `replaced` and `named`
    source: added to what is recorded

    WeightsError or ConfigError if something does not fit.
    """
    found = parse(checkpoint.file, checkpoint.tensors, checkpoint.metadata)
    arch = architecture(found.model)
    settings = config_from_dict(arch.config, found.config)
    require(f"{checkpoint.file}: weights {found.name}", arch.parameters(settings), found.params)
    if found.labels is not None:
        check_labels(found.labels, settings.num_classes)
    if model not in (None, found.model, found.name):
        raise WeightsError(f"{checkpoint.file}: holds the weights of {found.name}, not of {model}")
    found = dataclasses.replace(found, tag=tag or found.tag, source={**found.source, **(source or {})})
    found = replaced(found, preprocess=preprocess, postprocess=postprocess, config=config)
    return found if labels is None else named(found, labels)


def replaced(
    weights: Weights,
    *,
    preprocess: Mapping[str, Any] | None = None,
    postprocess: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Weights:
    """The same with other values of single fields. ConfigError for one that does not belong to the model."""
    preprocess, postprocess, config = preprocess or {}, postprocess or {}, config or {}
    arch = architecture(weights.model)
    if unknown := [name for name in config if name not in arch.options]:
        raise ConfigError(f"{', '.join(unknown)}: no option of {weights.model}; its are {', '.join(arch.options) or 'none'}")
    return dataclasses.replace(
        weights,
        preprocess=Preprocess.from_dict(weights.preprocess).replace(**preprocess).to_dict(),
        postprocess=post.from_dict(arch.task, post.replaced(weights.postprocess, postprocess)).to_dict(),
        config={**weights.config, **config},
        source=_told(weights.source, {*config, *preprocess, *postprocess}),
    )


def named(weights: Weights, labels: Sequence[str]) -> Weights:
    """The same with other names of the classes. ConfigError if they are not as many."""
    names = check_labels(labels, weights.config["num_classes"])
    return dataclasses.replace(weights, labels=names, source=_told(weights.source, {"labels"}))


def _told(source: Mapping[str, Any], fields: set[str]) -> dict[str, Any]:
    """The source without what it says of fields that somebody has told."""
    rest = {name: value for name, value in source.items() if name not in fields}
    return rest | ({"assumed": [name for name in rest["assumed"] if name not in fields]} if "assumed" in rest else {})
