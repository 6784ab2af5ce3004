"""Errors by hand, where they sit in words, and ratios that find one wrong channel and forgive other orders of summation."""

import dataclasses
import math

import numpy as np
import pytest

from refvit.crosscheck.measure import FACTOR, Error, errors, ratio, scaled, worst
from refvit.errors import ShapeError

ULP = 2.0**-23


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def cost(golden, *seeds, size=ULP):
    """A yardstick: relative noise of that size everywhere."""
    return worst(errors(golden * (1 + size * normal(*golden.shape, seed=s)), golden) for s in seeds or (11, 12, 13))


def test_figures_by_hand():
    golden = np.array([[4.0, -2.0, 1e-4, 0.0]])
    got = golden + np.array([[0.0, 0.5, 1e-5, -(2.0**-130)]])
    e = errors(got, golden)
    assert e.largest == 0.5 / 4 and e.rms == pytest.approx(math.sqrt((0.25 + 1e-10) / 4) / 4)
    assert e.top == 4.0 and e.size == pytest.approx(math.sqrt((16 + 4 + 1e-8) / 4)) and e.bad == 0
    assert e.cosine == pytest.approx((16 + 3) / math.sqrt(20 * (16 + 2.25)), abs=1e-8)
    assert e.ulps_elsewhere == 0.5 / 2.0**-22  # float32 numbers are 2^-22 apart from 2 to 4
    assert e.ulps_near_zero == pytest.approx(1e-5 / 2.0**-37)  # and 2^-37 apart at 1e-4
    brief = errors(got, golden, words=False)
    assert (
        dataclasses.replace(
            brief, cosine=e.cosine, ulps_near_zero=e.ulps_near_zero, ulps_elsewhere=e.ulps_elsewhere, where=e.where
        )
        == e
    )


def test_odd_tensors():
    same = errors(normal(3, 4), normal(3, 4))
    assert (same.largest, same.rms, same.where, same.bad) == (0.0, 0.0, "nowhere", 0) and same.cosine == pytest.approx(1)
    zeros = errors(np.zeros((2, 3)), np.zeros((2, 3)))
    assert zeros.cosine == 1.0 and zeros.top == 0.0 and zeros.largest == 0.0
    off = errors(np.full((2, 3), 0.5), np.zeros((2, 3)))
    assert off.largest == 0.5 and off.rms == 0.5 and off.cosine == 0.0
    empty = errors(np.zeros((0, 3)), np.zeros((0, 3)))
    assert empty.largest == empty.rms == 0.0
    huge = errors(np.full((2, 20), 1e300), normal(2, 20))
    assert huge.rms == math.inf and ratio(huge, cost(normal(2, 20)), "float32") == math.inf
    with pytest.raises(ShapeError, match=r"one shape expected, got \(2, 3\) and \(3, 2\)"):
        errors(np.zeros((2, 3)), np.zeros((3, 2)))
    low = errors(normal(4, 4).astype(np.float32), normal(4, 4))
    assert 0 < low.largest < ULP


def test_what_is_not_finite():
    golden, got = normal(2, 20), normal(2, 20)
    golden[0, 0] = got[0, 0] = np.nan
    golden[0, 1] = got[0, 1] = np.inf
    same = errors(got, golden)
    assert same.bad == 0 and same.largest == 0.0 and np.isfinite(same.rms)
    got[1, 3], got[1, 4] = np.nan, -np.inf
    e = errors(got, golden)
    assert e.bad == 2 and e.largest == 0.0
    assert e.where == "100 % of the NaN or infinite values in image 1 of 2, 2 of 20 channels (3, 4)"
    usual = cost(normal(2, 20))
    assert ratio(e, usual, "float32") == math.inf and ratio(same, usual, "float32") == 0.0
    assert ratio(e, dataclasses.replace(usual, bad=2), "float32") == 0.0  # the arithmetic itself overflows there
    many = dataclasses.replace(e, bad=17)
    assert ratio(many, dataclasses.replace(usual, bad=2), "float32") == math.inf
    cleared = errors(np.zeros((2, 20)), np.full((2, 20), np.nan))
    assert cleared.bad == 0 and cleared.largest == 0.0


