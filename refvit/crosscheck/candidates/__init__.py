"""Other implementations, each made to show its values under one interface (`observed.Candidate`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refvit.crosscheck.observed import Candidate
from refvit.errors import ConfigError
from refvit.model import Model

KINDS = "a torch.nn.Module, an .onnx file, an .npz, a folder of dumps, a dict of arrays, a refvit Model, or a callable"


def candidate(x: Any, *, outputs_only: bool = False, **options: Any) -> Candidate:
    """The candidate that `x` is: a torch module, an ONNX file, dumps, a refvit Model, or any callable.

    outputs_only: look at nothing but results. options: as the classes of this package have them. What has the method `run` and
    a `name` is a candidate already. ConfigError if `x` is none, or has not these options.
    """
    kind, made = _kind(x)
    if kind == "candidate":
        return x
    if kind in ("torch_module", "onnx_file", "model"):
        options["outputs_only"] = outputs_only
    try:
        return made(x, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ConfigError(f"{made.__name__} has no option of that name: {error}; known are those of its class") from None


def _kind(x: Any) -> tuple[str, Any]:
    from refvit.crosscheck.candidates.dumps import Dumps
    from refvit.crosscheck.candidates.function import Function, RefvitModel
    from refvit.crosscheck.candidates.onnx_file import OnnxFile
    from refvit.crosscheck.candidates.torch_module import TorchModule

    if isinstance(x, type):
        raise ConfigError(f"{x.__name__}: is a class; give an instance, such as {x.__name__}()", "candidate")
    torch = sys.modules.get("torch")  # who has a module has imported it
    if isinstance(x, Model):
        return "model", RefvitModel
    if torch is not None and isinstance(x, torch.nn.Module):
        return "torch_module", TorchModule
    if isinstance(x, (bytes, bytearray)) or type(x).__name__ == "ModelProto":
        return "onnx_file", OnnxFile
    if isinstance(x, Mapping):
        return "dumps", Dumps
    if isinstance(x, (str, os.PathLike)):
        suffix = Path(x).suffix.lower()
        if suffix in (".pt", ".pth", ".pkl", ".pickle", ".h5", ".safetensors", ".pb", ".tflite"):
            raise ConfigError(f"{os.fspath(x)}: a {suffix} file is not run; candidates are {KINDS}")
        return ("onnx_file", OnnxFile) if suffix == ".onnx" else ("dumps", Dumps)
    if hasattr(x, "run") and hasattr(x, "name"):
        return "candidate", None
    if callable(x):
        return "function", Function
    raise ConfigError(f"candidate: {KINDS} expected, got {type(x).__name__}", "candidate")
