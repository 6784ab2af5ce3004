"""ViT under the names of Google's .npz files: three numberings, four prefixes, three places of the position embedding."""

import itertools

import numpy as np
import pytest

import refvit
from refvit.errors import WeightsError
from weights_convert import convert
from weights_convert.vit_jax import PREFIXES, axes

BOUND = 1e-10  # of the largest value; what is seen is below 1e-15
FLOAT32 = 1e-6  # the original rounds to float32 somewhere; the other GELU differs by 1e-4, the other eps by 1.2e-6
VIT = "vit_tiny_patch16_224"
TABLE = "Transformer/posembed_input/pos_embedding"
MHA = "MultiHeadDotProductAttention"


@pytest.fixture(scope="module")
def published(golden):
    """A seeded checkpoint with the published names, read-only."""
    state = golden(f"{VIT}.jax").state()
    for a in state.values():
        a.flags.writeable = False
    return state


def linen(state):
    """Each kind of module counted on its own."""
    words = (("LayerNorm_2", "LayerNorm_1"), (f"{MHA}_1", f"{MHA}_0"), ("MlpBlock_3", "MlpBlock_0"))
    for old, new in words:
        state = {key.replace(old, new): a for key, a in state.items()}
    return state


def stacked(state):
    """The blocks of all layers along a first axis."""
    state, out = linen(state), {}
    for key, a in state.items():
        if "encoderblock_0/" in key:
            layers = [state[key.replace("encoderblock_0/", f"encoderblock_{i}/")] for i in range(12)]
            out[key.replace("encoderblock_0/", "encoderblock/")] = np.stack(layers)
        elif "encoderblock_" not in key:
            out[key] = a
    return out


def moved(state, place):
    return {place if key == TABLE else key: a for key, a in state.items()}


def prefixed(state, prefix):
    return {prefix + key: a for key, a in state.items()}


