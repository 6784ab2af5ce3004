"""Against torch itself, where it is installed: what torch.save writes, and what torch.load makes of the tests' own files."""

import argparse
import collections
import random
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import handmade as h

from refvit.errors import WeightsError
from refvit.weights.readers.torch_legacy import read_torch_legacy
from refvit.weights.readers.torch_state import state_of
from refvit.weights.readers.torch_zip import read_torch_zip

torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")

DTYPES = [torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.bool]
DTYPES += [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64]
READERS = Path(__file__).parent.parent / "weights" / "readers"
FORMATS = {"zip": read_torch_zip, "legacy": read_torch_legacy}


def save(tree, path, form, protocol=2):
    torch.save(tree, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zip")


def as_numpy(tensor):
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).contiguous().numpy()


def same(found, expected):
    """Bit by bit, NaN and the sign of zero included."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        value, a = as_numpy(tensor), found[name]
        assert (a.dtype, a.shape, a.tobytes()) == (value.dtype, value.shape, value.tobytes()), name


def random_state(rng):
    """Tensors of any dtype, of random bits; new ones, and views of those that are there."""
    state, bases = collections.OrderedDict(), []
    for i in range(int(rng.integers(1, 12))):
        if not bases or rng.random() < 0.6:
            dtype = DTYPES[rng.integers(len(DTYPES))]
            shape = rng.integers(0, 6, rng.integers(0, 5)).tolist() if rng.random() < 0.9 else [700]
            count = int(np.prod(shape, dtype=int)) * dtype.itemsize
            raw = rng.integers(0, 2 if dtype == torch.bool else 256, max(count, 1), dtype=np.uint8)
            t = torch.from_numpy(raw)[:count].view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
            bases.append(t.clone())
        t = bases[rng.integers(len(bases))]
        kind = rng.integers(8)
        if kind == 1:
            t = t.permute(rng.permutation(t.ndim).tolist())
        elif kind == 2 and t.ndim:
            t = t[int(rng.integers(0, len(t) + 1)) :]
        elif kind == 3 and t.ndim and len(t):
            t = t[:: int(rng.integers(1, 4))]
        elif kind == 4:
            t = t.expand([3, *t.shape])
        elif kind == 5:
            t = t.unsqueeze(0)
        elif kind == 6 and t.numel() > 1:
            t = t.flatten()[1]
        elif kind == 7 and t.is_floating_point():
            t = torch.nn.Parameter(t)
        state[f"layer{i}.weight"] = t
    return state


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_random_state_dicts(tmp_path, form, protocol):
    rng = np.random.default_rng(protocol)
    for i in range(60):
        state = random_state(rng)
        path = tmp_path / f"{i}.pth"
        save(state, path, form, protocol)
        same(state_of(FORMATS[form](path))[0], state)


@pytest.mark.parametrize("form", FORMATS)
def test_what_a_trainer_saves(tmp_path, form):
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.LazyLinear(5))
    net(torch.randn(2, 3, 6, 6)).sum().backward()
    optimizer = torch.optim.AdamW(net.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    optimizer.step()
    scheduler.step()
    config = argparse.Namespace(
        lr=0.1, where=Path("/a/b"), dtype=torch.float16, device=torch.device("cpu"), shape=torch.Size([1])
    )
    tree = {
        "model": torch.nn.DataParallel(net).state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng": torch.get_rng_state(),
        "numpy": {"scalar": np.float64(3), "array": np.arange(5), "bytes": b"x"},
        "args": config,
        "random": random.getstate(),
        "best": torch.tensor(0.5),
    }
    save(tree, tmp_path / "x.pth", form)
    arrays, path = state_of(FORMATS[form](tmp_path / "x.pth"))
    same(arrays, net.state_dict())
    assert path == ["model", "module."]
    save({**tree, "model_ema": net.state_dict()}, tmp_path / "y.pth", form)
    with pytest.raises(WeightsError, match=r"key='model' .* or key='model_ema'"):
        state_of(FORMATS[form](tmp_path / "y.pth"))
    same(state_of(FORMATS[form](tmp_path / "y.pth"), key="model_ema")[0], net.state_dict())


@pytest.mark.parametrize("form", FORMATS)
def test_tensors_that_numpy_lacks(tmp_path, form):
    w = torch.randn(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        odd = {
            "complex64": torch.ones(2, dtype=torch.complex64),
            "has flags": torch.ones(3, dtype=torch.complex64).conj().imag,
            "float8_e4m3fn": torch.ones(2).to(torch.float8_e4m3fn),
            "_rebuild_sparse_tensor": torch.eye(2).to_sparse(),
            "_rebuild_qtensor": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            "_rebuild_meta_tensor": torch.ones(2, device="meta"),
        }
        for reason, tensor in odd.items():
            save({"w": w, "odd.weight": tensor}, tmp_path / "x.pth", form)
            with pytest.raises(WeightsError, match=f"tensor 'odd.weight' .*{reason}"):
                state_of(FORMATS[form](tmp_path / "x.pth"))
            save({"model": {"w": w}, "optimizer": {"odd": tensor}}, tmp_path / "y.pth", form)
            same(state_of(FORMATS[form](tmp_path / "y.pth"))[0], {"w": w})


def test_whole_modules(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for form in FORMATS:
            save(torch.nn.Linear(2, 2), tmp_path / form, form)
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script")
    with pytest.raises(WeightsError, match=r"object of 'torch.nn.modules.linear.Linear'"):
        state_of(read_torch_zip(tmp_path / "zip"))
    with pytest.raises(WeightsError, match="a whole module was saved"):
        read_torch_legacy(tmp_path / "legacy")
    with pytest.raises(WeightsError, match="TorchScript"):
        read_torch_zip(tmp_path / "script")


def test_more_than_4_gib(tmp_path):
    """The layout alone: torch leaves a hole in the file for every storage."""
    path = tmp_path / "large.pth"
    with torch.serialization.skip_data():
        torch.save({"w": torch.empty(2**30 + 100), "v": torch.empty(5)}, path)
    tree = read_torch_zip(path, check_crc=False).tree
    with zipfile.ZipFile(path) as z:
        assert {i.filename: i.file_size for i in z.infolist()}["large/data/0"] == 2**32 + 400
    with path.open("r+b") as f:  # the last element of the first storage, and the first of the second
        for tensor, index in ((tree["w"], 2**30 + 99), (tree["v"], 0)):
            f.seek(tensor.storage.start + 4 * index)
            f.write(np.float32(2.5).tobytes())
    arrays, _ = state_of(read_torch_zip(path, check_crc=False))
    found = torch.load(path, mmap=True, weights_only=True)
    for name, index in (("w", -1), ("v", 0)):
        assert arrays[name].shape == tuple(found[name].shape)
        assert arrays[name][index] == found[name][index] == 2.5


# what torch says of the files that the tests write


X = np.random.default_rng(3).standard_normal(12).astype(np.float32)


def handmade():
    """(format, bytes) of files that both have to read."""
    view = h.several(h.text("8"), h.number(4), h.number(6))
    source = h.storage("0", 12)
    legacy = h.storage("0", 12, legacy=True)
    rest = (b"\x89", h.ORDERED, h.name("torch", "uint32"))
    untyped = h.storage("0", 48, "UntypedStorage", module="torch.storage")
    raw = h.call(h.name("torch._utils", "_rebuild_tensor_v3"), untyped, b"K\1", h.numbers([11]), h.numbers([1]), *rest)
    zipped = {"a": h.tensor(source, [3, 2], [1, 4], 2), "b": h.vector("0", 12), "e": h.tensor(source, [0], [1], 12)}
    old = {
        "a": h.tensor(legacy, [12], [1]),
        "b": h.tensor(h.storage("0", 12, legacy=True, view=view), [2, 2], [3, 1], 1),
        "p": h.call(h.name("torch._utils", "_rebuild_parameter"), h.tensor(legacy, [2], [5], 3), b"\x88", h.ORDERED),
    }
    yield "zip", h.torch_zip(h.pickle(h.mapping(zipped)), {"0": X.tobytes()})
    yield "zip", h.torch_zip(h.pickle(h.mapping({"u": raw})), {"0": X.tobytes()})
    yield "zip", h.torch_zip(h.pickle(h.mapping(zipped, h.ORDERED)), {"0": X.tobytes()}, zip64=False)
    yield "legacy", h.torch_legacy(h.pickle(h.mapping(old)), {"0": (12, X.tobytes())})


@pytest.mark.parametrize(("form", "data"), list(handmade()))
def test_torch_reads_the_handmade_files_alike(tmp_path, form, data):
    path = tmp_path / "x.pth"
    path.write_bytes(data)
    same(state_of(FORMATS[form](path))[0], torch.load(path, weights_only=True))


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_files_that_both_read_are_read_alike(tmp_path, form):
    """Of 3000 changed pickles, those that are read here are refused by torch or give the same there."""
    if form == "zip":
        with zipfile.ZipFile(READERS / "data" / "views.pth") as z:
            names = {n.partition("/")[2]: n for n in z.namelist()}
            storages = {n[5:]: z.read(full) for n, full in names.items() if n.startswith("data/")}
            body = z.read(names["data.pkl"])
    else:
        body, storages = (READERS / "data" / "views_legacy.pth").read_bytes(), {}
    rng = random.Random(5)
    path = tmp_path / "x.pth"
    outcomes = collections.Counter()
    for _ in range(3000):
        damaged = bytearray(body)
        for _ in range(rng.choice([1, 1, 2, 4])):
            damaged[rng.randrange(len(body))] = rng.choice([rng.randrange(256), rng.choice(body)])
        h.put(path, h.torch_zip(bytes(damaged), storages) if form == "zip" else damaged)
        try:
            arrays, keys = state_of(FORMATS[form](path))
        except WeightsError:
            outcomes["refused"] += 1
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = torch.load(path, weights_only=True)
        except Exception:  # of any kind
            outcomes["read here alone"] += 1
            continue
        outcomes["read by both"] += 1
        for key in keys:
            theirs = {k.removeprefix("module."): v for k, v in theirs.items()} if key == "module." else theirs[key]
        same(arrays, {k: v for k, v in theirs.items() if isinstance(k, str) and isinstance(v, torch.Tensor)})
    assert outcomes["read by both"] > 200
    assert outcomes["refused"] > 300
