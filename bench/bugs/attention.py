"""Mistakes about attention: the scale, how queries, keys, values and heads are packed, the axis of the softmax, the mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.bugs.bug import Bug, Done, magnitude
from bench.bugs.sites import Torch

INSIDE = ("scale", "transpose", "matmul", "softmax", "matmul_1")  # the nodes of an attention


def fused(c: Torch, site: str) -> bool:
    return c.calls[site][0] == "scaled_dot_product_attention"


def _scopes(c: Torch) -> list[str]:
    """The paths of all attentions and stripe attentions of a graph."""
    return [
        node.name.rpartition(".")[0] for node in c.graph if node.op == "softmax" and node.scope == node.name.rpartition(".")[0]
    ]


def _scaled(c: Torch) -> list[str]:
    """Attentions of which the step that scales is known: the fused call, the scaled queries, or the divided scores."""
    return [scope for scope in _scopes(c) if _scaling(c, scope) is not None and c.graph.nodes[f"{scope}.softmax"].shape[-1] > 1]


def _scaling(c: Torch, scope: str) -> str | None:
    for value in (f"{scope}.matmul_1", f"{scope}.scale", f"{scope}.matmul"):
        kind = c.calls.get(value, ("",))[0]
        if kind in ("scaled_dot_product_attention", "mul", "div", "truediv"):
            return value
    return None


def _scale(c: Torch, scope: str, rng: np.random.Generator) -> Done:
    site, node = _scaling(c, scope), c.graph.nodes[f"{scope}.scale"]
    assert site is not None
    right = node.attrs["factor"]
    d = node.shape[-1]
    width = d * node.shape[-3]
    detail, wrong = other_scale(rng, right, d, width)

    def change(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        if fused(c, site):
            return function(*args, **{**kwargs, "scale": wrong})
        return function(*args, **kwargs) * (wrong / right)

    c.edit(site, change)
    return Done(detail, (f"{scope}.scale", f"{scope}.matmul"))


def other_scale(rng: np.random.Generator, right: float, d: int, width: int) -> tuple[str, float]:
    """A scale in use that is wrong here, or any; d: channels of a head, width: of all heads."""
    ways = {"no scale": 1.0, "1 / d": 1.0 / d, "1 / sqrt of all channels": width**-0.5}
    wrong = magnitude(rng, tuple(ways.values()), right / 4, right * 4, right=right)
    return next((text for text, s in ways.items() if s == wrong), f"{wrong / right:.4g} times the scale"), wrong


def _softmax(c: Torch) -> list[str]:
    found = []
    for scope in _scopes(c):
        shape = c.graph.nodes[f"{scope}.softmax"].shape
        known = f"{scope}.softmax" in c.calls or c.calls.get(f"{scope}.matmul_1", ("",))[0] == "scaled_dot_product_attention"
        found += [scope] if known and shape[-1] == shape[-2] > 1 else []
    return found


def _axis(c: Torch, scope: str, rng: np.random.Generator) -> Done:
    if f"{scope}.softmax" in c.calls:
        c.edit(f"{scope}.softmax", lambda function, args, kwargs: args[0].softmax(-2))
    else:
        factor = c.graph.nodes[f"{scope}.scale"].attrs["factor"]

        def change(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
            q, k, v = args[:3]
            return ((q * factor) @ k.transpose(-1, -2)).softmax(-2) @ v

        c.edit(f"{scope}.matmul_1", change)
    return Done("over the queries", (f"{scope}.softmax",))


def _packed(c: Torch) -> list[str]:
    """Blocks whose fused projection is split by a reshape that is known."""
    return [node.name for node in c.nodes("reshape") if node.name.endswith("attn.reshape") and len(node.shape) == 5]


def _split(wrong: Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor], detail: str) -> Callable[..., Done]:
    def inject(c: Torch, site: str, rng: np.random.Generator) -> Done:
        shape = c.graph.nodes[site].shape  # (n, l, 3, heads, d)
        block = site.rpartition(".")[0]
        c.edit(site, lambda function, args, kwargs: wrong(args[0], shape))
        return Done(detail, (site, *(f"{block}.{part}" for part in ("transpose", "getitem", "getitem_1", "getitem_2"))))

    return inject


def _interleaved(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    n, l, three, heads, d = shape
    return x.reshape(n, l, heads, three, d).transpose(2, 3)


def _head_last(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    n, l, three, heads, d = shape
    return x.reshape(n, l, three, d, heads).transpose(-1, -2)


def _roles(c: Torch, site: str, rng: np.random.Generator) -> Done:
    order = [int(i) for i in [(1, 0, 2), (2, 0, 1), (0, 2, 1), (1, 2, 0), (2, 1, 0)][rng.integers(5)]]
    text = ", ".join("qkv"[i] for i in order)
    return _split(lambda x, shape: x.reshape(shape)[:, :, order], f"taken as {text}")(c, site, rng)


def _projections(c: Torch) -> list[str]:
    return [node.name for node in c.nodes("linear") if node.name.endswith("attn.qkv") and c.owner(node.name) is not None]


def _rows(c: Torch, site: str, rng: np.random.Generator) -> Done:
    """The rows of the fused weight in another order, as from a conversion that packs otherwise."""
    module, reshaped = c.owner(site), c.graph.nodes[f"{site.rpartition('.')[0]}.reshape"].shape
    assert module is not None
    _, _, three, heads, d = reshaped
    rows = torch.arange(three * heads * d).reshape(three, heads, d)
    ways = {
        "heads outermost, then q, k, v": rows.permute(1, 0, 2),
        "heads innermost": rows.permute(0, 2, 1),
        "k, q, v": rows[[1, 0, 2]],
        "q, v, k": rows[[0, 2, 1]],
    }
    detail = str(rng.choice(sorted(ways)))
    order = ways[detail].reshape(-1)
    for tensor in (module.weight, module.bias):
        tensor.copy_(tensor[order].clone())
    return Done(f"rows packed as {detail}", (site,))


def _merges(c: Torch) -> list[str]:
    return [node.name for node in c.nodes("transpose") if node.name.endswith("attn.transpose_1") and len(node.shape) == 4]


def _merge(c: Torch, site: str, rng: np.random.Generator) -> Done | None:
    shape = c.graph.nodes[site].shape  # (n, l, heads, d), of (n, heads, l, d)
    if shape[2] == 1 or shape[1] == 1:
        return None
    c.edit(site, lambda function, args, kwargs: args[0].reshape(shape))
    return Done("heads merged without a transpose", (site, f"{site.rpartition('.')[0]}.reshape_1"))


def _masked(c: Torch) -> list[str]:
    return [node.name for node in c.nodes("mask_tail")]


def _no_mask(c: Torch, site: str, rng: np.random.Generator) -> Done:
    c.edit(site, lambda function, args, kwargs: args[0].clone())
    return Done("padded keys take part", (site,))


BUGS = (
    Bug("attention-scale", "another scale of the attention's scores", _scaled, _scale),
    Bug("softmax-axis", "softmax over the queries", _softmax, _axis),
    Bug("qkv-interleaved", "queries, keys and values of each head side by side", _packed,
        _split(_interleaved, "split as (heads, 3, d)")),
    Bug("heads-interleaved", "a head is every h-th channel", _packed, _split(_head_last, "split as (3, d, heads)")),
    Bug("qkv-order", "queries, keys and values in another order", _packed, _roles),
    Bug("qkv-rows", "the rows of the fused projection in another order", _projections, _rows),
    Bug("heads-merged", "heads put together without a transpose", _merges, _merge),
    Bug("mask-missing", "padded keys of the last stripe are not masked", _masked, _no_mask),
)  # fmt: skip
