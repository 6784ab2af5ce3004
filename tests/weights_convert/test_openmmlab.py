"""HRNet under the names of mmpose and mmsegmentation."""

import re

import numpy as np
import pytest

import refvit
from refvit.errors import WeightsError
from refvit.models import architecture
from refvit.vision.preprocess import Preprocess
from weights_convert import convert

BOUND = 1e-10  # of the largest value; what is seen is below 1e-14
BACKBONE = re.compile(r"(conv\d|bn\d|layer1|transition\d|stage\d)\.")
SEG, POSE, MMSEG = "hrnet_w18_small_seg", "hrnet_w32_pose", "hrnet_w18_small_v2_seg.mmseg"
FCN = {
    "last_layer.0.": "decode_head.convs.0.conv.",
    "last_layer.1.": "decode_head.convs.0.bn.",
    "last_layer.3.": "decode_head.conv_seg.",
}


def renamed(state, heads):
    """An official checkpoint with `backbone.` before the backbone's names and other names of the heads."""
    out = {}
    for key, a in state.items():
        for old, new in heads.items():
            if key.startswith(old):
                key = new + key.removeprefix(old)
        out[f"backbone.{key}" if BACKBONE.match(key) else key] = a
    return out


def mmpose(state, head="head"):
    return renamed(state, {"final_layer.": f"{head}.final_layer."})


def mmseg(state):
    """The bias before the norm becomes a part of the mean that the norm subtracts."""
    state = {key: a.astype(np.float64) if a.dtype.kind == "f" else a for key, a in state.items()}
    state["last_layer.1.running_mean"] = state["last_layer.1.running_mean"] - state.pop("last_layer.0.bias")
    return renamed(state, FCN)


def shapes(name, **fields):
    """Tensors of the model's shapes under mmseg's names, each value the same: nothing is computed with them."""
    arch = architecture(name)
    config = type(arch.config)(**{**vars(arch.config), "head_bias": False, **fields})
    return renamed({n: np.broadcast_to(np.float32(0.5), s) for n, s in arch.parameters(config)}, FCN)


def without(state, *names):
    assert set(names) <= set(state)
    return {n: a for n, a in state.items() if n not in names}


