"""The imitated arithmetics against NumPy's float16, exact fractions, enumerated numbers and sums added by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest

from refvit.crosscheck.arithmetic import ARITHMETICS, FORMS, MOVES, allowed, apply, of_dtypes, quantised, rounded, ulp
from refvit.crosscheck.winograd import suits, winograd
from refvit.errors import ConfigError
from refvit.graph.ir import OPS, Node

FORMATS = {"float32": (23, -126, 128), "tf32": (10, -126, 128), "bfloat16": (7, -126, 128), "float16": (10, -14, 16)}


def node(op, *arguments, **attrs):
    attrs = {**OPS[op].defaults, **attrs}
    names = [None if a is None else f"a{i}" for i, a in enumerate(arguments)]
    return Node("y", op, tuple(names), attrs, OPS[op].shape(*arguments, **attrs), "")


def run(op, *arguments, arithmetic, form="usual", scales=None, **attrs):
    return apply(node(op, *arguments, **attrs), arguments, arithmetic, scales, form)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(np.float64)


def numbers(bits, least, above):
    """Random numbers of every size, ties and their neighbours, the borders of the format, zeros, and what is not finite."""
    rng = np.random.default_rng(bits)
    x = rng.standard_normal(3000) * 2.0 ** rng.integers(least - bits - 3, above + 1, 3000)
    exact = np.ldexp(rng.integers(2**bits, 2 ** (bits + 1), 500).astype(float), rng.integers(least - bits, above - bits, 500))
    ties = exact + np.ldexp(0.5, np.frexp(exact)[1] - 1 - bits)
    tiny = np.ldexp(np.arange(-9, 10) / 4.0, least - bits)
    top = np.ldexp(2 - 2.0**-bits, above - 1)
    limits = [top, top * (1 + 2.0 ** -(bits + 3)), np.ldexp(2 - 2.0 ** -(bits + 1), above - 1), 2.0**above, 2.0**least]
    x = np.concatenate([x, exact, ties, np.nextafter(ties, 0), np.nextafter(ties, np.inf), tiny, limits, [0.0, 1e300, 1e-300]])
    return np.concatenate([x, -x, [np.inf, -np.inf, np.nan]])


def by_fractions(value, bits, least, above):
    """The nearest number of the format, ties to even, computed with whole numbers."""
    if not math.isfinite(value) or value == 0:
        return value
    unit = Fraction(2) ** (max(math.frexp(value)[1] - 1, least) - bits)
    nearest = round(Fraction(value) / unit) * unit  # of Fraction: ties to even
    return math.copysign(math.inf, value) if abs(nearest) >= Fraction(2) ** above else math.copysign(float(nearest), value)


@pytest.mark.parametrize("arithmetic", FORMATS)
def test_rounding_is_exact(arithmetic):
    x = numbers(*FORMATS[arithmetic])
    want = np.array([by_fractions(float(v), *FORMATS[arithmetic]) for v in x])
    np.testing.assert_array_equal(rounded(x, arithmetic), want)


def test_float16_is_numpys():
    bits = np.arange(2**16, dtype=np.uint32).astype(np.uint16).view(np.float16)  # all of them
    values = bits[np.isfinite(bits)].astype(np.float64)
    np.testing.assert_array_equal(rounded(values, "float16"), values)
    x = normal(10000, seed=1) * np.exp2(np.random.default_rng(2).integers(-28, 18, 10000))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(rounded(x, "float16"), x.astype(np.float16).astype(np.float64))
    assert np.isinf(rounded(x, "float16")).any() and (np.abs(rounded(x, "float16")) == 2.0**-24).any()


def test_bfloat16_is_the_upper_half_of_float32():
    bits = (np.arange(2**16, dtype=np.uint32) << 16).view(np.float32)
    values = np.unique(bits[np.isfinite(bits)].astype(np.float64))
    np.testing.assert_array_equal(rounded(values, "bfloat16"), values)
    middle = (values[:-1] + values[1:]) / 2
    for x, want in ((np.nextafter(middle, -np.inf), values[:-1]), (np.nextafter(middle, np.inf), values[1:])):
        np.testing.assert_array_equal(rounded(x, "bfloat16"), want)
    even = (rounded(middle, "bfloat16").astype(np.float32).view(np.uint32) >> 16) % 2
    assert not even.any()


def test_rounding_keeps_shape_and_input():
    x = normal(3, 4, 5).transpose(2, 0, 1)
    before = x.copy()
    for arithmetic in ARITHMETICS:
        assert rounded(x, arithmetic).shape == (5, 3, 4)
        assert rounded(x[:0], arithmetic).shape == (0, 3, 4)
    np.testing.assert_array_equal(x, before)
    assert rounded(x, "float64") is x


def test_ulp():
    for arithmetic in FORMATS:
        step = ulp(arithmetic)
        assert rounded(np.array([1 + step, 1 + 0.49 * step]), arithmetic).tolist() == [1 + step, 1.0]
    assert ulp("float64") == np.finfo(np.float64).eps and ulp("float32") == np.finfo(np.float32).eps
    assert ulp("float16") == np.finfo(np.float16).eps == ulp("tf32")
    assert ulp("bfloat16") == 2.0**-7


@pytest.mark.parametrize("call", [ulp, lambda a: rounded(np.ones(1), a), lambda a: run("relu", np.ones(1), arithmetic=a)])
def test_an_unknown_arithmetic_is_named(call):
    with pytest.raises(ConfigError, match="got 'fp16'"):
        call("fp16")


def test_float64_is_the_definition_and_moves_lose_nothing():
    x, w, b = normal(2, 4, 6, 6), normal(5, 4, 3, 3, seed=1), normal(5, seed=2)
    y = run("conv2d", x, w, b, arithmetic="float64", padding=1)
    np.testing.assert_array_equal(y, OPS["conv2d"].function(x, w, b, padding=1))
    x = x + 1e-9  # no narrower arithmetic holds this
    attrs = {"reshape": {"shape": (2, 144)}, "transpose": {"axes": (1, 0, 3, 2)}, "getitem": {"index": (0,)}}
    attrs |= {"concat": {"axis": 1}, "broadcast": {"shape": (2, 4, 6, 6)}}
    for arithmetic in ARITHMETICS:
        for op in MOVES:
            y = run(op, x, arithmetic=arithmetic, **attrs[op])
            np.testing.assert_array_equal(y, OPS[op].function(x, **attrs[op]))


def test_tf32_rounds_the_operands_of_products_and_nothing_else():
    def narrow(a):
        return rounded(a, "tf32").astype(np.float32)

    x, w, b = normal(2, 8, 9, 7), normal(6, 8, 3, 3, seed=1), normal(6, seed=2)
    y = run("conv2d", x, w, b, arithmetic="tf32", padding=1)
    np.testing.assert_array_equal(y, OPS["conv2d"].function(narrow(x), narrow(w), b.astype(np.float32), padding=1))
    assert (rounded(y, "tf32") != y).any() and (rounded(b, "tf32") != b).any()
    x, w, b = normal(2, 5, 16), normal(7, 16, seed=1), normal(7, seed=2)
    np.testing.assert_array_equal(
        run("linear", x, w, b, arithmetic="tf32"), OPS["linear"].function(narrow(x), narrow(w), b.astype(np.float32))
    )
    q, k = normal(2, 5, 16), normal(2, 16, 5, seed=3)
    np.testing.assert_array_equal(run("matmul", q, k, arithmetic="tf32"), narrow(q) @ narrow(k))
    for op, attrs in (("softmax", {"axis": -1}), ("gelu", {"approximate": "none"}), ("scale", {"factor": 0.1}), ("silu", {})):
        y = run(op, x, arithmetic="tf32", **attrs)
        np.testing.assert_array_equal(y, run(op, x, arithmetic="float32", **attrs))


@pytest.mark.parametrize("arithmetic", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("op", "shapes", "attrs"),
    [
        ("linear", [(2, 5, 64), (7, 64), (7,)], {}),
        ("layer_norm", [(2, 5, 64), (64,), (64,)], {"eps": 1e-6}),
        ("softmax", [(2, 5, 64)], {"axis": -1}),
        ("gelu", [(2, 5, 64)], {"approximate": "none"}),
        ("silu", [(2, 5, 64)], {}),
        ("add", [(2, 5, 64), (64,)], {}),
        ("mean", [(2, 5, 64)], {"axes": (1,)}),
    ],
)
def test_half_precision_rounds_operands_and_results(arithmetic, op, shapes, attrs):
    """Within the op all is wider: the result is that of float64 on rounded operands, rounded once, but for a few near ties."""
    operands = [normal(*s, seed=i) for i, s in enumerate(shapes)]
    y = run(op, *operands, arithmetic=arithmetic, **attrs)
    want = OPS[op].function(*[rounded(a, arithmetic) for a in operands], **attrs)
    np.testing.assert_array_equal(rounded(y, arithmetic), y)
    assert np.mean(y == rounded(want, arithmetic)) > 0.98
    assert (np.abs(y - want) <= ulp(arithmetic) * np.abs(want) + 1e-7).all()


def test_float16_overflows_as_in_the_candidate():
    x = np.array([6e4, -7e4, 1.0, np.nan])
    assert run("scale", x, arithmetic="float16", factor=2.0).tolist()[:3] == [np.inf, -np.inf, 2.0]
    assert run("scale", x, arithmetic="bfloat16", factor=2.0).tolist()[:2] == [119808.0, -140288.0]
    big = np.full((1, 4), np.inf)
    assert np.isnan(run("softmax", big, arithmetic="float64", axis=-1)).all()  # without a warning


def test_float32_sums_run_from_the_first_to_the_last():
    """In float32, 2^24 + 1 is 2^24: what is added one by one to 2^24 is lost, NumPy's pairwise sums keep most of it."""
    x = np.ones((1, 2, 1, 4097))
    x[..., 0] = 2.0**24
    for axes in ((-1,), (2, 3)):
        y = run("mean", x, arithmetic="float32", axes=axes)
        assert np.all(y == np.float32(2**24 / 4097)) and y.shape == ((1, 2, 1) if axes == (-1,) else (1, 2))
        assert not np.any(x.astype(np.float32).mean(axes) == np.float32(2**24 / 4097))
    kept = run("mean", x[0, 0], arithmetic="float32", axes=(-1,), keepdims=True)
    assert kept.shape == (1, 1) and kept == np.float32(2**24 / 4097)


