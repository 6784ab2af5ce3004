"""All runtimes on one model, in turns within one process, so that noise and frequency are shared.

bench.cpu runs `python -m bench.rounds ARGUMENTS RESULT`: a model that crashes a runtime does not end the whole run. ARGUMENTS
are the JSON of `job`, `runtimes` and `rounds`, RESULT is the file that is written.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import job as jobs
from bench.job import Array, Job, Run
from bench.peak import Peak
from bench.peers import ALGEBRAIC, RUNTIMES

WRONG = 1e-3  # of the largest value: an output that is further from float64 is an error and no rounding
VISIT, LEAST, MOST = 0.12, 2, 10  # seconds of a visit, and its iterations
HEATS = 4  # runs of each form of a model, to choose between them
PAUSE = 0.3  # seconds after which other runtimes' threads have gone to sleep: some spin for 200 ms
WARM = 2  # iterations of a visit that do not count


def attempt(function: Callable[[], Any]) -> tuple[Any, str | None]:
    """(result, None), or (None, what went wrong)."""
    try:
        return function(), None
    except Exception as error:  # a peer's failure is a result like any other
        return None, f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def golden(job: Job) -> dict[str, Array]:
    """The outputs in float64: by torch where it is installed, else by NumPy, which takes longer."""
    graph, params = jobs.graph(job, "float64")
    x = job.input().astype(np.float64)
    if importlib.util.find_spec("torch"):
        import torch

        from bench.torch_graph import module

        torch.set_num_threads(job.threads)
        with torch.no_grad():
            return {name: y.numpy() for name, y in module(graph, params)(torch.from_numpy(x)).items()}
    from refvit.backends.numpy import compile_graph

    return compile_graph(graph)(x)


def error(got: dict[str, Array], want: dict[str, Array]) -> float:
    """Largest difference, of the largest value; infinite for missing, misshapen and non-finite outputs."""
    if got.keys() != want.keys() or any(got[n].shape != y.shape or not np.isfinite(got[n]).all() for n, y in want.items()):
        return float("inf")
    return max(float(np.abs(got[name] - y).max() / np.abs(y).max()) for name, y in want.items())


def applies(job: Job, name: str) -> bool:
    """Whether a pass changes the model's graph at all."""
    from refvit.graph import passes

    graph = passes.remove_dead(passes.cancel_views(jobs.graph(job)[0]))
    return dict(getattr(passes, name)(graph).nodes) != dict(graph.nodes)


def seconds(run: Run, x: Array) -> float:
    start = time.perf_counter()
    run(x)
    return time.perf_counter() - start


class Field:
    """The runtimes that take part, each with the form of the model that it is faster with."""

    def __init__(self, job: Job, names: list[str]) -> None:
        self.job, self.x = job, job.input()
        self.report: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, Run] = {}
        jobs.write_weights(job)
        jobs.write_export(job)
        self.forms = ["refvit"]
        self.timm_failed: str | None = None
        if jobs.has_timm(job):
            self.forms.append("timm")
            if any(n in names for n in ("onnxruntime", "openvino")):
                _, self.timm_failed = attempt(lambda: jobs.write_timm_export(job))
        self.want = golden(job)
        for name in names:
            self._enter(name)

    def _enter(self, name: str) -> None:
        runtime, heats = RUNTIMES[name], {}
        report = self.report[name] = {}
        if missing := runtime.missing():
            report["failed"] = f"{missing} is not installed"
            return
        without = name.removeprefix("refvit without ")
        if without in ALGEBRAIC and not applies(self.job, without):
            report["same"] = True  # as refvit: the pass changes nothing in this model
            return
        for form in (f for f in runtime.forms if f in self.forms):
            run, failed = attempt(lambda form=form: self._start(runtime, form, report))
            if failed is None:
                times = sorted(seconds(run, self.x) for _ in range(HEATS))
                heats[form] = times[1], run
                report.setdefault("heats_ms", {})[form] = 1000 * times[1]
            else:
                report.setdefault("failures", {})[form] = self.timm_failed if form == "timm" and self.timm_failed else failed
        if heats:
            report["form"] = min(heats, key=lambda form: heats[form][0])
            report["estimate"], self.runs[name] = heats[report["form"]]
        else:
            report["failed"] = next(iter(report["failures"].values()))

    def _start(self, runtime: Any, form: str, report: dict[str, Any]) -> Run:
        run = runtime.start(self.job, form)
        found = error(run(self.x), self.want)
        report.setdefault("error", {})[form] = found
        if not found <= WRONG:
            raise ValueError(f"its output differs from the reference by {found:.1e} of the largest value")
        return run

    def measure(self, rounds: int) -> dict[str, Any]:
        """Rounds of one visit each, every round beginning with the next runtime; a visit's first iterations do not count."""
        peak = Peak(self.job.threads)
        times: dict[str, list[float]] = {name: [] for name in self.runs}
        peaks, names = [], list(self.runs)
        gc.collect()
        gc.disable()
        for r in range(rounds):
            first = r % max(1, len(names))
            for name in names[first:] + names[:first]:
                run = self.runs[name]
                count = int(min(MOST, max(LEAST, VISIT / self.report[name]["estimate"])))
                time.sleep(PAUSE)
                for _ in range(WARM):
                    run(self.x)
                times[name] += [seconds(run, self.x) for _ in range(count)]
            time.sleep(PAUSE)
            peaks.append(peak.measure(0.01))
        gc.enable()
        for name, values in times.items():
            low, middle, high = (1000 * float(v) for v in np.percentile(values, (10, 50, 90)))
            self.report[name] |= {"median_ms": middle, "min_ms": 1000 * min(values), "p10_ms": low, "p90_ms": high}
            self.report[name]["runs"] = len(values)
        return {"runtimes": self.report, "peak_gflops": float(np.median(peaks)), "peak_gflops_highest": max(peaks)}


def main() -> None:
    warnings.simplefilter("ignore")
    given = json.loads(sys.argv[1])
    job = Job(**given["job"])
    result = Field(job, given["runtimes"]).measure(given["rounds"])
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
