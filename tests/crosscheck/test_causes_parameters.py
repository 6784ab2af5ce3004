"""Parameters that a candidate shows, and its input, held against the reference's."""

import numpy as np
import pytest

from refvit.crosscheck.causes.inputs import NORMALISATIONS, between
from refvit.crosscheck.causes.parameters import compare, differences
from refvit.crosscheck.inputs import explain
from refvit.crosscheck.subject import photograph
from refvit.vision.preprocess import Preprocess

RNG = np.random.default_rng(5)
OURS = {
    "a.qkv.weight": RNG.standard_normal((36, 12)), "a.qkv.bias": RNG.standard_normal(36),
    "a.proj.weight": RNG.standard_normal((12, 12)),
    "b.proj.weight": RNG.standard_normal((12, 12)), "c.conv.weight": RNG.standard_normal((8, 4, 3, 3)),
    "c.bn.weight": RNG.standard_normal(8), "c.bn.bias": RNG.standard_normal(8), "c.bn.running_mean": RNG.standard_normal(8),
    "c.bn.running_var": RNG.random(8) + 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change", "cause", "text"),
    [
        ("a.proj.weight", lambda w: w.T, "weight-transposed", "is transposed"),
        ("a.proj.weight", lambda w: w.astype(np.float16), "weights-rounded", "rounded to float16"),
        ("a.proj.weight", lambda w: ((1 + 2e-7) * w * 1e-3).astype(np.float16).astype(float) * 1e3, "", "differs"),
        ("c.bn.bias", lambda b: ((1 + 2e-7) * b).astype(np.float16), "weights-rounded", "rounded to float16"),
        ("a.proj.weight", lambda w: w * 1.25, "weight-scaled", "multiplied by 1.25"),
        ("a.proj.weight", lambda w: OURS["b.proj.weight"], "weights-of-another-layer", "is what b.proj.weight should be"),
        ("a.proj.weight", lambda w: RNG.standard_normal(w.shape), "weights-not-loaded", "nothing in common"),
        ("a.proj.weight", lambda w: RNG.permutation(w.ravel()).reshape(w.shape), "", "the file's numbers in another order"),
        ("a.proj.weight", lambda w: w + 0.01 * RNG.standard_normal(w.shape), "", "differs from the file's by up to"),
        ("a.proj.weight", lambda w: w[:, RNG.permutation(12)], "head-order", "columns in another order"),
        ("a.qkv.weight", lambda w: np.concatenate([w[:12], w[24:], w[12:24]]), "qkv-order", "queries, keys and values"),
        ("a.qkv.weight", lambda w: w.reshape(3, 4, 3, 12).swapaxes(1, 2).reshape(36, 12), "head-order", "of keys and of"),
        ("a.qkv.weight", lambda w: w.reshape(3, 4, 3, 12).swapaxes(0, 1).reshape(36, 12), "qkv-order", "rows in another order"),
        ("a.qkv.weight", lambda w: w[:24], "", "shape"),
        ("c.conv.weight", lambda w: w[:, :, ::-1, ::-1], "kernel-flipped", "rotated by 180"),
        ("c.conv.weight", lambda w: w.transpose(2, 3, 1, 0).reshape(w.shape), "weight-transposed", "lies otherwise"),
        ("c.conv.weight", lambda w: w[:, ::-1], "channels-reversed", "columns in reversed order"),
        ("c.conv.weight", lambda w: np.round(w / np.abs(w).max() * 127) * np.abs(w).max() / 127, "quantised-weights",
         "127 steps"),
        ("c.bn.running_var", lambda v: np.ones(8), "batch-norm-statistics", "is 1 everywhere"),
        ("c.bn.running_mean", lambda m: OURS["c.bn.running_var"], "batch-norm-swapped", "is what c.bn.running_var should be"),
        ("c.bn.weight", lambda w: np.ones(8), "norm-affine", "is 1 everywhere"),
        ("a.qkv.bias", lambda b: np.zeros(36), "bias", "is 0 everywhere"),
        ("a.qkv.bias", lambda b: np.full(36, np.nan), "", "NaN"),
    ],
)  # fmt: skip
def test_in_which_way_a_parameter_differs(name, change, cause, text):
    found = compare(name, OURS, change(OURS[name]))
    assert found.cause == cause
    assert found.text.startswith(name)
    assert text in found.text


