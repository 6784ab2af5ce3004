"""Names of classes: from a file, from the package, or none."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from refvit.errors import ConfigError
from refvit.vision import joints, palettes


@functools.cache
def imagenet1k() -> tuple[str, ...]:
    """The 1000 classes of ImageNet-1k in the usual order (sorted WordNet ids), by their WordNet lemmas."""
    return tuple((files("refvit.vision") / "data" / "imagenet1k.txt").read_text("utf-8").splitlines())


def default_labels(task: str, classes: int) -> tuple[str, ...] | None:
    """What a checkpoint without labels is taken to mean, by its number of classes; None where that is no well-known one."""
    known: dict[tuple[str, int], Callable[[], tuple[str, ...]]] = {
        ("classification", 1000): imagenet1k,
        ("segmentation", 19): lambda: palettes.names("cityscapes"),
        ("segmentation", 20): lambda: palettes.names("lip"),
        ("segmentation", 21): lambda: palettes.names("voc"),
        ("segmentation", 150): lambda: palettes.names("ade20k"),
        ("detection", 81): lambda: ("background", *palettes.names("coco")),
        ("pose", 17): lambda: joints.COCO,
        ("pose", 16): lambda: joints.MPII,
    }
    return known[task, classes]() if (task, classes) in known else None


def check_labels(labels: Sequence[str], classes: int) -> tuple[str, ...]:
    """The labels as a tuple; ConfigError unless they are `classes` strings."""
    if not isinstance(labels, (list, tuple)) or not all(isinstance(label, str) for label in labels):
        raise ConfigError(f"labels: a list or tuple of {classes} strings expected, got {labels!r:.60}")
    if len(labels) != classes:
        raise ConfigError(f"labels: the model has {classes} classes, got {len(labels)} labels")
    return tuple(labels)


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Labels from a text file (one a line) or a JSON file: a list, {"0": name, ...}, or a config.json with id2label.

    ConfigError if the file cannot be read or holds anything else.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix.lower() != ".json":
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        data = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"labels file {path}: {reason}") from error
    if isinstance(data, dict):
        data = data.get("id2label", data)
    if isinstance(data, dict) and set(data) == {str(i) for i in range(len(data))}:
        data = [data[str(i)] for i in range(len(data))]
    if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
        raise ConfigError(f'labels file {path}: expected a JSON list of names or {{"0": name, "1": name, ...}}')
    return tuple(data)
