"""HRViT as torch modules, written from the facts of the released code and with its parameter names.

Stripes are cut by reshaping, and the attention is written out: scaled queries, a product, a mask, a softmax, a product.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bench.bugs.torch_hrnet import Bottleneck, conv, conv_bn


def tokens(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2)


def as_map(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], -1, *size)


class Stripes(nn.Module):
    """Attention within stripes of rows, or of columns; keys are the values. Maps in, a map out."""

    def __init__(self, heads: int, width: int, vertical: bool) -> None:
        super().__init__()
        self.heads, self.width, self.vertical, self.mask = heads, width, vertical, -100.0

    def forward(self, q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self.vertical:
            q, v = q.transpose(2, 3), v.transpose(2, 3)
        n, c, h, w = q.shape
        d, missing = c // self.heads, -h % self.width
        if missing:
            q, v = F.pad(q, (0, 0, 0, missing)), F.pad(v, (0, 0, 0, missing))
        q, v = self.cut(q), self.cut(v)
        scores = (q * d**-0.5) @ v.transpose(-1, -2)
        if missing:
            mask = scores.new_zeros(scores.shape[1], 1, 1, scores.shape[-1])
            mask[-1, ..., (self.width - missing) * w :] = self.mask
            scores = scores + mask
        y = scores.softmax(-1) @ v  # (n, stripes, heads, l, d)
        y = y.permute(0, 2, 4, 1, 3).reshape(n, c, h + missing, w)[:, :, :h]
        return y.transpose(2, 3) if self.vertical else y

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, self.heads, c // self.heads, h // self.width, self.width * w)
        return x.permute(0, 3, 1, 4, 2)  # (n, stripes, heads, l, d)


class Attention(nn.Module):
    def __init__(self, c: int, dim_head: int, stripe: int) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(c, 2 * c)
        heads = max(1, c // 2 // dim_head)
        self.rows, self.columns = Stripes(heads, stripe, False), Stripes(heads, stripe, True)
        self.parallel_conv = nn.Sequential(nn.Hardswish(), nn.Conv2d(c, c, 3, padding=1, groups=c))
        self.act = nn.Hardswish()
        self.to_out = nn.Sequential(nn.Linear(c, c))
        self.attn_bn = nn.BatchNorm1d(c)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        q, v = (as_map(t, size) for t in self.to_qkv(x).chunk(2, -1))
        (q1, q2), (v1, v2) = q.chunk(2, 1), v.chunk(2, 1)
        y = torch.cat([self.rows(q1, v1), self.columns(q2, v2)], 1) + self.parallel_conv(v)
        y = self.to_out(self.act(tokens(y)))
        return self.attn_bn(y.flatten(0, 1)).reshape(x.shape)


class Shortcut(nn.Module):
    """The token as a k x p matrix, a linear map from either side, GELU between."""

    def __init__(self, c: int) -> None:
        super().__init__()
        p = 2 ** math.ceil(math.floor(math.log2(c)) / 2)
        self.shape = (c // p, p)
        self.proj_right, self.act, self.proj_left = nn.Linear(p, p), nn.GELU(), nn.Linear(c // p, c // p)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.proj_right(x.reshape(*x.shape[:2], *self.shape)).transpose(-1, -2)
        return self.proj_left(self.act(y)).transpose(-1, -2).reshape(x.shape)


class Mixed(nn.Module):
    """Half of the channels through 3x3, half through 5x5."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv_3 = nn.Conv2d(c // 2, c // 2, 3, padding=1, groups=c // 2)
        self.conv_5 = nn.Conv2d(c // 2, c // 2, 5, padding=2, groups=c // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near, far = x.chunk(2, 1)
        return torch.cat([self.conv_3(near), self.conv_5(far)], 1)


class MixCFN(nn.Module):
    def __init__(self, c: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.conv, self.act, self.fc2 = nn.Linear(c, hidden), Mixed(hidden), nn.GELU(), nn.Linear(hidden, c)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return self.fc2(tokens(self.act(self.conv(as_map(self.fc1(x), size)))))


class Block(nn.Module):
    def __init__(self, c: int, expansion: int, stripe: int, config: Any) -> None:
        super().__init__()
        self.attn_norm, self.ffn_norm = nn.LayerNorm(c, config.eps), nn.LayerNorm(c, config.eps)
        self.attn, self.des = Attention(c, config.dim_head, stripe), Shortcut(c)
        self.ffn = MixCFN(c, c * expansion)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        x = x + self.attn(self.attn_norm(x), size) + self.des(x)
        return x + self.ffn(self.ffn_norm(x), size)


class PatchEmbed(nn.Module):
    def __init__(self, c: int, k: int, eps: float) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(c, k, 1), nn.Conv2d(k, k, 3, padding=1, groups=k))
        self.norm = nn.LayerNorm(k, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(tokens(self.proj(x)))


class Stage(nn.Module):
    def __init__(self, widths: tuple[int, ...], blocks: tuple[int, ...], config: Any) -> None:
        super().__init__()
        own = config.widths[: len(blocks)]
        self.patch_embed = nn.ModuleList(PatchEmbed(c, k, config.eps) for c, k in zip(widths, own, strict=True))
        self.branches = nn.ModuleList(
            nn.ModuleList(Block(c, config.expansion[r], config.stripes[r], config) for _ in range(blocks[r]))
            for r, c in enumerate(own)
        )
        self.norm = nn.ModuleList(nn.LayerNorm(c, config.eps) for c in own)

    def forward(self, xs: list[torch.Tensor]) -> list[torch.Tensor]:
        ys = []
        for r, x in enumerate(xs):
            size = (x.shape[2], x.shape[3])
            y = self.patch_embed[r](x)
            for block in self.branches[r]:
                y = block(y, size)
            ys.append(as_map(self.norm[r](y), size))
        return ys


class Fusion(nn.Module):
    def __init__(self, widths: tuple[int, ...], targets: tuple[int, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList(_step(c, k, i - j) for j, c in enumerate(widths)) for i, k in enumerate(targets)
        )
        self.act = nn.ModuleList(nn.GELU() for _ in targets)

    def forward(self, xs: list[torch.Tensor]) -> list[torch.Tensor]:
        ys = []
        for row, act in zip(self.blocks, self.act, strict=True):
            y = row[0](xs[0])
            for step, x in zip(list(row)[1:], xs[1:], strict=True):
                y = y + step(x)
            ys.append(act(y))
        return ys


def _step(c: int, k: int, down: int) -> nn.Module:
    if down < 0:
        up = nn.Upsample(scale_factor=2**-down, mode="nearest")
        return nn.Sequential(conv(c, k, 1, bias=True), nn.BatchNorm2d(k), up)
    if down == 0:
        return nn.Sequential()
    stride = 2**down
    wide = nn.Conv2d(c, c, stride + 1, stride, stride // 2, groups=c, bias=False)
    return nn.Sequential(wide, nn.BatchNorm2d(c), conv(c, k, 1, bias=True), nn.BatchNorm2d(k))


class Stem(nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = conv(3, k // 2, 3, 2, True), nn.BatchNorm2d(k // 2), nn.ReLU()
        self.conv2, self.bn2, self.act2 = conv(k // 2, k, 3, 2, True), nn.BatchNorm2d(k), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act2(self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x))))))


class Classifier(nn.Module):
    """HRNet's: wider branches, each added to what comes down from the finer one."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        planes = (32, 64, 128, 256)
        self.incre_modules = nn.ModuleList(nn.Sequential(Bottleneck(c, p)) for c, p in zip(config.widths, planes, strict=True))
        self.downsamp_modules = nn.ModuleList(
            nn.Sequential(conv(4 * a, 4 * b, 3, 2, True), nn.BatchNorm2d(4 * b), nn.ReLU())
            for a, b in itertools.pairwise(planes)
        )
        self.final_layer = nn.Sequential(conv(1024, 2048, 1, bias=True), nn.BatchNorm2d(2048), nn.ReLU())
        self.classifier = nn.Linear(2048, config.num_classes)

    def forward(self, xs: list[torch.Tensor]) -> torch.Tensor:
        ys = [widen(x) for widen, x in zip(self.incre_modules, xs, strict=True)]
        y = ys[0]
        for down, x in zip(self.downsamp_modules, ys[1:], strict=True):
            y = x + down(y)
        return self.classifier(self.final_layer(y).mean((2, 3)))


class ConvModule(nn.Module):
    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.conv, self.bn, self.activate = *conv_bn(c, k, 1), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activate(self.bn(self.conv(x)))


class SegFormerHead(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        k = config.head_width
        self.convs = nn.ModuleList(nn.ModuleDict({"conv": nn.Conv2d(c, k, 1)}) for c in config.widths)
        self.fusion_conv = ConvModule(4 * k, k)
        self.conv_seg = nn.Conv2d(k, config.num_classes, 1)

    def forward(self, xs: list[torch.Tensor]) -> torch.Tensor:
        size = xs[0].shape[2:]
        ys = [m["conv"](x) for m, x in zip(self.convs, xs, strict=True)]
        ys = [F.interpolate(y, size, mode="bilinear", align_corners=False) for y in ys]
        return self.conv_seg(self.fusion_conv(torch.cat(ys, 1)))


class HRViT(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.stem = Stem(config.stem_width)
        self.features, widths = nn.ModuleList(), (config.stem_width,)
        for blocks in config.blocks:
            targets = (*widths, *config.widths[len(widths) : len(blocks)])
            self.features += [Fusion(widths, targets), Stage(targets, blocks, config)]
            widths = config.widths[: len(blocks)]
        if config.head == "classification":
            self.head = Classifier(config)
        else:
            self.decode_head = SegFormerHead(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        xs = [self.stem(x)]
        for step in self.features:
            xs = step(xs)
        return self.head(xs) if hasattr(self, "head") else self.decode_head(xs)


def build(config: Any) -> nn.Module:
    return HRViT(config)
