"""What every op of the vocabulary promises, whatever it computes. A new op needs a line in SAMPLES and one in WRONG."""

import itertools
import math

import numpy as np
import pytest

import refvit.ops
from refvit.backends.numpy import compile_graph
from refvit.errors import ConfigError, ShapeError
from refvit.graph import trace
from refvit.graph.ir import OPS, ShapeOnly

VOCABULARY = {name: op for name, op in OPS.items() if op.function.__module__.startswith("refvit.ops.")}  # passes have their own
MAP, NEXT = (2, 3, 4, 6), (2, 3, 5, 7)
HALF_PIXEL = {"mode": "bilinear", "align_corners": False}

# op -> calls: shapes of the tensors (None: left out), attributes
SAMPLES = {
    "adaptive_avg_pool": [([MAP], {"size": (2, 4)}), ([MAP], {"size": (1, 7)})],
    "broadcast": [([(1, 3, 1)], {"shape": (4, 3, 2)}), ([(2, 3)], {"shape": (2, 3)})],
    "mask_tail": [([(2, 3, 2, 4, 5)], {"valid": 2, "value": -100.0}), ([(2, 3, 2, 4, 5)], {"valid": 5, "value": -1.0})],
    "stripe_attention": [
        ([(2, 4, 5, 3)] * 3, {"stripe": 2, "num_heads": 2, "scale": 0.7}),
        ([(2, 4, 6, 3)] * 3, {"stripe": 3, "num_heads": 1, "scale": 0.5}),
    ],
    "add": [([MAP, MAP], {}), ([MAP, (3, 1, 1)], {}), ([(6,), MAP], {})],
    "attention": [([(2, 5, 4), (2, 7, 4), (2, 7, 3)], {"scale": 0.5}), ([(2, 3, 4, 4)] * 3, {"scale": 0.3})],
    "batch_norm": [([MAP, (3,), (3,), (3,), (3,)], {"eps": 1e-5}), ([(5, 3), (3,), (3,), (3,), (3,)], {"eps": 1e-3})],
    "concat": [([MAP, (2, 5, 4, 6), MAP], {"axis": 1}), ([(4, 3), (4, 2)], {"axis": -1}), ([(4,)], {"axis": 0})],
    "conv2d": [
        ([NEXT, (4, 3, 3, 3), (4,)], {"stride": 2, "padding": 1}),
        ([NEXT, (3, 1, 3, 2), None], {"groups": 3, "dilation": (2, 1), "padding": ((0, 1), (2, 1))}),
        ([NEXT, (6, 1, 2, 2), (6,)], {"groups": 3}),
        ([(1, 4, 5, 5), (6, 2, 3, 3)], {"groups": 2}),
    ],
    "fold_patches": [
        ([(8, 6, 3)], {"patch": (2, 2), "size": (4, 6)}),
        ([(8, 12, 3)], {"patch": (2, 2), "size": (5, 7)}),
    ],
    "gelu": [([MAP], {"approximate": "none"}), ([MAP], {"approximate": "tanh"})],
    "getitem": [([MAP], {"index": 1}), ([MAP], {"index": (slice(None), slice(0, 3, 2), None, Ellipsis, -1)})],
    "hardswish": [([MAP], {})],
    "layer_norm": [([(2, 5, 8), (8,), (8,)], {"eps": 1e-6})],
    "linear": [([(2, 5, 8), (4, 8), (4,)], {}), ([(3, 8), (4, 8), None], {}), ([(8,), (4, 8)], {})],
    "matmul": [([(2, 5, 8), (2, 8, 4)], {}), ([(5, 8), (3, 8, 2)], {})],
    "mean": [([MAP], {"axes": (2, 3)}), ([MAP], {"axes": (-1, 0), "keepdims": True}), ([MAP], {"axes": (0, 1, 2, 3)})],
    "multiply": [([MAP, MAP], {}), ([MAP, (1, 3, 1, 1)], {}), ([(6,), MAP], {})],
    "pad": [([(2, 3)], {"widths": ((1, 0), (2, 3))}), ([(2, 3)], {"widths": ((0, 1), (0, 0)), "value": -1.5})],
    "relu": [([MAP], {})],
    "reshape": [([MAP], {"shape": (6, 24)}), ([MAP], {"shape": (2, -1)})],
    "resize": [
        ([MAP], {"size": (7, 5), **HALF_PIXEL}),
        ([MAP], {"size": (4, 6), **HALF_PIXEL}),
        ([MAP], {"size": (3, 9), "mode": "nearest", "align_corners": False}),
        ([MAP], {"size": (7, 2), "mode": "bicubic", "align_corners": True}),
        ([MAP], {"size": (3, 9), **HALF_PIXEL, "antialias": True}),
    ],
    "scale": [([MAP], {"factor": 0.3}), ([MAP], {"factor": 3})],
    "sigmoid": [([MAP], {})],
    "silu": [([MAP], {})],
    "softmax": [([MAP], {"axis": -1}), ([MAP], {"axis": 1})],
    "transpose": [([MAP], {"axes": (0, 2, 3, 1)})],
    "unfold_patches": [([MAP], {"patch": (2, 3)}), ([NEXT], {"patch": (2, 2)})],
}

