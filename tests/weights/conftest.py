"""The server of helpers.hub_server with a checkpoint, and huggingface_hub's client pointed at it."""

import threading
import time

import pytest

from refvit.weights import hub


@pytest.fixture(scope="module")
def case(golden):
    return golden("mobilevit_xxs.timm")


@pytest.fixture(scope="module")
def checkpoint(case, tmp_path_factory):
    """A seeded checkpoint as timm would publish it, bytes."""
    return case.save(tmp_path_factory.mktemp("checkpoint") / "model.safetensors").read_bytes()


@pytest.fixture
def server(checkpoint):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: nothing to download with")
    from helpers.hub_server import REPOSITORY, Hub

    with Hub() as it:
        threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        it.publish(REPOSITORY, model__safetensors=checkpoint)
        yield it
        it.shutdown()


@pytest.fixture
def folders(server, tmp_path, monkeypatch):
    """huggingface_hub's cache and refvit's, both empty, and the client pointed at the server.

    The client reads its environment when it is imported, so that its constants are set here; the tests that start processes use
    the environment.
    """
    from helpers.hub_server import point_at
    from huggingface_hub import constants

    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("REFVIT_CACHE", str(tmp_path / "refvit"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    point_at(server.url, monkeypatch)
    monkeypatch.setattr(hub, "_said", False)
    return tmp_path


@pytest.fixture
def no_waiting(monkeypatch):
    """The client pauses between its attempts; so does nothing else here."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
