"""Mistakes on the way from an image to the input of a network. The values behind it are right for the input that it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.nn import functional as F

from bench.bugs import jpeg
from bench.bugs.bug import magnitude
from refvit.graph.ir import Array

ORIENTATION = 0x0112  # of EXIF
PHOTOGRAPH = Path(__file__).parents[2] / "examples" / "cat.jpg"
TURNED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}  # as it is to be seen
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Way:
    """How an image becomes an input; the fields are what can be got wrong."""

    resize: Any  # of the shorter side, or (h, w)
    crop: tuple[int, int] | None
    resample: Any = Image.Resampling.BICUBIC
    antialias: bool = True
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    scale: float = 255.0
    bgr: bool = False
    bgr_at_last: bool = False  # behind mean and std, which are those of the network's channels in its order
    oriented: bool = True
    from_corner: bool = False
    decoder: Callable[[Path], Array] | None = None  # in place of Pillow's
    gamma: float = 1.0
    blur: float = 0.0  # radius in pixels of the network


@dataclass(frozen=True)
class Mistake:
    name: str
    words: str
    change: Callable[[Way, np.random.Generator], tuple[dict[str, Any], str]]


def picture(folder: Path, rng: np.random.Generator, size: tuple[int, int], turned: bool = False, coarse: bool = False) -> Path:
    """A piece of a photograph, larger than the network's input.

    turned: with a note in EXIF how it is to be turned. coarse: as JPEG with half the resolution of colour
    """
    photograph = Image.open(PHOTOGRAPH).convert("RGB")
    orientation, larger, wider = int(rng.choice(list(TURNED))), rng.uniform(1.5, 2.6), rng.uniform(1.0, 1.5)
    longer = size[1] >= size[0]  # at least as far from square as the input, which is then cut out of it
    sides = [int(larger * size[1] * (wider if longer else 1)), int(larger * size[0] * (1 if longer else wider))]
    sides = sides[::-1] if turned and orientation in (6, 8) else sides
    factor = max(1.0, *(side / have for side, have in zip(sides, photograph.size, strict=True)))
    if factor > 1:
        photograph = photograph.resize([int(np.ceil(s * factor)) for s in photograph.size], Image.Resampling.LANCZOS)
    left, top = (int(rng.integers(0, have - side + 1)) for have, side in zip(photograph.size, sides, strict=True))
    piece = photograph.crop((left, top, left + sides[0], top + sides[1]))
    if coarse:
        piece.save(path := folder / "image.jpg", quality=int(rng.integers(60, 96)), subsampling=2)
        return path
    if not turned:
        piece.save(path := folder / "image.png")
        return path
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    piece.save(path := folder / "image.jpg", quality=95, subsampling=0, exif=exif)
    return path


def read(path: Path, way: Way) -> Array:
    """float32 (1, 3, h, w)"""
    image = Image.open(path)
    turn = TURNED.get(image.getexif().get(ORIENTATION, 1)) if way.oriented else None
    image = image.convert("RGB") if way.decoder is None else Image.fromarray(way.decoder(path))
    image = image.transpose(turn) if turn is not None else image
    w, h = image.size
    short = min(w, h)
    size = way.resize if isinstance(way.resize, tuple) else tuple(int(way.resize * s / short) for s in (h, w))
    if way.antialias:
        x = np.asarray(image.resize((size[1], size[0]), way.resample), np.float32)
    else:
        mode = "bicubic" if way.resample == Image.Resampling.BICUBIC else "bilinear"
        t = torch.from_numpy(np.asarray(image, np.float32).copy()).permute(2, 0, 1)[None]
        x = F.interpolate(t, size, mode=mode, align_corners=False)[0].permute(1, 2, 0).round().clamp(0, 255).numpy()
    if way.crop is not None:
        middle = [round((have - want) / 2) for have, want in zip(x.shape[:2], way.crop, strict=True)]
        top, left = (0, 0) if way.from_corner else middle
        x = x[top : top + way.crop[0], left : left + way.crop[1]]
    if way.blur:
        x = np.asarray(Image.fromarray(x.astype(np.uint8)).filter(ImageFilter.GaussianBlur(way.blur)), np.float32)
    if way.gamma != 1.0:
        x = (255 * (x / 255) ** way.gamma).round().astype(np.float32)
    x = x[..., ::-1] if way.bgr else x
    x = (x / np.float32(way.scale) - np.array(way.mean, np.float32)) / np.array(way.std, np.float32)
    x = x[..., ::-1] if way.bgr_at_last else x
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None], dtype=np.float32)


def _reversed(way: Way, rng: np.random.Generator) -> tuple[dict[str, Any], str]:
    if rng.random() < 0.5:
        return {"bgr": not way.bgr}, "before mean and std"
    return {"bgr_at_last": True}, "behind mean and std"


def _other_statistics(way: Way, rng: np.random.Generator) -> tuple[dict[str, Any], str]:
    """Of another convention, or as often any; 0.5 is a mistake of its own."""
    if rng.random() < 0.5:
        mean, std = (tuple(float(v) for v in rng.uniform(*ends, 3)) for ends in ((0.25, 0.65), (0.15, 0.4)))
        text = ("(" + ", ".join(f"{v:.3f}" for v in three) + ")" for three in (mean, std))
        return {"mean": mean, "std": std}, "mean {} and std {}".format(*text)
    ways = {
        "no mean and std": {"mean": (0.0,) * 3, "std": (1.0,) * 3},
        "mean and std in the other order": {"mean": way.mean[::-1], "std": way.std[::-1]},
        "no std": {"std": (1.0,) * 3},
    }
    detail = str(rng.choice(sorted(ways)))
    return ways[detail], detail


def _other_filter(way: Way, rng: np.random.Generator) -> tuple[dict[str, Any], str]:
    name = str(rng.choice(["BILINEAR", "NEAREST", "LANCZOS", "BOX"]))
    return {"resample": Image.Resampling[name]}, name.lower()


def _no_antialias(way: Way, rng: np.random.Generator) -> tuple[dict[str, Any], str]:
    name = str(rng.choice(["BILINEAR", "BICUBIC"]))
    return {"resample": Image.Resampling[name], "antialias": False}, f"{name.lower()} without antialiasing"


def _other_crop(way: Way, rng: np.random.Generator) -> tuple[dict[str, Any], str]:
    """Another share of the shorter side, or the corner."""
    assert way.crop is not None
    if rng.random() < 0.25:
        return {"from_corner": True}, "corner"
    share = min(1.0, magnitude(rng, (1.0, 0.95, 0.8), 0.6, 1.0))
    return {"resize": int(min(way.crop) / share)}, f"crop of {share:.4g}"


def _gamma(way: Way, rng: np.random.Generator) -> tuple[dict[str, Any], str]:
    gamma = magnitude(rng, (2.2, 1 / 2.2), 0.4, 2.5, right=1.0)
    return {"gamma": gamma}, f"pixels to the power of {gamma:.4g}"


def _blurred(way: Way, rng: np.random.Generator) -> tuple[dict[str, Any], str]:
    radius = float(rng.uniform(0.8, 2.0))
    return {"blur": radius}, f"blurred by {radius:.3g} pixels"


MISTAKES = (
    Mistake("input-channels-reversed", "the image as BGR", _reversed),
    Mistake("input-mean-and-std", "another mean and std", _other_statistics),
    Mistake("input-not-divided", "pixels of 0 to 255", lambda way, rng: ({"scale": 1.0}, "not divided by 255")),
    Mistake("input-plus-minus-one", "pixels of -1 to 1", lambda way, rng: ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, "-1 to 1")),
    Mistake("input-filter", "another filter of the resize", _other_filter),
    Mistake("input-antialias", "no antialiasing", _no_antialias),
    Mistake("input-crop", "another part of the image", _other_crop),
    Mistake(
        "input-squashed", "squashed to the input's size", lambda way, rng: ({"resize": way.crop, "crop": None}, "squashed")
    ),
    Mistake("input-orientation", "EXIF orientation ignored", lambda way, rng: ({"oriented": False}, "not turned")),
    Mistake("input-decoder", "another JPEG decoder", lambda way, rng: ({"decoder": jpeg.decode}, "colours not interpolated")),
)
OTHERS = (
    Mistake("input-gamma", "a gamma applied or undone", _gamma),
    Mistake("input-blurred", "the image is blurred", _blurred),
)
