"""Narrower arithmetics than float64, imitated: what one op loses in them.

Each op is imitated as a plain port would compute it, since that is what is to be told from a mistake:
- float32: operands, result and every step between them are float32; sums run from the first term to the last;
- tf32: as float32, but the operands of convolutions and matrix products have 10 bits of mantissa;
- bfloat16, float16: operands and result are rounded, the op itself is computed in float32, as frameworks accumulate;
- int8: weights of convolutions and linear layers are integers times a scale, the rest is float32.
Ops that only move values lose nothing. Results that have a scale are at their integers in each but float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np

from refvit.crosscheck.winograd import suits, winograd
from refvit.errors import ConfigError
from refvit.graph.ir import OPS, Array, Node

ARITHMETICS = ("float64", "float32", "tf32", "bfloat16", "float16", "int8")
FORMS = ("usual", "in order", "fast")  # of products: all are right
PRODUCTS = ("conv2d", "linear", "matmul")
MOVES = ("reshape", "transpose", "getitem", "concat", "broadcast")
IN_ORDER = 64  # terms of a product that all implementations add one by one

Scales = Mapping[str, Sequence[float]]  # value or weight -> (scale, zero point), and (..., lowest, highest) integer if known

_BITS = {"float64": 52, "float32": 23, "tf32": 10, "bfloat16": 7, "float16": 10, "int8": 23}  # of the mantissa


def ulp(arithmetic: str) -> float:
    """Distance from 1 to the next number; of int8 that of float32, in which all is computed that has no scale."""
    return 2.0 ** -_BITS[_known(arithmetic)]


def rounded(x: Array, arithmetic: str) -> Array:
    """x float64 at the nearest numbers of the arithmetic, ties to even, as float64. Too large ones become infinite.

    int8 needs scales, see `quantised`: here it is float32.
    """
    if _known(arithmetic) == "float64":
        return x
    with np.errstate(over="ignore"):
        if arithmetic in ("float32", "int8"):
            return x.astype(np.float32).astype(np.float64)
        if arithmetic == "float16":
            return x.astype(np.float16).astype(np.float64)
        return _shortened(x, _BITS[arithmetic])


def _shortened(x: Array, bits: int) -> Array:
    """Nearest numbers with `bits` bits of mantissa and the exponents of float32."""
    least = -126  # exponent below which float32's numbers, and so these, are equally spaced
    cut = 52 - bits
    u = np.ascontiguousarray(x, np.float64).view(np.int64)
    u = u + ((1 << (cut - 1)) - 1) + ((u >> cut) & 1)  # half a unit, less where the last bit is even
    y = (u & -(1 << cut)).view(np.float64)
    size = np.abs(x)
    if size.size and not size.min() >= 2.0**least:
        y = np.where(size < 2.0**least, np.ldexp(np.rint(np.ldexp(x, bits - least)), least - bits), y)
    if size.size and not size.max() < 2.0**127:
        y = np.where(np.isnan(x), x, np.where(np.abs(y) >= 2.0**128, np.copysign(np.inf, x), y))
    return y.reshape(x.shape)


def truncated(x: Array, bits: int) -> Array:
    """As `_shortened`, but towards zero: what tensor cores do to operands that nobody rounded before."""
    u = np.ascontiguousarray(x, np.float64).view(np.int64) & -(1 << (52 - bits))
    return np.where(np.isfinite(x), u.view(np.float64).reshape(x.shape), x)


def quantised(x: Array, scale: float, zero: float, lowest: float = -math.inf, highest: float = math.inf) -> Array:
    """x at the nearest (q - zero) * scale, q whole and from lowest to highest."""
    return (np.clip(np.rint(x / scale) + zero, lowest, highest) - zero) * scale


def apply(
    node: Node, arguments: Sequence[Array | None], arithmetic: str, scales: Scales | None = None, form: str = "usual"
) -> Array:
    """The node's result, float64, from float64 arguments, computed in the arithmetic.

    form: how products are computed, one of FORMS. Sums "in order" lose more than those of BLAS, which adds in blocks; "fast"
        are Winograd's convolutions of float32, which lose more still, and in tf32 operands that are cut off, not rounded.
    """
    exact = _known(arithmetic) == "float64" or node.op in MOVES
    if arithmetic == "int8" and not exact:
        arguments = _whole(node, arguments, scales)
    elif arithmetic in ("bfloat16", "float16") and not exact:
        arguments = [a if a is None else rounded(a, arithmetic) for a in arguments]
    elif arithmetic == "tf32" and node.op in PRODUCTS:  # the bias is added to the float32 sum
        factors = arguments if node.op not in ("conv2d", "linear") else arguments[:2]
        cut = _shortened if form != "fast" else truncated
        arguments = [cut(a, _BITS["tf32"]) for a in factors if a is not None] + list(arguments[len(factors) :])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what overflows here does so in the candidate
        if exact:
            y = np.asarray(OPS[node.op].function(*arguments, **node.attrs))
        else:
            narrow = [a if a is None else a.astype(np.float32) for a in arguments]
            y = _float32(node, narrow, form if arithmetic == "float32" else "usual")
    if arithmetic in ("bfloat16", "float16") and not exact:
        y = rounded(y, arithmetic)
    if arithmetic == "float64" or (arithmetic != "int8" and node.op in MOVES):
        return y
    return _scaled(node.name, y, scales)


def _float32(node: Node, arguments: Sequence[Any], form: str) -> Array:
    """The result, as float64, of float32 arguments."""
    if form == "fast" and node.op == "conv2d" and suits(node, arguments[1]):
        y = winograd(*arguments, padding=node.attrs["padding"])
    else:
        function: Callable[..., Any] = PLAIN.get(node.op, OPS[node.op].function)
        y = np.asarray(function(*arguments, **node.attrs))
    wide = y.astype(np.float64)
    return wide + _loss_in_order(node, wide, arguments[1]) if form == "in order" and node.op in PRODUCTS else wide


def _loss_in_order(node: Node, y: Array, factor: Array) -> Array | float:
    """What a product loses whose terms are added from the first to the last, beyond what BLAS loses, which adds in blocks.

    Adding the k-th of K terms costs 0.2 ulp (root mean square) of the sum so far. Where the sum grows as sqrt(k) or as k, this
    is 0.2 sqrt(K / 2) or 0.2 sqrt(K / 3) ulp of the sum in the end. BLAS adds some dozens of terms in order before it adds
    the blocks.
    """
    terms = factor[0].size if node.op == "conv2d" else factor.shape[-2] if node.op == "matmul" else factor.shape[-1]
    if terms <= IN_ORDER:
        return 0.0
    others = {"conv2d": (0, 2, 3), "matmul": (-2,)}.get(node.op, tuple(range(y.ndim - 1)))
    size = np.sqrt(np.mean(np.square(np.where(np.isfinite(y), y, 0.0)), axis=others, keepdims=True))
    noise = np.random.default_rng(crc32(node.name.encode())).standard_normal(y.shape, np.float32)
    return noise * (size * (0.2 * ulp("float32") * math.sqrt((terms - IN_ORDER) / 2)))


def of_dtypes(dtypes: Iterable[Any]) -> str:
    """The arithmetic of a candidate that declares none, from the dtypes, or their names, of what it shows.

    The narrowest one counts: of float32 beside float16 the weights or the products were float16.
    """
    names = {str(getattr(d, "name", d)).rpartition(".")[2] for d in dtypes}
    if any(n.endswith("int8") for n in names):
        return "int8"
    return next((a for a in ("bfloat16", "float16", "float32") if a in names), "float64" if "float64" in names else "float32")


def allowed(declared: str | None, told: str | None, dtypes: Iterable[Any], scales: Scales | None) -> str:
    """The arithmetic that a candidate is held to.

    declared: by whoever asks; told: by the candidate; dtypes, scales: of the values that are compared. ConfigError for int8
    without scales: it would allow for weights of 8 bits where there are none.
    """
    if declared == "int8" and not scales:
        raise ConfigError(
            "arithmetic='int8': none of the values that are compared has a scale; give scales and zero points in a manifest",
            "arithmetic='int8'",
        )
    return declared or (told if scales or told != "int8" else None) or of_dtypes(dtypes)


def _known(arithmetic: str) -> str:
    if arithmetic not in _BITS:
        raise ConfigError(
            f"arithmetic: one of {', '.join(ARITHMETICS)} expected, got {arithmetic!r}", f"arithmetic={arithmetic!r}"
        )
    return arithmetic


def _scaled(name: str | None, y: Array, scales: Scales | None) -> Array:
    """y at the integers of the value called name, if it has any."""
    return quantised(y, *scales[name]) if scales and name and name in scales else y


def _whole(node: Node, arguments: Sequence[Array | None], scales: Scales | None) -> list[Array | None]:
    """Arguments at their integers. Weights without a scale get one for the whole tensor, the coarsest that is usual."""
    found = [a if a is None else _scaled(n, a, scales) for n, a in zip(node.inputs, arguments, strict=True)]
    weight = found[1] if node.op in ("conv2d", "linear") else None
    if weight is not None and not (scales and (node.inputs[1] or "") in scales):
        found[1] = quantised(weight, (np.abs(weight).max() or 1.0) / 127, 0, -127, 127)
    return found


def _sum(x: Array, axes: tuple[int, ...]) -> Array:
    """The sum over the axes, kept as 1, from the first term to the last; NumPy adds pairwise, which loses less."""
    axes = tuple(a % x.ndim for a in axes)
    rest = [a for a in range(x.ndim) if a not in axes]
    terms = x.transpose(*axes, *rest).reshape(-1, *(x.shape[a] for a in rest))
    total = np.add.accumulate(terms, axis=0)[-1] if terms[0].size == 1 else np.add.reduce(np.ascontiguousarray(terms), axis=0)
    return total.reshape([1 if a in axes else s for a, s in enumerate(x.shape)])


def _mean(x: Array, *, axes: tuple[int, ...], keepdims: bool = False) -> Array:
    count = math.prod(x.shape[a] for a in axes)
    y = _sum(x, axes) / np.float32(count)
    return y if keepdims else y.squeeze(axes)


def _softmax(x: Array, *, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / _sum(e, (axis,))


def _layer_norm(x: Array, weight: Array, bias: Array, *, eps: float) -> Array:
    centred = x - _mean(x, axes=(-1,), keepdims=True)
    var = _mean(centred * centred, axes=(-1,), keepdims=True)
    return centred / np.sqrt(var + eps) * weight + bias


def _silu(x: Array) -> Array:
    return x * (1 / (1 + np.exp(-x)))


def _gelu(x: Array, *, approximate: str) -> Array:
    if approximate != "none":
        return np.asarray(OPS["gelu"].function(x, approximate=approximate))
    from scipy.special import erf  # 0.1 s that nothing else needs

    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))  # as most implement it: 1 + erf cancels, and NumPy's definition does not


PLAIN: Mapping[str, Callable[..., Array]] = {
    "mean": _mean, "softmax": _softmax, "layer_norm": _layer_norm, "silu": _silu, "gelu": _gelu,
}  # fmt: skip
