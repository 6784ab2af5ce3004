"""The embedded model on real images of CIFAR-10's test split; needs REFVIT_TEST_DATA, a folder with cifar10.zip."""

import json
import os
import zipfile
from pathlib import Path

import pytest

import refvit

DATA = os.environ.get("REFVIT_TEST_DATA")
RESULT = Path(__file__).parent.parent / "bench" / "results" / "cifar10.json"

pytestmark = [
    pytest.mark.skipif(not DATA, reason="REFVIT_TEST_DATA is not set: no CIFAR-10 images to test with"),
]


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
