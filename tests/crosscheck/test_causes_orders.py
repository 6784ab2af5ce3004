"""Other orders of axes, other rules of resizing, other reads of weights: against loops."""

import itertools
import math

import numpy as np
import pytest
from helpers.injections import build
from helpers.scenes import explained, run_to

from refvit.crosscheck.causes.convolutions import _same
from refvit.crosscheck.causes.functions import ACTIVATIONS, erf_7_1_26, normalised
from refvit.crosscheck.causes.orders import groups, merged_otherwise, orders, split_otherwise
from refvit.crosscheck.causes.outputs import permuted
from refvit.crosscheck.causes.resizing import NEAREST, POSITIONS, sampled
from refvit.crosscheck.causes.tokens import _pooled
from refvit.crosscheck.causes.weights import misread, quantised
from refvit.graph.ir import Node
from refvit.ops.pool import adaptive_avg_pool
from refvit.ops.resize import resize

RNG = np.random.default_rng(11)


def test_runs_of_axes():
    assert groups((2, 18, 72), (2, 18, 3, 3, 8)) == [((0,), (0,)), ((1,), (1,)), ((2,), (2, 3, 4))]
    assert groups((1, 2, 2, 5, 4, 64), (4, 20, 64)) == [((0, 1, 2), (0,)), ((3, 4), (1,)), ((5,), (2,))]
    assert groups((6, 4), (4, 6)) == [((0, 1), (0, 1))]
    assert groups((3, 1), (3,)) == [((0,), (0,)), ((1,), ())]


def test_an_axis_split_in_another_order():
    x = RNG.standard_normal((2, 24))
    got = split_otherwise(x, (2, 2, 3, 4), (1, 2, 3), (2, 0, 1))  # in memory: 4, 2, 3
    for i, j, k in np.ndindex(2, 3, 4):
        assert np.array_equal(got[:, i, j, k], x[:, k * 6 + i * 3 + j])


def test_axes_merged_in_another_order():
    x = RNG.standard_normal((2, 3, 4, 5))
    got = merged_otherwise(x, (2, 12, 5), (1, 2), (1, 0))
    for i, j in np.ndindex(3, 4):
        assert np.array_equal(got[:, j * 3 + i], x[:, i, j])


def test_only_orders_that_move_values():
    assert list(orders((3, 1, 5), (0, 1, 2))) == [(2, 1, 0)]
    assert len(list(orders((2, 3, 4), (0, 1, 2)))) == 5
    assert list(orders((2, 1), (0, 1))) == []


def test_a_kernel_of_tensorflow():
    w = RNG.standard_normal((4, 3, 2, 5))
    stored = np.ascontiguousarray(w.transpose(2, 3, 1, 0))  # HWIO
    ways = {option: function(w) for option, _, function in misread(w)}
    assert any(np.array_equal(stored.reshape(4, 3, 2, 5), a) for a in ways.values())  # read as if it were OIHW
    assert len({a.tobytes() for a in ways.values()}) == len(ways)
    assert not any(np.array_equal(w, a) for a in ways.values())
    square = RNG.standard_normal((3, 3))
    assert [(o, np.array_equal(f(square), square.T)) for o, _, f in misread(square)] == [("axes io", True)]


@pytest.mark.parametrize("channelwise", [False, True])
def test_whole_steps(channelwise):
    w = RNG.standard_normal((3, 4, 2, 2))
    got = quantised(w, 127, channelwise)
    for i in range(3):
        step = np.abs(w[i] if channelwise else w).max() / 127
        for at in np.ndindex(4, 2, 2):
            assert got[(i, *at)] == pytest.approx(round(w[(i, *at)] / step) * step, rel=1e-12)
    unsigned = quantised(w, 255, False, asymmetric=True)
    assert len(np.unique(unsigned.round(12))) <= 256
    assert np.abs(unsigned - w).max() <= 0.51 * (w.max() - w.min()) / 255


SIZES = [((3, 5), (6, 10)), ((4, 7), (9, 5)), ((2, 2), (8, 8)), ((5, 6), (7, 12)), ((1, 4), (3, 1))]


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_the_reference_s_own_rules_are_among_the_positions(small, large):
    x = RNG.standard_normal((2, 3, *small))
    for mode, corners in itertools.product(("bilinear", "bicubic"), (False, True)):
        want = resize(x, size=large, mode=mode, align_corners=corners)
        got = sampled(x, large, mode, POSITIONS["corners" if corners else "half"][1])
        assert np.abs(got - want).max() < 1e-12
    assert np.array_equal(
        sampled(x, large, "nearest", NEAREST["nearest"][1]), resize(x, size=large, mode="nearest", align_corners=False)
    )


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_linear_interpolation_at_other_positions(small, large):
    x = RNG.standard_normal((1, 1, *small))
    got = sampled(x, large, "bilinear", POSITIONS["asymmetric"][1])
    for p, q in np.ndindex(*large):
        (i, u), (j, v) = (divmod(k * n / m, 1) for k, n, m in zip((p, q), small, large, strict=True))
        corner = [x[0, 0, min(int(i) + a, small[0] - 1), min(int(j) + b, small[1] - 1)] for a in (0, 1) for b in (0, 1)]
        want = np.dot(corner, [(1 - u) * (1 - v), (1 - u) * v, u * (1 - v), u * v])
        assert got[0, 0, p, q] == pytest.approx(want, abs=1e-12)


