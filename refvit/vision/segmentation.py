"""Segmentation around the network: the inputs it is run on for one image, and the map that follows from their logits.

An image may be looked at in several sizes, mirrored, and through windows. Each of these views is an input of its own; the
scores are put together again row by row of the image, so that a large picture with many classes needs no gigabytes.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from refvit.errors import ImageError
from refvit.graph.ir import Array
from refvit.ops import resize
from refvit.ops.resize import taps
from refvit.vision.pixels import MAX_PIXELS
from refvit.vision.postprocess import SegmentationPostprocess
from refvit.vision.preprocess import Preprocess

VALUES = 2**23  # scores at a time: 64 MB in float64

Scores = Callable[[Array], Array]


@dataclass(frozen=True)
class View:
    """One input: a window of the image at one scale, maybe mirrored."""

    scale: int  # which of the scales
    size: tuple[int, int]  # (h, w) of the image at this scale
    corner: tuple[int, int]  # of the window, top and left
    inner: tuple[int, int]  # (h, w) of the window without padding
    mirrored: bool


class Views:
    """What the network is run on for one image, uint8 (h, w, 3), and the map of that image.

    `inputs` are float32 (3, H, W). Their sides are multiples of `multiple` and of `post.pad_multiple`: zeros, which after
    normalisation are the mean colour, are added below and to the right.
    pairs: classes that change places in a mirror image

    ImageError for a scale that makes the image too large.
    """

    def __init__(
        self,
        pixels: Array,
        preprocess: Preprocess,
        post: SegmentationPostprocess,
        *,
        align_corners: bool,
        multiple: int = 1,
        pairs: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.size, self.post, self.align_corners, self.pairs = pixels.shape[:2], post, align_corners, pairs
        self.views: list[View] = []
        self.inputs: list[Array] = []
        multiple = math.lcm(multiple, post.pad_multiple)
        for index, scale in enumerate(post.scales):
            x = _scaled(pixels, preprocess, post, scale)
            size = x.shape[1], x.shape[2]
            window_size = None if scale <= post.whole_up_to else post.window
            if window_size and post.fill_window:
                black = -np.asarray(preprocess.mean, np.float32) / np.asarray(preprocess.std, np.float32)
                x = padded(x, (max(size[0], window_size[0]), max(size[1], window_size[1])), black[:, None, None])
            for corner, inner in _windows((x.shape[1], x.shape[2]), window_size, post.window_stride):
                window = x[:, corner[0] : corner[0] + inner[0], corner[1] : corner[1] + inner[1]]
                window = padded(window, (round_up(inner[0], multiple), round_up(inner[1], multiple)))
                for mirrored in (False, True)[: 1 + post.flip]:
                    self.views.append(View(index, size, corner, inner, mirrored))
                    self.inputs.append(window[:, :, ::-1] if mirrored else window)

    def label_map(self, logits: list[Array]) -> Array:
        """The class of every pixel of the image, (h, w), uint8 or uint16; logits (classes, H / s, W / s) of every input."""
        classes, post = logits[0].shape[0], self.post
        terms = list(self._terms())
        offset = max(0.0, max(float(y.max()) for y in logits) - 600)  # no overflow; a common factor moves no argmax

        def exponential(y: Array) -> Array:
            return np.exp(y.astype(np.float64) - offset)

        windows = {view.corner for view in self.views}
        mixed = len(terms) > 1 or len(windows) > 1 or self.views[0].size != self.size
        inner = exponential if post.average == "exp" and mixed else None  # otherwise the argmax is that of the logits
        result = np.empty(self.size, np.uint8 if classes <= 256 else np.uint16)
        step = max(1, VALUES // (classes * max(self.size[1], *(v.size[1] for v in self.views))))
        for first in range(0, self.size[0], step):
            last = min(first + step, self.size[0])
            scores = [self._scores(logits, term, first, last, inner) for term in terms]
            result[first:last] = functools.reduce(operator.add, scores).argmax(0)
        return result

    def _terms(self) -> Iterator[list[int]]:
        """Views that give one map of scores together: those of one scale; by mmsegmentation's rule, the mirrored ones apart."""

        def key(i: int) -> tuple[int, bool]:
            return self.views[i].scale, self.views[i].mirrored and self.post.average == "softmax"

        for _, group in itertools.groupby(sorted(range(len(self.views)), key=key), key):
            yield list(group)

    def _scores(self, logits: list[Array], term: list[int], first: int, last: int, inner: Scores | None) -> Array:
        """Rows [first, last) of what these views say, at the image's size: (classes, rows, w)."""
        height, width = self.views[term[0]].size
        mode, low, high = self.post.to_image, first, last
        align_corners = self.align_corners and mode == "bilinear"
        if height != self.size[0]:
            index, _ = taps(height, self.size[0], mode, align_corners, False)
            low, high = int(index[:, first:last].min()), int(index[:, first:last].max()) + 1
        total = np.zeros((logits[0].shape[0], high - low, width), np.float64 if inner else logits[0].dtype)
        count = np.zeros((high - low, width), total.dtype)
        windows: dict[tuple[int, int], list[int]] = {}
        for i in term:
            windows.setdefault(self.views[i].corner, []).append(i)
        for (top, left), seen in windows.items():
            a, b = max(low, top), min(high, top + self.views[seen[0]].inner[0])
            if a >= b:
                continue
            y = functools.reduce(operator.add, [self._rows(logits[i], i, a - top, b - top) for i in seen]) / len(seen)
            y = (inner(y) if inner else y)[:, :, : width - left]  # a window that was filled ends beyond the image
            total[:, a - low : b - low, left : left + y.shape[2]] += y
            count[a - low : b - low, left : left + y.shape[2]] += 1
        scores = resized_rows(total / count, (height, low), self.size, (first, last), mode, align_corners)
        if self.post.average == "softmax" and len(self.views) > 1:
            scores = np.exp(scores - scores.max(0))
            scores /= scores.sum(0)
        return scores

    def _rows(self, logits: Array, i: int, first: int, last: int) -> Array:
        """Rows [first, last) of the logits of input i at that input's size, mirrored back, without padding on the right."""
        h, w = self.inputs[i].shape[1:]
        y = resized_rows(logits, (logits.shape[1], 0), (h, w), (first, last), "bilinear", self.align_corners)
        if self.views[i].mirrored:
            order = list(range(len(y)))
            for a, b in self.pairs:
                order[a], order[b] = b, a
            y = y[order, :, ::-1]
        return y[:, :, : self.views[i].inner[1]]


