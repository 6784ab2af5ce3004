"""What lies beside the tensors in a folder of the Hugging Face hub: config.json and preprocessor_config.json.

They decide what the tensors leave open: names of classes, eps, GELU, sizes and normalisation. Two dialects are understood,
that of transformers and that of timm; a field that refvit cannot honour is an error and not ignored.

Of a folder they are always used. A file that is given alone has a config.json beside it only by the convention of transformers,
so it is used where file and config.json are both of transformers, and then has to agree with the tensors.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refvit.errors import WeightsError
from refvit.models import ARCHITECTURES
from refvit.weights.readers.safetensors import strict_json

GELU = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh"}
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}  # Pillow's numbers
DENSE = {"output_stride": "output_stride", "atrous_rates": "rates"}
_VIT = {
    "num_attention_heads": "num_heads",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "num_hidden_layers": "depth",
    "hidden_size": "embed_dim",
}
SAME = {  # by model_type: what both configurations say
    "vit": _VIT,
    "deit": _VIT,
    "mobilevit": {"num_attention_heads": "num_heads", "layer_norm_eps": "layer_norm_eps"},
}
TIMM_GELU = {"gelu": "none", "gelu_tanh": "tanh"}
SHAPE = {  # timm's arguments of a ViT, by which it is another of refvit's models
    "img_size": "image_size",
    "patch_size": "patch_size",
    "embed_dim": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
}
_VIT_ARGS: dict[str, tuple[Any, ...]] = {
    "in_chans": (3,),
    "global_pool": ("token",),
    "act_layer": tuple(TIMM_GELU),
    "norm_layer": ("layernorm", "layernormfp32"),  # with timm's eps, 1e-6
    "pos_embed": ("learn",),
    "reg_tokens": (0,),
    "fc_norm": (False,),
    **dict.fromkeys(("qkv_bias", "proj_bias", "class_token", "final_norm"), (True,)),
    **dict.fromkeys(("qk_norm", "scale_attn_norm", "scale_mlp_norm", "no_embed_class", "pre_norm"), (False,)),
    "pool_include_prefix": (False,),
}
ARGS: dict[str, dict[str, tuple[Any, ...]]] = {  # by family: further arguments of timm, and their values in refvit's models
    "vit": _VIT_ARGS,
    "deit": _VIT_ARGS,
    "mobilevit": {
        "in_chans": (3,),
        "global_pool": ("avg",),
        "output_stride": (32,),
        "act_layer": ("silu", "swish"),
        "norm_layer": ("batchnorm", "batchnorm2d"),
    },
    "hrnet": {"in_chans": (3,), "global_pool": ("avg",), "output_stride": (32,), "head": ("classification",)},
}
NO_MATTER = {  # arguments for training only, about which sizes of images are let in, and what is looked at elsewhere
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
    *("drop_block_rate", "drop_block_size", "weight_init", "fix_init", "zero_init_last"),
    *("img_size", "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "num_classes"),
}
SUFFIXES = ("_in21k", "_sam", "_ssld")  # of timm's names for weights of the model without it
LIMIT = 2**24  # bytes of such a file
NAMES = ("config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Sidecar:
    """What is told beside the tensors, as arguments of `convert`; what is not told is left out."""

    origin: str = NAMES[0]
    files: tuple[str, ...] = ()  # names of those that were read
    model_type: str | None = None  # transformers' name of the family
    suggested: tuple[str, ...] = ()  # models that it can be of, by their names in the registry; none if it says nothing
    labels: tuple[str, ...] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    expected: Mapping[str, Any] = field(default_factory=dict)  # fields of the config that the result must have
    # What only refvit itself writes, see `exported`.
    complete: bool = False  # whether nothing is left to what is published
    model: str | None = None
    tag: str = ""
    postprocess: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()  # fields that were assumed all the same


NOTHING = Sidecar()


def read_sidecar(folder: Path) -> Sidecar:
    """The files of a folder; an empty answer if there are none. WeightsError for what cannot be read or honoured."""
    config, processor = (_read(folder / name) for name in NAMES)
    files = tuple(name for name, content in zip(NAMES, (config, processor), strict=True) if content)
    try:
        if _is_timm(config):
            return replace(_timm(config, folder / NAMES[0]), files=files[:1])
        return replace(_transformers(config, processor, folder), files=files)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{folder}: config.json or preprocessor_config.json holds a value of another kind ({error}); mend it, "
            "or move it away"
        ) from error


def beside_file(path: Path, layout: str) -> Sidecar:
    """What the folder of a file that is given alone tells about it. Nothing unless file and config.json are of transformers.

    layout: the name of the file's
    """
    if not of_transformers(layout):
        return NOTHING
    config = _read(path.parent / NAMES[0])
    return read_sidecar(path.parent) if "model_type" in config and not _is_timm(config) else NOTHING


def of_transformers(layout: str) -> bool:
    """Whether it is one of transformers' layouts, by its name."""
    return "transformers" in layout.split(".")