def test_nearest_exact():
    x = RNG.standard_normal((1, 1, 5, 7))
    got = sampled(x, (8, 3), "nearest", NEAREST["nearest-exact"][1])
    for p, q in np.ndindex(8, 3):
        assert got[0, 0, p, q] == x[0, 0, math.floor((p + 0.5) * 5 / 8), math.floor((q + 0.5) * 7 / 3)]


def test_bins():
    x = RNG.standard_normal((1, 2, 6, 6))
    assert np.allclose(_pooled(x, (3, 2), "floor"), adaptive_avg_pool(x, size=(3, 2)), rtol=1e-12)  # where it divides
    x = RNG.standard_normal((1, 2, 7, 5))
    padded = _pooled(x, (2, 2), "padded")
    assert padded[0, 0, 1, 1] == pytest.approx(x[0, 0, 4:, 3:].sum() / 12)
    assert _pooled(x, (2, 2), "ceil")[0, 0, 1, 1] == pytest.approx(x[0, 0, 4:, 3:].mean())
    assert _pooled(x, (2, 2), "max")[0, 1, 0, 0] == x[0, 1, :4, :3].max()


@pytest.mark.parametrize(("size", "want"), [((8, 8), ((0, 1), (0, 1))), ((9, 7), ((1, 1), (1, 1))), ((8, 7), ((0, 1), (1, 1)))])
def test_same_of_tensorflow(size, want):
    node = Node("n", "conv2d", ("x", "w", None), {"stride": 2, "dilation": 1}, (1, 1, 4, 4), "")
    assert _same(node, size, (3, 3), "upper") == want
    assert _same(node, size, (3, 3), "lower") == tuple(pair[::-1] for pair in want)


def test_the_rational_erf():
    x = np.linspace(-4, 4, 801)
    off = np.abs(erf_7_1_26(x) - [math.erf(v) for v in x])
    assert 1e-8 < off.max() < 1.5e-7  # as the handbook says
    assert ACTIVATIONS["gelu-quick"][1](np.array([1.0]))[0] == pytest.approx(1 / (1 + math.exp(-1.702)))


def test_norms():
    x = RNG.standard_normal((2, 3, 6))
    row = x[1, 2]
    plain = normalised(x, (-1,), 1e-3)[1, 2]
    assert plain == pytest.approx((row - row.mean()) / math.sqrt(row.var() + 1e-3))
    assert normalised(x, (-1,), 1e-3, ddof=1)[1, 2] == pytest.approx((row - row.mean()) / math.sqrt(row.var(ddof=1) + 1e-3))
    assert normalised(x, (-1,), 1e-3, outside=True)[1, 2] == pytest.approx((row - row.mean()) / (row.std() + 1e-3))
    assert normalised(x, (-1,), 1e-3, centre=False)[1, 2] == pytest.approx(row / math.sqrt((row**2).mean() + 1e-3))


def test_a_permutation_is_read_from_the_values():
    y = RNG.standard_normal((2, 9))
    order = RNG.permutation(9)
    assert permuted(y[:, order] + 1e-7, y, 1) == list(order)
    assert permuted(y, y, 1) is None
    assert permuted(np.repeat(y[:, :3], 3, 1), y, 1) is None


@pytest.mark.parametrize("factor", [2, 4])
def test_two_steps_by_the_power_of_two_on_either_side(factor):
    graph, x = build("hrnet segmentation", 3)
    name = "stage4.0.fuse_layers.1.3.resize"  # (3, 2) to (9, 7)
    before = graph.nodes[name].inputs[0]

    def wrong(known):
        y = resize(known[before], size=(3 * factor, 2 * factor), mode="bilinear", align_corners=False)
        return resize(y, size=(9, 7), mode="bilinear", align_corners=False)

    (text,) = explained(run_to(graph, x, [before, name], wrong), "resize-steps", 1e-12)
    assert text == f"resized by a power of two, {factor}, first, and then to the size"
