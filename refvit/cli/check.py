"""refvit check: where another implementation first goes wrong, whether it matters, and why."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import refvit
from refvit import backends
from refvit.cli.common import OK, add_preprocessing, preprocessing, printable, say, setting
from refvit.crosscheck.arithmetic import ARITHMETICS
from refvit.crosscheck.candidates.manifest import read_npy
from refvit.crosscheck.layouts import LAYOUTS
from refvit.errors import ConfigError
from refvit.loading import sort

MISMATCH = 1


def add(verbs: Any) -> None:
    check = verbs.add_parser(
        "check",
        help="where another implementation first differs from the reference, and why",
        description="Holds another implementation of a model against the reference in float64. Exit code 0: every value is as "
        "exact as its arithmetic can be; 1: it is not.",
    )
    check.set_defaults(run=_check)
    check.add_argument(
        "candidate",
        metavar="CANDIDATE",
        help="an .onnx file; what it computed, as .npz or as a folder of .npy, .bin or .hex; package.module:NAME, a function "
        "or torch module, which is imported; or a backend",
    )
    check.add_argument("--model", required=True, metavar="NAME", help="see `refvit models`")
    check.add_argument("--weights", metavar="FILE", help="as for `refvit infer`; those that the candidate has")
    check.add_argument("--image", metavar="FILE", help="default: a seeded input that looks like a normalised photograph")
    check.add_argument("--input", metavar="FILE.npy", help="instead of an image: floats (n, 3, h, w), already pre-processed")
    check.add_argument("--names", metavar="MAP.json", help="object of the candidate's names and refvit's, where they differ")
    check.add_argument(
        "--layouts",
        metavar="MAP.json",
        help=f"object of the candidate's names, or wildcard patterns, and layouts: {', '.join(LAYOUTS)}",
    )
    check.add_argument(
        "--arithmetic", metavar="NAME", help=f"what it computes in: {', '.join(ARITHMETICS)} (default: by dtypes)"
    )
    check.add_argument("--outputs-only", action="store_true", help="look at outputs alone: nothing inside is asked for")
    check.add_argument("--json", action="store_true", help="one JSON object")
    check.add_argument("-o", "--output", metavar="REPORT", help="a page (.html), JSON (.json) or the text (.txt)")
    check.add_argument(
        "--set", type=setting, action="append", default=[], metavar="NAME=VALUE", help="as for `refvit infer`; repeatable"
    )
    add_preprocessing(check)


def _check(args: argparse.Namespace) -> int:
    from refvit.crosscheck.report import checked

    if args.output:
        checked(args.output)  # rather now than after the work
    fields = preprocessing(args) | dict(args.set)
    sort(fields)
    report = refvit.check(
        subject(args.candidate, args.outputs_only),
        args.model,
        weights=args.weights,
        image=args.image,
        input=None if args.input is None else read_npy(Path(args.input))[0],
        names=read_map(args.names, "--names"),
        layouts=read_map(args.layouts, "--layouts"),
        arithmetic=args.arithmetic,
        outputs_only=args.outputs_only,
        **fields,
    )
    if args.json:
        print(report.to_json())
    else:
        print("\n".join(printable(line) for line in report.text().splitlines()))
    if args.output:
        say(f"saved {report.save(args.output)}")
    return OK if report.ok else MISMATCH


def subject(text: str, outputs_only: bool) -> Any:
    """A path and a backend as they are; of package.module:NAME what has this name. Nothing is imported without the colon."""
    from refvit.crosscheck.candidates import candidate

    if os.path.lexists(text) or text in backends.BACKENDS:
        return text
    module, colon, name = text.rpartition(":")
    if not (colon and module and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))):
        raise ConfigError(
            f"{text}: no such file or folder; an .onnx, an .npz, a folder of dumps, package.module:NAME or a backend "
            f"({', '.join(backends.BACKENDS)}) expected"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")  # as for python -m: what lies in the working folder
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # what the module needs is not installed
        raise ConfigError(f"{text}: no module {error.name}; run this where it lies, or install its package") from None
    except ImportError:
        raise
    except (Exception, SystemExit) as error:  # an exit code of somebody else's must not become ours
        raise ConfigError(f"{text}: importing {module} failed, {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            has = ", ".join(n for n in getattr(found, "__dict__", {}) if n[:1] != "_")[:200] or "no names"
            raise ConfigError(f"{text}: {module} has no {name}; it has {has}")
        found = getattr(found, part)
    return candidate(found, name=text, outputs_only=outputs_only)


def read_map(path: str | None, option: str) -> dict[str, str] | None:
    """A JSON object of texts."""
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        try:
            table = json.load(file)
        except ValueError as error:
            raise ConfigError(f"{option} {path}: no JSON ({error}); an object of names expected") from None
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise ConfigError(f'{option} {path}: a JSON object of names expected, such as {{"conv1": "stem.conv"}}')
    return table
