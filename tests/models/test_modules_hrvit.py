"""HRViT against its original implementation: every module in float64, and the answers in float32.

A rule says which of our values a module of the original returns. At 224 x 224 pixels every branch has whole stripes, so nothing
is padded. Windows, and pixels inside of them, have the original's order.
"""

import numpy as np
import pytest

import refvit
from refvit.models.hrvit import VARIANTS

ULP = np.finfo(np.float32).eps  # errors are relative to the largest value
CEILING = 2e-5  # of float32's own error, or a fault of float32 would excuse itself; what is seen is below 2e-6

ROOT = r"(?:backbone\.)?"  # the segmentation model's prefix
BLOCK = rf"{ROOT}(features\.\d+\.branches\.\d\.\d)"
FUSED = [(m, i) for m, blocks in enumerate(VARIANTS["hrvit_b1"].blocks) for i in range(len(blocks))]  # module and branch
LAST = "features.11"  # the last stage

ABSENT = {BLOCK + r"\.attn_drop_path": "the sum of attention and shortcut: here the tokens are added to the attention first"}
SAME = (
    (ROOT + r"stem\.act1", "stem.relu"),
    (ROOT + r"stem\.act2", "stem.relu_1"),
    # Fusion: identities, sums and their activations, which are numbered through the network, and enlarging.
    *((rf"{ROOT}features\.{2 * m}\.blocks\.{i}\.{i}", f"features.{2 * m - 1}:{i}" if m else "stem") for m, i in FUSED),
    *((rf"{ROOT}features\.{2 * m}(\.act\.{i}|\[{i}\])", f"gelu_{k}" if k else "gelu") for k, (m, i) in enumerate(FUSED)),
    *((rf"{ROOT}(features\.\d+\.blocks\.{i}\.{j})\.2", r"\1") for i in range(4) for j in range(i + 1, 4)),
    # Stages
    (ROOT + r"(features\.\d+\.patch_embed\.\d)\.proj", r"\1.proj.1"),
    (ROOT + r"(features\.\d+\.patch_embed\.\d)\[0\]", r"\1"),
    (BLOCK + r"\.attn\.parallel_conv\.0", r"\1.attn.hardswish"),
    (BLOCK + r"\.attn\.parallel_conv", r"\1.attn.parallel_conv.1"),
    (BLOCK + r"\.attn\.attend#0", r"\1.attn.stripe_attention.softmax"),  # horizontal stripes
    (BLOCK + r"\.attn\.attend#1", r"\1.attn.stripe_attention_1.softmax"),
    (BLOCK + r"\.attn\.attn_act", r"\1.attn.hardswish_1"),
    (BLOCK + r"\.attn\.to_out(\.1)?", r"\1.attn.to_out.0"),  # dropout
    (BLOCK + r"\.des\.act", r"\1.des.gelu"),
    (BLOCK + r"\.ffn\.conv", r"\1.ffn.concat"),
    (BLOCK + r"\.ffn\.act", r"\1.ffn.gelu"),
    (BLOCK + r"\.ffn_drop_path", r"\1.ffn"),
    (ROOT + r"(features\.\d+)\[(\d)\]", r"\1:\2"),
    (r"(?:features|backbone|backbone\.features)\[(\d)\]", rf"{LAST}:\1"),
    # The classification head
    (r"(head\..*\.relu)#0", r"\1"),  # one module, called for every ReLU of its block
    (r"(head\..*\.relu)#([12])", r"\1_\2"),
    (r"(head\..*\.downsample)", r"\1.1"),  # a list of layers returns what its last one does
    (r"(head\.incre_modules\.\d)", r"\1.0"),
    (r"head\.downsamp_modules\.0(\.2)?", "head.relu"),
    (r"head\.downsamp_modules\.([12])(\.2)?", r"head.relu_\1"),
    (r"head\.final_layer(\.2)?", "head.relu_3"),
    (r"head\.(pool|dropout)", "head.mean"),
    # The SegFormer head
    (r"(decode_head\.convs\.\d)", r"\1.conv"),  # no norm, no activation
    (r"decode_head\.(fusion_conv\.activate|dropout)", "decode_head.fusion_conv"),
    (r"backbone\.(.*)", r"\1"),  # all others, by their names
)

CASES = {"hrvit_b1": 1381, "hrvit_b1_segformer": 1324}  # outputs of modules
BLOCKS = sum(map(sum, VARIANTS["hrvit_b1"].blocks))


@pytest.mark.parametrize("fixture", CASES)
def test_every_module_equals_the_original(golden, compare_modules, fixture):
    total = CASES[fixture]
    assert sum(map(len, golden(fixture).modules().values())) == total
    assert compare_modules(fixture, fixture, SAME, ABSENT) == total - BLOCKS


def error(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("fixture", CASES)
def test_float32_is_as_near_as_float32_allows(golden, fixture):
    """At most four times float32's largest error on three other inputs, and four units in the last place."""
    case = golden(fixture)
    state, (_, index, expected) = case.state(), case.expected()["output"]
    single, double = (refvit.load(fixture, state, dtype=dtype, backend="numpy") for dtype in ("float32", "float64"))

    def samples(model, x):
        y = model(x)
        assert y.dtype == model.dtype
        return y.reshape(-1)[index].astype(np.float64)

    rng, own = np.random.default_rng(0), []
    for _ in range(3):
        x = rng.standard_normal(case.meta["input_shape"]).astype(np.float32)
        own.append(error(samples(single, x), samples(double, x)))
    found, usual = error(samples(single, case.input()), expected), np.max(own)
    assert usual < CEILING
    assert found <= 4 * usual + 4 * ULP
