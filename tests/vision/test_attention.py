"""Attention maps: by hand, by loops over the definitions, and by what the weights do to the values of a layer."""

import dataclasses
import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import refvit
from refvit import ops
from refvit.errors import ConfigError, ImageError, ShapeError, UnsupportedError
from refvit.models import ARCHITECTURES
from refvit.vision import attention
from refvit.vision.attention import Attention, class_token, cross, map_pixel, patch_attention, rollout, seen, stripe_weights
from refvit.vision.attention_maps import (
    GAP,
    HEADER,
    HEAT,
    LABEL,
    LARGE,
    NARROW,
    SMALL,
    Panel,
    colours,
    draw_attention,
    heated,
)
from refvit.vision.drawing import MARGIN
from refvit.vision.pixels import Picture
from refvit.vision.preprocess import Preprocess

CAT = Path(__file__).parents[2] / "examples" / "cat.jpg"
EXACT = 1e-12  # of float64, for sums in another order


def rng(seed):
    return np.random.default_rng(seed)


def distributions(shape, seed):
    """Random weights (..., l, l) as a softmax gives them: rows sum to 1, some keys count much more than others."""
    weights = np.exp(2 * rng(seed).standard_normal(shape))
    return weights / weights.sum(-1, keepdims=True)


# rollout


def test_rollout_equals_loops():
    layers = distributions((4, 3, 6, 6), 0)
    expected = [[float(i == j) for j in range(6)] for i in range(6)]
    for layer in layers:
        mixed = [[0.5 * sum(layer[h, i, j] for h in range(3)) / 3 + 0.5 * (i == j) for j in range(6)] for i in range(6)]
        mixed = [[v / sum(row) for v in row] for row in mixed]
        expected = [[sum(mixed[i][m] * expected[m][j] for m in range(6)) for j in range(6)] for i in range(6)]
    got = rollout(list(layers))
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, atol=EXACT)
    np.testing.assert_allclose(got.sum(1), 1, atol=EXACT)
    assert np.abs(rollout(list(layers[::-1])) - got).max() > 1e-3  # the order of the layers matters


def test_rollout_of_the_identity_is_the_identity():
    np.testing.assert_array_equal(rollout([np.tile(np.eye(5), (2, 1, 1))] * 3), np.eye(5))


def test_rollout_of_layers_that_all_look_at_one_token():
    """A = (E + 1) / 2 with E E = E, so that A^4 = E 15/16 + 1/16."""
    one = np.zeros((2, 5, 5), np.float32)
    one[:, :, 3] = 1
    np.testing.assert_array_equal(rollout([one] * 4), 15 / 16 * one[0] + 1 / 16 * np.eye(5))


def test_rollout_normalises_rows():
    """Weights that lost something in float16 count as if they had not."""
    layer = distributions((1, 4, 4), 1)
    short = layer * np.array([1, 0.9, 0.5, 0.99])[:, None]
    got = rollout([short])
    mixed = short[0] + np.eye(4)
    np.testing.assert_allclose(got, mixed / mixed.sum(1, keepdims=True), atol=EXACT)


@pytest.mark.parametrize(
    "layers", [[], [np.ones((2, 3, 4))], [np.ones((2, 3, 3)), np.ones((2, 4, 4))], [np.ones((3, 3))], [np.ones((0, 3, 3))]]
)
def test_rollout_of_what_does_not_fit(layers):
    with pytest.raises(ShapeError, match=r"rollout: at least one layer \(heads, l, l\) with the same l expected"):
        rollout(layers)


# tokens, patches and stripes


@pytest.mark.parametrize("prefix", [1, 2])
def test_class_token(prefix):
    weights = np.zeros((2, 3, prefix + 12, prefix + 12))
    weights[..., prefix + 1 * 4 + 2] = 1  # every token looks at the patch in row 1, column 2
    weights[1, 1, 0] = np.arange(prefix + 12)  # but one class token
    maps = class_token(weights, grid=(3, 4))
    assert maps.shape == (2, 3, 3, 4)
    expected = np.zeros((3, 4))
    expected[1, 2] = 1
    np.testing.assert_array_equal(maps[0, 0], expected)
    np.testing.assert_array_equal(maps[1, 1], prefix + np.arange(12).reshape(3, 4))


