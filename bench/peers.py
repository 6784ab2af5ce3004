"""The runtimes that are compared, each with its best settings for latency in float32 on a given number of threads.

Nothing is imported before it is needed: a process that starts one runtime to measure its start-up and memory loads no other.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

from bench import job as jobs
from bench.job import Array, Job, Run

ALGEBRAIC = ("commute_linear", "sink_slices")  # passes that save multiplications, and that a graph runs without


@dataclass(frozen=True)
class Runtime:
    """modules: what it imports, for the memory that imports alone take.

    forms: where it can have the model from, "refvit" (the graph of refvit's) or "timm" (the original); the faster one counts.
    start: (job, form) -> a function from the input to the outputs, ready to be called
    """

    modules: tuple[str, ...]
    forms: tuple[str, ...]
    start: Callable[[Job, str], Run]

    def missing(self) -> str | None:
        """The first module that is not installed."""
        return next((m for m in self.modules if importlib.util.find_spec(m) is None), None)


def refvit(job: Job, form: str, without: str | None = None) -> Run:
    """refvit itself, as `refvit.load` gives it; without one of its passes, if that is named."""
    from refvit import load
    from refvit.graph import passes

    threads = {"threads": job.threads} if job.backend != "numpy" else {}  # NumPy's are those of its BLAS library
    model = load(job.model, job.path / "weights.safetensors", backend=job.backend, **threads)
    if without is not None:
        kept = tuple(p for p in passes.PASSES if p.__name__ != without)
        with mock.patch.object(passes, "PASSES", kept):  # a graph is compiled in the first call
            model(job.input())

    def run(x: Array) -> dict[str, Array]:
        y = model(x)
        return y if isinstance(y, dict) else {"output": y}

    return run


def onnxruntime(job: Job, form: str) -> Run:
    """One thread pool, every graph optimisation."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(job.path / f"{form}.onnx"), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return lambda x: dict(zip(names, session.run(names, {"input": x}), strict=True))


def openvino(job: Job, form: str) -> Run:
    """One request at a time, float32 throughout, no copies of inputs and outputs."""
    import openvino as ov

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": job.threads}
    compiled = ov.Core().compile_model(str(job.path / f"{form}.onnx"), "CPU", settings)
    request = compiled.create_infer_request()
    names = [o.any_name for o in compiled.outputs]

    def run(x: Array) -> dict[str, Array]:
        found = request.infer({0: x}, share_inputs=True, share_outputs=True)
        return {name: found[i] for i, name in enumerate(names)}

    return run


def torch_net(job: Job, form: str) -> Any:
    """The module that torch's variants run, in evaluation mode."""
    import torch

    torch.set_num_threads(job.threads)
    if form == "timm":
        return jobs.timm_model(job)
    from bench.torch_graph import module

    return module(*jobs.graph(job))


def torch_eager(job: Job, form: str) -> Run:
    return _torch_run(torch_net(job, form))


def torch_channels_last(job: Job, form: str) -> Run:
    """Weights and input in the layout that oneDNN's convolutions prefer."""
    import torch

    return _torch_run(torch_net(job, form).to(memory_format=torch.channels_last), memory_format=torch.channels_last)


def torch_compile(job: Job, form: str) -> Run:
    """The default backend with weights frozen, which lets it pack them once."""
    import torch

    return _torch_run(torch.compile(torch_net(job, form), options={"freezing": True}))


def _torch_run(net: Callable[..., Any], **layout: Any) -> Run:
    import torch

    def run(x: Array) -> dict[str, Array]:
        with torch.no_grad():  # frozen weights need it; inference_mode is no faster
            y = net(torch.from_numpy(x).to(**layout) if layout else torch.from_numpy(x))
        return {name: value.numpy() for name, value in (y if isinstance(y, dict) else {"output": y}).items()}

    return run


def _without(name: str) -> Callable[[Job, str], Run]:
    return lambda job, form: refvit(job, form, without=name)


BOTH = ("refvit", "timm")
RUNTIMES = {
    "refvit": Runtime(("refvit",), ("refvit",), refvit),
    "onnxruntime": Runtime(("onnxruntime",), BOTH, onnxruntime),
    "openvino": Runtime(("openvino",), BOTH, openvino),
    "torch": Runtime(("torch",), BOTH, torch_eager),
    "torch channels_last": Runtime(("torch",), BOTH, torch_channels_last),
    "torch.compile": Runtime(("torch",), ("refvit",), torch_compile),  # compiling takes minutes: not twice
} | {f"refvit without {name}": Runtime(("refvit",), ("refvit",), _without(name)) for name in ALGEBRAIC}
PEERS = tuple(name for name in RUNTIMES if not name.startswith("refvit"))
