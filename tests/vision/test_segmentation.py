"""From logits to a map: every test protocol against a plain version on whole arrays, and windows, padding and flips by hand."""

import dataclasses

import numpy as np
import pytest

from refvit import ops
from refvit.errors import ConfigError, ImageError
from refvit.vision.postprocess import SegmentationPostprocess as Post
from refvit.vision.preprocess import Preprocess
from refvit.vision.segmentation import Views

KEEP = Preprocess(
    resize=None, crop=None, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), channel_order="rgb"
)
CLASSES = 7


def picture(h, w, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def network(x, stride=4, seed=3):
    """Anything that depends on place and value: random classes of the pooled input, the edges included. (3, h, w) -> logits."""
    rng = np.random.default_rng(seed)
    h, w = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    small = ops.resize(x[None], size=(h, w), mode="bilinear", align_corners=False, antialias=True)
    return (ops.conv2d(small, rng.standard_normal((CLASSES, 3, 3, 3)).astype(np.float32), padding=1) * 2)[0]


def bilinear(y, size, align_corners=False):
    return ops.resize(y[None].astype(np.float64), size=size, mode="bilinear", align_corners=align_corners)[0]


def softmax(y):
    e = np.exp(y - y.max(0))
    return e / e.sum(0)


def agree(found, scores):
    """The map is the argmax of the scores but where float32 cannot tell the two best ones apart."""
    best = np.sort(scores, 0)
    clear = best[-1] - best[-2] > 1e-4 * np.abs(best[-1])
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(found[clear], scores.argmax(0)[clear])


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (37, 50), (1, 9), (130, 4)])
def test_a_whole_image(size, align_corners):
    views = Views(picture(*size), KEEP, Post(), align_corners=align_corners)
    (x,) = views.inputs
    np.testing.assert_array_equal(x, KEEP(picture(*size)))
    found = views.label_map([network(x)])
    assert found.shape == size and found.dtype == np.uint8
    agree(found, bilinear(network(x), size, align_corners))


@pytest.mark.parametrize("to_image", ["bilinear", "nearest"])
def test_a_resized_image_comes_back_to_its_size(to_image):
    squash = KEEP.replace(resize=(48, 64))
    views = Views(picture(101, 77), squash, Post(to_image=to_image), align_corners=False)
    (x,) = views.inputs
    assert x.shape == (3, 48, 64)
    scores = bilinear(network(x), (48, 64))
    if to_image == "nearest":
        expected = scores.argmax(0)[np.arange(101)[:, None] * 48 // 101, np.arange(77) * 64 // 77]
        assert (views.label_map([network(x)]) == expected).mean() > 0.999
    else:
        agree(views.label_map([network(x)]), bilinear(np.exp(scores), (101, 77)))


def test_padding_is_cut_off_again():
    views = Views(picture(70, 45), KEEP, Post(pad_multiple=8), align_corners=False, multiple=32)
    (x,) = views.inputs
    assert x.shape == (3, 96, 64)
    np.testing.assert_array_equal(x[:, :70, :45], KEEP(picture(70, 45)))
    assert not x[:, 70:].any() and not x[:, :, 45:].any()
    agree(views.label_map([network(x)]), bilinear(network(x), (96, 64))[:, :70, :45])


def test_the_padding_multiples_combine():
    views = Views(picture(10, 10), KEEP, Post(pad_multiple=12), align_corners=False, multiple=8)
    assert views.inputs[0].shape == (3, 24, 24)


@pytest.mark.parametrize("average", ["exp", "softmax"])
def test_flip(average):
    pixels = picture(40, 52)
    views = Views(pixels, KEEP, Post(flip=True, average=average), align_corners=False, pairs=((1, 2), (4, 6)))
    plain, mirrored = views.inputs
    np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])
    back = bilinear(network(mirrored), (40, 52))[[0, 2, 1, 3, 6, 5, 4]][:, :, ::-1]
    straight = bilinear(network(plain), (40, 52))
    expected = (straight + back) / 2 if average == "exp" else softmax(straight) + softmax(back)
    agree(views.label_map([network(plain), network(mirrored)]), expected)


def test_a_mirror_image_is_the_mirror_of_what_was_padded():
    views = Views(picture(32, 40), KEEP, Post(flip=True), align_corners=False, multiple=32)
    plain, mirrored = views.inputs
    np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])
    back = bilinear(network(mirrored), (32, 64))[:, :, ::-1]
    agree(views.label_map([network(plain), network(mirrored)]), (bilinear(network(plain), (32, 64)) + back)[:, :, :40])


