"""The mistakes again, made in ONNX files: attributes, constants, inputs and nodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from bench.bugs.activations import SLOPES
from bench.bugs.bug import Bug, Done, magnitude
from bench.bugs.norms import BATCH_NORM_EPS, EPS, LAYER_NORM_EPS
from bench.bugs.onnx_models import Onnx, attribute, set_attribute
from refvit.graph.ir import Array

Inject = Callable[[Onnx, str, np.random.Generator], Done | None]


def of(*operators: str, ops: tuple[str, ...] = ()) -> Callable[[Onnx], list[str]]:
    """Values that nodes of these operators compute, and ops of the reference if `ops` says which."""
    return lambda o: [v for v, _ in o.produced(*operators) if not ops or o.graph.nodes[v].op in ops]


def products(o: Onnx) -> list[str]:
    """Values that a product with a weight gives."""
    return of("Conv", "Gemm", "MatMul", "Add", ops=("conv2d", "linear", "batch_norm"))(o)


def _node(o: Onnx, value: str) -> onnx.NodeProto:
    node = o.producer(value)
    assert node is not None
    return node


def _source(o: Onnx, value: str) -> str | None:
    """The tensor that is the first input of a value of the reference."""
    return o.names.get(str(o.graph.nodes[value].inputs[0]))


def _attribute(name: str, choose: Callable[[Any, np.random.Generator], Any], default: Any) -> Inject:
    def inject(o: Onnx, value: str, rng: np.random.Generator) -> Done:
        node = _node(o, value)
        right = attribute(node, name, default)
        wrong = choose(right, rng)
        set_attribute(node, name, wrong)
        return Done(f"{name} {wrong} where {right} is right", (value,))

    return inject


def _eps(usual: tuple[float, ...]) -> Inject:
    return _attribute("epsilon", lambda right, rng: magnitude(rng, usual, *EPS, right=right), 1e-5)


def _gelu_tanh(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    x = _source(o, value)
    if x is None:
        return None
    c = {n: o.write(f"{value} {n}", np.array(v, np.float32)) for n, v in
         {"half": 0.5, "one": 1, "small": 0.044715, "root": math.sqrt(2 / math.pi)}.items()}  # fmt: skip
    t = [f"{value} step {i}" for i in range(7)]
    o.put(value, [
        ("Mul", [x, x], t[0], {}), ("Mul", [t[0], x], t[1], {}), ("Mul", [t[1], c["small"]], t[2], {}),
        ("Add", [t[2], x], t[3], {}), ("Mul", [t[3], c["root"]], t[4], {}), ("Tanh", [t[4]], t[5], {}),
        ("Add", [t[5], c["one"]], t[6], {}), ("Mul", [t[6], x], f"{value} twice", {}),
        ("Mul", [f"{value} twice", c["half"]], "", {}),
    ])  # fmt: skip
    return Done("by Tanh", (value,))


def _gelu_quick(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    x = _source(o, value)
    if x is None:
        return None
    c = o.write(f"{value} 1.702", np.array(1.702, np.float32))
    a, b = f"{value} scaled", f"{value} sigmoid"
    o.put(value, [("Mul", [x, c], a, {}), ("Sigmoid", [a], b, {}), ("Mul", [x, b], "", {})])
    return Done("x Sigmoid(1.702 x)", (value,))


def _other(operator: str, **attributes: Any) -> Inject:
    """Another operator, of the first input alone."""

    def inject(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
        x = _source(o, value)
        if x is None:
            return None
        o.put(value, [(operator, [x], "", attributes)])
        return Done(f"{operator} in place of {o.graph.nodes[value].op}", (value,))

    return inject


def _leaky(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    slope = magnitude(rng, SLOPES, 0.005, 0.4)
    return _other("LeakyRelu", alpha=slope)(o, value, rng) and Done(f"LeakyRelu of slope {slope:.4g}", (value,))


def _relu6(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    x = _source(o, value)
    if x is None:
        return None
    low, high = (o.write(f"{value} {v}", np.array(v, np.float32)) for v in (0, 6))
    o.put(value, [("Clip", [x, low, high], "", {})])
    return Done("Clip to 6", (value,))


def _exchanged(i: int, j: int) -> Inject:
    def inject(o: Onnx, value: str, rng: np.random.Generator) -> Done:
        node = _node(o, value)
        node.input[i], node.input[j] = node.input[j], node.input[i]
        return Done(f"inputs {i} and {j} exchanged", (value,))

    return inject


def _ones(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    node = _node(o, value)
    a = o.array(node.input[1])
    if a is None:
        return None
    o.own(node, 1, np.ones_like(a))
    return Done("gain 1", (value,))


def _same(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    node = _node(o, value)
    sides = o.graph.value(str(o.graph.nodes[value].inputs[0])).shape[2:]
    even = all(s % 2 == 0 for s in sides)
    if list(attribute(node, "strides", [1])) != [2, 2] or list(attribute(node, "pads", [0])) != [1, 1, 1, 1] or not even:
        return None
    set_attribute(node, "pads", [0, 0, 1, 1])
    return Done("padded at the right and below only", (value,))


def _weight(change: Callable[[Array], Array | None], detail: str) -> Inject:
    """Another weight of a product."""

    def inject(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
        found = o.weighted(value)
        wrong = None if found is None else change(found[1])
        if found is None or wrong is None:
            return None
        o.own(found[0], 1, wrong.astype(np.float32))
        return Done(detail, folded(o, value))

    return inject


def _fresh(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    found = o.weighted(value)
    if found is None:
        return None
    bound = np.prod(found[1].shape[1:]) ** -0.5
    o.own(found[0], 1, rng.uniform(-bound, bound, found[1].shape).astype(np.float32))
    return Done("a weight as initialised", folded(o, value))


def folded(o: Onnx, value: str) -> tuple[str, ...]:
    """The value, and what a folded norm or an addition has made one with it."""
    node = o.graph.nodes[value]
    before = o.graph.nodes.get(str(node.inputs[0]))
    return (value, before.name) if node.op == "batch_norm" and before is not None else (value,)


def _square(a: Array) -> Array | None:
    if a.ndim not in (2, 4) or a.shape[0] != a.shape[1] or a.shape[2:] not in ((), (1, 1)):
        return None
    return a.swapaxes(0, 1)


def _wide(a: Array) -> Array | None:
    return a[:, :, ::-1, ::-1] if a.ndim == 4 and a.shape[2] > 1 else None


def _mirrored(a: Array) -> Array | None:
    return a.swapaxes(2, 3) if a.ndim == 4 and a.shape[2] > 1 else None


def _memory(a: Array) -> Array | None:
    return a.transpose(0, 2, 3, 1).reshape(a.shape) if a.ndim == 4 and a.shape[2] > 1 < a.shape[1] else None


def _no_bias(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    node = _node(o, value)
    if node.op_type in ("Conv", "Gemm"):
        if len(node.input) < 3 or not node.input[2]:
            return None
        del node.input[2]
        return Done("no bias", folded(o, value))
    i = next((i for i, name in enumerate(node.input) if (a := o.array(name)) is not None and a.ndim == 1), None)
    if i is None or o.graph.nodes[value].op != "linear":
        return None
    bias = o.array(node.input[i])
    assert bias is not None
    o.own(node, i, np.zeros_like(bias))
    return Done("no bias", (value,))


def _bgr(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    if o.graph.nodes[value].inputs[0] not in o.graph.inputs and "conv" not in value and "proj" not in value:
        return None
    node = _node(o, value)
    if node.input[0] != o.model.graph.input[0].name:
        return None
    index, x = o.write("bgr", np.array([2, 1, 0])), node.input[0]
    nodes = [onnx.helper.make_node("Gather", [x, index], ["bgr input"], axis=1), *o.model.graph.node]
    node.input[0] = "bgr input"
    del o.model.graph.node[:]
    nodes[1:] = [n if n.output[0] != node.output[0] else node for n in nodes[1:]]
    o.model.graph.node.extend(nodes)
    return Done("input channels reversed", (*folded(o, value), "input"))


def _rolled(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    node, by = _node(o, value), int(rng.choice([-1, 1]))
    if node.op_type != "Gemm" or value not in o.graph.outputs.values():
        return None
    for i in (1, 2):
        a = o.array(node.input[i])
        assert a is not None
        o.own(node, i, np.roll(a, by, 0 if i == 2 or attribute(node, "transB", 0) else 1))
    return Done(f"classes shifted by {by}", (value,))


def _resized(mode: str, corners: str, **more: str) -> Inject:
    def inject(o: Onnx, value: str, rng: np.random.Generator) -> Done:
        node = _node(o, value)
        for name, text in ({"mode": mode, "coordinate_transformation_mode": corners} | more).items():
            if text:
                set_attribute(node, name, text)
        return Done(f"Resize {mode} {corners} {' '.join(more.values())}".replace("  ", " "), (value,))

    return inject


def _corners(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    return _resized("linear", "half_pixel" if o.graph.nodes[value].attrs["align_corners"] else "align_corners")(o, value, rng)


def _filter(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    if o.graph.nodes[value].attrs["mode"] == "nearest":
        return _resized("linear", "half_pixel")(o, value, rng)
    return _resized("nearest", "asymmetric", nearest_mode="floor")(o, value, rng)


def mode(mode: str) -> Callable[[Onnx], list[str]]:
    return lambda o: [v for v in of("Resize", ops=("resize",))(o) if o.graph.nodes[v].attrs["mode"] == mode]


ACTS = ("Relu", "HardSwish", "Mul", "Gelu")
BUGS = (
    Bug("gelu-tanh", "GELU by Tanh", of("Mul", "Gelu", ops=("gelu",)), _gelu_tanh),
    Bug("gelu-quick", "GELU by Sigmoid", of("Mul", "Gelu", ops=("gelu",)), _gelu_quick),
    Bug("silu-as-hardswish", "HardSwish for SiLU", of("Mul", ops=("silu",)), _other("HardSwish")),
    Bug("relu-as-relu6", "ReLU6 for ReLU", of("Relu", ops=("relu",)), _relu6),
    Bug("relu-as-leaky-relu", "leaky ReLU", of("Relu", ops=("relu",)), _leaky),
    Bug("activation-missing", "no activation", of(*ACTS, ops=("relu", "silu", "gelu", "hardswish")), _other("Identity")),
    Bug("layer-norm-eps", "epsilon of a layer norm", of("LayerNormalization"), _eps(LAYER_NORM_EPS)),
    Bug("batch-norm-eps", "epsilon of a batch norm", of("BatchNormalization"), _eps(BATCH_NORM_EPS)),
    Bug("batch-norm-mean-and-variance-exchanged", "statistics exchanged", of("BatchNormalization"), _exchanged(3, 4)),
    Bug("batch-norm-missing", "no batch norm", of("BatchNormalization"), _other("Identity")),
    Bug("batch-norm-gain-one", "gain 1", of("BatchNormalization"), _ones),
    Bug("layer-norm-missing", "no layer norm", of("LayerNormalization"), _other("Identity")),
    Bug("padding-same", "pads at the end only", of("Conv"), _same),
    Bug("weight-transposed", "a square weight transposed", products, _weight(_square, "transposed")),
    Bug("weights-not-loaded", "a weight as initialised", products, _fresh),
    Bug("kernel-flipped", "a kernel turned", of("Conv"), _weight(_wide, "turned by 180 degrees")),
    Bug("kernel-transposed", "rows and columns of a kernel", of("Conv"), _weight(_mirrored, "rows and columns exchanged")),
    Bug("weight-memory-order", "memory order of a kernel", of("Conv"), _weight(_memory, "(k, r, s, c) read as (k, c, r, s)")),
    Bug("bias-missing", "no bias", of("Conv", "Gemm", "Add"), _no_bias),
    Bug("channels-reversed", "blue and red exchanged", of("Conv"), _bgr),
    Bug("classes-shifted", "classes off by one", of("Gemm"), _rolled),
    Bug("resize-align-corners", "align_corners", mode("bilinear"), _corners),
    Bug("resize-filter", "nearest and linear exchanged", of("Resize", ops=("resize",)), _filter),
    Bug("resize-without-half-pixel", "asymmetric", mode("bilinear"), _resized("linear", "asymmetric")),
    Bug("nearest-rounding", "nearest_mode", mode("nearest"), _resized("nearest", "asymmetric", nearest_mode="ceil")),
)
