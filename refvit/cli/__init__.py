"""The command line: the verbs of the Python interface.

Exit codes: 0 fine, 1 a mismatch, or some of several inputs failed, 2 wrong usage (a missing or unreadable input included), 3
something in the environment is missing. Answers go to standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from PIL import Image

import refvit
from refvit.cli import check, convert, describe, dump, infer, warmup
from refvit.cli.common import ENVIRONMENT, OK, USAGE, say, typed
from refvit.errors import BackendError, RefvitError, UnsupportedError

EPILOG = """examples:
  refvit infer cat.jpg                                  what is in the picture, with the embedded ten-class model
  refvit infer cat.jpg --save answer.png                the same, drawn
  refvit infer photos/ --json > answers.jsonl           a folder; one line of JSON an image
  refvit infer cat.jpg --model mobilevit_s --weights model.safetensors
  refvit convert checkpoint.pth -o mine.safetensors     what it is, and in refvit's own format
  refvit check port.onnx --model vit_small_patch16_224 --weights model.safetensors -o report.html
  refvit dump --model mobilevit_s --weights model.safetensors --image cat.jpg -o golden
  refvit models "mobilevit*"                            what there is
  refvit summary mobilevit_s --save blocks.svg          parameters and MACs by block, and a drawing

exit codes: 0 fine, 1 a mismatch, or some of several inputs failed, 2 wrong usage or unreadable input, 3 environment
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
        warnings.showwarning = lambda message, *_, **__: say(str(message))
        try:
            code: int = args.run(args)
            sys.stdout.flush()
            return code
        except BrokenPipeError:  # the reader had enough, as in `refvit models | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return OK
        except KeyboardInterrupt:
            say("interrupted")
            return 130
        except (BackendError, UnsupportedError, ImportError) as error:
            say(f"error: {typed(error, args)}")
            return ENVIRONMENT
        except MemoryError as error:
            say(f"error: not enough memory {error}; give a smaller --batch-size or image")
            return ENVIRONMENT
        except (RefvitError, OSError) as error:
            say(f"error: {typed(error, args)}")
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

    infer.add(verbs)
    convert.add(verbs)
    check.add(verbs)
    dump.add(verbs)
    describe.add(verbs)
    warmup.add(verbs)
    return parser