@pytest.mark.parametrize("average", ["exp", "softmax"])
@pytest.mark.parametrize("flip", [False, True])
def test_scales(average, flip):
    """HRNet's repositories resize the normalised image and sum exp(logits); mmsegmentation averages probabilities."""
    pixels = picture(40, 61)
    views = Views(pixels, KEEP, Post(scales=(0.5, 1, 1.75), flip=flip, average=average), align_corners=True)
    x = KEEP(pixels)[None]
    total, position = 0, 0
    for size in ((20, 31), (40, 61), (70, 107)):  # the longer side is rounded, the shorter follows it
        expected = x if size == (40, 61) else ops.resize(x, size=size, mode="bilinear", align_corners=False)
        scaled = views.inputs[position]
        np.testing.assert_array_equal(scaled, expected[0])
        terms = [bilinear(network(scaled), size, True)]
        if flip:
            terms.append(bilinear(network(views.inputs[position + 1]), size, True)[:, :, ::-1])
        position += len(terms)
        if average == "exp":
            total = total + bilinear(np.exp(sum(terms) / len(terms)), (40, 61), True)
        else:
            total = total + sum(softmax(bilinear(t, (40, 61), True)) for t in terms)
    assert position == len(views.inputs)
    agree(views.label_map([network(v) for v in views.inputs]), total)


def test_scales_of_a_resizing_protocol_read_the_original_again():
    """mmsegmentation resizes the pixels to each scale, HRNet's repositories the normalised image."""
    fit = KEEP.replace(resize=32, longest=100, interpolation="opencv_bilinear")
    views = Views(picture(90, 120), fit, Post(scales=(1, 1.5), average="softmax"), align_corners=False)
    assert [x.shape for x in views.inputs] == [(3, 32, 43), (3, 48, 64)]
    np.testing.assert_array_equal(views.inputs[1], fit.replace(resize=48, longest=150)(picture(90, 120)))
    views = Views(picture(90, 120), fit, Post(scales=(1, 1.5)), align_corners=False)
    expected = ops.resize(KEEP(picture(90, 120))[None], size=(48, 65), mode="bilinear", align_corners=False)[0]
    np.testing.assert_array_equal(views.inputs[1], expected)


@pytest.mark.parametrize("average", ["exp", "softmax"])
@pytest.mark.parametrize("flip", [False, True])
def test_windows(average, flip):
    """Stride 24 and 20, the last window shifted back inside, scores divided by how many windows saw a pixel."""
    size, window, stride = (70, 83), (32, 40), (24, 20)
    post = Post(window=window, window_stride=stride, flip=flip, average=average)
    views = Views(picture(*size), KEEP, post, align_corners=False)
    x = KEEP(picture(*size))
    corners = [(top, left) for top in (0, 24, 38) for left in (0, 20, 40, 43)]
    assert [v.corner for v in views.views[:: 1 + flip]] == corners
    totals, count = [np.zeros((CLASSES, *size)) for _ in range(2)], np.zeros(size)
    for k, (top, left) in enumerate(corners):
        area = slice(top, top + 32), slice(left, left + 40)
        np.testing.assert_array_equal(views.inputs[k * (1 + flip)], x[:, *area])
        terms = [bilinear(network(x[:, *area]), window)]
        if flip:
            terms.append(bilinear(network(x[:, *area][:, :, ::-1]), window)[:, :, ::-1])
        count[area] += 1
        if average == "exp":
            totals[0][:, *area] += np.exp(sum(terms) / len(terms))
        else:
            for total, term in zip(totals, terms, strict=False):
                total[:, *area] += term
    expected = totals[0] / count if average == "exp" else sum(softmax(t / count) for t in totals[: 1 + flip])
    agree(views.label_map([network(v) for v in views.inputs]), expected)


def test_one_window_larger_than_the_image_is_the_image():
    for fill in (False, True):
        views = Views(picture(20, 30), KEEP, Post(window=(64, 24), fill_window=fill), align_corners=False)
        assert [v.inner for v in views.views] == [(64, 24) if fill else (20, 24)] * 2
        assert [v.corner for v in views.views] == [(0, 0), (0, 6)]
        if fill:  # black as the network sees it
            black = -np.array(KEEP.mean) / np.array(KEEP.std)
            np.testing.assert_allclose(views.inputs[0][:, 20:], np.broadcast_to(black[:, None, None], (3, 44, 24)), rtol=1e-6)


