"""Just enough of protobuf's wire format to write an ONNX model, so that nothing has to be installed for it.

A message is a run of fields: a number with a kind, then an integer, a float, or bytes with their length before them. The bytes
may be a message themselves. Here a message is a list of chunks, so that large tensors are not copied on their way to the file.
Field numbers in this file are those of AttributeProto and TensorProto in onnx.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

from refvit.graph.ir import Array

Chunk = bytes | memoryview
Message = list[Chunk]
CODES = {"float32": 1, "int64": 7, "float16": 10, "float64": 11}  # TensorProto.DataType


def varint(n: int) -> bytes:
    """Seven bits a byte, the lowest first; a negative number as its 64-bit two's complement."""
    n &= 2**64 - 1
    parts = bytearray()
    while n > 127:
        parts.append(n & 127 | 128)
        n >>= 7
    return bytes([*parts, n])


def integer(number: int, value: int) -> Message:
    return [varint(number << 3) + varint(value)]


def real(number: int, value: float) -> Message:
    return [varint(number << 3 | 5) + struct.pack("<f", value)]


def field(number: int, *parts: Chunk | str) -> Message:
    """A field of bytes: text, data, or the parts of a message. Large parts are not copied."""
    chunks: Message = [part.encode() if isinstance(part, str) else part for part in parts]
    return [varint(number << 3 | 2) + varint(sum(map(len, chunks))), *chunks]


def joined(fields: Iterable[Message]) -> Message:
    return [chunk for part in fields for chunk in part]


def attribute(name: str, value: Any) -> Message:
    """AttributeProto of an integer, a float, a text or a sequence of integers."""
    if isinstance(value, int):
        content, kind = integer(3, value), 2
    elif isinstance(value, float):
        content, kind = real(2, value), 1
    elif isinstance(value, str):
        content, kind = field(4, value), 3
    else:
        content, kind = joined(integer(8, v) for v in value), 7
    return field(1, name) + content + integer(20, kind)


def tensor(name: str, a: Array) -> Message:
    """TensorProto with the values as they lie in memory, little-endian."""
    a = np.asarray(a, order="C")
    data = a.astype(a.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data
    return joined(integer(1, size) for size in a.shape) + integer(2, CODES[a.dtype.name]) + field(8, name) + field(9, data)