def told(state, **options):
    with pytest.raises(WeightsError) as caught:
        convert(state, model=VIT, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(state, *names):
    assert set(names) <= set(state)
    return {n: a for n, a in state.items() if n not in names}


# what fits


@pytest.mark.parametrize(("fixture", "bound"), [("jax.float64", BOUND), ("jax", FLOAT32)])
def test_logits_equal_the_original(golden, fixture, bound):
    """The second case is the original as it is, whose blocks compute in float32 whatever their input is: 3e-7 seen."""
    case = golden(f"{VIT}.{fixture}")
    assert case.check({"output": refvit.load(None, case.state(), dtype="float64", backend="numpy")(case.input())}) < bound


def test_every_value_is_where_it_belongs(published):
    """By index: heads of 64 features, 768 hidden, patches of 16x16, 1000 classes."""
    params = convert(published).params
    rng = np.random.default_rng(0)
    block, ours = "Transformer/encoderblock_5", "blocks.5"
    for _ in range(200):
        d, o, h, e = rng.integers(192), rng.integers(192), rng.integers(3), rng.integers(64)
        m, c, i, y, x = rng.integers(768), rng.integers(1000), rng.integers(3), rng.integers(16), rng.integers(16)
        for j, name in enumerate(("query", "key", "value")):
            row = 192 * j + 64 * h + e
            assert params[f"{ours}.attn.qkv.weight"][row, d] == published[f"{block}/{MHA}_1/{name}/kernel"][d, h, e]
            assert params[f"{ours}.attn.qkv.bias"][row] == published[f"{block}/{MHA}_1/{name}/bias"][h, e]
        assert params[f"{ours}.attn.proj.weight"][o, 64 * h + e] == published[f"{block}/{MHA}_1/out/kernel"][h, e, o]
        assert params[f"{ours}.mlp.fc1.weight"][m, d] == published[f"{block}/MlpBlock_3/Dense_0/kernel"][d, m]
        assert params[f"{ours}.mlp.fc2.weight"][d, m] == published[f"{block}/MlpBlock_3/Dense_1/kernel"][m, d]
        assert params["patch_embed.proj.weight"][o, i, y, x] == published["embedding/kernel"][y, x, i, o]
        assert params["head.weight"][c, d] == published["head/kernel"][d, c]
    same = {
        "cls_token": "cls",
        "pos_embed": TABLE,
        "patch_embed.proj.bias": "embedding/bias",
        f"{ours}.norm1.weight": f"{block}/LayerNorm_0/scale",
        f"{ours}.norm1.bias": f"{block}/LayerNorm_0/bias",
        f"{ours}.attn.proj.bias": f"{block}/{MHA}_1/out/bias",
        f"{ours}.norm2.weight": f"{block}/LayerNorm_2/scale",
        f"{ours}.norm2.bias": f"{block}/LayerNorm_2/bias",
        f"{ours}.mlp.fc1.bias": f"{block}/MlpBlock_3/Dense_0/bias",
        f"{ours}.mlp.fc2.bias": f"{block}/MlpBlock_3/Dense_1/bias",
        "norm.weight": "Transformer/encoder_norm/scale",
        "norm.bias": "Transformer/encoder_norm/bias",
        "head.bias": "head/bias",
    }
    for name, key in same.items():
        np.testing.assert_array_equal(params[name], published[key], strict=True)
    assert sum(a.size for a in params.values()) == sum(a.size for a in published.values())


def test_config_and_evaluation(published):
    weights = convert(published)
    assert weights.model == VIT  # DeiT was never published for JAX, so there is nothing to choose from
    assert weights.source["layout"] == "vit.jax"
    config = weights.config
    assert (config["gelu"], config["layer_norm_eps"], config["position_resize"]) == ("tanh", 1e-6, "bilinear_corners")
    assert (weights.preprocess["resize"], weights.preprocess["crop"]) == ([224, 224], None)
    assert weights.preprocess["interpolation"] == "opencv_bilinear"
    assert weights.preprocess["mean"] == weights.preprocess["std"] == [0.5, 0.5, 0.5]
    assert weights.preprocess["channel_order"] == "rgb"


@pytest.mark.parametrize(
    ("names", "place", "layout"),
    [
        (lambda state: state, TABLE, "vit.jax"),
        (linen, TABLE, "vit.jax.linen"),
        (linen, "Transformer/pos_embedding", "vit.jax.linen"),
        (linen, "pos_embedding", "vit.jax.linen"),
        (stacked, "pos_embedding", "vit.jax.stacked"),
    ],
)
def test_all_names_give_the_same_weights(published, names, place, layout):
    expected = convert(published).sha256
    for prefix in PREFIXES:
        weights = convert(dict(reversed(prefixed(moved(names(published), place), prefix).items())))
        assert weights.sha256 == expected, prefix
        assert (weights.model, weights.source["layout"]) == (VIT, layout)


@pytest.mark.parametrize("names", [linen, stacked])
def test_positions_of_patches_alone_add_nothing_to_the_class_token(published, names):
    state = moved(names(published), "pos_embedding")
    state["pos_embedding"] = state["pos_embedding"][:, 1:]
    table = convert(state).params["pos_embed"]
    assert table.shape == (1, 197, 192) and table.dtype == np.float32
    assert not table[:, 0].any()
    np.testing.assert_array_equal(table[:, 1:], published[TABLE][:, 1:], strict=True)


def test_number_of_classes_and_dtype_follow_the_checkpoint(published):
    state = {key: a.astype(np.float16) for key, a in published.items()}
    state["head/kernel"], state["head/bias"] = state["head/kernel"][:, :5], state["head/bias"][:5]
    weights = convert(state)
    assert weights.config["num_classes"] == 5
    assert {a.dtype.name for a in weights.params.values()} == {"float16"}


# what does not fit


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_missing_part_of_qkv_is_named_as_in_the_source(published, prefix):
    key = f"{prefix}Transformer/encoderblock_11/{MHA}_1/key/kernel"
    state = prefixed(published, prefix)
    assert told(without(state, key)) == f"layout vit.jax: missing {key} (192, 3, 64)"
    key = f"{prefix}Transformer/encoderblock/{MHA}_0/query/bias"
    state = prefixed(stacked(published), prefix)
    assert told(without(state, key)) == f"layout vit.jax.stacked: missing {key} (12, 3, 64)"


def test_missing_surplus_and_misshapen_tensors_are_listed(published):
    state = without(published, "Transformer/encoder_norm/bias", "cls")
    state["Transformer/encoderblock_12/LayerNorm_0/scale"] = np.zeros(192, np.float32)
    state["Transformer/encoderblock_2/MlpBlock_3/Dense_0/kernel"] = np.zeros((768, 192), np.float32)
    text = told(state)
    assert "missing norm.bias (192,)" in text
    assert "missing cls_token (1, 1, 192)" in text
    assert "unexpected blocks.12.norm1.weight (192,)" in text
    assert "blocks.2.mlp.fc1.weight is (192, 768), (768, 192) expected" in text


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("embedding/kernel", (768, 192), "axes (h, w, i, o) expected"),
        ("head/kernel", (192,), "axes (i, o) expected"),
        (f"Transformer/encoderblock_0/{MHA}_1/out/kernel", (192, 192), "axes (heads, e, d) expected"),
        (f"Transformer/encoderblock_0/{MHA}_1/out/kernel", (6, 32, 192), "3 heads expected in axes (heads, e, d)"),
    ],
)
def test_another_number_of_axes_or_heads(published, key, shape, expected):
    text = told({**published, key: np.zeros(shape, np.float32)})
    assert text == f"layout vit.jax: {key} of shape {shape}: {expected}"


