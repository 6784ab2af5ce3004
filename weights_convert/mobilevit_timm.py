"""MobileViT as timm publishes it. refvit's canonical names are timm's, so only bookkeeping is dropped.

timm's `mobilevit_*.cvnets_in1k` expect RGB in [0, 1] (mean 0, std 1), shorter side floor(256 / 0.9) = 284 by bicubic, crop 256.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refvit.graph.ir import Array
from weights_convert.layout import Layout, Rule


def _config(params: Mapping[str, Array]) -> dict[str, Any]:
    head = params.get("head.fc.weight")
    return {} if head is None or head.ndim != 2 or not len(head) else {"num_classes": head.shape[0]}


LAYOUT = Layout(
    name="mobilevit.timm",
    models=("mobilevit_xxs", "mobilevit_xs", "mobilevit_s"),
    signature=frozenset({"stem.conv.weight", "stages.2.1.conv_kxk.conv.weight", "stages.2.1.transformer.0.attn.qkv.weight"}),
    rules=(
        Rule(r".*\.num_batches_tracked", None),
        Rule(r"(stem|stages|final_conv|head)\..*", r"\g<0>"),
    ),
    config=_config,
    preprocess={
        "resize": 284,
        "crop": 256,
        "enlarge": None,
        "interpolation": "bicubic",
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "channel_order": "rgb",
    },
)
