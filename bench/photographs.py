"""How a photograph is best shown to the embedded model, which was trained on 32x32 images enlarged to 64x64.

    python bench/photographs.py FOLDER [--out bench/results/photographs.json]

FOLDER/CLASS/* are photographs of the ten classes. Each candidate is a pre-processing; the figures are the mean over classes of
their top-1 accuracy (classes have different numbers of photographs), top-1 over all, and the mean negative log-likelihood.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

import refvit

CANDIDATES: dict[str, dict[str, Any]] = {
    "straight to 64, bilinear": {"resize": 64, "crop": 64, "enlarge": None, "interpolation": "bilinear"},
    "straight to 64, bicubic": {"resize": 64, "crop": 64, "enlarge": None, "interpolation": "bicubic"},
    "to 28, then 64, bilinear": {"resize": 28, "crop": 28, "enlarge": 64, "interpolation": "bilinear"},
    "to 32, then 64, bilinear": {"resize": 32, "crop": 32, "enlarge": 64, "interpolation": "bilinear"},
    "to 32, then 64, bicubic": {"resize": 32, "crop": 32, "enlarge": 64, "interpolation": "bicubic"},
    "to 32, then 64, box": {"resize": 32, "crop": 32, "enlarge": 64, "interpolation": "box"},
    "to 36, crop 32, then 64, bilinear": {"resize": 36, "crop": 32, "enlarge": 64, "interpolation": "bilinear"},
    "to 40, then 64, bilinear": {"resize": 40, "crop": 40, "enlarge": 64, "interpolation": "bilinear"},
    "squashed to 32, then 64, bilinear": {"resize": (32, 32), "crop": None, "enlarge": 64, "interpolation": "bilinear"},
}


def measure(folder: Path, fields: dict[str, Any]) -> dict[str, float]:
    model = refvit.load(**fields)
    assert model.labels is not None
    hits: dict[str, list[bool]] = {}
    losses = []
    for index, label in enumerate(model.labels):
        files = sorted(folder.joinpath(label).iterdir())
        for result in model.infer(files, batch_size=32):
            if result.error is not None:
                raise result.error
            hits.setdefault(label, []).append(result.label == label)
            losses.append(-np.log(result.probabilities[index]))
    every = [hit for row in hits.values() for hit in row]
    balanced = float(np.mean([np.mean(row) for row in hits.values()]))
    return {"photographs": len(every), "top1_by_class": balanced, "top1": float(np.mean(every)), "nll": float(np.mean(losses))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore", refvit.DemonstrationWarning)
    provenance = refvit.infer(np.zeros((32, 32, 3), np.uint8)).provenance
    report: dict[str, Any] = {"machine": describe(), "weights_sha256": provenance["weights_sha256"]}
    report["versions"] = provenance["versions"]
    report["candidates"] = {}
    for name, fields in CANDIDATES.items():
        row = report["candidates"][name] = measure(args.folder, fields)
        print(f"{name:36} {row['top1_by_class']:.3f} by class, {row['top1']:.3f} of {row['photographs']}, nll {row['nll']:.3f}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
