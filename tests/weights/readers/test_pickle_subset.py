"""Pickles as data: the values of the standard library's pickles, inert objects, and nothing run whatever is in them."""

import argparse
import collections
import datetime
import decimal
import enum
import functools
import io
import math
import os
import pathlib
import pickle
import random
import struct
import sys
import types
import uuid

import numpy as np
import pytest
from helpers import handmade as h

from refvit.errors import WeightsError
from refvit.weights.readers import pickle_subset
from refvit.weights.readers.pickle_subset import ACTIONS, MAX_DEPTH, Opaque, load

PROTOCOLS = (2, 3, 4, 5)


def read(data, **options):
    value, end = load(memoryview(data), **options)
    assert end == len(data)
    return value


def refused(data, match, **options):
    with pytest.raises(WeightsError, match=match) as caught:
        load(memoryview(data), **options)
    told = str(caught.value)
    assert "\n" not in told and len(told) < 400
    return told


# values


def random_tree(rng, depth):
    """Anything that a pickle of this subset keeps."""
    leaves = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.randrange(-(2 ** rng.randrange(1, 2000)), 2 ** rng.randrange(1, 2000)),
        lambda: rng.choice([0, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -1, -(2**31), -(2**31) - 1]),
        lambda: rng.choice([0.0, -0.0, math.inf, rng.gauss(0, 1), 5e-324]),
        lambda: "".join(rng.choices("aß猫\U0001f408\n\0'\\ \ud800", k=rng.choice([0, 3, 90, 300]))),
    ]
    if depth == 0:
        return rng.choice(leaves)()
    sizes = [0, 1, 2, 3, 4, 1100] if depth == 1 else [0, 1, 2, 3, 4]
    inner = [random_tree(rng, rng.randrange(depth)) for _ in range(rng.choice(sizes))]
    kind = rng.choice([list, tuple, dict, collections.OrderedDict])
    if kind in (list, tuple):
        return kind(inner)
    return kind((rng.choice([str(i), i - 2, 2**59 - i]), v) for i, v in enumerate(inner))


def plain(tree):
    """The tree with dicts instead of what is derived from them."""
    if isinstance(tree, dict):
        return {k: plain(v) for k, v in tree.items()}
    return type(tree)(map(plain, tree)) if isinstance(tree, (list, tuple)) else tree


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_values_are_those_of_pickle(protocol):
    rng = random.Random(protocol)
    for _ in range(150):
        tree = random_tree(rng, 4)
        assert repr(read(pickle.dumps(tree, protocol))) == repr(plain(tree))  # repr tells -0.0, 1 and True apart


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_shared_and_recursive_values(protocol):
    shared = ["x"]
    ring = [1]
    ring.append({"ring": ring})
    a, b, again = read(pickle.dumps((shared, {"s": shared}, ring), protocol))
    assert b["s"] is a and a == ["x"]
    assert again[1]["ring"] is again


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_more_memo_than_a_byte_counts(protocol):
    words = [f"word {i}" for i in range(700)]
    assert read(pickle.dumps([words, words[::-1]], protocol)) == [words, words[::-1]]


def test_dicts_of_collections():
    counted = collections.Counter("abca")
    default = collections.defaultdict(list, {"x": [1]})
    ordered = collections.OrderedDict([("b", 1), ("a", 2)])
    ordered.note = "dropped"
    for protocol in PROTOCOLS:
        found = read(pickle.dumps([counted, default, ordered], protocol))
        assert found == [dict(counted), {"x": [1]}, {"b": 1, "a": 2}]
        assert list(found[2]) == ["b", "a"]
        assert {type(d) for d in found} == {dict}


def test_python_2():
    pairs = b"](](U\x01bK\x01e](T\x03\0\0\0\xc3\xa4aK\x02ee"  # latin-1 keeps any byte
    assert read(h.pickle(h.call(h.name("collections", "OrderedDict"), pairs))) == {"b": 1, "Ã¤a": 2}
    assert read(h.pickle(h.name("__builtin__", "set"))).module == "__builtin__"


