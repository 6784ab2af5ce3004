"""The embedded model on real images of CIFAR-10's test split; needs REFVIT_TEST_DATA, a folder with cifar10.zip."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

import refvit

DATA = os.environ.get("REFVIT_TEST_DATA")
RESULT = Path(__file__).parent.parent / "bench" / "results" / "cifar10.json"

needs_data = pytest.mark.skipif(not DATA, reason="REFVIT_TEST_DATA is not set: no CIFAR-10 images to test with")


@needs_data
def test_accuracy_is_the_committed_one():
    """Every tenth image; two answers may differ where two classes are as good as equal and the BLAS library another."""
    committed = json.loads(RESULT.read_text())["embedded"]
    with zipfile.ZipFile(Path(DATA) / "cifar10.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("test/") and not n.endswith("/"))[::10]
        results = list(refvit.infer((archive.read(n) for n in names), batch_size=50))
    hits = sum(r.label == n.split("/")[1] for r, n in zip(results, names, strict=True))
    assert len(results) == 1000
    assert abs(hits - committed["hits_of_every_tenth"]) <= 2
    assert committed["provenance"]["weights_sha256"] == results[0].provenance["weights_sha256"]


def test_committed_figures_agree():
    """refvit measures on the trained weights what the training run did, and float16 costs less than 0.1 points."""
    measured = json.loads(RESULT.read_text())
    trained = json.loads((RESULT.parent / "cifar10_training.json").read_text())["final_test_top1"]
    assert measured["weights"]["images"] == measured["embedded"]["images"] == 10_000
    assert abs(measured["weights"]["top1"] - trained) <= 0.001
    assert abs(measured["embedded"]["top1"] - measured["weights"]["top1"]) <= 0.001
    card = (Path(refvit.__file__).parent / "weights" / "data" / "mobilevit_xxs.cifar10.md").read_text("utf-8")
    digest = refvit.load().infer(np.zeros((32, 32, 3), np.uint8)).provenance["weights_sha256"]
    assert digest == measured["embedded"]["provenance"]["weights_sha256"] and digest in card
