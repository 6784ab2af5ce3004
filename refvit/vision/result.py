"""What `infer` gives back: an answer, where it came from, and a picture of it."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from refvit.errors import ConfigError, RefvitError, UnsupportedError
from refvit.files import write_atomic
from refvit.graph.ir import Array
from refvit.vision.answers import Answer, Area, Box, Boxes, Classes, LabelMap, People, Prediction, name
from refvit.vision.pixels import Picture

if TYPE_CHECKING:
    from PIL import Image

Kind = TypeVar("Kind", Classes, LabelMap, People)
KINDS = {".json": "JSON", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def file_kind(path: Path) -> str:
    """What `Result.save` writes under this name; ConfigError if nothing."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"{path}: a name ending in {', '.join(KINDS)} expected")
    return kind


@dataclass(frozen=True, eq=False)
class Result:
    """The answer for one image, or the reason why there is none.

    source: path or URL of the image, or "<bytes>", "<array>", "<image>"
    answer: `Classes`, `LabelMap`, `People` or `Boxes`, whose values the properties below give; None if the image failed
    picture: a preview of the image, its size and the notes taken while reading it; None if the image failed
    provenance: model, weights, sha256 of the tensors, backend, dtype, pre- and post-processing, versions, and what was done to
        this image
    error: what went wrong with this image, or None

    What belongs to another task raises UnsupportedError, and everything but `to_dict` raises `error` if the image failed.
    """

    source: str
    answer: Answer | None = None
    picture: Picture | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    error: RefvitError | None = None

    @property
    def logits(self) -> Array:
        """Of classification: (classes,), as the network gave them."""
        return self._of(Classes).logits

    @property
    def probabilities(self) -> Array:
        """Of classification: softmax of the logits, float64 (classes,)."""
        return self._of(Classes).probabilities

    def top(self, k: int = 5) -> list[Prediction]:
        """Of classification: the k most probable classes, best first, ties by index."""
        return self._of(Classes).top(k)

    @property
    def label(self) -> str:
        """Of classification: name of the most probable class, or its index as text where classes have no names."""
        return name(self.top(1)[0])

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Of classification and segmentation: names of all classes, or None."""
        answer = self._answer
        return answer.labels if isinstance(answer, LabelMap) else self._of(Classes).labels

    @property
    def map(self) -> Array:
        """Of segmentation: the class of every pixel, (h, w) of the image's size."""
        return self._of(LabelMap).map

    def areas(self, k: int | None = None) -> list[Area]:
        """Of segmentation: the classes that occur and the fraction of the image that each covers, largest first."""
        return self._of(LabelMap).areas(k)

    @property
    def keypoints(self) -> Array:
        """Of pose estimation: float64 (people, joints, 3), x and y in pixels of the image and the joint's score."""
        return self._of(People).keypoints

    @property
    def boxes(self) -> tuple[Box, ...] | Array:
        """Of detection: the boxes, best first. Of pose estimation: those of the people, (people, 4), x, y, width, height."""
        answer = self._answer
        return answer.boxes if isinstance(answer, Boxes) else self._of(People).boxes

    @property
    def _answer(self) -> Answer:
        if self.error is not None:
            raise self.error
        assert self.answer is not None
        return self.answer

    def _of(self, kind: type[Kind]) -> Kind:
        answer = self._answer
        if not isinstance(answer, kind):
            raise UnsupportedError(f"this is an answer of {answer.task}, not of {kind.task}: it is in {answer.reading}")
        return answer

    def plot(self, k: int = 5) -> Image.Image:
        """A picture of the answer, as a PIL image. Of classes and areas the first k are named, at most 50.

        Of boxes those with a score of 0.3 or more are drawn, of joints those above the post-processing's threshold.
        """
        answer = self._answer
        assert self.picture is not None
        return answer.draw(self.picture, f"{self.provenance.get('model', '')}", k)

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

    def save_map(self, path: str | os.PathLike[str]) -> Path:
        """Of segmentation: write the map as a PNG of the image's size whose values are the classes, with a palette.

        More than 256 classes make a 16-bit grey PNG. ConfigError for another suffix, OSError from the file system.
        """
        from PIL import Image

        path, answer = Path(path), self._of(LabelMap)
        if path.suffix.lower() != ".png":
            raise ConfigError(f"{path}: a name ending in .png expected, which keeps every value")
        image = Image.fromarray(answer.map)
        if answer.map.dtype == "uint8":
            image.putpalette(answer.colours.tobytes())
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        write_atomic(path, buffer.getvalue())
        return path

    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """The answer as plain values: source, size, k classes or all areas, people or boxes, or the error."""
        if self.answer is None:
            return {"source": self.source, "error": str(self.error), "provenance": dict(self.provenance)}
        assert self.picture is not None
        return {
            "source": self.source,
            "size": list(self.picture.size),
            **self.answer.to_dict(k),
            "notes": list(self.picture.notes),
            "provenance": dict(self.provenance),
        }

    def to_json(self, k: int = 5) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(k), ensure_ascii=False)

    def lines(self, k: int = 5) -> list[str]:
        """The answer as text, a line for each of the first k classes, areas or boxes, or for each joint."""
        return self._answer.lines(k)

    def __repr__(self) -> str:
        what = f"error: {self.error}" if self.answer is None else self.answer.brief()
        return f"Result({self.source}: {what})"

    def _repr_png_(self) -> bytes | None:
        if self.error is not None:
            return None
        buffer = io.BytesIO()
        self.plot().save(buffer, "PNG")
        return buffer.getvalue()
