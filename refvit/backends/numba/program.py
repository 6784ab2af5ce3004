"""A compiled graph as data: instructions over buffers, which `memory` places in one arena and `executor` runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from refvit.graph.ir import Array


@dataclass(eq=False)
class Buffer:
    """Memory that instructions share: of the arena, of a constant, or of the caller's input and outputs.

    size: float32 values. array: the values of a constant, C-contiguous. public: name of the input or output that it is.
    """

    size: int
    array: Array | None = None
    public: str | None = None


@dataclass(frozen=True)
class Address:
    """A place in a buffer; `offset` in bytes."""

    buffer: Buffer
    offset: int = 0


@dataclass(frozen=True)
class Function:
    """The address of compiled code: a microkernel as an argument of another kernel."""

    name: str


Argument = int | Address | Function


def bits(value: float) -> int:
    """A float32 as an argument: its bits; a kernel reads it with `arg_f32`."""
    import struct

    return int.from_bytes(struct.pack("<f", value), "little")


@dataclass(frozen=True)
class Instruction:
    """One call of a kernel for each of `units` parts of the work.

    kernel: "file.function" in `kernels`. args: what `arg(a, i)` reads. reads, writes: the buffers touched, for the order of
    execution and for memory. scratch: bytes that a unit needs for itself.
    """

    kernel: str
    args: Sequence[Argument]
    units: int
    reads: Sequence[Buffer]
    writes: Sequence[Buffer]
    scratch: int = 0
    node: str = ""
    macs: int = 0
    functions: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = (self.kernel, *(a.name for a in self.args if isinstance(a, Function)))
        object.__setattr__(self, "functions", names)