@pytest.mark.parametrize(
    ("op", "shapes", "attrs"),
    [
        ("mean", [(3, 40, 6, 5)], {"axes": (2, 3)}),
        ("softmax", [(3, 8, 50)], {"axis": 1}),
        ("layer_norm", [(3, 8, 50), (50,), (50,)], {"eps": 1e-5}),
        ("gelu", [(3, 8, 50)], {"approximate": "none"}),
        ("gelu", [(3, 8, 50)], {"approximate": "tanh"}),
        ("silu", [(3, 8, 50)], {}),
        ("batch_norm", [(3, 8, 50), (8,), (8,), (8,)], {"eps": 1e-5}),
        ("linear", [(3, 8, 50), (9, 50)], {}),
    ],
)
def test_float32_is_near_the_definition_but_not_equal(op, shapes, attrs):
    operands = [normal(*s, seed=i) for i, s in enumerate(shapes)]
    if op == "batch_norm":
        operands.append(0.5 + normal(8, seed=9) ** 2)
    want = OPS[op].function(*operands, **attrs)
    y = run(op, *operands, arithmetic="float32", **attrs)
    error = np.abs(y - want).max() / np.abs(want).max()
    assert 1e-9 < error < 40 * ulp("float32")
    np.testing.assert_array_equal(y, y.astype(np.float32))


