"""What the tasks answer: classes, a map of labels, people, boxes. Plain values, each of which can be listed and drawn."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np

from refvit.errors import ConfigError
from refvit.graph.ir import Array

if TYPE_CHECKING:
    from PIL.Image import Image

    from refvit.vision.pixels import Picture

DRAWN = 50  # classes or boxes that a picture has room for
VISIBLE = 0.3  # score from which a detected box is drawn: below, pictures are full of boxes that are there to be counted


class Prediction(NamedTuple):
    """One class of an answer. `label` is None where the weights name no classes."""

    label: str | None
    probability: float
    index: int  # type: ignore[assignment]  # tuple has a method of this name


class Area(NamedTuple):
    """How much of an image one class covers; `fraction` of all its pixels, in (0, 1]."""

    label: str | None
    fraction: float
    index: int  # type: ignore[assignment]


class Box(NamedTuple):
    """One detected object. (x0, y0) is the upper left and (x1, y1) the lower right corner in pixels of the image."""

    label: str | None
    score: float
    index: int  # type: ignore[assignment]
    x0: float
    y0: float
    x1: float
    y1: float


class Answer(Protocol):
    """What all answers can do. `k` limits how many classes, areas or boxes are listed and how many classes are in the data."""

    task: ClassVar[str]
    reading: ClassVar[str]  # how a Result gives it

    def brief(self) -> str: ...

    def lines(self, k: int) -> list[str]: ...

    def to_dict(self, k: int) -> dict[str, Any]: ...

    def draw(self, picture: Picture, caption: str, k: int) -> Image: ...


@dataclass(frozen=True, eq=False)
class Classes:
    """Of classification. logits (classes,); labels are the names of the classes, or None."""

    task: ClassVar[str] = "classification"
    reading: ClassVar[str] = ".top(k), .label, .probabilities and .logits"
    logits: Array
    labels: tuple[str, ...] | None

    @functools.cached_property
    def probabilities(self) -> Array:
        """Softmax of the logits, float64 (classes,)."""
        logits = self.logits.astype(np.float64)
        e = np.exp(logits - logits.max())
        return np.asarray(e / e.sum())

    def top(self, k: int) -> list[Prediction]:
        """The k most probable classes, best first, ties by index."""
        check_k(k)
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [Prediction(_label(self.labels, i), float(self.probabilities[i]), int(i)) for i in order]

    def brief(self) -> str:
        (best,) = self.top(1)
        return f"{name(best)}, {best.probability:.1%}"

    def lines(self, k: int) -> list[str]:
        return [f"{p.probability:7.2%}  {name(p)}" for p in self.top(k)]

    def to_dict(self, k: int) -> dict[str, Any]:
        return {"top": [p._asdict() for p in self.top(k)]}

    def draw(self, picture: Picture, caption: str, k: int) -> Image:
        from refvit.vision.drawing import draw_classes

        return draw_classes(picture.pixels, [(name(p), p.probability) for p in self.top(_room(k))], caption)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Of segmentation. map (h, w) of the image's size holds the class of every pixel, uint8, or uint16 beyond 256 classes."""

    task: ClassVar[str] = "segmentation"
    reading: ClassVar[str] = ".map and .areas()"
    map: Array
    labels: tuple[str, ...] | None
    colours: Array  # uint8 (classes, 3), RGB

    @functools.cached_property
    def _areas(self) -> list[Area]:
        counts = np.bincount(self.map.reshape(-1))
        order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
        return [Area(_label(self.labels, i), float(counts[i] / self.map.size), i) for i in order]

    def areas(self, k: int | None = None) -> list[Area]:
        """The classes that occur, largest first; the first k of them, if k is given."""
        return self._areas[: None if k is None else check_k(k)]

    def brief(self) -> str:
        first = self._areas[0]
        return f"{len(self._areas)} classes, most of it {name(first)}, {first.fraction:.1%}"

    def lines(self, k: int) -> list[str]:
        return [f"{a.fraction:7.2%}  {name(a)}" for a in self.areas(k)]

    def to_dict(self, k: int) -> dict[str, Any]:
        return {"areas": [a._asdict() for a in self.areas()]}

    def draw(self, picture: Picture, caption: str, k: int) -> Image:
        from refvit.vision.drawing import draw_map

        small = _nearest(self.map, picture.pixels.shape[:2])
        rows = []
        for area in self.areas(_room(k)):
            red, green, blue = (int(c) for c in self.colours[area.index])
            rows.append((name(area), area.fraction, (red, green, blue)))
        return draw_map(picture.pixels, small, self.colours, rows, caption)


