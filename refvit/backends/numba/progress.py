"""What the user sees while kernels are compiled for the first time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence


def compiling(names: Sequence[str]) -> Iterator[str]:
    """The names one by one, with a line that explains and a progress bar if somebody is watching."""
    if not names or not sys.stderr.isatty():
        yield from names
        return
    from tqdm import tqdm

    print("refvit: compiling its kernels for this processor, once; later starts find them on disk", file=sys.stderr)
    yield from tqdm(names, desc="compiling", unit="kernel", leave=False, delay=0.5, file=sys.stderr)
