"""A small model of every architecture: sides differ, so that maps of odd sizes occur."""

from dataclasses import replace

from refvit.graph import trace
from refvit.models import architecture
from refvit.models.hrnet import HRNetConfig
from refvit.models.hrvit import HRViTConfig
from refvit.models.vit import ViTConfig

VIT = ViTConfig(image_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=7)
HRNET = HRNetConfig(width=4, layer1=(2, 8), modules=(1, 1, 1), blocks=1, num_classes=7)
SEG = replace(HRNET, head="segmentation", upsample="bilinear")
HRVIT = HRViTConfig((8, 16, 24, 32), 4, (2, 3, 2, 2), ((1, 1, 1, 1), (1, 1, 1, 1)), stem_width=8, head_width=12, num_classes=5)

# name -> a model of the architecture, its config (None: the published one), the input's shape
SMALL = {
    "vit": ("vit_tiny_patch16_224", VIT, (2, 3, 32, 32)),
    "vit at another size": ("vit_tiny_patch16_224", VIT, (1, 3, 40, 24)),
    "deit distilled": ("deit_tiny_distilled_patch16_224", replace(VIT, distilled=True, gelu="tanh"), (2, 3, 32, 32)),
    "mobilevit": ("mobilevit_xxs", None, (2, 3, 64, 96)),
    "mobilevit at an odd size": ("mobilevit_xxs", None, (1, 3, 70, 50)),
    "mobilevit deeplabv3": ("mobilevit_xxs_deeplabv3", None, (1, 3, 64, 80)),
    "mobilevit ssdlite": ("mobilevit_xxs_ssdlite", None, (1, 3, 64, 96)),
    "hrnet": ("hrnet_w18_small", HRNET, (2, 3, 64, 32)),
    "hrnet pose": ("hrnet_w32_pose", replace(HRNET, head="pose"), (1, 3, 64, 96)),
    "hrnet segmentation": ("hrnet_w18_small_seg", SEG, (2, 3, 72, 52)),
    "hrnet segmentation, corners": ("hrnet_w18_small_seg", replace(SEG, align_corners=True), (1, 3, 72, 52)),
    "hrnet segmentation, twice": ("hrnet_w18_small_seg", replace(SEG, upsample="bilinear_twice"), (1, 3, 72, 52)),
    "hrnet ocr": ("hrnet_w48_ocr", replace(SEG, head="ocr", align_corners=True), (1, 3, 64, 32)),
    "hrvit": ("hrvit_b1", HRVIT, (2, 3, 64, 96)),
    "hrvit segformer": ("hrvit_b1_segformer", replace(HRVIT, head="segformer"), (1, 3, 64, 96)),
    "hrvit upernet": ("hrvit_b1_upernet", replace(HRVIT, head="upernet"), (1, 3, 64, 32)),
}  # fmt: skip


def small_graph(model, params, *, expand=False):
    """The graph of an entry; `params(names and shapes)` gives the arrays."""
    name, config, shape = SMALL[model]
    arch = architecture(name)
    config = config or arch.config
    return trace(arch.forward, shape, params(arch.parameters(config)), expand=expand, config=config)
