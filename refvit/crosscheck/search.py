"""Values whose names leave open what they are: by their numbers, and behind a bug by what follows from them.

What is near to one expected value, and clearly nearer than to any other, is that value. Where the candidate has a bug, nothing
is near any more from there on. Then one of the arrays left is the first wrong value, and it is told by this: taken for that
value, it makes the values behind it as they are. With it known, those behind are near again to what is expected.
"""

from __future__ import annotations

import bisect
import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np

from refvit.crosscheck.assignment import LAYOUTS_OF_MAPS, TRUST, Board
from refvit.crosscheck.by_name import Hint
from refvit.crosscheck.by_value import RANK, Near, Pool, Verdict
from refvit.crosscheck.golden import sample
from refvit.crosscheck.layouts import PARTIAL, arranged
from refvit.crosscheck.maps import maps
from refvit.crosscheck.predicted import distance
from refvit.graph.ir import Array, dims

EXACT = 1e-5  # distance of a float32 value that a few steps make from float32 values
RIGHT = 1e-4  # distance of a float32 value that shows that all before it is right
HYPOTHESES = 160  # tried before the search for the value behind a bug ends,
FIRST = 40  # for so many values after the last that is explained
HORIZONS = (16, 8), (96, 24)  # by so many values behind each that could confirm it, with so many arrays
UNLIKE = 0.7  # distance from which on it says nothing
Group = tuple[list[str], Array]  # names of the candidate that show the same numbers


