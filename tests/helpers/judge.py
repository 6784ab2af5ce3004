"""What every reader of weights owes for every file: tensors that are right, or one WeightsError with a sentence."""

import numpy as np
import safetensors

from refvit.errors import WeightsError

MOST = 2**26  # bytes of the tensors of a small file: what the readers unpack before they ask for a ratio


def answer(read, path):
    """The tensors that read(path) gives, or None where it refuses the file; AssertionError for whatever else comes."""
    text, cause = None, None
    try:
        tensors = read(path)
    except WeightsError as error:
        text, cause = str(error), type(error.__cause__)
    if text is None:
        _check_tensors(tensors)
        return tensors
    assert text.startswith(f"{path}: ") and text.isprintable() and len(text) - len(str(path)) < 1000, text
    assert cause not in (MemoryError, RecursionError), "it took memory before it looked"
    return None


def _check_tensors(tensors):
    for name, a in tensors.items():
        assert type(name) is str and name.isprintable() and name
        assert a.dtype.isnative and a.flags.c_contiguous and a.flags.aligned and not a.flags.writeable, name
    assert sum(a.nbytes for a in {id(a): a for a in tensors.values()}.values()) <= MOST


def as_the_library(tensors, path):
    """safetensors' own library reads what we read, and finds the same bits."""
    theirs = dict(safetensors.deserialize(path.read_bytes()))
    assert tensors.keys() == theirs.keys()
    for name, a in tensors.items():
        assert list(a.shape) == theirs[name]["shape"]
        data = bytes(theirs[name]["data"])
        if theirs[name]["dtype"] == "BF16":
            data = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).tobytes()
        assert a.tobytes() == data, name


def as_numpy(tensors, path):
    """NumPy reads what we read, without unpickling, and finds the same bits."""
    with np.load(path, allow_pickle=False) as theirs:
        assert list(tensors) == theirs.files
        for name, a in tensors.items():
            b = theirs[name]
            if b.dtype == "V2":
                b = (b.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            b = np.asarray(b, b.dtype.newbyteorder("="), order="C")
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name
