"""Orders of axes: how another implementation lays a value out, and the way back to the reference's axes.

Letters: n images, c channels or features, h and w of a map, l tokens, d features of one head, p places within a patch. A layout
is a function that takes the candidate's array and the reference's shape, and gives the array in that shape, or None where the
two do not fit. None of them looks at numbers: where several fit, matching decides by the values.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable

import numpy as np

from refvit.errors import ConfigError
from refvit.graph.ir import Array, Shape, dims

Layout = Callable[[Array, Shape], Array | None]


def _without_ones(shape: Shape) -> Shape:
    return tuple(s for s in shape if s != 1)


def _merges(fine: Shape, coarse: Shape) -> bool:
    """Whether neighbouring axes of `fine`, merged, give `coarse`; axes of length 1 do not count."""
    rest = list(_without_ones(coarse))
    product = 1
    for s in _without_ones(fine):
        product *= s
        if rest and product == rest[0]:
            rest.pop(0)
            product = 1
    return not rest and product == 1


def _moved(array: Array, shape: Shape, axes: tuple[int, ...]) -> Array | None:
    """An array whose axes are the reference's in the order `axes`, some perhaps merged or of length 1 and left out."""
    there = tuple(shape[a] for a in axes)
    return array.reshape(there).transpose(np.argsort(axes)) if _merges(there, array.shape) else None


def as_is(array: Array, shape: Shape) -> Array | None:
    return array if array.shape == shape else None


def batch_dropped(array: Array, shape: Shape) -> Array | None:
    return array[None] if shape[:1] == (1,) and array.shape == shape[1:] else None


def singleton_axes(array: Array, shape: Shape) -> Array | None:
    """Axes of length 1 more or less, elsewhere."""
    return array.reshape(shape) if _without_ones(array.shape) == _without_ones(shape) else None


def reshaped(array: Array, shape: Shape) -> Array | None:
    """The same order in memory, neighbouring axes merged or split."""
    fits = array.size == math.prod(shape) and (_merges(shape, array.shape) or _merges(array.shape, shape))
    return array.reshape(shape) if fits else None


def nhwc(array: Array, shape: Shape) -> Array | None:
    """(n, h, w, c), also (h, w, c) of one image, of a map or of tokens row by row."""
    if len(shape) == 4:
        there = (shape[0], *shape[2:], shape[1])
        fits = array.shape == there or (shape[0] == 1 and array.shape == there[1:])
        return array.reshape(there).transpose(0, 3, 1, 2) if fits else None
    fits = len(shape) == 3 and array.ndim == 4 and array.shape[0] == shape[0] and array.shape[3] == shape[2]
    return array.reshape(shape) if fits and array.size == math.prod(shape) else None


def nchw(array: Array, shape: Shape) -> Array | None:
    """(n, c, h, w) of tokens row by row; of a map it is the reference's own order."""
    if len(shape) == 4:
        return as_is(array, shape) if array.ndim == 4 else batch_dropped(array, shape)
    if len(shape) != 3 or array.ndim != 4 or array.shape[:2] != (shape[0], shape[2]) or array.size != math.prod(shape):
        return None
    return array.reshape(shape[0], shape[2], shape[1]).transpose(0, 2, 1)


def nlc(array: Array, shape: Shape) -> Array | None:
    """(n, h w, c) of a map, also (h w, c) of one image."""
    if len(shape) != 4:
        return None
    n, c, h, w = shape
    fits = array.shape == (n, h * w, c) or (n == 1 and array.shape == (h * w, c))
    return array.reshape(n, h, w, c).transpose(0, 3, 1, 2) if fits else None


def ncl(array: Array, shape: Shape) -> Array | None:
    """(n, c, h w) of a map, (n, c, l) of tokens, also without n of one image."""
    there = (*shape[:2], math.prod(shape[2:])) if len(shape) == 4 else (shape[0], shape[2], shape[1]) if len(shape) == 3 else ()
    if not there or array.shape not in (there, there[1:] if there[0] == 1 else there):
        return None
    return array.reshape(shape) if len(shape) == 4 else array.reshape(there).transpose(0, 2, 1)


def flat_nhwc(array: Array, shape: Shape) -> Array | None:
    """A map with channels last, in one axis."""
    flat = len(shape) == 4 and array.size == math.prod(shape) and len(_without_ones(array.shape)) <= 2
    return _moved(array, shape, (0, 2, 3, 1)) if flat else None


def transposed(array: Array, shape: Shape) -> Array | None:
    """The last two of at least four axes exchanged: keys before queries, or k of every head for a product with q."""
    fits = len(shape) > 3 and array.shape == (*shape[:-2], shape[-1], shape[-2])
    return array.swapaxes(-1, -2) if fits else None


def heads_inside(array: Array, shape: Shape) -> Array | None:
    """(..., l, heads, d), or its last two axes merged, of (..., heads, l, d)."""
    rank = len(shape)
    return _moved(array, shape, (*range(rank - 3), rank - 2, rank - 3, rank - 1)) if rank > 3 else None


