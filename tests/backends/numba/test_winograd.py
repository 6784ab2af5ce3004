"""Winograd convolutions against the golden convolution in float64, and how the work is cut."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from helpers.kernels import Memory, run

from refvit.backends.numba import winograd as planning
from refvit.backends.numba.cpu import target
from refvit.backends.numba.epilogue import ACT
from refvit.backends.numba.layout import dense
from refvit.backends.numba.program import Buffer
from refvit.backends.numba.winograd import F2, F4, FORMS, S2, choose, cost, pack, register_tiles, split, winograd
from refvit.ops import conv2d

ULP = 2.0**-23
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)


def outputs(size, padding, stride):
    return (size + 2 * padding - 3) // stride + 1


def layer(seed, n, c, k, h, w, padding, form=F4):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, c, h, w)).astype(np.float32)
    weight = (rng.standard_normal((k, c, 3, 3)) / np.sqrt(9 * c)).astype(np.float32)
    bias = rng.standard_normal(k).astype(np.float32)
    sides = [outputs(s, padding, form.stride) for s in (h, w)]
    residual = rng.standard_normal((n, k, *sides)).astype(np.float32)
    return x, weight, bias, residual


def channels_last(shape, before=0, after=0):
    """A place with other values before and after the channels of each pixel."""
    n, c, h, w = shape
    wide = dense(Buffer(n * (c + before + after) * h * w), (n, c + before + after, h, w), (0, 2, 3, 1))
    return wide, wide.slice(1, before, c)


def compute(x, weight, bias, padding, form, residual=None, relu=False, act=0, extra=(0, 0), threads=2):
    """The result; everything lies between other channels, which must stay as they are."""
    memory = Memory()
    _, x_at = channels_last(x.shape, *extra)
    shape = x.shape[0], len(weight), *(outputs(s, padding, form.stride) for s in x.shape[2:])
    wide, out = channels_last(shape, *extra)
    memory.fill(wide, np.full(wide.shape, 777.0))
    memory.fill(x_at, x)
    residual_at = None
    if residual is not None:
        _, residual_at = channels_last(shape, *extra)
        memory.fill(residual_at, residual)
    options = {"threads": threads, "residual": residual_at, "relu": relu, "act": act}
    run(winograd(x_at, pack(weight, form), bias, out, padding, **options), memory)
    y = memory.view(out).copy()
    memory.fill(out, np.full(out.shape, 777.0))
    assert (memory.view(wide) == 777.0).all()
    return y


def check(y, golden, reference, top):
    """The rule for every kernel: 4 times NumPy's error and 4 ulp."""
    assert np.isfinite(y).all()
    error, usual = np.abs(y - golden).max() / top, np.abs(reference - golden).max() / top
    assert error <= 4 * usual + 4 * ULP, (error / usual, error / ULP)


SHAPES = [
    # n, c, k, h, w, padding
    (1, 1, 1, 1, 1, 1),
    (1, 1, 3, 3, 3, 0),
    (2, 3, 17, 5, 7, 1),
    (1, 17, 31, 9, 8, 2),
    (1, 31, 33, 8, 9, 0),
    (2, 18, 18, 13, 11, 1),
    (1, 36, 36, 28, 28, 1),
    (1, 72, 72, 14, 14, 1),
    (2, 144, 144, 7, 7, 1),
    (1, 64, 48, 30, 29, 1),
    (1, 16, 80, 56, 56, 1),
    (1, 128, 96, 14, 14, 1),
    (3, 160, 144, 20, 4, 1),
    (1, 256, 128, 16, 16, 1),
    (1, 384, 40, 12, 12, 1),
]


@each_form
@pytest.mark.parametrize("shape", SHAPES)
def test_golden(shape, form):
    x, weight, bias, residual = layer(3 + sum(shape), *shape, form)
    padding = shape[-1]
    golden = conv2d(*(a.astype(np.float64) for a in (x, weight, bias)), padding=padding, stride=form.stride)
    reference = conv2d(x, weight, bias, padding=padding, stride=form.stride)
    check(compute(x, weight, bias, padding, form), golden, reference, np.abs(golden).max())
    y = compute(x, weight, bias, padding, form, residual, relu=True, extra=(2, 3))
    golden, reference = golden + residual, reference + residual
    check(y, np.maximum(golden, 0), np.maximum(reference, 0), np.abs(golden).max())


