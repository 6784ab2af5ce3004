"""ViT and MobileViT: every module of transformers against ours, in float64.

transformers' eager attention computes its softmax in float32 for ViT. Those modules were recorded with its other attention,
which does not; what the eager one gives, its probabilities among it, is compared as far as float32 goes.
"""

import numpy as np
import pytest

import refvit

LAYER, BLOCK = r"vit\.layers\.(\d+)", r"blocks.\1"


def third(i):
    """Queries, keys or values, which ours computes at once."""
    return lambda y: np.split(y, 3, axis=-1)[i]


VIT = (  # module of the original -> our value
    (r"vit\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"vit\.embeddings\.patch_embeddings", "patch_embed"),
    (r"vit\.embeddings(\.dropout)?", "add"),
    (rf"{LAYER}\.layernorm_before", rf"{BLOCK}.norm1"),
    *((rf"{LAYER}\.attention\.{name}_proj", rf"{BLOCK}.attn.qkv", third(i)) for i, name in enumerate("qkv")),
    (rf"{LAYER}\.attention\[1\]", rf"{BLOCK}.attn.attention.softmax"),
    (rf"{LAYER}\.(?:attention\.o_proj|attention\[0\]|dropout#0)", rf"{BLOCK}.attn"),
    (rf"{LAYER}\.layernorm_after", rf"{BLOCK}.norm2"),
    (rf"{LAYER}\.mlp\.activation_fn", rf"{BLOCK}.mlp.gelu"),
    (rf"{LAYER}\.mlp\.(fc[12])", rf"{BLOCK}.mlp.\2"),
    (rf"{LAYER}\.(?:mlp|dropout#1)", rf"{BLOCK}.mlp"),
    (LAYER, BLOCK),
    (r"vit\.layernorm|vitlast_hidden_state", "norm"),
    (r"classifier", "head"),
)


def conv_layer(theirs, ours):
    return (
        (theirs + r"\.convolution", ours + ".conv"),
        (theirs + r"\.normalization", ours + ".bn.batch_norm"),
        (theirs + r"\.activation", ours + ".bn.silu"),
        (theirs, ours),
    )


def inverted_residual(theirs, ours):
    return (
        *conv_layer(rf"{theirs}\.expand_1x1", f"{ours}.conv1_1x1"),
        *conv_layer(rf"{theirs}\.conv_3x3", f"{ours}.conv2_kxk"),
        *conv_layer(rf"{theirs}\.reduce_1x1", f"{ours}.conv3_1x1"),
        (theirs, ours),
    )


STAGE, OURS = r"mobilevit\.encoder\.layer\.(\d)", r"stages.\1.1"
ROW, MINE = rf"{STAGE}\.transformer\.layer\.(\d)", rf"{OURS}.transformer.\2"
MOBILEVIT = (
    *conv_layer(r"mobilevit\.conv_stem", "stem"),
    *inverted_residual(rf"{STAGE}\.layer\.(\d)", r"stages.\1.\2"),
    *inverted_residual(rf"{STAGE}\.downsampling_layer", r"stages.\1.0"),
    *conv_layer(rf"{STAGE}\.conv_kxk", f"{OURS}.conv_kxk"),
    (rf"{STAGE}\.conv_1x1(?:\.convolution)?", f"{OURS}.conv_1x1"),
    (rf"{ROW}\.layernorm_before", f"{MINE}.norm1"),
    *(
        (rf"{ROW}\.attention\.attention\.{name}", f"{MINE}.attn.qkv", third(i))
        for i, name in enumerate(("query", "key", "value"))
    ),
    (rf"{ROW}\.attention\.attention\.dropout", f"{MINE}.attn.attention.softmax"),
    (rf"{ROW}\.attention\.attention", f"{MINE}.attn.reshape_1"),  # the heads side by side, before the projection
    (rf"{ROW}\.attention(?:\.output.*)?", f"{MINE}.attn"),
    (rf"{ROW}\.layernorm_after", f"{MINE}.norm2"),
    (rf"{ROW}\.intermediate\.dense", f"{MINE}.mlp.fc1"),
    (rf"{ROW}\.intermediate.*", f"{MINE}.mlp.silu"),
    (rf"{ROW}\.output\.(?:dense|dropout)", f"{MINE}.mlp"),
    (rf"{ROW}(?:\.output)?", MINE),  # `output` adds the shortcut
    (r"mobilevit\.encoder\.layer\.2\.transformer", "stages.2.1.transformer.1"),  # the last of a list of layers
    (r"mobilevit\.encoder\.layer\.3\.transformer", "stages.3.1.transformer.3"),
    (r"mobilevit\.encoder\.layer\.4\.transformer", "stages.4.1.transformer.2"),
    (rf"{STAGE}\.layernorm", f"{OURS}.norm"),
    *conv_layer(rf"{STAGE}\.conv_projection", f"{OURS}.conv_proj"),
    *conv_layer(rf"{STAGE}\.fusion", f"{OURS}.conv_fusion"),
    (STAGE, r"stages.\1"),
    (r"mobilevit\.encoderlast_hidden_state", "stages.4"),
    *conv_layer(r"mobilevit\.conv_1x1_exp", "final_conv"),
    (r"mobilevitlast_hidden_state", "final_conv"),
    (r"mobilevitpooler_output|dropout", "head.mean"),
    (r"classifier", "head"),
)


@pytest.mark.parametrize(
    ("fixture", "same", "modules"),
    [("vit_tiny_patch16_224.transformers.float64", VIT, 175), ("mobilevit_xxs.transformers", MOBILEVIT, 312)],
    ids=["vit", "mobilevit"],
)
def test_every_module_equals_the_original(golden, compare_modules, fixture, same, modules):
    assert sum(map(len, golden(fixture).modules().values())) == modules
    assert compare_modules(fixture, fixture.partition(".")[0], same, {}) == modules


def test_attention_probabilities_equal_the_original_in_float32(golden):
    """Of the first layer, whose input no float32 has touched yet: half an ulp of rounding and a few of exp and division."""
    case = golden("vit_tiny_patch16_224.transformers")
    model = refvit.load("vit_tiny_patch16_224", case.state(), dtype="float64", backend="numpy")
    ours = model.intermediates(case.input(), "blocks.0.attn.attention.softmax")["blocks.0.attn.attention.softmax"]
    [(shape, index, theirs)] = case.modules()["vit.layers.0.attention[1]"]
    assert ours.shape == shape
    np.testing.assert_array_equal(theirs, theirs.astype(np.float32))  # the reason
    np.testing.assert_allclose(ours.reshape(-1)[index], theirs, rtol=8 * np.finfo(np.float32).eps)
