"""What every proof of a pass needs: values, and both graphs run on them."""

import numpy as np
import pytest

from refvit.backends.numpy import compile_graph

BOUND = 1e-12  # of the largest value, in float64


@pytest.fixture(scope="session")
def draw():
    """draw({name: shape}, seed) -> parameters in float64: none zero, variances positive, products of moderate size."""

    def parameters(shapes, seed=0):
        rng = np.random.default_rng(seed)
        params = {}
        for name, shape in dict(shapes).items():
            a = rng.standard_normal(shape)
            if name.endswith("running_var"):
                a = 0.5 + np.abs(a)
            elif len(shape) > 1:
                a /= np.sqrt(np.prod(shape[1:]))
            params[name] = a
        return params

    return parameters


@pytest.fixture(scope="session")
def prove():
    """prove(before, *after): every graph after has the outputs of the one before, by name, shape and value."""

    def run_all(before, *after, seed=1):
        (value,) = before.inputs.values()
        x = np.random.default_rng(seed).standard_normal(value.shape)
        want = compile_graph(before)(x)
        for name, y in want.items():
            assert np.ptp(y) > 0 or y.size == 1, f"{name} shows nothing"
        for graph in after:
            assert graph.verify() is graph
            got = compile_graph(graph)(x)
            assert list(got) == list(want)
            for name, y in want.items():
                assert got[name].shape == y.shape, name
                error = np.abs(got[name] - y).max() / np.abs(y).max()
                assert error <= BOUND, f"{name}: {error:.1e}"

    return run_all
