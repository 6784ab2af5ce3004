"""Pickles as data: a loop over the opcodes that looks up no class, imports nothing and calls nothing that a file names.

A name in the pickle (GLOBAL) becomes an `Opaque`, which is two strings. What is "called" with arguments is looked up in a
dictionary of functions of this package, anything else stays an `Opaque` and its arguments and attributes are dropped: of an
argparse.Namespace, a yacs CfgNode or a NumPy scalar in a checkpoint nothing but the name is left. Protocols 2 to 5 are read as
far as torch.save writes them. Work and memory are bounded for any input, see the limits.

Opcodes: PEP 307, PEP 3154, PEP 574 and the documentation in the standard library's pickletools.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from refvit.errors import WeightsError
from refvit.weights.readers.limits import shown

MAX_BYTES = 32 << 20  # of a pickle; a checkpoint of 10 000 tensors has 2 MB
MAX_STEPS = 1_000_000  # opcodes; a tensor takes about 50
MAX_TEXT = 16 << 20  # bytes of one string
MAX_NAME = 256  # characters of a module or class name
MAX_DEPTH = 1000  # containers that are open at a time
MAX_STACK = 100_000  # values within one of them; picklers write batches of 1000
MAX_MEMO = 1_000_000
MAX_KEY = 1 << 60  # integers up to here have hashes of their own

# No checkpoint needs them. Safety does not rest on this list: nothing else is called either, only nobody is warned.
ALARMING_MODULES = {"os", "posix", "nt", "sys", "subprocess", "socket", "pty", "runpy", "importlib", "ctypes", "shutil"}
ALARMING_BUILTINS = {"eval", "exec", "execfile", "compile", "__import__", "open", "input", "breakpoint"}


@dataclass(frozen=True, slots=True, eq=False)
class Opaque:
    """Something that the file calls module.name, or made from it. Equal to nothing but itself."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


Call = Callable[[tuple[Any, ...]], Any]  # takes the arguments that the file gives, raises WeightsError if they are wrong


def load(
    data: memoryview,
    start: int = 0,
    *,
    calls: Mapping[tuple[str, str], Call] | None = None,
    persistent: Call | None = None,
) -> tuple[Any, int]:
    """The value of the pickle that starts at byte `start` of `data`, and the position after it.

    calls: (module, name) -> what is done when the file calls it, beside the dictionaries of `collections`
    persistent: what a persistent id (a tuple) stands for; None if there may be none

    Dictionaries keep text and integer keys only: the hash of what a file makes up can be slow. WeightsError if the pickle is
    damaged, too large, or does what torch.save does not.
    """
    return _Machine(data, start, calls or {}, persistent).run()