def test_gelu_loses_what_one_plus_erf_loses():
    x = np.linspace(-6, -4, 1000)[None]
    want = OPS["gelu"].function(x, approximate="none")
    y = run("gelu", x, arithmetic="float32", approximate="none")
    assert np.abs(y / want - 1).max() > 0.01 and np.abs(y - want).max() < 8 * ulp("float32")


def in_order(a, b):
    """Products added one after another in float32."""
    y = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for k in range(a.shape[1]):
        y += a[:, k, None] * b[k]
    return y


@pytest.mark.parametrize("terms", [576, 2048, 4608])
@pytest.mark.parametrize("sign", ["any", "positive"])
def test_the_loss_of_sums_in_order_is_foretold(terms, sign):
    a, b = normal(48, terms), normal(terms, 64, seed=1)
    if sign == "positive":
        a, b = np.abs(a), np.abs(b)
    want = a @ b
    loss = [
        np.sqrt(np.mean((y - want) ** 2))
        for y in (run("matmul", a, b, arithmetic="float32", form="in order"), in_order(a.astype("f4"), b.astype("f4")))
    ]
    assert 0.5 < loss[1] / loss[0] < 2
    again = run("linear", a, b.T.copy(), arithmetic="float32", form="in order")
    assert 0.5 < np.sqrt(np.mean((again - want) ** 2)) / loss[0] < 2
    x, w = a.reshape(3, 16, terms).transpose(0, 2, 1)[..., None], b.T[..., None, None]
    y = run("conv2d", x, w, arithmetic="float32", form="in order")[..., 0].transpose(0, 2, 1).reshape(48, 64)
    assert 0.5 < np.sqrt(np.mean((y - want) ** 2)) / loss[0] < 2


