"""resize: torch's documented formulas pixel by pixel, and Pillow where it antialiases."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from refvit.errors import ConfigError
from refvit.ops import resize

EXACT = 1e-12  # of max|expected|: what float64 may differ from the loops
EPS32 = np.finfo(np.float32).eps
DTYPES = [np.float64, np.float32]
RULES = {
    "nearest": {"mode": "nearest", "align_corners": False},
    "bilinear": {"mode": "bilinear", "align_corners": False},
    "bilinear_corners": {"mode": "bilinear", "align_corners": True},
    "bicubic": {"mode": "bicubic", "align_corners": False},
    "bicubic_corners": {"mode": "bicubic", "align_corners": True},
    "bilinear_antialias": {"mode": "bilinear", "align_corners": False, "antialias": True},
    "bicubic_antialias": {"mode": "bicubic", "align_corners": False, "antialias": True},
}
SIZES = [
    ((4, 6), (8, 12)),
    ((8, 12), (4, 6)),
    ((5, 7), (8, 3)),
    ((3, 5), (7, 16)),
    ((13, 11), (4, 5)),
    ((1, 1), (3, 4)),
    ((1, 5), (4, 1)),
    ((6, 7), (1, 1)),
    ((2, 3), (2, 9)),
    ((9, 4), (2, 4)),
    ((15, 2), (2, 15)),
]


def axis_taps(i, size, out, mode, align_corners, antialias=False):
    """[(source pixel, weight)] of output i, in scalars."""
    if mode == "nearest":
        return [(int(Fraction(i * size, out)), 1.0)]
    if antialias:
        return antialias_taps(i, size, out, mode)
    if align_corners:
        s = Fraction(i * (size - 1), out - 1) if out > 1 else Fraction(0)
    else:
        s = Fraction(2 * i + 1, 2) * Fraction(size, out) - Fraction(1, 2)
    if mode == "bilinear":
        s = max(s, Fraction(0))
        low = int(s)
        return [(low, float(1 - (s - low))), (min(low + 1, size - 1), float(s - low))]
    low = s.numerator // s.denominator
    t, a = float(s - low), -0.75
    weights = [
        a * (t**3 - 2 * t**2 + t),
        (a + 2) * t**3 - (a + 3) * t**2 + 1,
        -(a + 2) * t**3 + (2 * a + 3) * t**2 - a * t,
        a * (t**2 - t**3),
    ]
    return [(min(max(low + d, 0), size - 1), w) for d, w in zip((-1, 0, 1, 2), weights, strict=True)]


def antialias_taps(i, size, out, mode):
    """Pillow's recipe."""
    step = size / out
    stretch = max(step, 1.0)
    reach, centre = (1 if mode == "bilinear" else 2) * stretch, (i + 0.5) * step
    low, high = max(0, int(centre - reach + 0.5)), min(size, int(centre + reach + 0.5))

    def kernel(t):
        t = abs(t)
        if mode == "bilinear":
            return max(0.0, 1 - t)
        if t < 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0

    weights = [kernel((j - centre + 0.5) / stretch) for j in range(low, high)]
    return [(j, w / sum(weights)) for j, w in zip(range(low, high), weights, strict=True)]


def loops(x, size, **rule):
    """The result, and the same sum of absolute terms."""
    y, total = np.zeros((*x.shape[:2], *size)), np.zeros((*x.shape[:2], *size))
    rows = [axis_taps(i, x.shape[2], size[0], **rule) for i in range(size[0])]
    columns = [axis_taps(j, x.shape[3], size[1], **rule) for j in range(size[1])]
    for i, j in np.ndindex(size):
        for a, u in rows[i] if size[0] != x.shape[2] else [(i, 1.0)]:
            for b, v in columns[j] if size[1] != x.shape[3] else [(j, 1.0)]:
                y[:, :, i, j] += u * v * x[:, :, a, b]
                total[:, :, i, j] += abs(u * v * x[:, :, a, b])
    return y, total


