"""The proof of `refvit check`: known mistakes made one at a time in right implementations; are they found, where, and named?

    python -m bench.check_bugs [--seeds 1000-1099] [--each 8] [--right 4] [--out bench/results/check_bugs.json] [--only NAME]

A seed makes `--each` mistakes, and `--right` runs of implementations that have none. Layer, variant, magnitude, weights and
image are drawn anew every time. A mistake whose effect cannot be told from rounding is drawn again, and counted. What is right
is not drawn: the runs walk through every way with every model, so many of them for a seed. Seeds below 1000 are for
development; those from 1000 on have not been looked at before they were run. What is done is kept beside the result, so that a
run goes on where it was stopped, by the same code alone. One run again: --seeds 1042 --only NAME.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.bugs.tables import markdown, summary
from bench.machine import describe

Row = dict[str, Any]
ROOT = Path(__file__).parents[1]
SOURCES = ("refvit", "bench", "weights_convert")
LIBRARIES = ("numpy", "torch", "timm", "transformers", "onnx", "onnxruntime", "openvino", "numba")


def seeds(text: str) -> list[int]:
    """ "3,1000-1099" """
    parts = (part.split("-") for part in text.split(","))
    return [seed for part in parts for seed in range(int(part[0]), int(part[-1]) + 1)]


def mistakes(seed: int, each: int, only: list[str], done: set[str]) -> Iterable[Row]:
    """The rows of a seed's mistakes that are not there yet."""
    import refvit
    from bench.bugs.cases import draw, name_of
    from bench.bugs.verdicts import run

    for name in only or [name_of(seed, i, each) for i in range(each)]:
        key = f"{seed} {name}"
        if key in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            row: Row = {"key": key, "seed": seed, "bug": name}
            try:
                case = draw(seed, name, Path(folder))
            except Exception as error:  # of the bench itself: said and counted, the others go on
                yield row | {"kind": "bench", "failed": f"{type(error).__name__}: {error}"[:400]}
                continue
            row["made_in"] = round(time.perf_counter() - start, 2)
            if case.candidate is None:
                yield row | {
                    "kind": case.kind,
                    "impossible": True,
                    "tried": case.tried,
                    "refused": case.refused,
                    "words": case.words,
                }
            else:
                yield row | run(case, refvit.check)


def rights(seed: int, count: int, done: set[str]) -> Iterable[Row]:
    """The rows of a seed's right implementations that are not there yet.

    ok: they match. Of a runtime that is wrong itself, as another runtime shows on the same file, that they do not.
    """
    import refvit
    from bench.bugs.onnx_models import RefusedError
    from bench.bugs.right import cell, make

    for number in range(count):
        chosen = cell(seed * count + number)
        key = f"{seed} right {chosen}"
        if key in done:
            continue
        row: Row = {"key": key, "seed": seed, "right": chosen.right.name, "subject": chosen.subject.name, "form": chosen.form}
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            try:
                drawn = make(chosen, seed, Path(folder))
                weights = str(drawn.reference.file(folder))
                defect = drawn.defect(Path(folder))
                report = refvit.check(drawn.candidate, chosen.subject.model, weights=weights, **drawn.options)
            except RefusedError as error:
                yield row | {"refused": [str(error)[:200]]}
                continue
            except Exception as error:
                yield row | {"ok": False, "cause": "error", "error": f"{type(error).__name__}: {error}"[:400]}
                continue
            first, ratios = report.first_divergence, [f.own_ratio for f in report.findings]
            row |= {"ok": bool(report.ok) == (defect is None), "matched": bool(report.ok), "defect": defect}
            row |= {"cause": report.cause, "found": None if first is None else first.value}
            row |= {"largest": max(ratios, default=None), "compared": len(ratios), "arithmetic": report.arithmetic}
            yield row | {"seconds": round(time.perf_counter() - start, 2)}


def code() -> str:
    """The commit, and a digest of the sources where they are not those of the commit."""

    def git(*arguments: str) -> str:
        return subprocess.run(("git", *arguments), cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    commit = git("rev-parse", "HEAD")
    results = ":(exclude)bench/results"
    if not git("status", "--porcelain", "--", *SOURCES, results):
        return commit
    files = sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return f"{commit} and changes {digest[:12]}"


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in LIBRARIES}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1000-1099")
    parser.add_argument("--each", type=int, default=8, help="mistakes of a seed")
    parser.add_argument("--right", type=int, default=4, help="right implementations of a seed")
    parser.add_argument("--only", nargs="*", default=[], help="these mistakes alone, for each seed")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found, by = versions(), code()
    kept = arguments.out.with_suffix(".rows.jsonl") if arguments.out else None
    rows: list[Row] = [json.loads(line) for line in kept.read_text().splitlines()] if kept and kept.exists() else []
    if others := {str(row.get("code")) for row in rows} - {by}:
        parser.error(f"{kept} has rows of other code ({', '.join(sorted(others))}; this is {by}): move it away")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    import torch

    from bench.bugs.cases import NAMES

    if wrong := sorted(set(arguments.only) - set(NAMES)):
        parser.error(f"--only: no mistake {', '.join(wrong)}; there are {', '.join(sorted(NAMES))}")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    done = {row["key"] for row in rows}
    for seed in seeds(arguments.seeds):
        for source in (
            mistakes(seed, arguments.each, arguments.only, done),
            rights(seed, 0 if arguments.only else arguments.right, done),
        ):
            for row in source:
                row["code"] = by
                rows.append(row)
                print(json.dumps(row), flush=True)
                if kept:
                    with kept.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    result = {"machine": describe(), "versions": found, "code": by, "seeds": arguments.seeds, "summary": summary(rows)}
    result["rows"] = rows
    print(markdown(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
