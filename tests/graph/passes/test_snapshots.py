"""Small optimised graphs as text, so that a change of what is fused, folded or moved is seen in review.

To renew the texts in tests/graph/snapshots after such a change, run this file as a program and read the difference:

    python tests/graph/passes/test_snapshots.py
    git diff tests/graph/snapshots
"""

from dataclasses import replace
from pathlib import Path

import pytest

from refvit.graph import trace
from refvit.graph.ir import ShapeOnly
from refvit.graph.passes import optimise
from refvit.models import hrnet, hrvit, hrvit_heads, mobilevit, vit
from refvit.models.hrnet import HRNetConfig
from refvit.models.vit import ViTConfig

FOLDER = Path(__file__).parent.parent / "snapshots"

HRNET = HRNetConfig(width=4, layer1=(1, 8), modules=(1, 1, 1), blocks=1)
XXS = replace(mobilevit.VARIANTS["mobilevit_xxs"], depths=(1, 1, 1))
VIT = ViTConfig(image_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=7)
CROSS = hrvit.VARIANTS["hrvit_b1"]
SEGFORMER = replace(CROSS, head="segformer", num_classes=7)


def branches(x, widths):
    """One map as several: of `widths` channels each, the next always of half the size."""
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]
    return [x[:, end - c : end, :: 2**i, :: 2**i] for i, (c, end) in enumerate(zip(widths, ends, strict=True))]


def basic_block(x, p):
    return hrnet.basic_block(x, p["stage2"][0]["branches"][0][0], eps=1e-5)


def fuse_layers(x, p):
    """A module of three branches, which begin with a basic block each."""
    ys = hrnet.module(branches(x, HRNET.widths[:3]), p["stage3"][0], config=HRNET, outputs=3)
    return {f"branch{i}": y for i, y in enumerate(ys)}


def inverted_residual(x, p):
    return mobilevit.inverted_residual(x, p["stages"][1][1], stride=1, eps=1e-5)


def mobilevit_block(x, p):
    return mobilevit.mobilevit_block(x, p["stages"][2][1], depth=1, config=XXS)


def hrvit_block(x, p):
    return hrvit.hrvit_block(x, p["features"][3]["branches"][0][0], size=(8, 8), dim_head=32, stripe=1, eps=1e-5)


def segformer_head(x, p):
    return hrvit_heads.segformer_head(branches(x, CROSS.widths), p["decode_head"], eps=1e-5)


# file -> function, shape of the input, parameters
CASES = {
    "hrnet_basic_block": (basic_block, (1, 4, 16, 16), hrnet.backbone_parameters(HRNET)),
    "hrnet_fuse_layers": (fuse_layers, (1, 28, 16, 16), hrnet.backbone_parameters(HRNET)),
    "mobilevit_inverted_residual": (inverted_residual, (1, 24, 16, 16), mobilevit.backbone_parameters(XXS)),
    "mobilevit_block": (mobilevit_block, (1, 48, 8, 8), mobilevit.backbone_parameters(XXS)),
    "vit": (lambda x, p: vit.vit(x, p, config=VIT), (1, 3, 32, 32), vit.parameters(VIT)),
    "hrvit_block": (hrvit_block, (1, 64, 32), hrvit.backbone_parameters(CROSS)),
    "hrvit_segformer_head": (segformer_head, (1, 480, 16, 16), hrvit_heads.segformer_parameters(SEGFORMER)),
}
CASES = {name: (net, shape, dict(parameters)) for name, (net, shape, parameters) in CASES.items()}


def text(name):
    net, shape, parameters = CASES[name]
    graph = trace(net, shape, {n: ShapeOnly(s) for n, s in parameters.items()})
    return f"{optimise(graph)}\n"


@pytest.mark.parametrize("name", CASES)
def test_graph_is_the_one_in_the_file(name):
    expected = (FOLDER / f"{name}.txt").read_text()
    assert text(name).splitlines() == expected.splitlines(), "see the head of this file for how to renew the texts"


def test_every_file_is_compared():
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.txt" for name in CASES}


if __name__ == "__main__":
    for case in CASES:
        (FOLDER / f"{case}.txt").write_text(text(case))
