"""refvit convert"""

from __future__ import annotations

import argparse
import json
from typing import Any

import refvit
from refvit.cli.common import OK, add_preprocessing, preprocessing, say, setting
from refvit.loading import sort


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
    fields = preprocessing(args) | dict(args.set)
    sort(fields)  # none of them is called like an argument that `refvit.convert` has beside them
    report = refvit.convert(
        args.source,
        args.output,
        model=args.model,
        tag=args.tag,
        dtype=args.dtype,
        to=args.to,
        told=args.told,
        labels=args.labels,
        key=args.key,
        check_crc=not args.no_crc,
        check=not args.no_check,
        **fields,
    )
    print(json.dumps(report.to_dict()) if args.json else report)
    say("nothing was written; give -o OUT.safetensors" if args.output is None else f"saved {args.output}")
    return OK
