"""Files of every format cut up and put together in other ways: refused in a sentence, or read, and never anything else."""

import collections
import io
import json
import random

import numpy as np
import pytest
from helpers import handmade
from safetensors.numpy import save

from refvit.errors import WeightsError
from refvit.weights.readers.checkpoint import read_checkpoint

RNG = np.random.default_rng(6)
STATE = {"a.weight": RNG.standard_normal((3, 4)).astype(np.float32), "a.bias": RNG.standard_normal(4).astype(np.float32)}


def torch_file(legacy):
    pairs, storages = [], {}
    for key, (name, a) in enumerate(STATE.items()):
        source = handmade.storage(str(key), a.size, legacy=legacy)
        pairs.append((name, handmade.tensor(source, a.shape, [s // 4 for s in a.strides])))
        storages[str(key)] = (a.size, a.tobytes()) if legacy else a.tobytes()
    body = handmade.pickle(handmade.mapping(pairs))
    return handmade.torch_legacy(body, storages) if legacy else handmade.torch_zip(body, storages)


def npz():
    buffer = io.BytesIO()
    np.savez(buffer, **STATE)
    return buffer.getvalue()


def index(shard):
    return json.dumps({"metadata": {"total_size": 64}, "weight_map": dict.fromkeys(STATE, shard)}).encode()


SHARDS = {"model.safetensors": save(STATE), "pytorch_model.bin": torch_file(False)}
FILES = [save(STATE, {"format": "np"}), npz(), torch_file(False), torch_file(True), *map(index, SHARDS)]


def spliced(rng):
    """Two files, a beginning of one and an end of the other, or one file with a piece of it moved, doubled or left out."""
    one, two = rng.choice(FILES), rng.choice(FILES)
    i, j = sorted(rng.choices(range(len(one) + 1), k=2))
    k = rng.randrange(len(two) + 1)
    return rng.choice((
        lambda: one[:i] + two[k:],
        lambda: one[:i] + two[min(i, len(two)) :],
        lambda: one + two,
        lambda: one[:j] + one[i:],
        lambda: one[:i] + one[j:],
        lambda: one[j:] + one[:j],
        lambda: one[:i] + two[k : k + rng.randrange(64)] + one[j:],
        lambda: one[:i] + bytes(j - i) + one[j:],
    ))()  # fmt: skip


def test_4000_splices(tmp_path):
    for shard, content in SHARDS.items():
        (tmp_path / shard).write_bytes(content)
    path, rng = tmp_path / "x", random.Random(12)
    outcomes = collections.Counter()
    for _ in range(4000):
        path.write_bytes(spliced(rng))
        try:
            found = read_checkpoint(path)
        except WeightsError as error:
            text = str(error)
            outcomes[text.startswith(f"{path}: ") and text.isprintable() and len(text) < 1000] += 1
            continue
        outcomes["read"] += 1
        for a in found.tensors.values():
            if a.nbytes > 4096 or a.flags.writeable:
                pytest.fail(f"{a.shape} {a.dtype}")
    assert not outcomes[False]
    assert outcomes["read"] > 30 and outcomes[True] > 2000


@pytest.mark.parametrize("content", FILES)
def test_the_whole_files_are_read(tmp_path, content):
    for shard, data in SHARDS.items():
        (tmp_path / shard).write_bytes(data)
    (tmp_path / "x").write_bytes(content)
    found = read_checkpoint(tmp_path / "x").tensors
    assert found.keys() == STATE.keys()
    for name, a in STATE.items():
        np.testing.assert_array_equal(found[name], a, strict=True)
