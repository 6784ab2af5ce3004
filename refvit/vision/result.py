"""What `infer` gives back: an answer, where it came from, and a picture of it."""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refvit.errors import ConfigError, RefvitError
from refvit.files import write_atomic
from refvit.graph.ir import Array
from refvit.vision.pixels import Picture

if TYPE_CHECKING:
    from PIL import Image


DRAWN = 50  # classes that a picture has room for
KINDS = {".json": "JSON", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def file_kind(path: Path) -> str:
    """What `Result.save` writes under this name; ConfigError if nothing."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"{path}: a name ending in {', '.join(KINDS)} expected")
    return kind


class Prediction(NamedTuple):
    """One class of an answer. `label` is None where the weights name no classes."""

    label: str | None
    probability: float
    index: int  # type: ignore[assignment]  # tuple has a method of this name


@dataclass(frozen=True, eq=False)
class Result:
    """The answer for one image, or the reason why there is none.

    source: path or URL of the image, or "<bytes>", "<array>", "<image>"
    logits: (classes,) raw output of the model; None if the image failed
    labels: names of the classes, or None
    picture: a preview of the image, its size and the notes taken while reading it; None if the image failed
    provenance: model, weights, sha256 of the tensors, backend, dtype, pre-processing and versions
    error: what went wrong with this image, or None
    """

    source: str
    logits: Array | None = None
    labels: tuple[str, ...] | None = None
    picture: Picture | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    error: RefvitError | None = None

    @functools.cached_property
    def probabilities(self) -> Array:
        """Softmax of the logits, float64 (classes,). Raises `error` if the image failed."""
        e = np.exp(self._logits - self._logits.max())
        return np.asarray(e / e.sum())

    @property
    def _logits(self) -> Array:
        if self.error is not None:
            raise self.error
        assert self.logits is not None
        return self.logits.astype(np.float64)

    def top(self, k: int = 5) -> list[Prediction]:
        """The k most probable classes, best first, ties by index. Raises `error` if the image failed."""
        if not isinstance(k, int) or k < 1:
            raise ConfigError(f"top: a whole number of at least 1 expected, got k={k!r}")
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [Prediction(self.labels[i] if self.labels else None, float(self.probabilities[i]), int(i)) for i in order]

    @property
    def label(self) -> str:
        """Name of the most probable class, or its index as text where classes have no names."""
        return _name(self.top(1)[0])

    def plot(self, k: int = 5) -> Image.Image:
        """A picture of the image and its k most probable classes, at most 50, as a PIL image."""
        from refvit.vision.drawing import draw_classes

        if k > DRAWN:
            raise ConfigError(f"plot: a picture has room for {DRAWN} classes, got k={k}")
        rows = [(_name(p), p.probability) for p in self.top(k)]
        assert self.picture is not None
        return draw_classes(self.picture.pixels, rows, f"{self.provenance.get('model', '')}")

    def save(self, path: str | os.PathLike[str], k: int = 5) -> Path:
        """Write the answer: a picture for .png, .jpg or .webp, the data for .json. A file is written whole or not at all.

        ConfigError for another suffix, OSError from the file system, `error` if a picture of a failed image was asked for.
        """
        path = Path(path)
        kind = file_kind(path)
        if kind == "JSON":
            data = (self.to_json(k) + "\n").encode()
        else:
            buffer = io.BytesIO()
            self.plot(k).save(buffer, kind)
            data = buffer.getvalue()
        write_atomic(path, data)
        return path

    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """The answer as plain values: source, size, top classes or error, notes, provenance."""
        if self.error is not None:
            return {"source": self.source, "error": str(self.error), "provenance": dict(self.provenance)}
        assert self.picture is not None
        return {
            "source": self.source,
            "size": list(self.picture.size),
            "top": [p._asdict() for p in self.top(k)],
            "notes": list(self.picture.notes),
            "provenance": dict(self.provenance),
        }

    def to_json(self, k: int = 5) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(k), ensure_ascii=False)

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Result({self.source}: error: {self.error})"
        best = self.top(1)[0]
        return f"Result({self.source}: {_name(best)}, {best.probability:.1%})"

    def _repr_png_(self) -> bytes | None:
        if self.error is not None:
            return None
        buffer = io.BytesIO()
        self.plot().save(buffer, "PNG")
        return buffer.getvalue()


def _name(p: Prediction) -> str:
    return str(p.index) if p.label is None else p.label
