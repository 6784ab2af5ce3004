"""Copies between places of every kind, against NumPy's assignment, with the gaps of the target left alone."""

import itertools

import numpy as np
import pytest
from helpers.kernels import Memory, run

from refvit.backends.numba.copy import LayoutError, copy, fill, pad
from refvit.backends.numba.layout import Place, dense
from refvit.backends.numba.program import Buffer


def spread_out(shape, order, gap=0):
    """A place whose axes nest in memory in `order`, with `gap` values after each run of the innermost axis."""
    strides, step = [0] * len(shape), 1
    for k, axis in enumerate(reversed(order)):
        strides[axis] = step
        step = step * shape[axis] + (gap if k == 0 else 0)
    return Place(Buffer(step + 5), 5, tuple(((s, d),) if s > 1 else () for s, d in zip(shape, strides, strict=True)))


def check(source, target, seed=0):
    memory = Memory()
    x = np.random.default_rng(seed).standard_normal(source.shape).astype(np.float32)
    memory.fill(source, x)
    expected = memory.values(target.buffer).copy()
    index = Place(target.buffer, target.offset, target.axes)
    positions = np.arange(target.buffer.size, dtype=np.float32)
    flat = memory.values(target.buffer)
    flat[:] = positions
    expected[memory.view(index).astype(np.int64)] = memory.view(source)
    flat[:] = np.nan
    run(copy(source, target), memory, seed)
    np.testing.assert_array_equal(memory.values(target.buffer), expected)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 18, 33, 17), (2, 36, 20, 19), (1, 3, 65, 40), (1, 1, 9, 9)])
@pytest.mark.parametrize("gaps", [(0, 0), (3, 0), (0, 4)])
def test_maps_in_every_order(shape, gaps):
    for seed, (a, b) in enumerate(itertools.product([(0, 1, 2, 3), (0, 2, 3, 1), (2, 0, 1, 3), (3, 2, 1, 0)], repeat=2)):
        check(spread_out(shape, a, gaps[0]), spread_out(shape, b, gaps[1]), seed)


def test_long_runs():
    for shape in [(1, 70_001), (3, 10_007), (2, 56 * 56 * 64), (50_000, 3)]:
        check(spread_out(shape, (0, 1), 1), spread_out(shape, (0, 1), 2))
        check(spread_out(shape, (1, 0)), spread_out(shape, (0, 1)))


def test_a_broadcast_source():
    for axes in [((), ((5, 1),)), (((4, 1),), ()), ((), ())]:
        source = Place(Buffer(9), 2, axes).broadcast((4, 5))
        memory = Memory()
        memory.values(source.buffer)[:] = np.arange(9)
        target = spread_out((4, 5), (0, 1), 3)
        run(copy(source, target), memory)
        np.testing.assert_array_equal(memory.view(target), memory.view(source))
    wide = Place(Buffer(40), 0, (((40, 1),), ())).broadcast((40, 37))
    check_target = dense(Buffer(40 * 37), (40, 37))
    memory = Memory()
    memory.values(wide.buffer)[:] = np.arange(40)
    run(copy(wide, check_target), memory)
    np.testing.assert_array_equal(memory.view(check_target), memory.view(wide))


def test_axes_of_several_factors():
    """Patches of a map as tokens: (n, l, d) with l of two factors, to dense tokens and back."""
    n, h, w, c = 2, 6, 8, 19
    pixels = Place(Buffer(n * h * w * c), 0, (((n, h * w * c),), ((h // 2, 2 * w * c), (w // 2, 2 * c)), ((c, 1),)))
    check(pixels, dense(Buffer(n * h * w // 4 * c), (n, h * w // 4, c)))
    check(dense(Buffer(n * h * w // 4 * c), (n, h * w // 4, c)), pixels)


def test_factors_that_do_not_nest():
    x = Place(Buffer(100), 0, (((2, 30), (3, 10)),))
    y = Place(Buffer(100), 0, (((3, 20), (2, 7)),))
    with pytest.raises(LayoutError, match="do not nest"):
        copy(x, y)
    with pytest.raises(LayoutError, match="copy"):
        copy(x, dense(Buffer(7), (7,)))


def test_fill_leaves_the_gaps():
    target = spread_out((2, 19, 5, 3), (0, 2, 3, 1), 4)
    memory = Memory()
    run(fill(target, -1.25), memory)
    assert (memory.view(target) == -1.25).all()
    assert np.isnan(memory.values(target.buffer)).sum() == target.buffer.size - 2 * 19 * 5 * 3


@pytest.mark.parametrize("widths", [((0, 0), (0, 0), (1, 2), (0, 3)), ((1, 0), (2, 1), (0, 0), (4, 4)), ((0, 0),) * 4])
def test_pad(widths):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 5, 4, 3)).astype(np.float32)
    golden = np.pad(x, widths, constant_values=0.5)
    source, target = spread_out(x.shape, (0, 2, 3, 1), 2), spread_out(golden.shape, (0, 2, 3, 1), 3)
    memory = Memory()
    memory.fill(source, x)
    run(pad(source, target, widths, 0.5), memory)
    np.testing.assert_array_equal(memory.view(target), golden)
