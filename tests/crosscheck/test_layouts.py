"""Every layout against loops that say where each element is, and which layouts are thought of for a shape."""

import itertools

import numpy as np
import pytest

from refvit.crosscheck.layouts import LAYOUTS, PARTIAL, arranged, candidates_for
from refvit.errors import ConfigError

RNG = np.random.default_rng(21)
MAP = (2, 5, 4, 6)  # n, c, h, w; all axes differ
TOKENS = (2, 24, 5)  # n, l, c
HEADS = (2, 3, 7, 4)  # n, heads, l, d
STRIPES = (2, 3, 4, 6, 5)  # n, stripes, heads, l, d
PATCHES = (8, 6, 5)  # n 4, l, c of a 4x6 map in 2x2 patches
BLOCKED = (2, 10, 3, 2)  # ten channels in blocks of four


def where(shape, there, place):
    """An array of shape `there` that shows a reference array: element `index` of the reference is at place(*index)."""
    reference = RNG.standard_normal(shape)
    array = np.full(there, np.inf)
    for index in itertools.product(*map(range, shape)):
        array[place(*index)] = reference[index]
    return array, reference


def patch(n, c, h, w):
    """Image n, row h and column w of a 4x6 map: its row in the unfolded array, and its token."""
    return 4 * n + 2 * (h % 2) + w % 2, 3 * (h // 2) + w // 2


CASES = {  # layout and reference shape -> the candidate's shape, where the reference's element is in it
    ("as is", MAP): (MAP, lambda *i: i),
    ("batch dropped", (1, 5, 4, 6)): ((5, 4, 6), lambda n, c, h, w: (c, h, w)),
    ("singleton axes", (2, 7)): ((2, 7, 1, 1), lambda n, k: (n, k, 0, 0)),
    ("singleton axes", (1, 7)): ((7,), lambda n, k: (k,)),
    ("nhwc", MAP): ((2, 4, 6, 5), lambda n, c, h, w: (n, h, w, c)),
    ("nhwc", (1, 5, 4, 6)): ((4, 6, 5), lambda n, c, h, w: (h, w, c)),
    ("nhwc", TOKENS): ((2, 4, 6, 5), lambda n, l, c: (n, l // 6, l % 6, c)),
    ("nchw", MAP): (MAP, lambda *i: i),
    ("nchw", TOKENS): ((2, 5, 4, 6), lambda n, l, c: (n, c, l // 6, l % 6)),
    ("nlc", MAP): ((2, 24, 5), lambda n, c, h, w: (n, 6 * h + w, c)),
    ("nlc", (1, 5, 4, 6)): ((24, 5), lambda n, c, h, w: (6 * h + w, c)),
    ("ncl", MAP): ((2, 5, 24), lambda n, c, h, w: (n, c, 6 * h + w)),
    ("ncl", TOKENS): ((2, 5, 24), lambda n, l, c: (n, c, l)),
    ("ncl", (1, 24, 5)): ((5, 24), lambda n, l, c: (c, l)),
    ("heads inside", HEADS): ((2, 7, 3, 4), lambda n, a, l, d: (n, l, a, d)),
    ("heads inside", (2, 3, 7, 5)): ((2, 7, 15), lambda n, a, l, d: (n, l, 5 * a + d)),
    ("heads inside", STRIPES): ((6, 6, 20), lambda n, s, a, l, d: (3 * n + s, l, 5 * a + d)),
    ("heads split", (2, 7, 12)): ((2, 3, 7, 4), lambda n, l, c: (n, c // 4, l, c % 4)),
    ("heads split", (3, 7, 12)): ((9, 7, 4), lambda n, l, c: (3 * n + c // 4, l, c % 4)),
    ("reshaped", HEADS): ((6, 7, 4), lambda n, a, l, d: (3 * n + a, l, d)),
    ("reshaped", (2, 7, 12)): ((2, 7, 3, 4), lambda n, l, c: (n, l, c // 4, c % 4)),
    ("reshaped", MAP): ((240,), lambda n, c, h, w: (((n * 5 + c) * 4 + h) * 6 + w,)),
    ("flat nhwc", MAP): ((240,), lambda n, c, h, w: (((n * 4 + h) * 6 + w) * 5 + c,)),
    ("flat nhwc", (2, 5, 4, 3)): ((2, 60), lambda n, c, h, w: (n, (h * 3 + w) * 5 + c)),
    ("stripes inside heads", STRIPES): ((2, 4, 3, 6, 5), lambda n, s, a, l, d: (n, a, s, l, d)),
    ("unfolded", MAP): ((8, 6, 5), lambda n, c, h, w: (*patch(n, c, h, w), c)),
    ("unfolded", (1, 5, 4, 6)): ((1, 4, 6, 5), lambda n, c, h, w: (0, *patch(n, c, h, w), c)),
    ("folded", PATCHES): ((2, 5, 4, 6), lambda p, l, c: (p // 4, c, l // 3 * 2 + p % 4 // 2, l % 3 * 2 + p % 2)),
    ("folded nhwc", PATCHES): ((2, 4, 6, 5), lambda p, l, c: (p // 4, l // 3 * 2 + p % 4 // 2, l % 3 * 2 + p % 2, c)),
    ("patches nlpc", PATCHES): ((2, 6, 4, 5), lambda p, l, c: (p // 4, l, p % 4, c)),
    ("patches ncpl", PATCHES): ((2, 5, 4, 6), lambda p, l, c: (p // 4, c, p % 4, l)),
    ("patches nclp", PATCHES): ((2, 5, 6, 4), lambda p, l, c: (p // 4, c, l, p % 4)),
    ("channel blocks", BLOCKED): ((2, 3, 3, 2, 4), lambda n, c, h, w: (n, c // 4, h, w, c % 4)),
    ("channel blocks", (1, 8, 3, 2)): ((2, 3, 2, 4), lambda n, c, h, w: (c // 4, h, w, c % 4)),
    ("transposed", HEADS): ((2, 3, 4, 7), lambda n, a, l, d: (n, a, d, l)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
def test_every_element_comes_back(name, shape):
    array, reference = where(shape, *CASES[name, shape])
    np.testing.assert_array_equal(arranged(name, array, shape), reference)


def test_all_are_tested():
    assert {name for name, _ in CASES} | set(PARTIAL) == set(LAYOUTS)


@pytest.mark.parametrize("prefix", [1, 2])
def test_tokens_that_are_not_shown_are_nan(prefix):
    reference = RNG.standard_normal((2, 9, 5))
    back = arranged("class token dropped", reference[:, prefix:], (2, 9, 5))
    np.testing.assert_array_equal(back[:, prefix:], reference[:, prefix:])
    assert np.isnan(back[:, :prefix]).all()
    assert arranged("class token dropped", reference[:, 3:], (2, 9, 5)) is None


@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
def test_it_is_thought_of_for_these_shapes(name, shape):
    """By its own name, or another layout that is the same there."""
    array, reference = where(shape, *CASES[name, shape])
    found = candidates_for(shape, array)
    assert any(np.array_equal(arranged(n, array, shape), reference) for n in found)


def test_what_is_found_differs_and_fits():
    seen = 0
    for (_, shape), (there, _) in CASES.items():
        array = RNG.standard_normal(there)
        views = [arranged(name, array, shape) for name in candidates_for(shape, array)]
        for view in views:
            assert view.shape == shape
            if np.isfinite(view).all() and array.size == view.size:
                assert sorted(view.ravel()) == sorted(array.ravel())  # every element, each once
        for a, b in itertools.combinations(views, 2):
            assert not np.array_equal(a, b)
            seen += 1
    assert seen > 10


def test_the_own_shape_is_taken_as_it_is_first():
    array = RNG.standard_normal((1, 4, 4, 4))
    found = candidates_for((1, 4, 4, 4), array)
    assert found[0] == "as is" and "nhwc" in found  # both fit, and only the rest of a candidate can tell


@pytest.mark.parametrize(
    ("shape", "there"),
    [
        ((2, 5, 4, 6), (2, 5, 4, 7)),
        ((2, 5, 4, 6), (5, 4, 6)),
        ((2, 24, 5), (2, 25, 5)),
        ((1, 1000), (1, 1001)),
        ((2, 7), (7, 2)),
    ],
)
def test_what_does_not_fit(shape, there):
    array = RNG.standard_normal(there)
    assert set(candidates_for(shape, array)) <= set(PARTIAL)
    assert arranged("as is", array, shape) is None


def test_an_unknown_layout_is_an_error():
    with pytest.raises(ConfigError, match=r"layout 'nwhc' does not exist; there are n[hc]"):
        arranged("nwhc", np.zeros((1, 2)), (1, 2))
    with pytest.raises(ConfigError, match=r"layout \['nhwc'\] does not exist"):
        arranged(["nhwc"], np.zeros((1, 2)), (1, 2))


def test_no_layout_fails_on_a_shape_that_is_not_its_own():
    shapes = [(), (3,), (2, 3), (0,), (2, 0, 3), (4, 2, 3), (2, 4, 6, 5), (2, 3, 4, 6, 5), (1, 1, 1, 1), (1, 1, 1, 1, 1, 1)]
    for name, shape, there in itertools.product(LAYOUTS, shapes, shapes):
        found = arranged(name, np.zeros(there), shape)
        assert found is None or found.shape == shape