# op -> calls that must raise ShapeError, and what the message must show besides the op's name; none: any shape will do
WRONG = {
    "adaptive_avg_pool": [
        ([(2, 3)], {"size": (1, 1)}, ["(2, 3)"]),
        ([MAP], {"size": (0, 1)}, [str(MAP), "(0, 1)"]),
    ],
    "broadcast": [
        ([(2, 3)], {"shape": (4, 3)}, ["(2, 3)", "(4, 3)"]),
        ([(3,)], {"shape": (4, 3)}, ["(3,)", "(4, 3)"]),
    ],
    "mask_tail": [
        ([MAP], {"valid": 1, "value": -1.0}, [str(MAP)]),
        ([(2, 3, 2, 4, 5)], {"valid": 6, "value": -1.0}, ["(2, 3, 2, 4, 5)", "6"]),
        ([(2, 3, 2, 4, 5)], {"valid": 0, "value": -1.0}, ["(2, 3, 2, 4, 5)", "0"]),
    ],
    "stripe_attention": [
        ([MAP, MAP, NEXT], {"stripe": 1, "num_heads": 1, "scale": 1.0}, [str(MAP), str(NEXT)]),
        ([MAP, MAP, MAP], {"stripe": 1, "num_heads": 2, "scale": 1.0}, [str(MAP), "num_heads=2"]),
        ([MAP, MAP, MAP], {"stripe": 0, "num_heads": 1, "scale": 1.0}, [str(MAP), "0"]),
    ],
    "add": [([(2, 3), (4,)], {}, ["(2, 3)", "(4,)"])],
    "attention": [
        ([(2, 5, 4), (2, 7, 3), (2, 7, 4)], {"scale": 1.0}, ["(2, 5, 4)", "(2, 7, 3)", "(2, 7, 4)"]),
        ([(2, 5, 4), (2, 7, 4), (2, 6, 4)], {"scale": 1.0}, ["(2, 5, 4)", "(2, 7, 4)", "(2, 6, 4)"]),
        ([(2, 5, 4), (1, 7, 4), (1, 7, 4)], {"scale": 1.0}, ["(2, 5, 4)", "(1, 7, 4)"]),
        ([(4,), (4,), (4,)], {"scale": 1.0}, ["(4,)"]),
        ([(2, 4), (4,), (3,)], {"scale": 1.0}, ["(2, 4)", "(4,)", "(3,)"]),
    ],
    "batch_norm": [
        ([MAP, (3,), (3,), (4,), (3,)], {"eps": 1e-5}, [str(MAP), "running_mean", "(3,)", "(4,)"]),
        ([MAP, (3,), (3,), (3,), (1,)], {"eps": 1e-5}, [str(MAP), "running_var", "(3,)", "(1,)"]),
        ([(3,), (3,), (3,), (3,), (3,)], {"eps": 1e-5}, ["(3,)"]),
    ],
    "concat": [
        ([(2, 3), (2, 4)], {"axis": 0}, ["(2, 3)", "(2, 4)"]),
        ([(2, 3), (2, 3, 1)], {"axis": 0}, ["(2, 3)", "(2, 3, 1)"]),
        ([(2, 3), (2, 3)], {"axis": 2}, ["axis 2", "2 axes"]),
        ([(2, 3), (2, 3)], {"axis": -3}, ["axis -3", "2 axes"]),
    ],
    "conv2d": [
        ([NEXT, (4, 2, 3, 3)], {}, [str(NEXT), "(4, 2, 3, 3)", "groups=1"]),
        ([NEXT, (4, 1, 3, 3)], {"groups": 3}, [str(NEXT), "(4, 1, 3, 3)", "groups=3"]),
        ([NEXT, (4, 3, 3, 3), (3,)], {}, ["(4, 3, 3, 3)", "(4,)", "(3,)"]),
        ([NEXT, (4, 3, 6, 3)], {}, [str(NEXT), "(6, 3)"]),
        ([NEXT, (4, 3, 3, 3)], {"stride": 0}, ["stride", "0"]),
        ([NEXT, (4, 3, 3, 3)], {"padding": (1, -1)}, ["padding", "(1, -1)"]),
        ([NEXT, (4, 3, 3, 3)], {"dilation": (1, 0)}, ["dilation", "(1, 0)"]),
        ([(3, 5, 7), (4, 3, 3, 3)], {}, ["(3, 5, 7)", "(4, 3, 3, 3)"]),
    ],
    "fold_patches": [
        ([(8, 6, 3)], {"patch": (2, 2), "size": (6, 6)}, ["(8, 6, 3)", "(6, 6)", "(2, 2)"]),
        ([(6, 6, 3)], {"patch": (2, 2), "size": (4, 6)}, ["(6, 6, 3)", "(4, 6)"]),
        ([(8, 6)], {"patch": (2, 2), "size": (4, 6)}, ["(8, 6)"]),
        ([(8, 6, 3)], {"patch": (0, 2), "size": (4, 6)}, ["(8, 6, 3)", "(0, 2)"]),
    ],
    "gelu": [],
    "getitem": [
        ([(2, 3)], {"index": 2}, ["(2, 3)", "2"]),
        ([(2, 3)], {"index": (0, 0, 0)}, ["(2, 3)", "(0, 0, 0)"]),
        ([(2, 3)], {"index": ([0, 1],)}, ["[0, 1]"]),
    ],
    "hardswish": [],
    "layer_norm": [
        ([(2, 5, 8), (5,), (8,)], {"eps": 1e-6}, ["(2, 5, 8)", "(8,)", "weight", "(5,)"]),
        ([(2, 5, 8), (8,), (1,)], {"eps": 1e-6}, ["(2, 5, 8)", "(8,)", "bias", "(1,)"]),
    ],
    "linear": [
        ([(2, 5), (5, 4)], {}, ["(2, 5)", "(5, 4)"]),
        ([(2, 5), (5,)], {}, ["(2, 5)", "(5,)"]),
        ([(2, 5), (4, 5), (5,)], {}, ["(4, 5)", "(4,)", "(5,)"]),
    ],
    "matmul": [
        ([(2, 5, 8), (2, 4, 8)], {}, ["(2, 5, 8)", "(2, 4, 8)"]),
        ([(2, 5, 8), (3, 8, 4)], {}, ["(2, 5, 8)", "(3, 8, 4)"]),
        ([(5, 8), (8,)], {}, ["(5, 8)", "(8,)"]),
    ],
    "mean": [
        ([MAP], {"axes": (4,)}, ["(4,)", "4 axes"]),
        ([MAP], {"axes": (3, -1)}, ["(3, -1)", "4 axes"]),
        ([MAP], {"axes": ()}, ["()", "4 axes"]),
        ([(2, 0)], {"axes": (1,)}, ["(2, 0)", "(1,)"]),
    ],
    "multiply": [([(2, 3), (4,)], {}, ["(2, 3)", "(4,)"])],
    "pad": [
        ([(2, 3)], {"widths": ((1, 1),)}, ["(2, 3)", "((1, 1),)"]),
        ([(2, 3)], {"widths": ((1, 1), (0, -1))}, ["(2, 3)", "(0, -1)"]),
    ],
    "relu": [],
    "reshape": [
        ([(2, 3)], {"shape": (4, 2)}, ["(2, 3)", "(4, 2)"]),
        ([(2, 3)], {"shape": (4, -1)}, ["(2, 3)", "(4, -1)"]),
        ([(2, 3)], {"shape": (-1, -1)}, ["(2, 3)", "(-1, -1)"]),
        ([(2, 3)], {"shape": (-2, -3)}, ["(2, 3)", "(-2, -3)"]),
        ([(2, 3)], {"shape": (-1, -2)}, ["(2, 3)", "(-1, -2)"]),
    ],
    "resize": [
        ([(3, 4, 6)], {"size": (4, 6), **HALF_PIXEL}, ["(3, 4, 6)"]),
        ([MAP], {"size": (0, 6), **HALF_PIXEL}, ["(0, 6)"]),
        ([(2, 3, 0, 4)], {"size": (4, 6), **HALF_PIXEL}, ["(2, 3, 0, 4)"]),
    ],
    "scale": [],
    "sigmoid": [],
    "silu": [],
    "softmax": [([MAP], {"axis": 4}, ["axis 4", "4 axes"]), ([MAP], {"axis": -5}, ["axis -5", "4 axes"])],
    "transpose": [
        ([(2, 3, 4)], {"axes": (0, 1)}, ["(2, 3, 4)", "(0, 1)"]),
        ([(2, 3, 4)], {"axes": (0, 1, 1)}, ["(2, 3, 4)", "(0, 1, 1)"]),
    ],
    "unfold_patches": [
        ([(3, 4, 6)], {"patch": (2, 2)}, ["(3, 4, 6)", "(2, 2)"]),
        ([MAP], {"patch": (2, 0)}, [str(MAP), "(2, 0)"]),
    ],
}

