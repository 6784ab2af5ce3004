"""Which of a candidate's values is which of the reference's, and how sure that is.

In the order of trust: an explicit map; an equal path; the parameters that a module owns; the numbers. The numbers also decide
within what a name leaves open, and show where a value is already normalised by the batch norm behind it. What stays unknown
is listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from refvit.crosscheck.assignment import Assigned, Board
from refvit.crosscheck.by_name import Names, explicit
from refvit.crosscheck.by_parameters import drop_folded, match_parameters
from refvit.crosscheck.observed import Observed
from refvit.crosscheck.places import Places
from refvit.crosscheck.search import Search
from refvit.graph.ir import Array, Graph


@dataclass(frozen=True)
class Match:
    """One value of the reference that the candidate shows.

    name: the reference's public name; value: the graph's value (a node, or the input)
    candidate: the candidate's name; of several parts that are stacked to one value all names, joined by " + "
    layout: how the candidate lays it out, an entry of `layouts.LAYOUTS`
    how: "map", "path", "parameters" or "value"
    confidence: 0 to 1
    array: float64, in the reference's axes
    parts: the candidate's names one by one
    also: other names of the candidate that show the same numbers
    apart: it comes of another run than the values shown beside it
    """

    name: str
    value: str
    candidate: str
    layout: str
    how: str
    confidence: float
    array: Array
    parts: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    apart: bool = False


@dataclass(frozen=True)
class Matching:
    """All matches, at most one for each value of the graph, in the graph's order, and what is left on both sides.

    unmatched_reference: public names of values that the candidate does not show
    unmatched_candidate: the candidate's names that are no value of the reference, in its order
    parameters: ours -> theirs; names of parts that are stacked to ours are joined by " + "
    tensors: ours -> theirs in our form (stacked, float64), with the shape that they have there
    reasons: candidate's name -> why it is unmatched, or in which way it differs from the match that it repeats
    again: what the candidate calls like a value that is matched with another of its names, and has other numbers
    misfits: the candidate's names that are those of a value of ours, whose shape fits no layout of it -> that value
    """

    matches: tuple[Match, ...]
    unmatched_reference: tuple[str, ...]
    unmatched_candidate: tuple[str, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, Array] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    again: tuple[Match, ...] = ()
    misfits: Mapping[str, str] = field(default_factory=dict)


def match(
    graph: Graph,
    golden_values: Mapping[str, Array],
    observed: Observed,
    names: Mapping[str, str] | None = None,
    layouts: Mapping[str, str] | None = None,
) -> Matching:
    """Match what a candidate shows with the values of `graph`.

    graph: traced with expand=True, its parameters float64 arrays
    golden_values: value of the graph -> float64, for the input and every node
    names: candidate's name -> a name of the reference; these are not doubted
    layouts: candidate's name, or a wildcard pattern -> the layout that it is in; before what the candidate itself declares

    ConfigError if names or layouts name what does not exist, or a name is given to what no layout of that value fits.
    """
    places = Places(graph)
    parameters = match_parameters(graph.params, observed.parameters, getattr(observed, "owners", {}))
    drop_folded(parameters, graph)
    told = explicit(names or {}, places, observed)
    hints = Names(places, observed, parameters)
    hinted = {n: told.get(n) or hints.hint(n) for n in observed.values}
    board = Board(places, golden_values, observed, hinted, layouts or {}, parameters.names)
    board.by_name()
    Search(board).run()
    matches = tuple(_match(places, a, board) for a in sorted(board.assigned.values(), key=lambda a: places.order[a.value]))
    shown = {m.value for m in matches}
    left = tuple(dict.fromkeys(places.public(v) for v in places.order if v not in shown))
    again = tuple(_match(places, a, board) for a in board.again)
    return Matching(matches, left, board.left(), parameters.names, parameters.tensors, board.reasons, again, board.misfits)


def _match(places: Places, a: Assigned, board: Board) -> Match:
    also = tuple(n for n in board.repeats.get(a.value, ()) if n not in a.parts)
    name = a.name or places.public(a.value)
    apart = any(part in getattr(board.observed, "apart", ()) for part in a.parts)
    return Match(name, a.value, " + ".join(a.parts), a.layout, a.how, a.confidence, a.array, a.parts, also, apart)
