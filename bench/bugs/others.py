"""Mistakes that no table of conventions has: slips of one implementation. Of these the cause must be called unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.bugs.activations import computed
from bench.bugs.bug import Bug, Done
from bench.bugs.sites import Torch
from bench.bugs.weights import owned

Wrong = Callable[[torch.Tensor, np.random.Generator], torch.Tensor]


def result(name: str, words: str, ops: tuple[str, ...], wrong: Wrong, *, rows: int = 0) -> Bug:
    """A mistake in what a step gives; the same in every pass. rows: of a map that it needs."""

    def sites(c: Torch) -> list[str]:
        return [node.name for node in c.nodes(*ops) if not rows or (len(node.shape) == 4 and min(node.shape[2:]) >= rows)]

    def inject(c: Torch, site: str, rng: np.random.Generator) -> Done:
        seed = int(rng.integers(2**31))

        def change(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
            return wrong(function(*args, **kwargs).clone(), np.random.default_rng(seed))

        c.edit(site, change)
        return Done(words, (site,))

    return Bug(name, words, sites, inject)


def _channel(y: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    axis = 1 if y.dim() == 4 else -1
    y.select(axis, int(rng.integers(y.shape[axis]))).mul_(float(rng.choice([rng.uniform(0.6, 0.95), rng.uniform(1.05, 1.6)])))
    return y


def _tokens(y: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    a, b = rng.choice(y.shape[1], 2, replace=False)
    y[:, [a, b]] = y[:, [b, a]]
    return y


def _clipped(y: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    limit = float(y.abs().max()) * float(rng.uniform(0.4, 0.8))
    return y.clamp(max=limit)


def _row(y: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    r = int(rng.integers(1, y.shape[2]))
    y[:, :, r] = y[:, :, r - 1]
    return y


def _tile(y: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    i, j = (int(rng.integers(0, max(1, s - 2))) for s in y.shape[2:])
    k = int(rng.integers(max(1, y.shape[1] // 2)))
    y[:, k : k + max(1, y.shape[1] // 4), i : i + 3, j : j + 3] = 0
    return y


def _grid(y: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    step = float(y.abs().max()) / float(rng.uniform(20, 60))
    return (y / step).floor() * step


def _noise(y: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    return y + torch.from_numpy(rng.normal(0, 0.01, tuple(y.shape))).to(y.dtype) * y.std()


def _one_element(c: Torch, site: str, rng: np.random.Generator) -> Done:
    module = c.owner(site)
    assert module is not None
    weight = module.weight.view(-1)
    i = int(rng.integers(weight.numel()))
    weight[i] = -3 * weight[i] + 2 * weight.std()
    return Done(f"element {i} of the weight", (site,))


def _short_sum(c: Torch, site: str, rng: np.random.Generator) -> Done:
    module = c.owner(site)
    assert module is not None
    last = int(rng.integers(1, max(2, module.weight.shape[1] // 8)))
    module.weight[:, -last:] = 0
    return Done(f"the last {last} inputs left out", (site,))


def _neighbour(c: Torch, site: str, rng: np.random.Generator) -> Done:
    i = int(rng.integers(1, c.graph.value(str(c.graph.nodes[site].inputs[0])).shape[1]))

    def change(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        x = args[0].clone()
        x[:, i] = x[:, i - 1]
        return function(x, *args[1:], **kwargs)

    c.edit(site, change)
    return Done(f"channel {i} read as {i - 1}", (site,))


def _stale(c: Torch, site: str, rng: np.random.Generator) -> Done:
    """What the step gave for another image."""
    kept: list[torch.Tensor] = []
    c.edit(site, lambda function, args, kwargs: kept.append(function(*args, **kwargs)) or kept[0])
    c.values(x=c.reference.x[..., ::-1].copy() * np.float32(0.8))
    old = kept[0].clone()
    c.edit(site, lambda function, args, kwargs: old.to(args[0].dtype).clone())
    return Done("the result for an earlier image", (site,))


def _polynomial(c: Torch, site: str, rng: np.random.Generator) -> Done:
    """0.044715 and sqrt(2 / pi) are what they should be."""
    a, b = float(rng.choice([0.0347, 0.0559, 0.0815])), float(rng.choice([0.7979, 0.771]))
    c.edit(site, lambda function, args, kwargs: 0.5 * args[0] * (1 + torch.tanh(b * (args[0] + a * args[0] ** 3))))
    return Done(f"tanh({b} (x + {a} x^3))", (site,))


def _attended(c: Torch) -> list[str]:
    return [n.name for n in c.nodes("matmul") if n.name.endswith("matmul_1") and n.shape[-3] > 1]


def _silent_head(c: Torch, site: str, rng: np.random.Generator) -> Done:
    head = int(rng.integers(c.graph.nodes[site].shape[-3]))

    def change(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        y = function(*args, **kwargs).clone()
        y[..., head, :, :] = 0
        return y

    c.edit(site, change)
    return Done(f"head {head} gives 0", (site,))


def _tokens_of(c: Torch) -> list[str]:
    return [n.name for n in c.nodes("linear", "layer_norm", "add") if len(n.shape) == 3 and n.shape[1] > 9]


def _exchange(c: Torch, site: str, rng: np.random.Generator) -> Done:
    return result("", "two tokens exchanged", ("linear",), _tokens).inject(c, site, rng) or Done("", (site,))


def _several_inputs(c: Torch) -> list[str]:
    return [name for name, m in owned(c, "linear", "conv2d") if m.weight.shape[1] > 8]


BUGS = (
    Bug(
        "one-element", "one element of a weight is wrong", lambda c: [n for n, _ in owned(c, "linear", "conv2d")], _one_element
    ),
    Bug("stale-result", "a step returns an earlier result", computed("conv2d", "linear", "layer_norm", "batch_norm"), _stale),
    result("one-channel-scaled", "one channel is scaled", ("conv2d", "linear", "batch_norm", "layer_norm"), _channel),
    Bug("two-tokens-exchanged", "two tokens exchanged", _tokens_of, _exchange),
    result("clipped", "results above a limit are clipped", ("silu", "gelu", "relu", "linear", "conv2d"), _clipped),
    Bug("wrong-polynomial", "a wrong constant in a polynomial", computed("gelu"), _polynomial),
    result("row-repeated", "a row of a map is the one above", ("conv2d", "batch_norm", "relu", "silu"), _row, rows=3),
    result("tile-missing", "a tile is not written", ("conv2d", "batch_norm", "relu", "silu"), _tile, rows=3),
    result("coarse-steps", "results are rounded down to coarse steps", ("conv2d", "linear", "softmax", "layer_norm"), _grid),
    result("noise", "noise of a hundredth", ("conv2d", "linear", "layer_norm", "batch_norm"), _noise),
    Bug("sum-too-short", "a sum leaves out its last terms", _several_inputs, _short_sum),
    Bug("neighbouring-channel", "one input channel is read from its neighbour", _several_inputs, _neighbour),
    Bug("silent-head", "one head gives nothing", _attended, _silent_head),
)
