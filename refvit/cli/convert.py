"""refvit convert"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from refvit.cli.common import OK, add_preprocessing, preprocessing, printable, say, setting
from refvit.errors import ConfigError
from refvit.loading import find, named, sort
from refvit.weights import store
from refvit.weights.embedded import EMBEDDED
from refvit.weights.hub import known


def add(verbs: Any) -> None:
    convert = verbs.add_parser(
        "convert",
        help="a public checkpoint into refvit's format, or into another layout",
        description="Reads a checkpoint of a known public layout without its framework, says what it is, and writes it.",
    )
    convert.set_defaults(run=_convert)
    convert.add_argument(
        "source",
        metavar="SOURCE",
        help="file, folder, tag of `refvit models`, or of the Hugging Face hub [hf://]OWNER/NAME[@REVISION], "
        "hf://OWNER/NAME[@REVISION]/FILE",
    )
    convert.add_argument("-o", "--output", metavar="OUT.safetensors", help="where to write; without it nothing is written")
    convert.add_argument("--model", metavar="NAME", help="where the tensors fit several models, or to be sure")
    convert.add_argument("--tag", default="", metavar="TAG", help="what follows the dot in the name of these weights")
    convert.add_argument("--dtype", metavar="DTYPE", help="float16, float32 or float64 (default: as in the source)")
    convert.add_argument(
        "--to", metavar="LAYOUT", help="write another project's names instead: timm, transformers, cvnets, ..."
    )
    convert.add_argument(
        "--told",
        action="append",
        default=[],
        metavar="OPTION",
        help="for --to: write although that layout implies another value; whoever reads the file is told; repeatable",
    )
    convert.add_argument("--labels", metavar="FILE", help="names of the classes: one a line, or JSON")
    convert.add_argument("--key", metavar="NAME", help="which of several nested checkpoints: model_ema")
    convert.add_argument("--no-crc", action="store_true", help="accept a PyTorch file without checksums")
    convert.add_argument("--no-check", action="store_true", help="do not run the result on a seeded input")
    convert.add_argument("--json", action="store_true", help="the report as one JSON object")
    convert.add_argument(
        "--set", type=setting, action="append", default=[], metavar="NAME=VALUE",
        help="what the file does not tell, or the post-processing, as for `refvit infer`; repeatable",
    )  # fmt: skip
    add_preprocessing(convert)


def _convert(args: argparse.Namespace) -> int:
    from weights_convert.export import export_file
    from weights_convert.report import lines, report

    if args.output and Path(args.output).suffix not in (".safetensors", ".npz" if args.to else ".safetensors"):
        raise ConfigError(f"--output {args.output}: a name ending in .safetensors expected")
    if args.to and not args.output:
        raise ConfigError("--to: needs -o OUT.safetensors")
    if args.output and os.path.isdir(args.output):
        raise ConfigError(f"--output {args.output}: a folder; give the name of a file")
    if args.dtype not in (None, *store.DTYPES):
        raise ConfigError(f"--dtype: {', '.join(store.DTYPES)} expected, got {args.dtype!r}")
    overrides = sort(preprocessing(args) | dict(args.set))
    if not os.path.lexists(args.source) and (known(args.source) or args.source in EMBEDDED):
        if args.model or args.tag or args.key:
            raise ConfigError(f"{args.source} says the model, its tag and its file: leave --model, --tag and --key out")
        weights = find(args.source, None, overrides)
    else:
        reading = {"key": args.key, "check_crc": not args.no_crc}
        weights = find(args.model, args.source, overrides, tag=args.tag, **reading)
    if args.labels is not None:
        weights = named(weights, args.labels)
    if args.dtype is not None:
        weights = dataclasses.replace(weights, params=weights.astype(args.dtype))
    found = report(weights, check=not args.no_check)
    if args.output and args.to:
        done = export_file(weights, args.to, args.output, told=args.told)
        found["exported"] = {"layout": done.layout, "notes": list(done.notes)}
    elif args.output:
        store.save(weights, args.output)
    print(json.dumps(found) if args.json else "\n".join(printable(line) for line in lines(found)))
    say(f"saved {args.output}" if args.output else "nothing was written; give -o OUT.safetensors")
    return OK
