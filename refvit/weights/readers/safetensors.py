"""safetensors files, read without the library and more strictly than by it.

The format (https://github.com/huggingface/safetensors): the length of a header as 8 little-endian bytes, the header in JSON,
then the tensors. What the library lets pass and two readers may understand differently is refused here: a key given twice,
white space before the header, further fields in the entry of a tensor, booleans that are neither 0 nor 1.
"""

from __future__ import annotations

import json
import mmap
import os
from typing import Any, NamedTuple

import numpy as np

from refvit.errors import WeightsError
from refvit.graph.ir import Array
from refvit.weights.readers.limits import (
    MAX_ENTRIES,
    array_bytes,
    check_bool,
    check_name,
    from_bfloat16,
    native,
    opened,
    reading,
    shown,
)

MAX_HEADER = 100_000_000  # bytes, by the format
MAX_DEPTH = 64  # of objects and lists in each other, where what was read is shown or written again
FIELDS = {"dtype", "shape", "data_offsets"}
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


class File(NamedTuple):
    """What a safetensors file holds."""

    tensors: dict[str, Array]
    metadata: dict[str, str]
    data_bytes: int  # of all tensors as stored


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors and metadata of any safetensors file, the tensors in the order of their bytes. See `read_file`."""
    tensors, metadata, _ = read_file(path)
    return tensors, metadata


def read_file(path: str | os.PathLike[str]) -> File:
    """Read-only tensors of a safetensors file. BF16 becomes float32, which is exact; other dtypes stay as they are.

    The arrays are windows into the file, mapped into memory: reading costs little, and pages come from the disk when they are
    used. The mapping, and with it one file descriptor, lives until the last array is gone. Meanwhile nobody may shorten or
    rewrite the file in place (replacing it, as `store.save` does, is safe; Windows refuses that until the arrays are gone).
    BF16 tensors, and those that the file does not align for their dtype, are copies. WeightsError for whatever is wrong.
    """
    with opened(path) as (f, size), reading(path, "safetensors file"):
        if size < 8:
            raise WeightsError(f"it has {size} bytes, a header alone has 10; get it again")
        data = np.frombuffer(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        length = int.from_bytes(data[:8].tobytes(), "little")
        if length > min(MAX_HEADER, data.size - 8):
            raise WeightsError(
                f"it announces a header of {length} bytes, expected are at most {MAX_HEADER}, and no more than follow in its "
                f"{data.size} bytes; it is cut off, or of another format"
            )
        tensors, metadata = _parse_header(data[8 : 8 + length].tobytes())
        data = data[8 + length :]
        spans = _spans(tensors, data.size)
        return File({name: _tensor(data[a:b], tensors[name], name) for a, b, name in spans}, metadata, data.size)


def parse_json(text: bytes) -> Any:
    """JSON in which no object has a key twice and every string is Unicode; ValueError otherwise.

    Numbers are int only if they are one in every parser: -0 and what has more than 20 digits become float.
    """
    if sum(map(text.count, (b",", b"[", b"{"))) > 16 * MAX_ENTRIES:  # they cost 20 times their size as Python objects
        raise WeightsError(f"its JSON holds more than {16 * MAX_ENTRIES} values; a file of weights needs fewer")
    return json.loads(text.decode(), object_pairs_hook=_unique, parse_int=_integer, parse_constant=_no_constant)


def strict_json(text: bytes) -> Any:
    """JSON as `parse_json` has it, all of whose text is Unicode, whose numbers are finite and which is nested no deeper than
    MAX_DEPTH: whatever is read can be written again. ValueError otherwise."""
    try:
        data = parse_json(text)
    except WeightsError as error:
        raise ValueError(str(error)) from error
    level = [data]
    for _ in range(MAX_DEPTH):
        level = [v for x in level if isinstance(x, (dict, list)) for v in (x.values() if isinstance(x, dict) else x)]
    if level:
        raise ValueError(f"its JSON is nested more than {MAX_DEPTH} deep")
    json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        for text in (key, value):
            if isinstance(text, str):
                text.encode()  # half a surrogate pair, written as an escape, is not Unicode
        if key in result:
            raise WeightsError(f"its JSON has the key {shown(key)} twice; get it again")
        result[key] = value
    return result


def _integer(digits: str) -> int | float:
    return float(digits) if digits == "-0" or len(digits) > 20 else int(digits)


def _no_constant(name: str) -> None:
    raise WeightsError(f"its JSON holds {name}, which is no JSON; get it again")


def _parse_header(header: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """(description of every tensor by its name, metadata); what the descriptions say is not yet checked."""
    if header[:1] != b"{":
        raise WeightsError(f"its header begins with {header[:1]!r}, expected is '{{'; it is of another format")
    tensors = parse_json(header)
    metadata = tensors.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightsError("its __metadata__ is not a map from text to text; write it again by the safetensors library")
    if len(tensors) > MAX_ENTRIES:
        raise WeightsError(f"it holds {len(tensors)} tensors, at most {MAX_ENTRIES} are read; split it")
    return tensors, metadata


def _spans(tensors: dict[str, Any], size: int) -> list[tuple[int, int, str]]:
    """(begin, end, name) of every tensor in the order of the file, once dtypes, shapes and offsets agree with `size` bytes."""
    spans = []
    for name, entry in tensors.items():
        check_name(name)
        if not isinstance(entry, dict) or set(entry) != FIELDS:
            raise WeightsError(f"tensor {shown(name)} has to have dtype, shape, data_offsets and nothing else; get it again")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise WeightsError(
                f"tensor {shown(name)} has dtype {shown(dtype)}, readable are {', '.join(DTYPES)}; "
                "convert it to F32 where it was made"
            )
        if not isinstance(shape, list):
            raise WeightsError(f"tensor {shown(name)} has the shape {shown(shape)}, expected is a list; get it again")
        nbytes = array_bytes(shape, np.dtype(DTYPES[dtype]).itemsize, name)
        if not isinstance(offsets, list) or len(offsets) != 2 or any(type(i) is not int for i in offsets):
            raise WeightsError(
                f"tensor {shown(name)} has data_offsets {shown(offsets)}, expected are two integers; get it again"
            )
        begin, end = offsets
        if end - begin != nbytes:
            raise WeightsError(
                f"tensor {shown(name)} has {end - begin} bytes, its dtype {dtype} and shape {shape} need {nbytes}; get it again"
            )
        spans.append((begin, end, name))
    spans.sort()
    reached = 0
    for begin, end, name in spans:
        if begin != reached:
            raise WeightsError(
                f"tensor {shown(name)} begins at byte {begin} of the data, expected is {reached}: tensors follow each other "
                "without gap or overlap; write the file again by the safetensors library"
            )
        reached = end
    if reached != size:
        raise WeightsError(
            f"its tensors take {reached} bytes, but {size} follow the header; it is cut off or has been appended to"
        )
    return spans


def _tensor(data: Array, entry: dict[str, Any], name: str) -> Array:
    """The bytes of one tensor as the array that its entry describes, native, aligned and read-only."""
    dtype = np.dtype(DTYPES[entry["dtype"]])
    a = data.view(dtype).reshape(entry["shape"])
    if entry["dtype"] == "BF16":
        a = from_bfloat16(a)
    elif entry["dtype"] == "BOOL":
        check_bool(a, name)
    return native(a)
