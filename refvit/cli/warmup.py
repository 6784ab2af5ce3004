"""refvit warmup: compile the kernels ahead, when a container image is built, say."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from refvit import backends
from refvit.cli.common import OK, say
from refvit.errors import BackendError


def add(verbs: Any) -> None:
    warmup = verbs.add_parser(
        "warmup",
        help="compile the kernels of the numba backend ahead",
        description="Compile every kernel for this kind of processor and keep it on disk; REFVIT_CACHE names the folder.",
    )
    warmup.set_defaults(run=_warmup)
    warmup.add_argument("--json", action="store_true", help="one JSON object")


def _warmup(args: argparse.Namespace) -> int:
    if (why := backends.reason("numba")) is not None:
        raise BackendError(why)
    from refvit.backends.numba.objects import Objects, everything, folder, kept

    start = time.perf_counter()
    names = everything()
    objects = Objects()
    absent = objects.missing(names)
    objects.require(names)
    place = folder()
    seconds = round(time.perf_counter() - start, 1)
    facts = {"kernels": len(names), "compiled": len(absent), "seconds": seconds, "folder": str(place)}
    if not kept():
        raise BackendError("the kernels cannot be kept: no folder can be written; set REFVIT_CACHE to one that can")
    if args.json:
        print(json.dumps(facts))
    else:
        say(f"{facts['compiled']} of {facts['kernels']} kernels compiled in {facts['seconds']} s, in {place}")
    return OK
