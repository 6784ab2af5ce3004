"""What the tests of single blocks share: comparison with loops in float64 and float32, and random numbers that both hold."""

import numpy as np

from refvit.weights.params import Params

EXACT = 1e-12  # of max|expected|: what float64 may differ from the loops
EPS32 = np.finfo(np.float32).eps
EPS = 1e-3  # of the norms here: large, so that another one shows


def check(block, loops, x, flat):
    """block(x, p) is loops(x, p), an array or a list of them: in float64 to EXACT, in float32 to what that arithmetic loses.

    The loss is measured: the same loops run in float32. Another order of the same sums may lose four times as much.
    """

    def run(function, dtype):
        xs = [a.astype(dtype) for a in x] if isinstance(x, list) else x.astype(dtype)
        ys = function(xs, Params({name: a.astype(dtype) for name, a in flat.items()}))
        assert {y.dtype for y in ys} == {np.dtype(dtype)}
        return ys if isinstance(ys, list) else [ys]

    results = run(block, "f8"), run(block, "f4"), run(loops, "f8"), run(loops, "f4")
    for got, low, want, own in zip(*results, strict=True):
        assert got.shape == low.shape == want.shape
        largest, lost = np.abs(want).max(), np.abs(own - want).max()
        assert np.abs(got - want).max() <= EXACT * largest
        assert np.abs(low - want).max() <= 4 * lost + 4 * EPS32 * largest


def normal(*shape, seed=1):
    """Random float64 that float32 holds exactly, as `draw` returns."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(np.float64)


def draw(shapes, seed=0):
    """Random parameters that keep the size of what goes through them."""
    rng, flat = np.random.default_rng(seed), {}
    for name, shape in shapes:
        a = rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5
        flat[name] = (0.25 + a * a if name.endswith("running_var") else a).astype(np.float32).astype(np.float64)
    return flat
