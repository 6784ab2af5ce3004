"""ViT and distilled DeiT: every module of timm and of facebookresearch/deit against ours, in float64.

No module of theirs is without a counterpart, so there is no table of absent ones.
"""

import pytest

BLOCK = r"(blocks\.\d+)"
SAME = (  # module of the original -> our value, where the names differ
    (r"patch_embed\.norm", "patch_embed"),  # an identity, as are norm_pre, q_norm, k_norm, ls1, ls2 and every drop
    (r"pos_drop|patch_drop|norm_pre", "add"),  # tokens and positions
    (BLOCK + r"\.attn\.q_norm", r"\1.attn.getitem"),  # the queries, before they are scaled
    (BLOCK + r"\.attn\.k_norm", r"\1.attn.getitem_1"),
    (BLOCK + r"\.attn\.norm", r"\1.attn.reshape_1"),  # the heads side by side, before the projection
    (BLOCK + r"\.(attn\.proj_drop|ls1|drop_path1)", r"\1.attn"),
    (BLOCK + r"\.mlp\.(act|drop1|norm)", r"\1.mlp.gelu"),
    (BLOCK + r"\.(mlp\.drop2|ls2|drop_path2)", r"\1.mlp"),
    (r"blocks", "blocks.11"),  # a list of layers returns what its last one does
    (r"fc_norm|head_drop", "getitem"),  # the class token
)


@pytest.mark.parametrize(
    ("fixture", "model", "modules"),
    [
        ("vit_tiny_patch16_224.timm", "vit_tiny_patch16_224", 263),
        ("deit_tiny_distilled_patch16_224", "deit_tiny_distilled_patch16_224", 259),
    ],
    ids=["timm", "deit"],
)
def test_every_module_equals_the_original(golden, compare_modules, fixture, model, modules):
    assert sum(map(len, golden(fixture).modules().values())) == modules
    assert compare_modules(fixture, model, SAME, {}) == modules
