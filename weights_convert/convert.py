"""Recognise a checkpoint's layout, rename its tensors, and say which model it is."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refvit.errors import WeightsError
from refvit.graph.ir import Array
from refvit.models import architecture, config_from_dict
from refvit.vision.labels import check_labels, default_labels
from refvit.vision.postprocess import from_dict as post_from_dict
from refvit.vision.preprocess import Preprocess
from refvit.weights.check import differences, require
from refvit.weights.store import Weights, frozen, read_safetensors
from weights_convert import (
    hrnet,
    hrvit,
    mobilevit_cvnets,
    mobilevit_timm,
    mobilevit_transformers,
    vit_jax,
    vit_timm,
    vit_transformers,
)
from weights_convert.layout import Layout

LAYOUTS = (
    vit_timm.LAYOUT,
    *vit_transformers.LAYOUTS,
    *vit_jax.LAYOUTS,
    mobilevit_timm.LAYOUT,
    *mobilevit_transformers.LAYOUTS,
    *mobilevit_cvnets.LAYOUTS,
    *hrnet.LAYOUTS,
    *hrvit.LAYOUTS,
)


def convert(
    state: Mapping[str, Array],
    *,
    model: str | None = None,
    tag: str = "",
    labels: Sequence[str] | None = None,
    preprocess: Mapping[str, Any] | None = None,
    postprocess: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
) -> Weights:
    """Convert a checkpoint's tensors, name -> float array, into refvit's `Weights`.

    model: the registry name, where it is to be asserted rather than found by the shapes
    labels: names of the classes, in their order; default: ImageNet-1k's where there are 1000 classes, otherwise none
    preprocess, postprocess: replace single fields of the published evaluation
    config: what the tensors do not tell, by the name of the config's field: align_corners, gelu, ...
    source: recorded in the result

    WeightsError if no layout, or no model, fits exactly.
    """
    for name, a in state.items():
        if not isinstance(name, str) or not isinstance(a, np.ndarray):
            raise WeightsError(f"a dict of names and NumPy arrays expected, got {name!r:.40}: {type(a).__name__}")
    layout = _recognise(state)
    params = layout.rename(state)
    for name, a in params.items():
        if a.dtype.kind != "f":
            raise WeightsError(f"{name}: floating-point values expected, got {a.dtype}")
    name, settings = _identify(layout, params, model, config or {})
    arch = architecture(name)
    assumed = dict(layout.assumed(name, settings))
    if not preprocess:
        assumed["preprocess"] = f"that of the published weights of layout {layout.name}, assumed"
    names = default_labels(arch.task, settings.num_classes)
    if labels is None and names:
        assumed["labels"] = f"assumed from {settings.num_classes} classes"
    for field in {**(config or {}), **(postprocess or {})}:
        assumed.pop(field, None)
    post = {**layout.postprocess(name, settings), **(postprocess or {})}
    return Weights(
        model=name,
        tag=tag,
        config=dataclasses.asdict(settings),
        preprocess=Preprocess.from_dict({**layout.preprocess(name, settings), **(preprocess or {})}).to_dict(),
        postprocess=post_from_dict(arch.task, post).to_dict(),
        labels=names if labels is None else check_labels(labels, settings.num_classes),
        source={"layout": layout.name, **assumed, **(source or {})},
        params={n: frozen(np.array(params[n], order="C")) for n, _ in arch.parameters(settings)},
    )


def convert_file(path: str | os.PathLike[str], **options: Any) -> Weights:
    """Convert a safetensors file; the options are those of `convert`. The file's name and sha256 are recorded as its source."""
    path = Path(path)
    state, _ = read_safetensors(path)
    with open(path, "rb") as f:
        sha256 = hashlib.file_digest(f, "sha256").hexdigest()
    source = {"file": path.name, "sha256": sha256, **options.pop("source", {})}
    try:
        return convert(state, source=source, **options)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def _recognise(state: Mapping[str, Array]) -> Layout:
    found = [layout for layout in LAYOUTS if layout.matches(state)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(layout.name for layout in LAYOUTS)
    few = ", ".join(list(state)[:3]) or "no tensors at all"
    raise WeightsError(f"the layout is not one of {known}; the file has {len(state)} tensors: {few}, ...")


def _identify(layout: Layout, params: Mapping[str, Array], model: str | None, given: Mapping[str, Any]) -> tuple[str, Any]:
    """The model whose parameters these are exactly, and its config. If none fits, the error compares with the nearest."""
    if model is not None and model not in layout.models:
        raise WeightsError(f"layout {layout.name} holds {', '.join(layout.models)}, not {model}")
    options = {field for name in layout.models for field in architecture(name).options}
    if unknown := [field for field in given if field not in options]:
        what = f"what can be said is {', '.join(sorted(options))}" if options else "there is nothing to be said"
        raise WeightsError(f"{', '.join(unknown)}: decided by the tensors of layout {layout.name}; {what}")
    fields = {**layout.config(params), **given}
    configs: dict[str, Any] = {}
    for name in layout.models:
        published = architecture(name).config
        known = {field: value for field, value in fields.items() if value is not None}
        configs[name] = config_from_dict(published, dataclasses.asdict(published) | known)
    differing = {name: len(differences(architecture(name).parameters(c), params)) for name, c in configs.items()}
    same = [name for name, count in differing.items() if not count]
    if model is None and len(same) > 1:
        raise WeightsError(f"these tensors fit {' and '.join(same)}; say which by model=")
    name = model or min(differing, key=lambda n: differing[n])
    if same and name not in same:
        raise WeightsError(f"this is a complete {same[0]} checkpoint, not one of {name}")
    require(f"no {name} checkpoint", architecture(name).parameters(configs[name]), params)
    if undecided := [field for field, value in fields.items() if value is None]:
        raise WeightsError(
            f"{name}: neither the tensors nor the number of classes, {configs[name].num_classes}, tell "
            f"{' or '.join(undecided)}; say {'= and '.join(undecided)}= (see the repository that trained it)"
        )
    return name, configs[name]
