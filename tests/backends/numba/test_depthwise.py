"""Depthwise convolutions against float64 and against what float32 loses in the definition."""

import numpy as np
import pytest
from helpers.kernels import Memory, run

from refvit import ops
from refvit.backends.numba.depthwise import depthwise, split
from refvit.backends.numba.epilogue import ACT
from refvit.backends.numba.layout import Place
from refvit.backends.numba.program import Buffer
from refvit.errors import UnsupportedError

EPS = np.finfo(np.float32).eps
FUNCTIONS = {
    "none": lambda x: x,
    "relu": ops.relu,
    "silu": ops.silu,
    "gelu": lambda x: ops.gelu(x, approximate="none"),
    "hardswish": ops.hardswish,
}


def channels_last(n, c, h, w, ld=None, offset=0):
    """A map in its own buffer, pixels ld values apart, rows and images with gaps."""
    ld = c if ld is None else ld
    row = w * ld + (3 if ld > c else 0)
    image = h * row + (5 if ld > c else 0)
    axes = [(n, image), (c, 1), (h, row), (w, ld)]
    return Place(Buffer(offset + n * image), offset, tuple(((size, step),) if size > 1 else () for size, step in axes))


def compare(
    shape, kernel, stride=1, padding=0, dilation=1, *, act="none", pre="none", bias=True, residual=False, gap=0, seed=0
):
    c = shape[1]
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, np.float32)
    weight = rng.standard_normal((c, 1, *kernel), np.float32)
    b = rng.standard_normal(c, np.float32) if bias else None
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": c}
    added = rng.standard_normal(ops.conv2d(x, weight, b, **options).shape, np.float32) if residual else None

    def reference(dtype):
        y = ops.conv2d(FUNCTIONS[pre](x.astype(dtype)), weight.astype(dtype), None if b is None else b.astype(dtype), **options)
        return FUNCTIONS[act](y if added is None else y + added.astype(dtype))

    golden, low = reference(np.float64), reference(np.float32)
    place, out = channels_last(*shape, c + gap, gap), channels_last(*golden.shape, c + gap, gap)
    memory, more = Memory(), None
    memory.fill(place, x)
    before = memory.values(out.buffer).copy()
    if added is not None:
        more = channels_last(*golden.shape, c + gap)
        memory.fill(more, added)
    run(
        depthwise(place, weight, b, out, stride, padding, dilation, act=ACT[act], pre_act=ACT[pre], residual=more), memory, seed
    )
    got = memory.view(out)
    limit = 4 * np.abs(low - golden).max() + 4 * EPS * np.abs(golden).max()
    assert np.abs(got - golden).max() <= limit
    copy = Memory()  # nothing but the value was written
    copy.fill(out, got)
    others = np.isnan(copy.values(out.buffer))
    assert np.isnan(memory.values(out.buffer)[others]).all() and np.isnan(before).all()


@pytest.mark.parametrize("c", [1, 3, 16, 17, 18, 24, 31, 36, 64, 130])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1)])
def test_channels(c, size, stride):
    compare((1, c, 13, 15), (size, size), stride, size // 2, gap=5, seed=c)


@pytest.mark.parametrize("h", range(1, 10))
@pytest.mark.parametrize("w", [1, 2, 5, 7, 8, 9, 16])
def test_sizes(h, w):
    compare((2, 20, h, w), (3, 3), 1, 1, seed=h)
    compare((1, 20, h, w), (3, 3), 2, 1, seed=w)
    compare((1, 20, h, w), (5, 5), 1, 2, seed=h + w)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((3, 3), 1, 0, 1),
        ((3, 3), 1, ((0, 1), (2, 0)), 1),
        ((3, 3), 2, ((0, 1), (0, 1)), 1),
        ((3, 3), (2, 1), 1, 1),
        ((3, 3), 1, 2, 2),
        ((3, 3), 1, 6, 6),
        ((3, 3), 2, 2, (2, 1)),
        ((5, 5), 4, 2, 1),
        ((9, 9), 8, 4, 1),
        ((5, 5), 1, 4, 1),
        ((1, 7), (1, 2), (0, 3), 1),
        ((2, 2), 2, 0, 1),
        ((1, 1), 1, 2, 1),
    ],
)
def test_kernels(kernel, stride, padding, dilation):
    compare((2, 40, 18, 21), kernel, stride, padding, dilation, gap=1)
    compare((1, 70, 18, 21), kernel, stride, padding, dilation, pre="hardswish", bias=False)


@pytest.mark.parametrize("act", FUNCTIONS)
@pytest.mark.parametrize("residual", [False, True])
def test_epilogue(act, residual):
    compare((2, 37, 11, 17), (3, 3), 1, 1, act=act, residual=residual, gap=7, bias=not residual)


@pytest.mark.parametrize("pre", FUNCTIONS)
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1), (5, 4)])
def test_activated_input(pre, size, stride):
    compare((2, 37, 20, 17), (size, size), stride, size // 2, pre=pre, act="silu", gap=3)


def test_a_large_map_is_cut_into_bands_and_blocks():
    assert split(1, 64, 128, 64 * 64 * 128 * 9, 1)[0] > 4
    assert split(1, 8, 2048, 8 * 8 * 2048 * 9, 1)[3] > 1
    compare((1, 136, 64, 32), (3, 3), 1, 1)
    compare((2, 520, 8, 8), (3, 3), 1, 1, pre="silu", residual=True)
    compare((1, 520, 16, 16), (3, 3), 2, 1, gap=2)
    compare((1, 300, 21, 21), (5, 5), 1, 2, pre="relu")


def test_bad_values_stay_where_they_are():
    x = np.random.default_rng(3).standard_normal((1, 20, 12, 12)).astype(np.float32)
    x[0, 4, 5, 6] = np.nan
    place, out, memory = channels_last(*x.shape), channels_last(*x.shape), Memory()
    memory.fill(place, x)
    run(depthwise(place, np.ones((20, 1, 3, 3), np.float32), None, out, 1, 1, act=ACT["relu"]), memory)
    expected = np.zeros(x.shape, bool)
    expected[0, 4, 4:7, 5:8] = True
    assert (np.isnan(memory.view(out)) == expected).all()


def test_several_outputs_of_a_channel_are_refused():
    place = channels_last(1, 4, 5, 5)
    with pytest.raises(UnsupportedError, match=r"\(4, 1, r, s\) expected"):
        depthwise(place, np.ones((8, 1, 3, 3), np.float32), None, channels_last(1, 8, 3, 3))
