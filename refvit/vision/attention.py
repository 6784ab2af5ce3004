"""Where a model looks: its attention weights, brought from tokens and stripes back to places in the image.

Pure functions on arrays come first, one for each way in which the families arrange their tokens. Below them is what puts them
to use for a whole graph, and the result. The weights are what the softmax of each layer gives, see `Model.intermediates`.
"""

from __future__ import annotations

import io
import numbers
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refvit.errors import ConfigError, ShapeError, UnsupportedError
from refvit.files import write_atomic
from refvit.graph.ir import Array, Graph
from refvit.vision.answers import DRAWN
from refvit.vision.pixels import Picture
from refvit.vision.preprocess import Preprocess
from refvit.vision.result import KINDS

if TYPE_CHECKING:
    from PIL import Image

SOFTMAX = "*attention*.softmax"  # names of attention weights among the intermediates; HRNet's softmaxes have others
PANELS = 16  # a picture shows so many layers or heads by default: no layer of ViT has more heads

Place = tuple[int, int]  # row and column
Size = tuple[int, int]  # rows and columns


def rollout(layers: Sequence[Array]) -> Array:
    """Attention rollout: how much of every token is in every other after all layers (Abnar & Zuidema 2020, arXiv:2005.00928).

    layers: the weights (heads, l, l) of each layer, first layer first. Returns float64 (l, l), whose rows sum to 1.

    The weights of a layer are the mean over its heads. The shortcut around the attention counts as much as the attention, so
    the identity is added and the sum halved. Rows are normalised, and the layers are multiplied. ShapeError without layers, or
    with layers that do not fit together.
    """
    shapes = sorted({w.shape for w in layers})
    if not shapes or any(len(s) != 3 or s[0] < 1 or s[1] != s[2] or s[1:] != shapes[0][1:] for s in shapes):
        raise ShapeError(f"rollout: at least one layer (heads, l, l) with the same l expected, got {shapes or 'none'}")
    total = np.eye(shapes[0][1])
    for weights in layers:
        mixed = (weights.mean(axis=0, dtype=np.float64) + np.eye(len(total))) / 2
        total = mixed / mixed.sum(axis=1, keepdims=True) @ total
    return total


def class_token(weights: Array, *, grid: Size) -> Array:
    """ViT: the class token's weights for the patches. weights (..., l, l) -> (..., rows, columns), a view.

    The class token is the first. The patches are the last rows * columns tokens, row by row. What a map lacks to a sum of 1 the
    class token gives to itself and, in a distilled DeiT, to the distillation token, of which there is no map of its own.
    (Dosovitskiy et al. 2020, section 3.1; Touvron et al. 2020, section 4.) ShapeError if there are fewer tokens.
    """
    rows, columns = grid
    prefix = weights.shape[-1] - rows * columns
    if weights.ndim < 2 or weights.shape[-1] != weights.shape[-2] or prefix < 1:
        raise ShapeError(f"class_token: (..., l, l) with l above {rows} * {columns} expected, got {weights.shape}")
    return weights[..., 0, prefix:].reshape(*weights.shape[:-2], rows, columns)


