"""What a conversion found, and whether the result computes."""

from __future__ import annotations

from typing import Any

import numpy as np

from refvit.errors import RefvitError, WeightsError
from refvit.graph.cost import parameter_count
from refvit.models import architecture, config_from_dict
from refvit.weights.params import Params
from refvit.weights.store import Weights
from weights_convert.convert import LEFT_OUT

SHOWN = 3  # names of what was left out, in a line
SIDE = 128  # of the self-check's input, where a network takes any: that of a street scene would take minutes


def self_check(weights: Weights) -> dict[str, Any]:
    """Run the NumPy definition in float32 on a seeded input. Says its shape, and shape and range of every output.

    WeightsError if a tensor or an output holds NaN or infinite values.
    """
    if bad := [name for name, a in weights.params.items() if not np.isfinite(a).all()]:
        raise WeightsError(f"{', '.join(bad[:5])}: NaN or infinite values in {len(bad)} tensors; the checkpoint is damaged")
    arch = architecture(weights.model)
    config = config_from_dict(arch.config, weights.config)
    sizes = [s if hasattr(config, "image_size") else min(s, SIDE) for s in arch.input_size]
    x = np.random.default_rng(0).standard_normal((1, 3, *sizes)).astype(np.float32)
    try:
        with np.errstate(all="ignore"):  # what overflows is said below
            y = arch.forward(x, Params(weights.astype("float32")), config=config)
    except ValueError as error:
        if isinstance(error, RefvitError):
            raise
        raise WeightsError(f"{weights.name}: the config does not compute ({error}); it is damaged") from error
    outputs = y if isinstance(y, dict) else {"output": y}
    for name, a in outputs.items():
        if not np.isfinite(a).all():
            raise WeightsError(
                f"{weights.name}: {name} holds NaN or infinite values for a seeded input; the weights do not fit"
            )
    ranges = {n: {"shape": list(a.shape), "least": float(a.min()), "most": float(a.max())} for n, a in outputs.items()}
    return {"input": [1, 3, *sizes], "outputs": ranges}


def report(weights: Weights, *, check: bool = True) -> dict[str, Any]:
    """Model, source, counts, digest, what was recorded, and the self-check, as plain values.

    check: False leaves the self-check out. An input that the check cannot be run on is said and no error.
    """
    found: dict[str, Any] = {
        "model": weights.name,
        "source": dict(weights.source),
        "tensors": len(weights.params),
        "parameters": parameter_count((n, a.shape) for n, a in weights.params.items()),
        "dtypes": sorted({a.dtype.name for a in weights.params.values()}),
        "sha256": weights.sha256,
        "config": dict(weights.config),
        "preprocess": dict(weights.preprocess),
        "postprocess": dict(weights.postprocess),
        "labels": None if weights.labels is None else len(weights.labels),
    }
    if check:
        try:
            found["self_check"] = self_check(weights)
        except WeightsError:
            raise
        except RefvitError as error:
            found["self_check"] = {"skipped": str(error)}
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """A report as text."""
    rows = [
        ("model", found["model"]),
        ("tensors", f"{found['tensors']}, {found['parameters']:,} parameters, {' and '.join(found['dtypes'])}"),
        ("sha256", found["sha256"]),
        ("labels", "none" if found["labels"] is None else f"{found['labels']} names"),
    ]
    for part in ("source", "config", "preprocess", "postprocess"):
        fields = [(k, v) for k, v in found[part].items() if (part, k) != ("source", LEFT_OUT)]
        rows += [(part if i == 0 else "", f"{k}: {_plain(v)}") for i, (k, v) in enumerate(fields)]
    for i, (why, names) in enumerate(found["source"].get(LEFT_OUT, {}).items()):
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        rows.append(("left out" if i == 0 else "", f"{', '.join(names[:SHOWN])}{more}: {why}"))
    exported = found.get("exported", {"notes": []})
    rows += [
        ("written as" if i == 0 else "", text) for i, text in enumerate((exported.get("layout"), *exported["notes"])) if text
    ]
    check = found.get("self_check", {})
    if "skipped" in check:
        rows.append(("self-check", f"not run: {check['skipped']}"))
    for name, y in check.get("outputs", {}).items():
        sizes = "x".join(map(str, check["input"]))
        rows.append(("self-check", f"{sizes} -> {name} {'x'.join(map(str, y['shape']))}, {y['least']:.4g} to {y['most']:.4g}"))
    width = max(len(head) for head, _ in rows)
    return [_printable(f"{head:<{width}}  {text}") for head, text in rows]


def _printable(text: str) -> str:
    """Without characters that a terminal would obey: names come out of files."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v if not isinstance(v, (list, tuple)) else list(v)}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
