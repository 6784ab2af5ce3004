"""MobileViT as Apple's cvnets publishes it: classifiers, DeepLabv3 and SSDLite.

Version 0.1, which most files are of, expects BGR in [0, 1] without mean and std, resized by OpenCV. One difference is left:
where a crop cannot be centred by whole pixels, it always takes the upper left one, and refvit rounds half offsets to even as
torchvision does.

Later versions read RGB by Pillow. Two kinds of their files have names of their own, "cvnets_v2" here: DeepLabv3, whose
classifier is one layer, and classifiers that were trained with RangeAugment, whose ranges are beside the network. All other
names have stayed. DeepLabv3 enlarges its logits with align_corners there; it also shrinks images to multiples of the output
stride first, for which refvit has no need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from refvit.graph.ir import Array
from refvit.models.mobilevit import VARIANTS, MobileViTConfig
from refvit.models.mobilevit_heads import DEEPLABV3_VARIANTS, SSDLITE_VARIANTS
from refvit.vision.preprocess import OPENCV
from weights_convert.layout import DROP, NO_MEAN, NO_STD, TRAINING, Layout, Rule, classes_of, evaluation

ENCODER = r"(?:encoder\.)?"  # the backbone's prefix below a head
DEPTHS = MobileViTConfig.depths  # the same in every variant: the norm behind the layers has the next index


def _conv_bn(source: str, target: str) -> Iterator[Rule]:
    yield Rule(rf"{source}\.block\.conv\.(weight)", rf"{target}.conv.\1")
    yield Rule(rf"{source}\.block\.norm\.(.*)", rf"{target}.bn.\1")


def _rules() -> Iterator[Rule]:
    yield DROP
    yield from _conv_bn(f"{ENCODER}conv_1", "stem")
    for layer in range(1, 6):
        count = 3 if layer == 2 else 1
        for b in range(count):
            for source, target in (("exp_1x1", "conv1_1x1"), ("conv_3x3", "conv2_kxk"), ("red_1x1", "conv3_1x1")):
                yield from _conv_bn(rf"{ENCODER}layer_{layer}\.{b}\.block\.{source}", f"stages.{layer - 1}.{b}.{target}")
        if layer >= 3:
            yield from _block(rf"{ENCODER}layer_{layer}\.1", f"stages.{layer - 1}.1", DEPTHS[layer - 3])
    yield from _conv_bn(f"{ENCODER}conv_1x1_exp", "final_conv")
    yield Rule(rf"{ENCODER}classifier\.fc\.(.*)", r"head.fc.\1")
    yield Rule(r"seg_head\.aux_head\..*", None, reason=TRAINING)
    yield Rule(r"(seg_head|extra_layers|ssd_heads)\..*", r"\g<0>")


def _block(source: str, target: str, depth: int) -> Iterator[Rule]:
    yield from _conv_bn(rf"{source}\.local_rep\.conv_3x3", f"{target}.conv_kxk")
    yield Rule(rf"{source}\.local_rep\.conv_1x1\.block\.conv\.weight", f"{target}.conv_1x1.weight")
    names = {
        r"pre_norm_mha\.0": "norm1",
        r"pre_norm_mha\.1\.qkv_proj": "attn.qkv",
        r"pre_norm_mha\.1\.out_proj": "attn.proj",
        r"pre_norm_ffn\.0": "norm2",
        r"pre_norm_ffn\.1": "mlp.fc1",
        r"pre_norm_ffn\.4": "mlp.fc2",
    }
    for old, new in names.items():
        yield Rule(rf"{source}\.global_rep\.(\d)\.{old}\.(weight|bias)", rf"{target}.transformer.\1.{new}.\2")
    yield Rule(rf"{source}\.global_rep\.{depth}\.(weight|bias)", rf"{target}.norm.\1")
    yield from _conv_bn(rf"{source}\.conv_proj", f"{target}.conv_proj")
    yield from _conv_bn(rf"{source}\.fusion", f"{target}.conv_fusion")


def _squashed(model: str, config: Any) -> dict[str, Any]:
    side = 512 if config.head == "deeplabv3" else 320
    return evaluation(None, (side, side), OPENCV, NO_MEAN, NO_STD, "bgr")


def pyramid(params: Mapping[str, Array]) -> dict[str, Any]:
    """Of DeepLabv3: classes and width; output stride and dilations are those that were published for this width, if any."""
    found = classes_of("seg_head.classifier.classifier.block.conv.weight")(params)
    project = params.get("seg_head.aspp.aspp_layer.project.block.conv.weight")
    if project is None or not project.ndim:
        return found
    found["aspp_width"] = project.shape[0]
    published = {256: (16, (6, 12, 18)), 512: (8, (12, 24, 36))}.get(project.shape[0], (None, None))
    return found | dict(zip(("output_stride", "rates"), published, strict=True))


def _detector(params: Mapping[str, Array]) -> dict[str, Any]:
    """Of SSDLite: an anchor of the last map, which has four a pixel, has four offsets and a logit for each class."""
    last = params.get("ssd_heads.5.loc_cls_layer.block.conv.weight")
    outputs = 0 if last is None or not last.ndim else last.shape[0]
    return {"num_classes": outputs // 4 - 4} if outputs % 4 == 0 and outputs > 20 else {}


class _NotAugmented(Layout):
    """Refuses files with RangeAugment's ranges."""

    def matches(self, state: Mapping[str, Array]) -> bool:
        return RANGE not in state and super().matches(state)


