"""unfold_patches and fold_patches: the index formula of the docstring, element by element."""

import math

import numpy as np
import pytest

from refvit.ops import fold_patches, unfold_patches

EXACT = 1e-12  # of max|expected|: what float64 may differ from the loops
DTYPES = [np.float64, np.float32]
TILED = [((4, 6), (2, 2)), ((6, 4), (3, 2)), ((2, 8), (1, 4)), ((3, 5), (1, 1)), ((2, 2), (2, 2)), ((6, 6), (2, 3))]
UNEVEN = [((5, 7), (2, 2)), ((4, 5), (2, 2)), ((5, 4), (2, 2)), ((1, 1), (2, 2)), ((7, 4), (3, 3))]


def check(got, want, dtype, bound32):
    assert got.dtype == dtype and got.shape == want.shape
    bound = EXACT * np.abs(want).max() if dtype is np.float64 else bound32
    assert np.all(np.abs(got - want) <= bound)


def places(h, w, ph, pw):
    """(row, column) of the map -> (i * pw + j, row * columns + column) of the tokens."""
    for row in range(h // ph):
        for column in range(w // pw):
            for i in range(ph):
                for j in range(pw):
                    yield (row * ph + i, column * pw + j), (i * pw + j, row * (w // pw) + column)


def unfold_loops(x, patch):
    n, c, h, w = x.shape
    area = math.prod(patch)
    y = np.full((n * area, h * w // area, c), np.nan)
    for b in range(n):
        for (row, column), (place, token) in places(h, w, *patch):
            for channel in range(c):
                y[b * area + place, token, channel] = x[b, channel, row, column]
    return y


def fold_loops(y, patch, size):
    area = math.prod(patch)
    x = np.full((len(y) // area, y.shape[2], *size), np.nan)
    for b in range(len(x)):
        for (row, column), (place, token) in places(*size, *patch):
            x[b, :, row, column] = y[b * area + place, token]
    return x


def bilinear(x, size):
    """torch's align_corners=False: source (i + 1/2) in / out - 1/2, negative ones set to 0, last pixel repeated."""
    n, c, h, w = x.shape

    def source(i, old, new):
        s = max(0.0, (i + 0.5) * old / new - 0.5)
        low = int(s)
        return low, min(low + 1, old - 1), s - low

    y = np.empty((n, c, *size))
    for i in range(size[0]):
        for j in range(size[1]):
            a, b, u = source(i, h, size[0])
            e, f, v = source(j, w, size[1])
            above, below = (1 - v) * x[..., a, e] + v * x[..., a, f], (1 - v) * x[..., b, e] + v * x[..., b, f]
            y[..., i, j] = (1 - u) * above + u * below
    return y


def draw(shape, dtype):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("size", "patch"), TILED)
def test_tiled_maps_are_only_rearranged(size, patch, n, dtype):
    x = draw((n, 2, *size), dtype)
    y = unfold_patches(x, patch=patch)
    check(y, unfold_loops(x, patch), dtype, 0)
    back = fold_patches(y, patch=patch, size=size)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, x)
    z = draw(y.shape, dtype)
    check(fold_patches(z, patch=patch, size=size), fold_loops(z, patch, size), dtype, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "patch"), UNEVEN)
def test_uneven_maps_are_resized_to_the_next_multiple_and_back(size, patch, dtype):
    full = tuple(-(-s // p) * p for s, p in zip(size, patch, strict=True))
    x = draw((2, 3, *size), dtype)
    want = unfold_loops(bilinear(x.astype(np.float64), full), patch)
    # each of two axes: two weights and products and one sum, of values at most max|x|
    check(unfold_patches(x, patch=patch), want, dtype, 8 * np.finfo(np.float32).eps * np.abs(x).max())
    y = draw(want.shape, dtype)
    want = bilinear(fold_loops(y.astype(np.float64), patch, full), size)
    got = fold_patches(y, patch=patch, size=size)
    check(got, want, dtype, 8 * np.finfo(np.float32).eps * np.abs(y).max())


def test_a_numbered_map():
    """4x4 in 2x2 patches, written out: the four sequences are the four corners of the patches."""
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    want = [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]]
    np.testing.assert_array_equal(unfold_patches(x, patch=(2, 2))[..., 0], want)
