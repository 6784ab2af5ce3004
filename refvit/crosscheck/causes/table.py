"""The table of causes, the likeliest first where two of them cannot be told apart."""

from __future__ import annotations

from refvit.crosscheck.causes import (
    activations,
    arithmetic_of,
    attention_,
    convolutions,
    dropout,
    inputs,
    norms,
    orders,
    outputs,
    resizing,
    stripes,
    structure,
    tokens,
    weights,
)
from refvit.crosscheck.causes.hypothesis import Cause

CAUSES: tuple[Cause, ...] = (
    *inputs.CAUSES,
    *activations.CAUSES,
    *norms.CAUSES,
    *attention_.CAUSES,
    *orders.CAUSES,
    *stripes.CAUSES,
    *convolutions.CAUSES,
    *resizing.CAUSES,
    *tokens.CAUSES,
    *dropout.CAUSES,
    *structure.CAUSES,
    *weights.CAUSES,
    *outputs.CAUSES,
    *arithmetic_of.CAUSES,
)
BY_NAME: dict[str, Cause] = {cause.name: cause for cause in CAUSES}
assert len(BY_NAME) == len(CAUSES)
