"""Every model under the names of every layout that holds it: exactly one layout recognises it, and finds all its tensors.

The names are made here by tables of their own, from ours to the source's, the other way round from the rules.
"""

import dataclasses
import re

import numpy as np
import pytest

from refvit.models import architecture
from weights_convert.convert import LAYOUTS

DISK, MEMORY = "attention.attention", "attention"


def layers(attention, names, out, first, second):
    """A transformer layer of transformers; names: of query, key and value."""
    return [
        *((rf"\.attn\.qkv\[{i}\]", f".{attention}.{name}") for i, name in enumerate(names)),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.attn\.proj\.", f".attention.{out}."),
        (r"\.mlp\.fc1\.", f".{first}."),
        (r"\.mlp\.fc2\.", f".{second}."),
    ]


ON_DISK = layers(DISK, ("query", "key", "value"), "output.dense", "intermediate.dense", "output.dense")
IN_MEMORY = layers(MEMORY, ("q_proj", "k_proj", "v_proj"), "o_proj", "mlp.fc1", "mlp.fc2")


def transformers(model, words, blocks):
    heads = [(r"^head\.", "cls_classifier."), (r"^head_dist\.", "distillation_classifier.")]
    return [
        *words,
        *(heads if model == "deit" else [(r"^head\.", "classifier.")]),
        (r"^cls_token", f"{model}.embeddings.cls_token"),
        (r"^dist_token", f"{model}.embeddings.distillation_token"),
        (r"^pos_embed", f"{model}.embeddings.position_embeddings"),
        (r"^patch_embed\.proj", f"{model}.embeddings.patch_embeddings.projection"),
        (r"^blocks\.", f"{model}.{blocks}."),
        (r"^norm\.", f"{model}.layernorm."),
    ]


def jax(block, norm, attention, perceptron):
    mha = f"MultiHeadDotProductAttention_{attention}"
    return [
        (r"^blocks\.(\d+)\.", f"Transformer/{block}/"),
        (r"norm1\.", "LayerNorm_0/"),
        (r"norm2\.", f"LayerNorm_{norm}/"),
        *((rf"attn\.qkv\[{i}\]\.", f"{mha}/{name}/") for i, name in enumerate(("query", "key", "value"))),
        (r"attn\.proj\.", f"{mha}/out/"),
        (r"mlp\.fc1\.", f"MlpBlock_{perceptron}/Dense_0/"),
        (r"mlp\.fc2\.", f"MlpBlock_{perceptron}/Dense_1/"),
        (r"^norm\.", "Transformer/encoder_norm/"),
        (r"^patch_embed\.proj\.", "embedding/"),
        (r"^head\.", "head/"),
        (r"(LayerNorm_\d|encoder_norm)/weight", r"\1/scale"),
        (r"/weight$", "/kernel"),
        (r"^cls_token$", "cls"),
        (r"^pos_embed$", "Transformer/posembed_input/pos_embedding"),
    ]


