"""Pickles of the standard library with opcodes moved, changed, doubled and left out: its value, or an error."""

import argparse
import collections
import contextlib
import io
import pickle
import pickletools

from helpers.strategies import EXAMPLES, try_all
from hypothesis import strategies as st

from refvit.errors import WeightsError
from refvit.weights.readers.pickle_subset import MAX_KEY, Opaque, load

OPAQUE = "something that is not kept"
LEAVES = (
    st.none() | st.integers(2, 2**80) | st.integers(-(2**40), -1) | st.floats(2, 9).map(lambda x: x / 7) | st.text(max_size=9)
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(2, 99), inner, max_size=4)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3).map(collections.OrderedDict)
        | inner.map(lambda value: argparse.Namespace(a=value))
        | st.binary(max_size=4).map(lambda raw: {"raw": raw, "set": {*raw}})
    ),
    max_leaves=12,
)
PROTOCOLS = st.integers(2, 5)


class Anything:
    """What the standard library makes instead of a class: takes whatever is done to it."""

    def __new__(cls, *args, **options):
        return super().__new__(cls)

    def __init__(self, *args, **options):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        pass

    add = append
    extend = append


class Theirs(pickle._Unpickler):
    """In Python, where an index of a memo is no size of a table."""

    def find_class(self, module, name):
        return collections.OrderedDict if (module, name) == ("collections", "OrderedDict") else type("Made", (Anything,), {})


def kept(value):
    """A value as our reader keeps it: text and integers as keys, and no objects."""
    if isinstance(value, dict):
        return {k: kept(v) for k, v in value.items() if type(k) is str or (type(k) is int and abs(k) < MAX_KEY)}
    if isinstance(value, (list, tuple)):
        return type(value)(map(kept, value))
    opaque = isinstance(value, (Opaque, Anything, argparse.Namespace, bytes, bytearray, set, frozenset, type))
    return OPAQUE if opaque else value


def agree(data):
    """Whether we find a value; where the standard library finds one as well, it is the same."""
    try:
        ours, end = load(memoryview(data))
    except WeightsError as error:
        text = str(error)
    else:
        text = None
    if text is not None:
        assert text.isprintable() and len(text) < 500
        return False
    assert end <= len(data)
    try:
        theirs = Theirs(io.BytesIO(data)).load()
    except Exception:  # they refuse more: bytes beyond a frame, attributes of a dict, keys that have no hash
        return True
    with contextlib.suppress(RecursionError):  # it holds itself
        assert repr(kept(ours)) == repr(kept(theirs))
    return True


@EXAMPLES
def test_valid_pickles_are_read(examples):
    def check(case):
        tree, protocol = case
        data = pickle.dumps(tree, protocol)
        ours, end = load(memoryview(data))
        assert end == len(data) and repr(kept(ours)) == repr(kept(tree))

    try_all(examples, st.tuples(TREES, PROTOCOLS), check)


@st.composite
def damaged(draw):
    """A pickle whose opcodes were moved, changed, doubled or left out; those of two pickles are mixed."""
    protocol = draw(PROTOCOLS)
    data = pickle.dumps(draw(TREES), protocol) + pickle.dumps(draw(TREES), protocol)
    starts = _starts(data)
    pieces = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    head, pieces = pieces[0], [p for p in pieces if p[:1] not in (b"\x80", b".", b"\x95")]
    for _ in range(draw(st.integers(1, 4))):
        if not pieces:
            break
        i, j = draw(st.integers(0, len(pieces) - 1)), draw(st.integers(0, len(pieces) - 1))
        change = draw(st.sampled_from(["drop", "double", "move", "swap", "argument", "cut"]))
        if change == "drop":
            del pieces[i]
        elif change == "double":
            pieces.insert(j, pieces[i])
        elif change == "move":
            pieces.insert(j, pieces.pop(i))
        elif change == "swap":
            pieces[i], pieces[j] = pieces[j], pieces[i]
        elif change == "cut":
            pieces = pieces[min(i, j) : max(i, j) + 1]
        elif len(pieces[i]) > 1:
            k = draw(st.integers(1, len(pieces[i]) - 1))
            pieces[i] = pieces[i][:k] + bytes([draw(st.integers(0, 255))]) + pieces[i][k + 1 :]
    return head + b"".join(pieces) + b"."


def _starts(data):
    """Positions of all opcodes of the pickles in `data`."""
    f, starts = io.BytesIO(data), []
    while f.tell() < len(data):
        starts += [at for _, _, at in pickletools.genops(f)]
    return starts


@EXAMPLES
def test_opcodes_that_lie(examples):
    assert 0.02 < try_all(20 * examples, damaged(), agree) < 0.98
