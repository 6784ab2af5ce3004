"""What is measured: a model with random weights at one input shape, and its files, from which every runtime starts."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[Array], dict[str, Array]]  # input (n, 3, h, w) -> outputs by name


@dataclass(frozen=True)
class Job:
    """backend: refvit's. folder: of the files. Whoever starts a peer from it need not import refvit."""

    model: str
    shape: tuple[int, int, int, int]
    threads: int
    backend: str
    folder: str

    @property
    def path(self) -> Path:
        return Path(self.folder)

    def input(self) -> Array:
        return np.random.default_rng(1).standard_normal(self.shape, np.float32)


def random_parameters(model: str, seed: int = 0) -> dict[str, Array]:
    """Parameters in float32 under which activations keep their size: He's scaling, variances around one."""
    from refvit.models import architecture

    arch, rng = architecture(model), np.random.default_rng(seed)
    params = {}
    for name, shape in arch.parameters(arch.config):
        a = rng.standard_normal(shape, np.float32)
        if name.endswith("running_var"):
            a = 0.75 + 0.25 * np.abs(a)
        elif name.endswith(("token", "embed")):
            a *= 0.2
        elif len(shape) > 1:
            a *= np.float32((2 / np.prod(shape[1:])) ** 0.5)
        else:
            a = 0.1 * a + name.endswith("weight")
        params[name] = a.astype(np.float32)
    return params


def graph(job: Job, dtype: str = "float32") -> tuple[Any, dict[str, Array]]:
    """The graph with its batch norms folded, and its parameters."""
    from refvit.graph import trace
    from refvit.graph.passes import fold_batch_norm
    from refvit.models import architecture
    from refvit.weights.store import load

    arch, weights = architecture(job.model), load(job.path / "weights.safetensors")
    assert weights is not None
    params = {name: a.astype(dtype) for name, a in weights.params.items()}
    return fold_batch_norm(trace(arch.forward, tuple(job.shape), params, config=arch.config)), params


def write_weights(job: Job) -> None:
    """refvit's own file, for `refvit.load`."""
    from refvit.models import architecture
    from refvit.vision.postprocess import from_dict
    from refvit.vision.preprocess import Preprocess
    from refvit.weights.store import Weights, save

    arch = architecture(job.model)
    half, config = (0.5, 0.5, 0.5), dataclasses.asdict(arch.config)
    preprocess = Preprocess(
        resize=arch.input_size, crop=None, interpolation="bilinear", mean=half, std=half, channel_order="rgb"
    ).to_dict()
    params = random_parameters(job.model)
    answer = {"flip": False} if arch.task == "pose" else {}  # mirrored joints would need names
    postprocess = from_dict(arch.task, answer).to_dict()
    save(Weights(job.model, "random", config, preprocess, None, {}, params, postprocess), job.path / "weights.safetensors")


def write_export(job: Job) -> None:
    """refvit's graph as ONNX."""
    from refvit.graph.onnx import to_onnx

    (job.path / "refvit.onnx").write_bytes(to_onnx(*graph(job)))


def timm_model(job: Job) -> Any:
    """timm's own module with the same weights, in evaluation mode."""
    import timm
    import torch

    from refvit.weights.store import load

    weights = load(job.path / "weights.safetensors")
    assert weights is not None
    net = timm.create_model(job.model).eval()
    state = {name: torch.from_numpy(a.copy()) for name, a in weights.params.items()}
    missing, unexpected = net.load_state_dict(state, strict=False)
    if wrong := [*(n for n in missing if not n.endswith("num_batches_tracked")), *unexpected]:
        raise ValueError(f"timm's {job.model} has other parameters, {wrong[0]} among them")
    return net


def has_timm(job: Job) -> bool:
    """Whether timm is installed and has the model."""
    if not all(importlib.util.find_spec(m) for m in ("torch", "torchvision", "timm")):
        return False
    import timm

    return bool(timm.is_model(job.model))


def write_timm_export(job: Job) -> None:
    """timm's module as ONNX, by torch's exporter."""
    import torch

    x = torch.from_numpy(job.input())
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"]}
    torch.onnx.export(timm_model(job), (x,), str(job.path / "timm.onnx"), dynamo=False, opset_version=17, **names)
