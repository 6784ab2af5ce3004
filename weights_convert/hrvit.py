"""HRViT as its official repository and mmsegmentation name it."""

from __future__ import annotations

from refvit.models.hrvit import VARIANTS
from refvit.models.hrvit_heads import SEGFORMER_VARIANTS, UPERNET_VARIANTS
from weights_convert.layout import DROP, Layout, Rule, classes_of, evaluation, whole_image

CLASSIFIER = Layout(
    name="hrvit.classification",
    models=tuple(VARIANTS),
    signature=frozenset({"stem.conv1.weight", "features.1.branches.0.0.attn.to_qkv.weight", "head.classifier.weight"}),
    rules=(DROP, Rule(r"(stem|features|head)\..*", r"\g<0>")),
    config=classes_of("head.classifier.weight"),
    preprocess=lambda model, config: evaluation(224, 248, "bicubic"),
)
SEGMENTATION = Layout(
    name="hrvit.mmseg",
    models=(*SEGFORMER_VARIANTS, *UPERNET_VARIANTS),
    signature=frozenset({"backbone.features.1.branches.0.0.attn.to_qkv.weight", "decode_head.conv_seg.weight"}),
    rules=(
        DROP,
        Rule(r"auxiliary_head\..*", None),  # for training only
        Rule(r"backbone\.(.*)", r"\1"),
        Rule(r"decode_head\..*", r"\g<0>"),
    ),
    config=classes_of("decode_head.conv_seg.weight"),
    preprocess=whole_image,
)
LAYOUTS = (CLASSIFIER, SEGMENTATION)
