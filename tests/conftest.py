"""Fixtures for every folder: seeded checkpoints with the original's outputs, and the embedded model."""

import importlib.util
from pathlib import Path

import pytest

import refvit
from refvit.cli import main

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """golden("mobilevit_xxs.timm") -> Case, see golden/seeded.py."""
    spec = importlib.util.spec_from_file_location("seeded", GOLDEN / "seeded.py")
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    return lambda name: seeded.Case(GOLDEN / f"{name}.npz")


@pytest.fixture(scope="session")
def demo():
    """The embedded ten-class model; one call costs milliseconds."""
    return refvit.load()


@pytest.fixture(scope="session")
def xxs(golden):
    """The tensors of a seeded mobilevit_xxs checkpoint in timm's layout, read-only."""
    state = golden("mobilevit_xxs.timm").state()
    for a in state.values():
        a.flags.writeable = False
    return state


@pytest.fixture
def run(capsys):
    """run("infer", ...) -> (exit code, standard output, standard error); no traceback, whatever happens."""

    def call(*args):
        try:
            code = main([str(a) for a in args])
        except SystemExit as stop:  # argparse
            code = stop.code
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call
