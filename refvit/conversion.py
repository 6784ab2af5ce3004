"""Any weights into refvit's own format, or into another project's layout, and a report of what they are."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refvit.errors import ConfigError, WeightsError
from refvit.loading import Labels, WeightsSource, find, named, sort
from refvit.models import ARCHITECTURES
from refvit.weights import store
from refvit.weights.embedded import EMBEDDED
from refvit.weights.hub import known, tags


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """What `convert` found. Its text is what `refvit convert` prints."""

    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """model, source, tensors, parameters, dtypes, sha256, config, preprocess, postprocess, labels (their number), and what
        there is of self_check and exported; a copy in the plain values of JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(dict(self.facts)))
        return plain

    def __str__(self) -> str:
        from weights_convert.report import lines

        return "\n".join(lines(self.to_dict()))

    def __repr__(self) -> str:
        return f"Report({self.facts['model']}, {self.facts['parameters']:,} parameters)"


def convert(
    source: WeightsSource,
    output: str | os.PathLike[str] | None = None,
    *,
    model: str | None = None,
    tag: str = "",
    dtype: str | None = None,
    to: str | None = None,
    told: Sequence[str] = (),
    labels: Labels | None = None,
    key: str | None = None,
    check_crc: bool = True,
    check: bool = True,
    **fields: Any,
) -> Report:
    """Read weights, say what they are, and write them where `output` says; the same as `refvit convert`.

    source: file, folder, id of the Hugging Face hub or dict of arrays, as the weights of `load`, or a tag, as its model
    output: a name that ends in .safetensors (with `to` also in .npz), written whole or not at all; None writes nothing
    model: the name, where the tensors fit several models, or to be sure
    tag: what follows the dot in the name of these weights
    dtype: "float16", "float32" or "float64"; None keeps that of the source
    to: another project's names instead of refvit's: "timm", "transformers", "cvnets", ...
    told: options that are written although the layout `to` implies another value; whoever reads the file is told
    labels: names of the classes, or a text or JSON file of them
    key, check_crc, fields: as in `load`; fields are recorded
    check: False does not run the result on a seeded input

    Raises WeightsError, ConfigError or UnknownModelError, each of which says what to do; then nothing is written.

    >>> print(refvit.convert("best.pth", "best.safetensors", labels="classes.txt"))
    """
    from weights_convert.export import export_file
    from weights_convert.report import report

    _check(source, output, dtype, to, told)
    overrides = sort(fields)
    if isinstance(source, str) and _is_tag(source):
        if model or tag or key:
            raise ConfigError(
                f"{source} says the model, its tag and its file: leave model=, tag= and key= out", "model=", "tag=", "key="
            )
        weights = find(source, None, overrides)
    else:
        weights = find(model, source, overrides, tag=tag, key=key, check_crc=check_crc)
    if labels is not None:
        weights = named(weights, labels)
    if dtype is not None:
        weights = dataclasses.replace(weights, params=weights.astype(dtype))
    try:
        facts = report(weights, check=check)
    except WeightsError as error:
        raise WeightsError(f"{'these arrays' if isinstance(source, Mapping) else source}: {error}") from error
    if output is not None and to is not None:
        done = export_file(weights, to, output, told=told)
        facts["exported"] = {"layout": done.layout, "notes": list(done.notes)}
    elif output is not None:
        store.save(weights, output)
    return Report(facts)


def _check(source: Any, output: Any, dtype: str | None, to: str | None, told: Sequence[str]) -> None:
    """ConfigError for arguments that do not go together, before anything is read."""
    if source is None or source == "":
        raise ConfigError("source: a file, a folder, a tag, an id of the hub or a dict of arrays expected, got nothing")
    if to is not None and output is None:
        raise ConfigError("to= needs output=FILE", "to=", "output=FILE")
    if told and to is None:
        raise ConfigError("told= needs to=LAYOUT", "told=", "to=LAYOUT")
    if dtype not in (None, *store.DTYPES):
        raise ConfigError(f"{dtype!r}: one of {', '.join(store.DTYPES)} expected as dtype=", "dtype=")
    if output is None:
        return
    if os.path.isdir(output):
        raise ConfigError(f"{output}: a folder; give the name of a file as output=", "output=")
    if Path(output).suffix not in (".safetensors", ".npz" if to else ".safetensors"):
        raise ConfigError(f"{str(output)!r}: a name ending in .safetensors expected as output=", "output=")


def _is_tag(source: str) -> bool:
    """Whether these are weights that need no file. WeightsError for a model, or a tag that it does not have."""
    if os.path.lexists(source):
        return False
    model = source.partition(".")[0]
    if known(source) or source in EMBEDDED:
        return True
    if model not in ARCHITECTURES:
        return False
    names = [name for name in EMBEDDED if name.partition(".")[0] == model] + [f"{model}.{tag}" for tag in tags(model)]
    there = f"its tags are {', '.join(names)}; give one of them or a file" if names else "it has no tags; give a file"
    raise WeightsError(f"{source}: no such weights file, and no tag of {model}; {there}")