@pytest.mark.parametrize(("size", "padding"), [((9, 14), 1), ((8, 8), 0), ((5, 3), ((0, 2), (1, 0))), ((12, 7), (2, 1))])
def test_winograd_is_the_convolution(size, padding):
    x, w, b = normal(2, 5, *size), normal(7, 5, 3, 3, seed=1), normal(7, seed=2)
    want = OPS["conv2d"].function(x, w, b, padding=padding)
    y = winograd(x, w, b, padding=padding)
    assert y.shape == want.shape and np.abs(y - want).max() < 1e-13 * np.abs(want).max() * 10
    assert winograd(x.astype(np.float32), w.astype(np.float32), padding=padding).dtype == np.float32


def test_winograd_is_taken_where_libraries_take_it():
    x, w = normal(1, 4, 12, 12), normal(4, 4, 3, 3, seed=1)
    assert suits(node("conv2d", x, w, padding=1), w)
    for other, attrs in ((w, {"stride": 2}), (w, {"dilation": (1, 2)}), (w[:, :1], {"groups": 4}), (w[:, :, :1], {})):
        assert not suits(node("conv2d", x, other, **attrs), other)
        forms = [run("conv2d", x, other, arithmetic="float32", form=form, **attrs) for form in FORMS]
        np.testing.assert_array_equal(forms[0], forms[2])
    want = OPS["conv2d"].function(x, w, padding=1)
    lost = [np.abs(run("conv2d", x, w, arithmetic="float32", form=f, padding=1) - want).max() for f in ("usual", "fast")]
    assert 2 * lost[0] < lost[1] < 100 * lost[0]
    y = run("conv2d", x, w, arithmetic="bfloat16", form="fast", padding=1)
    np.testing.assert_array_equal(y, run("conv2d", x, w, arithmetic="bfloat16", padding=1))


def test_tensor_cores_may_cut_operands_off():
    """Towards zero, to 10 bits of mantissa: of products, and of nothing that is added to them."""
    x, w, b = normal(4, 16), normal(5, 16, seed=1), normal(5, seed=2)

    def cut(a):
        return (a.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)

    y = run("linear", x, w, b, arithmetic="tf32", form="fast")
    np.testing.assert_array_equal(y, OPS["linear"].function(cut(x), cut(w), b.astype(np.float32)))
    assert (np.abs(cut(x)) <= np.abs(x)).all() and (cut(x) != rounded(x, "tf32")).any()
    odd = np.array([[np.inf, np.nan, -np.inf]])
    assert np.isnan(run("linear", odd, np.ones((1, 3)), arithmetic="tf32", form="fast")).all()


