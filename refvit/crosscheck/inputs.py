"""Why a candidate's own input differs: the image resized, cropped, turned, ordered or normalised in another way.

Every way to resize and crop gives a picture. For each picture and order of channels the numbers that turn its grey levels into
the candidate's input are found by least squares. The picture that leaves nothing over is the candidate's, and the numbers are
its mean and std.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from refvit.crosscheck.causes.inputs import NORMALISATIONS
from refvit.errors import RefvitError
from refvit.graph.ir import Array
from refvit.ops.pool import adaptive_avg_pool
from refvit.ops.resize import resize
from refvit.vision.opencv import resize_bilinear
from refvit.vision.preprocess import FILTERS, OPENCV, Preprocess, _scaled

LEVEL = 0.35  # grey levels, root mean square: what rounding to whole levels leaves (0.29), and a little
EXACT = 0.02  # of those who round where the reference does
DECODERS = 2.5  # grey levels, root mean square, and
DECODERS_MOST = 24.0  # at most, that decoders of one JPEG file may differ by
Resizer = Callable[[Array, tuple[int, int]], Array]


def _pillow(pixels: Array, size: tuple[int, int], kind: str) -> Array:
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], FILTERS[kind]), np.float64)


def _float(pixels: Array, size: tuple[int, int], mode: str, corners: bool = False, antialias: bool = False) -> Array:
    x = pixels.transpose(2, 0, 1)[None].astype(np.float64)
    return np.asarray(resize(x, size=size, mode=mode, align_corners=corners, antialias=antialias)[0].transpose(1, 2, 0))


def _area(pixels: Array, size: tuple[int, int]) -> Array:
    x = pixels.transpose(2, 0, 1)[None].astype(np.float64)
    return np.asarray(adaptive_avg_pool(x, size=size)[0].transpose(1, 2, 0))


# name -> (in words, function, whether it averages what it skips)
RESIZERS: dict[str, tuple[str, Resizer, bool]] = {
    **{kind: (f"Pillow's {kind}, antialiased", partial(_pillow, kind=kind), True) for kind in FILTERS if kind != "nearest"},
    "nearest": ("nearest neighbours", partial(_pillow, kind="nearest"), False),
    OPENCV: ("OpenCV's bilinear, not antialiased", lambda p, size: resize_bilinear(p, size).astype(np.float64), False),
    "float bilinear": ("bilinear on floats, not antialiased (torch.interpolate, tf.image.resize)",
                       partial(_float, mode="bilinear"), False),
    "float bicubic": ("bicubic with a = -3/4, not antialiased (torch.interpolate, OpenCV)",
                      partial(_float, mode="bicubic"), False),
    "corners": ("bilinear with align_corners=True", partial(_float, mode="bilinear", corners=True), False),
    "float bilinear antialiased": ("bilinear on floats, antialiased", partial(_float, mode="bilinear", antialias=True), True),
    "float bicubic antialiased": ("bicubic on floats, antialiased", partial(_float, mode="bicubic", antialias=True), True),
    "area": ("the mean of the area (INTER_AREA)", _area, True),
}  # fmt: skip
USUAL = ("bilinear", "bicubic", OPENCV, "float bilinear")  # that are tried with other sizes too
TURNS: dict[str, Callable[[Array], Array]] = {
    "mirrored left to right": lambda p: p[:, ::-1], "rotated by 180 degrees": lambda p: p[::-1, ::-1],
    "upside down": lambda p: p[::-1], "transposed": lambda p: p.swapaxes(0, 1), "rotated to the left": lambda p: np.rot90(p),
    "rotated to the right": lambda p: np.rot90(p, -1), "transposed and rotated": lambda p: np.rot90(p.swapaxes(0, 1), 2),
}  # fmt: skip


# id -> (what such a candidate does, what to change); channel order, mean and std are in the table of `causes`
ADVICE: dict[str, tuple[str, str]] = {
    "input-resize-filter": ("resizes the image by another filter", "use the interpolation of the weights' preprocess"),
    "input-antialias": ("differs in antialiasing when it resizes the image", "resize as the weights were evaluated: Pillow's "
                        "filters average what they skip, OpenCV's and interpolate() without antialias=True do not"),
    "input-resize-rounding": ("rounds resized pixels otherwise", "resize uint8 pixels, not floats"),
    "input-crop": ("resizes to another size or crops elsewhere", "take resize and crop from the weights' preprocess"),
    "input-squash": ("squashes the image instead of keeping its sides in proportion, or the reverse",
                     "take resize and crop from the weights' preprocess"),
    "input-exif": ("treats the image's EXIF orientation otherwise", "turn the image upright by its EXIF orientation"),
    "input-decoder": ("decodes the image by another decoder", "this is no mistake: compare on the same pixels, as PNG"),
}  # fmt: skip


@dataclass(frozen=True)
class InputCause:
    """What differs: ids of causes, what each is in words, and what is left over in grey levels (root mean square)."""

    causes: tuple[str, ...]
    texts: tuple[str, ...]
    left: float


@dataclass(frozen=True)
class _Picture:
    causes: tuple[str, ...]  # none for the reference's own
    text: str
    pixels: Array  # (H, W, 3), grey levels, RGB


Nearest = tuple[float, _Picture, tuple[int, ...], Array, Array]  # what is left, and order, factor and shift as in `_fit`


def explain(given: Array, pixels: Array, preprocess: Preprocess) -> InputCause | None:
    """How the candidate's input (3, H, W) came from the image.

    pixels: uint8 (h, w, 3) RGB, upright, as `refvit.infer` decodes it; preprocess: what the reference does
    returns None if no way of the table gives it, and no causes if it is the reference's own.
    """
    given = np.asarray(given, np.float64)
    size = (given.shape[1], given.shape[2])
    best = _nearest(given, _pictures(pixels, preprocess, size))
    decoded = best is not None and best[0] > LEVEL and _decoded_otherwise(given, pixels, preprocess, size)
    if best is not None and best[0] > LEVEL and not decoded:
        best = _nearest(given, _other_sides(pixels, preprocess, size))
    if best is None or (best[0] > LEVEL and not decoded):
        return None
    left, picture, *_ = best
    found = [] if decoded else [(cause, picture.text) for cause in picture.causes]
    found += _values(*(decoded or best[2:]), preprocess)
    if decoded and found and found[-1][1].startswith(ANY):
        return None  # any change of tone would pass for both
    if decoded or (left > EXACT and not found):
        found.append(("input-decoder", DECODED))  # behind the mistakes: it is none
    return InputCause(tuple(cause for cause, _ in found), tuple(text for _, text in found), left)


def _nearest(given: Array, pictures: Iterator[_Picture]) -> Nearest | None:
    best: Nearest | None = None
    for picture in pictures:
        left, order, factor, shift = _fit(given, picture.pixels)
        if best is None or left < 0.7 * best[0]:  # what comes first is the likelier
            best = (left, picture, order, factor, shift)
        if best[0] < EXACT:
            break
    return best


ANY = "mean "  # how the words for numbers begin that nobody is known to use
DECODED = "grey levels differ as those of two JPEG decoders do (inverse transform, or how chroma is enlarged)"


def _decoded_otherwise(
    given: Array, pixels: Array, preprocess: Preprocess, size: tuple[int, int]
) -> tuple[tuple[int, ...], Array, Array] | None:
    own = next(_pictures(pixels, preprocess, size), None)
    if own is None or own.causes:
        return None
    left, order, factor, shift = _fit(given, own.pixels)
    difference = (given[list(order)] - own.pixels.transpose(2, 0, 1) * factor[:, None, None] - shift[:, None, None]) / factor[
        :, None, None
    ]
    return (order, factor, shift) if left <= DECODERS and np.abs(difference).max() <= DECODERS_MOST else None


def _fit(given: Array, picture: Array) -> tuple[float, tuple[int, ...], Array, Array]:
    """(what is left in grey levels, order, factor, shift): given[order[c]] = factor[c] picture[c] + shift[c], c in RGB."""
    a, b = picture.reshape(-1, 3), given.reshape(3, -1).T
    a0, b0 = a - a.mean(0), b - b.mean(0)
    covariance, own, theirs = a0.T @ b0, (a0 * a0).sum(0), (b0 * b0).sum(0)
    best: tuple[float, tuple[int, ...], Array, Array] | None = None
    for order in itertools.permutations(range(3)):
        index = list(order)
        products = covariance[range(3), index]
        factor = products / np.maximum(own, 1e-300)
        rest = np.maximum(theirs[index] - factor * products, 0)
        if (factor == 0).any():
            continue
        left = float(np.sqrt((rest / factor**2).mean() / len(a)))
        if best is None or left < 0.99 * best[0]:
            best = (left, order, factor, b.mean(0)[index] - factor * a.mean(0))
    return best or (np.inf, (0, 1, 2), np.ones(3), np.zeros(3))


def _pictures(pixels: Array, preprocess: Preprocess, size: tuple[int, int]) -> Iterator[_Picture]:
    """All ways that give the size, the reference's own first."""
    plain = preprocess.replace(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), channel_order="rgb")
    turned = ((t(pixels), ("input-exif",), f"the image is {n}: EXIF orientation") for n, t in TURNS.items())
    for image, causes, text in ((pixels, (), ""), *turned):
        try:
            own = plain(np.ascontiguousarray(image)).transpose(1, 2, 0).astype(np.float64) * 255
        except RefvitError:
            continue
        if own.shape[:2] == size:
            yield _Picture(causes, text, own)
    mine = preprocess.interpolation
    for resizer in (mine, *(name for name in RESIZERS if name != mine)):
        words, function, _ = RESIZERS[resizer]
        made: dict[tuple[int, int], Array] = {}
        for plan, to, crop in _plans(pixels, preprocess, size):
            causes = (*plan, *_filter_cause(resizer, preprocess))
            if to[0] < size[0] or to[1] < size[1] or not causes or (plan and resizer not in (mine, *USUAL)):
                continue
            if to not in made:
                made[to] = function(pixels, to) if to != pixels.shape[:2] else pixels.astype(np.float64)
            text = f"resized to {to[1]} x {to[0]} by {words}, {CROPS[crop]}"
            yield _Picture(causes, text, _cropped(made[to], size, crop))