def draw(shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_against_loops(rule, old, new, dtype):
    x = draw((2, 2, *old), dtype)
    want, total = loops(x.astype(np.float64), new, **RULES[rule])
    got = resize(x, size=new, **RULES[rule])
    assert got.dtype == dtype and got.shape == want.shape
    if dtype is np.float64:
        bound = EXACT * np.abs(want).max()
    else:  # per axis every term has its weight and product rounded and passes at most `taps` sums
        taps = [len(axis_taps(o // 2, s, o, **RULES[rule])) for s, o in zip(old, new, strict=True)]
        bound = (sum(taps) + 4) * EPS32 * total if rule != "nearest" else 0
    assert np.all(np.abs(got - want) <= bound), np.abs(got - want).max()


@pytest.mark.parametrize("rule", [r for r in RULES if r != "nearest"])
def test_float32_coordinates_are_not_rounded(rule):
    """On a wide axis the weights must come from float64 coordinates: a ramp of 0..1 stays exact to a few eps."""
    x = draw((1, 1, 1, 3000), np.float32)
    want, total = loops(x.astype(np.float64), (1, 1777), **RULES[rule])
    assert np.all(np.abs(resize(x, size=(1, 1777), **RULES[rule]) - want) <= 12 * EPS32 * total)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("old", "new"), [s for s in SIZES if min(s[1]) > 0] + [((40, 31), (13, 17)), ((17, 13), (31, 40))])
def test_antialias_is_pillows(mode, old, new):
    x = draw(old, np.float32, seed=3)
    kind = Image.Resampling.BILINEAR if mode == "bilinear" else Image.Resampling.BICUBIC
    want = np.asarray(Image.fromarray(x).resize(new[::-1], kind))
    got = resize(x[None, None].astype(np.float64), size=new, mode=mode, align_corners=False, antialias=True)[0, 0]
    # Pillow sums in float64 and rounds each of its two passes to float32; |weights| add up to less than 1.6 an axis
    assert np.abs(got - want).max() <= 1.6**2 * EPS32 * np.abs(x).max()


@pytest.mark.parametrize("rule", RULES)
def test_identity_is_bit_for_bit(rule):
    x = draw((2, 3, 5, 4))
    x[0, 0, 2, 2] = np.inf
    np.testing.assert_array_equal(resize(x, size=(5, 4), **RULES[rule]), x)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize(("old", "new"), [(7, 3), (7, 10), (3, 5), (5, 12), (12, 5)])
@pytest.mark.parametrize("rule", RULES)
def test_one_bad_pixel_touches_only_outputs_that_read_it(rule, old, new, bad):
    for pixel in range(old):
        x = draw((1, 1, old, 3), seed=pixel)
        clean = resize(x, size=(new, 3), **RULES[rule])
        x[0, 0, pixel, 1] = bad
        with np.errstate(invalid="ignore"):
            got = resize(x, size=(new, 3), **RULES[rule])[0, 0]
        reads = [any(p == pixel for p, _ in axis_taps(i, old, new, **RULES[rule])) for i in range(new)]
        uses = [any(p == pixel and abs(w) > 1e-9 for p, w in axis_taps(i, old, new, **RULES[rule])) for i in range(new)]
        np.testing.assert_array_equal(got[:, [0, 2]], clean[0, 0][:, [0, 2]])  # the untouched axis has one tap
        np.testing.assert_array_equal(got[:, 1][~np.array(reads)], clean[0, 0, :, 1][~np.array(reads)])
        assert not np.isfinite(got[:, 1][uses]).any()


def test_known_rows():
    """Worked by hand, so that the oracle has one too."""
    row = np.array([[[[0.0, 4, 8]]]])
    wide = {"size": (1, 6)}
    half = resize(row, **wide, mode="bilinear", align_corners=False)[0, 0, 0]
    np.testing.assert_allclose(half, [0, 1, 3, 5, 7, 8], rtol=0, atol=1e-14)
    corners = resize(row, **wide, mode="bilinear", align_corners=True)[0, 0, 0]
    np.testing.assert_allclose(corners, [0, 1.6, 3.2, 4.8, 6.4, 8], rtol=0, atol=1e-14)
    nearest = resize(row, size=(1, 5), mode="nearest", align_corners=False)[0, 0, 0]
    np.testing.assert_array_equal(nearest, [0, 0, 4, 4, 8])


@pytest.mark.parametrize(
    "rule",
    [
        {"mode": "nearest", "align_corners": True},
        {"mode": "nearest", "align_corners": False, "antialias": True},
        {"mode": "bilinear", "align_corners": True, "antialias": True},
        {"mode": "area", "align_corners": False},
    ],
)
def test_meaningless_rules_are_refused(rule):
    with pytest.raises(ConfigError, match="resize"):
        resize(draw((1, 1, 2, 2)), size=(3, 3), **rule)
