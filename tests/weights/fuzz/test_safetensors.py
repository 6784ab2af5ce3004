"""safetensors files whose headers lie: what is read, the library reads as well."""

import json

from helpers import files, judge
from helpers.strategies import EXAMPLES, INTEGERS, ODD, WORDS, same, states, try_all
from hypothesis import strategies as st

from refvit.weights.readers.safetensors import DTYPES, read_safetensors


def read(path):
    return read_safetensors(path)[0]


def moved(entries, i, k):
    """Entry i, and all that lie behind it, k bytes further on."""
    if not all(isinstance(e, dict) and isinstance(e.get("data_offsets"), list) for _, e in entries):
        return entries
    begin = entries[i][1]["data_offsets"][:1]
    out = []
    for name, entry in entries:
        offsets = entry["data_offsets"]
        if all(type(n) is int for n in [*begin, *offsets]) and offsets[:1] >= begin:
            entry = entry | {"data_offsets": [n + k for n in offsets]}
        out.append((name, entry))
    return out


@st.composite
def lying(draw):
    """A file with one to three lies in its header or about it."""
    raw = files.safetensors_file(draw(states()), draw(st.none() | st.just({"format": "np"})))
    size = int.from_bytes(raw[:8], "little")
    entries, data, after = list(json.loads(raw[8 : 8 + size]).items()), raw[8 + size :], ""
    length = None
    for _ in range(draw(st.integers(1, 3))):
        i = draw(st.integers(0, len(entries) - 1))
        name, entry = entries[i]
        lie = draw(
            st.sampled_from(["name", "dtype", "shape", "offsets", "swap", "field", "twice", "length", "data", "padding", "gap"])
        )
        if lie == "name":
            entries[i] = (draw(WORDS | st.just("__metadata__") | st.sampled_from([n for n, _ in entries])), entry)
        elif lie == "twice":
            entries.insert(draw(st.integers(0, len(entries))), (name, entry))
        elif lie == "length":
            length = draw(INTEGERS.filter(lambda n: 0 <= n < 2**64) | st.integers(max(size - 9, 0), size + 9))
        elif lie == "data":
            data = draw(st.sampled_from([data[:-1], data + b"\0", data + data, b"", data[1:]]))
        elif lie == "gap":
            k = draw(st.integers(1, 9))
            entries, data = moved(entries, i, k), data + bytes(k)
        elif lie == "padding":
            after = draw(st.sampled_from([" ", "\n", "\0", "}", "{}", " " * 200]))
        elif isinstance(entry, dict) and entry.keys() >= {"dtype", "shape", "data_offsets"}:
            entries[i] = (name, changed := dict(entry))
            if lie == "dtype":
                changed["dtype"] = draw(st.sampled_from(sorted(DTYPES)) | ODD)
            elif lie == "shape":
                changed["shape"] = draw(ODD | st.lists(ODD, max_size=9) | st.lists(st.integers(0, 8), max_size=4))
            elif lie == "offsets":
                changed["data_offsets"] = draw(
                    ODD | st.lists(ODD, max_size=3) | st.lists(st.integers(0, 99), min_size=2, max_size=2)
                )
            elif lie == "field":
                changed[draw(WORDS)] = draw(ODD)
            else:
                other = entries[draw(st.integers(0, len(entries) - 1))][1]
                key = draw(st.sampled_from(sorted(changed)))
                changed[key] = other.get(key, 0) if isinstance(other, dict) else other
    header = ("{" + ",".join(f"{json.dumps(n)}:{json.dumps(e)}" for n, e in entries) + "}" + after).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


@EXAMPLES
def test_valid_files_are_read(tmp_path, examples):
    def check(state):
        (tmp_path / "x").write_bytes(files.safetensors_file(state))
        same(judge.answer(read, tmp_path / "x"), state)

    try_all(examples, states(), check)


@EXAMPLES
def test_headers_that_lie(tmp_path, examples):
    def check(content):
        (tmp_path / "x").write_bytes(content)
        if (found := judge.answer(read, tmp_path / "x")) is not None:
            judge.as_the_library(found, tmp_path / "x")
            return True

    assert 0 < try_all(5 * examples, lying(), check) < 1
