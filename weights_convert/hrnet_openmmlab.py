"""HRNet as mmpose and mmsegmentation publish it: the official names below `backbone.`, and heads of their own.

Input is RGB with the mean and std of ImageNet, resized by OpenCV.

Pose: files before mmpose 1.0 call the head `keypoint_head`. The evaluation is that of HRNet's repository but for two details of
the decoding: mmpose refines x and y independently of each other at the border, and a joint whose heatmap has no positive value
is at (-1, -1).

Segmentation: the FCN head, whose convolution has no bias before its norm. Branches are enlarged in two steps, which matters
where a side is no multiple of 32. The auxiliary head is for training only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refvit.graph.ir import Array
from refvit.models.hrnet_heads import POSE_VARIANTS, SEGMENTATION_VARIANTS
from refvit.vision.preprocess import OPENCV
from weights_convert.hrnet import BACKBONE as OFFICIAL
from weights_convert.hrnet import MPII, PARTS
from weights_convert.layout import DROP, TRAINING, Layout, Rule, classes_of, evaluation

BACKBONE = frozenset(f"backbone.{key}" for key in OFFICIAL)
BACKBONE_RULE = Rule(rf"backbone\.({PARTS})\.(.*)", r"\1.\2")

# Data sets of the published segmentation configs by their number of classes, and limits of the shorter and the longer side.
DATA = {
    6: ("Potsdam and Vaihingen", 512, 512),
    7: ("LoveDA", 1024, 1024),
    16: ("iSAID", 896, 896),
    19: ("Cityscapes", 1024, 2048),
    59: ("PASCAL-Context-59", 520, 520),
    60: ("PASCAL-Context-60", 520, 520),
}
OTHERS = ("ADE20K and PASCAL VOC", 512, 2048)


def _pose(name: str, head: str) -> Layout:
    return Layout(
        name=name,
        models=tuple(POSE_VARIANTS),
        signature=BACKBONE | {f"{head}.final_layer.weight"},
        rules=(DROP, BACKBONE_RULE, Rule(rf"{head}\.final_layer\.(weight|bias)", r"final_layer.\1")),
        config=classes_of("final_layer.weight"),
        preprocess=lambda model, config: evaluation(None, (256, 256) if config.num_classes == MPII else (256, 192)),
        assumed=lambda model, config: {
            "resize": "256x192, or 256x256 for the joints of MPII; others were published too",
            "shift": "True, as for plain heatmaps; checkpoints trained with UDP have the same names and no shift",
        },
    )


def _fcn(params: Mapping[str, Array]) -> dict[str, Any]:
    return classes_of("last_layer.3.weight")(params) | {
        "head_bias": False,
        "upsample": "bilinear_twice",
        "align_corners": False,
    }


def _resize(model: str, config: Any) -> dict[str, Any]:
    _, short, long = DATA.get(config.num_classes, OTHERS)
    return {**evaluation(None, short, OPENCV), "longest": long}


def _scores(model: str, config: Any) -> dict[str, Any]:
    windows = {"window": [480, 480], "window_stride": [320, 320]} if config.num_classes in (59, 60) else {}
    return {**windows, "average": "softmax"}


def _assumed(model: str, config: Any) -> dict[str, str]:
    name, short, long = DATA.get(config.num_classes, OTHERS)
    return {"resize": f"within {short} and {long} pixels as for {name}, assumed from {config.num_classes} classes"}


SEGMENTATION = Layout(
    name="hrnet.mmseg",
    models=tuple(SEGMENTATION_VARIANTS),
    signature=BACKBONE | {"decode_head.convs.0.bn.weight", "decode_head.conv_seg.weight"},
    rules=(
        DROP,
        BACKBONE_RULE,
        Rule(r"decode_head\.convs\.0\.conv\.weight", "last_layer.0.weight"),
        Rule(r"decode_head\.convs\.0\.bn\.(weight|bias|running_mean|running_var)", r"last_layer.1.\1"),
        Rule(r"decode_head\.conv_seg\.(weight|bias)", r"last_layer.3.\1"),
        Rule(r"auxiliary_head\..*", None, reason=TRAINING),
    ),
    config=_fcn,
    preprocess=_resize,
    postprocess=_scores,
    assumed=_assumed,
)
LAYOUTS = (_pose("hrnet.mmpose", "head"), _pose("hrnet.mmpose.keypoint_head", "keypoint_head"), SEGMENTATION)
