"""Maps enlarged or shrunk under another rule: kind, corners, coordinates, antialiasing, scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from refvit.crosscheck.causes.hypothesis import Call, Cause, Change, Scene
from refvit.graph.ir import Array, Node
from refvit.ops.resize import _cubic, _triangle, resize

Positions = Callable[[int, int], Array]


def _half(size: int, out: int) -> Array:
    return (np.arange(out) + 0.5) * size / out - 0.5


def _corners(size: int, out: int) -> Array:
    return np.arange(out) * ((size - 1) / (out - 1) if out > 1 else 0.0)


def _asymmetric(size: int, out: int) -> Array:
    return np.arange(out) * size / out


def _offset(size: int, out: int) -> Array:
    """0.1 is added to the size before the factor is computed, as DINO does for position embeddings."""
    return (np.arange(out) + 0.5) * size / (out + 0.1) - 0.5


def _power(size: int, out: int) -> Array:
    """The factor is the power of two next to the ratio of sizes, whatever the sizes are."""
    factor = 2.0 ** round(math.log2(out / size))
    return (np.arange(out) + 0.5) / factor - 0.5


# name -> (positions, rounding) of nearest neighbours
NEAREST: dict[str, tuple[str, Callable[[int, int], Array]]] = {
    "nearest": ("nearest, floor(i in / out)", lambda n, m: np.floor(_asymmetric(n, m) + 1e-9)),
    "nearest-exact": ("nearest, floor((i + 1/2) in / out), as Pillow and nearest-exact",
                      lambda n, m: np.floor(_half(n, m) + 0.5 + 1e-9)),
    "nearest-half-down": ("nearest, (i + 1/2) in / out - 1/2 rounded, halves down",
                          lambda n, m: np.ceil(_half(n, m) - 0.5 - 1e-9)),
    "nearest-round": ("nearest, i in / out rounded, halves up", lambda n, m: np.floor(_asymmetric(n, m) + 0.5)),
    "nearest-round-down": ("nearest, i in / out rounded, halves down", lambda n, m: np.ceil(_asymmetric(n, m) - 0.5)),
    "nearest-ceil": ("nearest, i in / out rounded up", lambda n, m: np.ceil(_asymmetric(n, m) - 1e-9)),
    "nearest-corners": ("nearest with align_corners", lambda n, m: np.floor(_corners(n, m) + 0.5)),
}  # fmt: skip
POSITIONS: dict[str, tuple[str, Positions]] = {
    "half": ("half-pixel centres (align_corners=False)", _half),
    "corners": ("align_corners=True", _corners),
    "asymmetric": ("asymmetric coordinates i in / out", _asymmetric),
    "offset": ("the scale computed from the size plus 0.1", _offset),
    "power": ("the factor a power of two instead of the ratio of sizes", _power),
}


def sampled(x: Array, size: tuple[int, int], kind: str, positions: Positions) -> Array:
    """x (n, c, h, w) at other positions: kind "nearest" (positions are indices), "bilinear", "bicubic" or "bicubic-half"."""
    for axis, out in ((3, size[1]), (2, size[0])):
        n = x.shape[axis]
        s = positions(n, out)
        along = (-1,) if axis == 3 else (-1, 1)
        if kind == "nearest":
            x = x.take(s.astype(np.int64).clip(0, n - 1), axis)
            continue
        reach = np.arange(0, 2) if kind == "bilinear" else np.arange(-1, 3)
        index = np.floor(s).astype(np.int64) + reach[:, None]
        weight = _triangle(index - s) if kind == "bilinear" else _cubic(index - s, -0.5 if kind == "bicubic-half" else -0.75)
        index = index.clip(0, n - 1)
        x = np.sum([x.take(i, axis) * w.astype(x.dtype).reshape(along) for i, w in zip(index, weight, strict=True)], axis=0)
    return x


def _area(x: Array, size: tuple[int, int]) -> Array:
    from refvit.ops.pool import adaptive_avg_pool

    return adaptive_avg_pool(x, size=size)


def _zeros(x: Array, size: tuple[int, int]) -> Array:
    """Padded with zeros below and right, or cropped, instead of resized."""
    rows, columns = max(size[0] - x.shape[2], 0), max(size[1] - x.shape[3], 0)
    return np.pad(x, ((0, 0), (0, 0), (0, rows), (0, columns)))[:, :, : size[0], : size[1]]


def _repeated(x: Array, size: tuple[int, int]) -> Array:
    rows, columns = max(size[0] - x.shape[2], 0), max(size[1] - x.shape[3], 0)
    return np.pad(x, ((0, 0), (0, 0), (0, rows), (0, columns)), mode="edge")[:, :, : size[0], : size[1]]


def own_kind(node: Node) -> tuple[str, str]:
    """(kind, positions) of a node, both as in `alternatives`."""
    mode = node.attrs["mode"]
    if node.attrs.get("antialias"):
        return f"{mode}-antialias", "half"
    return mode, "corners" if node.attrs["align_corners"] else "half"


def alternatives(node: Node) -> Iterator[tuple[str, str, str, Callable[[Array], Array]]]:
    """(cause, option, text, function) of every other rule."""
    size, (mode, where) = node.attrs["size"], own_kind(node)
    plain = mode.partition("-")[0]
    expected = f"{mode}{'' if plain == 'nearest' else ', ' + POSITIONS[where][0]}"
    for name, (words, index) in NEAREST.items():
        if name != mode:
            cause = "resize-coordinates" if plain == "nearest" else "resize-kind"
            text = f"{words}, where {expected} is expected"
            yield cause, name, text, partial(sampled, size=size, kind="nearest", positions=index)
    for kind in ("bilinear", "bicubic", "bicubic-half"):
        for name, (words, positions) in POSITIONS.items():
            if (kind, name) == (mode, where):
                continue
            if kind != plain:
                cause = "resize-antialias" if mode.startswith(kind.partition("-")[0]) else "resize-kind"
            elif mode.endswith("antialias"):
                cause = "resize-antialias"
            elif name in ("half", "corners"):
                cause = "resize-align-corners"
            else:
                cause = "resize-scale" if name in ("offset", "power") else "resize-coordinates"
            said = "bicubic with a = -1/2" if kind == "bicubic-half" else kind
            text = f"{said}, {words}, where {expected} is expected"
            yield cause, f"{kind} {name}", text, partial(sampled, size=size, kind=kind, positions=positions)
    for kind in ("bilinear", "bicubic"):
        if mode != f"{kind}-antialias":
            cause = "resize-antialias" if plain == kind else "resize-kind"
            function = partial(resize, size=size, mode=kind, align_corners=False, antialias=True)
            yield cause, f"{kind} antialias", f"{kind} with antialiasing, where {expected} is expected", function
    yield "resize-kind", "area", f"the mean of the area, where {expected} is expected", partial(_area, size=size)
    yield "resize-padding", "zeros", "padded with zeros (or cropped) instead of resized", partial(_zeros, size=size)
    yield (
        "resize-padding",
        "edge",
        "padded with the border's values (or cropped) instead of resized",
        partial(_repeated, size=size),
    )


def _rule(scene: Scene, wanted: str) -> Iterator[Change]:
    for node in scene.of("resize"):
        for cause, option, text, function in alternatives(node):
            if cause == wanted:
                yield Change(option, text, (node.name,), scene.instead(node, function))


def _steps(scene: Scene) -> Iterator[Change]:
    """In one step instead of two, or in two instead of one."""
    for node in scene.of("resize"):
        before = scene.producer(node.inputs[0])
        attrs = {k: node.attrs[k] for k in ("mode", "align_corners")}
        if before is not None and before.op == "resize":
            call = {node.name: Call(partial(resize, size=node.attrs["size"], **attrs), (before.inputs[0],))}
            yield Change("once", "resized in one step where two are expected", (node.name,), call)
        elif attrs["mode"] != "nearest":
            size, old = node.attrs["size"], scene.shape(str(node.inputs[0]))[2:]
            steps = [math.log2(new / before) for new, before in zip(size, old, strict=True)]
            for factor in sorted({2 ** max(f(s), 0) for f in (math.floor, math.ceil) for s in steps} - {1}):
                call = scene.instead(node, partial(_twice, size=size, factor=factor, **attrs))
                text = f"resized by a power of two, {factor}, first, and then to the size"
                yield Change(f"twice, by {factor} first", text, (node.name,), call)


def _twice(x: Array, size: tuple[int, int], factor: int, mode: str, align_corners: bool) -> Array:
    x = resize(x, size=(x.shape[2] * factor, x.shape[3] * factor), mode=mode, align_corners=align_corners)
    return resize(x, size=size, mode=mode, align_corners=align_corners)


_RULE = "use the reference's mode, align_corners and antialias"
CAUSES = (
    Cause(
        "resize-align-corners", "exchanges align_corners=True and False", _RULE, partial(_rule, wanted="resize-align-corners")
    ),
    Cause("resize-kind", "interpolates by another kind", _RULE, partial(_rule, wanted="resize-kind")),
    Cause("resize-coordinates", "takes other source positions", _RULE, partial(_rule, wanted="resize-coordinates")),
    Cause("resize-antialias", "differs in antialiasing", _RULE, partial(_rule, wanted="resize-antialias")),
    Cause(
        "resize-scale",
        "computes the scale otherwise than from both sizes",
        "pass size=, not scale_factor=",
        partial(_rule, wanted="resize-scale"),
    ),
    Cause("resize-steps", "resizes in another number of steps", "resize as often as the reference", _steps),
    Cause(
        "resize-padding",
        "pads or crops where the map is to be resized",
        "resize to the next multiple of the patch",
        partial(_rule, wanted="resize-padding"),
    ),
)
