"""The backends by name, and why one cannot be used here. Nothing heavy is imported before it is asked for."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import sys
from typing import Any

from refvit.errors import BackendError

BACKENDS = {"numba": ("float32",), "numpy": ("float32", "float64", "float16")}  # and dtypes; in the order that "auto" prefers

NUMBA = (0, 62)  # the oldest: older ones declare their functions in another way


def reason(name: str) -> str | None:
    """Why the backend cannot be used on this machine and what to do; None if it can."""
    if name not in BACKENDS:
        return f"unknown backend {name!r}; known are auto, {', '.join(BACKENDS)}"
    if name == "numba":
        if missing := [m for m in ("numba", "llvmlite") if importlib.util.find_spec(m) is None]:
            return f"{missing[0]} is not installed; pip install numba"
        if (version := _version("numba")) < NUMBA:
            return f"numba {'.'.join(map(str, version))} is too old; pip install -U 'numba>={'.'.join(map(str, NUMBA))}'"
        if sys.maxsize < 2**32 or sys.byteorder != "little":
            return "a 64-bit little-endian processor is needed; the numpy backend runs everywhere"
    return None


def _version(package: str) -> tuple[int, ...]:
    """The first two numbers."""
    return tuple(int(number) for number in re.findall(r"\d+", importlib.metadata.version(package))[:2])


def get(name: str, dtype: str = "float32") -> Any:
    """The backend's module, which has `compile_graph`. BackendError if it cannot be used, or not in this dtype."""
    if name == "auto":
        name = next(b for b, dtypes in BACKENDS.items() if reason(b) is None and dtype in dtypes)
    if (why := reason(name)) is not None:
        raise BackendError(why)
    if dtype not in BACKENDS[name]:
        able = [b for b, dtypes in BACKENDS.items() if dtype in dtypes]
        raise BackendError(f"the {name} backend computes in {', '.join(BACKENDS[name])}; for {dtype} choose {', '.join(able)}")
    return importlib.import_module(f"refvit.backends.{name}")
