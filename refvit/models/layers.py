"""What more than one family is made of: the pre-norm transformer layer, and names and shapes of the usual parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from refvit.graph.ir import Array, Shape
from refvit.graph.trace import block
from refvit.ops import attention, layer_norm, linear
from refvit.weights.params import Params

Activation = Callable[[Array], Array]
Named = Iterator[tuple[str, Shape]]


@block
def self_attention(x: Array, p: Params, *, num_heads: int) -> Array:
    """Multi-head self-attention. x (n, l, d) -> same; rows of qkv are all queries, then keys, then values, head by head."""
    n, l, d = x.shape
    qkv = linear(x, **p["qkv"]).reshape(n, l, 3, num_heads, d // num_heads).transpose(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]  # each (n, heads, l, d / heads)
    y = attention(q, k, v, scale=(d // num_heads) ** -0.5)
    return linear(y.transpose(0, 2, 1, 3).reshape(n, l, d), **p["proj"])


@block
def mlp(x: Array, p: Params, *, act: Activation) -> Array:
    """Two linear layers with an activation between them. x (n, l, d) -> (n, l, d)."""
    return linear(act(linear(x, **p["fc1"])), **p["fc2"])


@block
def transformer_layer(x: Array, p: Params, *, num_heads: int, eps: float, act: Activation) -> Array:
    """Pre-norm transformer layer: x + attention(norm(x)), then x + mlp(norm(x)). x (n, l, d) -> (n, l, d)."""
    x = x + self_attention(layer_norm(x, **p["norm1"], eps=eps), p["attn"], num_heads=num_heads)
    return x + mlp(layer_norm(x, **p["norm2"], eps=eps), p["mlp"], act=act)


def affine(name: str, shape: Shape) -> Named:
    """Parameters of a layer with weight and bias."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def batch_norm_parameters(name: str, c: int) -> Named:
    """Parameters and statistics of a batch norm of c channels."""
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{leaf}", (c,)


def transformer_parameters(name: str, d: int, hidden: int) -> Named:
    """Parameters of a `transformer_layer` of d features whose perceptron has `hidden`."""
    yield from affine(f"{name}.norm1", (d,))
    yield from affine(f"{name}.attn.qkv", (3 * d, d))
    yield from affine(f"{name}.attn.proj", (d, d))
    yield from affine(f"{name}.norm2", (d,))
    yield from affine(f"{name}.mlp.fc1", (hidden, d))
    yield from affine(f"{name}.mlp.fc2", (d, hidden))
