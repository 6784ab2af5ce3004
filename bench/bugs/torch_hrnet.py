"""HRNet for segmentation and pose as torch modules, in the manner of the official repositories and with their parameter names.

timm has only the classifier. Every step is a module of its own or a plain torch call, so that it can be hooked and broken.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def conv(c: int, k: int, size: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(c, k, size, stride, size // 2, bias=bias)


def conv_bn(c: int, k: int, size: int, stride: int = 1, act: bool = False) -> nn.Sequential:
    return nn.Sequential(conv(c, k, size, stride), nn.BatchNorm2d(k), *([nn.ReLU()] if act else []))


class BasicBlock(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = conv(c, c, 3), nn.BatchNorm2d(c), nn.ReLU()
        self.conv2, self.bn2, self.act2 = conv(c, c, 3), nn.BatchNorm2d(c), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(y)) + x)


class Bottleneck(nn.Module):
    def __init__(self, c: int, planes: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = conv(c, planes, 1), nn.BatchNorm2d(planes), nn.ReLU()
        self.conv2, self.bn2, self.act2 = conv(planes, planes, 3), nn.BatchNorm2d(planes), nn.ReLU()
        self.conv3, self.bn3, self.act3 = conv(planes, 4 * planes, 1), nn.BatchNorm2d(4 * planes), nn.ReLU()
        self.downsample = conv_bn(c, 4 * planes, 1) if c != 4 * planes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        return self.act3(self.bn3(self.conv3(y)) + self.downsample(x))


class Up(nn.Module):
    """To the size that is asked for: nearest, or bilinear."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.mode, self.align_corners = config.upsample, config.align_corners

    def forward(self, x: torch.Tensor, size: torch.Size) -> torch.Tensor:
        if self.mode == "nearest":
            return F.interpolate(x, size, mode="nearest")
        return F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)


class Fuse(nn.Sequential):
    """Branch j as branch i takes it; an upsampling step is told the size."""

    def forward(self, x: torch.Tensor, size: torch.Size) -> torch.Tensor:
        for step in self:
            x = step(x, size) if isinstance(step, Up) else step(x)
        return x


class HighResolutionModule(nn.Module):
    def __init__(self, widths: tuple[int, ...], outputs: int, config: Any) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*[BasicBlock(c) for _ in range(config.blocks)]) for c in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fuse(widths, j, i, config) for j in range(len(widths))) for i in range(outputs)
        )
        self.fuse_act = nn.ReLU()

    def forward(self, xs: list[torch.Tensor]) -> list[torch.Tensor]:
        xs = [branch(x) for branch, x in zip(self.branches, xs, strict=True)]
        ys = []
        for i, row in enumerate(self.fuse_layers):
            y = row[0](xs[0], xs[i].shape[2:])
            for j in range(1, len(xs)):
                y = y + row[j](xs[j], xs[i].shape[2:])
            ys.append(self.fuse_act(y))
        return ys


def _fuse(widths: tuple[int, ...], j: int, i: int, config: Any) -> Fuse:
    if j > i:
        return Fuse(conv(widths[j], widths[i], 1), nn.BatchNorm2d(widths[i]), Up(config))
    down = [conv_bn(widths[j], widths[i if k == i - j - 1 else j], 3, 2, act=k < i - j - 1) for k in range(i - j)]
    return Fuse(*down)


class Backbone(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = conv(3, 64, 3, 2), nn.BatchNorm2d(64), nn.ReLU()
        self.conv2, self.bn2, self.act2 = conv(64, 64, 3, 2), nn.BatchNorm2d(64), nn.ReLU()
        count, planes = config.layer1
        self.layer1 = nn.Sequential(*[Bottleneck(64 if b == 0 else 4 * planes, planes) for b in range(count)])
        before: tuple[int, ...] = (4 * planes,)
        for stage, modules in zip((2, 3, 4), config.modules, strict=True):
            widths = config.widths[:stage]
            setattr(self, f"transition{stage - 1}", _transition(before, widths))
            last = config.head == "pose" and stage == 4
            outputs = [1 if last and m == modules - 1 else stage for m in range(modules)]
            setattr(self, f"stage{stage}", nn.Sequential(*[HighResolutionModule(widths, o, config) for o in outputs]))
            before = widths

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        xs = [self.layer1(x)]
        for stage in (2, 3, 4):
            steps = getattr(self, f"transition{stage - 1}")
            xs = [step(xs[min(i, len(xs) - 1)]) for i, step in enumerate(steps)]
            xs = getattr(self, f"stage{stage}")(xs)
        return xs


def _transition(before: tuple[int, ...], widths: tuple[int, ...]) -> nn.ModuleList:
    """Old branches projected where the width changes; the new one at half the resolution of the last."""
    old = [conv_bn(b, w, 3, act=True) if b != w else nn.Identity() for b, w in zip(before, widths, strict=False)]
    return nn.ModuleList([*old, nn.Sequential(conv_bn(before[-1], widths[-1], 3, 2, act=True))])


class Pose(Backbone):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.final_layer = nn.Conv2d(config.width, config.num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.final_layer(self.maps(x)[0])


class Segmentation(Backbone):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        total = sum(config.widths)
        self.align_corners = config.align_corners
        self.last_layer = nn.Sequential(
            conv(total, total, 1, bias=True), nn.BatchNorm2d(total), nn.ReLU(), nn.Conv2d(total, config.num_classes, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        xs = self.maps(x)
        size = xs[0].shape[2:]
        ups = [F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners) for x in xs[1:]]
        return self.last_layer(torch.cat([xs[0], *ups], 1))


def build(config: Any) -> nn.Module:
    return Pose(config) if config.head == "pose" else Segmentation(config)
