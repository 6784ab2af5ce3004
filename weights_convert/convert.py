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
from refvit.models import architecture
from refvit.vision.labels import check_labels, default_labels
from refvit.vision.preprocess import Preprocess
from refvit.weights.check import differences, require
from refvit.weights.store import Weights, frozen, read_safetensors
from weights_convert import hrnet, hrvit, mobilevit_cvnets, mobilevit_timm, vit_timm
from weights_convert.layout import Layout

LAYOUTS = (vit_timm.LAYOUT, mobilevit_timm.LAYOUT, *mobilevit_cvnets.LAYOUTS, *hrnet.LAYOUTS, *hrvit.LAYOUTS)


def convert(
    state: Mapping[str, Array],
    *,
    model: str | None = None,
    tag: str = "",
    labels: Sequence[str] | None = None,
    preprocess: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
) -> Weights:
    """Convert a checkpoint's tensors, name -> float array, into refvit's `Weights`.

    model: the registry name, where it is to be asserted rather than found by the shapes
    labels: names of the classes, in their order; default: ImageNet-1k's where there are 1000 classes, otherwise none
    preprocess: replaces single fields of the layout's own evaluation transform
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
    name, config = _identify(layout, params, model)
    classes = config.num_classes
    assumed = {} if preprocess else {"preprocess": f"that of the published weights of layout {layout.name}, assumed"}
    if labels is None and classes == 1000:
        assumed["labels"] = "ImageNet-1k, assumed from 1000 classes"
    order = [n for n, _ in architecture(name).parameters(config)]
    return Weights(
        model=name,
        tag=tag,
        config=dataclasses.asdict(config),
        preprocess=Preprocess.from_dict({**layout.preprocess(name, config), **(preprocess or {})}).to_dict(),
        labels=default_labels(classes) if labels is None else check_labels(labels, classes),
        source={"layout": layout.name, **assumed, **(source or {})},
        params={n: frozen(np.array(params[n], order="C")) for n in order},
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


def _identify(layout: Layout, params: Mapping[str, Array], model: str | None) -> tuple[str, Any]:
    """The model whose parameters these are exactly, and its config. If none fits, the error compares with the nearest."""
    overrides = layout.config(params)
    if model is not None and model not in layout.models:
        raise WeightsError(f"layout {layout.name} holds {', '.join(layout.models)}, not {model}")
    found: list[tuple[int, str, Any]] = []
    for name in (model,) if model else layout.models:
        config = dataclasses.replace(architecture(name).config, **overrides)
        found.append((len(differences(architecture(name).parameters(config), params)), name, config))
    if len(same := [name for differing, name, _ in found if not differing]) > 1:
        raise WeightsError(f"these tensors fit {' and '.join(same)}; say which by model=")
    _, name, config = min(found, key=lambda f: f[0])
    if model is not None and found[0][0]:
        for other in layout.models:
            other_config = dataclasses.replace(architecture(other).config, **overrides)
            if not differences(architecture(other).parameters(other_config), params):
                raise WeightsError(f"this is a complete {other} checkpoint, not one of {model}")
    require(f"no {name} checkpoint", architecture(name).parameters(config), params)
    return name, config
