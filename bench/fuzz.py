"""Weights files damaged at random, by the hundred thousand: each is read right or refused in a sentence, at once and in bounds.

    python -m bench.fuzz [--seconds N] [--formats NAME ...] [--keep FOLDER] [--out bench/results/fuzz.json]

The changes below are made to the first inputs. Where atheris is installed it keeps what takes new branches of the readers, goes
on from there, and makes every other change itself. Every format has a process of its own, which may map MEMORY bytes more than
at its start; one that gets stuck is ended. Inputs that are mishandled are kept in FOLDER; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from bench.machine import describe

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # for the writers of such files in tests/helpers
MEMORY = 2**29  # bytes
SLOW = 2.0  # seconds of the processor for an input, most of which take less than a thousandth of that
STUCK = 300  # seconds over its time after which a process is ended
LONGEST = 8192  # bytes of an input


class Trial:
    """Gives inputs to a reader until the time is over, and counts what comes of them."""

    def __init__(self, name: str, seconds: float, folder: Path, keep: Path) -> None:
        from bench.fuzz_formats import FORMATS

        self.format, self.folder, self.keep = FORMATS[name], folder, keep
        for beside, raw in self.format.beside.items():
            (folder / beside).write_bytes(raw)
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.places: set[tuple[Any, ...]] = set()  # lines that refused, with those that called them
        self.failures: dict[str, str] = {}  # what was violated where, by name of the input that is kept
        self.slowest = 0.0
        self.memory = _memory("VmHWM")
        self.end = time.monotonic() + seconds

    def __call__(self, data: bytes) -> None:
        from helpers import handmade, judge

        path = self.folder / "input"
        try:
            handmade.put(path, self.format.build(data))
            start = time.process_time()
            tensors = judge.answer(self._read, path)
            taken = time.process_time() - start
            assert taken < SLOW, f"{taken:.1f} seconds"
            if tensors is not None and self.format.same is not None:
                self.format.same(tensors, path)
            self.outcomes["refused" if tensors is None else "read"] += 1
            self.slowest = max(self.slowest, taken)
        except Exception as error:
            self.outcomes["failed"] += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} in {where.name}: {str(error).replace(str(path), 'PATH'):.300}"
            if where.lineno is not None and not any(w.split(":")[0] == what.split(":")[0] for w in self.failures.values()):
                kept = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
                (self.keep / kept).write_bytes(path.read_bytes())
                self.failures[kept] = what
        if time.monotonic() > self.end:
            self.report()
            os._exit(0)  # atheris does not return

    def _read(self, path: Path) -> Any:
        try:
            return self.format.read(path)
        except Exception as error:
            first: BaseException = error
            while first.__cause__ is not None:
                first = first.__cause__
            self.places.add(_lines(first)[-2:])
            raise

    def report(self) -> None:
        result = {
            "inputs": self.outcomes.total(),
            **{name: self.outcomes[name] for name in ("read", "refused", "failed")},
            "refused_in_ways": len(self.places),
            "slowest_seconds": round(self.slowest, 4),
            "memory_mib": round(_memory("VmHWM") - self.memory, 1),
            "failures": self.failures,
        }
        (self.folder / "result.json").write_text(json.dumps(result))


def _lines(error: BaseException) -> tuple[tuple[str, int], ...]:
    """Where an error passed, outermost first. traceback would read the text of the lines as well, which takes longer."""
    lines, at = [], error.__traceback__
    while at is not None:
        lines.append((at.tb_frame.f_code.co_filename, at.tb_lineno))
        at = at.tb_next
    return tuple(lines)


def _memory(field: str) -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024


def changed(rng: random.Random, first: list[bytes], tokens: list[bytes]) -> bytes:
    """One of the first inputs after one to eight changes."""
    raw = bytearray(rng.choice(first))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 8))):
        i, n = rng.randrange(len(raw) + 1), rng.choice((1, 2, 4, 8, rng.randrange(64)))
        size = len(raw) + rng.choice((-1, 0, 1))
        number = rng.choice(
            (0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, max(size, 0), rng.getrandbits(64))
        )
        other = rng.choice(first)
        j = rng.randrange(len(other) + 1)
        change = rng.randrange(9)
        if change == 0 and i < len(raw):
            raw[i] ^= 1 << rng.randrange(8)
        elif change == 1 and i < len(raw):
            raw[i] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256), rng.choice(b'0123456789,:[]{}"()<>|.')))
        elif change == 2:
            raw[i : i + n] = (number % 2 ** (8 * min(n, 8))).to_bytes(n, rng.choice(("little", "big")))
        elif change == 3:
            raw[i:i] = rng.choice(tokens)
        elif change == 4:
            raw[i : i + n] = rng.choice(tokens)
        elif change == 5:
            del raw[i : i + n]
        elif change == 6:
            raw[i:i] = raw[j : j + n]
        elif change == 7:
            raw[i : i + n] = other[j : j + n]
        elif rng.random() < 0.2:
            raw[i:] = other[j:]
    return bytes(raw[:LONGEST])


def child(name: str, seconds: float, seed: int, folder: Path, keep: Path) -> None:
    """Fuzzes one format; its counts are in the folder when the process ends."""
    led = importlib.util.find_spec("atheris") is not None
    if led:
        import atheris

        with atheris.instrument_imports(include=["refvit.weights.readers"]):
            from bench.fuzz_formats import TOKENS
    else:
        from bench.fuzz_formats import TOKENS
    trial = Trial(name, seconds, folder, keep)
    most = int(_memory("VmSize") * 2**20) + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if not led:
        rng = random.Random(seed)
        while True:
            trial(changed(rng, trial.format.first, TOKENS))
    (folder / "corpus").mkdir()
    for i, raw in enumerate(trial.format.first):
        (folder / "corpus" / str(i)).write_bytes(raw)
    (folder / "tokens").write_text("".join('"' + "".join(f"\\x{b:02x}" for b in token) + '"\n' for token in TOKENS))
    options = [
        f"-seed={seed}",
        f"-max_len={LONGEST}",
        f"-dict={folder / 'tokens'}",
        f"-timeout={STUCK}",
        "-rss_limit_mb=0",
        f"-artifact_prefix={folder}/",
    ]

    def mutate(data: bytes, size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return atheris.Mutate(data, size)
        return changed(rng, [data or b"0", *trial.format.first], TOKENS)[:size]

    arguments = [sys.argv[0], *options, "-len_control=0", "-verbosity=0", str(folder / "corpus")]
    atheris.Setup(arguments, trial, custom_mutator=mutate)
    atheris.Fuzz()


def run(name: str, seconds: float, seed: int, keep: Path) -> dict[str, Any]:
    """The counts of one format, or that its process died, of which the input is then kept."""
    with tempfile.TemporaryDirectory(prefix="fuzz", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as temporary:
        folder = Path(temporary)
        own = {"child": name, "seconds": seconds, "seed": seed, "folder": temporary, "keep": keep}
        arguments = [part for option, value in own.items() for part in (f"--{option}", str(value))]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "bench.fuzz", *arguments],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=seconds + 2 * STUCK,
            )
            how = f"exit code {done.returncode}: {done.stdout[-1000:]} {done.stderr[-1000:]}"
        except subprocess.TimeoutExpired:
            how = f"no end within {STUCK} seconds"
        if (folder / "result.json").exists():
            return json.loads((folder / "result.json").read_text())
        (keep / "last").write_bytes((folder / "input").read_bytes() if (folder / "input").exists() else b"")
        return {"inputs": 0, "failed": 1, "failures": {"last": how}}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="in all, shared equally by the formats")
    parser.add_argument("--formats", nargs="+")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for inputs that are mishandled")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    keep = given.keep.resolve()
    if given.child:
        child(given.child, given.seconds, given.seed, given.folder, keep)
    import numpy as np
    import safetensors

    import refvit
    from bench.fuzz_formats import FORMATS

    keep.mkdir(exist_ok=True)
    led = importlib.util.find_spec("atheris") is not None
    result: dict[str, Any] = {
        "machine": describe(),
        "refvit": refvit.__version__,
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
        "inputs_by": f"atheris {importlib.metadata.version('atheris')}" if led else "the changes of bench/fuzz.py",
        "seed": given.seed,
        "seconds_each": round(given.seconds / len(given.formats or FORMATS), 1),
        "memory_limit_mib": MEMORY // 2**20,
        "formats": {},
    }
    for name in given.formats or FORMATS:
        result["formats"][name] = run(name, result["seconds_each"], given.seed, keep)
        print(f"{name}: {result['formats'][name]}", flush=True)
    rows = result["formats"].values()
    result["total"] = {key: sum(row.get(key, 0) for row in rows) for key in ("inputs", "read", "refused", "failed")}
    print(f"total: {result['total']}")
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    if not any(keep.iterdir()):
        keep.rmdir()
    return int(result["total"]["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
