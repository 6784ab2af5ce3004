"""Mistakes about arithmetic that the candidate does not declare: tf32, half precision, weights stored in half, dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.bugs.bug import Bug, Done, magnitude
from bench.bugs.sites import Torch

PRODUCTS = ("conv2d", "linear", "matmul", "scaled_dot_product_attention")


def to_tf32(x: torch.Tensor) -> torch.Tensor:
    """Rounded to 10 bits behind the point, the exponent of float32."""
    bits = x.float().contiguous().view(torch.int32)
    bits = (bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF
    return bits.view(torch.float32).to(x.dtype)


def _first(c: Torch) -> list[str]:
    return [c.nodes("conv2d")[0].name]


def _products(c: Torch, site: str, rng: np.random.Generator) -> Done:
    _everywhere(c, to_tf32, PRODUCTS, results=False)
    return Done("operands of all products rounded to tf32", (site,))


def _halves(kind: torch.dtype) -> Callable[..., Done]:
    def inject(c: Torch, site: str, rng: np.random.Generator) -> Done:
        kinds = {call[0] for call in c.calls.values()}
        _everywhere(c, lambda x: x.to(kind).to(x.dtype), tuple(kinds), results=True)
        return Done(f"all operands and results in {str(kind).removeprefix('torch.')}", (site,))

    return inject


def _everywhere(c: Torch, rounded: Callable[[torch.Tensor], torch.Tensor], kinds: tuple[str, ...], *, results: bool) -> None:
    def change(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        y = function(*(_each(a, rounded) for a in args), **{k: _each(v, rounded) for k, v in kwargs.items()})
        return rounded(y) if results and isinstance(y, torch.Tensor) else y

    for kind in kinds:
        for i in range(c.counted(kind)):
            c.edits[kind, i] = change


def _each(value: Any, rounded: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return rounded(value)
    if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
        return type(value)(_each(v, rounded) for v in value)
    return value


def _stored(c: Torch, site: str, rng: np.random.Generator) -> Done:
    kind = torch.float16 if rng.random() < 0.5 else torch.bfloat16
    for tensor in (*c.module.parameters(), *c.module.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(kind))
    return Done(f"all weights rounded to {str(kind).removeprefix('torch.')}", (site,))


def _drops(c: Torch) -> list[str]:
    return [path for path, m in c.module.named_modules() if isinstance(m, nn.Dropout) and path in c.shown]


def _dropout(c: Torch, site: str, rng: np.random.Generator) -> Done:
    module = c.module.get_submodule(site)
    module.p = magnitude(rng, (0.1, 0.2), 0.02, 0.6)
    module.train()
    value = c.shown[site]  # which the layer before shows as well, undropped: then what reads it is the first that is wrong
    return Done(f"p = {module.p:.4g}", (value, *c.graph.users().get(value, ())))


BUGS = (
    Bug("tf32", "products in tf32", _first, _products),
    Bug("bfloat16", "computed in bfloat16", _first, _halves(torch.bfloat16)),
    Bug("float16", "computed in float16", _first, _halves(torch.float16)),
    Bug("weights-in-half-precision", "weights stored in half precision", _first, _stored),
    Bug("dropout", "dropout is active", _drops, _dropout),
)