def test_what_is_the_same_is_not_named():
    theirs = {n: a.astype(np.float32) for n, a in OURS.items()} | {"b.proj.weight": OURS["b.proj.weight"].T}
    assert [d.name for d in differences(OURS, theirs)] == ["b.proj.weight"]
    del theirs["b.proj.weight"]
    assert differences(OURS, theirs) == []


def test_between_two_normalisations():
    pixels = RNG.random((3, 4, 5))
    names = list(NORMALISATIONS)
    for a in names:
        for b in names:
            (m, s), (mm, ss) = np.asarray(NORMALISATIONS[a]), np.asarray(NORMALISATIONS[b])
            factor, shift = between(NORMALISATIONS[a], NORMALISATIONS[b])
            x = (pixels - m[:, None, None]) / s[:, None, None]
            want = (pixels - mm[:, None, None]) / ss[:, None, None]
            assert np.allclose(x * factor[:, None, None] + shift[:, None, None], want, rtol=1e-10, atol=1e-10)


PIXELS = np.clip(photograph(150, 203, 3).astype(int) + RNG.integers(-12, 12, (150, 203, 3)), 0, 255).astype(np.uint8)
OWN = Preprocess(
    resize=124, crop=112, interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), channel_order="rgb"
)


@pytest.mark.parametrize(
    ("changes", "causes"),
    [
        ({}, ()),
        ({"interpolation": "bilinear"}, ("input-resize-filter",)),
        ({"interpolation": "opencv_bilinear"}, ("input-antialias",)),
        ({"resize": 128}, ("input-crop",)),
        ({"resize": 157}, ("input-crop",)),  # of no share that is in use
        ({"resize": (112, 112)}, ("input-squash",)),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, ("input-normalisation",)),
        ({"mean": (0.1, 0.2, 0.3)}, ("input-normalisation",)),
        ({"mean": (0, 0, 0), "std": (1, 1, 1)}, ("input-normalisation",)),  # 0..1, which is the range that mean and std expect
        ({"mean": (0, 0, 0), "std": (1 / 255, 1 / 255, 1 / 255)}, ("input-scale",)),
        ({"channel_order": "bgr", "mean": OWN.mean[::-1], "std": OWN.std[::-1]}, ("input-channel-order",)),
    ],
)
def test_how_an_input_was_made(changes, causes):
    found = explain(OWN.replace(**changes)(PIXELS), PIXELS, OWN)
    assert found.causes == causes
    assert found.left < 0.01


def test_an_input_of_a_turned_image_and_of_another_decoder():
    assert explain(OWN(np.ascontiguousarray(np.rot90(PIXELS))), PIXELS, OWN).causes == ("input-exif",)
    x = OWN(PIXELS)
    level = 1 / (255 * 0.225)
    assert explain(x + 1.2 * level * RNG.standard_normal(x.shape), PIXELS, OWN).causes == ("input-decoder",)
    slight = PIXELS.astype(int) + RNG.integers(-1, 2, PIXELS.shape)  # by a grey level, before it is resized
    assert explain(OWN(np.clip(slight, 0, 255).astype(np.uint8)), PIXELS, OWN).causes == ("input-decoder",)
    darker = (255 * (PIXELS / 255) ** 1.1).round().astype(np.uint8)
    assert explain(OWN(darker), PIXELS, OWN) is None
    assert explain(x + 12 * level * RNG.standard_normal(x.shape), PIXELS, OWN) is None
    assert explain(RNG.standard_normal(x.shape), PIXELS, OWN) is None
