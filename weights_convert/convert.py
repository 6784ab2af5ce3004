"""Recognise a checkpoint's layout, rename its tensors, and say which model it is."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refvit.errors import WeightsError
from refvit.graph.ir import Array
from refvit.models import architecture, config_from_dict
from refvit.stored import of_checkpoint
from refvit.vision.labels import check_labels, default_labels
from refvit.vision.postprocess import from_dict as post_from_dict
from refvit.vision.postprocess import replaced
from refvit.vision.preprocess import Preprocess
from refvit.weights.check import differences, require
from refvit.weights.readers.checkpoint import Checkpoint, read_checkpoint
from refvit.weights.readers.torch_state import strip_prefix
from refvit.weights.store import KEY, Weights, frozen
from weights_convert import (
    hrnet,
    hrnet_openmmlab,
    hrvit,
    mobilevit_cvnets,
    mobilevit_timm,
    mobilevit_transformers,
    vit_jax,
    vit_timm,
    vit_transformers,
)
from weights_convert.exported import read_record
from weights_convert.layout import Layout
from weights_convert.sidecar import NOTHING, Sidecar, beside_file, of_transformers, read_sidecar

LAYOUTS = (
    vit_timm.LAYOUT,
    *vit_transformers.LAYOUTS,
    *vit_jax.LAYOUTS,
    mobilevit_timm.LAYOUT,
    *mobilevit_transformers.LAYOUTS,
    *mobilevit_cvnets.LAYOUTS,
    *hrnet.LAYOUTS,
    *hrnet_openmmlab.LAYOUTS,
    *hrvit.LAYOUTS,
)

PREFIXES = ("module.", "model.", "backbone.", "net.", "_orig_mod.")  # the last is that of torch.compile
MAX_PREFIXES = 4  # one behind the other
LEFT_OUT = "left_out"  # in the source: names of tensors that no model has, by the reason
SHOWN = 3  # names in a message


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
    beside: Sidecar = NOTHING,
    copy: bool = True,
) -> Weights:
    """Convert a checkpoint's tensors, name -> float array, into refvit's `Weights`.

    model: the registry name, where it is to be asserted rather than found by the shapes
    labels: names of the classes, in their order; default: those of the data set that is known for this number, if one is
    preprocess, postprocess: replace single fields of the published evaluation
    config: what the tensors do not tell, by the name of the config's field: align_corners, gelu, ...
    source: recorded in the result, beside "assumed": the fields that are those of the published weights and not of this file,
        and "left_out": the names of what no model has, such as counters of training, by the reason
    beside: what the configuration beside the tensors says; the arguments above go before it
    copy: False keeps the arrays themselves where that is possible, for arrays that nobody else can change

    WeightsError if no layout, or no model, fits exactly.
    """
    for name, a in state.items():
        if not isinstance(name, str) or not isinstance(a, np.ndarray):
            raise WeightsError(f"a dict of names and NumPy arrays expected, got {name!r:.40}: {type(a).__name__}")
    layout, prefix = recognise(state)
    if prefix:
        state = {name.removeprefix(prefix): a for name, a in state.items()}
        source = {"prefix": prefix, **(source or {})}
    params = layout.rename(state)
    for name, a in params.items():
        if a.dtype.kind != "f":
            raise WeightsError(f"{name}: floating-point values expected, got {a.dtype}")
    name, settings = _identify(layout, params, model, config or {}, beside)
    arch = architecture(name)
    given = {*(config or ()), *(preprocess or ()), *(postprocess or ()), *(() if labels is None else ["labels"])}
    # A map or a pose is of the whole image: what a processor crops would be lost.
    whole = arch.task == "classification" or beside.complete
    pixels = {k: v for k, v in beside.preprocess.items() if whole or k not in ("resize", "crop")}
    preprocess = {**pixels, **(preprocess or {})}
    postprocess = replaced(beside.postprocess, postprocess or {})
    labels = beside.labels if labels is None else labels
    told = {*beside.config, *(config or {}), *preprocess, *postprocess}
    reasons = {} if beside.complete else layout.assumed(name, settings)
    reasons = {field: text for field, text in reasons.items() if field not in told}
    names = None if beside.complete else default_labels(arch.task, settings.num_classes)
    published = layout.preprocess(name, settings)
    published_post = layout.postprocess(name, settings)
    assumed = [field for field in {**published, **published_post, **reasons} if field not in told]
    if labels is None and names:
        assumed.append("labels")
    still = [field for field in beside.assumed if field not in given]
    assumed += still
    reasons |= {field: beside.source[field] for field in still if field in beside.source}
    known: dict[str, Any] = {"exported_from": dict(beside.source)} if beside.source else {}
    known |= {"configuration": list(beside.files)} if beside.files else {}
    known |= {LEFT_OUT: left_out} if (left_out := layout.left_out(state)) else {}
    post = replaced(published_post, postprocess)
    return Weights(
        model=name,
        tag=tag or beside.tag,
        config=dataclasses.asdict(settings),
        preprocess=Preprocess.from_dict({**published, **preprocess}).to_dict(),
        postprocess=post_from_dict(arch.task, post).to_dict(),
        labels=names if labels is None else check_labels(labels, settings.num_classes),
        source={"layout": layout.name, "assumed": assumed, **reasons, **(source or {}), **known},
        params={n: frozen(np.array(params[n], order="C", copy=copy or None)) for n, _ in arch.parameters(settings)},
    )


def convert_file(path: str | os.PathLike[str], *, key: str | None = None, check_crc: bool = True, **options: Any) -> Weights:
    """Convert a file of any format, or a folder as the Hugging Face hub has them; key and check_crc as in `read_checkpoint`.

    The other options are those of `convert`; they go before what is written beside the tensors: in the metadata of a file that
    `export_file` wrote, in config.json and preprocessor_config.json of a folder, in the same of transformers beside a file of
    transformers. The file's name and sha256 are recorded as its source, of shards as `Checkpoint` has them. A file of refvit's
    own gives what was recorded in it, checked, with these options in place.
    """
    return convert_checkpoint(read_checkpoint(path, key=key, check_crc=check_crc), folder=Path(path), **options)


def convert_checkpoint(checkpoint: Checkpoint, *, folder: Path | None = None, **options: Any) -> Weights:
    """Convert what `read_checkpoint` gave. folder: where its configuration lies, if that is a folder."""
    if KEY in checkpoint.metadata:
        return of_checkpoint(checkpoint, **options)
    source: dict[str, Any] = {"file": checkpoint.file.name, "sha256": checkpoint.sha256}
    if checkpoint.wrappers:
        source["key"] = ".".join(checkpoint.wrappers)
    options["source"] = {**source, **(options.get("source") or {})}
    try:
        beside = read_record(checkpoint.metadata, checkpoint.tensors)
        if beside is None and folder is not None and folder.is_dir():
            beside = read_sidecar(folder)
        elif beside is None:
            beside = beside_file(checkpoint.file, recognise(checkpoint.tensors)[0].name)
        return convert(checkpoint.tensors, beside=beside, copy=False, **options)
    except WeightsError as error:
        raise WeightsError(f"{checkpoint.file}: {error}") from error


def recognise(state: Mapping[str, Array]) -> tuple[Layout, str]:
    """The one layout that matches, and the prefix of all names without which it does: trainers put some before a model's own.

    WeightsError names the nearest if none does, and all if several do.
    """
    prefix, names = "", state
    for _ in range(1 + MAX_PREFIXES):
        found = [layout for layout in LAYOUTS if layout.matches(names)]
        if len(found) == 1:
            return found[0], prefix
        if found:
            each = []
            for layout in found:
                own = layout.signature.difference(*(other.signature for other in found if other is not layout))
                each.append(f"{layout.name} (by {', '.join(sorted(own or layout.signature)[:SHOWN])})")
            raise WeightsError(
                f"these {len(names)} tensors have the names of {len(found)} layouts, {' and '.join(each)}; the names "
                "decide: keep those of one model in a file of their own"
            )
        names, more = strip_prefix(names, PREFIXES)
        if not more:
            break
        prefix += more
    few = ", ".join(f"{name:.80}" for name in list(state)[:3]) or "none at all"
    lacking = {layout: sorted(layout.signature - state.keys()) for layout in LAYOUTS}
    nearest = min(LAYOUTS, key=lambda layout: (len(lacking[layout]) / len(layout.signature), layout.name))
    hint = f"nearest is {nearest.name}, which has {' and '.join(lacking[nearest][:3])} as well"
    if len(lacking[nearest]) == len(nearest.signature):
        families = ", ".join(sorted({layout.name.partition(".")[0] for layout in LAYOUTS}))
        hint = f"none of them, for {families}, has such names"
    raise WeightsError(
        f"the layout is not one of the {len(LAYOUTS)} known; of {len(state)} tensors the first are {few}; {hint}"
    )


def _identify(
    layout: Layout, params: Mapping[str, Array], model: str | None, given: Mapping[str, Any], beside: Sidecar
) -> tuple[str, Any]:
    """The model whose parameters these are exactly, and its config. If none fits, the error compares with the nearest.

    Among those that fit alike, such as a ViT and a DeiT of one size, decides `model`, or else what is told beside the tensors.
    WeightsError as well if that is of another model.
    """
    other = f"if {beside.origin} belongs to other weights, put this file into a folder of its own"
    if of_transformers(layout.name) and beside.model_type not in (None, layout.name.partition(".")[0]):
        raise WeightsError(
            f"{beside.origin} says model_type {beside.model_type!r:.60}, and the layout is {layout.name}; {other}"
        )
    if beside.complete:
        other = "do not trust it: get the file again"
    if beside.model is not None and model not in (None, beside.model):
        raise WeightsError(f"{beside.origin} says that it holds {beside.model}, not {model}")
    model = model or beside.model
    asked, given = given, {**beside.config, **given}
    if model is not None and model not in layout.models:
        raise WeightsError(f"layout {layout.name} holds {', '.join(layout.models)}, not {model}")
    options = {field for name in layout.models for field in architecture(name).options}
    if unknown := [field for field in (asked if beside.complete else given) if field not in options]:
        raise WeightsError(
            f"{', '.join(unknown)}: no option of layout {layout.name}; its are {', '.join(sorted(options)) or 'none'}"
        )
    fields = {**layout.config(params), **given}
    configs: dict[str, Any] = {}
    for name in layout.models:
        published = architecture(name).config
        known = {field: value for field, value in fields.items() if value is not None}
        configs[name] = config_from_dict(published, dataclasses.asdict(published) | known)
    differing = {name: len(differences(architecture(name).parameters(c), params)) for name, c in configs.items()}
    same = [name for name, count in differing.items() if not count]
    fit = [name for name in same if name in beside.suggested]
    if same and beside.suggested and not fit:
        says = " or ".join(beside.suggested[:SHOWN]) + (" or another" if len(beside.suggested) > SHOWN else "")
        raise WeightsError(
            f"{beside.origin} says that this is {says}, and the tensors are those of {' or '.join(same)}; {other}"
        )
    if model is None and len(fit or same) > 1:
        raise WeightsError(f"these tensors fit {' and '.join(fit or same)}; say which by model=", "model=")
    likely = fit or [name for name in differing if name in beside.suggested] or list(differing)
    name = model or min(likely, key=lambda n: differing[n])
    if same and name not in same:
        raise WeightsError(f"this is a complete {same[0]} checkpoint, not one of {name}")
    require(f"no {name} checkpoint", architecture(name).parameters(configs[name]), params)
    if undecided := [field for field, value in fields.items() if value is None]:
        say = [f"{field}=" for field in undecided]
        raise WeightsError(
            f"{name}: neither the tensors nor the number of classes, {configs[name].num_classes}, tell "
            f"{' or '.join(undecided)}; say {' and '.join(say)} (see the repository that trained it)",
            *say,
        )
    for field, value in beside.expected.items():
        if getattr(configs[name], field) != value:
            raise WeightsError(
                f"{beside.origin} says {field} {value!r:.60}, and {name} has {getattr(configs[name], field)!r}; this is "
                f"another model, or model= names the wrong one; {other}",
                "model=",
            )
    return name, configs[name]
