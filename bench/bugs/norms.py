"""Mistakes about batch and layer norms: eps and its place, statistics, training mode, missing ones, the wrong axis."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bench.bugs.activations import computed
from bench.bugs.bug import Bug, Done, magnitude
from bench.bugs.sites import Torch

BATCH_NORM_EPS, LAYER_NORM_EPS = (1e-3, 1e-4), (1e-3, 1e-5, 1e-6, 1e-12)  # in use
EPS = (1e-8, 1e-2)  # what anybody may write


def _owned(c: Torch, site: str) -> nn.Module:
    module = c.owner(site)
    assert module is not None
    return module


def _eps(c: Torch, site: str, rng: np.random.Generator) -> Done:
    module = _owned(c, site)
    right = module.eps
    usual = BATCH_NORM_EPS if isinstance(module, nn.BatchNorm2d) else LAYER_NORM_EPS
    module.eps = magnitude(rng, usual, *EPS, right=right)
    return Done(f"eps {module.eps:.4g} where {right:g} is right", (site,))


def _swapped(c: Torch, site: str, rng: np.random.Generator) -> Done:
    """The root of a negative "variance" is NaN, as it is for whoever makes this mistake."""
    module = _owned(c, site)
    mean, var = module.running_mean.clone(), module.running_var.clone()
    module.running_mean.copy_(var)
    module.running_var.copy_(mean)
    return Done("running_mean and running_var exchanged", (site,))


def _maps(c: Torch) -> list[str]:
    """Batch norms of several pixels."""
    return [node.name for node in c.nodes("batch_norm") if np.prod(node.shape) > node.shape[1]]


def _training(c: Torch, site: str, rng: np.random.Generator) -> Done:
    module = _owned(c, site)

    def batch(function: object, args: tuple[torch.Tensor, ...], kwargs: object) -> torch.Tensor:
        weight, bias = (t.to(args[0].dtype) for t in (module.weight, module.bias))
        return F.batch_norm(args[0], None, None, weight, bias, True, 0.0, module.eps)

    c.edit(site, batch)
    return Done("statistics of the batch", (site,))


def _skip(c: Torch, site: str, rng: np.random.Generator) -> Done:
    c.edit(site, lambda function, args, kwargs: args[0].clone())
    return Done("left out", (site,))


def _unit_gain(c: Torch, site: str, rng: np.random.Generator) -> Done:
    _owned(c, site).weight.fill_(1.0)
    return Done("gain 1", (site,))


def _no_affine(c: Torch, site: str, rng: np.random.Generator) -> Done:
    module = _owned(c, site)
    module.weight.fill_(1.0)
    module.bias.fill_(0.0)
    return Done("gain 1, shift 0", (site,))


def _outside(c: Torch, site: str, rng: np.random.Generator) -> Done:
    module = _owned(c, site)
    eps = module.eps

    def change(function: object, args: tuple[torch.Tensor, ...], kwargs: object) -> torch.Tensor:
        x = args[0]
        std = x.var(-1, unbiased=False, keepdim=True).sqrt()
        return (x - x.mean(-1, keepdim=True)) / (std + eps) * module.weight + module.bias

    c.edit(site, change)
    return Done(f"divided by std + {eps:g}", (site,))


def _square(c: Torch) -> list[str]:
    """Layer norms of as many tokens as features."""
    return [node.name for node in c.nodes("layer_norm") if node.shape[-1] == node.shape[-2]]


def _axis(c: Torch, site: str, rng: np.random.Generator) -> Done:
    module = _owned(c, site)

    def change(function: object, args: tuple[torch.Tensor, ...], kwargs: object) -> torch.Tensor:
        x = args[0]
        var = x.var(1, unbiased=False, keepdim=True)
        y = (x - x.mean(1, keepdim=True)) / (var + module.eps).sqrt()
        return y * module.weight[:, None] + module.bias[:, None]

    c.edit(site, change)
    return Done("over the tokens", (site,))


def _half(c: Torch, site: str, rng: np.random.Generator) -> Done:
    kind = torch.float16 if rng.random() < 0.5 else torch.bfloat16

    def change(function: object, args: tuple[torch.Tensor, ...], kwargs: object) -> torch.Tensor:
        x, op = args[0], c.graph.nodes[site].op
        if op == "softmax":
            return x.to(kind).softmax(-1).to(x.dtype)
        module = _owned(c, site)
        weight, bias = module.weight.to(kind), module.bias.to(kind)
        return F.layer_norm(x.to(kind), weight.shape, weight, bias, module.eps).to(x.dtype)

    c.edit(site, change)
    return Done(f"in {str(kind).removeprefix('torch.')}", (site,))


BUGS = (
    Bug("layer-norm-eps", "another eps in a layer norm", computed("layer_norm"), _eps),
    Bug("batch-norm-eps", "another eps in a batch norm", computed("batch_norm"), _eps),
    Bug("batch-norm-mean-and-variance-exchanged", "mean and variance exchanged", computed("batch_norm"), _swapped),
    Bug("batch-norm-in-training-mode", "a batch norm uses the statistics of the batch", _maps, _training),
    Bug("batch-norm-missing", "a batch norm is left out", computed("batch_norm"), _skip),
    Bug("batch-norm-gain-one", "the gain of a batch norm is fixed at 1", computed("batch_norm"), _unit_gain),
    Bug("layer-norm-missing", "a layer norm is left out", computed("layer_norm"), _skip),
    Bug("layer-norm-without-affine", "gain and shift of a layer norm are not loaded", computed("layer_norm"), _no_affine),
    Bug("layer-norm-eps-outside-the-root", "a layer norm divides by std + eps", computed("layer_norm"), _outside),
    Bug("layer-norm-over-tokens", "a layer norm over the tokens, where they are as many as features", _square, _axis),
    Bug(
        "norm-in-half-precision",
        "one layer norm or softmax computed in half precision",
        computed("layer_norm", "softmax"),
        _half,
    ),
)