MOBILEVIT_TRANSFORMERS = [
    *ON_DISK,
    (r"\.conv\.weight$", ".convolution.weight"),
    (r"\.bn\.", ".normalization."),
    (r"^stages\.([234])\.1\.norm\.", r"stages.\1.1.layernorm."),
    (r"^stages\.([234])\.1\.conv_1x1\.", r"stages.\1.1.conv_1x1.convolution."),
    (r"\.transformer\.", ".transformer.layer."),
    (r"\.conv_proj\.", ".conv_projection."),
    (r"\.conv_fusion\.", ".fusion."),
    (r"\.conv1_1x1\.", ".expand_1x1."),
    (r"\.conv2_kxk\.", ".conv_3x3."),
    (r"\.conv3_1x1\.", ".reduce_1x1."),
    (r"^stages\.([01])\.", r"mobilevit.encoder.layer.\1.layer."),
    (r"^stages\.([234])\.0\.", r"mobilevit.encoder.layer.\1.downsampling_layer."),
    (r"^stages\.([234])\.1\.", r"mobilevit.encoder.layer.\1."),
    (r"^stem\.", "mobilevit.conv_stem."),
    (r"^final_conv\.", "mobilevit.conv_1x1_exp."),
    (r"^head\.fc\.", "classifier."),
    (r"\.block\.convolution\.", ".convolution."),
    (r"\.block\.conv\.bias$", ".convolution.bias"),
    (r"\.block\.norm\.", ".normalization."),
    (r"\.aspp_pool\.", "."),
    (r"^seg_head\.aspp\.aspp_layer\.", "segmentation_head.aspp."),
    (r"^seg_head\.classifier\.classifier\.", "segmentation_head.classifier."),
]
CVNETS = [
    *((rf"^stages\.{i}\.1\.norm\.", f"stages.{i}.1.global_rep.{depth}.") for i, depth in ((2, 2), (3, 4), (4, 3))),
    (r"\.transformer\.(\d)\.norm1\.", r".global_rep.\1.pre_norm_mha.0."),
    (r"\.transformer\.(\d)\.attn\.qkv\.", r".global_rep.\1.pre_norm_mha.1.qkv_proj."),
    (r"\.transformer\.(\d)\.attn\.proj\.", r".global_rep.\1.pre_norm_mha.1.out_proj."),
    (r"\.transformer\.(\d)\.norm2\.", r".global_rep.\1.pre_norm_ffn.0."),
    (r"\.transformer\.(\d)\.mlp\.fc1\.", r".global_rep.\1.pre_norm_ffn.1."),
    (r"\.transformer\.(\d)\.mlp\.fc2\.", r".global_rep.\1.pre_norm_ffn.4."),
    (r"^(stem|stages|final_conv)(.*)\.conv\.weight", r"\1\2.block.conv.weight"),
    (r"^(stem|stages|final_conv)(.*)\.bn\.", r"\1\2.block.norm."),
    (r"\.1\.conv_1x1\.weight", ".1.local_rep.conv_1x1.block.conv.weight"),
    (r"\.1\.conv_kxk\.", ".1.local_rep.conv_3x3."),
    (r"\.conv_fusion\.", ".fusion."),
    (r"\.conv1_1x1\.", ".block.exp_1x1."),
    (r"\.conv2_kxk\.", ".block.conv_3x3."),
    (r"\.conv3_1x1\.", ".block.red_1x1."),
    (r"^stages\.(\d)", lambda match: f"layer_{int(match[1]) + 1}"),
    (r"^stem\.", "conv_1."),
    (r"^final_conv\.", "conv_1x1_exp."),
    (r"^head\.fc\.", "classifier.fc."),
]
ENCODER = [*CVNETS, (r"^(conv_1|layer_)", r"encoder.\1")]
HRNET = r"^(conv\d|bn\d|layer1|transition\d|stage\d)\."
WRAPPED = [(r"^", "model.")]
MMPOSE = [(HRNET, r"backbone.\1.")]
MMSEG = [
    *MMPOSE,
    (r"^last_layer\.0\.", "decode_head.convs.0.conv."),
    (r"^last_layer\.1\.", "decode_head.convs.0.bn."),
    (r"^last_layer\.3\.", "decode_head.conv_seg."),
]
TABLES = {  # layout: (pattern, replacement) pairs, each applied to every name in turn
    "vit.timm": [],
    "vit.transformers": transformers("vit", ON_DISK, "encoder.layer"),
    "deit.transformers": transformers("deit", ON_DISK, "encoder.layer"),
    "vit.transformers.in_memory": transformers("vit", IN_MEMORY, "layers"),
    "deit.transformers.in_memory": transformers("deit", IN_MEMORY, "layers"),
    "vit.jax": jax(r"encoderblock_\1", 2, 1, 3),
    "vit.jax.linen": jax(r"encoderblock_\1", 1, 0, 0),
    "vit.jax.stacked": jax("encoderblock", 1, 0, 0),
    "mobilevit.timm": [],
    "mobilevit.transformers": MOBILEVIT_TRANSFORMERS,
    "mobilevit.transformers.deeplabv3": MOBILEVIT_TRANSFORMERS,
    "mobilevit.cvnets": CVNETS,
    "mobilevit.cvnets_v2": CVNETS,
    "mobilevit.cvnets.deeplabv3": ENCODER,
    "mobilevit.cvnets_v2.deeplabv3": [*ENCODER, (r"^seg_head\.classifier\.classifier\.", "seg_head.classifier.")],
    "mobilevit.cvnets.ssdlite": ENCODER,
    "hrnet.classification": [],
    "hrnet.segmentation": [],
    "hrnet.segmentation.trained": WRAPPED,
    "hrnet.ocr": [],
    "hrnet.ocr.trained": WRAPPED,
    "hrnet.pose": [],
    "hrnet.mmpose": [*MMPOSE, (r"^final_layer\.", "head.final_layer.")],
    "hrnet.mmpose.keypoint_head": [*MMPOSE, (r"^final_layer\.", "keypoint_head.final_layer.")],
    "hrnet.mmseg": MMSEG,
    "hrvit.classification": [],
    "hrvit.mmseg": [(r"^(stem|features)\.", r"backbone.\1.")],
}
SEPARATE = ("transformers", "jax")  # query, key and value
RANGES = [f"neural_augmentor.{name}._{end}" for name in ("brightness", "contrast", "noise") for end in ("low", "high")]
AUXILIARY = ["convs.0.conv.weight", "convs.0.bn.weight", "convs.0.bn.running_var", "conv_seg.weight", "conv_seg.bias"]
DROPPED = {  # what else is in such files
    "mobilevit.cvnets_v2": RANGES,
    "mobilevit.cvnets_v2.deeplabv3": [f"encoder.{key}" for key in RANGES] + ["seg_head.aux_head.2.block.conv.bias"],
    "mobilevit.cvnets.deeplabv3": ["seg_head.aux_head.aux_projection.block.conv.weight"],
    "hrnet.segmentation.trained": ["loss.criterion.weight"],
    "hrnet.ocr.trained": ["loss.criterion.weight"],
    "hrnet.mmseg": [f"auxiliary_head.{key}" for key in AUXILIARY],
    "hrvit.mmseg": [f"auxiliary_head.{key}" for key in AUXILIARY],
    "vit.transformers": ["vit.pooler.dense.weight", "vit.pooler.dense.bias"],
}


