"""From the optimised graph to instructions: where each value lies, and which kernel computes it.

Views become other ways to read the same memory. A value that is part of a concatenation is written in its place there. What a
kernel cannot read is copied first, which no model needs on its main path.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from refvit.backends.numba import patterns
from refvit.backends.numba.constants import Constants
from refvit.backends.numba.copy import copy
from refvit.backends.numba.layout import Place, dense, matrix, merge
from refvit.backends.numba.program import Buffer, Instruction
from refvit.errors import BackendError
from refvit.graph.ir import Graph, Node, Shape, size
from refvit.graph.passes.fuse import HEAVY

VIEWS = ("reshape", "transpose", "getitem", "unfold_patches", "fold_patches", "broadcast")
CHANNELS_LAST = (0, 2, 3, 1)
LINE = 16  # values


class Lowering:
    """The state of lowering one graph; `select.KERNELS` has a function for each op, which emits instructions."""

    def __init__(self, graph: Graph, threads: int) -> None:
        self.graph, self.threads = graph, threads
        self.constants = Constants(graph)
        self.instructions: list[Instruction] = []
        self.places: dict[str, Place] = {}
        self.targets: dict[str, Place] = {}  # of values that are computed where a concatenation wants them
        self.wholes: dict[str, Place] = {}  # of concatenations
        self.parts: dict[str, list[Place]] = {}
        self.shortcuts, self.merged, self.inside = patterns.shortcuts(graph)
        self.residuals, within = patterns.inverted_residuals(graph)
        self.inside |= within
        self.early = patterns.before_depthwise(graph)
        self.node = ""
        for name, value in graph.inputs.items():
            self.places[name] = dense(Buffer(size(value), public=name), tuple(value.shape))

    def run(self) -> None:
        """Lower every node and write the outputs."""
        from refvit.backends.numba.select import KERNELS, shortcut

        patterns.place_parts(self)
        for node in self.graph:
            if node.name in self.constants or node.name in self.inside or node.name in self.early:
                continue
            self.node = node.name
            op = node.op
            if op == "fused":
                first = node.attrs["steps"][0].op
                op = first if first in HEAVY else "add"  # of a fused node without a product any value-by-value op will do
            if node.name in self.shortcuts:
                shortcut(self, node)
            elif node.op in VIEWS:
                self._view(node)
            elif op in KERNELS:
                KERNELS[op](self, node)
            else:
                raise BackendError(f"{node.name}: the numba backend has no kernel for {op!r}")
        self.node = "output"
        for public, name in self.graph.outputs.items():
            shape = tuple(self.graph.value(name).shape)
            target = dense(Buffer(max(1, size(self.graph.value(name))), public=public), shape)
            self.emit(copy(self.place(name), target))

    def emit(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            object.__setattr__(instruction, "node", instruction.node or self.node)
        self.instructions += instructions

    def place(self, name: str) -> Place:
        """Where a value lies; a constant gets memory when it is first asked for."""
        if name not in self.places:
            self.places[name] = dense(self.constants.buffer(name), tuple(self.graph.value(name).shape))
        return self.places[name]

    def new(self, shape: Shape, order: tuple[int, ...] | None = None) -> Place:
        """Memory for a value: maps channels-last, everything else row-major, unless `order` says otherwise."""
        if order is None and len(shape) == 4:
            order = CHANNELS_LAST
        return dense(Buffer(math.prod(shape)), shape, order)

    def result(self, node: Node, accept: Callable[[Place], bool] | None = None) -> Place:
        """Where the node's value is to be written: where a concatenation wants it, or memory of its own."""
        target = self.targets.get(node.name)
        if target is None or (accept is not None and not accept(target)):
            target = self.new(node.shape)
        self.places[node.name] = target
        return target

    def like(self, x: Place, columns: int) -> Place:
        """Memory for rows in the order of those of x, each of `columns` values; x's rows are a matrix."""
        found = matrix(x.axes[:-1])
        if found is None:
            raise ValueError(f"no matrix: {x}")
        rows, step = found
        # rows a multiple of 4 KB apart would share a few lines of the first cache
        width = columns + LINE if 4 * columns % 4096 == 0 else columns
        axes = tuple(tuple((e, s // step * width) for e, s in axis) for axis in x.axes[:-1])
        return Place(Buffer(rows * width), 0, (*axes, ((columns, 1),) if columns > 1 else ()))

    def copied(self, x: Place, order: tuple[int, ...] | None = None) -> Place:
        """The value in memory of its own."""
        y = self.new(x.shape, order)
        self.emit(copy(x, y))
        return y

    def as_map(self, x: Place) -> Place:
        """A map with the channels of each pixel next to one another: the value where it lies so, or a copy."""
        return x if x.channels_last else self.copied(x)

    def _view(self, node: Node) -> None:
        (name,) = node.sources
        x = self.place(name)
        view = _VIEW[node.op](x, node)
        if view is None and node.op in ("unfold_patches", "fold_patches"):
            view = _resized_patches(self, x, node)
        elif view is None:
            view = _VIEW[node.op](self.copied(x, tuple(range(len(x.shape)))), node)
        if view is None or view.shape != node.shape:
            raise BackendError(f"{node.name}: {node.op} of {x} is no view")
        target = self.targets.get(node.name)
        if target is not None and view.buffer is not target.buffer:
            self.emit(copy(view, target))
            view = target
        self.places[node.name] = view


def _getitem(x: Place, node: Node) -> Place | None:
    parts = node.attrs["index"]
    parts = list(parts) if isinstance(parts, tuple) else [parts]
    if Ellipsis in parts:
        i = parts.index(Ellipsis)
        missing = len(x.axes) - sum(p is not None for p in parts) + 1
        parts[i : i + 1] = [slice(None)] * missing
    view: Place | None = x
    axis = 0
    for part in parts:
        if view is None:
            return None
        if part is None:
            view = view.expand(axis)
            axis += 1
        elif isinstance(part, slice):
            start, stop, step = part.indices(view.shape[axis])
            if step < 0:
                return None
            view = view.slice(axis, start, len(range(start, stop, step)), step)
            axis += 1
        else:
            view = view.slice(axis, part % view.shape[axis], 1)
            view = None if view is None else view.squeeze(axis)
    return view


def _unfold(x: Place, node: Node) -> Place | None:
    (n, c, h, w), (ph, pw) = x.shape, node.attrs["patch"]
    if h % ph or w % pw:
        return None
    cut = x.reshape((n, c, h // ph, ph, w // pw, pw))
    return None if cut is None else _joined(cut.transpose((0, 3, 5, 2, 4, 1)), (0, 3, 5, 6))


def _fold(x: Place, node: Node) -> Place | None:
    (ph, pw), (h, w) = node.attrs["patch"], node.attrs["size"]
    return None if h % ph or w % pw else _folded(x, node, h, w)


def _folded(x: Place, node: Node, h: int, w: int) -> Place | None:
    """Patches as the map of h x w that they tile."""
    (ph, pw), (n, c) = node.attrs["patch"], node.shape[:2]
    cut = x.reshape((n, ph, pw, h // ph, w // pw, c))
    return None if cut is None else _joined(cut.transpose((0, 5, 3, 1, 4, 2)), (0, 1, 2, 4, 6))


def _joined(x: Place, starts: tuple[int, ...]) -> Place:
    """Runs of axes, which begin at `starts`, as one axis each."""
    runs = [x.axes[a:b] for a, b in itertools.pairwise(starts)]
    return Place(x.buffer, x.offset, tuple(merge([f for axis in run for f in axis]) for run in runs))


def _resized_patches(lowering: Lowering, x: Place, node: Node) -> Place:
    """Patches that do not tile the map: a resize to the next multiples before unfolding, and one back after folding."""
    from refvit.backends.numba.resize import resize

    ph, pw = node.attrs["patch"]
    h, w = node.attrs["size"] if node.op == "fold_patches" else x.shape[2:]
    rows, columns = -(-h // ph) * ph, -(-w // pw) * pw
    if node.op == "unfold_patches":
        wide = lowering.new((x.shape[0], x.shape[1], rows, columns))
        lowering.emit(resize(lowering.as_map(x), wide, size=(rows, columns), mode="bilinear", align_corners=False))
        view = _VIEW[node.op](wide, node)
    else:
        whole = _folded(x, node, rows, columns)
        assert whole is not None
        view = lowering.new(node.shape)
        lowering.emit(resize(lowering.as_map(whole), view, size=(h, w), mode="bilinear", align_corners=False))
    assert view is not None
    return view


_VIEW: dict[str, Callable[[Place, Any], Place | None]] = {
    "reshape": lambda x, node: x.reshape(node.shape),
    "transpose": lambda x, node: x.transpose(node.attrs["axes"]),
    "broadcast": lambda x, node: x.broadcast(node.shape),
    "getitem": _getitem,
    "unfold_patches": _unfold,
    "fold_patches": _fold,
}
