"""Every pass on every architecture: the interpreter gives the same outputs before and after, whatever is an output."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

import refvit
from refvit import ops
from refvit.backends.numpy import compile_graph
from refvit.graph import trace
from refvit.graph.passes import PASSES, bind, constants, optimise
from refvit.models import architecture
from refvit.models.hrnet import HRNetConfig
from refvit.models.hrvit import HRViTConfig
from refvit.models.vit import ViTConfig

VIT = ViTConfig(image_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=7)
HRNET = HRNetConfig(width=4, layer1=(2, 8), modules=(1, 1, 1), blocks=1, num_classes=7)
SEG = replace(HRNET, head="segmentation", upsample="bilinear")
HRVIT = HRViTConfig((8, 16, 24, 32), 4, (2, 3, 2, 2), ((1, 1, 1, 1), (1, 1, 1, 1)), stem_width=8, head_width=12, num_classes=5)
XXS = architecture("mobilevit_xxs").config

# name -> a model of the architecture, its config, the input's shape; sides differ, and so that maps of odd sizes occur
SMALL = {
    "vit": ("vit_tiny_patch16_224", VIT, (2, 3, 32, 32)),
    "vit at another size": ("vit_tiny_patch16_224", VIT, (1, 3, 40, 24)),
    "deit distilled": ("deit_tiny_distilled_patch16_224", replace(VIT, distilled=True, gelu="tanh"), (2, 3, 32, 32)),
    "mobilevit": ("mobilevit_xxs", XXS, (2, 3, 64, 96)),
    "mobilevit at an odd size": ("mobilevit_xxs", XXS, (1, 3, 70, 50)),
    "mobilevit deeplabv3": ("mobilevit_xxs_deeplabv3", architecture("mobilevit_xxs_deeplabv3").config, (1, 3, 64, 80)),
    "mobilevit ssdlite": ("mobilevit_xxs_ssdlite", architecture("mobilevit_xxs_ssdlite").config, (1, 3, 64, 96)),
    "hrnet": ("hrnet_w18_small", HRNET, (2, 3, 64, 32)),
    "hrnet pose": ("hrnet_w32_pose", replace(HRNET, head="pose"), (1, 3, 64, 96)),
    "hrnet segmentation": ("hrnet_w18_small_seg", SEG, (2, 3, 72, 52)),
    "hrnet segmentation, corners": ("hrnet_w18_small_seg", replace(SEG, align_corners=True), (1, 3, 72, 52)),
    "hrnet segmentation, twice": ("hrnet_w18_small_seg", replace(SEG, upsample="bilinear_twice"), (1, 3, 72, 52)),
    "hrnet ocr": ("hrnet_w48_ocr", replace(SEG, head="ocr", align_corners=True), (1, 3, 64, 32)),
    "hrvit": ("hrvit_b1", HRVIT, (2, 3, 64, 96)),
    "hrvit segformer": ("hrvit_b1_segformer", replace(HRVIT, head="segformer"), (1, 3, 64, 96)),
    "hrvit upernet": ("hrvit_b1_upernet", replace(HRVIT, head="upernet"), (1, 3, 64, 32)),
}  # fmt: skip
every_model = pytest.mark.parametrize("model", SMALL)


def small(model, draw, *, expand=False):
    name, config, shape = SMALL[model]
    entry = architecture(name)
    return trace(entry.forward, shape, draw(entry.parameters(config)), expand=expand, config=config)


def changed(graphs):
    """Without repetitions of the graph before."""
    return [b for a, b in itertools.pairwise(graphs) if a.nodes != b.nodes]


@every_model
def test_every_pass_alone(model, draw, prove):
    before = small(model, draw)
    after = [graph for run in PASSES for graph in changed([before, run(before)])]
    assert len(after) >= 2
    prove(before, *after)


@every_model
def test_every_pass_in_order_on_expanded_graphs(model, draw, prove):
    graphs = list(itertools.accumulate(PASSES, lambda graph, run: run(graph), initial=small(model, draw, expand=True)))
    assert str(optimise(graphs[0])) == str(graphs[-1])
    prove(graphs[0], *changed(graphs))


@every_model
def test_values_asked_for_survive(model, draw, prove):
    """A third of all intermediates made outputs beside the graph's own: each is there afterwards under its name."""
    before = small(model, draw)
    rng = np.random.default_rng(len(before))
    kept = {name: value for name, value in before.names().items() if rng.random() < 1 / 3}
    before = before.with_outputs({**kept, **before.outputs})
    prove(before, optimise(before))


@pytest.mark.parametrize(
    ("fixture", "model"),
    [
        ("vit_tiny_patch16_224.timm", "vit_tiny_patch16_224"),
        ("deit_tiny_distilled_patch16_224", "deit_tiny_distilled_patch16_224"),
        ("mobilevit_xxs.timm", "mobilevit_xxs"),
        ("mobilevit_xxs_deeplabv3.cvnets", "mobilevit_xxs_deeplabv3"),
        ("mobilevit_xxs_ssdlite.cvnets", "mobilevit_xxs_ssdlite"),
        ("hrnet_w18_small.timm", "hrnet_w18_small"),
        ("hrnet_w18_small_seg", "hrnet_w18_small_seg"),
        ("hrvit_b1", "hrvit_b1"),
        ("hrvit_b1_segformer", "hrvit_b1_segformer"),
    ],
)
def test_optimised_and_bound_graphs_give_what_the_originals_give(golden, fixture, model):
    """Within the bound of the passes, although the stored values come from other implementations."""
    case = golden(fixture)
    graph = refvit.load(model, case.state(), dtype="float64", backend="numpy").graph(tuple(case.meta["input_shape"]))
    graph, params = bind(optimise(graph), graph.params)
    assert not constants(graph) and graph.params == params
    got = compile_graph(graph)(case.input().astype(np.float64))
    if model == "mobilevit_xxs_deeplabv3":
        got = {"output": ops.resize(got["output"], size=(256, 256), mode="bilinear", align_corners=False)}
    if model == "mobilevit_xxs_ssdlite":
        got = {"[0]": got["scores"], "[1]": got["boxes"]}
    assert case.check(got) < 1e-12


@pytest.mark.parametrize("model", ["deit distilled", "mobilevit", "hrnet segmentation", "hrvit segformer"])
def test_single_precision_is_as_good_as_before(model, draw):
    """The rule for every pass and backend: at most four times the reference's own error in float32, and four ulps."""

    def errors(graph, params, inputs):
        single = replace(graph, params={name: a.astype(np.float32) for name, a in params.items()})
        run, bound = compile_graph(single), compile_graph(bind(optimise(single), single.params)[0])
        yield max(error(run(x.astype(np.float32)), y) for x, y in inputs)
        yield max(error(bound(x.astype(np.float32)), y) for x, y in inputs)

    def error(got, want):
        assert all(a.dtype == np.float32 for a in got.values())
        return max(np.abs(got[name] - want[name]).max() / np.abs(want[name]).max() for name in want)

    graph = small(model, draw)
    params = {name: a.astype(np.float32).astype(np.float64) for name, a in graph.params.items()}
    golden = compile_graph(replace(graph, params=params))
    rng = np.random.default_rng(3)
    xs = [rng.standard_normal(graph.inputs["input"].shape).astype(np.float32).astype(np.float64) for _ in range(3)]
    reference, candidate = errors(graph, params, [(x, golden(x)) for x in xs])
    assert 0 < candidate <= 4 * reference + 4 * np.finfo(np.float32).eps
    assert reference < 1e-4