@dataclass(frozen=True, eq=False)
class People:
    """Of pose estimation. The n people that are left after the suppression of duplicates, in the order of the given boxes.

    keypoints: float64 (n, joints, 3), x and y in pixels of the image and the score of every joint
    boxes: float64 (n, 4), x, y, width, height as they were given; the whole image if none were
    scores: float64 (n,), of the people
    indices: which of the given boxes these are; `suppressed` are the others
    joints: names; limbs: pairs of joints that the skeleton connects; threshold: score above which a joint is drawn
    """

    task: ClassVar[str] = "pose"
    reading: ClassVar[str] = ".keypoints and .boxes"
    keypoints: Array
    boxes: Array
    scores: Array
    indices: tuple[int, ...]
    suppressed: tuple[int, ...]
    joints: tuple[str, ...] | None
    limbs: tuple[tuple[int, int], ...]
    threshold: float = 0.2

    def brief(self) -> str:
        n = len(self.keypoints)
        return f"{n} {'person' if n == 1 else 'people'}" + (f", best score {self.scores.max():.3f}" if n else "")

    def lines(self, k: int) -> list[str]:
        lines = []
        for person, index, score in zip(self.keypoints, self.indices, self.scores, strict=True):
            lines.append(f"{score:7.3f}  person {index}")
            for j, (x, y, s) in enumerate(person):
                lines.append(f"{s:7.3f}    {_label(self.joints, j) or j}  {x:.1f} {y:.1f}")
        return lines

    def to_dict(self, k: int) -> dict[str, Any]:
        people = zip(self.indices, self.scores, self.boxes, self.keypoints, strict=True)
        found = [{"index": i, "score": float(s), "box": b.tolist(), "keypoints": joints.tolist()} for i, s, b, joints in people]
        joints = None if self.joints is None else list(self.joints)
        return {"joints": joints, "people": found, "suppressed": list(self.suppressed)}

    def draw(self, picture: Picture, caption: str, k: int) -> Image:
        from refvit.vision.painting import draw_people

        sx, sy = _factors(picture)
        keypoints, boxes = self.keypoints * (sx, sy, 1), self.boxes * (sx, sy, sx, sy)
        return draw_people(picture.pixels, keypoints, self.limbs, boxes, caption, joints=self.joints, threshold=self.threshold)


@dataclass(frozen=True, eq=False)
class Boxes:
    """Of detection: every box above the threshold of the post-processing, best first."""

    task: ClassVar[str] = "detection"
    reading: ClassVar[str] = ".boxes"
    boxes: tuple[Box, ...]

    def brief(self) -> str:
        if not self.boxes:
            return "no boxes"
        best = self.boxes[0]
        return f"{len(self.boxes)} boxes, best {name(best)}, {best.score:.1%}"

    def lines(self, k: int) -> list[str]:
        return [f"{b.score:7.2%}  {name(b)}  {b.x0:.1f} {b.y0:.1f} {b.x1:.1f} {b.y1:.1f}" for b in self.boxes[: check_k(k)]]

    def to_dict(self, k: int) -> dict[str, Any]:
        return {"boxes": [b._asdict() for b in self.boxes]}

    def draw(self, picture: Picture, caption: str, k: int) -> Image:
        from refvit.vision.painting import draw_boxes

        sx, sy = _factors(picture)
        shown = [b for b in self.boxes if b.score >= VISIBLE][:DRAWN]
        rows = [(name(b), b.score, (b.x0 * sx, b.y0 * sy, b.x1 * sx, b.y1 * sy), b.index) for b in shown]
        return draw_boxes(picture.pixels, rows, caption)


def name(item: Prediction | Area | Box) -> str:
    """The label, or the index where classes have no names."""
    return str(item.index) if item.label is None else item.label


def check_k(k: int) -> int:
    """k, if it is a whole number of at least 1; ConfigError if not."""
    if not isinstance(k, (int, np.integer)) or k < 1:
        raise ConfigError(f"top: a whole number of at least 1 expected, got k={k!r}")
    return int(k)


def _room(k: int) -> int:
    if check_k(k) > DRAWN:
        raise ConfigError(f"plot: a picture has room for {DRAWN} classes, got k={k}")
    return k


def _label(labels: tuple[str, ...] | None, i: int) -> str | None:
    return labels[i] if labels else None


def _factors(picture: Picture) -> tuple[float, float]:
    """From pixels of the image to pixels of its preview."""
    return picture.pixels.shape[1] / picture.size[0], picture.pixels.shape[0] / picture.size[1]


def _nearest(labels: Array, size: tuple[int, ...]) -> Array:
    rows, columns = (np.arange(s) * labels.shape[i] // s for i, s in enumerate(size))
    return labels[rows[:, None], columns]
