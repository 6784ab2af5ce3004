"""MobileViT under the names of cvnets, those of version 0.1 and what later versions changed."""

import numpy as np
import pytest

import refvit
from refvit import ops
from refvit.errors import WeightsError
from refvit.models import architecture
from weights_convert import convert
from weights_convert.mobilevit_cvnets import LAYOUTS

BOUND = 1e-10  # of the largest value; what is seen is below 1e-15
OLD, NEW = "mobilevit_xxs_deeplabv3.cvnets", "mobilevit_xxs_deeplabv3.cvnets_v2"
LAST = "seg_head.classifier.classifier.block.conv.", "seg_head.classifier.block.conv."
RANGES = {f"neural_augmentor.{n}._{end}": np.float32(1) for n in ("brightness", "contrast", "noise") for end in ("low", "high")}
RANGES = {key: np.asarray(a) for key, a in RANGES.items()}


def one_layer(state):
    """Version 0.1's names of DeepLabv3 as later versions have them."""
    return {key.replace(*LAST): a for key, a in state.items()}


def without(state, *names):
    assert set(names) <= set(state)
    return {n: a for n, a in state.items() if n not in names}


def told(state, **options):
    with pytest.raises(WeightsError) as caught:
        convert(state, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def old(golden):
    return golden(OLD).state()


@pytest.fixture(scope="module")
def new(golden):
    """With the auxiliary head that was trained beside."""
    return golden(NEW).state()


@pytest.fixture(scope="module")
def classifier(golden):
    return golden("mobilevit_xxs.cvnets").state()


@pytest.fixture(scope="module")
def detector(golden):
    return golden("mobilevit_xxs_ssdlite.cvnets").state()


# DeepLabv3 of version 0.2 and later


def test_masks_equal_the_original(golden, new):
    """Output stride 8, a pyramid of 512, dilations 12, 24 and 36, and the enlargement, by cvnets' own code."""
    case = golden(NEW)
    model = refvit.load(None, new, dtype="float64", backend="numpy")
    assert model.name == "mobilevit_xxs_deeplabv3"
    y = model(case.input())
    assert y.shape == (1, 21, 12, 20)
    size = case.input().shape[2:]
    assert case.check({"output": ops.resize(y, size=size, mode="bilinear", align_corners=True)}) < BOUND
    assert case.check({"output": ops.resize(y, size=size, mode="bilinear", align_corners=False)}) > 1e-3


def test_old_tensors_under_new_names_are_the_same_network(golden, old):
    case = golden(OLD)
    model = refvit.load(None, one_layer(old), dtype="float64", backend="numpy")
    y = model(case.input())
    assert case.check({"output": ops.resize(y, size=(256, 256), mode="bilinear", align_corners=False)}) < BOUND
    assert convert(one_layer(old)).sha256 == convert(old).sha256


def test_what_changed_is_recorded(old, new):
    before, after = convert(old), convert(new)
    assert (before.source["layout"], after.source["layout"]) == ("mobilevit.cvnets.deeplabv3", "mobilevit.cvnets_v2.deeplabv3")
    assert (before.config["align_corners"], after.config["align_corners"]) == (False, True)
    fields = ("output_stride", "aspp_width", "rates")
    assert tuple(before.config[f] for f in fields) == (16, 256, (6, 12, 18))
    assert tuple(after.config[f] for f in fields) == (8, 512, (12, 24, 36))
    fields = ("channel_order", "resize", "crop", "interpolation")
    assert tuple(before.preprocess[f] for f in fields) == ("bgr", [512, 512], None, "opencv_bilinear")
    assert tuple(after.preprocess[f] for f in fields) == ("rgb", 512, None, "bilinear")
    assert (before.postprocess["to_image"], after.postprocess["to_image"]) == ("nearest", "bilinear")
    for weights in (before, after):
        assert (weights.preprocess["mean"], weights.preprocess["std"]) == ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
        assert "published" in weights.source["output_stride"]


def test_the_published_size_and_another_number_of_classes():
    arch = architecture("mobilevit_s_deeplabv3")
    for classes in (21, 150):
        config = type(arch.config)(**{**vars(arch.config), "aspp_width": 512, "num_classes": classes})
        state = {key: np.broadcast_to(np.float32(1), shape) for key, shape in arch.parameters(config)}
        weights = convert(next(layout for layout in LAYOUTS if layout.name.endswith("v2.deeplabv3")).export(state))
        assert (weights.model, weights.config["num_classes"]) == ("mobilevit_s_deeplabv3", classes)
        assert weights.config["output_stride"] == 8


def test_a_pyramid_that_was_never_published_needs_a_word(new):
    narrow = dict(new)
    for key, a in new.items():
        if ".aspp_layer." in key and a.ndim:
            inputs = slice(320) if "project" in key else slice(None)
            narrow[key] = a[:64] if a.ndim == 1 else a[:64, inputs]
        if key == LAST[1] + "weight":
            narrow[key] = a[:, :64]
    assert "say output_stride= and rates=" in told(narrow)
    weights = convert(narrow, config={"output_stride": 16, "rates": (2, 4, 6), "align_corners": False})
    assert (weights.config["aspp_width"], weights.config["output_stride"], weights.config["align_corners"]) == (64, 16, False)


def test_the_map_is_enlarged_with_corners_aligned(new):
    """From logits to the map of an image in one step, where the input has the image's size."""
    image = np.random.default_rng(3).integers(0, 256, (64, 96, 3), np.uint8)
    x = image.transpose(2, 0, 1)[None] / np.float32(255)
    mean = refvit.load(None, new, dtype="float64", backend="numpy")(x).mean((0, 2, 3))
    new = {**new, LAST[1] + "bias": new[LAST[1] + "bias"] - mean.astype(np.float32)}  # so that every class wins somewhere
    model = refvit.load(None, new, dtype="float64", backend="numpy", resize=64)
    logits = model(x)
    maps = [ops.resize(logits, size=(64, 96), mode="bilinear", align_corners=corners)[0].argmax(0) for corners in (True, False)]
    assert (maps[0] != maps[1]).any()
    np.testing.assert_array_equal(model.infer(image).map, maps[0])
    other = refvit.load(None, new, dtype="float64", backend="numpy", resize=64, align_corners=False)
    np.testing.assert_array_equal(other.infer(image).map, maps[1])


def test_training_only_parts_are_dropped_and_others_refused(old, new):
    params = convert(new).params
    assert not any("aux_head" in name for name in params)
    assert convert(without(new, *[key for key in new if "aux_head" in key])).sha256 == convert(new).sha256
    assert convert({**new, **{f"encoder.{key}": a for key, a in RANGES.items()}}).sha256 == convert(new).sha256
    assert "belongs to no tensor" in told({**new, "decoder.x": np.ones(1)})
    assert "have the names of 2 layouts" in told({**new, **old})
    text = told(without(new, LAST[1] + "bias"))
    assert text == "no mobilevit_xxs_deeplabv3 checkpoint: missing seg_head.classifier.classifier.block.conv.bias (21,)"


# classifiers


def test_a_classifier_is_taken_for_one_of_version_0_1(golden, classifier):
    """Later versions have the same names but want RGB; only somebody can say so."""
    weights = convert(classifier)
    assert weights.source["layout"] == "mobilevit.cvnets"
    assert weights.preprocess["channel_order"] == "bgr"
    assert "want rgb" in weights.source["channel_order"]
    said = convert(classifier, preprocess={"channel_order": "rgb"})
    assert said.preprocess["channel_order"] == "rgb"
    assert "channel_order" not in said.source


def test_a_classifier_with_range_augment_reads_rgb(golden, classifier):
    case = golden("mobilevit_xxs.cvnets")
    state = {**classifier, **RANGES}
    weights = convert(state)
    assert weights.source["layout"] == "mobilevit.cvnets_v2"
    assert weights.sha256 == convert(classifier).sha256
    fields = ("channel_order", "resize", "crop", "interpolation", "mean", "std")
    assert tuple(weights.preprocess[f] for f in fields) == ("rgb", 256, 256, "bilinear", [0.0] * 3, [1.0] * 3)
    assert case.check({"output": refvit.load(None, state, dtype="float64", backend="numpy")(case.input())}) < BOUND
    assert "belongs to no tensor" in told({**classifier, "neural_augmentor.noise._low": RANGES["neural_augmentor.noise._low"]})


def test_timm_reads_rgb_and_cvnets_bgr(golden, classifier):
    timm = convert(golden("mobilevit_xxs.timm").state())
    assert (timm.source["layout"], timm.preprocess["channel_order"]) == ("mobilevit.timm", "rgb")
    assert convert(classifier).preprocess["channel_order"] == "bgr"


# SSDLite


def test_ssdlite_is_taken_for_one_of_version_0_1(detector):
    weights = convert(detector)
    assert weights.source["layout"] == "mobilevit.cvnets.ssdlite"
    assert (weights.preprocess["channel_order"], weights.postprocess["rule"]) == ("bgr", "cvnets-0.1")
    assert "want rgb" in weights.source["channel_order"]
    later = convert(detector, preprocess={"channel_order": "rgb"}, postprocess={"rule": "cvnets-head"})
    assert (later.preprocess["channel_order"], later.postprocess["rule"]) == ("rgb", "cvnets-head")
    assert "channel_order" not in later.source


@pytest.mark.parametrize("classes", [2, 21])
def test_ssdlite_of_any_number_of_classes(detector, classes):
    state = {}
    for key, a in detector.items():
        last = key.endswith(("loc_cls_layer.pw_conv.block.conv.weight", "loc_cls_layer.pw_conv.block.conv.bias"))
        last = last or key.startswith("ssd_heads.5.loc_cls_layer.block.conv.")
        state[key] = a[: len(a) // 85 * (4 + classes)] if last else a
    weights = convert(state)
    assert (weights.model, weights.config["num_classes"]) == ("mobilevit_xxs_ssdlite", classes)
    assert refvit.load(None, state)(np.ones((1, 3, 64, 64), np.float32))["scores"].shape[2] == classes
