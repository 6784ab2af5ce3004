"""What a candidate is held against: the reference in float64, and the input that both see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refvit.api import load
from refvit.errors import ConfigError
from refvit.graph.ir import Array, dims
from refvit.loading import WeightsSource
from refvit.model import Model

SEED = 0  # of the input that is made where none is given


@dataclass(frozen=True)
class Given:
    """The input: x (n, 3, h, w), pre-processed, and what it is, in words. float32, or as dumps hold it.

    pixels: the decoded image, uint8 (h, w, 3), if it was one
    """

    x: Array
    text: str
    notes: tuple[str, ...] = ()
    pixels: Array | None = None


def reference(model: str | Model | None, weights: WeightsSource | None, fields: Mapping[str, Any]) -> Model:
    """The model on the NumPy definitions in float64. Of a loaded Model its weights; then the rest has to be left out."""
    if isinstance(model, Model):
        surplus = ["weights"] * (weights is not None) + list(fields)
        if surplus:
            raise ConfigError(f"{', '.join(surplus)} cannot be changed on a loaded model; give them to refvit.load")
        return Model(model._weights, backend="numpy", dtype="float64")
    if model is None and weights is None:
        raise ConfigError("model: the name of a model expected, such as vit_small_patch16_224, or a refvit.Model", "model")
    return load(model, weights, backend="numpy", dtype="float64", **fields)


def same_weights(candidate: Any, model: Model) -> None:
    """ConfigError for what `refvit.dump` made from other weights: every value would differ, and no cause explains it."""
    made = getattr(candidate, "weights_sha256", "")
    if made and made != model._weights.sha256:
        raise ConfigError(
            f"{candidate.name}: was made from {candidate.model or 'a model'} with weights {made:.12}..., which are not those "
            f"of {model.name}, {model._weights.sha256:.12}...; give the model and the weights that it was made from"
        )


def given(model: Model, image: Any, x: Any, *, exact: bool = False) -> Given:
    """The input from an image, from an array, or from neither.

    exact: keep a float64 array, from which dumps were made; what runs is given float32.
    """
    if image is not None and x is not None:
        raise ConfigError("image= and input=: one of them expected, an image or an array that is already pre-processed")
    if x is not None:
        x = model._check(x) if exact else np.asarray(model._check(x), np.float32)
        return Given(x, f"the given array, {dims(x.shape)}")
    if image is None:
        h, w = model.input_size
        pixels = photograph(h, w)
        x = plain(model, pixels)[None]
        return Given(x, f"seeded noise with the spectrum of a photograph, {dims(x.shape)}")
    picture, plan = model._prepare(image, None, False)
    x = np.asarray(plan.inputs[0], np.float32)[None]
    notes = picture.notes
    if len(plan.inputs) > 1:
        notes = (*notes, f"of the {len(plan.inputs)} inputs that infer would run for this image the first was taken")
    return Given(x, f"{picture.source}, {dims(x.shape)}", notes, picture.pixels)


def plain(model: Model, pixels: Array) -> Array:
    """uint8 (h, w, 3) RGB -> float32 (3, h, w), normalised as the model asks for, neither resized nor cropped."""
    return model.preprocess.replace(resize=None, crop=None, enlarge=None, longest=None)(pixels)


def photograph(h: int, w: int, seed: int = SEED) -> Array:
    """uint8 (h, w, 3): noise whose amplitude falls with the frequency, as in natural images, and of which channels share most.

    A constant or white input would hide what a real image shows: errors at edges, of resampling, of the order of channels.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None])
    frequency[0, 0] = np.inf
    planes = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((4, h, w))) / frequency, s=(h, w))
    planes /= planes.std(axis=(1, 2), keepdims=True) + 1e-12
    colour = planes[3] + 0.4 * planes[:3] + np.array([0.3, 0.0, -0.3])[:, None, None]
    return np.clip(np.rint(128 + 60 * colour), 0, 255).astype(np.uint8).transpose(1, 2, 0)