def published(layout, model):
    """Names and shapes of the tensors of a checkpoint of this layout; parts of a name say which are rows of one of ours."""
    arch, shapes = architecture(model), {}
    config = dataclasses.replace(arch.config, head_bias=False) if layout.name == "hrnet.mmseg" else arch.config
    for name, shape in arch.parameters(config):
        parts = [name]
        if ".attn.qkv." in name and any(word in layout.name.split(".") for word in SEPARATE):
            parts = [name.replace(".attn.qkv.", f".attn.qkv[{i}].") for i in range(3)]
            shape = (shape[0] // 3, *shape[1:])
        for key in parts:
            for pattern, replacement in TABLES[layout.name]:
                key = re.sub(pattern, replacement, key)
            shapes[key] = shape
    counters = [key.replace("running_var", "num_batches_tracked") for key in shapes if key.endswith("running_var")]
    return shapes | dict.fromkeys([*counters, *DROPPED.get(layout.name, ())], ())


def test_every_layout_has_a_table():
    assert list(TABLES) == list(dict.fromkeys(TABLES))
    assert set(TABLES) == {layout.name for layout in LAYOUTS}
    assert len(TABLES) == len(LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_one_layout_recognises_each_model(layout):
    assert layout.models
    for model in layout.models:
        keys = published(layout, model)
        for prefix in layout.prefixes:
            state = dict.fromkeys([prefix + key for key in keys])
            assert [other.name for other in LAYOUTS if other.matches(state)] == [layout.name]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if "jax" not in layout.name], ids=lambda layout: layout.name)
def test_the_rules_find_every_tensor(layout):
    """Names and shapes, of the smallest model; the JAX layouts, whose arrays are also transposed, have a test of their own."""
    arch = architecture(layout.models[0])
    config = dataclasses.replace(arch.config, head_bias=False) if layout.name == "hrnet.mmseg" else arch.config
    state = {key: np.broadcast_to(np.float32(1), shape) for key, shape in published(layout, arch.name).items()}
    found = {name: a.shape for name, a in layout.rename(state).items()}
    assert found == dict(arch.parameters(config))