CALLS = [(name, *call) for name, calls in SAMPLES.items() for call in calls]
every_call = pytest.mark.parametrize(("name", "shapes", "attrs"), CALLS, ids=[f"{c[0]}-{i}" for i, c in enumerate(CALLS)])


def draw(name, shapes, dtype, seed=0):
    """Normal values; a variance is positive."""
    rng = np.random.default_rng(seed)
    arrays = [None if s is None else rng.standard_normal(s).astype(dtype) for s in shapes]
    if name == "batch_norm":
        arrays[4] = np.abs(arrays[4]) + np.array(0.1, dtype)
    return arrays


def eager(name, arrays, attrs):
    return getattr(refvit.ops, name)(*arrays, **attrs)


def traced(name, tensors, attrs, **options):
    """A graph of the one op: the first tensor is the input, the others are parameters."""
    params = {f"p{i}": t for i, t in enumerate(tensors) if i and t is not None}

    def function(x, p):
        return eager(name, [x, *(None if t is None else p[f"p{i}"] for i, t in enumerate(tensors) if i)], attrs)

    return trace(function, tensors[0].shape, params, **options)


def test_every_op_is_covered():
    assert set(SAMPLES) == set(WRONG) == set(VOCABULARY)
    assert set(refvit.ops.__all__) <= set(VOCABULARY)
    assert all(SAMPLES.values())


