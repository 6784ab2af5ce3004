"""What a candidate shows of one run: its values by its own names, as it lays them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from refvit.graph.ir import Array


@dataclass(frozen=True)
class Observed:
    """One run of a candidate.

    values: name -> array, in the order of execution; any real dtype, integers already scaled to real numbers
    outputs: names of those that are its results, in order
    parameters: its own weights by its own names, empty where it does not show them
    layouts: name -> what the candidate declares about the order of axes ("nchw", "nhwc", ...), usually empty
    scales: name -> (scale, zero point) of values that were integers
    dtypes: name -> the dtype that a value was computed in, where its array has a wider one ("bfloat16", "int8")
    arithmetic: what it says that it computes in, an entry of `arithmetic.ARITHMETICS`; None to go by the dtypes
    notes: sentences for the report, such as that observing may change what an optimiser fuses
    """

    values: Mapping[str, Array]
    outputs: tuple[str, ...]
    parameters: Mapping[str, Array] = field(default_factory=dict)
    layouts: Mapping[str, str] = field(default_factory=dict)
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    arithmetic: str | None = None
    notes: tuple[str, ...] = ()


class Candidate(Protocol):
    """Another implementation of a model."""

    name: str

    def run(self, x: Array) -> Observed:
        """For x (n, 3, h, w), float32 and already normalised. Dumps give what they hold, for the x they were made on."""
        ...
