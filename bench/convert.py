"""Time and peak memory of `refvit convert`, one process a run, for a ViT-B of 330 MB in every format that can be written here.

python bench/convert.py [RESULT.json]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import describe
from safetensors.numpy import save_file

import refvit
from refvit.models import architecture

RUNS = 5
MEASURE = "import resource, sys; from refvit.cli import main; code = main(sys.argv[1:]); " + (
    "print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
)


def checkpoints(folder: Path) -> dict[str, Path]:
    """The same tensors as .safetensors, .npz and, where torch is installed, .pth."""
    arch = architecture("vit_base_patch16_224")
    rng = np.random.default_rng(0)
    state = {n: (0.02 * rng.standard_normal(s)).astype(np.float32) for n, s in arch.parameters(arch.config)}
    save_file(state, folder / "a.safetensors")
    np.savez(folder / "a.npz", **state)
    try:
        import torch
    except ImportError:
        return {"safetensors": folder / "a.safetensors", "npz": folder / "a.npz"}
    torch.save({"model": {n: torch.from_numpy(a) for n, a in state.items()}}, folder / "a.pth")
    return {"safetensors": folder / "a.safetensors", "npz": folder / "a.npz", "pth": folder / "a.pth"}


def run(source: Path, target: Path) -> tuple[float, float]:
    """Seconds and peak MiB of one conversion in a process of its own, the start of Python included."""
    arguments = ["convert", str(source), "-o", str(target), "--model", "vit_base_patch16_224", "--no-check"]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True)
    code, peak = done.stderr.split()[-2:]
    assert code == "0", done.stderr
    return time.perf_counter() - start, int(peak) / 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        result: dict[str, object] = {"machine": describe(), "refvit": refvit.__version__, "numpy": np.__version__}
        for name, path in checkpoints(folder).items():
            runs = [run(path, folder / "out.safetensors") for _ in range(RUNS)]
            seconds, peaks = zip(*runs, strict=True)
            result[name] = {
                "file_mib": round(path.stat().st_size / 2**20, 1),
                "seconds_median": round(statistics.median(seconds), 2),
                "seconds_spread": [round(min(seconds), 2), round(max(seconds), 2)],
                "peak_mib": round(max(peaks), 1),
            }
            print(name, result[name], flush=True)
    text = json.dumps(result, indent=1) + "\n"
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