@every_call
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype_and_shape(name, shapes, attrs, dtype):
    arrays = draw(name, shapes, dtype)
    y = eager(name, arrays, attrs)
    assert isinstance(y, np.ndarray) and y.dtype == dtype
    assert np.isfinite(y).all()
    rule = OPS[name].shape(*[None if s is None else ShapeOnly(s) for s in shapes], **attrs)
    assert type(rule) is tuple and y.shape == rule


@every_call
def test_inputs_are_only_read(name, shapes, attrs):
    arrays = draw(name, shapes, np.float32)
    copies = [None if a is None else a.copy() for a in arrays]
    for a in arrays:
        if a is not None:
            a.flags.writeable = False
    y = eager(name, arrays, attrs)
    for a, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(a, copy)
    np.testing.assert_array_equal(y, eager(name, copies, attrs))


def spread(a):
    """The same values with gaps between them, and every axis but the first backwards in memory."""
    if a is None:
        return None
    flip = (slice(None), *[slice(None, None, -1)] * (a.ndim - 1))
    room = np.full([2 * s for s in a.shape], np.nan, a.dtype)
    view = room[(slice(None, None, 2),) * a.ndim][flip]
    view[...] = a
    return view


@every_call
@pytest.mark.parametrize("layout", [spread, lambda a: None if a is None else np.asfortranarray(a)], ids=["gaps", "fortran"])
def test_memory_layout_does_not_matter(name, shapes, attrs, layout):
    arrays = draw(name, shapes, np.float64)
    want = eager(name, arrays, attrs)
    got = eager(name, [layout(a) for a in arrays], attrs)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-13 * np.abs(want).max()  # NumPy may add in another order, up to 72 terms here


@every_call
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("expand", [False, True])
def test_interpreted_graph_equals_the_eager_call(name, shapes, attrs, dtype, expand):
    if expand and not OPS[name].composite:
        graph = traced(name, draw(name, shapes, dtype), attrs, expand=True)
        assert [n.op for n in graph] == [name]
        return
    for seed in range(2):
        arrays = draw(name, shapes, dtype, seed)
        want = eager(name, arrays, attrs)
        graph = traced(name, arrays, attrs, expand=expand)
        ops = [n.op for n in graph]
        assert (name not in ops and name in graph.aliases) if expand else ops == [name]
        got = compile_graph(graph)(arrays[0])["output"]
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_array_equal(got, want)


@every_call
def test_wrong_arrays_are_config_errors(name, shapes, attrs):
    arrays = draw(name, shapes, np.float32)
    for i, a in enumerate(arrays):
        if a is None:
            continue
        for wrong in (a.astype(np.int64), a.tolist(), a.astype(np.complex64), a > 0):
            with pytest.raises(ConfigError, match=f"^{name}: expected"):
                eager(name, [*arrays[:i], wrong, *arrays[i + 1 :]], attrs)
        if sum(b is not None for b in arrays) > 1:
            with pytest.raises(ConfigError, match=f"^{name}: .*float32, float64"):
                eager(name, [*arrays[:i], a.astype(np.float64), *arrays[i + 1 :]], attrs)


