"""Mistakes about how the parts are put together: tokens, residuals, concatenations, patches, stripes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bench.bugs.bug import Bug, Done
from bench.bugs.sites import Torch


def _token_concats(c: Torch) -> list[str]:
    return [node.name for node in c.nodes("concat") if any(str(i).startswith("broadcast") for i in node.inputs)]


def _class_last(c: Torch, site: str, rng: np.random.Generator) -> Done:
    c.edit(site, lambda function, args, kwargs: function([args[0][-1], *args[0][:-1]], *args[1:], **kwargs))
    return Done("patches first", (site,))


def _two_tokens(c: Torch) -> list[str]:
    return [site for site in _token_concats(c) if len(c.graph.nodes[site].inputs) == 3]


def _tokens_exchanged(c: Torch, site: str, rng: np.random.Generator) -> Done:
    c.edit(site, lambda function, args, kwargs: function([args[0][1], args[0][0], args[0][2]], *args[1:], **kwargs))
    return Done("distillation token first", (site,))


def _positioned(c: Torch) -> list[str]:
    concats = _token_concats(c)
    return [node.name for node in c.nodes("add") if node.inputs[0] in concats]


def _class_without_position(c: Torch, site: str, rng: np.random.Generator) -> Done:
    prefix = len(c.graph.nodes[str(c.graph.nodes[site].inputs[0])].inputs) - 1

    def change(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        tokens, table = args[:2]
        table = table.clone()
        table[:, :prefix] = 0
        return tokens + table

    c.edit(site, change)
    return Done("added to the patches alone", (site,))


def _no_position(c: Torch, site: str, rng: np.random.Generator) -> Done:
    c.edit(site, lambda function, args, kwargs: args[0].clone())
    return Done("not added", (site,))


def _flattened(c: Torch) -> list[str]:
    return [node.name for node in c.nodes("transpose") if node.name == "patch_embed.transpose"]


def _column_major(c: Torch, site: str, rng: np.random.Generator) -> Done:
    rows, columns = c.graph.nodes["patch_embed.proj"].shape[2:]

    def change(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        y = function(*args, **kwargs)
        return y.reshape(y.shape[0], rows, columns, -1).transpose(1, 2).reshape(y.shape)

    c.edit(site, change)
    return Done("column by column", ("patch_embed.reshape", site))


def _pooled(c: Torch) -> list[str]:
    return [node.name for node in c.nodes("getitem") if node.inputs[0] == "norm" and node.name == "getitem"]


def _mean_token(c: Torch, site: str, rng: np.random.Generator) -> Done:
    c.edit(site, lambda function, args, kwargs: args[0].mean(1))
    return Done("mean of the tokens", (site,))


def _two_heads(c: Torch) -> list[str]:
    return [node.name for node in c.nodes("add") if "head_dist" in node.inputs]


def _one_head(c: Torch, site: str, rng: np.random.Generator) -> Done:
    one = int(rng.integers(2))
    c.edit(site, lambda function, args, kwargs: args[one] * 2)
    return Done(("class head alone", "distillation head alone")[one], (site, "scale"))


def _residuals(c: Torch) -> list[str]:
    """Sums of a branch and what went into it: of all additions those that skip something."""
    blocks = ("blocks.", "transformer.", "branches.", "layer1.", "incre_modules.", "stages.0", "stages.1")
    found = [node for node in c.nodes("add") if any(part in f".{node.name}" for part in blocks) and "fuse" not in node.name]
    return [node.name for node in found if ".attn." not in node.name and node.scope]


def _no_residual(c: Torch, site: str, rng: np.random.Generator) -> Done | None:
    first, second = (str(i) for i in c.graph.nodes[site].inputs)
    order = list(c.graph.nodes)
    if first not in order or second not in order:
        return None
    branch = c.reference.golden[max(first, second, key=order.index)]

    def change(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        want = torch.from_numpy(branch).to(args[0].dtype)
        near = min(args[:2], key=lambda a: float((a - want).abs().max()))
        return near.clone()

    c.edit(site, change)
    return Done("the branch alone", (site,))


def _concats(c: Torch) -> list[str]:
    return [node.name for node in c.nodes("concat") if node.attrs["axis"] == 1 and len(node.shape) == 4]


def _reordered(c: Torch, site: str, rng: np.random.Generator) -> Done:
    count = len(c.graph.nodes[site].inputs)
    order = list(range(count))[::-1] if count == 2 or rng.random() < 0.5 else [*range(1, count), 0]
    c.edit(site, lambda function, args, kwargs: function([args[0][i] for i in order], *args[1:], **kwargs))
    return Done(f"order {order}", (site,))


def _unfolds(c: Torch) -> list[str]:
    names = [node.name for node in c.graph if node.name.endswith("unfold_patches.reshape_1")]
    return [name for name in names if c.graph.nodes[name].shape[1] > 1]


def _transformer(c: Torch, site: str) -> torch.nn.Module:
    block = site.partition(".unfold_patches")[0]
    module = c.owner(f"{block}.transformer.0.norm1")
    path = next(p for p, m in c.module.named_modules() if m is module)
    return c.module.get_submodule(path[: path.index("transformer") + len("transformer")])


def _unfold(c: Torch, site: str, rng: np.random.Generator) -> Done:
    """The map cut otherwise, as plain reshapes in a wrong order give it."""
    n, channels, rows, ph, columns, pw = c.graph.nodes[site.replace("reshape_1", "reshape")].shape
    way = str(rng.choice(["patches outermost", "patches taken for innermost", "pixels far apart"]))

    def changed(x: torch.Tensor) -> torch.Tensor:  # (pixels of a patch, patches, channels)
        if way == "patches outermost":
            return x.transpose(0, 1).reshape(x.shape)
        if way == "patches taken for innermost":
            return x.reshape(x.shape[1], -1, x.shape[2]).transpose(0, 1).contiguous()
        whole = x.reshape(n, ph, pw, rows, columns, channels).permute(
            0, 5, 3, 1, 4, 2
        )  # every rows-th row, and columns likewise
        return whole.reshape(n, channels, ph, rows, pw, columns).permute(0, 2, 4, 3, 5, 1).reshape(x.shape)

    c.taken(_transformer(c, site), site.rpartition(".")[0], changed)
    return Done(way, tuple(name for name in c.graph.nodes if name.startswith(site.rpartition(".")[0])))


def _folds(c: Torch) -> list[str]:
    """Folds whose map is not resized behind them."""
    names = [node.name for node in c.graph if node.name.endswith("fold_patches.reshape_1") and "unfold" not in node.name]
    return [name for name in names if c.graph.users()[name][0].endswith("conv_proj.conv")]


def _fold(c: Torch, site: str, rng: np.random.Generator) -> Done | None:
    h, w = c.graph.nodes[site].shape[2:]
    ways = ("rows and columns within a patch exchanged",) + (("patches column by column",) if h == w and h > 2 else ())
    way = str(rng.choice(ways))

    def changed(x: torch.Tensor) -> torch.Tensor:
        y = x.reshape(*x.shape[:2], h // 2, 2, w // 2, 2)
        return (y.transpose(3, 5) if "within" in way else y.transpose(2, 4)).reshape(x.shape)

    module = c.owner(f"{site.partition('.fold_patches')[0]}.conv_proj.conv")
    assert module is not None
    c.taken(module, site.rpartition(".")[0], changed)
    return Done(way, tuple(n for n in c.graph.nodes if n.startswith(site.rpartition(".")[0])))


def _stripes(c: Torch) -> list[str]:
    return [node.name for node in c.nodes("concat") if node.name.endswith("attn.concat")]


def _stripes_exchanged(c: Torch, site: str, rng: np.random.Generator) -> Done:
    block = site.rpartition(".")[0]
    module = c.module.get_submodule(block)
    module.rows.vertical, module.columns.vertical = True, False
    inside = [n for n in c.graph.nodes if n.startswith(f"{block}.stripe_attention")]
    return Done(
        "columns first", (*inside, *(n for n in c.graph.nodes if n.startswith((f"{block}.getitem", f"{block}.transpose"))))
    )


def _projected(c: Torch) -> list[str]:
    return [node.name for node in c.nodes("linear") if node.name.endswith("attn.to_out.0")]


def _activated_after(c: Torch, site: str, rng: np.random.Generator) -> Done:
    before = str(c.graph.nodes[site].inputs[0])
    c.edit(before, lambda function, args, kwargs: args[0].clone())
    c.edit(site, lambda function, args, kwargs: torch.nn.functional.hardswish(function(*args, **kwargs)))
    return Done("Hardswish behind the projection", (before, site))


def _shortcuts(c: Torch) -> list[str]:
    return [node.name for node in c.nodes("reshape") if node.name.endswith("des.reshape")]


def _shortcut_fold(c: Torch, site: str, rng: np.random.Generator) -> Done:
    n, l, k, p = c.graph.nodes[site].shape
    c.edit(site, lambda function, args, kwargs: args[0].reshape(n, l, p, k).transpose(-1, -2))
    return Done("columns first", (site,))


def _shortcut_input(c: Torch, site: str, rng: np.random.Generator) -> Done:
    block = site.partition(".des.")[0]
    c.module.get_submodule(f"{block}.attn_norm").register_forward_hook(lambda m, args, y: kept.append(y))
    kept: list[torch.Tensor] = []
    c.module.get_submodule(f"{block}.des").register_forward_pre_hook(lambda m, args: (kept.pop(),))
    return Done("the normalised tokens", (site, f"{block}.des.proj_right"))


def _parallel(c: Torch) -> list[str]:
    return [node.name for node in c.nodes("add") if node.name.endswith("attn.add")]


def _no_parallel(c: Torch, site: str, rng: np.random.Generator) -> Done:
    c.edit(site, lambda function, args, kwargs: args[0].clone())
    return Done("left out", (site,))


BUGS = (
    Bug("class-token-last", "the class token behind the patches", _token_concats, _class_last),
    Bug("tokens-exchanged", "distillation token before class token", _two_tokens, _tokens_exchanged),
    Bug("position-without-class-token", "no position embedding for the class token", _positioned, _class_without_position),
    Bug("position-missing", "the position embedding is not added", _positioned, _no_position),
    Bug("patches-column-major", "patches counted column by column", _flattened, _column_major),
    Bug("mean-instead-of-class-token", "the head reads the mean of the tokens", _pooled, _mean_token),
    Bug("one-head-of-two", "one of the two heads alone", _two_heads, _one_head),
    Bug("residual-missing", "a residual connection is left out", _residuals, _no_residual),
    Bug("concat-order", "a concatenation in another order", _concats, _reordered),
    Bug("unfold-order", "MobileViT's unfold in another order", _unfolds, _unfold),
    Bug("fold-order", "MobileViT's fold in another order", _folds, _fold),
    Bug("stripes-exchanged", "HRViT's halves: columns first, then rows", _stripes, _stripes_exchanged),
    Bug(
        "activation-behind-projection",
        "HRViT's Hardswish behind the projection, as the paper has it",
        _projected,
        _activated_after,
    ),
    Bug("shortcut-fold", "HRViT's shortcut takes the channels as p x k", _shortcuts, _shortcut_fold),
    Bug("shortcut-normalised", "HRViT's shortcut takes the normalised tokens", _shortcuts, _shortcut_input),
    Bug("parallel-path-missing", "HRViT's parallel convolution is left out", _parallel, _no_parallel),
)