RANGE = "neural_augmentor.brightness._low"
DROP_RANGES = Rule(r"(?:encoder\.)?neural_augmentor\..*", None, reason=TRAINING)
READ_AS_BGR = {"channel_order": "bgr, as cvnets 0.1 reads images; files of later versions have the same names and want rgb"}
RULES = tuple(_rules())
NAMES = frozenset({"conv_1.block.conv.weight", "layer_3.1.local_rep.conv_3x3.block.conv.weight", "classifier.fc.weight"})
CLASSIFIER = _NotAugmented(
    name="mobilevit.cvnets",
    models=tuple(VARIANTS),
    signature=NAMES,
    rules=RULES,
    config=classes_of("head.fc.weight"),
    preprocess=lambda model, config: evaluation(256, 288, OPENCV, NO_MEAN, NO_STD, "bgr"),
    assumed=lambda model, config: READ_AS_BGR,
)
CLASSIFIER_V2 = Layout(
    name="mobilevit.cvnets_v2",
    models=tuple(VARIANTS),
    signature=NAMES | {RANGE},
    rules=(DROP_RANGES, *RULES),
    config=classes_of("head.fc.weight"),
    preprocess=lambda model, config: evaluation(256, 256, "bilinear", NO_MEAN, NO_STD),
)
DEEPLABV3 = Layout(
    name="mobilevit.cvnets.deeplabv3",
    models=tuple(DEEPLABV3_VARIANTS),
    signature=frozenset({"encoder.conv_1.block.conv.weight", "seg_head.classifier.classifier.block.conv.weight"}),
    rules=RULES,
    config=pyramid,
    preprocess=_squashed,
    postprocess=lambda model, config: {"to_image": "nearest"},
    assumed=lambda model, config: {
        "output_stride": f"{config.output_stride}, as published for a pyramid of {config.aspp_width}"
    },
)
DEEPLABV3_V2 = Layout(
    name="mobilevit.cvnets_v2.deeplabv3",
    models=tuple(DEEPLABV3_VARIANTS),
    signature=frozenset({"encoder.conv_1.block.conv.weight", "seg_head.classifier.block.conv.weight"}),
    rules=(
        DROP_RANGES,
        Rule(r"seg_head\.classifier\.block\.conv\.(weight|bias)", r"seg_head.classifier.classifier.block.conv.\1"),
        *RULES,
    ),
    config=lambda params: pyramid(params) | {"align_corners": True},
    preprocess=lambda model, config: evaluation(None, 512, "bilinear", NO_MEAN, NO_STD),
    assumed=DEEPLABV3.assumed,
)
SSDLITE = Layout(
    name="mobilevit.cvnets.ssdlite",
    models=tuple(SSDLITE_VARIANTS),
    signature=frozenset({"encoder.conv_1.block.conv.weight", "ssd_heads.5.loc_cls_layer.block.conv.weight"}),
    rules=RULES,
    config=_detector,
    preprocess=_squashed,
    assumed=lambda model, config: READ_AS_BGR,
)
LAYOUTS = (CLASSIFIER, CLASSIFIER_V2, DEEPLABV3, DEEPLABV3_V2, SSDLITE)
