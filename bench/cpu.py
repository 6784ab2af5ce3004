"""refvit and the runtimes that people use on a CPU, side by side.

    python -m bench.cpu [--models NAME ...] [--batch 1 8] [--threads 2] [--rounds N] [--peers NAME ...] [--passes]
                        [--out bench/results/cpu.json] [--plot FILE.svg]

Every model has random weights, the same in every runtime. All runtimes of a model take turns in one process (`bench.rounds`);
an output that differs is reported and not timed. Start-up and memory are those of a fresh process (`bench.start`).
torch.compile takes minutes to compile a model for the first time and has to be asked for: --peers all.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import refvit
from bench.job import Job
from bench.machine import describe
from bench.peers import ALGEBRAIC, PEERS, RUNTIMES
from bench.report import markdown, plot, summary
from refvit.graph.cost import total_cost
from refvit.model import architecture_graph
from refvit.models import ARCHITECTURES, architecture

ROOT = Path(__file__).parent.parent
MODELS = (
    "mobilevit_xxs", "mobilevit_s", "hrnet_w18_small", "hrnet_w18", "hrnet_w32", "vit_tiny_patch16_224",
    "vit_small_patch16_224", "vit_base_patch16_224", "hrvit_b1", "hrvit_b1_segformer", "hrnet_w32_pose",
    "mobilevit_s_deeplabv3",
)  # fmt: skip
SLOW = "torch.compile"
STARTED = ("refvit", "onnxruntime", "openvino", "torch", SLOW)  # whose start-up is measured; channels_last is as torch
VERSIONS = ("refvit", "numpy", "numba", "llvmlite", "onnxruntime", "openvino", "torch", "timm")
LIMIT = 3600  # seconds for one model


def cores(count: int) -> set[int]:
    """Processors for this and all child processes, so that everybody's default is the same number: on different cores first."""
    free = sorted(os.sched_getaffinity(0))

    def sibling(cpu: int) -> int:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        names = path.read_text().replace("-", ",").split(",") if path.exists() else []
        return sum(int(name) in free and int(name) < cpu for name in names)

    chosen = sorted(free, key=sibling)[:count]
    if len(chosen) < count:
        raise SystemExit(f"--threads {count}: this process may use {len(free)} processors")
    return set(chosen)


def run_module(module: str, threads: int, *arguments: str) -> str:
    """Output of `python -m module`; RuntimeError with the end of what it said if it failed."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **limits, "PYTHONPATH": path, "TORCH_LOGS": "-all"}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise RuntimeError(f"{module} ended with {done.returncode}: {last[:300]}")
    return done.stdout


def start_up(job: Job, runtimes: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Of the runtimes that answered: the fastest start of a few, and the memory of that process."""
    found: dict[str, Any] = {}
    for name in (n for n in STARTED if "form" in runtimes.get(n, {})):
        tries = []
        for _ in range(1 if name.startswith("torch") else rounds):
            given = {"job": dataclasses.asdict(job), "runtime": name, "form": runtimes[name]["form"], "began": time.time()}
            try:
                tries.append(json.loads(run_module("bench.start", job.threads, json.dumps(given)).splitlines()[-1]))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                found[name] = {"failed": str(error)}
        if tries:
            found[name] = min(tries, key=lambda t: t["seconds"])
    return found


def measure(model: str, batch: int, args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Everything about one model at one batch size; what goes wrong is in "failed"."""
    shape = (batch, 3, *architecture(model).input_size)
    macs = total_cost(architecture_graph(model, batch=batch)).macs
    entry: dict[str, Any] = {"model": model, "batch": batch, "shape": shape, "macs": macs, "load": os.getloadavg()[0]}
    folder = tempfile.mkdtemp(prefix="refvit-bench-")
    try:
        job = Job(model, shape, args.threads, args.backend, folder)
        rounds = args.rounds if batch == 1 else max(1, args.rounds // 3)
        given = {"job": dataclasses.asdict(job), "runtimes": names, "rounds": rounds}
        result = Path(folder) / "result.json"
        run_module("bench.rounds", args.threads, json.dumps(given), str(result))
        entry |= json.loads(result.read_text())
        if not args.no_start_up:
            entry["starts"] = start_up(job, entry["runtimes"], args.starts)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        entry["failed"] = str(error)
    finally:
        shutil.rmtree(folder)
    return entry


def versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"refvit": refvit.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="names of refvit's models (default: %(default)s)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10, help="turns of every runtime; a third of them for larger batches")
    parser.add_argument(
        "--starts", type=int, default=2, help="fresh processes of each runtime, of which the fastest counts; torch: 1"
    )
    parser.add_argument("--no-start-up", action="store_true", help="do not start fresh processes")
    parser.add_argument("--peers", nargs="+", choices=[*PEERS, "all", "none"], default=[p for p in PEERS if p != SLOW])
    parser.add_argument("--backend", default="numba", help="refvit's (default: %(default)s)")
    parser.add_argument("--passes", action="store_true", help=f"also refvit without each of {', '.join(ALGEBRAIC)}")
    parser.add_argument("--out", type=Path, help="JSON file of everything")
    parser.add_argument("--plot", type=Path, help="picture of the ratios; needs matplotlib")
    args = parser.parse_args()
    if unknown := [name for name in args.models if name not in ARCHITECTURES]:
        parser.error(f"refvit has no model {unknown[0]}; `refvit models` lists them")
    os.sched_setaffinity(0, cores(args.threads))

    peers = {"all": list(PEERS), "none": []}.get(args.peers[0], args.peers)
    names = ["refvit", *(n for n in RUNTIMES if n.startswith("refvit ") and args.passes), *peers]
    result: dict[str, Any] = {"machine": describe(), "versions": versions(), "threads": args.threads, "backend": args.backend}
    result |= {"rounds": args.rounds, "entries": []}
    began = time.perf_counter()
    for batch in args.batch:
        for model in args.models:
            entry = measure(model, batch, args, names)
            result["entries"].append(entry)
            result["summary"] = summary(result["entries"])
            result["seconds"] = round(time.perf_counter() - began, 1)
            medians = {
                n: round(found["median_ms"], 2) for n, found in entry.get("runtimes", {}).items() if "median_ms" in found
            }
            print(f"{result['seconds']:7.1f} s  {model}, batch {batch}: {entry.get('failed', medians)}", file=sys.stderr)
            if args.out:  # after every model, so that nothing is lost
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))
    if args.plot:
        plot(result, args.plot)


if __name__ == "__main__":
    main()
