"""Every seeded checkpoint against what the original implementation computed from it in float64, and the published counts."""

import dataclasses

import numpy as np
import pytest

import refvit
from refvit import ops
from refvit.errors import ShapeError, WeightsError
from refvit.graph import trace
from refvit.graph.cost import parameter_count, total_cost
from refvit.graph.ir import ShapeOnly
from refvit.model import architecture_graph
from refvit.models import architecture

BOUND = 1e-10  # of the largest value; what is seen is below 2e-14

CASES = [  # fixture, model, how the original's outputs follow from ours
    ("vit_tiny_patch16_224.timm", "vit_tiny_patch16_224", lambda y: {"output": y}),
    ("deit_tiny_distilled_patch16_224", "deit_tiny_distilled_patch16_224", lambda y: {"output": y}),
    ("mobilevit_xxs.timm", "mobilevit_xxs", lambda y: {"output": y}),
    ("mobilevit_xxs.cvnets", "mobilevit_xxs", lambda y: {"output": y}),
    (
        "mobilevit_xxs_deeplabv3.cvnets",
        "mobilevit_xxs_deeplabv3",
        lambda y: {"output": ops.resize(y, size=(256, 256), mode="bilinear", align_corners=False)},
    ),
    ("mobilevit_xxs_ssdlite.cvnets", "mobilevit_xxs_ssdlite", lambda y: {"[0]": y["scores"], "[1]": y["boxes"]}),
    ("hrnet_w18_small", "hrnet_w18_small", lambda y: {"output": y}),
    ("hrnet_w18_small.timm", "hrnet_w18_small", lambda y: {"output": y}),
    ("hrnet_w18_small_seg", "hrnet_w18_small_seg", lambda y: {"output": y}),
    ("hrnet_w32_pose", "hrnet_w32_pose", lambda y: {"output": y}),
    ("hrvit_b1", "hrvit_b1", lambda y: {"output": y}),
    ("hrvit_b1_segformer", "hrvit_b1_segformer", lambda y: {"output": y}),
]


@pytest.mark.parametrize(("fixture", "name", "outputs"), CASES, ids=[c[0] for c in CASES])
def test_outputs_equal_the_original(golden, fixture, name, outputs):
    case = golden(fixture)
    model = refvit.load(name, case.state(), dtype="float64", backend="numpy")
    assert case.check(outputs(model(case.input()))) < BOUND


def test_ocr_equals_the_original(golden):
    case = golden("hrnet_w48_ocr")
    model = refvit.load("hrnet_w48_ocr", case.state(), dtype="float64", backend="numpy")
    values = model.intermediates(case.input(), "*_head")
    assert case.check({"[0]": values["aux_head"], "[1]": values["cls_head"]}) < BOUND


# fmt: off
COUNTS = {  # parameters and MACs at the published input size
    "vit_tiny_patch16_224": (5_717_416, 1_253_683_200), "vit_tiny_patch16_384": (5_790_376, 4_682_219_520),
    "vit_small_patch32_224": (22_878_952, 1_142_909_952), "vit_small_patch32_384": (22_915_432, 3_442_900_992),
    "vit_small_patch16_224": (22_050_664, 4_598_882_304), "vit_small_patch16_384": (22_196_584, 15_490_351_104),
    "vit_base_patch32_224": (88_224_232, 4_409_186_304), "vit_base_patch32_384": (88_297_192, 13_043_564_544),
    "vit_base_patch16_224": (86_567_656, 17_563_828_224), "vit_base_patch16_384": (86_859_496, 55_484_350_464),
    "vit_base_patch8_224": (86_576_872, 78_148_337_664),
    "vit_large_patch32_224": (306_535_400, 15_377_539_072), "vit_large_patch32_384": (306_632_680, 45_275_963_392),
    "vit_large_patch16_224": (304_326_632, 61_554_712_576), "vit_large_patch16_384": (304_715_752, 191_066_300_416),
    "vit_huge_patch14_224": (632_045_800, 167_295_109_120),
    "deit_tiny_patch16_224": (5_717_416, 1_253_683_200), "deit_tiny_distilled_patch16_224": (5_910_800, 1_261_003_776),
    "deit_small_patch16_224": (22_050_664, 4_598_882_304), "deit_small_distilled_patch16_224": (22_436_432, 4_624_140_288),
    "deit_base_patch16_224": (86_567_656, 17_563_828_224), "deit_base_distilled_patch16_224": (87_338_192, 17_656_811_520),
    "deit_base_patch16_384": (86_859_496, 55_484_350_464), "deit_base_distilled_patch16_384": (87_630_032, 55_591_342_080),
    "mobilevit_xxs": (1_272_024, 407_364_096), "mobilevit_xs": (2_317_848, 1_025_911_808),
    "mobilevit_s": (5_578_632, 2_000_831_488),
    "hrnet_w18_small": (13_187_464, 1_601_508_352), "hrnet_w18_small_v2": (15_597_464, 2_595_712_864),
    "hrnet_w18": (21_299_004, 4_283_537_072), "hrnet_w30": (37_712_220, 8_105_781_680),
    "hrnet_w32": (41_232_680, 8_921_133_056), "hrnet_w40": (57_557_160, 12_691_997_440),
    "hrnet_w44": (67_064_984, 14_883_104_960), "hrnet_w48": (77_469_864, 17_277_996_032),
    "hrnet_w64": (128_059_944, 28_895_395_840),
    "hrnet_w32_pose": (28_536_113, 7_645_003_776), "hrnet_w48_pose": (63_595_745, 15_691_825_152),
}
ROUNDED = {  # parameters, and MACs as far as they are published
    "mobilevit_xxs_deeplabv3": (1_854_853, "3.953G"), "mobilevit_xs_deeplabv3": (2_944_069, "7.378G"),
    "mobilevit_s_deeplabv3": (6_357_941, "13.694G"),
    "mobilevit_xxs_ssdlite": (1_755_050, "0.842G"), "mobilevit_xs_ssdlite": (2_742_042, "1.845G"),
    "mobilevit_s_ssdlite": (5_738_826, "3.427G"),
    "hrnet_w18_small_seg": (1_540_819, "33.39G"), "hrnet_w18_small_v2_seg": (3_939_579, "76.86G"),
    "hrnet_w48_seg": (65_859_379, "747.5G"), "hrnet_w48_ocr": (70_372_678, None),
    "hrvit_b1": (19_685_152, "2.776G"), "hrvit_b2": (32_486_408, "5.288G"), "hrvit_b3": (37_870_304, "5.900G"),
    "hrvit_b1_segformer": (8_183_118, "15.76G"), "hrvit_b2_segformer": (20_809_782, "30.14G"),
    "hrvit_b3_segformer": (28_724_494, "70.45G"),
}
# fmt: on


