"""What the user sees while kernels are compiled for the first time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

FEW = 3  # kernels, a few seconds


def compiling(names: Sequence[str]) -> Iterator[str]:
    """The names one by one. On a terminal with a line that explains and a progress bar, elsewhere with the line for many."""
    if not names:
        return
    if len(names) > FEW or sys.stderr.isatty():
        print("refvit: compiling its kernels for this processor, once; later starts find them on disk", file=sys.stderr)
    if not sys.stderr.isatty():
        yield from names
        return
    from tqdm import tqdm

    yield from tqdm(names, desc="compiling", unit="kernel", leave=False, delay=0.5, file=sys.stderr)
