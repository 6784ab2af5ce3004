"""HRViT's shortcut as a kernel against its definition in float64."""

import numpy as np
import pytest
from helpers.kernels import Memory, run

from refvit.backends.numba.layout import Place
from refvit.backends.numba.program import Buffer
from refvit.backends.numba.shortcut import shortcut
from refvit.models.hrvit import diversity_shortcut, fold_width
from refvit.weights.params import Params

EPS = np.finfo(np.float32).eps


def tokens(n, l, c, gap=0):
    ld = c + gap
    axes = [(n, l * ld + gap), (l, ld), (c, 1)]
    return Place(Buffer(gap + n * (l * ld + gap)), gap, tuple(((size, step),) if size > 1 else () for size, step in axes))


def compare(n, l, c, *, gap=0, terms=0, seed=0):
    rng = np.random.default_rng(seed)
    p = fold_width(c)
    k = c // p
    x, *added = (rng.standard_normal((n, l, c), np.float32) for _ in range(1 + terms))
    flat = {
        "proj_right.weight": rng.standard_normal((p, p), np.float32) / np.float32(p**0.5),
        "proj_right.bias": rng.standard_normal(p, np.float32),
        "proj_left.weight": rng.standard_normal((k, k), np.float32) / np.float32(k**0.5),
        "proj_left.bias": rng.standard_normal(k, np.float32),
    }

    def reference(dtype):
        y = diversity_shortcut(x.astype(dtype), Params({name: a.astype(dtype) for name, a in flat.items()}))
        for term in added:
            y = y + term.astype(dtype)
        return y

    golden, low = reference(np.float64), reference(np.float32)
    memory, source, out = Memory(), tokens(n, l, c, gap), tokens(n, l, c, 2 * gap)
    memory.fill(source, x)
    places = [tokens(n, l, c, 3 * gap) for _ in added]
    for place, term in zip(places, added, strict=True):
        memory.fill(place, term)
    run(shortcut(source, *flat.values(), out, places), memory, seed)
    got = memory.view(out)
    assert np.abs(got - golden).max() <= 4 * np.abs(low - golden).max() + 4 * EPS * np.abs(golden).max()
    copy = Memory()
    copy.fill(out, got)
    assert np.isnan(memory.values(out.buffer)[np.isnan(copy.values(out.buffer))]).all()


@pytest.mark.parametrize("c", [32, 64, 128, 256, 512, 48, 96, 240, 384, 24, 16, 12, 4, 2, 1, 1024, 2048])
def test_widths(c):
    compare(1, 21, c, seed=c)
    compare(2, 50, c, gap=7, terms=2, seed=c + 1)


@pytest.mark.parametrize("l", [1, 2, 7, 8, 9, 15, 16, 49])
def test_numbers_of_tokens(l):
    compare(2, l, 48, gap=3, terms=1, seed=l)
    compare(1, l, 240, terms=3, seed=l)


def test_a_large_map_is_cut_into_runs():
    compare(1, 3137, 32)
    compare(2, 785, 64, gap=1, terms=1)


def test_a_bad_token_stays_alone():
    rng = np.random.default_rng(4)
    place, out, memory = tokens(1, 30, 64), tokens(1, 30, 64), Memory()
    x = rng.standard_normal((1, 30, 64), np.float32)
    x[0, 11, 5] = np.nan
    memory.fill(place, x)
    w, b = rng.standard_normal((8, 8), np.float32), np.zeros(8, np.float32)
    run(shortcut(place, w, b, w, b, out), memory)
    bad = np.isnan(memory.view(out)).any(axis=(0, 2))
    assert bad[11] and bad.sum() == 1


def test_tokens_in_another_order_of_memory():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((1, 4 * 6, 32), np.float32)
    p, k = rng.standard_normal((8, 8), np.float32), rng.standard_normal((4, 4), np.float32)
    b, l = rng.standard_normal(8, np.float32), rng.standard_normal(4, np.float32)
    results = []
    for axis in (((24, 32),), ((4, 32), (6, 128))):  # row by row, column by column
        place, out = (Place(Buffer(24 * 32), 0, ((), axis, ((32, 1),))) for _ in range(2))
        memory = Memory()
        memory.fill(place, x)
        run(shortcut(place, p, b, k, l, out), memory)
        results.append(np.array(memory.view(out)))
    assert np.isfinite(results[0]).all() and (results[0] == results[1]).all()


def test_shapes_that_do_not_fit_are_refused():
    place = tokens(1, 4, 64)
    with pytest.raises(ValueError, match="tokens of 64 values"):
        shortcut(place, np.ones((8, 8)), np.ones(8), np.ones((4, 4)), np.ones(4), place)