def test_int8_values_weights_and_bounds():
    x = np.array([[0.26, -0.24, 9.0, -9.0, 0.05]])
    np.testing.assert_allclose(quantised(x, 0.1, 3, -128, 127), [[0.3, -0.2, 9.0, -9.0, 0.0]], atol=1e-15)
    np.testing.assert_allclose(quantised(x, 0.1, 100, 0, 127), [[0.3, -0.2, 2.7, -9.0, 0.0]], atol=1e-15)
    y = run("add", x, -x / 2, arithmetic="int8", scales={"a0": (0.1, 0), "y": (0.5, 0, -2, 2)})
    np.testing.assert_allclose(y, [[0.0, 0.0, 1.0, -1.0, 0.0]])  # a0 at 0.1, sums 0.17, -0.08, 4.5, -4.5, -0.025 at 0.5
    weight = np.array([[1.27, 0.004, -0.006, 0.0, 0.0], [0.1234, 0, 0, 0, 0]])
    y = run("linear", np.eye(5), weight, arithmetic="int8")
    np.testing.assert_allclose(y.T, [[1.27, 0, -0.01, 0, 0], [0.12, 0, 0, 0, 0]], atol=1e-7)
    y = run("linear", np.eye(5), weight, arithmetic="int8", scales={"a1": (0.5, 0, -128, 127)})
    np.testing.assert_allclose(y.T, [[1.5, 0, 0, 0, 0], [0, 0, 0, 0, 0]], atol=1e-7)
    assert (run("linear", np.eye(5), 0 * weight, arithmetic="int8") == 0).all()
    x = np.array([[1.0, 2.0]])
    np.testing.assert_allclose(
        run("reshape", x, arithmetic="int8", scales={"y": (0.75, 0, -128, 127)}, shape=(2,)), [0.75, 2.25]
    )


def test_values_have_their_integers_in_every_arithmetic():
    """But weights are those of int8 alone; and float64 is the truth, at no integers."""
    x, w = normal(3, 16), normal(4, 16, seed=1)
    scales = {"y": (0.25, 0)}
    for arithmetic in ("float32", "tf32", "bfloat16", "float16"):
        y = run("linear", x, w, arithmetic=arithmetic, scales=scales)
        np.testing.assert_array_equal(y, quantised(run("linear", x, w, arithmetic=arithmetic), 0.25, 0))
    assert (run("linear", x, w, arithmetic="float64", scales=scales) == OPS["linear"].function(x, w)).all()
    fine = {"y": (2.0**-30, 0)}
    lost = [np.abs(run("linear", x, w, arithmetic=a, scales=fine) - x @ w.T).max() for a in ("float32", "int8")]
    assert lost[0] < 1e-5 < 1e-3 < lost[1]


def test_the_arithmetic_that_is_allowed():
    scales = {"y": (0.25, 0)}
    assert allowed("tf32", "float32", ["float16"], None) == "tf32"
    assert allowed(None, "float32", ["float16"], None) == "float32" and allowed(None, None, ["float16"], None) == "float16"
    assert allowed("int8", None, [], scales) == allowed(None, "int8", [], scales) == "int8"
    assert allowed(None, "int8", ["float32"], None) == "float32"  # of integers that are not compared
    with pytest.raises(ConfigError, match=r"none of the values that are compared has a scale"):
        allowed("int8", None, ["float32"], None)


def test_the_arithmetic_of_dtypes():
    def of(*names):
        return of_dtypes(np.dtype(n) for n in names)

    assert of("float32") == of("float64", "float32") == "float32" and of("float64") == "float64"
    assert of("float32", "float16") == "float16" and of("float32", "int8") == of("uint8", "float32") == "int8"
    assert of_dtypes(["torch.bfloat16", "float32"]) == of_dtypes(["bfloat16", "float16"]) == "bfloat16"
    assert of_dtypes([]) == of("int64") == "float32"
