"""The command line: the verbs of the Python interface.

Exit codes: 0 fine, 1 some of several inputs failed, 2 wrong usage (a missing or unreadable input included), 3 something in
the environment is missing. Answers go to standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import refvit
from refvit.errors import BackendError, ConfigError, ImageError, RefvitError, UnsupportedError
from refvit.files import write_atomic
from refvit.graph.cost import summarise
from refvit.graph.draw import to_dot, to_svg
from refvit.model import architecture_graph
from refvit.vision.intake import expand
from refvit.vision.result import file_kind
from refvit.weights.embedded import DEFAULT, NOTICE

OK, SOME_FAILED, USAGE, ENVIRONMENT = 0, 1, 2, 3
UNSET = object()  # an option that was not given, where None has a meaning

EPILOG = """examples:
  refvit infer cat.jpg                                  what is in the picture, with the embedded ten-class model
  refvit infer cat.jpg --save answer.png                the same, drawn
  refvit infer photos/ --json > answers.jsonl           a folder; one line of JSON an image
  refvit infer cat.jpg --model mobilevit_s --weights model.safetensors
  refvit models "mobilevit*"                            what there is
  refvit summary mobilevit_s --save blocks.svg          parameters and MACs by block, and a drawing

exit codes: 0 fine, 1 some of several inputs failed, 2 wrong usage or unreadable input, 3 environment
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = _parser().parse_args(argv)
    with warnings.catch_warnings():  # the process is ours: say things in one line each, without source lines
        warnings.simplefilter("ignore", refvit.DemonstrationWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refvit has limits of its own
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a terminal may lack the letters of a file's name
        warnings.showwarning = lambda message, *_, **__: _say(str(message))
        try:
            code: int = args.run(args)
            sys.stdout.flush()
            return code
        except BrokenPipeError:  # the reader had enough, as in `refvit models | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return OK
        except KeyboardInterrupt:
            _say("interrupted")
            return 130
        except (BackendError, UnsupportedError, ImportError) as error:
            _say(f"error: {error}")
            return ENVIRONMENT
        except MemoryError as error:
            _say(f"error: not enough memory {error}; give a smaller --batch-size or image")
            return ENVIRONMENT
        except (RefvitError, OSError) as error:
            _say(f"error: {error}")
            return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="refvit",
        description="Inference with vision transformers, exactly as their reference definitions say.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"refvit {refvit.__version__}")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    infer = verbs.add_parser(
        "infer", help="what is in these images", description="What is in these images? Best classes first."
    )
    infer.set_defaults(run=_infer)
    infer.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder, glob pattern or (with --allow-url) URL")
    infer.add_argument("--model", metavar="NAME", help="see `refvit models`; default: the embedded mobilevit_xxs.cifar10")
    infer.add_argument("--weights", metavar="FILE", help="safetensors file, refvit's own or timm's")
    infer.add_argument("--labels", metavar="FILE", help="names of the classes: one a line, or JSON")
    infer.add_argument("--top", type=_positive, default=5, metavar="K", help="how many classes to show (default 5)")
    infer.add_argument("--json", action="store_true", help="one line of JSON an image")
    infer.add_argument(
        "--save", metavar="OUT", help="image with its top classes (.png .jpg .webp) or data (.json); a folder for many"
    )
    infer.add_argument("--backend", default="auto", help="see `refvit info` (default auto)")
    infer.add_argument("--dtype", metavar="DTYPE", help="float32 (default), float64 or float16")
    infer.add_argument("--batch-size", type=_positive, metavar="N", help="images computed at once, for many (default 8)")
    infer.add_argument("--allow-url", action="store_true", help="let images be fetched from http(s) URLs")
    pre = infer.add_argument_group("pre-processing", "replaces what the weights ask for, for a checkpoint of your own")
    pre.add_argument(
        "--resize", type=_size_or_none, default=UNSET, metavar="PIXELS", help="shorter side, HEIGHTxWIDTH to squash to, or none"
    )
    pre.add_argument(
        "--crop", type=_size_or_none, default=UNSET, metavar="PIXELS", help="centre crop: a square, HEIGHTxWIDTH, or none"
    )
    pre.add_argument(
        "--enlarge", type=_size_or_none, default=UNSET, metavar="PIXELS", help="second resize, after the crop, or none"
    )
    pre.add_argument("--interpolation", default=UNSET, help="nearest, bilinear, bicubic, lanczos or box")
    pre.add_argument(
        "--mean", default=UNSET, type=float, nargs=3, metavar="M", help="of pixels in [0, 1], in the network's channel order"
    )
    pre.add_argument("--std", default=UNSET, type=float, nargs=3, metavar="S", help="likewise")
    pre.add_argument("--channel-order", default=UNSET, help="rgb or bgr")

    models = verbs.add_parser("models", help="what models there are", description="The models, their size and their weights.")
    models.set_defaults(run=_models)
    models.add_argument("pattern", nargs="?", default="*", help='wildcard pattern of names, such as "mobilevit*"')
    models.add_argument("--task", help="only models of this task, such as classification")
    models.add_argument("--json", action="store_true", help="one JSON list")

    summary = verbs.add_parser("summary", help="parameters and MACs of a model, by block")
    summary.set_defaults(run=_summary)
    summary.add_argument("model", metavar="NAME", help="see `refvit models`; no weights are needed")
    summary.add_argument(
        "--size", type=_size, metavar="PIXELS", help="input size, a square or HEIGHTxWIDTH (default: as published)"
    )
    summary.add_argument("--batch-size", type=_positive, default=1, metavar="N", help="images at once (default 1)")
    summary.add_argument("--depth", type=_positive, default=1, help="how far blocks are opened (default 1)")
    form = summary.add_mutually_exclusive_group()
    form.add_argument("--graph", action="store_true", help="print every node instead")
    form.add_argument("--json", action="store_true", help="one JSON object")
    summary.add_argument("--save", metavar="OUT", help="a drawing of the blocks: .svg, or .dot for Graphviz")

    info = verbs.add_parser("info", help="versions, and which backends can be used here and why not")
    info.set_defaults(run=_info)
    info.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def _infer(args: argparse.Namespace) -> int:
    names = ("resize", "crop", "enlarge", "interpolation", "mean", "std", "channel_order")
    overrides = {n: v for n in names if (v := getattr(args, n)) is not UNSET}
    model = refvit.load(args.model, args.weights, backend=args.backend, dtype=args.dtype, labels=args.labels, **overrides)
    if model.name == DEFAULT:
        _say(NOTICE)
    many, results = _results(model, args)
    folder = Path(args.save) if args.save and (many or os.path.isdir(args.save)) else None
    if folder and folder.suffix and not folder.is_dir():
        raise ConfigError(f"--save {args.save}: for several images a folder is expected, a name without suffix")
    if args.save and not folder:
        file_kind(Path(args.save))  # rather now than after the work
    total, failed = 0, 0
    for total, result in enumerate(_progress(results, many and not sys.stdout.isatty()), 1):
        failed += result.error is not None
        if args.json:
            print(result.to_json(args.top), flush=True)
        elif result.error is None:
            print(_table(result, args.top), flush=True)
        if result.error is not None:
            _say(f"error: {result.error}")
            continue
        assert result.picture is not None
        for note in result.picture.notes:
            _say(f"{result.source}: {note}")
        if args.save:
            path = folder / f"{total:06d}_{Path(result.source).stem}.png" if folder else Path(args.save)
            _say(f"saved {result.save(path, args.top)}")
    if failed:
        _say(f"{failed} of {total} images failed")
    return SOME_FAILED if failed else OK


