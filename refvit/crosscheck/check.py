"""`refvit.check`: from a candidate and a model, however they are given, to a report."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from refvit import backends
from refvit.crosscheck.subject import given, reference, same_weights
from refvit.errors import ConfigError
from refvit.graph.ir import dims
from refvit.loading import WeightsSource
from refvit.model import Model

if TYPE_CHECKING:
    from refvit.crosscheck.observed import Candidate
    from refvit.crosscheck.report import Report


def check(
    candidate: Any,
    model: str | Model,
    *,
    weights: WeightsSource | None = None,
    image: Any = None,
    input: Any = None,
    names: Mapping[str, str] | None = None,
    layouts: Mapping[str, str] | None = None,
    arithmetic: str | None = None,
    outputs_only: bool = False,
    **fields: Any,
) -> Report:
    """Where another implementation of a model first differs from the reference, whether that is more than rounding, and why.

    candidate: a torch module (in eval mode, with its weights); an .onnx file; what it computed, as an .npz, a dict of arrays or
        a folder of .npy, .bin or .hex, see `refvit.dump`; a function from x, float32 (n, 3, h, w), to an array or a dict of
        arrays; a refvit Model; or the name of a backend
    model, weights, fields: the reference, as in `refvit.load`, or a loaded Model; the weights that the candidate has
    image, input: an image as `refvit.infer` takes, or x, floating (n, 3, h, w), already pre-processed; both run on it. Without
        either the input that dumps hold, and for what can run a seeded one that looks like a normalised photograph
    names: the candidate's names -> refvit's, where they differ and are not to be found out; those of `Model.intermediates`
    layouts: the candidate's names, or wildcard patterns of them -> how it lays values out, such as "nhwc"
    arithmetic: what it computes in: "float64", "float32", "tf32", "bfloat16", "float16" or "int8"; by default by its dtypes
    outputs_only: ask for nothing but outputs, because looking inside would change what a runtime fuses

    Every value that both have is compared in float64. None of them has a tolerance of its own: it is measured what the
    arithmetic itself costs there, and the same multiple of it is allowed everywhere.

    Raises ConfigError and what `load` raises, each of which says what to do; ImportError if onnxruntime or torch is missing.

    >>> refvit.check(module, "vit_small_patch16_224", weights="vit.safetensors").assert_matches()
    """
    from refvit.crosscheck.arithmetic import ARITHMETICS  # `import refvit` need not load what only this function takes
    from refvit.crosscheck.comparison import compare

    if arithmetic is not None and arithmetic not in ARITHMETICS:
        raise ConfigError(f"arithmetic={arithmetic!r}: one of {', '.join(ARITHMETICS)} expected", f"arithmetic={arithmetic!r}")
    truth = reference(model, weights, fields)
    theirs = _candidate(candidate, truth, outputs_only)
    same_weights(theirs, truth)
    made = image is None and input is None and hasattr(theirs, "input")  # dumps, which have been computed from something
    held = getattr(theirs, "input", None) if made else None
    if made and held is None:
        raise ConfigError(f"{theirs.name}: holds no input that it was made from; add it as 'input', or give image or input")
    seen = given(truth, image, input if held is None else held, exact=hasattr(theirs, "input"))
    if held is not None:
        seen = dataclasses.replace(seen, text=f"the one that {theirs.name} holds, {dims(seen.x.shape)}")
    return compare(theirs, truth, seen, names, layouts, arithmetic)


def _candidate(candidate: Any, truth: Model, outputs_only: bool) -> Candidate:
    """The name of a backend is the reference's own weights on it."""
    from refvit.crosscheck.candidates import candidate as made

    if isinstance(candidate, str) and candidate in backends.BACKENDS and not os.path.lexists(candidate):
        candidate = Model(truth._weights, backend=candidate)
    return made(candidate, outputs_only=outputs_only)
