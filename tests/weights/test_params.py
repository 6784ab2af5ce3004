"""The nested view of a flat table of parameters."""

import pytest

from refvit.errors import WeightsError
from refvit.weights.params import Params

FLAT = {"stem.weight": 1, "stem.bias": 2, "layer.0.fc.weight": 3, "layer.1.fc.weight": 4, "scale": 5}


def test_walks_along_the_dots():
    p = Params(FLAT)
    assert p["stem"]["weight"] == 1
    assert p["layer"]["1"]["fc"]["weight"] == 4
    assert p["layer"][0]["fc"]["weight"] == 3
    assert p["scale"] == 5
    assert list(p) == ["stem", "layer", "scale"]
    assert len(p) == 3
    assert "stem" in p
    assert "weight" not in p
    assert 1 in p["layer"]
    assert 2 not in p["layer"]


def test_path_is_the_module_path():
    p = Params(FLAT)
    assert p.path == ""
    assert p["layer"]["0"]["fc"].path == "layer.0.fc"
    assert "layer.0" in repr(p["layer"][0])


def test_two_stars_hand_over_exactly_the_tensors_of_a_layer():
    def layer(*, weight, bias):
        return weight, bias

    p = Params(FLAT)
    assert layer(**p["stem"]) == (1, 2)
    with pytest.raises(TypeError, match="bias"):
        layer(**p["layer"]["0"]["fc"])
    with pytest.raises(TypeError, match="surplus"):
        layer(**Params({**FLAT, "stem.surplus": 0})["stem"])


def test_what_is_missing_is_named_in_full_with_what_is_there():
    with pytest.raises(WeightsError, match=r"'layer\.0\.fc\.bias'; here are weight"):
        Params(FLAT)["layer"]["0"]["fc"]["bias"]
    with pytest.raises(WeightsError, match="'head'; here are stem, layer, scale"):
        Params(FLAT)["head"]
    with pytest.raises(WeightsError, match="'a'; here are none"):
        Params({})["a"]


def test_a_view_cannot_be_written_to():
    with pytest.raises(TypeError):
        Params(FLAT)["scale"] = 6


@pytest.mark.parametrize("flat", [{"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}, {"a.b": 1, "a.b.c.d": 2}])
def test_a_name_that_is_tensor_and_module_at_once(flat):
    with pytest.raises(WeightsError, match="at once"):
        Params(flat)
