"""Sums, products and activations of maps, terms resized on the way, against the definition in float64."""

import numpy as np
import pytest
from helpers.kernels import Memory, run

from refvit.backends.numba.combine import LayoutError, combine
from refvit.backends.numba.layout import Place, dense
from refvit.backends.numba.program import Buffer
from refvit.graph.ir import Step
from refvit.graph.passes.fuse import fused

EPS = np.finfo(np.float32).eps


def nhwc(n, c, h, w, gap=0, before=0):
    """Channels last with `gap` values between pixels, from value `before` on."""
    ld = c + gap
    axes = tuple(((e, s),) if e > 1 else () for e, s in ((n, h * w * ld), (c, 1), (h, w * ld), (w, ld)))
    return Place(Buffer(before + n * h * w * ld), before, axes)


def check(steps, arrays, places, out, seed=0):
    memory = Memory()
    for x, place in zip(arrays, places, strict=True):
        memory.fill(place, x)
    instructions = combine(steps, places, out)
    run(instructions, memory, seed)
    golden = fused(*(x.astype(np.float64) for x in arrays), steps=steps)
    reference = fused(*arrays, steps=steps)
    got = memory.view(out)
    assert np.isfinite(got).all() and got.shape == golden.shape
    assert np.abs(got - golden).max() <= 4 * np.abs(reference - golden).max() + 4 * EPS * np.abs(golden).max()
    index = np.zeros(out.buffer.size, bool)
    sizes, steps_ = [e for a in out.axes for e, _ in a], [s for a in out.axes for _, s in a]
    np.lib.stride_tricks.as_strided(index[out.offset :], sizes, steps_)[...] = True
    assert np.isnan(memory.values(out.buffer)[~index]).all(), "written between the pixels"
    return instructions


