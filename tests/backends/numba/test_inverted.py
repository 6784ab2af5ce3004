"""The inverted residual in one kernel against its three convolutions in float64."""

import numpy as np
import pytest
from helpers.kernels import Memory, run

from refvit import ops
from refvit.backends.numba.epilogue import ACT
from refvit.backends.numba.inverted import inverted, pack_layers, worthwhile
from refvit.backends.numba.layout import Place
from refvit.backends.numba.program import Buffer
from refvit.errors import UnsupportedError

EPS = np.finfo(np.float32).eps
FUNCTIONS = {"none": lambda x: x, "relu": ops.relu, "silu": ops.silu}


def channels_last(n, c, h, w, gap=0):
    ld = c + gap
    row = w * ld + gap
    image = h * row + gap
    axes = [(n, image), (c, 1), (h, row), (w, ld)]
    return Place(Buffer(gap + n * image), gap, tuple(((size, step),) if size > 1 else () for size, step in axes))


def compare(shape, hidden, k, size=3, stride=1, dilation=1, *, act="silu", residual=False, bias=True, gap=0, seed=0):
    _, c, _, _ = shape
    rng = np.random.default_rng(seed)
    padding = size // 2 * dilation

    def draw(*of):
        return rng.standard_normal(of, np.float32) / np.float32(max(1, np.prod(of[1:])) ** 0.5)

    x = rng.standard_normal(shape, np.float32)
    weights = draw(hidden, c, 1, 1), draw(hidden, 1, size, size), draw(k, hidden, 1, 1)
    biases = (draw(hidden), draw(hidden), draw(k)) if bias else (None, None, None)
    h, w = ((e - 1) // stride + 1 for e in shape[2:])
    added = draw(shape[0], k, h, w) if residual else None

    def reference(dtype):
        ws, bs = [a.astype(dtype) for a in weights], [None if a is None else a.astype(dtype) for a in biases]
        y = FUNCTIONS[act](ops.conv2d(x.astype(dtype), ws[0], bs[0]))
        y = FUNCTIONS[act](ops.conv2d(y, ws[1], bs[1], stride=stride, padding=padding, dilation=dilation, groups=hidden))
        y = ops.conv2d(y, ws[2], bs[2])
        return y if added is None else y + added.astype(dtype)

    golden, low = reference(np.float64), reference(np.float32)
    memory, place, out, more = Memory(), channels_last(*shape, gap), channels_last(*golden.shape, 2 * gap), None
    memory.fill(place, x)
    if added is not None:
        more = channels_last(*golden.shape, 3 * gap)
        memory.fill(more, added)
    layers = pack_layers(*(a for pair in zip(weights, biases, strict=True) for a in pair))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "act": ACT[act], "residual": more}
    run(inverted(place, layers, out, **options), memory, seed)
    got = memory.view(out)
    assert np.abs(got - golden).max() <= 4 * np.abs(low - golden).max() + 4 * EPS * np.abs(golden).max()
    copy = Memory()
    copy.fill(out, got)
    assert np.isnan(memory.values(out.buffer)[np.isnan(copy.values(out.buffer))]).all()


@pytest.mark.parametrize(
    ("c", "hidden", "k"), [(16, 64, 32), (1, 3, 1), (17, 31, 18), (36, 40, 50), (8, 530, 70), (3, 512, 33)]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_channels(c, hidden, k, stride):
    compare((2, c, 12, 14), hidden, k, stride=stride, gap=3, seed=c)
    compare((1, c, 9, 7), hidden, k, stride=stride, residual=True, seed=k)


@pytest.mark.parametrize("h", range(1, 10))
@pytest.mark.parametrize("w", [1, 2, 5, 6, 7, 9])
def test_sizes(h, w):
    compare((1, 7, h, w), 20, 9, residual=True, seed=h)
    compare((2, 7, h, w), 20, 9, stride=2, seed=w)


@pytest.mark.parametrize(
    ("size", "stride", "dilation"), [(3, 1, 2), (5, 1, 1), (5, 2, 1), (3, 3, 1), (3, 4, 1), (3, 2, 2), (1, 1, 1)]
)
def test_kernels(size, stride, dilation):
    compare((1, 12, 23, 19), 36, 24, size, stride, dilation, gap=1)


@pytest.mark.parametrize("act", FUNCTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_activations(act, bias):
    compare((1, 16, 16, 16), 32, 16, act=act, bias=bias, residual=True)


def test_a_large_map_is_cut_into_bands():
    compare((1, 8, 61, 64), 16, 8, residual=True)
    compare((2, 8, 64, 61), 16, 24, stride=2)


def test_other_shapes_are_refused():
    a = np.ones((8, 4, 1, 1), np.float32)
    with pytest.raises(UnsupportedError, match=r"\(m, c, 1, 1\)"):
        pack_layers(a, None, np.ones((4, 1, 3, 3), np.float32), None, a, None)


def test_one_kernel_for_large_maps_only():
    assert worthwhile(1, 128, 128, 64, 1) and worthwhile(1, 64, 64, 256, 2)
    assert not worthwhile(1, 16, 16, 512, 2)  # two bands
    assert not worthwhile(8, 8, 8, 64, 1)  # in the cache anyway
