"""The backends by name, and why one cannot be used here. Nothing heavy is imported before it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from refvit.errors import BackendError

BACKENDS = ("numpy",)  # in the order in which "auto" prefers them


def reason(name: str) -> str | None:
    """Why the backend cannot be used on this machine and what to do; None if it can."""
    if name not in BACKENDS:
        return f"unknown backend {name!r}; known are auto, {', '.join(BACKENDS)}"
    return None


def get(name: str) -> Any:
    """The backend's module, which has `compile_graph`. BackendError if it cannot be used."""
    if name == "auto":
        name = next(b for b in BACKENDS if reason(b) is None)
    if (why := reason(name)) is not None:
        raise BackendError(why)
    return importlib.import_module(f"refvit.backends.{name}")
