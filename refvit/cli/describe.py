"""refvit models, refvit summary, refvit info"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import refvit
from refvit.cli.common import OK, positive, say, size
from refvit.errors import ConfigError
from refvit.files import write_atomic
from refvit.graph.cost import summarise
from refvit.graph.draw import to_dot, to_svg
from refvit.model import architecture_graph


def add(verbs: Any) -> None:
    models = verbs.add_parser("models", help="what models there are", description="The models, their size and their weights.")
    models.set_defaults(run=_models)
    models.add_argument("pattern", nargs="?", default="*", help='wildcard pattern of names, such as "mobilevit*"')
    models.add_argument("--task", help="only models of this task, such as classification")
    models.add_argument("--json", action="store_true", help="one JSON list")

    summary = verbs.add_parser("summary", help="parameters and MACs of a model, by block")
    summary.set_defaults(run=_summary)
    summary.add_argument("model", metavar="NAME", help="see `refvit models`; no weights are needed")
    summary.add_argument(
        "--size", type=size, metavar="PIXELS", help="input size, a square or HEIGHTxWIDTH (default: as published)"
    )
    summary.add_argument("--batch-size", type=positive, default=1, metavar="N", help="images at once (default 1)")
    summary.add_argument("--depth", type=positive, default=1, help="how far blocks are opened (default 1)")
    form = summary.add_mutually_exclusive_group()
    form.add_argument("--graph", action="store_true", help="print every node instead")
    form.add_argument("--json", action="store_true", help="one JSON object")
    summary.add_argument("--save", metavar="OUT", help="a drawing of the blocks: .svg, or .dot for Graphviz")

    info = verbs.add_parser("info", help="versions, and which backends can be used here and why not")
    info.set_defaults(run=_info)
    info.add_argument("--json", action="store_true", help="one JSON object")


def _models(args: argparse.Namespace) -> int:
    found = refvit.list_models(args.pattern, args.task)
    if not found:
        raise ConfigError(f"no model matches {args.pattern!r}" + (f" with task {args.task!r}" if args.task else ""))
    if args.json:
        print(json.dumps([dataclasses.asdict(m) | {"macs": m.macs} for m in found]))
        return OK
    head = ("model", "task", "parameters", "MACs", "input", "weights tags")
    rows = [
        (m.name, m.task, f"{m.params:,}", f"{m.macs:,}", f"{m.input_size[0]}x{m.input_size[1]}", " ".join(m.weights) or "-")
        for m in found
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = [c.rjust(w) if i in (2, 3) else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())
    return OK


def _summary(args: argparse.Namespace) -> int:
    given = (args.size, args.size) if isinstance(args.size, int) else args.size
    if "." in args.model:  # weights, whose config may differ from the published one
        model = refvit.load(args.model)
        graph = model.graph((args.batch_size, 3, *(given or model.input_size)))
    else:
        graph = architecture_graph(args.model, given, args.batch_size)
    table = summarise(args.model, graph, args.depth)
    if args.save:
        draw = {".svg": to_svg, ".dot": to_dot}.get(Path(args.save).suffix.lower())
        if draw is None:
            raise ConfigError(f"--save {args.save}: a name ending in .svg or .dot expected")
        write_atomic(Path(args.save), draw(graph, args.depth).encode())
        say(f"saved {args.save}")
    print(graph if args.graph else json.dumps(table.to_dict()) if args.json else table)
    return OK


def _info(args: argparse.Namespace) -> int:
    facts = refvit.info()
    if args.json:
        print(json.dumps(facts))
        return OK
    for key, value in facts.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, what in value.items():
                print(f"  {name:<14}{what}")
        else:
            print(f"{key}: {', '.join(value) if isinstance(value, list) else value}")
    return OK