WRONG_CALLS = [(name, *call) for name, calls in WRONG.items() for call in calls]


@pytest.mark.parametrize(
    ("name", "shapes", "attrs", "shown"), WRONG_CALLS, ids=[f"{c[0]}-{i}" for i, c in enumerate(WRONG_CALLS)]
)
def test_wrong_shapes_raise_one_message_everywhere(name, shapes, attrs, shown):
    arrays = draw(name, shapes, np.float32) if name != "batch_norm" else [np.ones(s, np.float32) for s in shapes]
    with pytest.raises(ShapeError) as error:
        eager(name, arrays, attrs)
    message = str(error.value)
    for text in (name, *shown):
        assert text in message
    for expand in (False, True):
        with pytest.raises(ShapeError) as error:
            traced(name, arrays, attrs, expand=expand)
        assert str(error.value) == message


def count_conv2d(x, weight, bias=None, *, stride, padding, dilation, groups):
    """One multiplication per output element, kernel tap and channel of the group; the border counts too."""
    n, c, h, w = x
    k, _, r, s = weight
    count = 0
    for _, _ in itertools.product(range(n), range(k)):
        for top in range(-padding, h + padding - dilation * (r - 1), stride):
            for left in range(-padding, w + padding - dilation * (s - 1), stride):
                assert top + dilation * (r - 1) < h + padding and left + dilation * (s - 1) < w + padding
                count += sum(1 for _ in itertools.product(range(c // groups), range(r), range(s)))
    return count


@pytest.mark.parametrize(
    ("x", "weight", "stride", "padding", "dilation", "groups"),
    [
        ((2, 3, 5, 7), (4, 3, 3, 3), 2, 1, 1, 1),
        ((1, 4, 6, 5), (6, 2, 3, 1), 1, 2, 2, 2),
        ((1, 3, 5, 5), (6, 1, 3, 3), 3, 1, 1, 3),
        ((3, 5, 1, 1), (2, 5, 1, 1), 1, 0, 1, 1),
    ],
)
def test_macs_of_conv2d(x, weight, stride, padding, dilation, groups):
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    want = count_conv2d(x, weight, **attrs)
    assert OPS["conv2d"].macs(ShapeOnly(x), ShapeOnly(weight), ShapeOnly(weight[:1]), **attrs) == want
    assert OPS["conv2d"].macs(ShapeOnly(x), ShapeOnly(weight), None, **attrs) == want


def test_macs_of_products():
    """Counted as pairs (output element, term of its sum)."""
    shape = [ShapeOnly(s) for s in ((2, 5, 7), (3, 7), (3,))]
    assert OPS["linear"].macs(*shape) == sum(1 for _ in np.ndindex(2, 5, 3, 7))
    assert OPS["linear"].macs(*shape[:2], None) == 2 * 5 * 3 * 7
    assert OPS["matmul"].macs(ShapeOnly((5, 7)), ShapeOnly((2, 7, 3))) == sum(1 for _ in np.ndindex(2, 5, 3, 7))
    assert OPS["matmul"].macs(ShapeOnly((2, 1, 5, 7)), ShapeOnly((4, 7, 3))) == sum(1 for _ in np.ndindex(2, 4, 5, 3, 7))
    q, k, v = (ShapeOnly(s) for s in ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)))
    scores, values = np.ndindex(2, 3, 5, 7, 4), np.ndindex(2, 3, 5, 6, 7)
    assert OPS["attention"].macs(q, k, v, scale=1.0) == sum(1 for _ in scores) + sum(1 for _ in values)


def test_macs_exist_for_products_only():
    assert {name for name, op in VOCABULARY.items() if op.macs} == {
        "attention",
        "conv2d",
        "linear",
        "matmul",
        "stripe_attention",
    }


def test_vocabulary_entries():
    assert OPS["conv2d"].tensors == ("x", "weight", "bias") and not OPS["conv2d"].variadic
    assert OPS["conv2d"].defaults == {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    assert OPS["concat"].tensors == ("*xs",) and OPS["concat"].variadic
    assert {name for name, op in VOCABULARY.items() if op.composite} == {
        "attention",
        "fold_patches",
        "stripe_attention",
        "unfold_patches",
    }
    assert math.prod(OPS["relu"].shape(ShapeOnly((2, 3)))) == 6
