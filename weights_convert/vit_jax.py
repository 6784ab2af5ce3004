"""ViT as Google publishes it for JAX: the names inside the .npz files of vision_transformer and big_vision.

Modules in a block are numbered in one of three ways: the published files count all kinds of modules together; linen counts each
kind on its own; big_vision can also keep the blocks of all layers stacked along a first axis. Names may have one of `PREFIXES`,
and the position embedding is in one of three places. GELU is the tanh approximation, LayerNorm's eps 1e-6.

Images are squashed to the trained size by TensorFlow's bilinear filter, which does not antialias. OpenCV's is the nearest that
refvit has: it rounds to whole grey levels. Facts are those of google-research's vision_transformer and big_vision.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from refvit.graph.ir import Array
from refvit.models.vit import VARIANTS
from refvit.vision.preprocess import OPENCV
from weights_convert.layout import Layout, Rule, classes_of, evaluation
from weights_convert.vit_timm import HALF

PREFIXES = ("", "params/", "params/img/", "opt/target/")
HEADS = {config.embed_dim: config.num_heads for config in VARIANTS.values()}


def axes(order: str) -> Callable[[Array], Array]:
    """Rearrange named axes, as in "d heads e -> (heads e) d"; those in parentheses are one axis.

    Where both d and heads are named, the number of heads must be that of refvit's ViT of width d: no other parameter shows it.
    The other way, (heads e) is split by that number too.
    """
    old, new = ([group.strip("()").split() for group in re.findall(r"\(.*?\)|\w+", side)] for side in order.split(" -> "))
    names, expected = [name for group in old for name in group], f"axes ({', '.join(' '.join(group) for group in old)})"

    def change(a: Array) -> Array:
        if a.ndim != len(old):
            raise ValueError(f"{expected} expected")
        size: dict[str, int] = {}
        for group, length in zip(old, a.shape, strict=True):
            known = HEADS.get(length, 0)
            if len(group) > 1 and not known:
                raise ValueError(f"one of the widths {', '.join(map(str, sorted(HEADS)))} expected")
            size |= zip(group, (length,) if len(group) == 1 else (known, length // known), strict=True)
        heads = HEADS.get(size.get("d", 0))
        if heads and size.get("heads", heads) != heads:
            raise ValueError(f"{heads} heads expected in {expected}")
        a = a.reshape([size[name] for name in names]).transpose([names.index(name) for group in new for name in group])
        return a.reshape([math.prod(size[name] for name in group) for group in new])

    return change


def there_and_back(order: str) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """`change` and `inverse` of a rule."""
    return axes(order), axes(" -> ".join(reversed(order.split(" -> "))))


def with_class_entry(table: Array) -> Array:
    """A position embedding of patches alone (1, grid^2, d) gets a zero entry for the class token; others stay as they are.

    big_vision adds the positions before it puts the class token in front. No square has a square as its successor.
    """
    if table.ndim == 3 and table.shape[1] and math.isqrt(table.shape[1]) ** 2 == table.shape[1]:
        return np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)
    return table


DENSE = there_and_back("i o -> o i")
NUMBERED = (r"encoderblock_(?P<layer>\d+)", r"blocks.\g<layer>")
STACKED = ("encoderblock", "blocks.*")


def _rules(blocks: tuple[str, str], norm: int, attention: int, perceptron: int) -> Iterator[Rule]:
    """norm, attention, perceptron: the numbers of a block's second norm, of its attention and of its MLP."""
    block, target = blocks
    mha = rf"Transformer/{block}/MultiHeadDotProductAttention_{attention}"
    mlp = rf"Transformer/{block}/MlpBlock_{perceptron}"
    yield Rule("cls", "cls_token")
    yield Rule(r"(Transformer/(posembed_input/)?)?pos_embedding", "pos_embed", with_class_entry, lambda table: table)
    yield Rule("embedding/kernel", "patch_embed.proj.weight", *there_and_back("h w i o -> o i h w"))
    yield Rule("embedding/bias", "patch_embed.proj.bias")
    for number, name in ((0, "norm1"), (norm, "norm2")):
        yield Rule(rf"Transformer/{block}/LayerNorm_{number}/scale", rf"{target}.{name}.weight")
        yield Rule(rf"Transformer/{block}/LayerNorm_{number}/bias", rf"{target}.{name}.bias")
    yield Rule(
        rf"{mha}/(?P<rows>query|key|value)/kernel", rf"{target}.attn.qkv.weight", *there_and_back("d heads e -> (heads e) d")
    )
    yield Rule(rf"{mha}/(?P<rows>query|key|value)/bias", rf"{target}.attn.qkv.bias", *there_and_back("heads e -> (heads e)"))
    yield Rule(rf"{mha}/out/kernel", rf"{target}.attn.proj.weight", *there_and_back("heads e d -> d (heads e)"))
    yield Rule(rf"{mha}/out/bias", rf"{target}.attn.proj.bias")
    for number, name in ((0, "fc1"), (1, "fc2")):
        yield Rule(rf"{mlp}/Dense_{number}/kernel", rf"{target}.mlp.{name}.weight", *DENSE)
        yield Rule(rf"{mlp}/Dense_{number}/bias", rf"{target}.mlp.{name}.bias")
    yield Rule("Transformer/encoder_norm/scale", "norm.weight")
    yield Rule("Transformer/encoder_norm/bias", "norm.bias")
    yield Rule("head/kernel", "head.weight", *DENSE)
    yield Rule("head/bias", "head.bias")
    yield Rule(
        "pre_logits/.*",
        None,
        refusal="belongs to a layer between encoder and head, which refvit's ViT has no place for; fine-tuned checkpoints and "
        "those of AugReg have none",
    )


def _config(params: Mapping[str, Array]) -> dict[str, Any]:
    return classes_of("head.weight")(params) | {"gelu": "tanh", "layer_norm_eps": 1e-6, "position_resize": "bilinear_corners"}


def _preprocess(model: str, config: Any) -> dict[str, Any]:
    return evaluation(None, (config.image_size, config.image_size), OPENCV, HALF, HALF)


def _layout(name: str, blocks: tuple[str, str], first: str, norm: int, attention: int, perceptron: int) -> Layout:
    return Layout(
        name=name,
        models=tuple(n for n in VARIANTS if n.startswith("vit_")),
        signature=frozenset({"embedding/kernel", f"Transformer/{first}/LayerNorm_{norm}/scale"}),
        rules=tuple(_rules(blocks, norm, attention, perceptron)),
        config=_config,
        preprocess=_preprocess,
        prefixes=PREFIXES,
    )


LAYOUTS = (
    _layout("vit.jax", NUMBERED, "encoderblock_0", norm=2, attention=1, perceptron=3),
    _layout("vit.jax.linen", NUMBERED, "encoderblock_0", norm=1, attention=0, perceptron=0),
    _layout("vit.jax.stacked", STACKED, "encoderblock", norm=1, attention=0, perceptron=0),
)
