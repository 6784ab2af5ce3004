"""conv2d against scipy.signal.correlate2d, channel pair by channel pair, and against seven nested loops."""

import itertools

import numpy as np
import pytest
from scipy.signal import correlate2d

from refvit.errors import ShapeError
from refvit.ops import conv, conv2d

EXACT = 1e-12  # of max|expected|: what float64 may differ from the oracle
EPS32 = np.finfo(np.float32).eps
STRIDES = [1, 2, (2, 1), 3]
PADDINGS = [0, 1, 2, (1, 2), ((0, 1), (0, 1)), ((2, 0), (1, 3))]
DILATIONS = [1, 2, (1, 3)]
KERNELS = [(1, 1), (3, 3), (1, 3), (2, 2), (5, 5)]
GROUPS = {"one": (3, 2, 1), "two": (4, 6, 2), "depthwise": (3, 3, 3), "multiplier": (3, 6, 3)}  # c, k, groups


def pair(v):
    return v if isinstance(v, tuple) else (v, v)


def borders(padding):
    rows, columns = pair(padding)
    return pair(rows), pair(columns)


def by_scipy(x, weight, bias, stride, padding, dilation, groups):
    """None where the kernel does not fit."""
    (sh, sw), (dh, dw) = pair(stride), pair(dilation)
    k, c_group, r, s = weight.shape
    x = np.pad(x, ((0, 0), (0, 0), *borders(padding)))
    spread = np.zeros((k, c_group, dh * (r - 1) + 1, dw * (s - 1) + 1))
    spread[:, :, ::dh, ::dw] = weight
    if x.shape[2] < spread.shape[2] or x.shape[3] < spread.shape[3]:
        return None
    planes = []
    for image in x:
        for o in range(k):
            first = o // (k // groups) * c_group
            plane = sum(correlate2d(image[first + i], spread[o, i], "valid") for i in range(c_group))
            planes.append(plane[::sh, ::sw] + (0 if bias is None else bias[o]))
    return np.array(planes).reshape(len(x), k, *planes[0].shape)