def _other_sides(pixels: Array, preprocess: Preprocess, size: tuple[int, int]) -> Iterator[_Picture]:
    """The reference's own way with any other shorter side, of which at least half is left after the crop."""
    h, w = pixels.shape[:2]
    words, function, _ = RESIZERS[preprocess.interpolation]
    for side in range(min(size), 2 * min(size) + 1):
        for whole in (int, round):
            to = (side, whole(side * w / h)) if h <= w else (whole(side * h / w), side)
            if to[0] >= size[0] and to[1] >= size[1]:
                text = f"resized to {to[1]} x {to[0]} by {words}, {CROPS['round']}"
                yield _Picture(("input-crop",), text, _cropped(function(pixels, to), size, "round"))


def _filter_cause(resizer: str, preprocess: Preprocess) -> tuple[str, ...]:
    own = preprocess.interpolation
    if resizer == own:
        return ()
    if RESIZERS[resizer][2] != RESIZERS[own][2]:
        return ("input-antialias",)
    same = resizer == f"float {own} antialiased" or {resizer, own} == {"float bilinear", OPENCV}
    return ("input-resize-rounding",) if same else ("input-resize-filter",)


CROPS = {
    "round": "the centre cropped",
    "floor": "the centre cropped, half pixels rounded down",
    "ceil": "the centre cropped, half pixels rounded up",
    "corner": "the upper left corner cropped",
}
ROUND: dict[str, Callable[[float], int]] = {"round": round, "floor": math.floor, "ceil": math.ceil, "corner": lambda _: 0}


