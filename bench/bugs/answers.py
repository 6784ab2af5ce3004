"""Which of the causes that `refvit check` names is the right one, for each mistake: one line each.

Mistakes have ids of their own, in plain words; those of the causes are written here once both exist. It is the only place where
the two meet.
"""

from __future__ import annotations

import re

UNKNOWN = frozenset({"unknown"})


def _ids(*names: str) -> frozenset[str]:
    return frozenset(names)


ANSWERS: dict[str, frozenset[str]] = {
    # activations
    "gelu-tanh": _ids("gelu-tanh"),
    "gelu-quick": _ids("gelu-quick"),
    "gelu-as-hardswish": _ids("activation-swapped: hardswish"),
    "gelu-as-relu": _ids("activation-swapped: relu"),
    "silu-as-hardswish": _ids("activation-swapped: hardswish"),
    "silu-as-gelu": _ids("activation-swapped: gelu"),
    "silu-as-relu": _ids("activation-swapped: relu"),
    "hardswish-as-silu": _ids("activation-swapped: silu"),
    "relu-as-relu6": _ids("activation-swapped: relu6"),
    "relu-as-leaky-relu": _ids("activation-swapped: leaky"),
    "activation-missing": _ids("activation-missing"),
    "activation-extra": _ids("activation-extra"),
    # norms
    "layer-norm-eps": _ids("layer-norm-eps"),
    "batch-norm-eps": _ids("batch-norm-eps"),
    "batch-norm-mean-and-variance-exchanged": _ids("batch-norm-swapped"),
    "batch-norm-in-training-mode": _ids("batch-norm-training"),
    "batch-norm-missing": _ids("batch-norm-missing"),
    "batch-norm-gain-one": _ids("norm-affine"),
    "layer-norm-missing": _ids("layer-norm-missing"),
    "layer-norm-without-affine": _ids("norm-affine"),
    "layer-norm-eps-outside-the-root": _ids("norm-eps-outside"),
    "layer-norm-over-tokens": _ids("layer-norm-axis"),
    "norm-in-half-precision": _ids("reduced precision: float16", "reduced precision: bfloat16"),
    # weights and convolutions
    "weight-transposed": _ids("weight-transposed"),
    "kernel-flipped": _ids("kernel-flipped"),
    "kernel-transposed": _ids("weight-transposed"),
    "weight-memory-order": _ids("weight-transposed"),
    "bias-missing": _ids("bias"),
    "weights-not-loaded": _ids("weights-not-loaded"),
    "weights-of-another-layer": _ids("weights-of-another-layer"),
    "padding-same": _ids("padding-side", "padding-amount"),
    "dilation": _ids("dilation"),
    "channels-reversed": _ids("input-channel-order", "channels-reversed"),
    "classes-shifted": _ids("label-permutation", "label-order"),
    # resizing
    "resize-align-corners": _ids("resize-align-corners"),
    "resize-filter": _ids("resize-kind"),
    "resize-without-half-pixel": _ids("resize-coordinates"),
    "resize-by-factor": _ids("resize-scale", "resize-padding"),
    "nearest-rounding": _ids("resize-coordinates"),
    "position-resize": _ids("resize-kind"),
    # attention
    "attention-scale": _ids("attention-scale"),
    "softmax-axis": _ids("softmax-axis"),
    "qkv-interleaved": _ids("qkv-order"),
    "heads-interleaved": _ids("head-order"),
    "qkv-order": _ids("qkv-roles"),
    "qkv-rows": _ids("qkv-order", "qkv-roles"),
    "heads-merged": _ids("head-order"),
    "mask-missing": _ids("attention-mask"),
    # how parts are put together
    "class-token-last": _ids("class-token"),
    "tokens-exchanged": _ids("class-token"),
    "position-without-class-token": _ids("position-embedding"),
    "position-missing": _ids("position-embedding"),
    "patches-column-major": _ids("token-order"),
    "mean-instead-of-class-token": _ids("pooling"),
    "one-head-of-two": _ids("two-heads"),
    "residual-missing": _ids("residual-missing"),
    "concat-order": _ids("concat-order"),
    "unfold-order": _ids("unfold-order"),
    "fold-order": _ids("unfold-order"),
    "stripes-exchanged": _ids("stripe-orientation"),
    "activation-behind-projection": _ids("activation-order"),
    "shortcut-fold": _ids("shortcut-order"),
    "shortcut-normalised": _ids("norm-side"),
    "parallel-path-missing": _ids("fuse-missing", "branch-missing"),
    # arithmetic
    "tf32": _ids("reduced precision: tf32"),
    "bfloat16": _ids("reduced precision: bfloat16"),
    "float16": _ids("reduced precision: float16"),
    "weights-in-half-precision": _ids("weights-rounded"),
    "dropout": _ids("dropout"),
    # the way from an image to the input
    "input-channels-reversed": _ids("input-channel-order"),
    "input-mean-and-std": _ids("input-normalisation"),
    "input-not-divided": _ids("input-scale"),
    "input-plus-minus-one": _ids("input-normalisation"),
    "input-filter": _ids("input-resize-filter"),
    "input-antialias": _ids("input-antialias"),
    "input-crop": _ids("input-crop"),
    "input-squashed": _ids("input-squash"),
    "input-orientation": _ids("input-exif"),
    "input-decoder": _ids("input-decoder"),
}

