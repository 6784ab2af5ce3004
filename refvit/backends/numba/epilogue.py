"""Activations by number, as kernels know them."""

from __future__ import annotations

ACT = {"none": 0, "relu": 1, "silu": 2, "gelu": 3, "gelu_tanh": 4, "hardswish": 5, "sigmoid": 6}
