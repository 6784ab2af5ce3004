"""The network's input in another form: channel order, mean and std, scale, orientation, axes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from refvit.crosscheck.causes.hypothesis import Cause, Change, Family, Scene
from refvit.graph.ir import Array

Triple = tuple[float, float, float]
# name -> mean and std of pixels in [0, 1]
NORMALISATIONS: dict[str, tuple[Triple, Triple]] = {
    "none, pixels in 0..1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "none, pixels in 0..255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "mean and std 0.5, pixels in -1..1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "ImageNet's mean and std in the order of BGR": ((0.406, 0.456, 0.485), (0.225, 0.224, 0.229)),
    "CLIP's mean and std": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "ImageNet's mean alone": ((0.485, 0.456, 0.406), (1.0, 1.0, 1.0)),
    "ImageNet's mean and std 0.5": ((0.485, 0.456, 0.406), (0.5, 0.5, 0.5)),
    "mean 0.5 and std 1": ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
    "128 subtracted from 0..255, divided by 128": ((128 / 255,) * 3, (128 / 255,) * 3),
}


def entry(scene: Scene) -> str | None:
    """The graph's input, where the segment reads it."""
    (name,) = scene.graph.inputs
    return name if name in scene.values else None


def affine(x: Array, factor: Sequence[float] | Array, shift: Sequence[float] | Array) -> Array:
    """factor x + shift, channel by channel."""
    return x * np.asarray(factor).reshape(-1, 1, 1) + np.asarray(shift).reshape(-1, 1, 1)


def between(own: tuple[Triple, Triple], other: tuple[Triple, Triple]) -> tuple[Array, Array]:
    """(factor, shift) from pixels normalised by `own` to the same pixels normalised by `other`."""
    (mean, std), (their_mean, their_std) = np.asarray(own), np.asarray(other)
    return std / their_std, (mean - their_mean) / their_std


def _channel_order(scene: Scene) -> Iterator[Change]:
    name = entry(scene)
    if name is None:
        return
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2):
            text = "red and blue are exchanged (RGB for BGR, or the reverse)" if order == (2, 1, 0) else \
                   f"the input's channels are in the order {order}"  # fmt: skip
            yield Change(f"order {order}", text, (name,), sources={name: partial(np.take, indices=order, axis=1)})


def _normalisation(scene: Scene) -> Iterator[Change | Family]:
    """Between any two of the usual ones, since it is not known here which one the weights want; the same again; and any."""
    name = entry(scene)
    if name is None:
        return
    seen: list[tuple[Array, Array]] = [(np.ones(3), np.zeros(3))]
    for (own, a), (other, b) in itertools.permutations(NORMALISATIONS.items(), 2):
        how, text = between(a, b), f"normalised by {other} where {own} is expected"
        if not _known(seen, how) and not _is_scale(*how):
            yield Change(f"{own} > {other}", text, (name,), sources={name: partial(affine, factor=how[0], shift=how[1])})
    for own, (mean, std) in NORMALISATIONS.items():
        factor, shift = 1 / np.asarray(std), -np.asarray(mean) / np.asarray(std)
        if not _known(seen, (factor, shift)):
            text = f"normalised once more, by {own}"
            yield Change(f"twice {own}", text, (name,), sources={name: partial(affine, factor=factor, shift=shift)})

    def make(numbers: tuple[float, ...], name: str = name) -> Change:
        factor, shift = numbers[:3], numbers[3:]
        text = f"the input's channels are multiplied by {_said(factor)} and {_said(shift)} is added: mean and std differ"
        return Change("affine", text, (name,), sources={name: partial(affine, factor=factor, shift=shift)})

    yield Family("affine", make, ((1.0, 1.0, 1.0, 0.0, 0.0, 0.0),))


def _known(seen: list[tuple[Array, Array]], how: tuple[Array, Array]) -> bool:
    if any(np.allclose(how[0], f, rtol=1e-6) and np.allclose(how[1], s, rtol=1e-6, atol=1e-9) for f, s in seen):
        return True
    seen.append(how)
    return False


