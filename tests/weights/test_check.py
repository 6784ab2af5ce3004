"""Which tensors are missing, unexpected or of another shape."""

import numpy as np
import pytest

from refvit.errors import WeightsError
from refvit.weights.check import SHOWN, differences, require

EXPECTED = {"a": (2, 3), "b": (4,), "c": ()}


def given(**shapes):
    return {name: np.zeros(shape) for name, shape in shapes.items()}


def test_nothing_differs():
    same = given(c=(), b=(4,), a=(2, 3))  # the order does not matter
    assert differences(EXPECTED.items(), same) == []
    require("file", EXPECTED.items(), same)
    assert differences([], {}) == []


def test_each_kind_of_difference_has_its_line():
    lines = differences(EXPECTED.items(), given(a=(3, 2), c=(1,), d=(7,)))
    assert lines == ["missing b (4,)", "unexpected d (7,)", "a is (3, 2), (2, 3) expected", "c is (1,), () expected"]


def test_error_says_what_and_lists_all_of_a_few():
    with pytest.raises(WeightsError) as caught:
        require("file.safetensors", EXPECTED.items(), given(a=(2, 3)))
    assert str(caught.value) == "file.safetensors: missing b (4,); missing c ()"


def test_a_long_list_is_cut_and_counted():
    expected = {f"t{i:02d}": (1,) for i in range(SHOWN + 5)}
    with pytest.raises(WeightsError) as caught:
        require("file", expected.items(), {})
    text = str(caught.value)
    assert text.count("missing") == SHOWN
    assert text.endswith("; and 5 more")
    with pytest.raises(WeightsError) as caught:
        require("file", list(expected.items())[:SHOWN], {})
    assert "more" not in str(caught.value)
