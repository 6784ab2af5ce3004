"""Every model on this backend: outputs and blocks within the rule, any batch, any size, the same bits each time."""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.rule import hold_to_the_rule

import refvit
from refvit.backends import numba
from refvit.graph.trace import trace
from refvit.models import ARCHITECTURES, architecture

MODELS = [  # name, size, batch
    ("vit_tiny_patch16_224", (64, 48), 2),
    ("vit_small_patch32_224", (224, 224), 1),
    ("deit_tiny_distilled_patch16_224", (48, 48), 3),
    ("mobilevit_xxs", (64, 96), 2),
    ("mobilevit_s", (256, 256), 1),
    ("mobilevit_xs", (72, 56), 1),  # patches do not tile the last maps
    ("mobilevit_xxs_deeplabv3", (96, 64), 1),
    ("mobilevit_xxs_ssdlite", (160, 128), 2),
    ("hrnet_w18_small", (64, 96), 2),
    ("hrnet_w32", (64, 64), 1),
    ("hrnet_w18_small_seg", (64, 96), 1),
    ("hrnet_w48_ocr", (64, 32), 1),
    ("hrnet_w32_pose", (64, 96), 1),
    ("hrvit_b1", (64, 96), 2),
    ("hrvit_b2", (32, 32), 1),
    ("hrvit_b1_segformer", (96, 64), 1),
    ("hrvit_b1_upernet", (64, 64), 1),
]


def weights(name, config):
    """Random ones of a size that keeps the values about one."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    state = {}
    for leaf, shape in architecture(name).parameters(config):
        if leaf.endswith("running_var"):
            values = rng.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        elif leaf.endswith("weight"):
            values = rng.uniform(0.7, 1.3, shape)
        else:
            values = 0.1 * rng.standard_normal(shape)
        state[leaf] = values.astype(np.float32)
    return state


def build(name, shape, config=None):
    config = config or architecture(name).config
    return trace(architecture(name).forward, shape, weights(name, config), config=config)


def inputs(shape, count=3):
    return [np.random.default_rng(seed).standard_normal(shape).astype(np.float32) for seed in range(count)]


@pytest.mark.parametrize(("name", "size", "batch"), MODELS, ids=[m[0] for m in MODELS])
def test_outputs(name, size, batch):
    graph = build(name, (batch, 3, *size))
    hold_to_the_rule(graph, numba.compile_graph(graph), inputs((batch, 3, *size)))


@pytest.mark.parametrize(("name", "size", "batch"), MODELS, ids=[m[0] for m in MODELS])
def test_every_block(name, size, batch):
    """What each block returns, kept as an output, which also takes fusion apart."""
    graph = build(name, (batch, 3, *size))
    blocks = {path: value for path, value in graph.aliases.items() if value in graph.nodes}
    graph = graph.with_outputs({**graph.outputs, **blocks})
    hold_to_the_rule(graph, numba.compile_graph(graph), inputs((batch, 3, *size)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_name(name):
    config = architecture(name).config
    if getattr(config, "depth", 0) > 12:
        config = replace(config, depth=12)  # all layers are alike, and in float64 they would take 5 GB
    side = getattr(config, "patch_size", 32)
    shape = (1, 3, 2 * side, 3 * side)
    graph = build(name, shape, config)
    hold_to_the_rule(graph, numba.compile_graph(graph), inputs(shape))


FIXTURES = sorted(path.stem for path in (Path(__file__).parents[2] / "golden").glob("*.npz"))


@pytest.mark.parametrize("fixture", FIXTURES)
def test_checkpoints(golden, fixture):
    """What the original implementations computed these from, as `refvit.load` takes them; float64 is what they computed."""
    case, name = golden(fixture), fixture.partition(".")[0]
    model, reference = (refvit.load(name, case.state(), backend=backend) for backend in ("numba", "numpy"))
    shape = tuple(case.meta["input_shape"])

    def run(x):
        y = model(x)
        return y if isinstance(y, dict) else {"output": y}

    hold_to_the_rule(reference.graph(shape), run, [case.input(), *inputs(shape, 2)])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilevit_xxs", "hrnet_w18_small", "hrvit_b1"])
def test_threads_and_repeats_change_no_bit(name):
    shape = (2, 3, 64, 64)
    graph = build(name, shape)
    (x,) = inputs(shape, 1)
    first = numba.compile_graph(graph, 1)(x)["output"]
    for threads in (1, 2, 3, 7):
        run = numba.compile_graph(graph, threads)
        assert all((run(x)["output"] == first).all() for _ in range(3))


def test_a_batch_is_its_images():
    """Within rounding: other shapes may take other kernels."""
    shape = (3, 3, 64, 64)
    (x,) = inputs(shape, 1)
    for name in ("vit_tiny_patch16_224", "mobilevit_xxs", "hrnet_w18_small", "hrvit_b1"):
        whole = numba.compile_graph(build(name, shape))(x)["output"]
        one = numba.compile_graph(build(name, (1, *shape[1:])))
        alone = np.concatenate([one(x[i : i + 1])["output"] for i in range(3)])
        assert np.abs(whole - alone).max() <= 2e-5 * np.abs(whole).max()


def test_nan_is_not_hidden():
    """A NaN in the input reaches the answer instead of becoming a number on the way."""
    shape = (1, 3, 64, 64)
    (x,) = inputs(shape, 1)
    x[0, 1, 20, 30] = np.nan
    for name in ("vit_tiny_patch16_224", "mobilevit_xxs", "hrnet_w18_small", "hrvit_b1"):
        assert np.isnan(numba.compile_graph(build(name, shape))(x)["output"]).all()
