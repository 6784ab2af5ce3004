"""refvit infer"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import refvit
from refvit.cli.common import OK, SOME_FAILED, add_preprocessing, box, point, positive, preprocessing, printable, say, setting
from refvit.errors import ConfigError, ImageError
from refvit.loading import check_options
from refvit.vision.answers import DRAWN
from refvit.vision.intake import expand
from refvit.vision.result import file_kind
from refvit.weights.embedded import DEFAULT, NOTICE


def add(verbs: Any) -> None:
    infer = verbs.add_parser(
        "infer", help="what is in these images", description="What is in these images? Best classes first."
    )
    infer.set_defaults(run=_infer)
    infer.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder, glob pattern or (with --allow-url) URL")
    infer.add_argument("--model", metavar="NAME", help="see `refvit models`; default: the embedded mobilevit_xxs.cifar10")
    infer.add_argument(
        "--weights", metavar="FILE", help="refvit's own file, a public checkpoint of any format, or OWNER/NAME of the hub"
    )
    infer.add_argument("--labels", metavar="FILE", help="names of the classes: one a line, or JSON")
    infer.add_argument("--top", type=positive, default=5, metavar="K", help="how many classes or boxes to show (default 5)")
    infer.add_argument("--json", action="store_true", help="one line of JSON an image")
    infer.add_argument(
        "--save", metavar="OUT", help="picture of the answer (.png .jpg .webp) or data (.json); a folder for many"
    )
    infer.add_argument("--backend", default="auto", help="see `refvit info` (default auto)")
    infer.add_argument("--threads", type=int, help="of the numba backend (default: one for each core)")
    infer.add_argument("--dtype", metavar="DTYPE", help="float32 (default), float64 or float16")
    infer.add_argument(
        "--batch-size", type=positive, metavar="N", help="inputs computed at once (default 8, fewer of large ones)"
    )
    infer.add_argument("--allow-url", action="store_true", help="let images be fetched from http(s) URLs")
    infer.add_argument(
        "--box",
        type=box,
        action="append",
        metavar="X,Y,W,H",
        help="a person for pose models, with or without a score; repeatable",
    )
    infer.add_argument(
        "--attention", metavar="OUT", help="picture of where the model looks (.png .jpg .webp); --at X,Y says for which pixel"
    )
    infer.add_argument("--at", type=point, metavar="X,Y", help="for --attention: a pixel of the picture that the network sees")
    infer.add_argument("--map", metavar="OUT.png", help="the map of a segmentation model, as a PNG with a palette")
    infer.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other option of refvit.load, such as "
        "flip=true, scales=[0.5,1,1.5], align_corners=false, score_threshold=0.3; repeatable",
    )
    add_preprocessing(infer)


def _infer(args: argparse.Namespace) -> int:
    if args.map and Path(args.map).suffix.lower() != ".png":
        raise ConfigError(f"--map {args.map}: a name ending in .png expected, which keeps every value")
    overrides = preprocessing(args) | dict(args.set)
    check_options(overrides)
    model = refvit.load(
        args.model, args.weights, backend=args.backend, dtype=args.dtype, threads=args.threads, labels=args.labels, **overrides
    )
    if model.name == DEFAULT:
        say(NOTICE)
    many, results = _results(model, args)
    folder = Path(args.save) if args.save and (many or os.path.isdir(args.save)) else None
    if folder and folder.suffix and not folder.is_dir():
        raise ConfigError(f"--save {args.save}: for several images a folder is expected, a name without suffix")
    if args.save and not folder:
        file_kind(Path(args.save))  # rather now than after the work
    if args.at and not args.attention:
        raise ConfigError("--at: says where --attention is asked for, which is not given")
    if args.attention and (many or file_kind(Path(args.attention)) == "JSON"):
        raise ConfigError("--attention: for one image, and a name ending in .png, .jpg or .webp")
    if args.attention and model.name.startswith("hrnet"):
        raise ConfigError(f"--attention: {model.name} has no attention to look at")
    if args.save and args.top > DRAWN:
        raise ConfigError(f"--top {args.top}: a picture has room for {DRAWN}")
    if args.map and many:
        raise ConfigError("--map: for one image; of several, --json has the classes and refvit.infer in Python the maps")
    if args.map and model.task != "segmentation":
        raise ConfigError(f"--map: {model.name} is for {model.task} and has no map")
    total, failed = 0, 0
    for total, result in enumerate(_progress(results, many and not sys.stdout.isatty()), 1):
        failed += result.error is not None
        if args.json:
            print(result.to_json(args.top), flush=True)
        elif result.error is None:
            print("\n  ".join(printable(line) for line in [result.source, *result.lines(args.top)]), flush=True)
        if result.error is not None:
            say(f"error: {result.error}")
            continue
        assert result.picture is not None
        for note in result.picture.notes:
            say(f"{result.source}: {note}")
        if args.save:
            path = folder / f"{total:06d}_{Path(result.source).stem}.png" if folder else Path(args.save)
            say(f"saved {result.save(path, args.top)}")
        if args.map:
            say(f"saved {result.save_map(args.map)}")
        if args.attention:
            picture = model.attention(args.images[0], at=args.at, allow_url=args.allow_url)
            say(f"saved {picture.save(args.attention)}")
    if failed:
        say(f"{failed} of {total} images failed")
    return SOME_FAILED if failed else OK


def _results(model: refvit.Model, args: argparse.Namespace) -> tuple[bool, Iterator[refvit.Result]]:
    """Whether there are several images, and their answers, computed as they are asked for.

    One image that cannot be read is raised, one of several is an answer with an error.
    """
    many, sources = expand(args.images[0], allow_url=args.allow_url) if len(args.images) == 1 else (True, _sources(args))
    if many and args.box:
        raise ConfigError("--box: for one image; for several use refvit.infer(images, boxes=...) in Python")
    if many:
        return True, model.infer(sources, batch_size=args.batch_size, allow_url=args.allow_url)  # type: ignore[return-value]
    options = {"boxes": args.box, "batch_size": args.batch_size, "allow_url": args.allow_url}
    return False, (model.infer(image, **options) for image in sources)  # type: ignore[misc]


def _sources(args: argparse.Namespace) -> Iterator[Any]:
    for image in args.images:
        try:
            _, found = expand(image, allow_url=args.allow_url)
        except ImageError:
            found = iter([image])  # which fails again where it is read, as one of several
        yield from found


def _progress(results: Iterator[refvit.Result], wanted: bool) -> Iterator[refvit.Result]:
    """A counter on standard error while answers go to a file; nothing where that is no terminal."""
    if not (wanted and sys.stderr.isatty()):
        return results
    from tqdm import tqdm

    return iter(tqdm(results, unit=" images", file=sys.stderr))
