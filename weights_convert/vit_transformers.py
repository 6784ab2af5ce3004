"""ViT and DeiT as Hugging Face transformers publishes them.

A file has the names of `ON_DISK`, whatever the version. From version 5 on the modules have other names in memory, `IN_MEMORY`,
which is what model.state_dict() gives. Query, key and value are separate. DeiT's plain models are published as ViT; its own
class always has a distillation token. LayerNorm's eps is 1e-12 and GELU exact unless the config.json beside says otherwise.

ViT's images are squashed to the trained size, with mean and std 0.5. DeiT's are squashed to 256 (438 for 384) by bicubic,
cropped, and normalised with the mean and std of ImageNet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from refvit.graph.ir import Array
from refvit.models.vit import VARIANTS
from weights_convert.layout import Layout, Rule, classes_of, evaluation
from weights_convert.vit_timm import HALF

ON_DISK = {  # transformer layer: source -> target
    r"layernorm_before": "norm1",
    r"attention\.attention\.(?P<rows>query|key|value)": "attn.qkv",
    r"attention\.output\.dense": "attn.proj",
    r"layernorm_after": "norm2",
    r"intermediate\.dense": "mlp.fc1",
    r"output\.dense": "mlp.fc2",
}
IN_MEMORY = {
    r"layernorm_before": "norm1",
    r"attention\.(?P<rows>q_proj|k_proj|v_proj)": "attn.qkv",
    r"attention\.o_proj": "attn.proj",
    r"layernorm_after": "norm2",
    r"mlp\.fc1": "mlp.fc1",
    r"mlp\.fc2": "mlp.fc2",
}
ONE_HEAD = (Rule(r"classifier\.(weight|bias)", r"head.\1"),)
TWO_HEADS = (
    Rule(r"cls_classifier\.(weight|bias)", r"head.\1"),
    Rule(r"distillation_classifier\.(weight|bias)", r"head_dist.\1"),
    Rule(
        r"classifier\..*",
        None,
        refusal="is the only head of a model with a distillation token (DeiTForImageClassification); refvit's DeiT has a head "
        "for each of its two tokens, so only DeiTForImageClassificationWithTeacher can be converted",
    ),
)


def layer_rules(source: str, target: str, names: Mapping[str, str]) -> Iterator[Rule]:
    """Transformer layers `source`.i below the template `target`.i."""
    for old, new in names.items():
        yield Rule(rf"{source}\.(?P<layer>\d+)\.{old}\.(?P<leaf>weight|bias)", rf"{target}.\g<layer>.{new}.\g<leaf>")


def _rules(model: str, layers: str, names: Mapping[str, str]) -> Iterator[Rule]:
    yield Rule(rf"{model}\.embeddings\.cls_token", "cls_token")
    yield Rule(rf"{model}\.embeddings\.distillation_token", "dist_token")
    yield Rule(rf"{model}\.embeddings\.position_embeddings", "pos_embed")
    yield Rule(rf"{model}\.embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1")
    yield from layer_rules(rf"{model}\.{re.escape(layers)}", "blocks", names)
    yield Rule(rf"{model}\.layernorm\.(weight|bias)", r"norm.\1")
    yield Rule(rf"{model}\.pooler\.dense\.(weight|bias)", None, reason="of the model without a head")


def _config(params: Mapping[str, Array]) -> dict[str, Any]:
    return classes_of("head.weight")(params) | {"gelu": "none", "layer_norm_eps": 1e-12, "position_resize": "bicubic"}


def _preprocess(model: str, config: Any) -> dict[str, Any]:
    size = config.image_size
    if model.startswith("deit"):
        side = int(size / 0.875)
        return evaluation(size, (side, side), "bicubic")
    return evaluation(None, (size, size), "bilinear", HALF, HALF)


def _layout(name: str, layers: str, names: Mapping[str, str], *, distilled: bool) -> Layout:
    model, heads = ("deit", TWO_HEADS) if distilled else ("vit", ONE_HEAD)
    token = "distillation_token" if distilled else "cls_token"
    return Layout(
        name=f"{model}.{name}",
        models=tuple(n for n, config in VARIANTS.items() if config.distilled == distilled),
        signature=frozenset({f"{model}.embeddings.{token}", f"{model}.{layers}.0.layernorm_before.weight"}),
        rules=(*_rules(model, layers, names), *heads),
        config=_config,
        preprocess=_preprocess,
        assumed=lambda model, config: {"layer_norm_eps": f"{config.layer_norm_eps:g}, the default of transformers, assumed"},
    )


LAYOUTS = tuple(
    _layout(name, layers, names, distilled=distilled)
    for name, layers, names in (
        ("transformers", "encoder.layer", ON_DISK),
        ("transformers.in_memory", "layers", IN_MEMORY),
    )
    for distilled in (False, True)
)