class _Machine:
    def __init__(self, data: memoryview, start: int, calls: Mapping[tuple[str, str], Call], persistent: Call | None) -> None:
        self.data, self.start, self.at, self.position = data, start, start, start
        self.end = min(len(data), start + MAX_BYTES)
        self.calls, self.persistent = calls, persistent
        self.steps = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    def run(self) -> tuple[Any, int]:
        if self.byte() != 0x80 or not 2 <= self.byte() <= 5:
            self.fail("no pickle of protocol 2 to 5 starts here")
        while True:
            self.charge(1)
            self.at = self.position
            code = self.byte()
            if code == 0x2E:  # STOP
                if self.below or len(self.stack) != 1:
                    self.fail("it ends with values left over")
                return self.stack[0], self.position
            action = ACTIONS.get(code)
            if action is None:
                self.fail(f"opcode {code:#04x}, which torch.save does not write")
            action(self)

    def fail(self, what: str) -> NoReturn:
        raise WeightsError(f"pickle, byte {self.at - self.start}: {what}; the file is damaged or was not written by torch.save")

    def charge(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise WeightsError(f"the pickle takes more than {MAX_STEPS} steps; save the model's state_dict() alone")

    # bytes

    def take(self, count: int) -> memoryview:
        if count > self.end - self.position:
            if self.end < len(self.data):
                raise WeightsError(f"the pickle is longer than {MAX_BYTES} bytes; save the model's state_dict() alone")
            self.fail("the data ends within it")
        self.position += count
        return self.data[self.position - count : self.position]

    def byte(self) -> int:
        return self.take(1)[0]

    def size(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def line(self) -> str:
        """Text up to a newline, for GLOBAL."""
        line, newline, _ = bytes(self.data[self.position : min(self.position + 4 * MAX_NAME, self.end)]).partition(b"\n")
        if not newline:
            self.fail("a name without an end")
        return self.text(len(line) + 1)[:-1]

    def text(self, count: int, encoding: str = "utf-8") -> str:
        if count > MAX_TEXT:
            self.fail(f"a text of {count} bytes, more than {MAX_TEXT}")
        try:
            return str(self.take(count), encoding, "surrogatepass" if encoding == "utf-8" else "strict")
        except UnicodeDecodeError:
            self.fail("a text that is not UTF-8")

    def skip(self, width: int) -> None:
        """Bytes are metadata: their content is not kept."""
        self.take(self.size(width))
        self.push(Opaque("builtins", "bytes"))

    def frame(self) -> None:
        if self.size(8) > self.end - self.position:
            self.fail("a frame that is longer than the data")

    # stack and memo

    def push(self, value: Any) -> None:
        if len(self.stack) >= MAX_STACK:
            self.fail(f"more than {MAX_STACK} values in one container")
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            self.fail("a value is missing")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            self.fail("a value is missing")
        return self.stack[-1]

    def mark(self) -> None:
        if len(self.below) >= MAX_DEPTH:
            self.fail(f"more than {MAX_DEPTH} containers within each other")
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        if not self.below:
            self.fail("a mark is missing")
        items, self.stack = self.stack, self.below.pop()
        return items

    def make_tuple(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.fail(f"memo {index} is empty")
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        if index >= MAX_MEMO:
            self.fail(f"memo {index}, beyond {MAX_MEMO}")
        self.memo[index] = self.top()

    # containers

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is list:
            target += items
        elif type(target) is not Opaque:
            self.fail(f"items are appended to {_kind(target)}, not to a list")

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if len(items) % 2:
            self.fail("a key without a value")
        if type(target) is dict:
            self.fill(target, zip(items[::2], items[1::2], strict=True))
        elif type(target) is not Opaque:
            self.fail(f"items are set in {_kind(target)}, not in a dict")

    def fill(self, target: dict[Any, Any], pairs: Any) -> None:
        for key, value in pairs:
            if type(key) is str or (type(key) is int and abs(key) < MAX_KEY):
                if key in target:
                    self.fail(f"the key {shown(key)} is given twice")
                target[key] = value

    def add_items(self) -> None:
        self.since_mark()
        if type(self.top()) is not Opaque:
            self.fail(f"items are added to {_kind(self.top())}, not to a set")

    # names and what is made from them

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str or max(len(module), len(name)) > MAX_NAME:
            self.fail("a name that is no text, or too long")
        builtin = module in ("builtins", "__builtin__")
        if module.split(".")[0] in ALARMING_MODULES or (builtin and name.split(".")[0] in ALARMING_BUILTINS):
            raise WeightsError(
                f"the file asks to run {shown(f'{module}.{name}')}, as no checkpoint does: nothing was run; do not open it "
                "with other programs, and tell those from whom it comes"
            )
        self.push(Opaque(module, name))

    def reduce(self) -> None:
        args, made = self.pop(), self.pop()
        if type(made) is not Opaque or type(args) is not tuple:
            self.fail(f"{_kind(made)} is called with {_kind(args)}")
        if (made.module, made.name) in DICTS:
            self.push(self.make_dict(args))
        elif (made.module, made.name) in self.calls:
            try:
                self.push(self.calls[made.module, made.name](args))
            except WeightsError as error:
                near = next((v for v in reversed(self.stack[-4:]) if type(v) is str), None)
                raise WeightsError(str(error) if near is None else f"{shown(near)}: {error}") from error
        else:
            self.push(Opaque(made.module, made.name))

    def make_dict(self, args: tuple[Any, ...]) -> dict[Any, Any]:
        """OrderedDict(), OrderedDict([[key, value], ...]) of Python 2, defaultdict(kind), Counter(dict)."""
        if len(args) == 1 and type(args[0]) is dict:
            return args[0]
        made: dict[Any, Any] = {}
        if len(args) == 1 and type(args[0]) is list:
            self.charge(len(args[0]))
            if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in args[0]):
                self.fail("a dict of what are not pairs")
            self.fill(made, args[0])
        elif args and (len(args) > 1 or type(args[0]) not in (Opaque, type(None))):
            self.fail(f"a dict made from {_kind(args[0])}")
        return made

    def new_ex(self) -> None:
        if type(self.pop()) is not dict:
            self.fail("keyword arguments that are not a dict")
        self.reduce()

    def build(self) -> None:
        """Attributes are dropped, such as the _metadata of a state dict."""
        self.pop()
        if type(self.top()) not in (Opaque, dict):
            self.fail(f"attributes are given to {_kind(self.top())}")

    def persistent_id(self) -> None:
        pid = self.pop()
        if type(pid) is not tuple or self.persistent is None:
            self.fail(f"{_kind(pid)} as a persistent id")
        self.push(self.persistent(pid))


def _kind(value: Any) -> str:
    return shown(str(value)) if type(value) is Opaque else f"a {type(value).__name__}"


def _stack_global(m: _Machine) -> None:
    name, module = m.pop(), m.pop()
    m.name(module, name)


def _set_item(m: _Machine) -> None:
    value, key = m.pop(), m.pop()
    m.set_items([key, value])


DICTS = {("collections", "OrderedDict"), ("collections", "defaultdict"), ("collections", "Counter")}

ACTIONS: dict[int, Callable[[_Machine], None]] = {
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.byte()),
    ord("M"): lambda m: m.push(m.size(2)),
    ord("J"): lambda m: m.push(int.from_bytes(m.take(4), "little", signed=True)),
    0x8A: lambda m: m.push(int.from_bytes(m.take(m.byte()), "little", signed=True)),  # LONG1, at most 255 bytes
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    ord("X"): lambda m: m.push(m.text(m.size(4))),
    0x8C: lambda m: m.push(m.text(m.size(1))),
    0x8D: lambda m: m.push(m.text(m.size(8))),
    ord("T"): lambda m: m.push(m.text(m.size(4), "latin-1")),  # str of Python 2
    ord("U"): lambda m: m.push(m.text(m.size(1), "latin-1")),
    ord("B"): lambda m: m.skip(4),
    ord("C"): lambda m: m.skip(1),
    0x8E: lambda m: m.skip(8),
    0x96: lambda m: m.skip(8),  # BYTEARRAY8
    ord(")"): lambda m: m.push(()),
    0x85: lambda m: m.make_tuple(1),
    0x86: lambda m: m.make_tuple(2),
    0x87: lambda m: m.make_tuple(3),
    ord("t"): lambda m: m.push(tuple(m.since_mark())),
    ord("]"): lambda m: m.push([]),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.since_mark()),
    ord("}"): lambda m: m.push({}),
    ord("s"): _set_item,
    ord("u"): lambda m: m.set_items(m.since_mark()),
    0x8F: lambda m: m.push(Opaque("builtins", "set")),
    0x90: _Machine.add_items,
    0x91: lambda m: m.push(Opaque("builtins", "frozenset")) if m.since_mark() is not None else None,
    ord("("): _Machine.mark,
    ord("h"): lambda m: m.get(m.byte()),
    ord("j"): lambda m: m.get(m.size(4)),
    ord("q"): lambda m: m.put(m.byte()),
    ord("r"): lambda m: m.put(m.size(4)),
    0x94: lambda m: m.put(len(m.memo)),
    0x95: _Machine.frame,
    ord("c"): lambda m: m.name(m.line(), m.line()),
    0x93: _stack_global,
    ord("R"): _Machine.reduce,
    0x81: _Machine.reduce,  # NEWOBJ: class and arguments, as for REDUCE
    0x92: _Machine.new_ex,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.persistent_id,
}