def _is_timm(config: Mapping[str, Any]) -> bool:
    return "pretrained_cfg" in config or "architecture" in config


def _timm(config: Mapping[str, Any], path: Path) -> Sidecar:
    cfg = {**config, **config.get("pretrained_cfg", {})}
    if "architecture" not in cfg:
        raise WeightsError(f"{path}: architecture missing, timm's name of the model; get the file again")
    args = {"global_pool": config.get("global_pool") or None, **config.get("model_args", {})}
    args = {arg: value for arg, value in args.items() if value is not None}  # as timm reads them
    suggested = _with_arguments(_architecture(cfg["architecture"], path), args, path)
    gelu = TIMM_GELU.get(_lower(args.get("act_layer")))
    classes = [part["num_classes"] for part in (args, config, cfg) if "num_classes" in part]
    labels = config.get("label_names") or cfg.get("label_names") or config.get("labels")
    if isinstance(labels, list):
        labels = dict(enumerate(labels))
    preprocess: dict[str, Any] = {name: cfg[name] for name in ("mean", "std", "interpolation") if name in cfg}
    if "input_size" in cfg:
        size = cfg["input_size"][-1]
        ratio = cfg.get("crop_pct") or 1.0
        mode = cfg.get("crop_mode") or "center"
        if cfg["input_size"] != [3, size, size] or mode not in ("center", "squash"):
            raise WeightsError(f"{path}: input_size {cfg['input_size']} with crop_mode {mode!r} is not among what refvit does")
        if "img_size" in args and cfg.get("fixed_input_size") and not args.get("dynamic_img_size"):
            size = _side(args["img_size"])  # older files state the size before it was changed
        scaled = math.floor(size / ratio)
        preprocess |= {"resize": [scaled, scaled] if mode == "squash" else scaled, "crop": size}
    return Sidecar(
        suggested=suggested,
        labels=_names(labels, path, "label_names") if labels else None,
        config={"gelu": gelu} if gelu else {},
        expected={"num_classes": classes[0]} if classes else {},
        preprocess=preprocess,
    )


def _architecture(name: Any, path: Path) -> str:
    """The registry's name of a model of timm's, which may have a tag or say by a suffix what it was trained on."""
    plain = str(name).partition(".")[0]
    for suffix in SUFFIXES:
        plain = plain.removesuffix(suffix)
    if plain in ARCHITECTURES:
        return plain
    near = difflib.get_close_matches(plain, ARCHITECTURES, n=3)
    hint = f"; the nearest that it has are {', '.join(near)}" if near else ""
    raise WeightsError(f"{path}: architecture {name!r:.80} is no model that refvit has{hint}")


