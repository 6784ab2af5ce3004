"""MobileViT as Hugging Face transformers publishes it: classifiers and DeepLabv3.

The network expects BGR in [0, 1] without mean and std, as Apple's own files do. The published evaluation resizes the shorter
side to 288 by bilinear and crops 256. For segmentation, where a map of the whole image is wanted, it is Apple's: 512x512.
"""

from __future__ import annotations

from collections.abc import Iterator

from refvit.models.mobilevit import VARIANTS
from refvit.models.mobilevit_heads import DEEPLABV3_VARIANTS
from weights_convert.layout import DROP, NO_MEAN, NO_STD, Layout, Rule, classes_of, evaluation
from weights_convert.mobilevit_cvnets import pyramid
from weights_convert.vit_transformers import ON_DISK, layer_rules

RESIDUAL = {"expand_1x1": "conv1_1x1", "conv_3x3": "conv2_kxk", "reduce_1x1": "conv3_1x1"}
BLOCK = {"conv_kxk": "conv_kxk", "conv_projection": "conv_proj", "fusion": "conv_fusion"}
FIRST, LAST = (rf"mobilevit\.encoder\.layer\.(?P<stage>{stages})" for stages in ("[01]", "[234]"))
SEGMENTATION, ASPP = r"segmentation_head\.", "seg_head.aspp.aspp_layer"


def _conv_bn(source: str, target: str, conv: str = "conv", bn: str = "bn") -> Iterator[Rule]:
    yield Rule(rf"{source}\.convolution\.weight", rf"{target}.{conv}.weight")
    yield Rule(rf"{source}\.normalization\.(?P<leaf>.*)", rf"{target}.{bn}.\g<leaf>")


def _rules() -> Iterator[Rule]:
    yield DROP
    yield from _conv_bn(r"mobilevit\.conv_stem", "stem")
    for old, new in RESIDUAL.items():
        yield from _conv_bn(rf"{FIRST}\.layer\.(?P<unit>\d)\.{old}", rf"stages.\g<stage>.\g<unit>.{new}")
        yield from _conv_bn(rf"{LAST}\.downsampling_layer\.{old}", rf"stages.\g<stage>.0.{new}")
    for old, new in BLOCK.items():
        yield from _conv_bn(rf"{LAST}\.{old}", rf"stages.\g<stage>.1.{new}")
    yield Rule(rf"{LAST}\.conv_1x1\.convolution\.weight", r"stages.\g<stage>.1.conv_1x1.weight")
    yield from layer_rules(rf"{LAST}\.transformer\.layer", r"stages.\g<stage>.1.transformer", ON_DISK)
    yield Rule(rf"{LAST}\.layernorm\.(?P<leaf>weight|bias)", r"stages.\g<stage>.1.norm.\g<leaf>")
    yield from _conv_bn(r"mobilevit\.conv_1x1_exp", "final_conv")
    yield Rule(r"classifier\.(weight|bias)", r"head.fc.\1")
    yield from _conv_bn(rf"{SEGMENTATION}aspp\.convs\.(?P<i>[0-3])", rf"{ASPP}.convs.\g<i>", "block.conv", "block.norm")
    yield from _conv_bn(
        rf"{SEGMENTATION}aspp\.convs\.4\.conv_1x1", f"{ASPP}.convs.4.aspp_pool.conv_1x1", "block.conv", "block.norm"
    )
    yield from _conv_bn(rf"{SEGMENTATION}aspp\.project", f"{ASPP}.project", "block.conv", "block.norm")
    yield Rule(rf"{SEGMENTATION}classifier\.convolution\.(weight|bias)", r"seg_head.classifier.classifier.block.conv.\1")


RULES = tuple(_rules())
CLASSIFIER = Layout(
    name="mobilevit.transformers",
    models=tuple(VARIANTS),
    signature=frozenset({"mobilevit.conv_stem.convolution.weight", "classifier.weight"}),
    rules=RULES,
    config=classes_of("head.fc.weight"),
    preprocess=lambda model, config: evaluation(256, 288, "bilinear", NO_MEAN, NO_STD, "bgr"),
)
DEEPLABV3 = Layout(
    name="mobilevit.transformers.deeplabv3",
    models=tuple(DEEPLABV3_VARIANTS),
    signature=frozenset({"mobilevit.conv_stem.convolution.weight", "segmentation_head.classifier.convolution.weight"}),
    rules=RULES,
    config=pyramid,
    preprocess=lambda model, config: evaluation(None, (512, 512), "bilinear", NO_MEAN, NO_STD, "bgr"),
    assumed=lambda model, config: {"preprocess": "512x512; transformers' processor cuts the middle out of 544 pixels"},
)
LAYOUTS = (CLASSIFIER, DEEPLABV3)
