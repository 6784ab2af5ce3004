"""Whole weights files of a state dict, as bytes, in every format that refvit reads. PyTorch's are made by hand."""

import io
import json

import numpy as np
from helpers import handmade
from safetensors.numpy import save

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
SUFFIXES = (".safetensors", ".npz", ".pth", ".pt")


def safetensors_file(state, metadata=None):
    return save({name: np.asarray(a, order="C") for name, a in state.items()}, metadata)


def npz_file(state, compressed=False):
    f = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(f, **state)
    return f.getvalue()


def torch_pickle(state, legacy=False, extra=()):
    """What torch.save pickles of a state dict, each tensor in a storage of its own; `extra` pairs go in front."""
    pairs = list(extra)
    for i, (name, a) in enumerate(state.items()):
        strides = [s // a.itemsize for s in np.asarray(a, order="C").strides]
        source = handmade.storage(str(i), a.size, STORAGES[a.dtype.name], legacy=legacy)
        pairs.append((name, handmade.tensor(source, a.shape, strides)))
    return handmade.pickle(handmade.mapping(pairs))


def torch_storages(state):
    """The bytes of each storage by its key."""
    return {str(i): a.tobytes() for i, a in enumerate(state.values())}


def torch_file(state, legacy=False, extra=()):
    """A file of torch.save, or, `legacy`, of the one before 1.6."""
    body, storages = torch_pickle(state, legacy, extra), torch_storages(state)
    if not legacy:
        return handmade.torch_zip(body, storages)
    return handmade.torch_legacy(body, {key: (a.size, storages[key]) for key, a in zip(storages, state.values(), strict=True)})


def shard_files(state, suffix="safetensors"):
    """{name of a file: its bytes} of a checkpoint in two shards and their index; suffix is "safetensors" or "bin"."""
    write = safetensors_file if suffix == "safetensors" else torch_file
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    files, weight_map = {}, {}
    for i in (0, 1):
        part, shard = list(state)[i::2], f"{stem}-0000{i + 1}-of-00002.{suffix}"
        files[shard] = write({name: state[name] for name in part})
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": sum(a.nbytes for a in state.values())}, "weight_map": weight_map}
    return files | {f"{stem}.{suffix}.index.json": json.dumps(index).encode()}


def write(state, path):
    """A file of the format that the suffix says; .pt is PyTorch's older one. Returns the path."""
    kinds = {".safetensors": safetensors_file, ".npz": npz_file, ".pth": torch_file, ".bin": torch_file}
    path.write_bytes(torch_file(state, legacy=True) if path.suffix == ".pt" else kinds[path.suffix](state))
    return path
