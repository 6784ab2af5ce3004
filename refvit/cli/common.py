"""What the verbs share: exit codes, messages, kinds of arguments."""

from __future__ import annotations

import argparse
import ast
import json
import shlex
import sys
from typing import Any

OK, SOME_FAILED, USAGE, ENVIRONMENT = 0, 1, 2, 3
UNSET = object()  # an option that was not given, where None has a meaning


def say(text: str) -> None:
    """One line on standard error."""
    print(f"refvit: {printable(' '.join(text.split()))}", file=sys.stderr)


def printable(text: str) -> str:
    """Without characters that a terminal would obey: names of classes come out of files."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def typed(error: BaseException, given: argparse.Namespace) -> str:
    """The message of an error, with the options of this command in place of the arguments that Python would take.

    given: what was parsed; it has a field for every option of the command
    """
    text = str(error)
    cause: BaseException | None = error
    while cause is not None:
        for argument in getattr(cause, "arguments", ()):
            before, found, after = text.rpartition(argument)  # the advice is at the end; in front there may be names of files
            text = before + (_option(argument, given) if found else "") + after
        cause = cause.__cause__
    return text


def _option(argument: str, given: argparse.Namespace) -> str:
    """name=value as it is typed: --name value, --no-crc, or --set name=value; unchanged where there is none of these."""
    name, _, value = argument.partition("=")
    try:
        meant = ast.literal_eval(value)
    except (SyntaxError, ValueError):
        meant = value  # a word for what has to be given there
    if name == "check_crc" and "no_crc" in given:
        return "--no-crc"
    if name in given:
        option = f"--{name.replace('_', '-')}"
        if meant is True:
            return option
        values = meant if isinstance(meant, list) else [meant]
        return " ".join(option if v == "" else f"{option} {shlex.quote(str(v))}" for v in values)
    if "set" in given:
        return f"--set {name}={shlex.quote(meant or 'VALUE') if isinstance(meant, str) else json.dumps(meant)}"
    return argument


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 expected, got {text!r}")
    return int(text)


def size_or_none(text: str) -> int | tuple[int, int] | None:
    return None if text.lower() == "none" else size(text)


def size(text: str) -> int | tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise argparse.ArgumentTypeError(f"PIXELS or HEIGHTxWIDTH expected, got {text!r}")
    return int(text) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE; the value is JSON, or else text. none, true and false are understood in any case."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"NAME=VALUE expected, such as flip=true or scales=[0.5,1,2], got {text!r}")
    word = value.lower()
    try:
        return name, json.loads({"none": "null", "true": "true", "false": "false"}.get(word, value))
    except ValueError:
        return name, value


def box(text: str) -> list[float]:
    """X,Y,WIDTH,HEIGHT with or without a score."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (4, 5):
        raise argparse.ArgumentTypeError(f"X,Y,WIDTH,HEIGHT or X,Y,WIDTH,HEIGHT,SCORE expected, got {text!r}")
    return values


def point(text: str) -> tuple[int, int]:
    """X,Y"""
    x, comma, y = text.partition(",")
    if not (comma and x.strip().isdigit() and y.strip().isdigit()):
        raise argparse.ArgumentTypeError(f"X,Y in whole pixels expected, got {text!r}")
    return int(x), int(y)


def add_preprocessing(parser: argparse.ArgumentParser) -> None:
    """The fields of the pre-processing as options."""
    pre = parser.add_argument_group("pre-processing", "replaces what the weights ask for, for a checkpoint of your own")
    pre.add_argument(
        "--resize", type=size_or_none, default=UNSET, metavar="PIXELS", help="shorter side, HEIGHTxWIDTH to squash to, or none"
    )
    pre.add_argument(
        "--crop", type=size_or_none, default=UNSET, metavar="PIXELS", help="centre crop: a square, HEIGHTxWIDTH, or none"
    )
    pre.add_argument(
        "--enlarge", type=size_or_none, default=UNSET, metavar="PIXELS", help="second resize, after the crop, or none"
    )
    pre.add_argument("--interpolation", default=UNSET, help="nearest, bilinear, bicubic, lanczos, box or opencv_bilinear")
    pre.add_argument(
        "--mean", default=UNSET, type=float, nargs=3, metavar="M", help="of pixels in [0, 1], in the network's channel order"
    )
    pre.add_argument("--std", default=UNSET, type=float, nargs=3, metavar="S", help="likewise")
    pre.add_argument("--channel-order", default=UNSET, help="rgb or bgr")


def preprocessing(args: argparse.Namespace) -> dict[str, Any]:
    """Those of these options that were given."""
    names = ("resize", "crop", "enlarge", "interpolation", "mean", "std", "channel_order")
    return {n: v for n in names if (v := getattr(args, n)) is not UNSET}