def test_another_number_of_heads_is_not_taken_for_the_published_one(published):
    """The same number of values, and every shape of ours would fit: only the source shows that the heads are others."""
    state = {
        key: a.reshape(192, 6, 32) if key.endswith(("query/kernel", "key/kernel", "value/kernel")) else a
        for key, a in published.items()
    }
    assert "of shape (192, 6, 32): 3 heads expected in axes (d, heads, e)" in told(state)


def test_stacked_layers_of_different_number(published):
    state = stacked(published)
    key = "Transformer/encoderblock/LayerNorm_0/scale"
    assert "missing blocks.11.norm1.weight (192,)" in told({**state, key: state[key][:11]})
    more = {k: np.concatenate([a, a[:1]]) if "encoderblock" in k else a for k, a in state.items()}
    assert "unexpected blocks.12.norm1.weight (192,)" in told(more)
    text = told({**state, key: np.zeros((), np.float32)})
    assert text == f"layout vit.jax.stacked: {key} of shape (): a first axis of layers expected"
    parts = f"Transformer/encoderblock/{MHA}_0/query/kernel"
    text = told({**state, parts: state[parts][:11]})
    assert f"one shape and dtype expected of {parts} (11, 192, 3, 64) float32" in text


@pytest.mark.parametrize("leaf", ["kernel", "bias"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_pre_logits_are_refused_with_the_reason(published, prefix, leaf):
    key = f"{prefix}pre_logits/{leaf}"
    text = told({**prefixed(published, prefix), key: np.zeros((192, 192), np.float32)})
    assert f"{key!r} belongs to a layer between encoder and head, which refvit's ViT has no place for" in text


def test_a_position_embedding_in_two_places(published):
    text = told({**linen(published), "pos_embedding": published[TABLE]})
    assert f"{TABLE!r} and 'pos_embedding' both become 'pos_embed'" in text


def test_names_are_not_mixed(published):
    assert "have the names of 2 layouts" in told({**published, **linen(published)})
    assert "have the names of 2 layouts" in told({**linen(published), **stacked(published)})
    for one, two in itertools.permutations(PREFIXES, 2):
        assert "belongs to no tensor" in told({**prefixed(published, one), **prefixed(published, two)}), (one, two)
    assert "the layout is not one of" in told(prefixed(published, "opt/"))


@pytest.mark.parametrize("key", ["conv_root/kernel", "MAPHead_0/probe", "params/txt/head/kernel", "t"])
def test_a_key_of_another_model(published, key):
    assert f"{key!r} belongs to no tensor of it" in told({**published, key: np.zeros(1, np.float32)})


def test_integers_are_refused(published):
    assert "floating-point values expected, got int32" in told({**published, "cls": np.zeros((1, 1, 192), np.int32)})


# axes


def test_axes_by_index():
    a = np.random.default_rng(0).standard_normal((2, 3, 5))
    b = axes("p q r -> r (q p)")(a)
    assert b.shape == (5, 6)
    assert all(b[r, q * 2 + p] == a[p, q, r] for p, q, r in np.ndindex(2, 3, 5))
    assert axes("p q r -> (p q r)")(a).tolist() == a.reshape(-1).tolist()


def test_heads_of_each_width():
    change = axes("d heads e -> (heads e) d")
    for d, heads in ((192, 3), (384, 6), (768, 12), (1024, 16), (1280, 16)):
        assert change(np.zeros((d, heads, d // heads), np.float16)).shape == (d, d)
        with pytest.raises(ValueError, match=f"{heads} heads expected"):
            change(np.zeros((d, heads * 2, d // heads // 2), np.float16))