def counts(name):
    entry = architecture(name)
    return parameter_count(entry.parameters(entry.config)), total_cost(architecture_graph(name)).macs


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_the_published_ones(name):
    assert counts(name) == COUNTS[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_counts_round_to_the_published_ones(name):
    params, macs = ROUNDED[name]
    found = counts(name)
    assert found[0] == params
    if macs:
        assert f"{found[1] / 1e9:.{len(macs.partition('.')[2]) - 1}f}G" == macs


@pytest.mark.parametrize(
    ("name", "fields", "size", "params", "macs"),
    [
        ("vit_base_patch16_224", {"num_classes": 21_843}, (224, 224), 102_595_923, None),
        ("vit_large_patch16_224", {"num_classes": 21_843}, (224, 224), 325_690_707, None),
        ("vit_huge_patch14_224", {"num_classes": 21_843}, (224, 224), 658_745_683, None),
        ("hrnet_w32_pose", {}, (384, 288), 28_536_113, "17.201258496G"),
        ("hrnet_w48_pose", {}, (384, 288), 63_595_745, "35.306606592G"),
        (
            "mobilevit_s_deeplabv3",
            {"output_stride": 8, "aspp_width": 512, "rates": (12, 24, 36)},
            (512, 512),
            8_537_269,
            "51.06G",
        ),
    ],
)
def test_counts_of_other_published_forms(name, fields, size, params, macs):
    entry = architecture(name)
    config = dataclasses.replace(entry.config, **fields)
    shapes = dict(entry.parameters(config))
    assert parameter_count(shapes.items()) == params
    if macs:
        graph = trace(entry.forward, (1, 3, *size), {n: ShapeOnly(s) for n, s in shapes.items()}, config=config)
        assert f"{total_cost(graph).macs / 1e9:.{len(macs.partition('.')[2]) - 1}f}G" == macs


@pytest.mark.parametrize(("name", "aux"), [("hrvit_b1", 128), ("hrvit_b2", 240), ("hrvit_b3", 256)])
def test_upernet_counts_with_the_auxiliary_head(name, aux):
    """Published with the head that only training needs: a 3x3 convolution to 256, its norm, and 150 classes."""
    published = {"hrvit_b1": 35_952_100, "hrvit_b2": 49_696_972, "hrvit_b3": 55_815_588}[name]
    assert counts(f"{name}_upernet")[0] + 256 * aux * 9 + 2 * 256 + 256 * 150 + 150 == published


def test_ocr_macs_at_a_small_size():
    assert total_cost(architecture_graph("hrnet_w48_ocr", (128, 256))).macs == 20_285_489_152
    assert total_cost(architecture_graph("hrnet_w48_seg", (128, 256))).macs == 11_679_891_456


def test_sizes_that_do_not_fit_are_said():
    for name, size in (("hrnet_w18_small", (224, 240)), ("hrvit_b1", (230, 224)), ("vit_tiny_patch16_224", (224, 230))):
        with pytest.raises(ShapeError, match="multiples of"):
            architecture_graph(name, size)
    assert total_cost(architecture_graph("hrnet_w18_small_seg", (200, 216))).shape[2:] == (50, 54)


def test_vit_at_another_size_resamples_its_positions(golden):
    """The table of another grid is the trained one under `resize`; the class token keeps its own entry."""
    case = golden("vit_tiny_patch16_224.timm")
    model = refvit.load("vit_tiny_patch16_224", case.state(), dtype="float64")
    x = np.random.default_rng(0).standard_normal((1, 3, 160, 320))
    values = model.intermediates(x)
    table = case.state()["pos_embed"].astype(np.float64)
    grid = table[:, 1:].reshape(1, 14, 14, 192).transpose(0, 3, 1, 2)
    grid = ops.resize(grid, size=(10, 20), mode="bicubic", align_corners=False, antialias=True)
    expected = np.concatenate([table[:, :1], grid.transpose(0, 2, 3, 1).reshape(1, 200, 192)], 1)
    tokens = np.concatenate([case.state()["cls_token"].astype(np.float64), values["patch_embed"]], 1)
    np.testing.assert_allclose(values["add"], tokens + expected, atol=1e-12)


def test_deit_and_vit_have_the_same_tensors():
    arch = architecture("vit_tiny_patch16_224")
    state = {n: np.full(s, 0.1, np.float32) for n, s in arch.parameters(arch.config)}
    with pytest.raises(WeightsError, match="vit_tiny_patch16_224 and deit_tiny_patch16_224; say which by model="):
        refvit.load(None, state)
    assert (
        refvit.load("deit_tiny_patch16_224", state).preprocess.mean
        != refvit.load("vit_tiny_patch16_224", state).preprocess.mean
    )
