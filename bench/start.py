"""One runtime in a process of its own: seconds from its start to the first answer, and the memory that it takes.

bench.cpu runs `python -m bench.start ARGUMENTS`: JSON of `job`, `runtime`, `form` and `began`, the time of the start.
"""

from __future__ import annotations

import importlib
import json
import sys
import time

from bench.job import Job
from bench.peers import RUNTIMES

IMPORTS = {"numba": "refvit.backends.numba.executable", "numpy": "refvit.backends.numpy"}  # what the first call would import


def memory(field: str) -> float:
    """MiB that this process has (VmRSS), or had at most (VmHWM). Unlike getrusage's it does not know of the parent."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024


def main() -> None:
    given = json.loads(sys.argv[1])
    job, runtime = Job(**given["job"]), RUNTIMES[given["runtime"]]
    for name in runtime.modules:
        importlib.import_module(name)
    if given["runtime"].startswith("refvit"):
        importlib.import_module(IMPORTS[job.backend])
    imported = memory("VmRSS")
    x = job.input()
    run = runtime.start(job, given["form"])
    run(x)
    seconds = time.time() - given["began"]
    for _ in range(3):
        run(x)
    print(json.dumps({"seconds": seconds, "imports_mib": imported, "peak_mib": memory("VmHWM")}))


if __name__ == "__main__":
    main()
