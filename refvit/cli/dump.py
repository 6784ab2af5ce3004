"""refvit dump: golden intermediates for an implementation that starts from nothing."""

from __future__ import annotations

import argparse
import json
from typing import Any

import refvit
from refvit.cli.common import OK, add_preprocessing, preprocessing, say, setting
from refvit.loading import sort


def add(verbs: Any) -> None:
    dump = verbs.add_parser(
        "dump",
        help="golden intermediates of a model, in files",
        description="Runs the reference in float64 and writes what it computes on the way, with a manifest. `refvit check DIR` "
        "reads such a folder.",
    )
    dump.set_defaults(run=_dump)
    dump.add_argument("-o", "--output", required=True, metavar="DIR", help="the folder to make")
    dump.add_argument("--model", required=True, metavar="NAME", help="see `refvit models`")
    dump.add_argument("--weights", metavar="FILE", help="as for `refvit infer`")
    dump.add_argument("--image", metavar="FILE", help="default: a seeded input that looks like a normalised photograph")
    dump.add_argument(
        "--nodes", nargs="+", default=["*"], metavar="PATTERN",
        help='wildcard patterns of names, such as "stages.2.*" (default: every value); the input and the outputs always come',
    )  # fmt: skip
    dump.add_argument(
        "--format", default="npy", metavar="FORMAT", help="npy, bin (raw little-endian) or hex (as $readmemh reads)"
    )
    dump.add_argument("--dtype", default="float32", metavar="DTYPE", help="float32 (default) or float64")
    dump.add_argument(
        "--fixed-point", type=pair, metavar="S,F",
        help="integers with a sign, S integer and F fraction bits, rounded half to even and saturating",
    )  # fmt: skip
    dump.add_argument("--layout", default="nchw", metavar="LAYOUT", help="of maps: nchw (default) or nhwc")
    dump.add_argument("--tile", type=pair, metavar="H,W", help="cut maps into tiles of so many rows and columns, a file each")
    dump.add_argument("--weights-too", action="store_true", help="the parameters in the same form, in the folder weights")
    dump.add_argument("--force", action="store_true", help="replace what an earlier dump wrote to DIR")
    dump.add_argument("--json", action="store_true", help="the manifest as one JSON object")
    dump.add_argument(
        "--set", type=setting, action="append", default=[], metavar="NAME=VALUE", help="as for `refvit infer`; repeatable"
    )
    add_preprocessing(dump)


def pair(text: str) -> tuple[int, int]:
    """A,B in whole numbers."""
    first, comma, second = text.partition(",")
    if not (comma and first.strip().isdigit() and second.strip().isdigit()):
        raise argparse.ArgumentTypeError(f"two whole numbers with a comma expected, such as 3,12, got {text!r}")
    return int(first), int(second)


def _dump(args: argparse.Namespace) -> int:
    fields = preprocessing(args) | dict(args.set)
    sort(fields)  # none of them is called like an argument that `refvit.dump` has beside them
    facts = refvit.dump(
        args.model,
        args.output,
        weights=args.weights,
        image=args.image,
        nodes=args.nodes,
        format=args.format,
        dtype=args.dtype,
        fixed_point=args.fixed_point,
        layout=args.layout,
        tile=args.tile,
        weights_too=args.weights_too,
        force=args.force,
        **fields,
    )
    if args.json:
        print(json.dumps(facts))
    else:
        tiles = sum(len(entry.get("tiles", ())) for entry in facts["values"])
        also = [f"{tiles} tiles"] * bool(tiles) + [f"{len(facts['parameters'])} parameters"] * args.weights_too
        counts = ", ".join([f"{len(facts['values'])} values", *also])
        print(f"{counts} of {facts['model']} as {facts['values'][0]['dtype']}, format {args.format}")
        print(f"input: {facts['input']['what']}")
    say(f"saved {args.output}")
    return OK
