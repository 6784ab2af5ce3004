"""Choosing a backend."""

import pytest

from refvit import backends
from refvit.errors import BackendError


def test_auto_is_a_backend_that_works():
    assert backends.get("auto").__name__.rpartition(".")[2] in backends.BACKENDS
    assert all(backends.reason(name) is None for name in ("numba", "numpy"))


@pytest.mark.parametrize("name", ["tpu", "", "NumPy", "../numpy"])
def test_unknown_backends_are_named_with_the_known(name):
    with pytest.raises(BackendError, match="numpy") as error:
        backends.get(name)
    assert repr(name) in str(error.value)
