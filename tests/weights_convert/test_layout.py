"""The rules that layouts are made of, and that no checkpoint fits two layouts."""

from pathlib import Path

import numpy as np
import pytest

from refvit.errors import WeightsError
from weights_convert.convert import LAYOUTS
from weights_convert.layout import Layout, Rule

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.npz")), ids=lambda path: path.stem)
def test_a_checkpoint_matches_one_layout(golden, path):
    assert sum(layout.matches(golden(path.stem).state()) for layout in LAYOUTS) == 1


def toy(*rules, signature=("x",), prefixes=("",)):
    return Layout("toy", (), frozenset(signature), rules, lambda params: {}, lambda model, config: {}, prefixes=prefixes)


def test_rows_follow_the_order_of_the_pattern_not_of_the_state():
    layout = toy(Rule(r"a\.(?P<rows>second|first)\.(w)", r"b.\2"))
    first, second = np.arange(6.0).reshape(2, 3), np.arange(6.0, 12).reshape(2, 3)
    for state in ({"a.first.w": first, "a.second.w": second}, {"a.second.w": second, "a.first.w": first}):
        assert layout.rename(state)["b.w"].tolist() == [[6, 7, 8], [9, 10, 11], [0, 1, 2], [3, 4, 5]]


def test_rows_that_collide():
    layout = toy(Rule(r"(m\.)?(?P<rows>q|k)", "qk"))
    one = np.zeros(2)
    with pytest.raises(WeightsError, match=r"'q' and 'm\.q' both become 'qk'"):
        layout.rename({"q": one, "k": one, "m.q": one, "m.k": one})


def test_a_star_splits_along_the_first_axis_before_the_change():
    layout = toy(Rule(r"a/(?P<rows>q|k)", "blocks.*.qk", np.transpose))
    q = np.arange(12.0).reshape(2, 2, 3)
    out = layout.rename({"a/q": q, "a/k": q + 100})
    assert list(out) == ["blocks.0.qk", "blocks.1.qk"]
    assert out["blocks.1.qk"].tolist() == [[6, 9], [7, 10], [8, 11], [106, 109], [107, 110], [108, 111]]
    for wrong in (np.zeros(()), np.zeros((0, 3)), np.zeros((10**12, 0))):
        with pytest.raises(WeightsError, match=r"a/q and a/k of shape .*: a first axis of layers expected"):
            layout.rename({"a/q": wrong, "a/k": wrong})


def test_a_prefix_is_that_of_all_keys():
    layout = toy(Rule("x|y", r"\g<0>"), prefixes=("", "p/", "p/q/"))
    one = np.zeros(1)
    for prefix in ("", "p/", "p/q/"):
        assert layout.matches({prefix + "x": one})
        assert layout.rename({prefix + "x": one, prefix + "y": one}) == {"x": one, "y": one}
    assert not layout.matches({"q/x": one})
    for state in ({"p/x": one, "y": one}, {"x": one, "p/y": one}, {"p/x": one, "p/q/x": one}):
        with pytest.raises(WeightsError, match="belongs to no tensor"):
            layout.rename(state)