def _cropped(x: Array, size: tuple[int, int], crop: str) -> Array:
    top, left = (ROUND[crop]((a - b) / 2) for a, b in zip(x.shape, size, strict=False))
    return x[top : top + size[0], left : left + size[1]]


def _plans(
    pixels: Array, preprocess: Preprocess, size: tuple[int, int]
) -> Iterator[tuple[tuple[str, ...], tuple[int, int], str]]:
    """(causes, size to resize to, crop): the reference's own first, then sides in use, squashed, not resized."""
    h, w = pixels.shape[:2]
    short, own = min(size), _scaled(h, w, preprocess.resize, preprocess.longest)
    sides = [preprocess.resize] if isinstance(preprocess.resize, int) else []
    sides += [int(short / share) for share in (1.0, 0.875, 0.9, 0.95, 0.96, 0.8)] + [round(short / 0.875), short + 32]
    seen: set[tuple[tuple[int, int], str]] = set()
    for to, cause in (
        (own, ""),
        *(((s, t(s * w / h)) if h <= w else (t(s * h / w), s), "input-crop") for s in sides for t in (int, round, math.ceil)),
        *((to, "input-squash") for to in (size, *((s, s) for s in sides))),
        ((h, w), "input-crop"),
    ):
        for crop in ROUND:
            key = (to, "" if to == size else crop)
            if key not in seen:
                seen.add(key)
                yield ((cause,) if cause else () if crop == "round" else ("input-crop",)), to, crop


def _values(order: Sequence[int], factor: Array, shift: Array, preprocess: Preprocess) -> Iterator[tuple[str, str]]:
    """(cause, text) of channel order, mean and std. factor and shift are those of red, green and blue."""
    expected = (0, 1, 2) if preprocess.channel_order == "rgb" else (2, 1, 0)
    if tuple(order) != expected:
        yield "input-channel-order", f"channels are in the order {''.join('RGB'[list(order).index(c)] for c in range(3))}"
    channels = list(expected)  # mean and std are in the network's order
    mean, std = np.asarray(preprocess.mean)[channels], np.asarray(preprocess.std)[channels]
    own_std, own_mean = 1 / (255 * factor), -shift / (255 * factor)
    if np.allclose(own_std, std, rtol=5e-3) and np.allclose(own_mean, mean, atol=2e-3):
        return
    if np.allclose(own_std * 255, std, rtol=5e-3) and np.allclose(own_mean * 255, mean, atol=2e-3):
        yield "input-scale", "pixels are not divided by 255 before mean and std are applied"
        return
    for name, (known_mean, known_std) in NORMALISATIONS.items():
        for read in ((0, 1, 2), tuple(order)):
            if np.allclose(own_mean, np.asarray(known_mean)[list(read)], atol=2e-3) and np.allclose(
                own_std, np.asarray(known_std)[list(read)], rtol=5e-3
            ):
                yield ("input-scale" if name.endswith("0..255") else "input-normalisation"), f"normalised by {name}"
                return
    yield "input-normalisation", f"{ANY}{_said(own_mean)} and std {_said(own_std)} of red, green and blue"


def _said(numbers: Array) -> str:
    return "(" + ", ".join(f"{n:.3f}" for n in numbers) + ")"
