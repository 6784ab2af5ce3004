"""MobileViT's unfold and fold: from a map to one sequence per position within the patch, and back.

(Mehta & Rastegari 2021, section 3.1 and figure 1b. Not torch.nn.Unfold, which keeps whole windows together.)
"""

from __future__ import annotations

import math

from refvit.errors import ShapeError
from refvit.graph.ir import Array, HasShape, Shape
from refvit.graph.trace import op
from refvit.ops.resize import resize


def _grid(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Patches per column and per row; a map that they do not tile is resized to the next multiple."""
    return math.ceil(size[0] / patch[0]), math.ceil(size[1] / patch[1])


def _unfold_shape(x: HasShape, *, patch: tuple[int, int]) -> Shape:
    if len(x.shape) != 4 or min(patch) < 1:
        raise ShapeError(f"unfold_patches: a map (n, c, h, w) and a patch of at least 1x1 expected, got {x.shape}, {patch}")
    n, c, h, w = x.shape
    return n * math.prod(patch), math.prod(_grid((h, w), patch)), c


@op(shape=_unfold_shape, composite=True)
def unfold_patches(x: Array, *, patch: tuple[int, int]) -> Array:
    """x (n, c, h, w) -> (n * ph * pw, l, c): tokens of the same place (i, j) in all l patches form a sequence.

    y[b * ph * pw + i * pw + j, row * columns + column, c] = x[b, c, row * ph + i, column * pw + j]. A map whose sides are no
    multiples of the patch is first resized to the next ones (bilinear, align_corners=False).
    """
    n, c, h, w = x.shape
    ph, pw = patch
    rows, columns = _grid((h, w), patch)
    if (h, w) != (rows * ph, columns * pw):
        x = resize(x, size=(rows * ph, columns * pw), mode="bilinear", align_corners=False)
    x = x.reshape(n, c, rows, ph, columns, pw).transpose(0, 3, 5, 2, 4, 1)  # (n, ph, pw, rows, columns, c)
    return x.reshape(n * ph * pw, rows * columns, c)


def _fold_shape(x: HasShape, *, patch: tuple[int, int], size: tuple[int, int]) -> Shape:
    if min(patch) < 1 or min(size) < 1:
        raise ShapeError(f"fold_patches: {x.shape} needs a patch and a size of at least 1x1, got {patch} and {size}")
    area = math.prod(patch)
    if len(x.shape) != 3 or x.shape[0] % area or x.shape[1] != math.prod(_grid(size, patch)):
        raise ShapeError(
            f"fold_patches: {x.shape} does not fit a map of {size} in patches of {patch}, which takes "
            f"(n * {area}, {math.prod(_grid(size, patch))}, c)"
        )
    return x.shape[0] // area, x.shape[2], *size


@op(shape=_fold_shape, composite=True)
def fold_patches(x: Array, *, patch: tuple[int, int], size: tuple[int, int]) -> Array:
    """The inverse of `unfold_patches`: x (n * ph * pw, l, c) -> (n, c, *size), resized back where unfold had to resize."""
    ph, pw = patch
    rows, columns = _grid(size, patch)
    n, c = x.shape[0] // (ph * pw), x.shape[2]
    x = x.reshape(n, ph, pw, rows, columns, c).transpose(0, 5, 3, 1, 4, 2)  # (n, c, rows, ph, columns, pw)
    x = x.reshape(n, c, rows * ph, columns * pw)
    if size != (rows * ph, columns * pw):
        x = resize(x, size=size, mode="bilinear", align_corners=False)
    return x
