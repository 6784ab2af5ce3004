"""refvit's weights under the names of another project: the converters, read backwards.

What is written is converted again before it leaves: it must give the same tensors, bit by bit, and the same config. A layout
that implies another value of an option (which GELU, an eps, align_corners, ...) is refused, unless the caller says that whoever
reads the file is told. Two differences are removed instead, by other weights for the same function:

- the channel order: the input channels of the first convolution are reversed, so that only the order of a sum changes;
- head_bias: a bias before a batch norm that the layout lacks is subtracted from the norm's mean, which changes the last bits of
  the answer; one that the layout has and the weights lack is written as 0, which changes none.

The counters of batch norms (num_batches_tracked) belong to a checkpoint of PyTorch and not to the model. They are written as 0,
so that the keys are those of the original and loading is strict. Parts for training only (auxiliary heads, poolers) are not in
refvit's weights and cannot be written. Nor is pre- or post-processing in the tensors: where it is not the published one, a note
says so. The metadata of a safetensors file hold it all, so that `convert` finds it there again. An .npz holds tensors only, and
a note names what it lacks.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refvit.errors import WeightsError
from refvit.files import write_atomic
from refvit.graph.ir import Array, Shape
from refvit.models import architecture, config_from_dict
from refvit.vision.postprocess import from_dict as post_from_dict
from refvit.vision.preprocess import Preprocess
from refvit.weights.check import require
from refvit.weights.store import Weights, serialised
from weights_convert.convert import LAYOUTS, convert
from weights_convert.exported import KEY, record
from weights_convert.layout import Layout

PROJECTS = ("timm", "transformers", "cvnets", "cvnets_v2", "jax", "mmseg", "mmpose")  # short names that layouts have in theirs
ALIASES = {  # further short names: the first of these layouts that holds the model
    "timm": ("hrnet.classification",),
    "official": (
        *("vit.jax", "vit.timm", "mobilevit.cvnets", "mobilevit.cvnets.deeplabv3", "mobilevit.cvnets.ssdlite"),
        *("hrnet.classification", "hrnet.segmentation.trained", "hrnet.ocr.trained", "hrnet.pose"),
        *("hrvit.classification", "hrvit.mmseg"),
    ),
}
HINTS = {  # how whoever reads the file is told
    ("transformers", "gelu"): '"hidden_act" in config.json, "gelu" for "none" and "gelu_pytorch_tanh" for "tanh"',
    ("transformers", "layer_norm_eps"): '"layer_norm_eps" in config.json',
    ("transformers", "output_stride"): '"output_stride" in config.json',
    ("transformers", "rates"): '"atrous_rates" in config.json',
    ("timm", "gelu"): 'act_layer="gelu_tanh" of create_model',
    ("timm", "layer_norm_eps"): "norm_layer=partial(LayerNorm, eps=...) of create_model",
}
MATTERS = {  # where an option makes no difference
    "position_resize": "it makes a difference only for images of another size than the trained one",
    "upsample": "it makes a difference only where a side is no multiple of 32",
}


@dataclass(frozen=True)
class Exported:
    """A checkpoint in another layout."""

    layout: str
    state: dict[str, Array]  # copies
    weights: Weights  # the same, in the channel order of the layout and with its biases
    told: tuple[str, ...]  # fields of the config that tensors and layout do not tell
    notes: tuple[str, ...]  # what was changed, and what the tensors do not tell
    lost: tuple[str, ...]  # what only metadata can tell: fields that are not as the layout implies, labels, tag, source


def layout_names(model: str) -> dict[str, str]:
    """The names of the layouts that `model` can be written in, short ones first: name -> full name."""
    held = [layout.name for layout in LAYOUTS if model in layout.models and layout.writable]
    names: dict[str, str] = {}
    for short in (*PROJECTS, *ALIASES):
        own = sorted((name for name in held if short in name.split(".")), key=lambda name: name.count("."))
        found = own or [name for name in ALIASES.get(short, ()) if name in held]
        names |= {short: found[0]} if found else {}
    return names | {name: name for name in held}


def export(weights: Weights, layout: str, *, told: Collection[str] = ()) -> dict[str, Array]:
    """The tensors of `weights` under the names of `layout`, name -> array, in their dtype.

    layout: one of `layout_names(weights.model)`: "timm", "transformers", "cvnets", "official", "vit.jax.linen", ...
    told: fields of the config that whoever reads the file is told in another way, so that the layout need not imply them

    WeightsError if there is no such layout for the model, or it implies another config.
    """
    return prepare(weights, layout, told=told).state


def export_file(weights: Weights, layout: str, path: str | os.PathLike[str], *, told: Collection[str] = ()) -> Exported:
    """Write what `export` gives, whole or not at all, as safetensors; where the name ends in .npz, as NumPy's archive.

    The metadata of safetensors hold, as JSON under "refvit_export", what the tensors do not: model, config, pre- and
    post-processing, labels, source, notes; `convert_file` reads them back. An .npz has none, and a note says what is lost.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".npz"):
        raise WeightsError(f"{path}: a name that ends in .safetensors or .npz expected")
    done = prepare(weights, layout, told=told)
    if path.suffix == ".npz":
        buffer, arrays = io.BytesIO(), dict[str, Any](done.state)
        np.savez(buffer, **arrays)
        write_atomic(path, buffer.getvalue())
        note = f"an .npz holds tensors only: not in it are {', '.join(done.lost)}; write .safetensors to keep them"
        return dataclasses.replace(done, notes=(*done.notes, note))
    # transformers refuses files without a "format"; "pt" is what all of the Hugging Face hub say.
    metadata = {"format": "pt", KEY: record(done.weights, done.layout, done.state, done.told, done.notes)}
    write_atomic(path, serialised(done.state, metadata))
    return done


