"""HRViT as its official repository and mmsegmentation name it."""

from __future__ import annotations

from typing import Any

from refvit.models.hrvit import VARIANTS
from refvit.models.hrvit_heads import SEGFORMER_VARIANTS, UPERNET_VARIANTS
from refvit.vision.preprocess import OPENCV
from weights_convert.layout import DROP, TRAINING, Layout, Rule, classes_of, evaluation


def _protocol(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pre- and post-processing of the repository's mmsegmentation configs, for Cityscapes and for everything else."""
    if config.num_classes == 19:
        size, post = (1024, 2048), {"window": [1024, 1024], "window_stride": [768, 768]}
    else:
        size, post = (512, 2048), {}
    return {**evaluation(None, size[0], OPENCV), "longest": size[1]}, {**post, "average": "softmax"}


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
        Rule(r"auxiliary_head\..*", None, reason=TRAINING),
        Rule(r"backbone\.(.*)", r"\1"),
        Rule(r"decode_head\..*", r"\g<0>"),
    ),
    config=classes_of("decode_head.conv_seg.weight"),
    preprocess=lambda model, config: _protocol(config)[0],
    postprocess=lambda model, config: _protocol(config)[1],
)
LAYOUTS = (CLASSIFIER, SEGMENTATION)