@each_form
@pytest.mark.parametrize("name", ACT)
def test_activations(name, form):
    x, weight, _, residual = layer(5, 1, 20, 37, 7, 10, 1, form)
    value = conv2d(x.astype(np.float64), weight.astype(np.float64), padding=1, stride=form.stride) + residual
    sigmoid = 1 / (1 + np.exp(-value))
    erf = np.vectorize(__import__("math").erf)
    golden = {
        "none": value,
        "relu": np.maximum(value, 0),
        "silu": value * sigmoid,
        "gelu": value * (1 + erf(value / np.sqrt(2))) / 2,
        "gelu_tanh": value * (1 + np.tanh(np.sqrt(2 / np.pi) * (value + 0.044715 * value**3))) / 2,
        "hardswish": value * np.clip(value + 3, 0, 6) / 6,
        "sigmoid": sigmoid,
    }[name]
    y = compute(x, weight, None, 1, form, residual, act=ACT[name])
    assert np.abs(y - golden).max() <= 2e-6 * np.abs(golden).max()


@each_form
def test_nan_stays(form):
    x, weight, bias, _ = layer(6, 1, 5, 20, 12, 12, 1, form)
    clean = compute(x, weight, bias, 1, form, relu=True)
    x[0, 3, 5, 6] = np.nan
    y = compute(x, weight, bias, 1, form, relu=True)
    reached, tiles = np.zeros(y.shape[2:], bool), np.zeros(y.shape[2:], bool)
    for i, j in np.ndindex(*reached.shape):
        tops = [s * form.stride - 1 for s in (i, j)]
        reached[i, j] = all(top <= at < top + 3 for top, at in zip(tops, (5, 6), strict=True))
        tops = [s // form.size * form.step - 1 for s in (i, j)]
        tiles[i, j] = all(top <= at < top + form.side for top, at in zip(tops, (5, 6), strict=True))
    assert reached.any() and not tiles.all()
    assert np.isnan(y[0][:, reached]).all()
    assert (y[0][:, ~tiles] == clean[0][:, ~tiles]).all()  # whole tiles may be lost, others may not


@pytest.mark.parametrize(("runs", "groups"), [(1, 1), (3, 1), (1, 3), (2, 3), (4, 2)])
@each_form
def test_every_split_has_the_same_bits(monkeypatch, runs, groups, form):
    """Also with fewer tiles in some runs than in others."""
    x, weight, bias, residual = layer(7, 2, 18, 96, 10, 13, 1, form)
    whole = compute(x, weight, bias, 1, form, residual)
    monkeypatch.setattr(planning, "split", lambda tiles, packed, threads: (runs, min(groups, packed.panels)))
    assert (compute(x, weight, bias, 1, form, residual) == whole).all()


@pytest.mark.parametrize("form", [F4, F2], ids=lambda form: form.name)
def test_matrix_is_exact(form):
    """F(m, 3) by the theorem: evaluate at the points, multiply, interpolate; here with fractions."""
    g = planning.matrix(form)
    points = [Fraction(0), *(Fraction(p) for p in form.points)]
    for i, p in enumerate(points):
        distance = np.prod([p - q for q in points if q != p])
        assert [Fraction(v).limit_denominator(10**6) for v in g[i]] == [p**j / distance for j in range(3)]
    assert g[-1].tolist() == [0, 0, 1]


def test_weights_of_stride_2():
    """Five values of a line of five pixels, three products: two outputs, for every kernel and every input."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        d, taps = rng.integers(-9, 9, 5), rng.integers(-9, 9, 3)
        v, u = np.array([d[0] - d[2], d[1], d[2], d[4] - d[2], d[3]]), planning.matrix(S2) @ taps
        m = [sum(v[i] * u[i] for i in slots) for slots in planning.SLOTS_OF_S2]
        assert [m[0] + m[1], m[1] + m[2]] == [d[:3] @ taps, d[2:] @ taps]


def test_pack_reads_back():
    """A kernel that is 1 in the centre: G g G' is the outer product of the middle column."""
    lanes = target().lanes
    weight = np.zeros((5 * lanes - 3, 2, 3, 3), np.float32)
    weight[:, :, 1, 1] = np.arange(1, len(weight) + 1)[:, None] * np.array([1.0, -2.0])
    packed = pack(weight, F4)
    assert (packed.vectors, packed.panels, packed.last_vectors) == (2, 2, 3)
    first = packed.weight.array[: 36 * 2 * 2 * lanes].reshape(6, 6, 2, 2 * lanes)
    last = packed.weight.array[36 * 2 * 2 * lanes :].reshape(6, 6, 2, 3 * lanes)
    middle = planning.matrix(F4)[:, 1]
    u = np.outer(middle, middle)[:, :, None, None] * np.array([1.0, -2.0])[:, None]
    want = u * np.arange(1, 5 * lanes + 1)
    want[..., len(weight) :] = 0
    np.testing.assert_allclose(np.concatenate([first, last], -1), want, rtol=1e-7)


def test_register_tiles_are_those_that_are_called():
    for tiles, most in itertools.product(range(1, 80), (4, 6, 9, 14)):
        for runs in range(1, min(tiles, 6) + 1):
            called = set()
            for i in range(runs):
                count = tiles * (i + 1) // runs - tiles * i // runs
                blocks = -(-count // most)
                called |= {count * (j + 1) // blocks - count * j // blocks for j in range(blocks)}
            assert called <= register_tiles(tiles, runs, most) <= set(range(1, most + 1))


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 64])
def test_split(threads):
    """Every thread has as much to do, or there are too few tiles; never more runs than tiles."""
    for c, k, form in itertools.product((3, 64, 200), (16, 256), FORMS):
        packed = pack(np.ones((k, c, 3, 3), np.float32), form)
        for tiles in (1, 2, 3, 16, 49, 64, 196, 1000):
            runs, groups = split(tiles, packed, threads)
            assert 1 <= runs <= tiles and 1 <= groups <= packed.panels
            even = runs % threads == 0 and groups == 1
            assert even or tiles < 2 * planning.SHORTEST_RUN * threads
            assert even or runs * groups >= min(threads, packed.panels)
    packed = pack(np.ones((32, 32, 3, 3), np.float32), F4)
    assert split(196, packed, 2) == (8, 1)


def test_threads_change_no_bit():
    x, weight, bias, _ = layer(8, 1, 18, 96, 14, 13, 1)
    one = compute(x, weight, bias, 1, F2, threads=1)
    assert all((compute(x, weight, bias, 1, F2, threads=n) == one).all() for n in (2, 3, 16))


def test_choice():
    assert choose(64, 64, 56, 56, 1, 1) is F4
    assert choose(32, 32, 56, 56, 1, 1) is F4
    assert choose(128, 128, 7, 7, 1, 1) is not F4  # the transformed weights are read for four tiles only
    assert choose(128, 128, 7, 7, 32, 1) is F4  # for many images they pay
    assert choose(3, 64, 1, 1, 1, 1) is None
    assert choose(64, 64, 56, 56, 1, 2) is S2
    assert choose(512, 1024, 7, 7, 1, 2) is None
    assert choose(64, 64, 56, 56, 1, 3) is None
    for *shape, stride in itertools.product((3, 18, 64, 512), (18, 256), (1, 7, 56), (5, 56), (1, 8), (1, 2)):
        costs = {form: cost(*shape, form) for form in FORMS if form.stride == stride}
        costs |= {form: np.inf for form in costs if 4 * form.slots * shape[0] * shape[1] > planning.MOST_WEIGHTS}
        best = min(costs, key=costs.__getitem__)
        pays = costs[best] < planning.GAIN * cost(*shape, None)
        assert choose(*shape, stride) is (best if pays else None)