def patch_attention(weights: Array, at: Place, *, size: Size, patch: Size) -> Array:
    """MobileViT: what the pixel `at` of the map attends to. weights (ph * pw, heads, l, l) -> (heads, rows, columns), a view.

    size: of the map that is unfolded, multiples of the patch (ph, pw)

    A pixel attends to the pixels of the same place within all l = rows * columns patches, so the value at (row, column) is its
    weight for the pixel (row * ph + at[0] % ph, column * pw + at[1] % pw). Each map sums to 1. (Mehta & Rastegari 2021,
    section 3.1.) The order is that of `ops.unfold_patches`.
    """
    (ph, pw), (rows, columns) = patch, (size[0] // patch[0], size[1] // patch[1])
    l, whole = rows * columns, size == (rows * ph, columns * pw)
    if weights.ndim != 4 or weights.shape[0] != ph * pw or weights.shape[2:] != (l, l) or not whole:
        raise ShapeError(f"patch_attention: {weights.shape} given for a map of {size} in patches of {patch}")
    place, token = at[0] % ph * pw + at[1] % pw, at[0] // ph * columns + at[1] // pw
    return weights[place, :, token].reshape(-1, rows, columns)


def stripe_weights(weights: Array, at: Place, *, size: Size, stripe: int) -> Array:
    """HRViT: what the pixel `at` of the map attends to in its horizontal stripe.

    weights (windows, heads, l, l) with l = stripe * w, of a map of size (h, w) that was padded below to whole stripes
    -> (heads, h, w), zero outside of the stripe and without the padding. Each map sums to 1 but for the weight of padded
    pixels, whose logits are 100 lower. (Gu et al. 2021, section 3.2.) The order is that of `ops.stripe_attention`.
    """
    h, w = size
    if weights.ndim != 4 or weights.shape[0] != -(-h // stripe) or weights.shape[2:] != (stripe * w,) * 2:
        raise ShapeError(f"stripe_weights: {weights.shape} given for a map of {size} in stripes of {stripe}")
    window, row = divmod(at[0], stripe)
    first, last = window * stripe, min(h, (window + 1) * stripe)
    maps = np.zeros((weights.shape[1], h, w), weights.dtype)
    maps[:, first:last] = weights[window, :, row * w + at[1]].reshape(-1, stripe, w)[:, : last - first]
    return maps


def cross(horizontal: Array, vertical: Array, at: Place, *, size: Size, stripe: int) -> Array:
    """HRViT: the cross-shaped window of the pixel `at`. Returns (2 * heads, h, w): heads of the rows, then of the columns.

    horizontal, vertical: weights as in `stripe_weights`; those of the vertical stripes are of the transposed map (w, h)

    Either half of the heads has half of the channels. So the mean over all heads, which sums to 1 as they do, is the cross.
    """
    rows = stripe_weights(horizontal, at, size=size, stripe=stripe)
    columns = stripe_weights(vertical, at[::-1], size=size[::-1], stripe=stripe)
    return np.concatenate([rows, columns.swapaxes(1, 2)])


def map_pixel(at: tuple[int, int], picture: Size, size: Size) -> Place:
    """Row and column of a map of `size` that covers the centre of the pixel at = (x, y) of a picture of (height, width)."""
    y, x = ((2 * p + 1) * s // (2 * whole) for p, s, whole in zip(at[::-1], size, picture, strict=True))
    return y, x


def check_attends(model: str, parameters: Iterable[str]) -> None:
    """UnsupportedError if a model with parameters of these names has no attention between places of an image."""
    if not any(".attn." in name for name in parameters):
        raise UnsupportedError(
            f"{model}: no attention between places of the image that could be shown; ViT, DeiT, MobileViT and HRViT have it"
        )


def query_point(graph: Graph, at: Any) -> tuple[int, int] | None:
    """The pixel (x, y) of the graph's input that is asked about: `at`, by default the centre; None for ViT.

    ConfigError if `at` is no pixel of the input, or is given for ViT.
    """
    height, width = _input_size(graph)
    if not any(node.op in ("unfold_patches", "stripe_attention") for node in graph):
        if at is not None:
            raise ConfigError(f"at: of ViT the class token is asked, which has no place in the image; got {at!r:.60}")
        return None
    if at is None:
        return width // 2, height // 2
    pair = tuple(at) if isinstance(at, (tuple, list, np.ndarray)) else ()
    whole = all(isinstance(v, numbers.Integral) and not isinstance(v, bool) for v in pair)
    if len(pair) != 2 or not whole or not (0 <= pair[0] < width and 0 <= pair[1] < height):
        raise ConfigError(
            f"at: whole numbers (x, y) of a pixel in the picture that the network sees, which is {width} x {height}, "
            f"expected, got {at!r:.60}"
        )
    return int(pair[0]), int(pair[1])


def attention_maps(
    graph: Graph, weights: Mapping[str, Array], at: tuple[int, int] | None
) -> tuple[dict[str, Array], Array | None]:
    """The maps and the rollout of `Attention`.

    graph: of one image, with attention as single nodes
    weights: the intermediates SOFTMAX of it
    at: as `query_point` gives it
    """
    if at is not None:
        cross_shaped = any(node.op == "stripe_attention" for node in graph)
        found = (_crosses if cross_shaped else _patches)(graph, weights, at)
        return {name: maps.astype(np.float64) for name, maps in found}, None  # copies: views would keep all weights in memory
    rows, columns = next(node.shape[2:] for node in graph if node.op == "conv2d")  # the only one, from pixels to patches
    layers = {_layer(node.name): weights[f"{node.name}.softmax"][0] for node in graph if node.op == "attention"}
    maps = {name: class_token(w, grid=(rows, columns)).astype(np.float64) for name, w in layers.items()}
    return maps, class_token(rollout(list(layers.values())), grid=(rows, columns)).copy()


def _patches(graph: Graph, weights: Mapping[str, Array], at: tuple[int, int]) -> Iterator[tuple[str, Array]]:
    for node in graph:
        if node.op == "unfold_patches":
            patch = node.attrs["patch"]
            h, w = graph.value(node.sources[0]).shape[2:]
            size = -(-h // patch[0]) * patch[0], -(-w // patch[1]) * patch[1]  # another map is resized to this one
        elif node.op == "attention":
            point = map_pixel(at, _input_size(graph), size)
            yield _layer(node.name), patch_attention(weights[f"{node.name}.softmax"], point, size=size, patch=patch)


def _crosses(graph: Graph, weights: Mapping[str, Array], at: tuple[int, int]) -> Iterator[tuple[str, Array]]:
    nodes = [node for node in graph if node.op == "stripe_attention"]
    for rows, columns in zip(nodes[::2], nodes[1::2], strict=True):  # a layer's horizontal stripes, then its vertical ones
        h, w = rows.shape[2:]
        horizontal, vertical = (weights[f"{node.name}.softmax"][0] for node in (rows, columns))
        point = map_pixel(at, _input_size(graph), (h, w))
        yield _layer(rows.name), cross(horizontal, vertical, point, size=(h, w), stripe=rows.attrs["stripe"])


def _input_size(graph: Graph) -> Size:
    (x,) = graph.inputs.values()
    return x.shape[2], x.shape[3]


def _layer(name: str) -> str:
    """Module path of the layer that an attention node is in."""
    return name.rpartition(".")[0]


def seen(x: Array, preprocess: Preprocess) -> Array:
    """The picture that the network saw: its input x (3, h, w) as uint8 (h, w, 3), RGB.

    The inverse of the end of `Preprocess`: pixel = 255 (x std + mean), rounded, and RGB again if the network takes BGR. Resize
    and crop are not undone, because the weights belong to what they leave of the image. Where x was padded with zeros, this
    is the mean colour.
    """
    mean, std = (np.asarray(v, np.float64)[:, None, None] for v in (preprocess.mean, preprocess.std))
    pixels = np.rint((x * std + mean) * 255).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(pixels[:, :, ::-1] if preprocess.channel_order == "bgr" else pixels)


@dataclass(frozen=True, eq=False)
class Attention:
    """Where a model looked in one image.

    maps: module path of every attention layer -> weights, float64 (heads, rows, columns), in the order of execution. Rows and
        columns divide `picture` evenly. Of ViT they are those of the class token for the patches, and sum to less than 1,
        because it attends to itself as well, see `class_token`. Of MobileViT they are those of the pixel `at` for patches, see
        `patch_attention`; of HRViT for the pixels of its cross, first the heads of the row stripe, then as many of the column
        stripe, see `cross`. These sum to 1 for every head
    rollout: of ViT, float64 (rows, columns): what the class token has of each patch after all layers; None for the others
    at: the pixel (x, y) of `picture` that was asked about; None for ViT
    picture: what the network saw: the image resized, cropped and padded, see `seen`
    provenance: as of a Result
    """

    maps: Mapping[str, Array]
    rollout: Array | None
    at: tuple[int, int] | None
    picture: Picture
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def plot(self, layer: str | None = None, k: int = PANELS) -> Image.Image:
        """A picture of the weights over what the network saw, as a PIL image.

        layer: a name in `.maps`: its first k heads. Default: of ViT the last layer; of MobileViT and HRViT a panel for each of
        the last k layers, the mean over their heads. In every panel the colours go from 0 to its own largest weight.

        ConfigError for another layer, or if k is not from 1 to 50.
        """
        from refvit.vision.attention_maps import Panel, draw_attention

        if layer is not None and layer not in self.maps:
            raise ConfigError(f"layer: one of {', '.join(self.maps)} expected, got {layer!r:.60}")
        if not isinstance(k, (int, np.integer)) or not 1 <= k <= DRAWN:
            raise ConfigError(f"plot: a whole number from 1 to {DRAWN} expected, got k={k!r}")
        height, width = self.picture.pixels.shape[:2]
        where = "" if self.at is None else f", mark at ({self.at[0]}, {self.at[1]})"
        large = [Panel("what the network saw", f"{width} x {height} pixels{where}", None)]
        if self.rollout is not None:
            large.append(Panel("attention rollout", f"{len(self.maps)} layers, up to {self.rollout.max():.2g}", self.rollout))
            layer = layer or list(self.maps)[-1]
        if layer is None:
            names = list(self.maps)[-k:]
            title = f"mean over heads, {_counted(len(names), len(self.maps), 'last', 'layers')}"
            small = [Panel(name, self._note(self.maps[name].mean(0)), self.maps[name].mean(0)) for name in names]
        else:
            maps = self.maps[layer][:k]
            title = f"{layer}, {_counted(len(maps), len(self.maps[layer]), 'first', 'heads')}"
            small = [Panel(f"head {i}", self._note(weights), weights) for i, weights in enumerate(maps)]
        who = "the class token" if self.at is None else "the marked pixel"
        heads = [(f"{self.provenance.get('model', '')}", Path(self.picture.source).name), (title, f"what {who} attends to")]
        return draw_attention(self.picture.pixels, large, small, heads, self.at)

    def save(self, path: str | os.PathLike[str], layer: str | None = None, k: int = PANELS) -> Path:
        """Write `plot` to a .png, .jpg or .webp file, whole or not at all. ConfigError for another suffix."""
        path = Path(path)
        kind = KINDS.get(path.suffix.lower(), "JSON")
        if kind == "JSON":
            raise ConfigError(f"{path}: a name ending in .png, .jpg or .webp expected; the weights are arrays in .maps")
        write_atomic(path, self._encoded(kind, layer, k))
        return path

    def __repr__(self) -> str:
        where = "" if self.at is None else f" at {self.at}"
        return f"Attention({self.picture.source}{where}: {len(self.maps)} layers)"

    def _repr_png_(self) -> bytes:
        return self._encoded("PNG", None, PANELS)

    def _encoded(self, kind: str, layer: str | None, k: int) -> bytes:
        buffer = io.BytesIO()
        self.plot(layer, k).save(buffer, kind)
        return buffer.getvalue()

    @staticmethod
    def _note(weights: Array) -> str:
        return f"{weights.shape[1]} x {weights.shape[0]}, up to {weights.max():.2g}"


def _counted(shown: int, total: int, which: str, what: str) -> str:
    return f"{total} {what}" if shown == total else f"the {which} {shown} of {total} {what}"