def told(state, **options):
    with pytest.raises(WeightsError) as caught:
        convert(state, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def pose(golden):
    return golden(POSE).state()


@pytest.fixture(scope="module")
def seg(golden):
    """The tensors of a checkpoint as mmsegmentation itself names them."""
    return golden(MMSEG).state()


# mmpose


@pytest.mark.parametrize(("head", "layout"), [("head", "hrnet.mmpose"), ("keypoint_head", "hrnet.mmpose.keypoint_head")])
def test_heatmaps_equal_the_original(golden, pose, head, layout):
    case = golden(POSE)
    weights = convert(mmpose(pose, head))
    assert (weights.model, weights.source["layout"]) == (POSE, layout)
    assert weights.sha256 == convert(pose).sha256
    model = refvit.load(None, mmpose(pose, head), dtype="float64", backend="numpy")
    assert case.check({"output": model(case.input())}) < BOUND


def test_pose_is_evaluated_as_by_the_original(pose):
    theirs, ours = convert(pose), convert(mmpose(pose))
    assert (ours.config, ours.preprocess, ours.postprocess) == (theirs.config, theirs.preprocess, theirs.postprocess)
    assert ours.preprocess["resize"] == [256, 192]
    assert (ours.preprocess["channel_order"], ours.preprocess["mean"]) == ("rgb", [0.485, 0.456, 0.406])
    assert (ours.config["upsample"], ours.config["batch_norm_eps"]) == ("nearest", 1e-5)
    assert "UDP" in ours.source["shift"]
    udp = convert(mmpose(pose), postprocess={"shift": False})
    assert udp.postprocess["shift"] is False
    assert "shift" not in udp.source


def test_other_joints_and_width():
    arch = architecture("hrnet_w48_pose")
    config = type(arch.config)(**{**vars(arch.config), "num_classes": 16})
    weights = convert(mmpose({n: np.broadcast_to(np.float32(1), s) for n, s in arch.parameters(config)}))
    assert (weights.model, weights.config["num_classes"]) == ("hrnet_w48_pose", 16)
    assert weights.preprocess["resize"] == [256, 256]  # of MPII


def test_both_heads_or_none_of_mmpose_is_refused(pose):
    state = mmpose(pose)
    assert "have the names of 2 layouts" in told({**state, **mmpose(pose, "keypoint_head")})
    assert "the layout is not one of" in told(without(state, "head.final_layer.weight"))
    assert told(without(state, "head.final_layer.bias")) == f"no {POSE} checkpoint: missing final_layer.bias (17,)"
    assert "'head.deconv_layers.0.weight' belongs to no tensor" in told({**state, "head.deconv_layers.0.weight": np.ones(1)})
    assert "'backbone.incre_modules.0.weight' belongs to no" in told({**state, "backbone.incre_modules.0.weight": np.ones(1)})


# mmsegmentation


def test_logits_equal_mmsegmentation(golden, seg):
    """Its own code on an image of 72x106, where enlarging twice matters: by the official rule the answer is 5 per cent off."""
    case = golden(MMSEG)
    model = refvit.load(None, seg, dtype="float64", backend="numpy")
    assert model.name == "hrnet_w18_small_v2_seg"
    assert case.check({"output": model(case.input())}) < BOUND


def test_logits_equal_the_official_ones_where_both_rules_agree(golden):
    """On a multiple of 32, with the official bias folded into the norm."""
    case = golden(SEG)
    assert all(side % 32 == 0 for side in case.input().shape[2:])
    model = refvit.load(None, mmseg(case.state()), dtype="float64", backend="numpy")
    assert model.name == SEG
    assert case.check({"output": model(case.input())}) < BOUND


def test_the_rules_differ_elsewhere(golden):
    state = golden(SEG).state()
    official = refvit.load(None, state, dtype="float64", backend="numpy")
    folded = refvit.load(None, mmseg(state), dtype="float64", backend="numpy")
    x = np.random.default_rng(0).standard_normal((1, 3, 40, 72))
    expected, got = official(x), folded(x)
    assert got.shape == expected.shape == (1, 19, 10, 18)
    assert np.abs(got - expected).max() > 1e-3 * np.abs(expected).max()


def test_every_tensor_of_the_head_is_where_it_belongs(seg):
    params = convert(seg).params
    expected = {
        "last_layer.0.weight": "decode_head.convs.0.conv.weight",
        "last_layer.3.weight": "decode_head.conv_seg.weight",
        "last_layer.3.bias": "decode_head.conv_seg.bias",
        **{f"last_layer.1.{n}": f"decode_head.convs.0.bn.{n}" for n in ("weight", "bias", "running_mean", "running_var")},
    }
    for ours, theirs in expected.items():
        np.testing.assert_array_equal(params[ours], seg[theirs], strict=True)
    assert {name for name in params if not BACKBONE.match(name)} == set(expected)
    for name in set(params) - set(expected):
        np.testing.assert_array_equal(params[name], seg[f"backbone.{name}"], strict=True)


@pytest.mark.parametrize("name", ["hrnet_w18_small_seg", "hrnet_w18_small_v2_seg", "hrnet_w18_seg", "hrnet_w48_seg"])
def test_every_width_is_found(name):
    weights = convert(shapes(name))
    assert weights.model == name
    config = weights.config
    assert (config["head_bias"], config["upsample"], config["align_corners"]) == (False, "bilinear_twice", False)


def test_the_auxiliary_head_is_dropped(seg):
    extra = {
        "auxiliary_head.convs.0.conv.weight": np.ones((4, 18, 3, 3), np.float32),
        "auxiliary_head.conv_seg.bias": np.ones(19),
    }
    assert convert({**seg, **extra}).sha256 == convert(seg).sha256


WHOLE, WINDOWS = (None, None), ([480, 480], [320, 320])


@pytest.mark.parametrize(
    ("classes", "resize", "longest", "windows"),
    [
        (19, 1024, 2048, WHOLE),
        (150, 512, 2048, WHOLE),
        (21, 512, 2048, WHOLE),
        (60, 520, 520, WINDOWS),
        (59, 520, 520, WINDOWS),
        (7, 1024, 1024, WHOLE),
        (6, 512, 512, WHOLE),
        (16, 896, 896, WHOLE),
        (3, 512, 2048, WHOLE),
    ],
)
def test_segmentation_is_evaluated_as_published(classes, resize, longest, windows):
    weights = convert(shapes(SEG, num_classes=classes))
    assert weights.config["num_classes"] == classes
    pre, post = weights.preprocess, weights.postprocess
    assert (pre["resize"], pre["longest"], pre["crop"], pre["interpolation"]) == (resize, longest, None, "opencv_bilinear")
    assert (pre["channel_order"], pre["mean"], pre["std"]) == ("rgb", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert (post["window"], post["window_stride"]) == windows
    assert (post["average"], post["flip"], post["scales"]) == ("softmax", False, [1.0])
    assert f"assumed from {classes} classes" in weights.source["resize"]


def test_sizes_follow_mmcv():
    """mmcv.rescale_size: the smaller of long / longer side and short / shorter side, sides rounded to the nearest."""
    cityscapes = Preprocess.from_dict(convert(shapes(SEG)).preprocess)
    assert cityscapes.output_size(1024, 2048) == (1024, 2048)
    assert cityscapes.output_size(333, 501) == (1024, 1541)  # 501 * 1024 / 333 = 1540.6
    assert cityscapes.output_size(100, 300) == (683, 2048)  # 100 * 2048 / 300 = 682.7


def test_what_is_missing_surplus_or_misshapen_in_mmseg(seg):
    name = "hrnet_w18_small_v2_seg"
    text = told(without(seg, "decode_head.convs.0.bn.running_mean"))
    assert text == f"no {name} checkpoint: missing last_layer.1.running_mean (270,)"
    assert "the layout is not one of" in told(without(seg, "decode_head.conv_seg.weight"))
    bias = {"decode_head.convs.0.conv.bias": np.ones(270, np.float32)}
    assert "'decode_head.convs.0.conv.bias' belongs to no tensor" in told({**seg, **bias})
    second = {"decode_head.convs.1.conv.weight": np.ones((270, 270, 1, 1), np.float32)}
    assert "'decode_head.convs.1.conv.weight' belongs to no tensor" in told({**seg, **second})
    wide = {"decode_head.convs.0.conv.weight": np.ones((270, 270, 3, 3), np.float32)}
    assert "last_layer.0.weight is (270, 270, 3, 3), (270, 270, 1, 1) expected" in told({**seg, **wide})
    assert "holds hrnet_w18_small_seg, hrnet_w18_small_v2_seg, hrnet_w18_seg, hrnet_w48_seg, not" in told(seg, model=POSE)