def _results(model: refvit.Model, args: argparse.Namespace) -> tuple[bool, Iterator[refvit.Result]]:
    """Whether there are several images, and their answers, computed as they are asked for.

    One image that cannot be read is raised, one of several is an answer with an error.
    """
    many, sources = expand(args.images[0], allow_url=args.allow_url) if len(args.images) == 1 else (True, _sources(args))
    if many:
        return True, model.infer(sources, batch_size=args.batch_size, allow_url=args.allow_url)  # type: ignore[return-value]
    return False, (model.infer(image, allow_url=args.allow_url) for image in sources)  # type: ignore[misc]


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


def _table(result: refvit.Result, k: int) -> str:
    rows = [(f"{p.probability:7.2%}", str(p.index) if p.label is None else p.label) for p in result.top(k)]
    return "\n".join([result.source, *(f"  {probability}  {label}" for probability, label in rows)])


def _models(args: argparse.Namespace) -> int:
    found = refvit.list_models(args.pattern, args.task)
    if not found:
        raise ConfigError(f"no model matches {args.pattern!r}" + (f" with task {args.task!r}" if args.task else ""))
    if args.json:
        print(json.dumps([dataclasses.asdict(m) | {"macs": m.macs} for m in found]))
        return OK
    head = ("model", "task", "parameters", "MACs", "input", "weights without a file")
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
    size = (args.size, args.size) if isinstance(args.size, int) else args.size
    if "." in args.model:  # weights, whose config may differ from the published one
        model = refvit.load(args.model)
        graph = model.graph((args.batch_size, 3, *(size or model.input_size)))
    else:
        graph = architecture_graph(args.model, size, args.batch_size)
    table = summarise(args.model, graph, args.depth)
    if args.save:
        draw = {".svg": to_svg, ".dot": to_dot}.get(Path(args.save).suffix.lower())
        if draw is None:
            raise ConfigError(f"--save {args.save}: a name ending in .svg or .dot expected")
        write_atomic(Path(args.save), draw(graph, args.depth).encode())
        _say(f"saved {args.save}")
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


def _say(text: str) -> None:
    print(f"refvit: {' '.join(text.split())}", file=sys.stderr)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 expected, got {text!r}")
    return int(text)


def _size_or_none(text: str) -> int | tuple[int, int] | None:
    return None if text.lower() == "none" else _size(text)


def _size(text: str) -> int | tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise argparse.ArgumentTypeError(f"PIXELS or HEIGHTxWIDTH expected, got {text!r}")
    return int(text) if len(parts) == 1 else (int(parts[0]), int(parts[1]))