def _with_arguments(name: str, args: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The models that timm's `name` is with these arguments. WeightsError names one that refvit cannot honour."""
    family = name.partition("_")[0]
    usual = ARGS.get(family, {})
    shape = {arg: _side(value) for arg, value in args.items() if arg in SHAPE and family in ("vit", "deit")}
    for arg, value in args.items():
        if arg not in shape and arg not in NO_MATTER and _lower(value) not in usual.get(arg, ()):
            known = f"refvit's models have {' or '.join(map(repr, usual[arg]))}" if arg in usual else "refvit does not know it"
            raise WeightsError(f"{path}: timm's argument {arg} is {value!r:.60}, and {known}")
    wanted = replace(ARCHITECTURES[name].config, **{SHAPE[arg]: value for arg, value in shape.items()})
    found = tuple(n for n, a in ARCHITECTURES.items() if n.partition("_")[0] == family and a.config == wanted)
    if not found:
        asked = ", ".join(f"{arg} {value!r:.60}" for arg, value in shape.items())
        raise WeightsError(f"{path}: refvit has no {name} with timm's arguments {asked}")
    return found


def _side(size: Any) -> Any:
    """The one number of a square's two."""
    return size[0] if isinstance(size, list) and len(size) == 2 and size[0] == size[1] else size


def _lower(value: Any) -> Any:
    """Layers have the same names with capitals."""
    return value.lower() if isinstance(value, str) else value


def _names(names: Any, path: Path, what: str) -> tuple[str, ...]:
    """The classes' names, from an object whose keys are their numbers."""
    if not isinstance(names, dict) or {str(i) for i in names} != {str(i) for i in range(len(names))}:
        raise WeightsError(f"{path}: {what} must name the classes 0 to n - 1")
    by_number = {int(i): str(name) for i, name in names.items()}
    return tuple(by_number[i] for i in range(len(names)))


def _transformers(config: Mapping[str, Any], processor: Mapping[str, Any], folder: Path) -> Sidecar:
    labels = None
    if "id2label" in config:
        labels = _names(config["id2label"], folder / NAMES[0], "id2label")
        if labels == tuple(f"LABEL_{i}" for i in range(len(labels))):
            labels = None  # what transformers writes where nobody gave names
    found: dict[str, Any] = {}
    if config.get("model_type") in ("vit", "deit"):
        if "layer_norm_eps" in config:
            found["layer_norm_eps"] = config["layer_norm_eps"]
        if "hidden_act" in config:
            if config["hidden_act"] not in GELU:
                known = ", ".join(GELU)
                raise WeightsError(f"{folder / 'config.json'}: hidden_act {config['hidden_act']!r}; refvit's ViT knows {known}")
            found["gelu"] = GELU[config["hidden_act"]]
    if "MobileViTForSemanticSegmentation" in (config.get("architectures") or []):
        found |= {ours: config[theirs] for theirs, ours in DENSE.items() if theirs in config}
    names = SAME.get(str(config.get("model_type")), {})
    expected = {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
    counts = [len(config["id2label"])] if "id2label" in config else []
    counts += [config["num_labels"]] if "num_labels" in config else []
    if names and counts:
        expected["num_classes"] = counts[0]
        if counts[-1] != counts[0]:
            raise WeightsError(
                f"{folder / NAMES[0]}: id2label names {counts[0]} classes, and num_labels is {counts[1]!r:.60}; mend it"
            )
    if "MobileViTForImageClassification" in (config.get("architectures") or []) and "output_stride" in config:
        expected["output_stride"] = config["output_stride"]
    if config.get("model_type") == "mobilevit" and "patch_size" in config:
        expected["patch"] = (config["patch_size"],) * 2
    if names and config.get("problem_type") not in (None, "single_label_classification"):
        raise WeightsError(
            f"{folder / 'config.json'}: problem_type {config['problem_type']!r:.60}; refvit answers with the probabilities of "
            "classes of which one is right; remove this entry where only the logits are used"
        )
    if config.get("qkv_bias", True) is not True:
        raise WeightsError(f"{folder / 'config.json'}: qkv_bias {config['qkv_bias']!r}; refvit's models have biases there")
    if config.get("model_type") == "mobilevit" and config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise WeightsError(f"{folder / 'config.json'}: hidden_act {config['hidden_act']!r}; MobileViT has silu")
    kind = config.get("model_type")
    return Sidecar(
        model_type=None if kind is None else str(kind),
        suggested=tuple(name for name in ARCHITECTURES if names and name.startswith(f"{kind}_")),
        labels=labels,
        config=found,
        expected=expected,
        preprocess=_processor(processor, folder / NAMES[1]),
    )


def _processor(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """transformers' image processor as fields of Preprocess; only what the file says."""
    if not values:
        return {}
    if values.get("do_rescale", True) is False or abs(values.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise WeightsError(f"{path}: pixels are scaled by 1/255 here, got rescale_factor {values.get('rescale_factor')!r}")
    found: dict[str, Any] = {}
    square = str(values.get("image_processor_type") or values.get("feature_extractor_type") or "").startswith(("ViT", "DeiT"))
    if values.get("do_resize", True) is False:
        found["resize"] = None
    elif "size" in values:
        found["resize"] = _size(values["size"], path, square=square)
    if values.get("do_center_crop") is False:
        found["crop"] = None
    elif "crop_size" in values:
        found["crop"] = _size(values["crop_size"], path, square=True)
    if "resample" in values:
        if values["resample"] not in FILTERS:
            raise WeightsError(f"{path}: resample {values['resample']!r} is none of Pillow's numbers {sorted(FILTERS)}")
        found["interpolation"] = FILTERS[values["resample"]]
    mobile = "MobileViT" in str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
    if values.get("do_normalize") is False or (mobile and "do_normalize" not in values):  # it writes a mean that it never uses
        found |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    elif "image_mean" in values and "image_std" in values:
        found |= {"mean": tuple(values["image_mean"]), "std": tuple(values["image_std"])}
    if "do_flip_channel_order" in values or "do_flip_channels" in values:
        flipped = values.get("do_flip_channel_order", values.get("do_flip_channels"))
        found["channel_order"] = "bgr" if flipped else "rgb"
    return found


def _size(size: Any, path: Path, *, square: bool) -> Any:
    if isinstance(size, int):
        return (size, size) if square else size
    if isinstance(size, dict) and set(size) == {"height", "width"}:
        return (size["height"], size["width"])
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        return size["shortest_edge"]
    raise WeightsError(f"{path}: a size with height and width, or shortest_edge, expected, got {size!r:.80}")


def _read(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size > LIMIT:
            raise ValueError(f"{path.stat().st_size} bytes are too many for a configuration")
        data = strict_json(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not readable as JSON ({error}); get the file again, or move it away") from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path}: a JSON object expected, got {type(data).__name__}")
    return data
