"""Time and peak memory of `refvit convert`, one process a run, for a ViT-B of 330 MB in every format.

python -m bench.convert [RESULT.json]

The .pth and the older .pt are laid out as torch.save does it, without torch. Peak memory counts mapped pages of the file.
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

import refvit
from bench.machine import describe
from refvit.models import architecture

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # which write files of every format
RUNS = 5
MEASURE = """
import sys
from refvit.cli import main
code = main(sys.argv[1:])
with open("/proc/self/status") as status:  # unlike getrusage's, this peak does not know of the parent
    peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
print(code, peak, file=sys.stderr)
"""


def checkpoints(folder: Path) -> dict[str, Path]:
    """The same tensors in a file of each format."""
    from helpers.files import SUFFIXES, write

    arch = architecture("vit_base_patch16_224")
    rng = np.random.default_rng(0)
    state = {n: (0.02 * rng.standard_normal(s)).astype(np.float32) for n, s in arch.parameters(arch.config)}
    return {suffix.removeprefix("."): write(state, folder / f"a{suffix}") for suffix in SUFFIXES}


def run(source: Path, target: Path) -> tuple[float, float]:
    """Seconds and peak MiB of one conversion in a process of its own, the start of Python included."""
    arguments = ["convert", str(source), "-o", str(target), "--model", "vit_base_patch16_224", "--no-check"]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
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
