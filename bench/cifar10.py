"""Accuracy of the embedded model on CIFAR-10's test split, through refvit from the image files to the answer.

    python bench/cifar10.py cifar10.zip [--weights FILE] [--limit N] [--out bench/results/cifar10.json]

The archive holds test/CLASS/* image files. With --weights, another safetensors file (timm's layout or refvit's) is measured
with the embedded model's pre-processing: the training run's own float32 weights, to see what float16 storage costs.
"""

from __future__ import annotations

import argparse
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

import refvit


def read_test(archive: str, limit: int | None) -> tuple[list[str], Iterator[bytes]]:
    """Class names and image files of the test split; with a limit, evenly spread over it."""
    files = zipfile.ZipFile(archive)
    names = sorted(n for n in files.namelist() if n.startswith("test/") and not n.endswith("/"))
    if limit:
        names = names[:: max(1, len(names) // limit)][:limit]
    return [n.split("/")[1] for n in names], (files.read(n) for n in names)


def measure(model: refvit.Model, archive: str, limit: int | None) -> dict[str, Any]:
    classes, images = read_test(archive, limit)
    start = time.perf_counter()
    hits = [result.label == truth for truth, result in zip(classes, model.infer(images, batch_size=64), strict=True)]
    seconds = time.perf_counter() - start
    by_class = {c: [hit for hit, truth in zip(hits, classes, strict=True) if truth == c] for c in sorted(set(classes))}
    return {
        "model": model.name,
        "images": len(classes),
        "top1": sum(hits) / len(hits),
        "top1_by_class": {c: sum(row) / len(row) for c, row in by_class.items()},
        "hits_of_every_tenth": sum(hits[::10]),
        "seconds": round(seconds, 1),
        "provenance": model.infer(np.zeros((32, 32, 3), np.uint8)).provenance,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("--weights")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    embedded = refvit.load("mobilevit_xxs.cifar10")
    runs = {"embedded": embedded}
    if args.weights:
        fields = embedded.preprocess.to_dict()
        runs["weights"] = refvit.load("mobilevit_xxs.float32", args.weights, labels=embedded.labels, **fields)
    report: dict[str, Any] = {"machine": describe()}
    for name, model in runs.items():
        report[name] = measure(model, args.archive, args.limit)
        print(f"{name}: top-1 {report[name]['top1']:.4f} of {report[name]['images']} in {report[name]['seconds']} s")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