def test_where_it_ends():
    data = b"front" + pickle.dumps([1, 2], 2) + pickle.dumps("next", 4)
    first, position = load(memoryview(data), 5)
    assert first == [1, 2]
    assert load(memoryview(data), position) == ("next", len(data))


# what stays opaque


class Colour(enum.Enum):
    RED = "r"


class Config(dict):
    """As yacs, addict and mmengine derive theirs."""


class Items(list):
    pass


class Slots:
    __slots__ = ("x",)

    def __init__(self):
        self.x = 1


class Keywords:
    def __new__(cls, *, x):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (), {"x": 1}


def objects():
    config = Config(a=1, b=Config(c=[2]))
    config.frozen = True
    return [
        argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/a/b")),
        config,
        Items([1, 2, 3]),
        Slots(),
        Colour.RED,
        collections.deque([1, 2], 5),
        datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.UTC),
        datetime.timedelta(3),
        pathlib.PurePosixPath("/a/b"),
        uuid.UUID(int=3),
        decimal.Decimal("1.5"),
        functools.partial(len, [1]),
        types.SimpleNamespace(a=1),
        {1, 2},
        frozenset([1, (2, 3)]),
        b"bytes" * 100,
        bytearray(b"x" * 300),
        1j,
        range(3),
        slice(1, 2),
        Ellipsis,
        NotImplemented,
        int,
        len,
        np.float64(1.5),
        np.float32(2),
        np.int64(3),
        np.bool_(True),
        np.str_("s"),
        np.dtype("f4"),
        np.arange(5),
        np.asfortranarray(np.ones((2, 3))),
        np.array(["a", "bc"]),
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_stay_opaque(protocol):
    for value in objects():
        found = read(pickle.dumps({"before": [1], "it": value, "after": (value, "end")}, protocol))
        assert list(found) == ["before", "it", "after"]
        assert found["before"] == [1] and found["after"][1] == "end"
        assert type(found["it"]) is Opaque
        assert found["after"][0] is found["it"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_names_that_are_left(protocol):
    made = read(pickle.dumps([argparse.Namespace(a=1), Config(a=1), datetime.date(2020, 1, 1), Colour], protocol))
    assert [m.name for m in made] == ["Namespace", "Config", "date", "Colour"]
    assert str(made[0]) == "argparse.Namespace"
    assert made[1].module == __name__


def test_keyword_arguments_of_protocol_4():
    assert read(pickle.dumps(Keywords(x=1), 4)).name == "Keywords"


def test_keys_that_are_no_text_or_integers_are_left_out():
    given = {"a": 1, 2: 2, 2.5: 3, None: 4, (1, 2): 5, b"x": 6, 2**61: 7, Colour.RED: 8, True: 9}
    for protocol in PROTOCOLS:
        assert read(pickle.dumps(given, protocol)) == {"a": 1, 2: 2}


# attacks


def payloads(canary):
    """Pickles that would make the folder `canary`, by every way there is."""
    target = str(canary)
    mkdir = h.name("os", "mkdir")
    arguments = h.several(h.text(target))
    nested = h.call(h.name("builtins", "getattr"), h.name("os", "path"), h.text("os"))
    evil = "canary_module"  # see the test: importing it makes the folder as well
    return {
        "GLOBAL REDUCE": h.pickle(mkdir + arguments + b"R"),
        "STACK_GLOBAL": h.pickle(h.text("os") + h.text("mkdir") + b"\x93" + arguments + b"R", 4),
        "posix": h.pickle(h.name("posix", "mkdir") + arguments + b"R"),
        "INST": h.pickle(b"(" + h.text(target) + b"ios\nmkdir\n"),
        "OBJ": h.pickle(b"(" + h.name(evil, "Evil") + h.text(target) + b"o"),
        "system": h.pickle(h.call(h.name("os", "system"), h.text(f"mkdir {target}"))),
        "Popen": h.pickle(h.call(h.name("subprocess", "check_call"), h.several(h.text("mkdir"), h.text(target)))),
        "eval": h.pickle(h.call(h.name("__builtin__", "eval"), h.text(f"__import__('os').mkdir({target!r})"))),
        "exec": h.pickle(h.call(h.name("builtins", "exec"), h.text(f"import os; os.mkdir({target!r})"))),
        "import": h.pickle(h.name(evil, "anything")),
        "NEWOBJ": h.pickle(h.name(evil, "Evil") + b"(" + h.text(target) + b"t\x81"),
        "BUILD": h.pickle(h.name(evil, "Quiet") + b")\x81" + h.text(target) + b"b"),
        "setitem": h.pickle(h.name(evil, "Items") + b")\x81" + h.text(target) + b"K\x01s"),
        "append": h.pickle(h.name(evil, "Items") + b")\x81" + h.text(target) + b"a"),
        "in metadata": h.pickle(h.mapping({"a": b"K\x01", "b": mkdir + arguments + b"R"})),
        "dropped": h.pickle(h.call(h.name("collections", "OrderedDict")) + h.call(mkdir, h.text(target)) + b"b"),
        "getattr": h.pickle(h.call(h.call(h.name("builtins", "getattr"), nested, h.text("mkdir")), h.text(target))),
        "partial": h.pickle(h.call(h.call(h.name("functools", "partial"), mkdir, h.text(target)))),
        "gadget": h.pickle(h.call(h.name("timeit", "timeit"), h.text("1"), h.text(f"import os; os.mkdir({target!r})"))),
        "map": h.pickle(
            h.call(h.name("builtins", "list"), h.call(h.name("builtins", "map"), mkdir, h.several(h.text(target))))
        ),
    }


EVIL = """
import os, sys
if CANARY_ON_IMPORT: os.mkdir(TARGET)
class Evil:
    def __new__(cls, target): os.mkdir(target)
class Quiet:
    def __setstate__(self, target): os.mkdir(target)
class Items:
    def __setitem__(self, target, value): os.mkdir(target)
    def append(self, target): os.mkdir(target)
"""
INERT = {"import", "NEWOBJ", "BUILD", "setitem", "append", "gadget"}  # unknown names, which stay opaque


@pytest.mark.parametrize("way", list(payloads("x")))
def test_nothing_runs(tmp_path, monkeypatch, way):
    canary = tmp_path / "canary"
    module = EVIL.replace("CANARY_ON_IMPORT", str(way == "import")).replace("TARGET", repr(str(canary)))
    (tmp_path / "canary_module.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "canary_module", raising=False)
    payload = payloads(canary)[way]

    if way in INERT:
        read(payload)
    else:
        told = refused(payload, "nothing was run|opcode 0x(69|6f), which torch.save does not write")
        assert ("nothing was run" in told) == (way not in ("INST", "OBJ"))
    assert not canary.exists()
    assert "canary_module" not in sys.modules

    with io.StringIO() as hidden:  # the payload is a real one: the standard library falls for it
        monkeypatch.setattr(sys, "stdout", hidden)
        try:
            pickle.loads(payload)
        except Exception:
            assert way == "import"  # the module lacks the name, but has been run
    assert canary.is_dir()


def test_the_extension_registry():
    import copyreg

    copyreg.add_extension("os", "getcwd", 0x77)
    try:
        for code in (b"\x82\x77", b"\x83\x77\0", b"\x84\x77\0\0\0"):
            payload = h.pickle(code + b")R")
            assert pickle.loads(payload) == os.getcwd()
            refused(payload, r"opcode 0x8[234], which torch.save does not write")
    finally:
        copyreg.remove_extension("os", "getcwd", 0x77)


@pytest.mark.parametrize("code", sorted(set(range(256)) - set(ACTIONS) - {ord(".")}))
def test_every_other_opcode_is_refused(code):
    refused(
        h.pickle(b"NNN" + bytes([code]) + b"0\n" + b"." * 8), f"byte 5: opcode {code:#04x}, which torch.save does not write"
    )


def test_the_opcodes_that_are_taken():
    names = b"NKMJGXTUBC)t]ae}su(hjqrcRbQ" + bytes(range(0x81, 0x82)) + b"\x85\x86\x87\x88\x89\x8a\x8c\x8d\x8e\x8f"
    assert set(ACTIONS) == set(names + b"\x90\x91\x92\x93\x94\x95\x96")


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"]K\x01K\x02s", "items are set in a list"),
        (b")K\x01K\x02s", "items are set in a tuple"),
        (b"K\x05(K\x01K\x02u", "items are set in a int"),
        (b"X\0\0\0\0(K\x01K\x02u", "items are set in a str"),
        (b"K\x05(u", "items are set in a int"),
        (b"}(K\x01u", "a key without a value"),
        (b"}K\x01a", "appended to a dict"),
        (b")(K\x01e", "appended to a tuple"),
        (b"](K\x01\x90", "added to a list"),
        (b"]}b", "attributes are given to a list"),
        (b"K\x01}b", "attributes are given to a int"),
        (b"K\x01)R", "a int is called"),
        (b"})R", "a dict is called"),
        (h.name("a", "b") + b"]R", "'a.b' is called with a list"),
        (h.name("a", "b") + b"K\x01\x81", "'a.b' is called with a int"),
        (h.name("a", "b") + b"))\x92", "keyword arguments"),
        (b"K\x01K\x02\x93", "a name that is no text"),
        (h.text("a" * 300) + h.text("b") + b"\x93", "too long"),
        (h.name("a", "b" * 300), "too long"),
        (b"c" + b"x" * 2000, "a name without an end"),
        (b"cx\n", "a name without an end"),
        (b"c\xff\nx\n", "not UTF-8"),
        (b"X\x02\0\0\0\xff\xff", "not UTF-8"),
        (b"h\x00", "memo 0 is empty"),
        (b"j\xff\xff\xff\xff", "memo 4294967295 is empty"),
        (b"Nr\xff\xff\xff\x7f", "memo 2147483647, beyond"),
        (b"q\x00", "a value is missing"),
        (b"\x94", "a value is missing"),
        (b"", "values left over"),
        (b"NN", "values left over"),
        (b"(N", "values left over"),
        (b"N(", "values left over"),
        (b"t", "a mark is missing"),
        (b"Ne", "a mark is missing"),
        (b"N(\x85", "a value is missing"),  # the value under the mark is out of reach
        (b"](a", "a value is missing"),
        (b"\x87", "a value is missing"),
        (b"N\x86", "a value is missing"),
        (b"s", "a value is missing"),
        (b"R", "a value is missing"),
        (b"b", "a value is missing"),
        (b"\x80\x02N", "opcode 0x80"),
        (b"\x95\xff\xff\xff\xff\xff\xff\xff\xffN", "a frame that is longer"),
        (b"X\xff\xff\xff\x7fab", "a text of 2147483647 bytes"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffab", "a text of 18446744073709551615 bytes"),
        (b"\x8d\xff\xff\xff\0\0\0\0\0ab", "the data ends|a text of"),
        (b"X\xff\xff\0\0ab", "the data ends"),
        (b"B\xff\xff\xff\xffab", "the data ends"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffab", "the data ends"),
        (b"\x96\xff\xff\xff\xff\xff\xff\xff\xffab", "the data ends"),
        (b"\x8a\xff\x01", "the data ends"),
        (b"}(" + h.text("a") + b"K\x01" + h.text("a") + b"K\x02u", "the key 'a' is given twice"),
        (b"}K\x07K\x01sK\x07K\x02s", "the key '?7'? is given twice"),
        (h.call(h.name("collections", "OrderedDict"), b"](K\x01e"), "not pairs"),
        (h.call(h.name("collections", "OrderedDict"), b"K\x01"), "a dict made from a int"),
        (h.call(h.name("collections", "OrderedDict"), b"]", b"]"), "a dict made from a list"),
        (b"NQ", "a NoneType as a persistent id"),
        (b")Q", "a tuple as a persistent id"),
    ],
)
def test_refused(body, match):
    refused(h.pickle(body), match)


@pytest.mark.parametrize("start", [b"", b"\x80", b"\x80\x00N.", b"\x80\x01N.", b"\x80\x06N.", b"N.", b"(dp0\n.", b"PK\3\4"])
def test_no_pickle_of_a_protocol_that_is_read(start):
    refused(start, "no pickle of protocol 2 to 5|the data ends")


def test_persistent_ids_are_tuples():
    seen = []
    found = read(h.pickle(b"K\x01\x85Q"), persistent=lambda pid: seen.append(pid) or "stored")
    assert (found, seen) == ("stored", [(1,)])
    for pid in (b"K\x01", b"]", h.text("storage")):
        refused(h.pickle(pid + b"Q"), "as a persistent id", persistent=lambda pid: None)


def test_calls_get_the_arguments_and_errors_get_the_key():
    def double(args):
        if args != (4,):
            raise WeightsError("four expected")
        return 8

    calls = {("m", "double"): double}
    assert read(h.pickle(h.call(h.name("m", "double"), b"K\x04")), calls=calls) == 8
    assert read(h.pickle(h.name("m", "double") + b"K\x04\x85\x81"), calls=calls) == 8
    body = h.mapping({"a": b"N", "conv.weight": h.call(h.name("m", "double"), b"K\x05")})
    assert refused(h.pickle(body), "four", calls=calls) == "'conv.weight': four expected"
    # a name that is not called stays a name, and one that only looks alike is not called
    assert type(read(h.pickle(h.name("m", "double")), calls=calls)) is Opaque
    assert type(read(h.pickle(h.call(h.name("m.double", "x"), b"K\x04")), calls=calls)) is Opaque


# limits


def test_depth():
    refused(h.pickle(b"(" * (MAX_DEPTH + 1)), f"more than {MAX_DEPTH} containers")
    assert read(h.pickle(b"(" * MAX_DEPTH + b"t" * MAX_DEPTH)) is not None


def test_very_deep_values():
    """Values may be nested deeper than C's stack is, as long as nothing walks down or hashes them."""
    n = 200_000
    value = read(h.pickle(b")" + b"\x85" * n))
    for _ in range(n):
        (value,) = value
    assert value == ()
    assert read(h.pickle(b"})" + b"\x85" * n + b"K\x01s")) == {}  # as a key
    refused(h.pickle(h.name("a", "b") + b")" + b"\x85" * n + b"R" + b"N"), "left over")


def test_steps_stack_memo_and_size(monkeypatch):
    monkeypatch.setattr(pickle_subset, "MAX_STEPS", 1000)
    refused(h.pickle(b"Nq\0" * 1001), "more than 1000 steps; save the model's state_dict")
    monkeypatch.setattr(pickle_subset, "MAX_STACK", 100)
    refused(h.pickle(b"N" * 101), "more than 100 values")
    assert len(read(h.pickle(b"(" + b"N" * 100 + b"t"))) == 100
    monkeypatch.setattr(pickle_subset, "MAX_MEMO", 10)
    refused(h.pickle(b"Nq\x0a"), "memo 10, beyond")
    assert read(h.pickle(b"Nq\x09")) is None
    monkeypatch.setattr(pickle_subset, "MAX_TEXT", 20)
    refused(h.pickle(h.text("a" * 21)), "a text of 21 bytes")
    assert read(h.pickle(h.text("a" * 20))) == "a" * 20
    monkeypatch.setattr(pickle_subset, "MAX_BYTES", 50)
    refused(h.pickle(h.text("a" * 20) * 3), "longer than 50 bytes; save the model's state_dict")


def test_a_list_cannot_be_copied_for_ever():
    """Each call would copy a thousand pairs for four bytes of pickle."""
    pairs = b"](" + b"".join(h.text(f"k{i}") + b"K\x01\x86" for i in range(1000)) + b"eq\x01\x85q\x02"
    body = h.name("collections", "OrderedDict") + b"q\x00" + pairs + b"((" + b"h\0h\x02Rq\x03" * 50_000 + b"t"
    refused(h.pickle(body), "steps")


def test_a_dict_is_not_copied():
    made = h.name("collections", "Counter") + b"q\x00" + h.mapping({str(i): b"N" for i in range(1000)}) + b"\x85q\x02"
    body = b"(" + made + b"h\0h\x02R" * 30_000 + b"t"
    with h.memory(3e6):
        value = read(h.pickle(body))
    assert len(value) == 30_002 and value[5] is value[2]


@pytest.mark.parametrize(
    "unit",
    [
        b"]",
        b"}",
        b")\x85",
        b"\x8f",
        b"(",
        b"C\0",
        b"G\0\0\0\0\0\0\0\x01",
        b"ca\nb\n",
        b"\x8c\x02\xc3\xa4",
        b"K\x01\x94",
        b"M\1\1",
    ],
    ids=repr,
)
def test_memory_per_step(monkeypatch, unit):
    """What a step may cost: at most 200 bytes, so that all of MAX_STEPS stay below 200 MB."""
    monkeypatch.setattr(pickle_subset, "MAX_STEPS", 20_000)
    monkeypatch.setattr(pickle_subset, "MAX_DEPTH", 10**9)
    monkeypatch.setattr(pickle_subset, "MAX_STACK", 10**9)
    data = h.pickle(unit * 20_001, 4)
    with h.memory(20_000 * 200):
        refused(data, "more than 20000 steps")


def test_bytes_are_not_copied():
    data = h.pickle(b"\x8e" + struct.pack("<Q", 10**7) + bytes(10**7))
    with h.memory(1e5):
        assert type(read(data)) is Opaque


def test_keys_of_equal_hash_are_not_compared():
    """45 000 multiples of the modulus of hashes would be compared with each other, a thousand million times."""
    body = b"".join(h.number(k * (2**61 - 1)) + b"N" for k in range(1, 90_000 // 2))
    assert read(h.pickle(b"}(" + body + b"u")) == {}


# damage


def samples():
    tree = {"state": {"w": [1, 2.5, "x" * 300]}, "args": argparse.Namespace(a=np.float64(1), b={1, 2}), "t": (1, (2, 3))}
    return [pickle.dumps(tree, protocol) for protocol in PROTOCOLS]


@pytest.mark.parametrize("data", samples(), ids=PROTOCOLS)
def test_truncated_at_every_byte(data):
    for n in range(len(data)):
        with pytest.raises(WeightsError):
            load(memoryview(data[:n]))
    assert load(memoryview(data + b"more"))[1] == len(data)


@pytest.mark.parametrize("data", samples(), ids=PROTOCOLS)
def test_flipped_bytes(data):
    """Of 1500 damaged pickles none does anything but raise WeightsError or give some value."""
    rng = random.Random(len(data))
    outcomes = collections.Counter()
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            load(memoryview(bytes(damaged)))
        except WeightsError:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
    assert min(outcomes["refused"], outcomes["read"]) > 100


def test_random_opcodes():
    """6000 programs of random opcodes, which get further than random bytes."""
    rng = random.Random(5)
    codes = [bytes([c]) for c in ACTIONS] + [b"N", b"}", b"]", b"(", b")", b"K\1", h.name("a", "b"), h.text("k")] * 8
    outcomes = collections.Counter()
    for _ in range(6000):
        data = h.pickle(b"".join(rng.choices(codes, k=rng.randrange(1, 30))) + b"\x85", rng.choice(PROTOCOLS))
        try:
            load(memoryview(data))
        except WeightsError:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
    assert min(outcomes.values()) > 50