@pytest.mark.parametrize(
    ("places", "want"),
    [
        ([(..., 5, slice(None), slice(None))], "100 % of the squared error in channel 5 of 24"),
        ([(0,)], "100 % of the squared error in image 0 of 2"),
        ([(..., c, slice(None), slice(None)) for c in (3, 9, 11)], "100 % of the squared error in 3 of 24 channels (3, 9, 11)"),
        ([(1, 7, 9, 4)], "100 % of the squared error in image 1 of 2, channel 7 of 24, row 9 of 16, column 4 of 20"),
        ([(slice(None), slice(12, 24))], "100 % of the squared error in channels 12 to 23 of 24"),
        ([(..., slice(1, None, 2), slice(None))], "100 % of the squared error in odd rows"),
        ([(..., slice(None), slice(0, None, 2))], "100 % of the squared error in even columns"),
        ([(..., 0, slice(None))], "100 % of the squared error in the top edge, 1 wide, which is 6 % of the map"),
        (
            [(..., -2, slice(None)), (..., -1, slice(None))],
            "100 % of the squared error in the bottom edge, 2 wide, which is 12 % of the map",
        ),
        ([(..., 0), (..., -1)], "100 % of the squared error in the left and right edges, 1 wide, which is 10 % of the map"),
        (
            [(..., 0), (..., -1), (..., 0, slice(None)), (..., -1, slice(None))],
            "100 % of the squared error in the border, 1 wide, which is 21 % of the map",
        ),
        ([(...,)], "everywhere"),
    ],
)  # fmt: skip
def test_where_in_a_map(places, want):
    golden = normal(2, 24, 16, 20)
    got = golden.copy()
    for place in places:
        got[place] = golden[place] + 0.5 + 0.1 * normal(*golden.shape, seed=1)[place]
    assert errors(got, golden).where == want


def test_where_counts_what_lies_elsewhere():
    golden = normal(1, 30, 12)
    got = golden + 0.001
    got[:, 0] += 0.1
    assert errors(got, golden).where == "99.7 % of the squared error in token 0 of 30"
    assert errors(got, golden, axes=("image", "head", "channel")).where.endswith("in head 0 of 30")
    assert errors(golden.reshape(30, 12) + 1, golden.reshape(30, 12)).where == "everywhere"
    got = golden.copy()
    got[0, 3, 4] += 1
    assert errors(got.reshape(2, 3, 5, 3, 4), golden.reshape(2, 3, 5, 3, 4)).where == (
        "100 % of the squared error in index 0 0 of 2, index 1 0 of 3, index 2 3 of 5, index 3 1 of 3, index 4 0 of 4"
    )


def test_worst_and_scaled():
    golden = normal(3, 40)
    small, large = (errors(golden + s * normal(3, 40, seed=5), golden) for s in (1e-6, 3e-6))
    w = worst([small, large, small])
    assert (w.largest, w.rms, w.top) == (large.largest, large.rms, large.top)
    assert all((a == b).all() for a, b in zip(w.slices, large.slices, strict=True) if a is not None)
    twice = scaled(small, 2)
    assert twice.largest == 2 * small.largest and twice.slices[0].tolist() == (2 * small.slices[0]).tolist()
    assert ratio(twice, large, "float64") == pytest.approx(2 / 3, rel=1e-6)
    other = errors(10 * golden + 1e-6, 10 * golden)  # of another run, whose values are ten times larger
    assert worst([small, other]).largest * small.top == pytest.approx(max(small.largest * small.top, 1e-6))


def test_no_error_and_no_yardstick():
    golden = np.maximum(normal(1, 8, 6, 6), 0)
    exact = errors(golden, golden)
    assert ratio(exact, exact, "float32") == 0.0
    step = golden * (1 + ULP)  # one ulp where the yardstick is exact: a copy that was rounded once more
    assert ratio(errors(step, golden), exact, "float32") < FACTOR
    zero = np.zeros((1, 8, 6, 6))
    assert ratio(errors(zero, zero), errors(zero, zero), "float32") == 0.0
    assert ratio(errors(zero + 1e-30, zero), errors(zero, zero), "float32") == math.inf


