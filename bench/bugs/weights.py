"""Mistakes about weights: layouts, order, sides, what was never loaded; and about what a convolution does with its borders."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bench.bugs.activations import computed
from bench.bugs.bug import Bug, Done
from bench.bugs.sites import Torch


def owned(c: Torch, *ops: str) -> list[tuple[str, nn.Module]]:
    """Values and the modules that own their weights."""
    found = ((node.name, c.owner(node.name)) for node in c.nodes(*ops))
    return [(name, module) for name, module in found if module is not None]


def _weight(c: Torch, site: str) -> torch.Tensor:
    module = c.owner(site)
    assert module is not None
    return module.weight


def _square(c: Torch) -> list[str]:
    """Linear layers and 1x1 convolutions with as many outputs as inputs."""
    layers = owned(c, "linear", "conv2d")
    return [name for name, m in layers if m.weight.shape[0] == m.weight.shape[1] > 1 and m.weight[0, 0].numel() == 1]


def _transposed(c: Torch, site: str, rng: np.random.Generator) -> Done:
    weight = _weight(c, site)
    weight.copy_(weight.transpose(0, 1).clone())
    return Done("inputs and outputs exchanged", (site,))


def _kernels(c: Torch) -> list[str]:
    return [name for name, m in owned(c, "conv2d") if m.weight.shape[2] > 1]


def _flipped(c: Torch, site: str, rng: np.random.Generator) -> Done:
    weight = _weight(c, site)
    weight.copy_(weight.flip(2, 3))
    return Done("kernel turned by 180 degrees", (site,))


def _turned(c: Torch, site: str, rng: np.random.Generator) -> Done:
    weight = _weight(c, site)
    weight.copy_(weight.transpose(2, 3).clone())
    return Done("rows and columns of the kernel exchanged", (site,))


def _full(c: Torch) -> list[str]:
    """Convolutions of a window and of several channels."""
    return [name for name, m in owned(c, "conv2d") if m.weight.shape[2] > 1 and m.weight.shape[1] > 1]


def _channels_last(c: Torch, site: str, rng: np.random.Generator) -> Done:
    """The memory of a kernel in one order, read in another."""
    weight = _weight(c, site)
    if rng.random() < 0.5:  # written (k, r, s, c), read (k, c, r, s)
        weight.copy_(weight.permute(0, 2, 3, 1).reshape(weight.shape).clone())
        return Done("(k, r, s, c) read as (k, c, r, s)", (site,))
    weight.copy_(weight.permute(2, 3, 1, 0).reshape(weight.shape).clone())
    return Done("(r, s, c, k) read as (k, c, r, s)", (site,))


def _biased(c: Torch) -> list[str]:
    return [name for name, m in owned(c, "linear", "conv2d") if getattr(m, "bias", None) is not None]


def _no_bias(c: Torch, site: str, rng: np.random.Generator) -> Done:
    module = c.owner(site)
    assert module is not None
    module.bias.zero_()
    return Done("no bias", (site,))


def _fresh(c: Torch, site: str, rng: np.random.Generator) -> Done:
    module = c.owner(site)
    assert module is not None
    torch.manual_seed(int(rng.integers(2**31)))
    module.reset_parameters()
    return Done(f"{type(module).__name__} as initialised", (site,))


def _neighbour(c: Torch, site: str, rng: np.random.Generator) -> Done | None:
    """The weights of a layer of the same shape, such as comes from counting layers from 1."""
    module, op = c.owner(site), c.graph.nodes[site].op
    assert module is not None
    shapes = {name: t.shape for name, t in module.state_dict().items()}
    others = [(n, m) for n, m in owned(c, op) if {k: t.shape for k, t in m.state_dict().items()} == shapes and m is not module]
    if not others:
        return None
    name, other = others[rng.integers(len(others))]
    module.load_state_dict({k: t.clone() for k, t in other.state_dict().items()})
    return Done(f"weights of {name}", (site,))


def _strided(c: Torch) -> list[str]:
    return [
        node.name
        for node in c.nodes("conv2d")
        if node.attrs["padding"] == 1 and node.attrs["stride"] == 2 and _even(c, str(node.inputs[0]))
    ]


def _even(c: Torch, value: str) -> bool:
    return all(side % 2 == 0 for side in c.graph.value(value).shape[2:])


def _same(c: Torch, site: str, rng: np.random.Generator) -> Done:
    def change(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        x, weight, bias, stride, _, dilation, groups = args
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride, 0, dilation, groups)

    c.edit(site, change)
    return Done("padded at the right and below only", (site,))


def _dilated(c: Torch) -> list[str]:
    """Convolutions of DeepLabv3's pyramid, and those at the head of the last MobileViT block."""
    return [
        node.name
        for node in c.nodes("conv2d")
        if node.attrs["dilation"] != 1
        or ("seg_head.classifier.classifier.block.conv" in c.graph.nodes and "4.1.conv_kxk" in node.name)
    ]


def _dilation(c: Torch, site: str, rng: np.random.Generator) -> Done:
    right = c.graph.nodes[site].attrs["dilation"]
    wrong = 2 if right == 1 else int(rng.choice([d for d in (1, 2, 3, 6, 9) if d != right]))

    def change(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        x, weight, bias, stride, _, _, groups = args
        return F.conv2d(x, weight, bias, stride, wrong, wrong, groups)

    c.edit(site, change)
    return Done(f"dilation {wrong} where {right} is right", (site,))


def _first(c: Torch) -> list[str]:
    return [node.name for node in c.nodes("conv2d") if node.inputs[0] in c.graph.inputs]


def _bgr(c: Torch, site: str, rng: np.random.Generator) -> Done:
    if rng.random() < 0.5:
        weight = _weight(c, site)
        weight.copy_(weight.flip(1))
        return Done("input channels of the first weights reversed", (site,))
    c.edit(site, lambda function, args, kwargs: function(args[0].flip(1), *args[1:], **kwargs))
    return Done("input channels reversed", (site, "input"))


def _classes(c: Torch) -> list[str]:
    return [name for name, _ in owned(c, "linear") if name in c.graph.outputs.values()]


def _rolled(c: Torch, site: str, rng: np.random.Generator) -> Done:
    module, by = c.owner(site), int(rng.choice([-1, 1]))
    assert module is not None
    for tensor in (module.weight, module.bias):
        tensor.copy_(tensor.roll(by, 0))
    return Done(f"classes shifted by {by}", (site,))


BUGS = (
    Bug("weight-transposed", "a square weight transposed", _square, _transposed),
    Bug("kernel-flipped", "a convolution in place of the cross-correlation", _kernels, _flipped),
    Bug("kernel-transposed", "rows and columns of a kernel exchanged", _kernels, _turned),
    Bug("weight-memory-order", "a kernel with channels last read with channels first", _full, _channels_last),
    Bug("bias-missing", "a bias is left out", _biased, _no_bias),
    Bug("weights-not-loaded", "a layer keeps its initialisation", computed("linear", "conv2d"), _fresh),
    Bug("weights-of-another-layer", "a layer has the weights of another one", computed("linear", "conv2d"), _neighbour),
    Bug("padding-same", "a strided convolution is padded as TensorFlow's SAME", _strided, _same),
    Bug("dilation", "another dilation", _dilated, _dilation),
    Bug("channels-reversed", "blue and red exchanged", _first, _bgr),
    Bug("classes-shifted", "class labels are off by one", _classes, _rolled),
)
