"""Dumps as a port writes them: .npz, a folder of .npy, raw .bin or .hex with a manifest; in its own names and layouts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.bugs.sites import Torch
from refvit.graph.ir import Array

Scale = tuple[float, int]  # and zero point: real = (stored - zero point) scale
KINDS = ("npz", "npy", "bin", "hex")


@dataclass(frozen=True)
class Style:
    """kind: of the files. named: whether values keep the reference's names. last: whether maps have channels last.

    share: of the values that are written.
    """

    kind: str
    named: bool
    last: bool
    share: float


def draw(rng: np.random.Generator) -> Style:
    named = bool(rng.random() < 0.7)
    share = float(rng.choice([1.0, 0.6, 0.3]))
    return Style(str(rng.choice(KINDS)), named, bool(rng.random() < 0.4), share)


def chosen(c: Torch, style: Style, rng: np.random.Generator) -> list[str]:
    """The values that are written: a part of those that are computed one by one, and always the outputs."""
    computed = [value for value in c.graph.nodes if value in c.calls or value in c.shown.values()]
    outputs = set(c.graph.outputs.values())
    keep = rng.random(len(computed)) < style.share
    return [value for value, kept in zip(computed, keep, strict=True) if kept or value in outputs]


def values(c: Torch, names: list[str], dtype: torch.dtype = torch.float32, x: Array | None = None) -> dict[str, Array]:
    """What the candidate computes, of these values of the reference."""
    found = c.everything(dtype, x)
    return {name: found[name] for name in names if name in found}


def write(
    folder: Path, arrays: Mapping[str, Array], style: Style, outputs: tuple[str, ...], scales: Mapping[str, Scale] | None = None
) -> Path:
    """The path for `refvit.check`. arrays: by values of the reference, "input" among them. scales: of those written as int8."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {v: v if style.named or v == "input" else f"buffer_{i:04d}" for i, v in enumerate(arrays)}
    if style.kind == "npz":
        np.savez(folder / "values.npz", **{names[v]: _laid_out(v, a, style) for v, a in arrays.items()})
        return folder / "values.npz"
    entries = []
    for value, given in arrays.items():
        name, a = names[value], _laid_out(value, given, style)
        scale, zero = (scales or {}).get(value, (1.0, 0))
        if value in (scales or {}):
            a = np.clip(np.rint(a / np.float32(scale)) + zero, -128, 127).astype(np.int8)
        file = f"{re.sub('[^A-Za-z0-9._-]', '_', name)}.{style.kind}"
        _write(folder / file, a, style.kind)
        layout = ("nhwc" if style.last and value != "input" else "nchw") if a.ndim == 4 else None
        entry = {"name": name, "file": file, "shape": list(a.shape), "dtype": a.dtype.name, "layout": layout}
        entries.append(entry | {"scale": scale, "zero_point": zero})
    if style.kind != "npy" or scales:
        public = {f"output {i}" if i else "output": names[value] for i, value in enumerate(outputs)}
        (folder / "manifest.json").write_text(json.dumps({"values": entries, "outputs": public}))
    return folder


def _laid_out(value: str, a: Array, style: Style) -> Array:
    last = style.last and a.ndim == 4 and value != "input"
    return np.ascontiguousarray(a.transpose(0, 2, 3, 1) if last else a, dtype="<f4")


def quantise(c: Torch) -> dict[str, Scale]:
    """Let the candidate round every result to 8 bits, as fine as its own range of it allows, right or wrong; the scales."""
    scales, own = {}, c.everything()
    for value, call in c.calls.items():
        a = own.get(value, c.reference.golden[value])
        if not np.isfinite(a).all():
            continue
        low, high = min(0.0, float(a.min())), max(0.0, float(a.max()))
        scale = float(np.float32((high - low) / 255 or 1.0))
        zero = round(-128 - low / scale)
        scales[value] = (scale, zero)

        def rounded(y: torch.Tensor, scale: float = scale, zero: int = zero) -> torch.Tensor:
            return (((y / scale).round() + zero).clamp(-128, 127) - zero) * scale

        c.results[call] = rounded
    return scales


def _write(path: Path, a: Array, kind: str) -> None:
    if kind == "npy":
        np.save(path, a)
    elif kind == "bin":
        path.write_bytes(a.tobytes())
    else:
        words = a.reshape(-1).view(f"<u{a.itemsize}")
        path.write_text("".join(f"{word:0{2 * a.itemsize}x}\n" for word in words))