@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e20])
def test_ratios_do_not_depend_on_the_scale(magnitude):
    golden = normal(2, 16, 9, 9) * magnitude
    usual = cost(golden)
    for size, low, high in ((1, 0.5, 1.5), (5, 2, 7), (100, 50, 120)):
        e = errors(golden * (1 + size * ULP * normal(2, 16, 9, 9, seed=3)), golden)
        assert low < ratio(e, usual, "float32") < high


def test_one_wrong_channel_of_a_thousand_shows():
    golden = normal(1, 1024, 8, 8) * np.geomspace(1, 1e-3, 1024)[:, None, None]
    usual = cost(golden)
    for channel, off in ((3, 1e-5), (700, 5e-5), (1023, 1e-3)):
        got = golden * (1 + ULP * normal(1, 1024, 8, 8, seed=4))
        assert ratio(errors(got, golden), usual, "float32") < 2
        got[:, channel] *= 1 + off
        e = errors(got, golden)
        assert ratio(e, usual, "float32") > FACTOR
        whole = dataclasses.replace(e, slices=(), levels=()), dataclasses.replace(usual, slices=(), levels=())
        if channel > 500:
            assert ratio(*whole, "float32") < FACTOR


def test_one_wrong_number_shows():
    golden = normal(1, 1024, 32, 32)
    got = golden * (1 + ULP * normal(1, 1024, 32, 32, seed=4))
    got[0, 7, 5, 5] += 1e-4
    assert ratio(errors(got, golden), cost(golden), "float32") > FACTOR


def test_small_slices_are_not_looked_at():
    """A yardstick of few numbers may be small by chance."""
    e = errors(normal(2, 15), normal(2, 15) + 1e-6)
    assert e.slices == (None, None)
    assert errors(normal(2, 16), normal(2, 16)).slices[0] is not None
    assert errors(normal(1, 16), normal(1, 16)).slices == (None, None)


def test_a_slice_lucky_in_the_yardstick_is_no_alarm():
    """Where few numbers are repeated over a map, a yardstick of three runs is nearly exact in some channel by chance."""
    golden = np.repeat(normal(1, 300, 1), 25, axis=2)
    usual = worst(errors(golden * (1 + 8 * ULP * normal(1, 300, 1, seed=s)), golden) for s in (5, 6, 7))
    e = errors(golden * (1 + 8 * ULP * normal(1, 300, 1, seed=8)), golden)
    assert ratio(e, usual, "float32") < 4
    none = dataclasses.replace(usual, slices=tuple(None if s is None else 0 * s for s in usual.slices))
    assert ratio(e, none, "float32") < FACTOR
    assert ratio(dataclasses.replace(e, levels=none.slices), none, "float32") > 2 * FACTOR


def layer_norm(x, eps, dtype):
    x = x.astype(dtype)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + dtype(eps))


@pytest.mark.parametrize("variance", [0.01, 0.3, 2.0])
def test_an_eps_of_1e_6_in_place_of_1e_5_shows_in_a_layer_norm(variance):
    x = normal(2, 50, 192) * math.sqrt(variance)
    golden = layer_norm(x, 1e-5, np.float64)
    usual = worst(
        errors(layer_norm(x * (1 + r * ULP * normal(2, 50, 192, seed=r)), 1e-5, np.float32), golden) for r in range(3)
    )
    assert ratio(errors(layer_norm(x, 1e-5, np.float32), golden), usual, "float32") < 2
    assert ratio(errors(layer_norm(x, 1e-6, np.float32), golden), usual, "float32") > FACTOR


@pytest.mark.parametrize("arithmetic", ["float64", "float32", "tf32", "bfloat16", "float16"])
def test_the_floor_follows_the_arithmetic(arithmetic):
    golden = normal(4, 64)
    exact = errors(golden, golden)
    unit = {"float64": 2.0**-52, "bfloat16": 2.0**-7, "float16": 2.0**-10}.get(arithmetic, ULP)
    e = errors(golden * (1 + unit * normal(4, 64, seed=1)), golden)
    assert 1 < ratio(e, exact, arithmetic) < FACTOR and isinstance(e, Error)
