"""Resizing against the definition in float64."""

import numpy as np
import pytest
from helpers.kernels import Memory, run

from refvit.backends.numba.copy import LayoutError
from refvit.backends.numba.layout import Place, dense
from refvit.backends.numba.program import Buffer
from refvit.backends.numba.resize import resize
from refvit.ops import resize as definition

EPS = np.finfo(np.float32).eps
RULES = [("nearest", False, False), ("bilinear", False, False), ("bilinear", True, False), ("bilinear", False, True),
         ("bicubic", False, False), ("bicubic", True, False), ("bicubic", False, True)]  # fmt: skip


def nhwc(n, c, h, w, gap=0):
    ld = c + gap
    axes = tuple(((e, s),) if e > 1 else () for e, s in ((n, h * w * ld), (c, 1), (h, w * ld), (w, ld)))
    return Place(Buffer(n * h * w * ld), 0, axes)


def check(shape, size, rule, gaps=(0, 0)):
    mode, align_corners, antialias = rule
    attrs = {"size": size, "mode": mode, "align_corners": align_corners, "antialias": antialias}
    x = np.random.default_rng(sum(shape) + sum(size)).standard_normal(shape).astype(np.float32)
    golden, reference = definition(x.astype(np.float64), **attrs), definition(x, **attrs)
    place, out = nhwc(*shape, gaps[0]), nhwc(*golden.shape, gaps[1])
    memory = Memory()
    memory.fill(place, x)
    made = resize(place, out, **attrs)
    run(made, memory)
    got = memory.view(out)
    assert np.isfinite(got).all()
    assert np.abs(got - golden).max() <= 4 * np.abs(reference - golden).max() + 4 * EPS * np.abs(golden).max()
    if gaps[1]:
        assert np.isnan(memory.values(out.buffer).reshape(-1, shape[1] + gaps[1])[:, shape[1] :]).all()
    return made


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [(14, 20), (7, 10), (5, 23), (13, 4), (3, 3), (7, 25), (9, 10), (1, 1)])
def test_rules(rule, size):
    check((2, 19, 7, 10), size, rule, (2, 3))


@pytest.mark.parametrize("c", [1, 16, 21, 150, 256, 720])
def test_channels(c):
    check((1, c, 6, 5), (11, 13), RULES[1])
    check((2, c, 1, 1), (3, 4), RULES[1])


def test_blocks_of_channels():
    """A row of x that exceeds the strip in scratch, dense and not."""
    made = check((1, 300, 2, 150), (5, 301), RULES[1])
    assert made[0].scratch < 4 * 300 * 150
    check((1, 5, 2, 9000), (3, 8999), RULES[1], (1, 2))


def test_nearest_is_exact():
    x = np.random.default_rng(3).standard_normal((1, 7, 5, 6)).astype(np.float32)
    x[0, 3, 2, 2] = np.inf
    place, out = nhwc(*x.shape), nhwc(1, 7, 12, 17)
    memory = Memory()
    memory.fill(place, x)
    run(resize(place, out, size=(12, 17), mode="nearest", align_corners=False), memory)
    np.testing.assert_array_equal(memory.view(out), definition(x, size=(12, 17), mode="nearest", align_corners=False))


def test_planar_maps_are_refused():
    with pytest.raises(LayoutError, match="contiguous channels"):
        resize(dense(Buffer(60), (1, 5, 3, 4)), nhwc(1, 5, 6, 8), size=(6, 8), mode="nearest", align_corners=False)