def test_a_filled_window_is_wider_than_the_image():
    views = Views(picture(20, 30), KEEP, Post(window=(64, 48), fill_window=True), align_corners=False)
    (x,) = views.inputs
    agree(views.label_map([network(x)]), bilinear(network(x), (64, 48))[:, :20, :30])


def test_blocks_of_rows_do_not_show(monkeypatch):
    post = Post(scales=(0.75, 1.25), flip=True, window=(24, 24), window_stride=(16, 24))
    views = Views(picture(50, 41), KEEP, post, align_corners=False)
    logits = [network(x) for x in views.inputs]
    whole = views.label_map(logits)
    for values in (1, 5000):
        monkeypatch.setattr("refvit.vision.segmentation.VALUES", values)
        np.testing.assert_array_equal(views.label_map(logits), whole)


def test_exp_of_large_logits_does_not_overflow():
    """One size and one window: nothing is mixed, whatever the logits. Otherwise they may differ by several hundred."""
    views = Views(picture(16, 16), KEEP, Post(flip=True), align_corners=False)
    logits = [network(x) * 1e6 for x in views.inputs]
    agree(views.label_map(logits), bilinear(logits[0], (16, 16)) + bilinear(logits[1], (16, 16))[:, :, ::-1])
    views = Views(picture(16, 16), KEEP, Post(scales=(1, 2)), align_corners=False)
    logits = [network(x) * 30 + 1000 for x in views.inputs]
    scores = [bilinear(y - 1000, (16 * k, 16 * k)) for k, y in enumerate(logits, 1)]
    assert max(s.max() for s in scores) > 100
    agree(views.label_map(logits), np.exp(scores[0]) + bilinear(np.exp(scores[1]), (16, 16)))


def test_many_classes_need_sixteen_bits():
    views = Views(picture(8, 8), KEEP, Post(), align_corners=False)
    logits = np.random.default_rng(0).standard_normal((300, 8, 8)).astype(np.float32)
    logits[299, 3, 5] = 99
    found = views.label_map([logits])
    assert found.dtype == np.uint16 and found[3, 5] == 299
    np.testing.assert_array_equal(found, logits.argmax(0))


def test_scales_that_are_looked_at_as_a_whole():
    post = Post(scales=(0.5, 1, 2), window=(16, 16), whole_up_to=1)
    views = Views(picture(20, 24), KEEP, post, align_corners=False).views
    assert [(v.scale, v.inner) for v in views[:2]] == [(0, (10, 12)), (1, (20, 24))]
    assert all(v.scale == 2 and v.inner == (16, 16) for v in views[2:]) and len(views) == 2 + 9


def test_the_smallest_images_have_every_scale():
    views = Views(picture(1, 1), KEEP, Post(scales=(0.001, 1, 2)), align_corners=False)
    assert [x.shape for x in views.inputs] == [(3, 1, 1), (3, 1, 1), (3, 2, 2)]
    assert views.label_map([network(x) for x in views.inputs]).shape == (1, 1)


def test_numbers_of_numpy_are_numbers():
    post = Post(scales=np.array([1, 1.5], np.float32), window=np.int64(64), pad_multiple=np.int32(8), whole_up_to=np.float32(1))
    assert post == Post(scales=(1, 1.5), window=64, pad_multiple=8, whole_up_to=1.0)
    assert all(type(v) is int for v in (*post.window, post.pad_multiple))


def test_a_scale_that_is_too_large_is_said():
    with pytest.raises(ImageError, match=r"times 8 is over .* leave that scale out"):
        Views(np.zeros((2000, 2000, 3), np.uint8), KEEP, Post(scales=(8,)), align_corners=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scales", ()), ("scales", 1.0), ("scales", (1, 0)), ("scales", (float("nan"),)), ("scales", (9,)), ("scales", ("1",)),
        ("flip", 1), ("average", "mean"), ("window", 0), ("window", (5,)), ("window", "8x8"), ("window_stride", 8),
        ("pad_multiple", 0), ("pad_multiple", True), ("to_image", "bicubic"), ("fill_window", None),
    ],
)  # fmt: skip
def test_bad_fields_are_said(field, value):
    with pytest.raises(ConfigError, match=field):
        Post(**{field: value})


def test_a_stride_beyond_the_window_would_leave_gaps():
    with pytest.raises(ConfigError, match="window_stride: at most the window"):
        Post(window=(8, 8), window_stride=(8, 9))
    assert dataclasses.asdict(Post(window=8, window_stride=4))["window_stride"] == (4, 4)
