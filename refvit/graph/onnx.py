"""A graph as an ONNX model, for other runtimes: every op as what they recognise and fuse.

Operators mean what the default operator set 17 says (onnx.ai/onnx/operators). Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from refvit.errors import ConfigError, GraphError, UnsupportedError
from refvit.graph.ir import OPS, Array, Graph, Node, Shape
from refvit.graph.passes.constants import bind
from refvit.graph.protobuf import CODES, Message, attribute, field, integer, joined, tensor
from refvit.graph.trace import Trace

OPSET, IR_VERSION = 17, 8  # both of 2022; the operators used here mean the same to every runtime since
LARGEST = 2**31 - 2**20  # bytes of a protobuf message, less what tensors have beside their values


def to_onnx(graph: Graph, params: Mapping[str, Array]) -> bytes:
    """The graph with its parameters as the bytes of an ONNX model (operator set 17), for the graph's one input shape.

    graph: as traced, or after passes other than `fuse`. Batch norms that `fold_batch_norm` has folded stay folded.
    params: an array for every parameter that the graph reads, all of one floating dtype, which is the model's. Whatever depends
        on them alone is computed here.
    The inputs and outputs of the model have the graph's public names, its nodes the names of the graph's. Composite ops are
    written out (attention as MatMul, Softmax, MatMul), GELU with Erf, SiLU with Sigmoid: the forms that runtimes fuse.

    GraphError if a parameter is missing or misshapen, ConfigError if dtypes differ, UnsupportedError for an op that has no
    translation and for a model of 2 GiB and more, which a protobuf message cannot hold.
    """
    graph, bound = bind(graph, params)
    dtypes = sorted({a.dtype.name for a in bound.values()}) or ["float32"]
    if len(dtypes) > 1 or not dtypes[0].startswith("float"):
        raise ConfigError(f"to_onnx: parameters of one floating dtype expected, got {', '.join(dtypes)}; cast them first")
    writer = _Writer(graph, bound, np.dtype(dtypes[0]))
    for node in graph:
        writer.translate(node, node.inputs)
    for public, value in graph.outputs.items():
        if writer.public.get(value) != public != value:
            writer.emit("Identity", [value], public)
    return writer.model(graph)


class _Writer:
    """Nodes and constants of the model so far. A value has its name of the graph, an output its public one."""

    def __init__(self, graph: Graph, params: Mapping[str, Array], dtype: np.dtype[Any]) -> None:
        self.params, self.dtype = params, dtype
        self.shapes: dict[str, Shape] = {name: tuple(v.shape) for t in (graph.inputs, params) for name, v in t.items()}
        self.public = {value: public for public, value in reversed(list(graph.outputs.items())) if value in graph.nodes}
        if taken := [p for p, v in graph.outputs.items() if p != v and any(p in t for t in (graph.nodes, self.shapes))]:
            raise GraphError(f"to_onnx: the output {taken[0]!r} has the name of another value; give it another name")
        self.nodes: Message = []
        self.constants: dict[str, Array] = {}

    def translate(self, node: Node, inputs: tuple[str | None, ...]) -> None:
        self.shapes[node.name] = node.shape
        if OPS[node.op].composite:
            self._expand(node, inputs)
        elif node.op in RULES:
            RULES[node.op](self, node, *inputs)
        else:
            raise UnsupportedError(
                f"to_onnx: {node.name}: {node.op} has no translation; export a graph that `fuse` has not changed"
            )

    def emit(self, operator: str, inputs: Iterable[str | None], output: str, **attributes: Any) -> str:
        """Append a node; the name of its output. An input None is left out."""
        names = ["" if i is None else self._read(i) for i in inputs]
        while names[-1] == "":
            names.pop()
        fields = [field(1, name) for name in names]
        fields += [field(2, self.public.get(output, output)), field(3, output), field(4, operator)]
        fields += [field(5, *attribute(name, value)) for name, value in attributes.items()]
        self.nodes += field(1, *joined(fields))
        return output

    def constant(self, name: str, value: Any) -> str:
        """A constant; whatever is not an array of integers gets the dtype of the model."""
        a = np.asarray(value)
        self.constants[name] = a.astype(np.int64 if a.dtype.kind == "i" else self.dtype, order="C")
        return name

    def model(self, graph: Graph) -> bytes:
        if sum(a.nbytes for a in self.constants.values()) + sum(map(len, self.nodes)) > LARGEST:
            raise UnsupportedError("to_onnx: an ONNX model holds less than 2 GiB; export it in float16")
        self.shapes |= {public: tuple(graph.value(value).shape) for public, value in graph.outputs.items()}
        inputs = [field(11, *self._typed(name)) for name in graph.inputs]
        outputs = [field(12, *self._typed(name)) for name in graph.outputs]
        constants = [field(5, *tensor(name, a)) for name, a in self.constants.items()]
        body = [*self.nodes, *field(2, "refvit"), *joined([*constants, *inputs, *outputs])]
        opset = field(8, *integer(2, OPSET))
        return b"".join(integer(1, IR_VERSION) + field(2, "refvit") + opset + field(7, *body))

    def _read(self, name: str) -> str:
        """What the value is called here; a parameter becomes a constant."""
        if name in self.params:
            self.constants.setdefault(name, self.params[name])
        return self.public.get(name, name)

    def _typed(self, name: str) -> Message:
        """ValueInfoProto"""
        sizes = joined(field(1, *integer(1, size)) for size in self.shapes[name])
        kind = integer(1, CODES[self.dtype.name]) + field(2, *sizes)
        return field(1, name) + field(2, *field(1, *kind))

    def _expand(self, node: Node, inputs: tuple[str | None, ...]) -> None:
        """A composite op, by tracing its definition; what is inside is called node/op."""
        inside = Trace({}, expand=True)
        given = {f"input {i}": name for i, name in enumerate(inputs) if name is not None}
        tensors = [inside.input(inner, self.shapes[name]) for inner, name in given.items()]
        result = OPS[node.op].function(*tensors, **node.attrs)
        names = given | {inner: f"{node.name}/{inner}" for inner in inside.nodes} | {result.name: node.name}
        for step in inside.nodes.values():
            renamed = Node(names[step.name], step.op, step.inputs, step.attrs, step.shape, node.scope)
            self.translate(renamed, tuple(None if i is None else names[i] for i in step.inputs))


Rule = Callable[..., Any]


def _plain(operator: str, **names: str) -> Rule:
    """The same operator under another name; `names` are its attributes and what they are called here."""

    def rule(w: _Writer, node: Node, *inputs: str | None) -> None:
        w.emit(operator, inputs, node.name, **{theirs: node.attrs[ours] for theirs, ours in names.items()})

    return rule


def _pair(value: Any) -> tuple[Any, Any]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _conv2d(w: _Writer, node: Node, x: str, weight: str, bias: str | None) -> None:
    (top, bottom), (left, right) = map(_pair, _pair(node.attrs["padding"]))
    strides, dilations = _pair(node.attrs["stride"]), _pair(node.attrs["dilation"])
    w.emit(
        "Conv", [x, weight, bias], node.name, kernel_shape=w.shapes[weight][2:], strides=strides, dilations=dilations,
        pads=(top, left, bottom, right), group=node.attrs["groups"],
    )  # fmt: skip


def _linear(w: _Writer, node: Node, x: str, weight: str, bias: str | None) -> None:
    if len(node.shape) == 2:
        w.emit("Gemm", [x, weight, bias], node.name, transB=1)
        return
    weight = w.constant(f"{weight}/transposed", w.params[weight].T)  # of tokens, a matrix product is the form that fuses
    product = w.emit("MatMul", [x, weight], node.name if bias is None else f"{node.name}/product")
    if bias is not None:
        w.emit("Add", [product, bias], node.name)


def _scale(w: _Writer, node: Node, x: str) -> None:
    w.emit("Mul", [x, w.constant(f"{node.name}/factor", node.attrs["factor"])], node.name)


def _silu(w: _Writer, node: Node, x: str) -> None:
    w.emit("Mul", [x, w.emit("Sigmoid", [x], f"{node.name}/sigmoid")], node.name)


def _gelu(w: _Writer, node: Node, x: str) -> None:
    """x Phi(x) = x (1 + erf(x / sqrt 2)) / 2, or x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""

    def step(operator: str, a: str, b: str | float | None = None, name: str = "") -> str:
        output = f"{node.name}/{name or operator}"
        return w.emit(operator, [a, w.constant(f"{output} by", b) if isinstance(b, float) else b], output)

    half = w.constant(f"{node.name}/half", 0.5)
    if node.attrs["approximate"] == "none":
        y = step("Mul", x, step("Add", step("Erf", step("Div", x, math.sqrt(2))), 1.0))
    else:
        cube = step("Mul", x, step("Mul", x, x, "square"), "cube")
        inner = step("Add", x, step("Mul", cube, 0.044715, "small"), "sum")
        y = step("Mul", x, step("Add", step("Tanh", step("Mul", inner, math.sqrt(2 / math.pi), "inner")), 1.0))
    w.emit("Mul", [y, half], node.name)


