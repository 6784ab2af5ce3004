"""HRViT below the names of mmsegmentation: both heads, two data sets, and what is dropped."""

import numpy as np
import pytest

import refvit
from refvit.errors import WeightsError
from refvit.models import architecture
from weights_convert import convert

RNG = np.random.default_rng(5)
HEADS = [f"hrvit_b{size}_{head}" for size in (1, 2, 3) for head in ("segformer", "upernet")]


def published(name, classes=150):
    """A checkpoint of mmsegmentation: our names, those of the backbone below `backbone.`, and an auxiliary head."""
    arch = architecture(name)
    config = type(arch.config)(**{**vars(arch.config), "num_classes": classes})
    state = {}
    for key, shape in arch.parameters(config):
        scale = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
        a = (RNG.standard_normal(shape, np.float32) * scale).astype(np.float32)
        a = 1 + np.abs(a) if key.endswith("running_var") else a
        state[key if key.startswith("decode_head.") else f"backbone.{key}"] = a
        if key.endswith("running_var"):
            counter = key.replace("running_var", "num_batches_tracked")
            state[counter if key.startswith("decode_head.") else f"backbone.{counter}"] = np.zeros((), np.int64)
    width = arch.config.widths[2]
    auxiliary = {"convs.0.conv.weight": (256, width, 3, 3), "convs.0.bn.weight": (256,), "conv_seg.bias": (classes,)}
    return state | {f"auxiliary_head.{key}": np.ones(shape, np.float32) for key, shape in auxiliary.items()}


def told(state, **options):
    with pytest.raises(WeightsError) as caught:
        convert(state, **options)
    return str(caught.value)


@pytest.fixture(scope="module")
def upernet():
    return published("hrvit_b1_upernet")


@pytest.mark.parametrize("name", HEADS)
def test_each_head_is_found_and_every_value_kept(name):
    state = published(name)
    weights = convert(state)
    assert (weights.model, weights.source["layout"], weights.config["num_classes"]) == (name, "hrvit.mmseg", 150)
    for key, a in weights.params.items():
        np.testing.assert_array_equal(a, state[key if key.startswith("decode_head.") else f"backbone.{key}"], strict=True)
    rest = len(state) - len(weights.params)
    assert rest == sum(key.startswith("auxiliary_head.") or key.endswith(".num_batches_tracked") for key in state)


@pytest.mark.parametrize("name", ["hrvit_b1_segformer", "hrvit_b1_upernet"])
def test_evaluation_of_both_data_sets(name):
    ade, streets = convert(published(name)), convert(published(name, 19))
    assert (ade.preprocess["resize"], ade.preprocess["longest"]) == (512, 2048)
    assert (streets.preprocess["resize"], streets.preprocess["longest"]) == (1024, 2048)
    assert (ade.postprocess["window"], streets.postprocess["window"]) == (None, [1024, 1024])
    assert streets.postprocess["window_stride"] == [768, 768]
    assert ade.postprocess["average"] == streets.postprocess["average"] == "softmax"


def test_upernet_runs(upernet):
    y = refvit.load(None, upernet, backend="numpy")(np.ones((1, 3, 64, 32), np.float32))
    assert y.shape == (1, 150, 16, 8)
    assert np.isfinite(y).all()


def test_what_is_missing_or_surplus_in_upernet(upernet):
    key = "decode_head.psp_modules.2.1.bn.running_mean"
    state = {k: a for k, a in upernet.items() if k != key}
    assert told(state) == f"no hrvit_b1_upernet checkpoint: missing {key} (512,)"
    extra = {"decode_head.lateral_convs.3.conv.weight": np.ones((512, 256, 1, 1), np.float32)}
    assert "unexpected decode_head.lateral_convs.3.conv.weight (512, 256, 1, 1)" in told({**upernet, **extra})
    assert "'neck.x' belongs to no tensor" in told({**upernet, "neck.x": np.ones(1)})
