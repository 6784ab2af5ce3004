"""Mistakes about activations: another function of the same family, none, one too many."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bench.bugs.bug import Bug, Done, magnitude
from bench.bugs.sites import Torch

OPS = ("gelu", "silu", "relu", "hardswish")
SLOPES = (0.01, 0.1, 0.2)  # of leaky ReLUs in use


class Quick(nn.Module):
    """x sigmoid(1.702 x)"""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


def computed(*ops: str) -> Callable[[Torch], list[str]]:
    """The values that these ops give and this candidate computes."""
    return lambda c: [node.name for node in c.nodes(*ops)]


def put(c: Torch, site: str, module: nn.Module) -> None:
    """Another module in place of the activation's; where it has none, another call."""
    path = c.leaf(site, nn.GELU, nn.SiLU, nn.ReLU, nn.Hardswish)
    if path is None:
        c.edit(site, lambda function, args, kwargs: module(args[0]))
    else:
        c.replace(path, module)


def instead(name: str, words: str, op: str, module: Callable[[], nn.Module], *, within: str = "") -> Bug:
    """Another activation in place of `op`'s, at values whose names hold `within`."""

    def inject(c: Torch, site: str, rng: np.random.Generator) -> Done:
        put(c, site, module())
        return Done(f"{type(module()).__name__} in place of {op}", (site,))

    return Bug(name, words, lambda c: [site for site in computed(op)(c) if within in site], inject)


def _leaky(c: Torch, site: str, rng: np.random.Generator) -> Done:
    slope = magnitude(rng, SLOPES, 0.005, 0.4)
    put(c, site, nn.LeakyReLU(slope))
    return Done(f"LeakyReLU of slope {slope:.4g}", (site,))


def _missing(c: Torch, site: str, rng: np.random.Generator) -> Done:
    put(c, site, nn.Identity())
    return Done("no activation", (site,))


def _bare(c: Torch) -> list[str]:
    """Batch norms that no activation follows, and 1x1 convolutions followed by neither norm nor activation."""
    users = c.graph.users()
    acts = ("relu", "silu", "batch_norm")
    return [
        node.name
        for node in c.nodes("batch_norm", "conv2d")
        if node.name not in c.graph.outputs.values()
        and all(c.graph.nodes[u].op not in acts for u in users.get(node.name, []))
        and (node.op == "batch_norm" or node.name.endswith("conv_1x1"))
    ]


def _extra(c: Torch, site: str, rng: np.random.Generator) -> Done:
    act = F.silu if any(node.op == "silu" for node in c.graph) else F.relu
    c.edit(site, lambda function, args, kwargs: act(function(*args, **kwargs)))
    return Done(f"{act.__name__} after it", (site,))


BUGS = (
    instead("gelu-tanh", "GELU is approximated by tanh", "gelu", lambda: nn.GELU("tanh")),
    instead("gelu-quick", "GELU is approximated by x sigmoid(1.702 x)", "gelu", Quick),
    instead("gelu-as-hardswish", "Hardswish in the shortcut, as the paper has it", "gelu", nn.Hardswish, within="des."),
    instead("gelu-as-relu", "ReLU in place of GELU", "gelu", nn.ReLU),
    instead("silu-as-hardswish", "Hardswish in place of SiLU", "silu", nn.Hardswish),
    instead("silu-as-gelu", "GELU in place of SiLU", "silu", nn.GELU),
    instead("silu-as-relu", "ReLU in place of SiLU", "silu", nn.ReLU),
    instead("hardswish-as-silu", "SiLU in place of Hardswish", "hardswish", nn.SiLU),
    instead("relu-as-relu6", "ReLU6 in place of ReLU", "relu", nn.ReLU6),
    Bug("relu-as-leaky-relu", "leaky ReLU in place of ReLU", computed("relu"), _leaky),
    Bug("activation-missing", "an activation is left out", computed(*OPS), _missing),
    Bug("activation-extra", "an activation where there is none", _bare, _extra),
)
