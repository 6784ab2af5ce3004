"""State dicts and values that do not fit, for the tests that damage the structure of weights files."""

import string

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = pytest.mark.parametrize("examples", [60, pytest.param(2000, marks=pytest.mark.slow)])
DTYPES = ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")

INTEGERS = st.integers(-2, 70) | st.sampled_from(
    [s * 2**n + d for n in (16, 31, 32, 34, 60, 62, 63, 64, 70) for d in (-1, 0, 1) for s in (1, -1)]
)
WORDS = st.sampled_from(["", "\x1b[31m", "a\nb", "../a", "/a", "C:a", "a" * 1001, "é", "\u202e", "0", "a.weight", "F32", "<f4"])
ODD = INTEGERS | WORDS | st.sampled_from([None, True, False, 1.0, 0.5, -0.0, [], [1], {}, {"a": 1}, [[0, 1]]])


def try_all(examples, strategy, check):
    """check(value) for that many values of the strategy, the same ones every time; the share of them for which it is true."""
    found = []
    options = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    options(given(strategy)(lambda value: found.append(bool(check(value)))))()
    return sum(found) / len(found)


@st.composite
def arrays(draw, dtypes=DTYPES):
    """Any bits; booleans are 0 or 1."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    count = int(np.prod(shape, dtype=int))
    raw = np.frombuffer(draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize)), np.uint8)
    return (raw & 1 if dtype.kind == "b" else raw).view(dtype).reshape(shape)


def states(least=1, dtypes=DTYPES):
    names = st.text(string.ascii_lowercase + "._/é0", min_size=1, max_size=12).filter(
        lambda n: not {"", ".", ".."} & {*n.split("/")}
    )
    return st.dictionaries(names, arrays(dtypes), min_size=least, max_size=4)


def same(found, state):
    """The same names, dtypes, shapes and bits."""
    assert found is not None and found.keys() == state.keys()
    for name, a in state.items():
        b = found[name]
        assert (b.dtype, b.shape, b.tobytes()) == (a.dtype, a.shape, a.tobytes()), name
