"""The dense convolution and linear kernels against the definition in float64."""

import numpy as np
import pytest
from helpers.kernels import Memory, run

from refvit.backends.numba.conv import Taps, conv, linear, pack, panels, split
from refvit.backends.numba.layout import Place, dense
from refvit.backends.numba.program import Buffer
from refvit.ops import conv2d, gelu, relu, silu
from refvit.ops import linear as linear_op

EPS = np.finfo(np.float32).eps


def nhwc(n, c, h, w, ld=None, before=0):
    ld = c if ld is None else ld
    sizes, strides = (n, c, h, w), (h * w * ld, 1, w * ld, ld)
    axes = tuple(((e, s),) if e > 1 else () for e, s in zip(sizes, strides, strict=True))
    return Place(Buffer(n * h * w * ld), before, axes)


def close(got, golden, reference):
    assert np.isfinite(got).all()
    top = np.abs(golden).max()
    assert np.abs(got - golden).max() <= 4 * np.abs(reference - golden).max() + 4 * EPS * top


CASES = [
    # n, c, h, w, k, r, s, stride, padding, dilation
    (1, 64, 56, 56, 64, 3, 3, 1, 1, 1),
    (2, 17, 9, 7, 31, 3, 3, 2, 1, 1),
    (1, 1, 5, 5, 3, 1, 1, 1, 0, 1),
    (2, 3, 8, 6, 18, 5, 3, 1, 2, 1),
    (1, 36, 14, 14, 72, 1, 1, 1, 0, 1),
    (1, 144, 7, 7, 144, 3, 3, 1, 1, 1),
    (1, 20, 12, 10, 33, 3, 3, 1, 2, 2),
    (3, 5, 4, 4, 70, 2, 2, 2, 0, 1),
    (1, 256, 7, 7, 256, 3, 3, 1, 1, 1),
    # units that share a panel, of several images; units that share rows
    (3, 64, 6, 6, 260, 3, 3, 1, 1, 1),
    (2, 40, 63, 61, 70, 3, 3, 1, 1, 1),
    (2, 128, 53, 31, 133, 3, 3, 2, 1, 1),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tail", ["plain", "residual", "silu"])
def test_conv(case, tail):
    n, c, h, w, k, r, s, stride, padding, dilation = case
    rng = np.random.default_rng(hash(case) % 2**32)
    x = rng.standard_normal((n, c, h, w)).astype(np.float32)
    weight = (rng.standard_normal((k, c, r, s)) / np.sqrt(c * r * s)).astype(np.float32)
    bias = rng.standard_normal(k).astype(np.float32) if tail != "plain" else None

    def model(dtype):
        y = conv2d(x.astype(dtype), weight.astype(dtype), None if bias is None else bias.astype(dtype), stride=stride,
                   padding=padding, dilation=dilation)  # fmt: skip
        return {"plain": lambda: y, "residual": lambda: relu(y + extra.astype(dtype)), "silu": lambda: silu(y)}[tail]()

    shape = conv2d(x, weight, stride=stride, padding=padding, dilation=dilation).shape
    extra = rng.standard_normal(shape).astype(np.float32)
    memory = Memory()
    place, out, residual = nhwc(n, c, h, w, c + 3, 2), nhwc(*shape, shape[1] + 5, 4), nhwc(*shape)
    place.buffer.size += 2
    memory.fill(place, x)
    memory.fill(residual, extra)
    packed = pack(weight.transpose(0, 2, 3, 1).reshape(k, r * s, c), bias)
    taps = Taps((r, s), (stride, stride), (padding, padding), (dilation, dilation))
    options = {"plain": {}, "residual": {"residual": residual, "relu": True}, "silu": {"act": "silu"}}[tail]
    run(conv(place, packed, out, taps, **options), memory)
    close(memory.view(out), model(np.float64), model(np.float32))
    gaps = np.ones(out.buffer.size, bool)
    rows = np.arange(n * shape[2] * shape[3])[:, None] * (shape[1] + 5) + 4 + np.arange(shape[1])
    gaps[rows[rows < gaps.size]] = False
    assert np.isnan(memory.values(out.buffer)[gaps]).all()  # nothing beside the value was touched


def test_the_order_of_units_is_the_one_that_reads_less():
    def order(n, rows, size, k, depth):
        runs, groups, rows_stay = split(n, rows, panels(k, 1, depth), size)
        assert groups >= 1 and 1 <= runs <= rows
        return runs, groups, rows_stay

    assert order(1, 197, 4 * 197 * 768, 3072, 768)[::2] == (1, False)  # rows that fit are walked for every panel
    assert order(8, 49, 4 * 196 * 512, 1024, 9 * 512)[::2] == (1, False)  # large weights of small maps: once for all images
    runs, groups, rows_stay = order(1, 1576, 4 * 1576 * 768, 3072, 768)  # many rows: each run of them is read once
    assert rows_stay and groups > 1 and 4 * 1576 * 768 / runs <= 1 << 20


@pytest.mark.parametrize(("rows", "d", "k"), [(197, 192, 576), (1, 640, 1000), (16, 33, 17), (50, 3072, 768), (800, 768, 300)])
def test_linear(rows, d, k):
    rng = np.random.default_rng(rows * d + k)
    x = rng.standard_normal((2, rows, d)).astype(np.float32)
    weight = (rng.standard_normal((k, d)) / np.sqrt(d)).astype(np.float32)
    bias = rng.standard_normal(k).astype(np.float32)
    memory = Memory()
    place, out = dense(Buffer(x.size), x.shape), dense(Buffer(2 * rows * k), (2, rows, k))
    memory.fill(place, x)
    run(linear(place, pack(weight.reshape(k, 1, d), bias), out, act="gelu"), memory)
    golden, reference = (
        gelu(linear_op(x.astype(t), weight.astype(t), bias.astype(t)), approximate="none") for t in (np.float64, np.float32)
    )
    close(memory.view(out), golden, reference)
