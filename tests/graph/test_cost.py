"""Parameters, MACs and bytes of graphs small enough to count by hand, and of blocks against the whole."""

import numpy as np
import pytest

from refvit import ops
from refvit.graph import trace
from refvit.graph.cost import block_costs, block_of, node_cost, parameter_count, summarise, total_cost
from refvit.graph.trace import block
from refvit.model import architecture_graph


@block
def layer(x, p):
    return ops.relu(ops.conv2d(x, **p["conv"], stride=2, padding=1))


def net(x, p):
    y = layer(x, p["body"][0])
    return ops.linear(ops.mean(layer(y, p["body"][1]), axes=(2, 3)), **p["head"])


PARAMS = {
    "body.0.conv.weight": np.ones((4, 3, 3, 3)),
    "body.1.conv.weight": np.ones((5, 4, 3, 3)),
    "head.weight": np.ones((7, 5)),
    "head.bias": np.ones(7),
}


@pytest.fixture
def graph():
    return trace(net, (2, 3, 9, 8), PARAMS)


def test_nodes_by_hand(graph):
    conv = node_cost(graph, graph.nodes["body.0.conv"])
    assert conv.shape == (2, 4, 5, 4)
    assert conv.macs == 2 * 4 * 5 * 4 * 3 * 9
    assert conv.params == 4 * 3 * 9
    assert conv.bytes == 4 * (2 * 3 * 9 * 8 + 4 * 3 * 9 + 2 * 4 * 5 * 4)
    head = node_cost(graph, graph.nodes["head"])
    assert (head.macs, head.params) == (2 * 7 * 5, 7 * 5 + 7)
    assert node_cost(graph, graph.nodes["body.0.relu"]).macs == 0


def test_running_statistics_are_no_parameters():
    names = [("bn.weight", (8,)), ("bn.bias", (8,)), ("bn.running_mean", (8,)), ("bn.running_var", (8,))]
    assert parameter_count(names) == 16


def test_blocks_add_up_to_the_whole():
    graph = architecture_graph("mobilevit_xxs")
    whole = total_cost(graph)
    for depth in (1, 2, 3):
        blocks = block_costs(graph, depth)
        assert sum(b.macs for b in blocks) == whole.macs
        assert sum(b.params for b in blocks) == whole.params
        assert sum(b.bytes for b in blocks) == whole.bytes
        assert len({b.name for b in blocks}) == len(blocks)


def test_depth_opens_blocks():
    graph = architecture_graph("mobilevit_xxs")
    node = graph.nodes["stages.2.1.transformer.0.attn.qkv"]
    assert [block_of(node, d) for d in (1, 2, 3, 4, 9)] == [
        "stages.2.1",
        "stages.2.1.transformer.0",
        "stages.2.1.transformer.0.attn",
        "stages.2.1.transformer.0.attn.qkv",
        "stages.2.1.transformer.0.attn.qkv",
    ]


def test_macs_grow_with_the_batch_and_the_area():
    one, three = (total_cost(architecture_graph("mobilevit_xxs", (128, 128), n)).macs for n in (1, 3))
    assert three == 3 * one
    assert total_cost(architecture_graph("mobilevit_xxs", (256, 256))).macs > 4 * one  # attention grows faster than the area


def test_summary_text_and_values(graph):
    summary = summarise("net", graph)
    lines = str(summary).splitlines()
    assert lines[0] == "net, input 2x3x9x8"
    assert [line.split()[0] for line in lines[4:6]] == ["body.0", "body.1"]
    assert lines[-1].split()[0] == "total"
    assert lines[-1].split()[2] == str(summary.total.params) == str(108 + 180 + 42)
    data = summary.to_dict()
    assert data["total"]["macs"] == summary.total.macs
    assert [b["name"] for b in data["blocks"]] == ["body.0", "body.1", "mean", "head"]
