"""Mistakes about resizing: which pixels coincide, which filter, by a factor or to a size; positions of tokens included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from bench.bugs.bug import Bug, Done
from bench.bugs.sites import Torch
from refvit.graph.ir import Node

Size = tuple[int, int]


def resizes(which: Callable[[Torch, Node], bool]) -> Callable[[Torch], list[str]]:
    """Values that a resize gives which fits."""

    def sites(c: Torch) -> list[str]:
        return [node.name for node in c.nodes("resize") if not _positions(c, node) and which(c, node)]

    return sites


def _positions(c: Torch, node: Node) -> bool:
    return node.attrs["mode"] == "bicubic"


def _put(c: Torch, site: str, detail: str, run: Callable[[torch.Tensor, Size], torch.Tensor]) -> Done:
    size = c.graph.nodes[site].shape[2:]
    c.edit(site, lambda function, args, kwargs: run(args[0], (size[0], size[1])))
    return Done(detail, (site,))


def _bilinear(c: Torch, node: Node) -> bool:
    return node.attrs["mode"] == "bilinear"


def _corners(c: Torch, site: str, rng: np.random.Generator) -> Done:
    wrong = not c.graph.nodes[site].attrs["align_corners"]
    return _put(c, site, f"align_corners={wrong}", lambda x, size: F.interpolate(x, size, mode="bilinear", align_corners=wrong))


def _other_filter(c: Torch, site: str, rng: np.random.Generator) -> Done:
    if c.graph.nodes[site].attrs["mode"] == "nearest":
        corners = bool(rng.random() < 0.5)
        detail = f"bilinear, align_corners={corners}, in place of nearest"
        return _put(c, site, detail, lambda x, size: F.interpolate(x, size, mode="bilinear", align_corners=corners))
    return _put(c, site, "nearest in place of bilinear", lambda x, size: F.interpolate(x, size, mode="nearest"))


def _asymmetric(c: Torch, site: str, rng: np.random.Generator) -> Done:
    """Source position i in / out, without the half pixel."""

    def along(x: torch.Tensor, axis: int, out: int) -> torch.Tensor:
        n = x.shape[axis]
        s = torch.arange(out, dtype=torch.float64) * n / out
        low = s.floor().long().clamp(max=n - 1)
        high, t = (low + 1).clamp(max=n - 1), (s - low).to(x.dtype)
        t = t.reshape(-1, *[1] * (x.dim() - 1 - axis))
        return x.index_select(axis, low) * (1 - t) + x.index_select(axis, high) * t

    return _put(c, site, "i in / out", lambda x, size: along(along(x, 2, size[0]), 3, size[1]))


def _not_whole(c: Torch, node: Node) -> bool:
    """Enlarged from a size that was rounded up."""
    old, new = c.graph.value(str(node.inputs[0])).shape[2:], node.shape[2:]
    return (
        _bilinear(c, node)
        and any(b > a and b % a for a, b in zip(old, new, strict=True))
        and not node.attrs["align_corners"]
        and "fold_patches" not in node.name
    )


def _factor(c: Torch, site: str, rng: np.random.Generator) -> Done:
    """By a power of two, and what is then too large cut off, or resized again as mmsegmentation does."""
    old, new = c.graph.value(str(c.graph.nodes[site].inputs[0])).shape[2:], c.graph.nodes[site].shape[2:]
    factor = 2 ** round(float(np.log2(new[0] / old[0])))
    twice = bool(rng.random() < 0.5)

    def run(x: torch.Tensor, size: Size) -> torch.Tensor:
        y = F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)
        if twice:
            return F.interpolate(y, size, mode="bilinear", align_corners=False)
        y = F.pad(y, (0, max(0, size[1] - y.shape[3]), 0, max(0, size[0] - y.shape[2])))
        return y[:, :, : size[0], : size[1]]

    return _put(c, site, f"times {factor}, then {'resized again' if twice else 'cut'}", run)


def _nearest_shift(c: Torch, site: str, rng: np.random.Generator) -> Done:
    """Nearest with positions rounded up: what ceil(i in / out) gives."""

    def run(x: torch.Tensor, size: Size) -> torch.Tensor:
        for axis, out in ((2, size[0]), (3, size[1])):
            n = x.shape[axis]
            x = x.index_select(axis, (-(-torch.arange(out) * n // out)).clamp(max=n - 1))
        return x

    return _put(c, site, "positions rounded up", run)


def _resampled(c: Torch) -> list[str]:
    return [node.name for node in c.nodes("resize") if _positions(c, node)]


def _position(c: Torch, site: str, rng: np.random.Generator) -> Done:
    right = dict(c.graph.nodes[site].attrs)
    antialias = bool(right["antialias"])
    ways: dict[str, dict[str, Any]] = {
        "bicubic, antialias the other way": {"mode": "bicubic", "antialias": not antialias},
        "bilinear": {"mode": "bilinear"},
        "bilinear, align_corners": {"mode": "bilinear", "align_corners": True},
        "bicubic, 0.1 added to the sides": {"mode": "bicubic"},
    }
    if not antialias and all(a >= b for a, b in zip(right["size"], _grid(c, site), strict=True)):
        del ways["bicubic, antialias the other way"]
    detail = str(rng.choice(sorted(ways)))
    options = {"align_corners": False} | ways[detail]

    def run(x: torch.Tensor, size: Size) -> torch.Tensor:
        if "0.1" in detail:
            factors = [(s + 0.1) / n for s, n in zip(size, x.shape[2:], strict=True)]
            return F.interpolate(x, scale_factor=factors, recompute_scale_factor=False, **options)
        return F.interpolate(x, size, **options)

    return _put(c, site, detail, run)


def _grid(c: Torch, site: str) -> tuple[int, ...]:
    return tuple(c.graph.value(str(c.graph.nodes[site].inputs[0])).shape[2:])


def _mode(mode: str) -> Callable[[Torch, Node], bool]:
    return lambda c, node: node.attrs["mode"] == mode


BUGS = (
    Bug("resize-align-corners", "align_corners the other way", resizes(_bilinear), _corners),
    Bug("resize-filter", "nearest and bilinear exchanged", resizes(lambda c, node: True), _other_filter),
    Bug("resize-without-half-pixel", "bilinear without the half pixel", resizes(_bilinear), _asymmetric),
    Bug("resize-by-factor", "resized by a whole factor where the size is asked for", resizes(_not_whole), _factor),
    Bug("nearest-rounding", "nearest rounds positions up", resizes(_mode("nearest")), _nearest_shift),
    Bug("position-resize", "the position embedding is resampled by another rule", _resampled, _position),
)