class Search:
    """The part of the assignment that looks at numbers."""

    def __init__(self, board: Board) -> None:
        self.board, self.places = board, board.places
        self.predicted, self.values = board.predicted, board.values
        self._right = max(RIGHT, board.near if board.observed.arithmetic in ("bfloat16", "float16", "int8") else 0.0)
        self._maps = maps(board.places.graph)
        self._content: dict[bytes, list[str]] = {}
        for name, a in board.observed.values.items():
            if name in board.misfits:  # nothing else than what it is called
                continue
            key = hashlib.blake2b(np.ascontiguousarray(a).data, digest_size=16).digest() + repr(a.shape).encode()
            self._content.setdefault(key, []).append(name)

    def run(self) -> None:
        """Assign what can be told; the board's reasons say of the rest why it cannot."""
        again = True
        while again:
            self._sweep(hinted=True)
            self._sweep(hinted=False)
            again = self._behind_a_bug()
        for name in self.board.left():
            self.board.reasons.setdefault(name, self._why(name))

    def _open(self) -> Iterator[Group]:
        """What is left. What has the numbers of an assigned value repeats it."""
        taken = {n: a.value for a in self.board.assigned.values() if len(a.parts) == 1 for n in a.parts}
        for names in self._content.values():
            free = [n for n in names if n not in self.board.done]
            value = next((taken[n] for n in names if n in taken), None)
            if free and value is not None:
                self.board.repeat(value, free)
            elif free:
                yield free, self.board.observed.values[free[0]]

    def _sweep(self, *, hinted: bool) -> None:
        """Assign what is near to one value alone, until nothing more follows from that. hinted: within what names say."""
        while True:
            before = self.predicted.changes, self._learned_habit()
            found: dict[str, list[tuple[Verdict, list[str], str]]] = {}
            for names, array in self._open():
                hint = self._hint(names)
                if hinted and hint is None:
                    continue
                allowed = set(hint.values) if hint and hinted else None
                verdict = self.values.verdict(array, allowed, self.board.declared[names[0]])
                if verdict and verdict.best.distance <= self.board.near and verdict.clear:
                    how = hint.how if hint and hinted else "value"
                    found.setdefault(verdict.best.value, []).append((verdict, names, how))
            for value in sorted(found, key=self.places.order.__getitem__):
                self._settle(value, found[value])
            if (self.predicted.changes, self._learned_habit()) == before:
                return

    def _hint(self, names: list[str]) -> Hint | None:
        """The narrowest of the most trusted."""
        found = [h for n in names if (h := self.board.hints[n]) is not None]
        return min(found, key=lambda h: (TRUST.index(h.how), len(h.values)), default=None)

    def _settle(self, value: str, offers: list[tuple[Verdict, list[str], str]]) -> None:
        """The nearest of several arrays is the value; those as near repeat it; the others are something else."""
        offers = sorted(offers, key=lambda o: o[0].best.distance)
        if value not in self.board.assigned:
            verdict, names, how = offers.pop(0)
            self.board.assign(verdict.best, (names[-1],), how, verdict.confidence)
            self.board.repeat(value, names[:-1])
        shown = self.board.assigned[value]
        nearest = distance(shown.array, self.predicted[value])
        for verdict, names, _ in offers:
            if verdict.best.distance <= 4 * nearest + 1e-6:
                self.board.repeat(value, names)
                continue
            for name in names:
                is_shown = f"nearest to {self.places.public(value)}, which {' + '.join(shown.parts)} shows"
                self.board.reasons[name] = f"{is_shown}, and {verdict.best.distance:.1e} of its spread from it"

    def _behind_a_bug(self) -> bool:
        """Assign the first array that, taken for a value, explains others that nothing explained before.

        Those that do so exactly come before those that do so nearly: attention of nearly equal weights makes of its own result
        about that result again.
        """
        unexplained, opened = self._unexplained(), [*self._open()]
        if not unexplained or not opened:
            return False
        # What is shown twice may be two values that should differ.
        spare = [(names, self.board.observed.values[names[0]]) for names in self._content.values() if len(names) > 1]
        pool = Pool([array for _, array in opened + spare])
        bounds = (EXACT, self._right, self.board.near) if self._right == RIGHT else (self._right,)
        for horizon, most in HORIZONS:
            found: dict[int, tuple[Near, Array, list[str], int]] = {}  # by how exactly
            options = [*self._options(opened, unexplained, most), *self._options(spare, unexplained, most // 4)]
            for near, names, array in sorted(options, key=lambda o: self.places.order[o[0].value])[:HYPOTHESES]:
                view = arranged(near.layout, array, tuple(self.places.graph.value(near.value).shape))
                whole = np.asarray(view, np.float64)
                counts = self.values.confirmations(near.value, whole, pool, bounds, horizon)
                for i, count in enumerate(counts):
                    if count and i not in found:
                        found[i] = near, array, names, count
                if 0 in found:
                    break
            if found:
                near, array, names, count = found[min(found)]
                return self._explained(near, array, names, unexplained, count)
        return False

    def _explained(self, near: Near, array: Array, names: list[str], unexplained: set[str], count: int) -> bool:
        same = self.values.nearest(array, self.values.views(near.value) & unexplained)
        near = min(same, key=lambda n: RANK[n.layout], default=near)  # the same numbers, perhaps as they are
        self._accept(self._rectified(near, array), names, 1 - 0.5**count)
        return True

    def _rectified(self, near: Near, array: Array) -> Near:
        """What a ReLU gives explains as what it takes all that it explains as what it gives."""
        users = [n for n in self.places.users.get(near.value, ()) if self.places.graph.nodes[n].op == "relu"]
        free = [n for n in users if n not in self.board.assigned]
        return Near(free[0], near.layout, near.distance) if free and array.min() >= 0 else near

    def _accept(self, near: Near, names: list[str], confidence: float) -> None:
        """By a name that shows nothing else; the others repeat it if they are left."""
        used = {n for a in self.board.assigned.values() for n in a.parts}
        hints = {n: self.board.hints[n] for n in names}
        fitting = [n for n, h in hints.items() if n not in used and (h is None or near.value in h.values)]
        name = (fitting or names)[-1]
        hint = hints[name]
        self.board.assign(near, (name,), hint.how if hint else "value", confidence)
        self.board.repeat(near.value, [n for n in names if n not in self.board.done])

    def _options(self, groups: list[Group], unexplained: set[str], most: int) -> Iterator[tuple[Near, list[str], Array]]:
        """For each of the first unexplained values the likeliest arrays: near ones, then the next in their own order."""
        first = sorted(unexplained, key=self.places.order.__getitem__)[:FIRST]
        found: dict[str, list[tuple[float, int, int, Near, list[str], Array]]] = {}
        rank = self.board.rank
        ranks = sorted((self.places.order[v], rank[a.parts[-1]]) for v, a in self.board.assigned.items())
        for names, array in groups:
            hint = self._hint(names)
            allowed = set(first).intersection(hint.values) if hint else set(first)
            for near in self.values.nearest(array, allowed, self.board.declared[names[0]]) if allowed else []:
                before = bisect.bisect(ranks, (self.places.order[near.value],)) - 1
                expected = ranks[before][1] if before >= 0 else 0
                away = min(abs(rank[n] - expected) for n in names)
                d, plain = round(min(near.distance, UNLIKE), 2), RANK[near.layout]
                if near.layout not in PARTIAL:
                    found.setdefault(near.value, []).append((d, plain, away, near, names, array))
        for several in found.values():
            yield from (option[3:] for option in sorted(several, key=lambda o: o[:3])[:most])

    def _unexplained(self) -> set[str]:
        """Values not seen of which it is open whether they are right: no value that follows from them is as expected."""
        known = self.predicted.known
        right = [v for v in known if self._off(v) <= self._right]
        wrong = [v for v in {*self.places.graph.outputs.values(), *known} if v not in right]
        return {*self._before(wrong), *(v for v in wrong if v not in known)} - self._before(right)

    def _off(self, value: str) -> float:
        return distance(sample(self.predicted.known[value]), self.predicted.sample(value))

    def _before(self, values: list[str]) -> set[str]:
        """What these are computed from, as far as it is not known."""
        found, pending = set[str](), list(values)
        while pending:
            node = self.places.graph.nodes.get(pending.pop())
            for source in node.sources if node else ():
                if source in self.places.order and source not in found and source not in self.predicted.known:
                    found.add(source)
                    pending.append(source)
        return found

    def _learned_habit(self) -> str:
        """The layout of most maps, from now on that of those whose shape fits several."""
        found = Counter(a.layout for v, a in self.board.assigned.items() if v in self._maps and a.layout in LAYOUTS_OF_MAPS)
        self.values.habit = found.most_common(1)[0][0] if found else ""
        return self.values.habit

    def _why(self, name: str) -> str:
        array = self.board.observed.values[name]
        if not np.isfinite(array).all():
            return "holds NaN or infinite values, and its name says nothing"
        verdict = self.values.verdict(array, None, self.board.declared[name])
        if verdict is None:
            return f"{dims(array.shape)} fits no value of the reference"
        near = verdict.best
        return f"nearest to {self.places.public(near.value)}, and {near.distance:.1e} of its spread from it"
