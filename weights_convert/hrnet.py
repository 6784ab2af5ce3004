"""HRNet as its official repositories publish it; timm's classifiers have the same names.

Input is RGB with the mean and std of ImageNet; segmentation looks at whole images.
"""

from __future__ import annotations

from refvit.models.hrnet import VARIANTS
from refvit.models.hrnet_heads import OCR_VARIANTS, POSE_VARIANTS, SEGMENTATION_VARIANTS
from weights_convert.layout import DROP, Layout, Rule, classes_of, evaluation, whole_image

BACKBONE = frozenset({"conv1.weight", "transition1.0.0.weight", "stage4.0.fuse_layers.0.1.0.weight"})
PARTS = r"conv[12]|bn[12]|layer1|transition[123]|stage[234]"

CLASSIFIER = Layout(
    name="hrnet.classification",
    models=tuple(VARIANTS),
    signature=BACKBONE | {"incre_modules.0.0.conv1.weight", "classifier.weight"},
    rules=(DROP, Rule(rf"({PARTS}|incre_modules|downsamp_modules|final_layer|classifier)\..*", r"\g<0>")),
    config=lambda params: classes_of("classifier.weight")(params) | {"head_bias": "final_layer.0.bias" in params},
    preprocess=lambda model, config: evaluation(224, 256),
)
SEGMENTATION = Layout(
    name="hrnet.segmentation",
    models=tuple(SEGMENTATION_VARIANTS),
    signature=BACKBONE | {"last_layer.3.weight"},
    rules=(DROP, Rule(rf"({PARTS}|last_layer)\..*", r"\g<0>")),
    config=classes_of("last_layer.3.weight"),
    preprocess=whole_image,
)
OCR = Layout(
    name="hrnet.ocr",
    models=tuple(OCR_VARIANTS),
    signature=BACKBONE | {"aux_head.3.weight", "cls_head.weight"},
    rules=(DROP, Rule(rf"({PARTS}|aux_head|conv3x3_ocr|ocr_distri_head|cls_head)\..*", r"\g<0>")),
    config=classes_of("cls_head.weight"),
    preprocess=whole_image,
)
POSE = Layout(
    name="hrnet.pose",
    models=tuple(POSE_VARIANTS),
    signature=BACKBONE | {"final_layer.weight"},
    rules=(DROP, Rule(rf"({PARTS}|final_layer)\..*", r"\g<0>")),
    config=classes_of("final_layer.weight"),
    preprocess=lambda model, config: evaluation(None, (256, 192)),
)
LAYOUTS = (CLASSIFIER, SEGMENTATION, OCR, POSE)
