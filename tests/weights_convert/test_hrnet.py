"""HRNet as its repositories publish it: bare, wrapped in what was trained, and timm's variants without a head bias."""

import numpy as np
import pytest

import refvit
from refvit.errors import WeightsError
from weights_convert import convert

BOUND = 1e-10  # of the largest value; what is seen is below 1e-14
CLASSIFIER, SEG, OCR, POSE = "hrnet_w18_small.timm", "hrnet_w18_small_seg", "hrnet_w48_ocr", "hrnet_w32_pose"
LOSS = {"loss.criterion.weight": np.ones(19, np.float32)}


def told(state, **options):
    with pytest.raises(WeightsError) as caught:
        convert(state, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def prefixed(state, prefix):
    return {prefix + key: a for key, a in state.items()}


def trained(state):
    """The network below `model.`, beside its loss, which knows how heavy each class is."""
    return prefixed(state, "model.") | LOSS


def without_bias(state):
    """The bias of every convolution before a norm in the head becomes a part of the mean that the norm subtracts."""
    state = {key: a.astype(np.float64) if a.dtype.kind == "f" else a for key, a in state.items()}
    for name in ("final_layer", *(f"downsamp_modules.{i}" for i in range(3))):
        state[f"{name}.1.running_mean"] = state[f"{name}.1.running_mean"] - state.pop(f"{name}.0.bias")
    return state


@pytest.mark.parametrize(("fixture", "layout"), [(SEG, "hrnet.segmentation"), (OCR, "hrnet.ocr")])
def test_a_trained_module_is_the_network_in_it(golden, fixture, layout):
    state = golden(fixture).state()
    bare, wrapped = convert(state), convert(trained(state))
    assert (bare.source["layout"], wrapped.source["layout"]) == (layout, f"{layout}.trained")
    assert wrapped.model == bare.model == fixture
    assert wrapped.sha256 == bare.sha256
    assert convert(prefixed(state, "model.")).sha256 == bare.sha256  # whose loss has no weights
    for field in ("config", "preprocess", "postprocess", "labels"):
        assert getattr(wrapped, field) == getattr(bare, field)
    assert wrapped.source["align_corners"] == bare.source["align_corners"]


def test_logits_of_a_trained_module_equal_the_original(golden):
    case = golden(SEG)
    model = refvit.load(None, trained(case.state()), dtype="float64", backend="numpy")
    assert case.check({"output": model(case.input())}) < BOUND


def test_what_does_not_belong_into_a_trained_module(golden):
    state = golden(SEG).state()
    assert "'loss.criterion.weight' belongs to no tensor" in told({**state, **LOSS})
    assert "'optimizer.x' belongs to no tensor" in told({**trained(state), "optimizer.x": np.ones(1)})
    assert "'conv1.bias' belongs to no tensor" in told({**trained(state), "conv1.bias": np.ones(64)})
    assert "have the names of 2 layouts" in told({**state, **trained(state)})
    lacking = trained(state)
    del lacking["model.last_layer.0.bias"]  # of an official file it is not optional
    assert told(lacking) == f"no {SEG} checkpoint: missing last_layer.0.bias (240,)"


def test_a_pose_snapshot_of_parallel_training(golden):
    state = golden(POSE).state()
    weights = convert(prefixed(state, "module."))
    assert (weights.model, weights.source["layout"]) == (POSE, "hrnet.pose")
    assert weights.sha256 == convert(state).sha256
    mixed = {("module." if i else "") + key: a for i, (key, a) in enumerate(state.items())}
    assert "the layout is not one of" in told(mixed)


def test_a_classifier_without_head_bias(golden):
    """timm's _ssld variants. With the bias folded into the norm the logits are those of the original."""
    case = golden(CLASSIFIER)
    state = without_bias(case.state())
    weights = convert(state)
    assert (weights.model, weights.config["head_bias"]) == ("hrnet_w18_small", False)
    assert convert(case.state()).config["head_bias"] is True
    assert case.check({"output": refvit.load(None, state, dtype="float64", backend="numpy")(case.input())}) < BOUND


def test_some_of_the_biases_are_no_variant(golden):
    state = golden(CLASSIFIER).state()
    some = {key: a for key, a in state.items() if key != "final_layer.0.bias"}
    assert "unexpected downsamp_modules.0.0.bias (256,)" in told(some)
    some = {key: a for key, a in state.items() if key != "downsamp_modules.1.0.bias"}
    assert told(some) == "no hrnet_w18_small checkpoint: missing downsamp_modules.1.0.bias (512,)"