def by_loops(x, weight, bias, stride, padding, dilation, groups):
    (sh, sw), (dh, dw) = pair(stride), pair(dilation)
    (top, bottom), (left, right) = borders(padding)
    n, _, h, w = x.shape
    k, c_group, r, s = weight.shape
    p, q = (h + top + bottom - dh * (r - 1) - 1) // sh + 1, (w + left + right - dw * (s - 1) - 1) // sw + 1
    y = np.zeros((n, k, p, q))
    for b, o, i, j in np.ndindex(y.shape):
        total = 0.0 if bias is None else float(bias[o])
        for ch, u, v in np.ndindex(c_group, r, s):
            row, column = i * sh + u * dh - top, j * sw + v * dw - left
            if 0 <= row < h and 0 <= column < w:
                total += float(x[b, o // (k // groups) * c_group + ch, row, column]) * float(weight[o, ch, u, v])
        y[b, o, i, j] = total
    return y


def compare(x, weight, bias, oracle, **attrs):
    """In float64, then in float32 on rounded inputs, whose error grows with the number and the size of the terms."""
    where = (x.shape, weight.shape, bias is not None, attrs)
    want = oracle(x, weight, bias, **attrs)
    got = conv2d(x, weight, bias, **attrs)
    assert got.dtype == np.float64 and got.shape == want.shape, where
    assert np.abs(got - want).max() <= EXACT * np.abs(want).max(), where
    low = [None if a is None else a.astype(np.float32) for a in (x, weight, bias)]
    high = [None if a is None else a.astype(np.float64) for a in low]
    size = oracle(*[None if a is None else np.abs(a) for a in high], **attrs)
    terms = weight[0].size + 1
    got = conv2d(*low, **attrs)
    assert got.dtype == np.float32, where
    assert np.all(np.abs(got - oracle(*high, **attrs)) <= terms * EPS32 * size), where


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("stride", STRIDES, ids=str)
def test_every_combination(kind, kernel, stride):
    rng = np.random.default_rng([STRIDES.index(stride), KERNELS.index(kernel), len(kind)])
    c, k, groups = GROUPS[kind]
    fitted = 0
    for padding, dilation, with_bias in itertools.product(PADDINGS, DILATIONS, (False, True)):
        x = rng.standard_normal((2, c, 7, 9))
        weight = rng.standard_normal((k, c // groups, *kernel))
        bias = rng.standard_normal(k) if with_bias else None
        attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        if by_scipy(x, weight, bias, **attrs) is None:
            with pytest.raises(ShapeError, match="smaller than the kernel"):
                conv2d(x, weight, bias, **attrs)
        else:
            compare(x, weight, bias, by_scipy, **attrs)
            fitted += 1
    assert fitted >= 20  # of 36


@pytest.mark.parametrize(
    ("c", "k", "groups", "size", "kernel"),
    [
        (1, 1, 1, (5, 3), (3, 3)),
        (1, 17, 1, (5, 4), (3, 2)),
        (3, 17, 1, (5, 7), (3, 3)),
        (17, 1, 1, (3, 5), (2, 3)),
        (17, 3, 1, (1, 1), (1, 1)),
        (17, 17, 17, (5, 3), (3, 3)),
        (3, 9, 3, (7, 5), (1, 3)),
        (6, 4, 2, (5, 5), (3, 1)),
    ],
)
def test_channels_and_odd_sizes_against_loops(c, k, groups, size, kernel):
    rng = np.random.default_rng(c * k)
    x, bias = rng.standard_normal((2, c, *size)), rng.standard_normal(k)
    weight = rng.standard_normal((k, c // groups, *kernel))
    for stride, padding in ((1, 1), ((2, 1), ((1, 2), (0, 1)))):
        compare(x, weight, bias, by_loops, stride=stride, padding=padding, dilation=1, groups=groups)


def test_the_oracles_agree():
    rng = np.random.default_rng(5)
    x, weight, bias = rng.standard_normal((2, 4, 6, 7)), rng.standard_normal((6, 2, 3, 2)), rng.standard_normal(6)
    args = (x, weight, bias, (2, 1), ((2, 0), (1, 3)), (1, 2), 2)
    np.testing.assert_allclose(by_scipy(*args), by_loops(*args), rtol=0, atol=1e-13)


def test_defaults_are_torchs():
    rng = np.random.default_rng(6)
    x, weight = rng.standard_normal((1, 2, 5, 5)), rng.standard_normal((3, 2, 3, 3))
    np.testing.assert_array_equal(conv2d(x, weight), conv2d(x, weight, stride=1, padding=0, dilation=1, groups=1))


@pytest.mark.parametrize("block", [1, 2 * 2 * 5 * 9 * 3, 10**9])
@pytest.mark.parametrize("groups", [1, 2])
def test_row_blocks_change_nothing(monkeypatch, block, groups):
    """One row at a time, a few rows (the last block is shorter), all at once: the same values from as many einsums."""
    rng = np.random.default_rng(7)
    x, weight = rng.standard_normal((2, 4, 11, 5)), rng.standard_normal((6, 4 // groups, 3, 3))
    want = by_scipy(x, weight, None, 1, 1, 1, groups)
    rows, einsum = [], np.einsum
    monkeypatch.setattr(conv, "BLOCK", block)
    monkeypatch.setattr(np, "einsum", lambda *a, **k: rows.append(a[1].shape[2]) or einsum(*a, **k))
    got = conv2d(x, weight, padding=1, groups=groups)
    assert np.abs(got - want).max() <= EXACT * np.abs(want).max()
    step = min(11, max(1, block // (2 * (4 // groups) * 5 * 9)))
    assert rows == groups * [min(step, 11 - top) for top in range(0, 11, step)]


@pytest.mark.parametrize("kind", GROUPS)
def test_a_nan_stays_inside_its_windows(kind):
    rng = np.random.default_rng(8)
    c, k, groups = GROUPS[kind]
    x, weight = rng.standard_normal((1, c, 7, 9)), rng.standard_normal((k, c // groups, 3, 3))
    x[0, 0, 2, 6] = np.nan
    want = np.zeros((k, 7, 9), bool)
    want[: k // groups, 1:4, 5:8] = True
    np.testing.assert_array_equal(np.isnan(conv2d(x, weight, padding=1, groups=groups)[0]), want)


def test_torch_module_facts():
    """A kernel with one tap at (0, 2) reads the pixel above and to the right: correlation, zeros outside."""
    x = np.arange(1.0, 13).reshape(1, 1, 3, 4)
    weight = np.zeros((1, 1, 3, 3))
    weight[0, 0, 0, 2] = 1
    want = [[0, 0, 0, 0], [2, 3, 4, 0], [6, 7, 8, 0]]
    np.testing.assert_array_equal(conv2d(x, weight, padding=1)[0, 0], want)