# Where the variant that was drawn has an answer of its own: a word of what `said_of` says of the run, and that answer.
VARIANTS: dict[str, dict[str, frozenset[str]]] = {
    "norm-in-half-precision": {
        "in bfloat16": _ids("reduced precision: bfloat16"), "in float16": _ids("reduced precision: float16"),
    },
    "position-resize": {
        "antialias the other way": _ids("resize-antialias"), "0.1 added": _ids("resize-scale"),
        "align_corners": _ids("resize-align-corners", "resize-kind"),
    },
    "qkv-rows": {"heads innermost": _ids("head-order"), "heads outermost": _ids("qkv-order")},
    # resized by a factor and then again: a factor where the size is asked for, and two steps where one is; the answer that
    # names both is as true as the one that names the factor
    "resize-by-factor": {"resized again": _ids("resize-scale", "resize-steps: power of two")},
    "input-filter": {"nearest": _ids("input-resize-filter", "input-antialias: nearest")},
    # a torch module shows its weights, and so which of the two it is; a dump does not
    "channels-reversed": {
        "first weights reversed [torch]": _ids("channels-reversed"),
        "input channels reversed [torch]": _ids("input-channel-order"),
    },
    # whoever shows what the projection is given shows there that the activation is missing; that it comes later is seen later
    "activation-behind-projection": {"[at once]": _ids("activation-order", "activation-missing: hardswish")},
    # of results alone nobody can tell that a weight is the one of the initialisation
    "weights-not-loaded": {"[dump]": UNKNOWN},
}  # fmt: skip


def said_of(detail: str, candidate: str, at_once: bool) -> str:
    """A run, for VARIANTS. candidate: "torch", "onnx" or "dump"; at_once: whether the first step that is wrong is shown."""
    return f"{detail} [{candidate}] [{'at once' if at_once else 'later'}]"


def answers(bug: str, said: str) -> frozenset[str]:
    """The right answers to one mistake; "id: word" is right where the change that is named has the word."""
    own = VARIANTS.get(bug, {})
    return next((right for word, right in own.items() if word in said), ANSWERS.get(bug, UNKNOWN))


def right(cause: str, sentence: str, answers: frozenset[str]) -> bool:
    """Whether a cause is one of the answers. sentence: what is said of it, "the kind of change: what".

    "id: word" is one only if `what` has the whole word: not what is expected there, nor what the input cannot tell from it, and
    a leaky ReLU is no ReLU.
    """
    change = sentence.partition(". ")[0]
    what = (change.partition(": ")[2] or change).partition(" where ")[0].lower().replace("leaky relu", "leaky")
    for answer in answers:
        name, _, word = answer.partition(": ")
        if answer == cause or (name == cause and word and re.search(rf"\b{re.escape(word.lower())}\b", what)):
            return True
    return False
