"""Indices of shards that lie: what is read is what the index names, and as the shards hold it."""

import json

from helpers import files, judge
from helpers.strategies import EXAMPLES, ODD, WORDS, same, states, try_all
from hypothesis import strategies as st

from refvit.weights.readers.shards import read_shards

INDEX = "index.json"


@st.composite
def sharded(draw, lies):
    """(state, {name of a file: its bytes}) with that many lies in the index, or in the files that it names."""
    state = draw(states(least=2))
    parts = files.shard_files(state, draw(st.sampled_from(["safetensors", "bin"])))
    index = json.loads(parts.pop(next(name for name in parts if name.endswith(".json"))))
    shards, where = list(parts), index["weight_map"]
    for _ in range(lies):
        lie = draw(st.sampled_from(["size", "file", "drop", "add", "top", "gone", "swap", "cut"]))
        name = draw(st.sampled_from(list(state)))
        if lie == "size":
            index["metadata"] = draw(ODD | st.fixed_dictionaries({"total_size": ODD}))
        elif lie == "file":
            where[name] = draw(st.sampled_from(shards) | ODD | WORDS.map(lambda w: w + ".safetensors"))
        elif lie == "drop":
            where.pop(name, None)
        elif lie == "add":
            where[draw(WORDS)] = draw(st.sampled_from(shards))
        elif lie == "top":
            index[draw(st.sampled_from(["weight_map", "metadata", "x"]))] = draw(ODD)
            where = index["weight_map"] if isinstance(index.get("weight_map"), dict) else {}
        elif lie == "gone":
            parts[shards[0]] = None
        elif lie == "swap":
            parts[shards[0]], parts[shards[1]] = parts[shards[1]], parts[shards[0]]
        elif parts[shards[1]]:
            parts[shards[1]] = parts[shards[1]][: draw(st.integers(0, len(parts[shards[1]]) - 1))]
    return state, parts | {INDEX: json.dumps(index).encode()}


def put(folder, parts):
    for path in folder.iterdir():
        path.unlink()
    for name, raw in parts.items():
        if raw is not None:
            (folder / name).write_bytes(raw)


def read(path):
    return read_shards(path)[0]


@EXAMPLES
def test_valid_shards_are_read(tmp_path, examples):
    def check(case):
        state, parts = case
        put(tmp_path, parts)
        same(judge.answer(read, tmp_path / INDEX), state)

    try_all(examples, sharded(0), check)


@EXAMPLES
def test_indices_that_lie(tmp_path, examples):
    def check(case):
        state, parts = case
        put(tmp_path, parts)
        if (found := judge.answer(read, tmp_path / INDEX)) is not None:
            same(found, {name: state[name] for name in json.loads(parts[INDEX])["weight_map"]})
            return True

    assert 0 < try_all(3 * examples, st.integers(1, 3).flatmap(sharded), check) < 1