def _is_scale(factor: Array, shift: Array) -> bool:
    return bool(np.ptp(factor) < 1e-9 * factor[0] and not shift.any())


def _said(numbers: Sequence[float]) -> str:
    return "(" + ", ".join(f"{n:.4g}" for n in numbers) + ")"


def _scale(scene: Scene) -> Iterator[Change | Family]:
    name = entry(scene)
    if name is None:
        return
    forms = [(255.0, 0.0, "0..255 where 0..1 is expected"), (1 / 255, 0.0, "divided by 255 once more"),
             (2.0, -1.0, "-1..1 where 0..1 is expected"), (0.5, 0.5, "0..1 where -1..1 is expected"),
             (127.5, 127.5, "0..255 where -1..1 is expected"), (2.0, 0.0, "doubled"), (0.5, 0.0, "halved"),
             (128 / 127.5, 0.0, "divided by 127.5, not by 128"), (256 / 255, 0.0, "divided by 255 where 256 is expected"),
             (255 / 256, 0.0, "divided by 256 where 255 is expected"), (-1.0, 0.0, "negative")]  # fmt: skip
    for factor, shift, words in forms:
        function = partial(affine, factor=(factor,) * 3, shift=(shift,) * 3)
        yield Change(f"{factor} {shift}", f"the input is {words}", (name,), sources={name: function})

    def make(numbers: tuple[float, ...], name: str = name) -> Change:
        function = partial(np.multiply, numbers[0])
        return Change("factor", f"the input is multiplied by {numbers[0]:.4g}", (name,), sources={name: function})

    yield Family("factor", make, ((1.0,),))


def _orientation(scene: Scene) -> Iterator[Change]:
    name = entry(scene)
    if name is None:
        return
    for option, text, function in (
        ("left right", "the input is mirrored left to right", lambda x: x[:, :, :, ::-1]),
        ("upside down", "the input is upside down", lambda x: x[:, :, ::-1]),
        ("rotated", "the input is rotated by 180 degrees", lambda x: x[:, :, ::-1, ::-1]),
        ("transposed", "rows and columns of the input are exchanged", lambda x: x.swapaxes(2, 3)),
        ("left", "the input is rotated to the left", lambda x: np.rot90(x, 1, (2, 3))),
        ("right", "the input is rotated to the right", lambda x: np.rot90(x, -1, (2, 3))),
    ):
        yield Change(option, text, (name,), sources={name: partial(_contiguous, function=function)})


def _contiguous(x: Array, function: object) -> Array:
    assert callable(function)
    return np.ascontiguousarray(function(x))


def _axes(scene: Scene) -> Iterator[Change]:
    name = entry(scene)
    if name is None:
        return
    for option, text, function in (
        ("read", "the input's numbers, which lie channel by channel, are read as pixel by pixel (NHWC for NCHW)",
         lambda x: x.reshape(x.shape[0], x.shape[2], x.shape[3], 3).transpose(0, 3, 1, 2)),
        ("written", "the input's numbers lie pixel by pixel and are read channel by channel (NHWC for NCHW)",
         lambda x: x.transpose(0, 2, 3, 1).reshape(x.shape)),
        ("columns", "the input's numbers lie column by column and are read row by row",
         lambda x: x.swapaxes(2, 3).reshape(x.shape)),
    ):  # fmt: skip
        yield Change(option, text, (name,), sources={name: partial(_contiguous, function=function)})


CAUSES = (
    Cause(
        "input-channel-order",
        "reads the input's channels in another order",
        "exchange red and blue before the network, or in the first convolution's weight",
        _channel_order,
    ),
    Cause("input-scale", "has pixels in another range", "scale pixels to 0..1 before mean and std", _scale),
    Cause("input-normalisation", "normalises the input otherwise", "use the mean and std of the weights, once", _normalisation),
    Cause("input-orientation", "sees the input turned or mirrored", "keep rows and columns as they are", _orientation),
    Cause("input-axes", "takes the input for NHWC, or the reverse", "transpose the axes instead of reshaping", _axes),
)
