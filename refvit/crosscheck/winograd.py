"""Winograd's convolution F(4x4, 3x3), as fast libraries compute 3x3 convolutions: right, but several times less exact.

Lavin & Gray 2016, equation 14 and the matrices below it: y = A' [(G g G') * (B' d B)] A of a tile d of 6x6, y being 4x4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from refvit.graph.ir import Array, Node
from refvit.ops.conv import _borders, _pair

OUT, TILE = 4, 6
B = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
G = ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))  # of 1/24
A = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def suits(node: Node, weight: Array) -> bool:
    """Whether libraries would compute the node so: a 3x3 convolution without stride, dilation or groups."""
    if weight.shape[2:] != (3, 3) or node.attrs["groups"] != 1:
        return False
    return _pair("stride", node.attrs["stride"], 1) == _pair("dilation", node.attrs["dilation"], 1) == (1, 1)


def winograd(x: Array, weight: Array, bias: Array | None = None, *, padding: Any) -> Array:
    """x (n, c, h, w), weight (k, c, 3, 3), bias (k,) -> (n, k, p, q), as conv2d with this padding; in the dtype of x."""
    n, c, h, w = x.shape
    (top, bottom), (left, right) = _borders(padding)
    p, q = h + top + bottom - 2, w + left + right - 2
    rows, columns = -(-p // OUT), -(-q // OUT)
    below, beside = rows * OUT + 2 - h - top, columns * OUT + 2 - w - left
    padded = np.pad(x, ((0, 0), (0, 0), (top, below), (left, beside)))
    b, g, a = (np.array(m, x.dtype) for m in (B, G, A))
    g /= 24
    tiles = sliding_window_view(padded, (TILE, TILE), axis=(2, 3))[:, :, ::OUT, ::OUT]  # (n, c, rows, columns, 6, 6)
    points = (b @ tiles @ b.T).transpose(4, 5, 0, 2, 3, 1).reshape(TILE * TILE, -1, c)
    kernels = (g @ weight @ g.T).transpose(2, 3, 1, 0).reshape(TILE * TILE, c, -1)
    sums = (points @ kernels).reshape(TILE, TILE, n, rows, columns, -1).transpose(2, 5, 3, 4, 0, 1)
    y = (a @ sums @ a.T).transpose(0, 1, 2, 4, 3, 5).reshape(n, -1, rows * OUT, columns * OUT)[:, :, :p, :q]
    return y if bias is None else y + bias.reshape(-1, 1, 1)
