"""MobileViT: every module of timm and of cvnets, with all three heads, against ours in float64; float32 for ViT as well.

No module of theirs is without a counterpart, so there is no table of absent ones.
"""

import numpy as np
import pytest

import refvit
from refvit import ops

RESIDUAL = r"(stages\.[01]\.\d|stages\.\d\.0)"  # inverted residuals

# Module of the original -> our value where the names differ; the first rule that matches decides.
TIMM = (
    (r"(.*\.conv3_1x1\.bn)\.(drop|act)", r"\1"),  # the linear bottleneck: two identities
    (r"(.*\.bn)\.drop", r"\1.batch_norm"),  # timm's norm holds an identity and the activation as modules
    (r"(.*\.bn)\.act", r"\1.silu"),
    (RESIDUAL + r"\.(conv2b_kxk|attn)", r"\1.conv2_kxk"),  # places for modules that MobileViT does without
    (RESIDUAL + r"\.(attn_last|drop_path)", r"\1.conv3_1x1"),
    (RESIDUAL + r"\.act", r"\1"),
    (r"stages\.0\.0\.shortcut", "stem"),  # identities on the block's input
    (r"stages\.1\.1\.shortcut", "stages.1.0"),
    (r"stages\.1\.2\.shortcut", "stages.1.1"),
    (r"(.*\.attn)\.q_norm", r"\1.getitem"),
    (r"(.*\.attn)\.k_norm", r"\1.getitem_1"),
    (r"(.*\.attn)\.norm", r"\1.reshape_1"),
    (r"(.*\.attn)\.proj_drop", r"\1"),
    (r"(.*\.mlp)\.(act|drop1|norm)", r"\1.silu"),
    (r"(.*\.mlp)\.drop2", r"\1"),
    (r"(.*\.transformer\.\d+)\.(ls1|drop_path1)", r"\1.attn"),
    (r"(.*\.transformer\.\d+)\.(ls2|drop_path2)", r"\1.mlp"),
    (r"stages\.2\.1\.transformer", "stages.2.1.transformer.1"),  # a list of layers returns what its last one does
    (r"stages\.3\.1\.transformer", "stages.3.1.transformer.3"),
    (r"stages\.4\.1\.transformer", "stages.4.1.transformer.2"),
    (r"stages", "stages.4"),
    (r"head\.(global_pool|global_pool\.pool|global_pool\.flatten|drop)", "head.mean"),
    (r"head\.flatten", "head"),
)


def conv_layer(theirs, ours):
    """cvnets' ConvLayer in the backbone, where our names are timm's: `block` is a list of convolution, norm and activation."""
    return (
        (theirs + r"\.block\.conv", ours + ".conv"),
        (theirs + r"\.block\.norm", ours + ".bn.batch_norm"),
        (theirs + r"\.block\.act", ours + ".bn.silu"),
        (theirs + r"(?:\.block)?", ours),
    )


def inverted_residuals(theirs, ours):
    return (
        *conv_layer(rf"{theirs}\.(\d)\.block\.exp_1x1", rf"{ours}.\1.conv1_1x1"),
        *conv_layer(rf"{theirs}\.(\d)\.block\.conv_3x3", rf"{ours}.\1.conv2_kxk"),
        *conv_layer(rf"{theirs}\.(\d)\.block\.red_1x1", rf"{ours}.\1.conv3_1x1"),
        (rf"{theirs}\.(\d)\.block", rf"{ours}.\1.conv3_1x1"),  # the list of the three, without the shortcut
        (rf"{theirs}(\.\d)?", rf"{ours}\1"),
    )


def mobilevit_block(theirs, ours, depth):
    layer, mine = rf"{theirs}\.global_rep\.(\d)", rf"{ours}.transformer.\1"
    return (
        *conv_layer(rf"{theirs}\.local_rep\.conv_3x3", f"{ours}.conv_kxk"),
        (rf"{theirs}\.local_rep(?:\.conv_1x1)?(?:\.block)?(?:\.conv)?", f"{ours}.conv_1x1"),
        (rf"{layer}\.pre_norm_mha\.0", f"{mine}.norm1"),
        (rf"{layer}\.pre_norm_mha\.1\.qkv_proj", f"{mine}.attn.qkv"),
        (rf"{layer}\.pre_norm_mha\.1\.(?:softmax|attn_dropout)", f"{mine}.attn.attention.softmax"),
        (rf"{layer}\.pre_norm_mha\.1\.out_proj", f"{mine}.attn.proj"),
        (rf"{layer}\.pre_norm_mha(?:\.[12])?", f"{mine}.attn"),
        (rf"{layer}\.pre_norm_ffn\.0", f"{mine}.norm2"),
        (rf"{layer}\.pre_norm_ffn\.1", f"{mine}.mlp.fc1"),
        (rf"{layer}\.pre_norm_ffn\.[23]", f"{mine}.mlp.silu"),  # activation, dropout
        (rf"{layer}\.pre_norm_ffn\.4", f"{mine}.mlp.fc2"),
        (rf"{layer}\.pre_norm_ffn(?:\.5)?", f"{mine}.mlp"),
        (rf"{theirs}\.global_rep(?:\.{depth})?", f"{ours}.norm"),  # the norm is the last of the list
        (layer, mine),
        *conv_layer(rf"{theirs}\.conv_proj", f"{ours}.conv_proj"),
        *conv_layer(rf"{theirs}\.fusion", f"{ours}.conv_fusion"),
    )


