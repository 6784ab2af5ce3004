"""Where the time goes: the rows of a profile, its table and its picture."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import refvit
from refvit.errors import ConfigError, RefvitError, UnsupportedError
from refvit.graph.cost import total_cost
from refvit.graph.profile import Profile, Step

STEPS = (
    Step("stem", "conv.dense", 2e-4, 30_000_000, 4_000_000),
    Step("blocks.0.<attn>", "attention.attention", 1e-3, 100_000_000, 2_000_000),
    Step("norm", "conv.dense", 0.0, 0, 1000),
)
PROFILE = Profile("vit & co", (1, 3, 32, 32), 2, 1.4e-3, STEPS)


@pytest.fixture(scope="module")
def model():
    return refvit.load("mobilevit_xxs.cifar10", backend="numba", threads=2)


def test_a_model(model):
    x = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    found = model.profile(x, runs=3)
    assert found.input_shape == x.shape and found.threads == 2
    assert found.seconds > 0 and all(step.seconds >= 0 for step in found.steps)
    assert sum(step.seconds for step in found.steps) > 0
    # folding and commuting save some of the multiplications, nothing adds any
    published = total_cost(model.graph(x.shape)).macs
    assert 0.8 * published <= sum(step.macs for step in found.steps) <= published
    assert {step.kernel for step in found.steps} >= {"conv.dense", "attention.attention", "rows.layer_norm"}


def test_what_cannot_be_profiled(model):
    x = np.zeros((1, 3, 64, 64), np.float32)
    with pytest.raises(UnsupportedError, match="backend='numba'"):
        refvit.load("mobilevit_xxs.cifar10", backend="numpy").profile(x)
    with pytest.raises(ConfigError, match="runs"):
        model.profile(x, runs=0)
    with pytest.raises(RefvitError, match="3, h, w"):
        model.profile(x[0])


def test_table():
    lines = str(PROFILE).splitlines()
    assert "2 threads" in lines[0] and "1.400 ms" in lines[0]
    assert [line.split()[0] for line in lines[3:]] == ["blocks.0.<attn>", "stem", "norm"]  # the slowest first
    assert lines[4].split() == ["stem", "conv.dense", "200.0", "16.7", "30.00", "300.0", "4.00"]


def test_by_kernel_and_numbers():
    assert PROFILE.by_kernel() == {"attention.attention": 1e-3, "conv.dense": 2e-4}
    found = json.loads(json.dumps(PROFILE.to_dict()))
    assert found["steps"][0]["macs"] == 30_000_000


def test_picture(tmp_path):
    PROFILE.save(tmp_path / "p.svg")
    texts = [e.text for e in ET.parse(tmp_path / "p.svg").iter() if e.text]
    assert any("vit & co" in text for text in texts) and any("blocks.0.<attn>" in text for text in texts)
    with pytest.raises(ConfigError, match=r"\.svg"):
        PROFILE.save(tmp_path / "p.gif")
    assert not (tmp_path / "p.gif").exists()
