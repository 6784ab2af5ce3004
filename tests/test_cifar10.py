"""The embedded model on real images of CIFAR-10's test split; needs REFVIT_TEST_DATA, a folder with cifar10.zip."""

import json
import os
import zipfile
from pathlib import Path

import pytest

import refvit

DATA = os.environ.get("REFVIT_TEST_DATA")
RESULT = Path(__file__).parent.parent / "bench" / "results" / "cifar10.json"
IMAGES = 1000

pytestmark = [
    pytest.mark.skipif(not DATA, reason="REFVIT_TEST_DATA is not set: no CIFAR-10 images to test with"),
]


def test_accuracy_is_the_committed_one():
    """Every tenth image; three standard deviations of such a sample around the committed accuracy on all of them."""
    committed = json.loads(RESULT.read_text())["embedded"]
    with zipfile.ZipFile(Path(DATA) / "cifar10.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("test/") and not n.endswith("/"))[:: 10_000 // IMAGES]
        results = list(refvit.infer((archive.read(n) for n in names), batch_size=50))
    hits = sum(r.label == n.split("/")[1] for r, n in zip(results, names, strict=True))
    p = committed["top1"]
    assert len(results) == IMAGES
    assert abs(hits / IMAGES - p) < 3 * (p * (1 - p) / IMAGES) ** 0.5
    assert committed["provenance"]["weights_sha256"] == results[0].provenance["weights_sha256"]