def _reshape(w: _Writer, node: Node, x: str) -> None:
    w.emit("Reshape", [x, w.constant(f"{node.name}/shape", np.array(node.shape, np.int64))], node.name)


def _getitem(w: _Writer, node: Node, x: str) -> None:
    """Slice, then Reshape where axes come or go."""
    shape, index = w.shapes[x], node.attrs["index"]
    parts = [part for part in (index if isinstance(index, tuple) else (index,)) if part is not None]
    at = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    parts[at : at + 1] = [slice(None)] * (len(shape) - len(parts) + (at < len(parts)))
    starts, ends, axes, steps, length = [], [], [], [], list(shape)
    for axis, (part, size) in enumerate(zip(parts, shape, strict=True)):
        chosen = range(size)[part] if isinstance(part, slice) else range(size)[part : part + 1 or None]
        length[axis] = len(chosen)
        if len(chosen) < size or chosen.step != 1:
            starts.append(chosen.start)
            ends.append(chosen.stop if chosen.stop >= 0 else -size - 1)
            axes.append(axis)
            steps.append(chosen.step)
    reshaped = tuple(length) != node.shape
    if axes:
        named = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
        inputs = [w.constant(f"{node.name}/{what}", np.array(value, np.int64)) for what, value in named.items()]
        x = w.emit("Slice", [x, *inputs], f"{node.name}/slice" if reshaped else node.name)
    if reshaped:
        _reshape(w, node, x)
    elif not axes:
        w.emit("Identity", [x], node.name)