def prepare(weights: Weights, layout: str, *, told: Collection[str] = ()) -> Exported:
    """As `export`, with what there is to say about the result."""
    names = layout_names(weights.model)
    if layout not in names:
        raise WeightsError(f"{weights.model} cannot be written as {layout!r}; it can as {', '.join(names) or 'nothing'}")
    fields = [field.name for field in dataclasses.fields(architecture(weights.model).config)]
    if unknown := [field for field in told if field not in fields]:
        raise WeightsError(f"told: {', '.join(unknown)} not in the config of {weights.model}: {', '.join(fields)}")
    exported, differing = _write(weights, names[layout], told)
    if not differing:
        return exported
    listed = ", ".join(f"{field} {theirs!r} where these weights have {ours!r}" for field, (ours, theirs) in differing.items())
    others = [name for name in names if name == names[name] != exported.layout and _expresses(weights, name, told)]
    hints = MATTERS | {field: hint for (project, field), hint in HINTS.items() if project in exported.layout.split(".")}
    known = [f"{field}: {hints[field]}" for field in differing if field in hints]
    say = f"told={[*told, *differing]}"
    raise WeightsError(
        f"{weights.name}: layout {exported.layout} implies {listed}; write {' or '.join(others) or 'no other layout'}, or, if "
        f"whoever reads the file is told, say {say}" + (f" ({'; '.join(known)})" if known else ""),
        say,
    )


def _write(weights: Weights, name: str, told: Collection[str]) -> tuple[Exported, dict[str, tuple[Any, Any]]]:
    """The checkpoint, and where its config is another: field -> (ours, theirs)."""
    layout = next(layout for layout in LAYOUTS if layout.name == name)
    fitted, notes = _fit(weights, layout)
    state = layout.export(fitted.params)
    ours = fitted.config
    untold = {field: ours[field] for field, value in layout.config(fitted.params).items() if value is None}
    back = convert(state, model=weights.model, config=untold)
    if back.source["layout"] != name or back.sha256 != fitted.sha256:
        raise WeightsError(f"{weights.name}: layout {name} does not give the same tensors back")
    hidden = [field for field, value in ours.items() if field in untold or back.config[field] != value]
    notes += [f"{field}: the file does not tell that it is {ours[field]!r}" for field in hidden]
    lost = list(hidden)
    for mine, published in ((fitted.preprocess, back.preprocess), (fitted.postprocess, back.postprocess)):
        other = [key for key, value in mine.items() if value != published[key]]
        notes += [f"{key}: {mine[key]!r}, in this layout {published[key]!r} is published" for key in other]
        lost += other
    lost += ["labels"] if fitted.labels != back.labels else []
    lost += ["tag"] if fitted.tag else []
    differing = {field: (ours[field], back.config[field]) for field in hidden if field not in {*told, *untold}}
    given = tuple(field for field in hidden if field not in untold)
    return Exported(name, state, fitted, given, tuple(notes), (*lost, "source")), differing


def _fit(weights: Weights, layout: Layout) -> tuple[Weights, list[str]]:
    """Weights of the same function, in the channel order of the layout and with its biases, and notes of what was changed."""
    arch = architecture(weights.model)
    settings = config_from_dict(arch.config, weights.config)
    require(f"weights {weights.name}", arch.parameters(settings), weights.params)
    params, notes = dict(weights.params), []
    preprocess = Preprocess.from_dict(weights.preprocess)
    order = layout.preprocess(weights.model, settings)["channel_order"]
    if order != preprocess.channel_order:
        preprocess = preprocess.replace(channel_order=order, mean=preprocess.mean[::-1], std=preprocess.std[::-1])
        stem = first_convolution(params)
        params[stem] = params[stem][:, ::-1]
        notes.append(f"channel_order: {order} in this layout; the input channels of {stem} are reversed")
    bias = layout.config(params).get("head_bias", getattr(arch.config, "head_bias", None))
    if bias != getattr(settings, "head_bias", None):
        settings = dataclasses.replace(settings, head_bias=bias)
        params = with_head_bias(params, dict(arch.parameters(settings)))
        notes.append(f"head_bias: {bias} in this layout; biases before a norm are {'0' if bias else 'part of its mean'}")
    fitted = dataclasses.replace(
        weights,
        config=dataclasses.asdict(settings),
        preprocess=preprocess.to_dict(),
        postprocess=post_from_dict(arch.task, weights.postprocess).to_dict(),
        params=params,
    )
    return fitted, notes


def first_convolution(params: Mapping[str, Array]) -> str:
    """The name of the weights that read the image: of the only convolution with three input channels."""
    (name,) = (name for name, a in params.items() if a.ndim == 4 and a.shape[1] == 3)
    return name


def with_head_bias(params: Mapping[str, Array], expected: Mapping[str, Shape]) -> dict[str, Array]:
    """HRNet's parameters with those biases of convolutions X.0 before norms X.1 that are expected, and no others.

    One that goes becomes part of the norm's mean, as (x + b) - m is x - (m - b); one that comes is 0.
    """
    out = dict(params)
    for name, shape in expected.items():
        if name not in params:
            out[name] = np.zeros(shape, params[_mean(name)].dtype)
    for name in params:
        if name not in expected:
            out[_mean(name)] = params[_mean(name)] - out.pop(name)
    return out


def _mean(bias: str) -> str:
    return f"{bias.removesuffix('0.bias')}1.running_mean"


def _expresses(weights: Weights, name: str, told: Collection[str]) -> bool:
    try:
        return not _write(weights, name, told)[1]
    except WeightsError:
        return False
