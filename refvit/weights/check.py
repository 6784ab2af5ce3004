"""Do these tensors belong to this model: every name, every shape, nothing left over."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from refvit.errors import WeightsError
from refvit.graph.ir import HasShape, Shape

SHOWN = 8


def differences(parameters: Iterable[tuple[str, Shape]], given: Mapping[str, HasShape]) -> list[str]:
    """One line for every tensor that is missing, unexpected or of another shape."""
    # A config from a file may ask for any number of parameters: a few more than there are tensors tell enough.
    expected = dict(itertools.islice(parameters, len(given) + 2 * SHOWN))
    lines = [f"missing {n} {s}" for n, s in expected.items() if n not in given]
    lines += [f"unexpected {n} {tuple(a.shape)}" for n, a in given.items() if n not in expected]
    lines += [
        f"{n} is {tuple(given[n].shape)}, {s} expected"
        for n, s in expected.items()
        if n in given and tuple(given[n].shape) != s
    ]
    return lines


def require(what: str, parameters: Iterable[tuple[str, Shape]], given: Mapping[str, HasShape]) -> None:
    """WeightsError that lists the differences, if there are any."""
    if lines := differences(parameters, given):
        more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise WeightsError(f"{what}: {'; '.join(lines[:SHOWN])}{more}")