def maps(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


RELU = Step("relu", (2,), {})


@pytest.mark.parametrize("c", [1, 3, 17, 18, 36, 64, 256])
@pytest.mark.parametrize("gap", [0, 5])
def test_add_and_relu(c, gap):
    shape = (2, c, 9, 7)
    steps = (Step("add", (0, 1), {}), RELU)
    made = check(steps, maps([shape] * 2), [nhwc(*shape), nhwc(*shape, gap, 3)], nhwc(*shape, gap, 1))
    assert len(made) == 1


@pytest.mark.parametrize("op", ["relu", "silu", "hardswish", "sigmoid"])
def test_plain_activation_with_gaps(op):
    shape = (2, 31, 5, 4)
    check((Step(op, (0,), {}),), maps([shape]), [nhwc(*shape, 1)], nhwc(*shape, 6))


def test_large_map_in_several_units():
    shape = (1, 64, 57, 56)
    made = check((Step("add", (0, 1), {}), RELU), maps([shape] * 2), [nhwc(*shape), nhwc(*shape)], nhwc(*shape))
    assert sum(i.units for i in made) >= 8


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_many_terms(count):
    shape = (2, 18, 6, 5)
    steps, last = [Step("add", (0, 1), {})], count
    for k in range(2, count):
        steps.append(Step("add", (last, k), {}))
        last += 1
    steps.append(Step("silu", (last,), {}))
    check(tuple(steps), maps([shape] * count), [nhwc(*shape) for _ in range(count)], nhwc(*shape))


def fuse_layer(n, c, h, w, factors, mode, **more):
    """HRNet's: the first map as it is, the others enlarged by their factors, relu."""
    steps, inputs = [], 1 + len(factors)
    chain = 0
    for k, _ in enumerate(factors):
        steps.append(Step("resize", (1 + k,), {"size": (h, w), "mode": mode, **more}))
        steps.append(Step("add", (chain, inputs + len(steps) - 1), {}))
        chain = inputs + len(steps) - 1
    steps.append(Step("relu", (chain,), {}))
    shapes = [(n, c, h, w), *((n, c, -(-h // f), -(-w // f)) for f in factors)]
    return tuple(steps), shapes


@pytest.mark.parametrize("c", [18, 32, 48, 1])
@pytest.mark.parametrize("factors", [(2,), (2, 4), (2, 4, 8)])
def test_fuse_layer_nearest(c, factors):
    steps, shapes = fuse_layer(2, c, 16, 24, factors, "nearest", align_corners=False)
    made = check(steps, maps(shapes), [nhwc(*s, 2 * k) for k, s in enumerate(shapes)], nhwc(*shapes[0]))
    assert len(made) == 1 or c == 1


@pytest.mark.parametrize(
    ("mode", "align_corners"),
    [("nearest", False), ("bilinear", False), ("bilinear", True), ("bicubic", False), ("bicubic", True)],
)
@pytest.mark.parametrize("size", [(16, 24), (13, 19), (1, 5)])
def test_fuse_layer_with_weights(mode, align_corners, size):
    steps, shapes = fuse_layer(2, 33, *size, (2, 3, 8), mode, align_corners=align_corners)
    check(steps, maps(shapes), [nhwc(*s, k) for k, s in enumerate(shapes)], nhwc(*shapes[0], 7, 2))


def test_sum_of_resized_terms_only():
    attrs = {"size": (7, 9), "mode": "bilinear", "align_corners": True}
    steps = (
        Step("resize", (0,), attrs),
        Step("resize", (1,), attrs),
        Step("add", (2, 3), {}),
        Step("gelu", (4,), {"approximate": "none"}),
    )
    shapes = [(2, 20, 3, 5), (2, 20, 7, 4)]
    made = check(steps, maps(shapes), [nhwc(*s) for s in shapes], nhwc(2, 20, 7, 9, 1))
    assert len(made) == 1


def test_squeeze_and_excite():
    check(
        (Step("multiply", (0, 1), {}),),
        maps([(2, 36, 6, 5), (2, 36, 1, 1)]),
        [nhwc(2, 36, 6, 5), nhwc(2, 36, 1, 1)],
        nhwc(2, 36, 6, 5),
    )


def test_one_value_a_pixel():
    for op in ("multiply", "add"):
        check(
            (Step(op, (0, 1), {}),),
            maps([(2, 36, 6, 5), (2, 1, 6, 5)]),
            [nhwc(2, 36, 6, 5), nhwc(2, 1, 6, 5)],
            nhwc(2, 36, 6, 5),
        )
    steps = (Step("add", (0, 1), {}), Step("add", (3, 2), {}), Step("relu", (4,), {}))
    check(
        steps,
        maps([(2, 9, 4, 4), (2, 1, 4, 4), (1, 1, 1, 1)]),
        [nhwc(2, 9, 4, 4), nhwc(2, 1, 4, 4), nhwc(1, 1, 1, 1)],
        nhwc(2, 9, 4, 4),
    )


def test_position_embedding_and_scale():
    arrays = maps([(3, 50, 192), (1, 50, 192)])
    places = [dense(Buffer(a.size), a.shape) for a in arrays]
    steps = (
        Step("add", (0, 1), {}),
        Step("scale", (2,), {"factor": 0.125}),
        Step("sigmoid", (3,), {}),
        Step("scale", (4,), {"factor": -3.0}),
    )
    check(steps, arrays, places, dense(Buffer(3 * 50 * 192), (3, 50, 192)))
    check(
        (Step("add", (0, 1), {}),),
        maps([(3, 50, 192), (192,)]),
        [places[0], dense(Buffer(192), (192,))],
        dense(Buffer(28800), (3, 50, 192)),
    )


def test_broadcast_term():
    steps = (Step("broadcast", (1,), {"shape": (2, 30, 4, 6)}), Step("add", (0, 2), {}), Step("relu", (3,), {}))
    check(steps, maps([(2, 30, 4, 6), (2, 30, 1, 1)]), [nhwc(2, 30, 4, 6), nhwc(2, 30, 1, 1)], nhwc(2, 30, 4, 6))
    check((Step("broadcast", (0,), {"shape": (2, 30, 4, 6)}),), maps([(2, 30, 1, 1)]), [nhwc(2, 30, 1, 1)], nhwc(2, 30, 4, 6))


def test_all_planar():
    """Any order of axes will do, as long as all agree on the contiguous one."""
    shape = (2, 5, 6, 7)
    check(
        (Step("add", (0, 1), {}),),
        maps([shape] * 2),
        [dense(Buffer(420), shape), dense(Buffer(420), shape)],
        dense(Buffer(420), shape),
    )


def test_mixed_layouts_are_refused():
    shape = (2, 5, 6, 7)
    with pytest.raises(LayoutError, match="not contiguous"):
        combine((Step("add", (0, 1), {}),), [nhwc(*shape), dense(Buffer(420), shape)], nhwc(*shape))


def test_a_diamond_is_refused():
    steps = (Step("relu", (0,), {}), Step("silu", (0,), {}), Step("add", (1, 2), {}))
    with pytest.raises(LayoutError, match="no chain"):
        combine(steps, [nhwc(1, 4, 2, 2)], nhwc(1, 4, 2, 2))