def resized_rows(
    y: Array, source: tuple[int, int], size: tuple[int, int], rows: tuple[int, int], mode: str, align_corners: bool
) -> Array:
    """The given rows of a map resized to `size`, as `ops.resize` gives them. (k, h, w) -> (k, rows[1] - rows[0], size[1])

    source: the height of the map of which y is a part, and the row of it where y begins
    """
    height, start = source
    first, last = rows
    if height == size[0]:
        y = y[:, first - start : last - start]
    else:
        index, weight = taps(height, size[0], mode, align_corners, False)
        parts = zip(index[:, first:last] - start, weight[:, first:last].astype(y.dtype), strict=True)
        y = sum(y.take(i, 1) * w[:, None] for i, w in parts)
    if y.shape[2] == size[1]:
        return y
    return np.asarray(resize(y[None], size=(y.shape[1], size[1]), mode=mode, align_corners=align_corners)[0])


def _scaled(pixels: Array, preprocess: Preprocess, post: SegmentationPostprocess, scale: float) -> Array:
    """The input at another scale. HRNet's repositories resize the normalised image, mmsegmentation the pixels."""
    if scale == 1:
        return preprocess(pixels)
    if post.average == "softmax" and preprocess.resize is not None:
        return preprocess.scaled(scale)(pixels)
    h, w = preprocess.output_size(*pixels.shape[:2])
    long = max(1, int(max(h, w) * scale + 0.5))
    short = max(1, int(min(h, w) * long / max(h, w) + 0.5))
    size = (long, short) if h >= w else (short, long)
    if long * short > MAX_PIXELS:
        raise ImageError(f"image: {w} x {h} pixels times {scale:g} is over {MAX_PIXELS} pixels in all; leave that scale out")
    x = preprocess.replace(resize=None, longest=None, enlarge=None)(pixels)
    return np.asarray(resize(x[None], size=size, mode="bilinear", align_corners=False)[0])


def _windows(
    size: tuple[int, int], window: tuple[int, int] | None, stride: tuple[int, int] | None
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Corner and size of every window; without one, the whole."""
    if window is None:
        yield (0, 0), size
        return
    corners, inner = [], []
    for s, w, step in zip(size, window, stride or window, strict=True):
        count = max(0, math.ceil((s - w) / step)) + 1
        corners.append([max(0, min(k * step, s - w)) for k in range(count)])
        inner.append(min(s, w))
    for top, left in itertools.product(*corners):
        yield (top, left), (inner[0], inner[1])


def padded(x: Array, size: tuple[int, int], value: Array | float = 0.0) -> Array:
    """x (c, h, w) with `value` below and to the right."""
    if x.shape[1:] == size:
        return x
    y = np.empty((x.shape[0], *size), x.dtype)
    y[:] = value
    y[:, : x.shape[1], : x.shape[2]] = x
    return y


def round_up(side: int, multiple: int) -> int:
    """The next multiple."""
    return -(-side // multiple) * multiple
