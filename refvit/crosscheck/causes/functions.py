"""Functions that other implementations compute where the vocabulary has another one: activations, norms, softmaxes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from refvit.crosscheck.arithmetic import PLAIN  # they lose in float32 what most implementations lose
from refvit.graph.ir import Array
from refvit.ops.activation import gelu, hardswish, relu, sigmoid, silu


def gelu_quick(x: Array) -> Array:
    """x sigmoid(1.702 x) (Hendrycks & Gimpel 2016, section 2)."""
    return x / (1 + np.exp(-1.702 * x))


def erf_7_1_26(x: Array) -> Array:
    """erf by Abramowitz & Stegun's formula 7.1.26, off by up to 1.5e-7."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    polynomial = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    return np.sign(x) * (1 - polynomial * np.exp(-x * x))


def gelu_7_1_26(x: Array) -> Array:
    """GELU with that erf."""
    return 0.5 * x * (1 + erf_7_1_26(x / math.sqrt(2)))


def leaky(x: Array, slope: float) -> Array:
    return np.where(x > 0, x, slope * x)


def hard_sigmoid(x: Array) -> Array:
    return np.clip(x / 6 + 0.5, 0, 1)


def elu(x: Array) -> Array:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def softplus(x: Array) -> Array:
    return np.logaddexp(x, np.zeros_like(x))


def mish(x: Array) -> Array:
    return x * np.tanh(softplus(x))


def identity(x: Array) -> Array:
    return x


# name -> (in words, function); the names "gelu-..." are ids of causes of their own
ACTIVATIONS: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "gelu-erf": ("the exact GELU (erf)", partial(PLAIN["gelu"], approximate="none")),
    "gelu-tanh": ("GELU in its tanh approximation", partial(gelu, approximate="tanh")),
    "gelu-quick": ("GELU as x sigmoid(1.702 x)", gelu_quick),
    "gelu-erf-approximation": ("GELU with the erf of Abramowitz & Stegun 7.1.26", gelu_7_1_26),
    "relu": ("ReLU", relu),
    "relu6": ("ReLU6", lambda x: np.clip(x, 0, 6)),
    "silu": ("SiLU", silu),
    "hardswish": ("Hardswish", hardswish),
    "leaky-relu": ("leaky ReLU of slope 0.01", partial(leaky, slope=0.01)),
    "elu": ("ELU", elu),
    "mish": ("Mish", mish),
    "softplus": ("softplus", softplus),
    "sigmoid": ("a sigmoid", sigmoid),
    "hardsigmoid": ("a hard sigmoid", hard_sigmoid),
    "tanh": ("tanh", np.tanh),
}


def normalised(x: Array, axes: tuple[int, ...], eps: float, ddof: int = 0, outside: bool = False, centre: bool = True) -> Array:
    """x with mean 0 and variance 1 over `axes`; eps under the root or, outside, added to it."""
    centred = x - x.mean(axes, keepdims=True) if centre else x
    count = math.prod(x.shape[a] for a in axes)
    var = (centred * centred).sum(axes, keepdims=True) / max(count - ddof, 1)
    return centred / (np.sqrt(var) + eps if outside else np.sqrt(var + eps))


def column(a: Array, x: Array) -> Array:
    """(c,) ready to be broadcast to (n, c, ...)."""
    return a.reshape(-1, *[1] * (x.ndim - 2))
