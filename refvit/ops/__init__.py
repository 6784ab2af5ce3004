"""The vocabulary: every op that a model may use, each a short NumPy function with one exact meaning.

Reading these files is reading the definition; nothing here is an approximation and nothing has a fast path.

n batch, c input channels, k output channels, h w input rows and columns, r s kernel rows and columns, p q output rows and
columns, g groups, l tokens, d features of a token. Maps are (n, c, h, w), tokens (n, l, d). An op takes arrays of one floating
dtype, returns that dtype and writes to none of them. Tensors are positional, attributes keyword-only, and an attribute on
which frameworks disagree has no default.
"""

from refvit.ops.activation import gelu, hardswish, relu, sigmoid, silu, softmax
from refvit.ops.attention import attention
from refvit.ops.conv import conv2d
from refvit.ops.elementwise import add, multiply, scale
from refvit.ops.linear import linear, matmul
from refvit.ops.movement import broadcast, concat, getitem, pad, reshape, transpose
from refvit.ops.norm import batch_norm, layer_norm
from refvit.ops.patches import fold_patches, unfold_patches
from refvit.ops.pool import adaptive_avg_pool, mean
from refvit.ops.resize import resize
from refvit.ops.window import mask_tail, stripe_attention

__all__ = [
    "adaptive_avg_pool", "add", "attention", "batch_norm", "broadcast", "concat", "conv2d", "fold_patches", "gelu", "getitem",
    "hardswish", "layer_norm", "linear", "mask_tail", "matmul", "mean", "multiply", "pad", "relu", "reshape", "resize", "scale",
    "sigmoid", "silu", "softmax", "stripe_attention", "transpose", "unfold_patches",
]  # fmt: skip
