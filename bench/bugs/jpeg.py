"""A JPEG decoder that is not Pillow's: exact inverse transform, chroma repeated where libjpeg-turbo interpolates it.

Baseline files of three components alone, as Pillow writes them: T.81's Huffman coding, no restarts. Decoders in use (those of
browsers, of GPUs, of FPGA cores) differ from each other in just these two steps, by some grey levels at coloured edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refvit.graph.ir import Array

Table = dict[str, int]  # bits of a code -> symbol
ZIGZAG = sorted(range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8)))
COSINES = np.array([[(0.5 if k else 8**-0.5) * np.cos((2 * n + 1) * k * np.pi / 16) for n in range(8)] for k in range(8)])


@dataclass
class Component:
    """across, down: blocks of it in a unit of the picture. coefficients: of its blocks, by row and column."""

    across: int
    down: int
    steps: int
    dc: int = 0
    ac: int = 0
    last: int = 0
    coefficients: Any = None


@dataclass
class File:
    size: tuple[int, int] = (0, 0)
    steps: dict[int, Array] = field(default_factory=dict)
    tables: dict[int, Table] = field(default_factory=dict)
    components: dict[int, Component] = field(default_factory=dict)
    scan: bytes = b""


class Bits:
    """The bits of a scan, from the first on."""

    def __init__(self, data: bytes) -> None:
        data = data.replace(b"\xff\x00", b"\xff")
        self.text, self.at = f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}", 0

    def symbol(self, table: Table) -> int:
        for length in range(1, 17):
            found = table.get(self.text[self.at : self.at + length])
            if found is not None:
                self.at += length
                return found
        raise ValueError("no code of the table")

    def number(self, length: int) -> int:
        if length == 0:
            return 0
        bits = self.text[self.at : self.at + length]
        self.at += length
        return int(bits, 2) - (0 if bits[0] == "1" else (1 << length) - 1)


def decode(path: Path) -> Array:
    """uint8 (h, w, 3) in RGB, as it is stored: not turned."""
    file = _parsed(path.read_bytes())
    _read(file)
    across, down = (max(getattr(c, side) for c in file.components.values()) for side in ("across", "down"))
    h, w = file.size
    planes = []
    for c in file.components.values():
        blocks = COSINES.T @ (c.coefficients * file.steps[c.steps]) @ COSINES + 128
        plane = blocks.transpose(0, 2, 1, 3).reshape(blocks.shape[0] * 8, -1).round().clip(0, 255)
        planes.append(plane.repeat(down // c.down, 0).repeat(across // c.across, 1)[:h, :w])
    y, blue, red = planes[0], planes[1] - 128, planes[2] - 128
    rgb = (y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue)
    return np.stack(rgb, -1).round().clip(0, 255).astype(np.uint8)


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(marker, contents, where it ends)"""
    at = 2
    while at < len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, data[at + 4 : at + 2 + length], at + 2 + length
        at += 2 + length


def _parsed(data: bytes) -> File:
    file = File()
    for marker, body, end in _segments(data):
        if marker == 0xDB:
            for at in range(0, len(body), 65):
                steps = np.zeros(64)
                steps[ZIGZAG] = list(body[at + 1 : at + 65])
                file.steps[body[at]] = steps.reshape(8, 8)
        elif marker == 0xC4:
            _tables(body, file.tables)
        elif marker == 0xC0:
            file.size = (int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big"))
            for at in range(6, len(body), 3):
                file.components[body[at]] = Component(body[at + 1] >> 4, body[at + 1] & 15, body[at + 2])
        elif marker in (0xC1, 0xC2, 0xDD):
            raise ValueError("not a baseline file without restarts")
        elif marker == 0xDA:
            for at in range(1, 1 + 2 * body[0], 2):
                file.components[body[at]].dc, file.components[body[at]].ac = body[at + 1] >> 4, 16 + (body[at + 1] & 15)
            file.scan = data[end : data.rindex(b"\xff\xd9")]
            return file
    raise ValueError("no scan")


def _tables(body: bytes, tables: dict[int, Table]) -> None:
    at = 0
    while at < len(body):
        counts, symbols, code = body[at + 1 : at + 17], at + 17, 0
        table = tables[body[at]] = {}
        for length, count in enumerate(counts, 1):
            for symbol in body[symbols : symbols + count]:
                table[f"{code:0{length}b}"] = symbol
                code += 1
            code, symbols = code * 2, symbols + count
        at = symbols


def _read(file: File) -> None:
    """Fill the coefficients from the scan."""
    bits, parts = Bits(file.scan), list(file.components.values())
    rows = -(-file.size[0] // (8 * max(c.down for c in parts)))
    columns = -(-file.size[1] // (8 * max(c.across for c in parts)))
    for c in parts:
        c.coefficients = np.zeros((rows * c.down, columns * c.across, 8, 8))
    for unit in range(rows * columns):
        row, column = divmod(unit, columns)
        for c in parts:
            for i in range(c.down * c.across):
                block = _block(bits, c, file.tables)
                c.coefficients[row * c.down + i // c.across, column * c.across + i % c.across] = block


def _block(bits: Bits, c: Component, tables: dict[int, Table]) -> Array:
    found = np.zeros(64)
    c.last += bits.number(bits.symbol(tables[c.dc]))
    found[0], at = c.last, 1
    while at < 64:
        zeros, length = divmod(bits.symbol(tables[c.ac]), 16)
        if length == 0 and zeros != 15:
            break
        at += zeros
        if length:
            found[ZIGZAG[at]] = bits.number(length)
        at += 1
    return found.reshape(8, 8)
