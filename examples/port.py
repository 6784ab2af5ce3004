"""mobilevit_xxs as somebody might port it: channels last, batch norms folded into the convolutions, names of its own.

It reads the weights in timm's names from ten.npz and returns every value on the way. One of its conventions is not that of the
reference; docs/check.md finds it.
"""

import numpy as np

WEIGHTS = dict(np.load("ten.npz"))
DEPTHS = {2: 2, 3: 4, 4: 3}  # transformer layers by stage
STRIDES = ((1,), (2, 1, 1), (2,), (2,), (2,))  # of the inverted residuals by stage


def mobilevit_xxs(x):
    """x (n, 3, h, w) -> name -> value, the logits (n, classes) last."""
    shown = {}
    x = x.transpose(0, 2, 3, 1)
    x = shown["stem"] = swish(convolution(x, "stem", stride=2))
    for i, strides in enumerate(STRIDES):
        for j, stride in enumerate(strides):
            x = shown[f"bottleneck_{i}_{j}"] = bottleneck(x, f"stages.{i}.{j}", stride)
        if i in DEPTHS:
            x = shown[f"mobilevit_{i}"] = mobilevit_block(x, f"stages.{i}.{len(strides)}", DEPTHS[i], shown, f"encoder_{i}")
    x = shown["top"] = swish(convolution(x, "final_conv"))
    shown["logits"] = x.mean((1, 2)) @ WEIGHTS["head.fc.weight"].T + WEIGHTS["head.fc.bias"]
    return shown


def bottleneck(x, name, stride):
    y = swish(convolution(x, f"{name}.conv1_1x1"))
    y = swish(convolution(y, f"{name}.conv2_kxk", stride, groups=y.shape[-1]))
    y = convolution(y, f"{name}.conv3_1x1")
    return x + y if x.shape == y.shape else y


def mobilevit_block(x, name, depth, shown, called):
    y = swish(convolution(x, f"{name}.conv_kxk"))
    y = y @ WEIGHTS[f"{name}.conv_1x1.weight"][:, :, 0, 0].T
    n, h, w, d = y.shape
    y = y.reshape(n, h // 2, 2, w // 2, 2, d).transpose(0, 2, 4, 1, 3, 5).reshape(4 * n, h * w // 4, d)
    for k in range(depth):
        layer = f"{name}.transformer.{k}"
        y = shown[f"{called}_{k}_attention"] = y + attention(normalised(y, f"{layer}.norm1"), f"{layer}.attn")
        z = swish(dense(normalised(y, f"{layer}.norm2"), f"{layer}.mlp.fc1"))
        y = shown[f"{called}_{k}_mlp"] = y + dense(z, f"{layer}.mlp.fc2")
    y = normalised(y, f"{name}.norm")
    y = y.reshape(n, 2, 2, h // 2, w // 2, d).transpose(0, 3, 1, 4, 2, 5).reshape(n, h, w, d)
    y = swish(convolution(y, f"{name}.conv_proj"))
    return swish(convolution(np.concatenate([x, y], -1), f"{name}.conv_fusion"))


def attention(x, name, heads=4):
    n, l, d = x.shape
    q, k, v = dense(x, f"{name}.qkv").reshape(n, l, 3, heads, d // heads).transpose(2, 0, 3, 1, 4)
    scores = q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(d // heads))
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    y = scores / scores.sum(-1, keepdims=True) @ v
    return dense(y.transpose(0, 2, 1, 3).reshape(n, l, d), f"{name}.proj")


def normalised(x, name, epsilon=1e-3):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * WEIGHTS[f"{name}.weight"] + WEIGHTS[f"{name}.bias"]


def convolution(x, name, stride=1, groups=1):
    """Without a bias of its own; the batch norm behind it is part of its kernel and its bias."""
    norm = {key: WEIGHTS[f"{name}.bn.{key}"] for key in ("weight", "bias", "running_mean", "running_var")}
    scale = norm["weight"] / np.sqrt(norm["running_var"] + np.float32(1e-5))
    kernel = WEIGHTS[f"{name}.conv.weight"] * scale[:, None, None, None]
    side = kernel.shape[-1] // 2
    x = np.pad(x, ((0, 0), (side, side), (side, side), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], (1, 2))[:, ::stride, ::stride]
    y = (
        np.einsum("nhwcrs,crs->nhwc", windows, kernel[:, 0])
        if groups > 1
        else np.tensordot(windows, kernel, ((3, 4, 5), (1, 2, 3)))
    )
    return y + norm["bias"] - norm["running_mean"] * scale


def dense(x, name):
    return x @ WEIGHTS[f"{name}.weight"].T + WEIGHTS[f"{name}.bias"]


def swish(x):
    return x / (1 + np.exp(-x))