def heads_split(array: Array, shape: Shape) -> Array | None:
    """(n, heads, l, d) of tokens (n, l, heads d)."""
    if len(shape) != 3 or array.ndim not in (3, 4) or not array.size:
        return None
    n, l, c = shape
    d = array.shape[-1]
    if c % d or array.shape not in ((n, c // d, l, d), (n * (c // d), l, d)):
        return None
    return array.reshape(n, c // d, l, d).transpose(0, 2, 1, 3).reshape(shape)


def stripes_inside_heads(array: Array, shape: Shape) -> Array | None:
    """(n, heads, stripes, l, d) of (n, stripes, heads, l, d), as HRViT has it."""
    return _moved(array, shape, (0, 2, 1, 3, 4)) if len(shape) == 5 else None


def unfolded(array: Array, shape: Shape) -> Array | None:
    """(n p, l, c) or (n, p, l, c) of a map: the same place of all 2x2 patches together, as MobileViT's transformers see it."""
    if len(shape) != 4 or shape[2] % 2 or shape[3] % 2:
        return None
    n, c, h, w = shape
    l = h * w // 4
    if array.shape not in ((4 * n, l, c), (n, 4, l, c)):
        return None
    return array.reshape(n, 2, 2, h // 2, w // 2, c).transpose(0, 5, 3, 1, 4, 2).reshape(shape)


def folded(array: Array, shape: Shape) -> Array | None:
    """The map (n, c, h, w) whose 2x2 patches the reference has as (n p, l, c)."""
    if len(shape) != 3 or array.ndim != 4 or array.size != math.prod(shape):
        return None
    n, c, h, w = array.shape
    if (4 * n, c) != (shape[0], shape[2]) or h % 2 or w % 2:
        return None
    return array.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 3, 5, 2, 4, 1).reshape(shape)


def folded_nhwc(array: Array, shape: Shape) -> Array | None:
    """`folded` with channels last."""
    return folded(array.transpose(0, 3, 1, 2), shape) if array.ndim == 4 else None


def _patches(order: str) -> Layout:
    """Places and tokens on axes of their own, in `order`, of (n p, l, c)."""

    def layout(array: Array, shape: Shape) -> Array | None:
        if len(shape) != 3 or array.ndim != 4 or not array.shape[0] or shape[0] % array.shape[0]:
            return None
        n = array.shape[0]
        of = {"n": n, "p": shape[0] // n, "l": shape[1], "c": shape[2]}
        if of["p"] < 2 or array.shape != tuple(of[a] for a in order):
            return None
        return array.transpose([order.index(a) for a in "nplc"]).reshape(shape)

    layout.__doc__ = f"({', '.join(order)}) of MobileViT's (n p, l, c)."
    return layout


def channel_blocks(array: Array, shape: Shape) -> Array | None:
    """(n, c/b, h, w, b) of a map, the last block filled up: vectors of b channels, as hardware likes them."""
    if len(shape) != 4 or array.ndim not in (4, 5):
        return None
    a = array if array.ndim == 5 else array[None]
    n, c, h, w = shape
    b = a.shape[-1]
    if b < 2 or a.shape != (n, -(-c // b), h, w, b):
        return None
    return a.transpose(0, 1, 4, 2, 3).reshape(n, -1, h, w)[:, :c]


def class_token_dropped(array: Array, shape: Shape) -> Array | None:
    """The tokens without the one or two in front of the patches', which come back as NaN: not shown."""
    a = array[None] if array.ndim == 2 and shape[:1] == (1,) else array
    if (
        len(shape) != 3
        or a.ndim != 3
        or (a.shape[0], a.shape[2]) != (shape[0], shape[2])
        or shape[1] - a.shape[1] not in (1, 2)
    ):
        return None
    hidden = np.full((shape[0], shape[1] - a.shape[1], shape[2]), np.nan)
    return np.concatenate([hidden, a], axis=1)


LAYOUTS: dict[str, Layout] = {
    "as is": as_is,
    "batch dropped": batch_dropped,
    "singleton axes": singleton_axes,
    "nhwc": nhwc,
    "nchw": nchw,
    "nlc": nlc,
    "ncl": ncl,
    "heads inside": heads_inside,
    "heads split": heads_split,
    "reshaped": reshaped,
    "flat nhwc": flat_nhwc,
    "stripes inside heads": stripes_inside_heads,
    "unfolded": unfolded,
    "folded": folded,
    "folded nhwc": folded_nhwc,
    **{f"patches {order}": _patches(order) for order in ("nlpc", "ncpl", "nclp")},
    "channel blocks": channel_blocks,
    "transposed": transposed,
    "class token dropped": class_token_dropped,
}
PARTIAL = ("class token dropped",)  # what they leave out is NaN


def check_layout(name: str) -> None:
    """ConfigError unless there is such a layout."""
    if not isinstance(name, str) or name not in LAYOUTS:
        near = difflib.get_close_matches(str(name), LAYOUTS, 3, 0.4) or list(LAYOUTS)
        raise ConfigError(f"layout {name!r:.60} does not exist; there are {', '.join(near)}")


def arranged(name: str, array: Array, shape: Shape) -> Array | None:
    """An array in the layout `name`, in the reference's shape; None if it does not fit. ConfigError for no such layout."""
    check_layout(name)
    found = LAYOUTS[name](array, tuple(shape))
    assert found is None or found.shape == tuple(shape), f"{name}: {dims(array.shape)} for {dims(shape)}"
    return found


def candidates_for(shape: Shape, array: Array) -> list[str]:
    """Names of the layouts in which `array` can be a value of the reference's `shape`, the plainest first.

    Those that are the same for these shapes as one before are left out.
    """
    found: list[str] = []
    views: list[tuple[int, ...]] = []
    for name in LAYOUTS:
        if (there := arranged(name, array, shape)) is None:
            continue
        key = _identity(there, array)
        if key is None or key not in views:
            found.append(name)
            views += [key] if key else []
    return found


def _identity(there: Array, array: Array) -> tuple[int, ...] | None:
    """What two views of one array have in common if they show the same; None for what is no view."""
    return (
        (there.ctypes.data, *(s * (n > 1) for s, n in zip(there.strides, there.shape, strict=True)))
        if np.may_share_memory(there, array)
        else None
    )
