"""MobileViT as timm publishes it. refvit's canonical names are timm's, so only bookkeeping is dropped.

timm's `mobilevit_*.cvnets_in1k` expect RGB in [0, 1] (mean 0, std 1), shorter side floor(256 / 0.9) = 284 by bicubic, crop 256.
"""

from __future__ import annotations

from weights_convert.layout import DROP, NO_MEAN, NO_STD, Layout, Rule, classes_of, evaluation

LAYOUT = Layout(
    name="mobilevit.timm",
    models=("mobilevit_xxs", "mobilevit_xs", "mobilevit_s"),
    signature=frozenset({"stem.conv.weight", "stages.2.1.conv_kxk.conv.weight", "stages.2.1.transformer.0.attn.qkv.weight"}),
    rules=(
        DROP,
        Rule(r"(stem|stages|final_conv|head)\..*", r"\g<0>"),
    ),
    config=classes_of("head.fc.weight"),
    preprocess=lambda model, config: evaluation(256, 284, "bicubic", NO_MEAN, NO_STD),
)