def backbone(prefix):
    rules = conv_layer(f"{prefix}conv_1", "stem")
    for i, depth in (2, 2), (3, 4), (4, 3):
        rules += mobilevit_block(rf"{prefix}layer_{i + 1}\.1", f"stages.{i}.1", depth)
    for i in range(5):
        rules += inverted_residuals(f"{prefix}layer_{i + 1}", f"stages.{i}")
    return rules


def upsampled(logits):
    """cvnets' head ends in what ours leaves to the user."""
    return ops.resize(logits, size=(256, 256), mode="bilinear", align_corners=False)


CVNETS = (
    *backbone(""),
    *conv_layer("conv_1x1_exp", "final_conv"),
    (r"classifier\.(?:global_pool|dropout)", "head.mean"),
    (r"classifier\.fc", "head.fc"),
    (r"classifier", "head"),
)
HEADS = (  # their layers keep cvnets' names in ours
    (r"(.*)\.block\.act", r"\1.relu"),
    (r"(.*)\.block", r"\1"),
)
DEEPLABV3 = (
    *backbone(r"encoder\."),
    *HEADS,
    (r"(.*\.aspp_layer)\.convs\.4\.aspp_pool\.global_pool", r"\1.mean"),
    (r"(.*\.aspp_pool)", r"\1.conv_1x1"),
    (r"(.*\.aspp_layer)\.convs\.4", r"\1.broadcast"),  # a single pixel, resized
    (r"seg_head\.(?:aspp|aspp\.aspp_layer\.dropout|classifier\.classifier_dropout)", "seg_head.aspp.aspp_layer"),
    (r"seg_head(?:\.classifier)?(?:\.up_16)?", "seg_head.classifier.classifier", upsampled),
)
SSDLITE = (
    *backbone(r"encoder\."),
    *HEADS,
    (r"extra_layers\.os_-1\.0", "mean"),
    (r"extra_layers\.os_-1", "extra_layers.os_-1.1"),
    (r"(ssd_heads\.\d)\[0\]", r"\1", lambda y: y[..., :4]),  # boxes and scores of a map, which ours cuts apart at the end
    (r"(ssd_heads\.\d)\[1\]", r"\1", lambda y: y[..., 4:]),
)


@pytest.mark.parametrize(
    ("fixture", "same", "modules"),
    [
        ("mobilevit_xxs.timm", TIMM, 419),
        ("mobilevit_xxs.cvnets", CVNETS, 341),
        ("mobilevit_xxs_deeplabv3.cvnets", DEEPLABV3, 375),
        ("mobilevit_xxs_ssdlite.cvnets", SSDLITE, 433),
    ],
    ids=["timm", "cvnets", "deeplabv3", "ssdlite"],
)
def test_every_module_equals_the_original(golden, compare_modules, fixture, same, modules):
    assert sum(map(len, golden(fixture).modules().values())) == modules
    assert compare_modules(fixture, fixture.partition(".")[0], same, {}) == modules


OUTPUTS = {  # how the original's outputs follow from ours, where that is not as it is
    "mobilevit_xxs_deeplabv3.cvnets": lambda y: {"output": upsampled(y)},
    "mobilevit_xxs_ssdlite.cvnets": lambda y: {"[0]": y["scores"], "[1]": y["boxes"]},
}


def error(got, golden):
    """The largest difference, of the largest value."""
    assert got.dtype == np.float32 and golden.dtype == np.float64
    return np.abs(got - golden).max() / np.abs(golden).max()


@pytest.mark.parametrize(
    "fixture",
    [
        "vit_tiny_patch16_224.timm",
        "deit_tiny_distilled_patch16_224",
        "mobilevit_xxs.timm",
        "mobilevit_xxs.cvnets",
        "mobilevit_xxs_deeplabv3.cvnets",
        "mobilevit_xxs_ssdlite.cvnets",
    ],
)
def test_float32_costs_what_float32_arithmetic_costs(golden, fixture):
    """The yardstick is what float32 costs the same model on three other inputs, against its own float64."""
    case, rng = golden(fixture), np.random.default_rng(17)
    outputs = OUTPUTS.get(fixture, lambda y: {"output": y})
    single, double = (
        refvit.load(fixture.partition(".")[0], case.state(), dtype=dtype, backend="numpy") for dtype in ("float32", "float64")
    )
    draw = {"uniform": rng.random, "normal": rng.standard_normal}[case.meta["input_kind"]]
    others = [draw(case.meta["input_shape"]).astype("float32") for _ in range(3)]
    got, *measured = [(outputs(single(x)), outputs(double(x))) for x in (case.input(), *others)]
    for name, (shape, index, expected) in case.expected().items():
        yardstick = max(error(y32[name], y64[name]) for y32, y64 in measured)
        bound = 4 * yardstick + 4 * np.finfo(np.float32).eps
        assert np.isfinite(bound) and got[0][name].shape == shape
        assert error(got[0][name], got[1][name]) <= bound, name
        assert error(got[0][name].reshape(-1)[index], expected) <= bound, name