def test_class_token_of_what_does_not_fit():
    for shape, grid in (((1, 12, 12), (3, 4)), ((1, 13, 12), (3, 4)), ((1, 13, 13), (4, 4)), ((13,), (3, 4))):
        with pytest.raises(ShapeError, match="class_token"):
            class_token(np.ones(shape), grid=grid)


@pytest.mark.parametrize("patch", [(2, 2), (2, 3), (1, 2)])
def test_patch_attention_equals_loops(patch):
    (ph, pw), rows, columns = patch, 3, 5
    weights = distributions((ph * pw, 2, rows * columns, rows * columns), 2)
    size = rows * ph, columns * pw
    for y in range(size[0]):
        for x in range(size[1]):
            got = patch_attention(weights, (y, x), size=size, patch=patch)
            assert got.shape == (2, rows, columns)
            for h in range(2):
                for r in range(rows):
                    for c in range(columns):
                        sequence = (y % ph) * pw + x % pw
                        query, key = (y // ph) * columns + x // pw, r * columns + c
                        assert got[h, r, c] == weights[sequence, h, query, key]
            np.testing.assert_allclose(got.sum((1, 2)), 1, atol=EXACT)


def test_patch_attention_of_what_does_not_fit():
    for size, patch in (((5, 4), (2, 2)), ((4, 4), (2, 2)), ((4, 6), (1, 2))):
        with pytest.raises(ShapeError, match="patch_attention"):
            patch_attention(np.ones((4, 1, 6, 6)), (0, 0), size=size, patch=patch)


@pytest.mark.parametrize(("size", "stripe"), [((8, 12), 7), ((6, 4), 2), ((3, 5), 1), ((5, 3), 7), ((7, 7), 7), ((4, 9), 3)])
def test_cross_equals_loops(size, stripe):
    """Two pixels attend to each other in rows if their rows are in one stripe, and likewise in columns."""
    h, w = size
    across = distributions((-(-h // stripe), 2, stripe * w, stripe * w), 3)
    down = distributions((-(-w // stripe), 2, stripe * h, stripe * h), 4)
    for y in range(h):
        for x in range(w):
            expected = np.zeros((4, h, w))
            for i in range(h):
                for j in range(w):
                    if i // stripe == y // stripe:
                        query, key = y % stripe * w + x, i % stripe * w + j
                        expected[:2, i, j] = across[y // stripe, :, query, key]
                    if j // stripe == x // stripe:
                        query, key = x % stripe * h + y, j % stripe * h + i
                        expected[2:, i, j] = down[x // stripe, :, query, key]
            np.testing.assert_array_equal(cross(across, down, (y, x), size=size, stripe=stripe), expected)


def test_stripe_weights_of_what_does_not_fit():
    for shape, size, stripe in (((2, 1, 84, 84), (7, 12), 7), ((2, 1, 84, 84), (8, 13), 7), ((84, 84), (8, 12), 7)):
        with pytest.raises(ShapeError, match="stripe_weights"):
            stripe_weights(np.ones(shape), (0, 0), size=size, stripe=stripe)


@pytest.mark.parametrize(("picture", "size"), [((64, 96), (8, 12)), ((33, 47), (6, 6)), ((5, 9), (5, 9)), ((3, 2), (6, 4))])
def test_map_pixel_covers_the_centre(picture, size):
    for y in range(picture[0]):
        for x in range(picture[1]):
            exact = [(p + Fraction(1, 2)) * s / whole for p, s, whole in zip((y, x), size, picture, strict=True)]
            row, column = map_pixel((x, y), picture, size)
            assert row <= exact[0] < row + 1 and column <= exact[1] < column + 1
            assert 0 <= row < size[0] and 0 <= column < size[1]


# what the network saw


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_seen_is_the_resized_and_cropped_image(order):
    pixels = rng(5).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    process = Preprocess(
        resize=40, crop=32, interpolation="bilinear", mean=(0.48, 0.45, 0.4), std=(0.23, 0.22, 0.25), channel_order=order
    )
    plain = process.replace(mean=(0, 0, 0), std=(1, 1, 1), channel_order="rgb")
    expected = np.rint(plain(pixels) * 255).astype(np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(seen(process(pixels), process), expected)
    zeros = seen(np.zeros((3, 2, 2), np.float32), process)
    np.testing.assert_array_equal(zeros[0, 1], [122, 115, 102] if order == "rgb" else [102, 115, 122])


# models: the maps, applied to the values, must give what the layer gives


@pytest.fixture(scope="module")
def cat():
    with Image.open(CAT) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def vit_states(golden):
    return {name: golden(case).state() for name, case in VITS.items()}


VITS = {
    "vit_tiny_patch16_224": "vit_tiny_patch16_224.timm",
    "deit_tiny_distilled_patch16_224": "deit_tiny_distilled_patch16_224",
}


@pytest.mark.parametrize(("name", "prefix"), [("vit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2)])
def test_vit_attends_with_its_maps(vit_states, cat, name, prefix):
    model = refvit.load(name, vit_states[name], dtype="float64", resize=(64, 96), crop=None)
    found = model.attention(cat)
    assert list(found.maps) == [f"blocks.{i}.attn" for i in range(12)]
    assert found.at is None
    assert found.picture.size == (96, 64)
    inner = model.intermediates(model.preprocess(cat)[None].astype(float), "blocks.*.attn.*")
    for layer, maps in found.maps.items():
        assert maps.shape == (3, 4, 6)
        weights, v = inner[f"{layer}.attention.softmax"][0], inner[f"{layer}.getitem_2"][0]  # (heads, l, l), (heads, l, d)
        others = np.einsum("ht,htd->hd", weights[:, 0, :prefix], v[:, :prefix])
        patches = np.einsum("hyx,hyxd->hd", maps, v[:, prefix:].reshape(3, 4, 6, -1))
        np.testing.assert_allclose(others + patches, inner[f"{layer}.attention"][0, :, 0], atol=EXACT)
        np.testing.assert_allclose(maps.sum((1, 2)) + weights[:, 0, :prefix].sum(1), 1, atol=EXACT)
    total = rollout([inner[f"{layer}.attention.softmax"][0] for layer in found.maps])
    assert found.rollout.shape == (4, 6)
    np.testing.assert_array_equal(found.rollout.reshape(-1), total[0, prefix:])


def check_mobilevit(model, image, at):
    """Every map against the layer's values, unfolded: what the pixel gets of each pixel in its place of another patch."""
    found = model.attention(image, at=at)
    assert found.rollout is None
    width, height = found.picture.size
    x = np.zeros((1, 3, height, width))
    process = model.preprocess(image)
    x[0, :, : process.shape[1], : process.shape[2]] = process
    inner = model.intermediates(x, "stages.*")
    for layer, maps in found.maps.items():
        heads, rows, columns = maps.shape
        np.testing.assert_allclose(maps.sum((1, 2)), 1, atol=EXACT)
        block = layer.partition(".transformer")[0]
        h, w = inner[f"{block}.conv_1x1"].shape[2:]
        assert (rows, columns) == ((h + 1) // 2, (w + 1) // 2)

        def folded(name, heads=heads, rows=rows, columns=columns):  # (4, heads, l, d) -> (heads, d, 2 rows, 2 columns)
            tokens = inner[name].transpose(0, 2, 1, 3).reshape(4, rows * columns, -1)
            return ops.fold_patches(tokens, patch=(2, 2), size=(2 * rows, 2 * columns)).reshape(
                heads, -1, 2 * rows, 2 * columns
            )

        v, y = folded(f"{layer}.getitem_2"), folded(f"{layer}.attention")
        row = int((found.at[1] + 0.5) * 2 * rows / height)
        column = int((found.at[0] + 0.5) * 2 * columns / width)
        got = np.einsum("hrc,hdrc->hd", maps, v[:, :, row % 2 :: 2, column % 2 :: 2])
        np.testing.assert_allclose(got, y[:, :, row, column], atol=EXACT)
    return found


@pytest.mark.parametrize("at", [None, (0, 0), (46, 32), (13, 20), (22, 7)])
def test_mobilevit_attends_with_its_maps(cat, at):
    """Maps of 5x6, 3x3 and 2x2 pixels, of which the first two are resized to even sides."""
    model = refvit.load(dtype="float64", resize=(33, 47), crop=None, enlarge=None)
    found = check_mobilevit(model, cat, at)
    assert found.at == (at or (23, 16))
    assert [m.shape for m in found.maps.values()] == [(4, 3, 3)] * 2 + [(4, 2, 2)] * 4 + [(4, 1, 1)] * 3
    assert next(iter(found.maps)) == "stages.2.1.transformer.0.attn"


@pytest.mark.parametrize("name", ["mobilevit_xxs_deeplabv3", "mobilevit_xxs_ssdlite"])
def test_mobilevit_of_other_tasks(golden, cat, name):
    state = golden(f"{name}.cvnets").state()
    size = (64, 96) if "deeplab" in name else (320, 320)
    model = refvit.load(name, state, dtype="float64", resize=size, crop=None)
    found = check_mobilevit(model, cat, (size[1] - 3, 5))
    assert len(found.maps) == 9
    assert found.picture.pixels.shape == (*size, 3)


@pytest.fixture(scope="module")
def hrvit_model(golden):
    state = golden("hrvit_b1").state()
    return refvit.load("hrvit_b1", state, dtype="float64", resize=(100, 180), crop=None)


def check_hrvit(model, found, x):
    """Every map against keys, which are the values: what the pixel gets of all pixels, channel by channel."""
    inner = model.intermediates(x, "*.attn.*")
    for layer, maps in found.maps.items():
        heads, h, w = maps.shape
        np.testing.assert_allclose(maps.sum((1, 2)), 1, atol=EXACT)
        qv = inner[f"{layer}.to_qkv"][0]  # (h w, 2 c)
        c = qv.shape[1] // 2
        v = qv[:, c:].reshape(h, w, heads, c // heads)
        y, x = (
            int((p + 0.5) * s / whole) for p, s, whole in zip(found.at[::-1], (h, w), found.picture.size[::-1], strict=True)
        )
        got = np.einsum("hyx,yxhd->hd", maps, v).reshape(-1)
        np.testing.assert_allclose(got, inner[f"{layer}.concat"][0, :, y, x], atol=EXACT, err_msg=layer)


@pytest.mark.parametrize("at", [(0, 0), (191, 127), (150, 60)])
def test_hrvit_attends_with_its_maps(hrvit_model, cat, at):
    """100x180 pixels are padded to 128x192; the third branch, with stripes of 7, has maps of 8x12."""
    found = hrvit_model.attention(cat, at=at)
    assert found.at == at and found.rollout is None
    assert found.picture.size == (192, 128)
    assert found.provenance["padded"] == [{"from": [100, 180], "to": [128, 192]}]
    x = np.zeros((1, 3, 128, 192))
    x[0, :, :100, :180] = hrvit_model.preprocess(cat)
    check_hrvit(hrvit_model, found, x)
    assert list(found.maps)[:2] == ["features.1.branches.0.0.attn", "features.3.branches.0.0.attn"]
    assert len(found.maps) == 35
    assert found.maps["features.11.branches.2.0.attn"].shape == (4, 8, 12)
    below = found.picture.pixels[100:].reshape(-1, 3)
    assert (below == np.rint(255 * np.array(hrvit_model.preprocess.mean))).all()


def test_hrvit_segmentation(golden, cat):
    state = golden("hrvit_b1_segformer").state()
    model = refvit.load("hrvit_b1_segformer", state, dtype="float64", resize=(64, 64), longest=None)
    found = model.attention(cat, at=(40, 9))
    check_hrvit(model, found, model.preprocess(cat)[None].astype(float))


def test_only_the_weights_are_asked_for(hrvit_model, cat, monkeypatch):
    asked = []

    def intermediates(self, x, keep="*"):
        asked.append((x.shape, keep))
        return original(self, x, keep)

    original = refvit.Model.intermediates
    monkeypatch.setattr(refvit.Model, "intermediates", intermediates)
    hrvit_model.attention(cat)
    assert asked == [((1, 3, 128, 192), attention.SOFTMAX)]


def test_only_maps_are_kept(vit_states, cat):
    """A view, as float64 weights could give it, would hold on to all of them."""
    name = "vit_tiny_patch16_224"
    vit = refvit.load(name, vit_states[name], dtype="float64", resize=(32, 32), crop=None)
    for dtype, model in (("float32", refvit.load()), ("float64", refvit.load(dtype="float64")), ("float64", vit)):
        found = model.attention(cat)
        assert model.dtype == dtype
        kept = list(found.maps.values()) + ([] if found.rollout is None else [found.rollout])
        assert all(m.base is None and m.dtype == np.float64 for m in kept)


def test_softmaxes_that_are_no_attention_are_not_asked_for(demo):
    values = demo.intermediates(rng(6).random((1, 3, 64, 64)), attention.SOFTMAX)
    assert len(values) == 9


# images and errors


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "pillow", "array"])
def test_any_one_image(demo, cat, kind):
    sources = {"path": CAT, "str": str(CAT), "bytes": CAT.read_bytes(), "pillow": Image.fromarray(cat), "array": cat}
    expected, found = demo.attention(cat), demo.attention(sources[kind])
    for layer, maps in expected.maps.items():
        np.testing.assert_array_equal(found.maps[layer], maps)
    np.testing.assert_array_equal(found.picture.pixels, seen(demo.preprocess(cat), demo.preprocess))
    assert found.picture.source == {"path": str(CAT), "str": str(CAT), "bytes": "<bytes>", "pillow": "<image>"}.get(
        kind, "<array>"
    )
    assert found.provenance["model"] == demo.name


@pytest.mark.parametrize("many", [CAT.parent, str(CAT.parent / "*.jpg"), [CAT], np.zeros((1, 8, 8, 3), np.uint8)], ids=str)
def test_many_images(demo, many):
    with pytest.raises(ConfigError, match="one image expected"):
        demo.attention(many)


def test_what_is_no_image(demo):
    for source, message in (("missing.jpg", "no such file"), (5, "is not an image"), ("http://a.b/c.jpg", "allow_url")):
        with pytest.raises(ImageError, match=message):
            demo.attention(source)


@pytest.mark.parametrize("at", [(64, 0), (0, 64), (-1, 3), (3,), (1, 2, 3), (1.5, 2), "ab", 7, (True, 1), {1: 2}, (np.nan, 1)])
def test_points_that_are_none(demo, at):
    with pytest.raises(ConfigError, match=r"at: whole numbers \(x, y\) of a pixel .* which is 64 x 64"):
        demo.attention(CAT, at=at)


def test_points_of_any_whole_kind(demo):
    for at in ([5, 9], np.array([5, 9]), (np.int64(5), 9)):
        found = demo.attention(CAT, at=at)
        assert found.at == (5, 9) and {type(v) for v in found.at} == {int}


def test_vit_has_no_point(vit_states):
    model = refvit.load("vit_tiny_patch16_224", vit_states["vit_tiny_patch16_224"])
    with pytest.raises(ConfigError, match="at: of ViT the class token is asked"):
        model.attention(CAT, at=(1, 1))


def test_hrnet_has_no_attention(golden):
    model = refvit.load("hrnet_w18_small", golden("hrnet_w18_small").state())
    with pytest.raises(UnsupportedError, match="hrnet_w18_small: no attention between places"):
        model.attention("missing.jpg")


def test_which_models_have_attention():
    for name, entry in ARCHITECTURES.items():
        names = [n for n, _ in entry.parameters(entry.config)]
        if name.startswith("hrnet"):
            with pytest.raises(UnsupportedError):
                attention.check_attends(name, names)
        else:
            attention.check_attends(name, names)


# pictures


def array(image):
    return np.asarray(image).astype(int)


def lightness(rgb):
    """L* of CIELAB (IEC 61966-2-1, CIE 15)."""
    v = np.asarray(rgb) / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 216 / 24389, 116 * np.cbrt(y) - 16, y * 24389 / 27)


def test_colours_are_evenly_light():
    np.testing.assert_allclose(lightness(HEAT), np.linspace(6, 95, len(HEAT)), atol=0.3)
    ramp = colours(np.linspace(0, 1, 201))
    assert np.diff(lightness(ramp)).min() > 0.2  # 0.45 on average
    np.testing.assert_array_equal(ramp[[0, 100, 200]], HEAT[[0, 5, 10]])
    np.testing.assert_array_equal(colours(np.array([0.25])), [(HEAT[2] + HEAT[3]) / 2])


def test_heat_is_where_the_weights_are():
    pixels = rng(7).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    one, other = np.zeros((4, 6)), np.zeros((4, 6))
    one[1, 2], other[3, 5] = 0.01, 5
    first, second = (heated(pixels, w).astype(int) for w in (one, other))
    assert first.shape == pixels.shape
    differs = (first != second).any(-1)
    assert differs[14:16, 24:26].all() and differs[34:, 54:].all()  # the middle of both patches
    assert not differs[:5].any() and not differs[25:30, :45].any()  # farther than a patch from both
    bright = lightness(first)
    assert bright[12:18, 22:28].mean() > bright[30:, 40:].mean() + 20
    np.testing.assert_array_equal(first, heated(pixels, one * 1000))  # colours go up to the largest weight


def test_the_image_shows_through():
    dark, light = (np.full((8, 8, 3), v, np.uint8) for v in (0, 255))
    weights = rng(8).random((4, 4))
    assert (heated(light, weights).astype(int) - heated(dark, weights) >= 100).all()
    np.testing.assert_array_equal(heated(dark, np.zeros((2, 2))), np.round(0.6 * np.tile(HEAT[0], (8, 8, 1))))


def test_a_thin_stripe_of_a_large_map_stays_visible():
    pixels = np.full((50, 50, 3), 128, np.uint8)
    weights = np.zeros((400, 400))
    weights[120] = 1  # between the rows that bilinear interpolation alone would look at
    got = lightness(heated(pixels, weights))
    assert got[15].min() > got[:10].max() + 2


GREY = np.full((30, 40, 3), 90, np.uint8)


def panels(count, seed=9):
    return [Panel(f"layer {i}", "a note", w) for i, w in enumerate(rng(seed).random((count, 3, 4)))]


def drawn(pixels=GREY, large=1, small=5, at=None):
    top = [Panel("image", "", None), *panels(large - 1)]
    return draw_attention(pixels, top, panels(small), [("model", "file"), ("title", "line")], at)


@pytest.mark.parametrize(("small", "columns", "rows"), [(1, 1, 1), (2, 1, 2), (4, 2, 2), (9, 3, 3), (16, 4, 4), (35, 6, 6)])
def test_size_of_the_picture(small, columns, rows):
    picture = drawn(np.full((40, 40, 3), 90, np.uint8), small=small)
    beside = HEADER + LARGE + LABEL + GAP
    grid = HEADER + rows * (SMALL + LABEL + GAP) - GAP
    assert max(beside, grid) + 2 * MARGIN <= picture.height <= max(beside + 50, grid) + 2 * MARGIN
    assert picture.width >= LARGE + columns * (SMALL + GAP) - GAP + 4 * MARGIN
    if columns > 1:
        assert picture.width == LARGE + columns * (SMALL + GAP) - GAP + 4 * MARGIN


def corners():
    """Upper left corners of the panels of `drawn()`, the last five in two columns, and their factors."""
    yield (MARGIN, MARGIN + HEADER), LARGE / 40
    height = round(SMALL * 30 / 40)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0)):
        yield (LARGE + 3 * MARGIN + column * (NARROW + GAP), MARGIN + HEADER + row * (height + LABEL + GAP)), SMALL / 40


@pytest.mark.parametrize("at", [(20, 15), (5, 22), (33, 6)])
def test_the_mark_is_at_the_point_in_every_panel(at):
    plain, marked = array(drawn()), array(drawn(at=at))
    changed = (plain != marked).any(-1)
    for (x, y), factor in corners():
        centre = x + (at[0] + 0.5) * factor, y + (at[1] + 0.5) * factor
        top, left = round(centre[1]) - 14, round(centre[0]) - 14
        ys, xs = np.nonzero(changed[top : top + 29, left : left + 29])
        assert len(ys) > 100
        assert abs(ys.mean() + top + 0.5 - centre[1]) <= 1 and abs(xs.mean() + left + 0.5 - centre[0]) <= 1
        ring = marked[top : top + 29, left : left + 29]
        assert (ring.min(-1) == 255).any() and (ring.max(-1) < 30).any()  # white with a dark rim
        assert (plain[round(centre[1]), round(centre[0])] == marked[round(centre[1]), round(centre[0])]).all()  # hollow
        changed[top : top + 29, left : left + 29] = False
    assert not changed.any()


def test_panels_differ_where_their_weights_do():
    picture = array(drawn())
    height, (first, *rest) = round(SMALL * 30 / 40), list(corners())
    (x, y), _ = first
    assert (picture[y : y + 300, x : x + 400] == 90).all()  # the image as it is
    tiles = [picture[y : y + height, x : x + SMALL] for (x, y), _ in rest]
    for tile, panel in zip(tiles, panels(5), strict=True):
        expected = heated(np.full((height, SMALL, 3), 90, np.uint8), panel.weights)
        np.testing.assert_array_equal(tile, expected)
    assert not np.array_equal(tiles[0], tiles[1])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3000), (3000, 1), (2, 5), (700, 900)])
@pytest.mark.parametrize("large", [1, 2])
def test_any_aspect_ratio(height, width, large):
    picture = drawn(np.full((height, width, 3), 77, np.uint8), large=large, at=(width - 1, height - 1))
    assert picture.width <= 1400 and picture.height <= 1400
    assert (array(picture) == 77).all(-1).any()


def toy(layers=3, heads=2, at=(3, 4), rolled=False):
    maps = {f"layer.{i}.attn": distributions((heads, 1, 20), 10 + i).reshape(heads, 4, 5) for i in range(layers)}
    picture = Picture(rng(11).integers(0, 256, (32, 40, 3), dtype=np.uint8), "folder/a.png", (), (40, 32))
    return Attention(maps, rng(12).random((4, 5)) if rolled else None, at, picture, {"model": "toy"})


def shown(monkeypatch, found, *args, **kwargs):
    """Arguments of `draw_attention` in a call of `.plot`."""
    calls = []
    monkeypatch.setattr("refvit.vision.attention_maps.draw_attention", lambda *given: calls.append(given))
    found.plot(*args, **kwargs)
    return calls[0]


def test_plot_of_a_pixel(monkeypatch):
    found = toy()
    pixels, large, small, heads, at = shown(monkeypatch, found)
    assert pixels is found.picture.pixels and at == (3, 4)
    assert [p.weights for p in large] == [None]
    assert "40 x 32" in large[0].note and "(3, 4)" in large[0].note
    assert [p.name for p in small] == list(found.maps)
    for panel, maps in zip(small, found.maps.values(), strict=True):
        np.testing.assert_array_equal(panel.weights, (maps[0] + maps[1]) / 2)
        assert panel.note == f"5 x 4, up to {((maps[0] + maps[1]) / 2).max():.2g}"
    assert heads == [("toy", "a.png"), ("mean over heads, 3 layers", "what the marked pixel attends to")]
    *_, small, heads, _ = shown(monkeypatch, found, k=2)
    assert [p.name for p in small] == list(found.maps)[1:]
    assert heads[1][0] == "mean over heads, the last 2 of 3 layers"


def test_plot_of_a_layer(monkeypatch):
    found = toy(heads=3)
    _, large, small, heads, _ = shown(monkeypatch, found, "layer.1.attn", 2)
    assert len(large) == 1
    assert [p.name for p in small] == ["head 0", "head 1"]
    for panel, weights in zip(small, found.maps["layer.1.attn"], strict=False):
        np.testing.assert_array_equal(panel.weights, weights)
    assert heads[1][0] == "layer.1.attn, the first 2 of 3 heads"


def test_plot_of_the_class_token(monkeypatch):
    found = toy(heads=3, at=None, rolled=True)
    _, large, small, heads, at = shown(monkeypatch, found)
    assert at is None and large[1].weights is found.rollout
    np.testing.assert_array_equal([p.weights for p in small], found.maps["layer.2.attn"])  # the last
    assert heads[1] == ("layer.2.attn, 3 heads", "what the class token attends to")
    *_, small, _, _ = shown(monkeypatch, found, "layer.0.attn")
    np.testing.assert_array_equal([p.weights for p in small], found.maps["layer.0.attn"])


def test_plot_of_what_is_not_there():
    for layer in ("layer.3.attn", "", 1):
        with pytest.raises(ConfigError, match=r"layer: one of layer\.0\.attn, layer\.1\.attn, layer\.2\.attn expected"):
            toy().plot(layer)
    for k in (0, 51, -1, 2.0, None):
        with pytest.raises(ConfigError, match="a whole number from 1 to 50 expected"):
            toy().plot(k=k)


def test_the_picture_follows_the_weights():
    found = toy()
    other = dataclasses.replace(found, maps={**found.maps, "layer.1.attn": found.maps["layer.1.attn"][:, ::-1]})
    before, after = array(found.plot()), array(other.plot())
    np.testing.assert_array_equal(before, array(found.plot()))
    assert (before != after).any()
    grid = LARGE + 3 * MARGIN
    np.testing.assert_array_equal(before[:, :grid], after[:, :grid])  # the image is the same
    np.testing.assert_array_equal(array(found.plot("layer.2.attn")), array(other.plot("layer.2.attn")))


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".jpg", "JPEG"), (".WEBP", "WEBP")])
def test_save(tmp_path, suffix, kind):
    path = toy().save(str(tmp_path / "deep" / f"a{suffix}"), "layer.0.attn")
    assert path == tmp_path / "deep" / f"a{suffix}"
    with Image.open(path) as saved:
        assert saved.format == kind
        assert saved.size == toy().plot("layer.0.attn").size


@pytest.mark.parametrize("name", ["a.json", "a.txt", "a"])
def test_save_as_something_else(tmp_path, name):
    with pytest.raises(
        ConfigError, match=r"a name ending in \.png, \.jpg or \.webp expected; the weights are arrays in \.maps"
    ):
        toy().save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_notebooks_show_the_picture():
    assert Image.open(io.BytesIO(toy()._repr_png_())).size == toy().plot().size
    assert repr(toy()) == "Attention(folder/a.png at (3, 4): 3 layers)"
    assert repr(toy(at=None)) == "Attention(folder/a.png: 3 layers)"


def test_the_example(demo):
    """The trained model, at the size it was trained for and larger: a pixel of one eye finds the eyes."""
    large = refvit.load(enlarge=256)
    found = large.attention(CAT, at=(70, 110))
    first = found.maps["stages.2.1.transformer.0.attn"].mean(0)
    row, column = np.unravel_index(first.argmax(), first.shape)
    assert (4 <= row <= 7) and (4 <= column <= 7)  # the larger eye is there
    assert found.plot().size == demo.attention(CAT).plot().size