def _pad(w: _Writer, node: Node, x: str) -> None:
    widths = np.array(node.attrs["widths"], np.int64).T.reshape(-1)  # all before, then all after
    inputs = [w.constant(f"{node.name}/widths", widths), w.constant(f"{node.name}/value", node.attrs["value"])]
    w.emit("Pad", [x, *inputs], node.name)


def _broadcast(w: _Writer, node: Node, x: str) -> None:
    w.emit("Expand", [x, w.constant(f"{node.name}/shape", np.array(node.shape, np.int64))], node.name)


def _mean(w: _Writer, node: Node, x: str) -> None:
    rank, keep = len(w.shapes[x]), node.attrs["keepdims"]
    axes = tuple(sorted(a % rank for a in node.attrs["axes"]))
    if rank == 4 and axes == (2, 3):  # stays in the blocked layout that convolutions have
        y = w.emit("GlobalAveragePool", [x], node.name if keep else f"{node.name}/pooled")
        if not keep:
            _reshape(w, node, y)
    else:
        w.emit("ReduceMean", [x], node.name, axes=axes, keepdims=int(keep))


def _adaptive_avg_pool(w: _Writer, node: Node, x: str) -> None:
    kernel = [old // new for old, new in zip(w.shapes[x][2:], node.shape[2:], strict=True)]
    if [k * new for k, new in zip(kernel, node.shape[2:], strict=True)] == list(w.shapes[x][2:]):
        w.emit("AveragePool", [x], node.name, kernel_shape=kernel, strides=kernel)
    else:
        _rows_and_columns(w, node, x)


def _resize(w: _Writer, node: Node, x: str) -> None:
    old, new, mode = w.shapes[x][2:], node.shape[2:], node.attrs["mode"]
    whole = all(max(a, b) % min(a, b) == 0 for a, b in zip(old, new, strict=True))
    if old == new:
        w.emit("Identity", [x], node.name)
    elif mode == "bicubic" or node.attrs["antialias"] or (mode == "nearest" and not whole):
        _rows_and_columns(w, node, x)  # no operator has this rule, or only up to how it rounds positions
    else:
        if mode == "nearest":
            rule = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        else:
            corners = "align_corners" if node.attrs["align_corners"] else "half_pixel"
            rule = {"mode": "linear", "coordinate_transformation_mode": corners}
        sizes = w.constant(f"{node.name}/sizes", np.array(node.shape, np.int64))
        w.emit("Resize", [x, None, None, sizes], node.name, **rule)


def _rows_and_columns(w: _Writer, node: Node, x: str) -> None:
    """An op that is linear along rows and columns, as a matrix on either side of the map: what it makes of the identity."""
    (h, width), (p, q) = w.shapes[x][2:], node.shape[2:]
    run = OPS[node.op].function
    right = run(np.eye(width)[None, None], **{**node.attrs, "size": (width, q)})[0, 0]
    left = run(np.eye(h)[None, None], **{**node.attrs, "size": (p, h)})[0, 0]
    y = w.emit("MatMul", [x, w.constant(f"{node.name}/right", right)], f"{node.name}/columns")
    w.emit("MatMul", [w.constant(f"{node.name}/left", left), y], node.name)


def _mask_tail(w: _Writer, node: Node, x: str) -> None:
    mask = np.zeros((node.shape[1], 1, 1, node.shape[4]))
    mask[-1, ..., node.attrs["valid"] :] = node.attrs["value"]
    w.emit("Add", [x, w.constant(f"{node.name}/mask", mask)], node.name)


RULES: dict[str, Rule] = {
    "adaptive_avg_pool": _adaptive_avg_pool,
    "add": _plain("Add"),
    "batch_norm": _plain("BatchNormalization", epsilon="eps"),
    "broadcast": _broadcast,
    "concat": _plain("Concat", axis="axis"),
    "conv2d": _conv2d,
    "gelu": _gelu,
    "getitem": _getitem,
    "hardswish": _plain("HardSwish"),
    "layer_norm": _plain("LayerNormalization", epsilon="eps"),
    "linear": _linear,
    "mask_tail": _mask_tail,
    "matmul": _plain("MatMul"),
    "mean": _mean,
    "multiply": _plain("Mul"),
    "pad": _pad,
    "relu": _plain("Relu"),
    "reshape": _reshape,
    "resize": _resize,
    "scale": _scale,
    "sigmoid": _plain("Sigmoid"),
    "silu": _silu,
    "softmax": _plain("Softmax", axis="axis"),
    "transpose": _plain("Transpose", perm="axes"),
}
