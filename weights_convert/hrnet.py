"""HRNet as its official repositories publish it; timm's classifiers have the same names.

Input is RGB with the mean and std of ImageNet; segmentation is evaluated as each data set was. Published segmentation files
hold the module that was trained, the network below `model.` with its loss beside it. Snapshots of pose training have `module.`
in front.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from refvit.graph.ir import Array
from refvit.models.hrnet import VARIANTS
from refvit.models.hrnet_heads import OCR_VARIANTS, POSE_VARIANTS, SEGMENTATION_VARIANTS
from refvit.vision.preprocess import OPENCV
from weights_convert.layout import DROP, TRAINING, Layout, Rule, classes_of, evaluation

BACKBONE = frozenset({"conv1.weight", "transition1.0.0.weight", "stage4.0.fuse_layers.0.1.0.weight"})
PARTS = r"conv[12]|bn[12]|layer1|transition[123]|stage[234]"

MPII = 16  # joints; COCO's 17 are looked at in other sizes

# Data sets of the published segmentation files by their number of classes, and whether the plain heads upsample with
# align_corners there (the repository's yaml files). With OCR all do.
DATA = {
    19: ("Cityscapes", False),
    20: ("LIP", False),
    59: ("PASCAL-Context-59", False),
    60: ("PASCAL-Context-60", True),
    150: ("ADE20K", True),
    171: ("COCO-Stuff", True),
}


def _trained(head: str, params: Mapping[str, Array], *, ocr: bool) -> dict[str, Any]:
    """Number of classes, and align_corners where that tells it; None where somebody has to say."""
    found = classes_of(head)(params)
    dataset = DATA.get(found.get("num_classes", 0))
    return found | {"align_corners": None if dataset is None else ocr or dataset[1]}


def _assumed(config: Any) -> dict[str, str]:
    if config.num_classes not in DATA:
        return {}
    name, _ = DATA[config.num_classes]
    return {"align_corners": f"{config.align_corners}, as published for {name}, assumed from {config.num_classes} classes"}


def _protocol(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pre- and post-processing of the repository's test script for the data set; whole images as they are, if it is unknown."""
    classes, plain = config.num_classes, evaluation(None, None, OPENCV)
    if classes == 19:  # one window is a whole Cityscapes image
        return plain, {"window": [1024, 2048], "window_stride": [1024, 2048], "whole_up_to": 1.0}
    if classes == 20:
        return evaluation(None, (473, 473), OPENCV), {"flip": True}
    if classes in (59, 60):
        return {**evaluation(None, 520, OPENCV), "longest": 520}, {
            "window": [520, 520],
            "window_stride": [346, 346],
            "fill_window": True,
        }
    if classes in (150, 171):  # the longer side has no limit there
        return {**evaluation(None, 520, OPENCV), "longest": 8192}, {"pad_multiple": 8}
    return plain, {}


CLASSIFIER = Layout(
    name="hrnet.classification",
    models=tuple(VARIANTS),
    signature=BACKBONE | {"incre_modules.0.0.conv1.weight", "classifier.weight"},
    rules=(DROP, Rule(rf"({PARTS}|incre_modules|downsamp_modules|final_layer|classifier)\..*", r"\g<0>")),
    config=lambda params: classes_of("classifier.weight")(params) | {"head_bias": "final_layer.0.bias" in params},
    preprocess=lambda model, config: evaluation(224, 256 if config.head_bias else 235),  # without: timm's _ssld, crop 0.95
)


def _segmentation(name: str, models: Iterable[str], heads: tuple[str, ...], classifier: str) -> Iterator[Layout]:
    """The network alone, and as it was trained. heads: names beside the backbone's; classifier: the last weight."""
    for wrapper, suffix in (("", ""), ("model.", ".trained")):
        yield Layout(
            name=f"hrnet.{name}{suffix}",
            models=tuple(models),
            signature=frozenset(wrapper + key for key in BACKBONE | {classifier}),
            rules=(
                DROP,
                Rule(rf"{re.escape(wrapper)}({PARTS}|{'|'.join(heads)})\.(.*)", r"\1.\2"),
                *((Rule(r"loss\..*", None, reason=TRAINING),) if wrapper else ()),
            ),
            config=lambda params: _trained(classifier, params, ocr=name == "ocr"),
            preprocess=lambda model, config: _protocol(config)[0],
            postprocess=lambda model, config: _protocol(config)[1],
            assumed=lambda model, config: _assumed(config),
        )


POSE = Layout(
    name="hrnet.pose",
    models=tuple(POSE_VARIANTS),
    signature=BACKBONE | {"final_layer.weight"},
    rules=(DROP, Rule(rf"({PARTS}|final_layer)\..*", r"\g<0>")),
    config=classes_of("final_layer.weight"),
    prefixes=("", "module."),
    preprocess=lambda model, config: evaluation(None, (256, 256) if config.num_classes == MPII else (256, 192)),
    assumed=lambda model, config: (
        {}
        if config.num_classes == MPII
        else {"resize": "256x192, the smaller of the two published sizes; 384x288 is the other"}
    ),
)
LAYOUTS = (
    CLASSIFIER,
    *_segmentation("segmentation", SEGMENTATION_VARIANTS, ("last_layer",), "last_layer.3.weight"),
    *_segmentation("ocr", OCR_VARIANTS, ("aux_head", "conv3x3_ocr", "ocr_distri_head", "cls_head"), "cls_head.weight"),
    POSE,
)
