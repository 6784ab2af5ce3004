"""More mistakes made in ONNX files: attention, order of parts, precision; and slips that no table has."""

from __future__ import annotations

import numpy as np
import onnx

from bench.bugs.attention import other_scale
from bench.bugs.bug import Bug, Done
from bench.bugs.onnx_bugs import _node, _source, folded, of, products
from bench.bugs.onnx_models import Onnx, attribute, set_attribute
from refvit.graph.ir import Array


def _scales(o: Onnx) -> list[str]:
    """Scaled queries, and scores of fused exports that scale queries and keys alike."""
    return [value for value, _ in o.produced("Mul") if value.endswith("attention.scale")]


def _scale(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    node, reference = _node(o, value), o.graph.nodes[value]
    i = next((i for i, name in enumerate(node.input) if o.array(name) is not None), None)
    if i is None:
        return None
    right, d = float(reference.attrs["factor"]), reference.shape[-1]
    detail, wrong = other_scale(rng, right, d, d * reference.shape[-3])
    o.own(node, i, np.array(wrong, np.float32))
    return Done(detail, (value, f"{value.rpartition('.')[0]}.matmul"))


def _softmaxes(o: Onnx) -> list[str]:
    found = [value for value, _ in o.produced("Softmax")]
    return [v for v in found if o.graph.nodes[v].shape[-1] == o.graph.nodes[v].shape[-2] > 1]


def _axis(o: Onnx, value: str, rng: np.random.Generator) -> Done:
    set_attribute(_node(o, value), "axis", len(o.graph.nodes[value].shape) - 2)
    return Done("axis -2", (value,))


def _concats(o: Onnx) -> list[str]:
    """Of maps along their channels; the order of tokens is another mistake."""
    found = [(o.graph.nodes[value], node) for value, node in o.produced("Concat") if o.graph.nodes[value].op == "concat"]
    return [n.name for n, node in found if len(node.input) > 1 and len(n.shape) == 4 and n.attrs["axis"] == 1]


def _reordered(o: Onnx, value: str, rng: np.random.Generator) -> Done:
    node = _node(o, value)
    names = list(node.input)
    del node.input[:]
    node.input.extend([*names[1:], names[0]])
    return Done("the first part last", (value,))


def _sums(o: Onnx) -> list[str]:
    """Additions of two values of the network."""
    parts = ("blocks.", "branches.", "transformer.", "layer1.", "stages.")
    found = [value for value, node in o.produced("Add") if o.graph.nodes[value].op == "add"]
    return [v for v in found if v.startswith(parts) or any(f".{p}" in v for p in parts)]


def _no_residual(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    order, inputs = list(o.graph.nodes), [str(i) for i in o.graph.nodes[value].inputs]
    if any(i not in order or i not in o.names for i in inputs):
        return None
    branch = max(inputs, key=order.index)
    if o.names[branch] not in _node(o, value).input:
        return None
    o.put(value, [("Identity", [o.names[branch]], "", {})])
    return Done("the branch alone", (value,))


def _heads(o: Onnx) -> list[str]:
    found = [value for value, _ in o.produced("Transpose") if value.endswith("attn.transpose_1")]
    return [v for v in found if min(o.graph.nodes[v].shape[1:3]) > 1]


def _merged(o: Onnx, value: str, rng: np.random.Generator) -> Done:
    node, shape = _node(o, value), o.graph.nodes[value].shape
    wanted = o.write(f"{value} shape", np.array(shape, np.int64))
    o.put(value, [("Reshape", [node.input[0], wanted], "", {})])
    return Done("Reshape in place of Transpose", (value, f"{value.removesuffix('transpose_1')}reshape_1"))


def _slices(o: Onnx) -> list[str]:
    """Queries of a fused projection, cut out of it."""
    return [value for value, _ in o.produced("Slice", "Squeeze", "Gather", "Reshape") if value.endswith("attn.getitem")]


def _roles(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    """Two of the three exchanged wherever they are read."""
    names = [value, f"{value}_1", f"{value}_2"]
    if any(name not in o.names for name in names):
        return None
    pairs: list[tuple[int, int]] = [(0, 1), (0, 2), (1, 2)]
    i, j = pairs[rng.integers(3)]
    a, b = o.names[names[i]], o.names[names[j]]
    for node in o.model.graph.node:
        for k, name in enumerate(node.input):
            node.input[k] = {a: b, b: a}.get(name, name)
    scope = value.removesuffix("getitem")
    inside = tuple(name for name in o.graph.nodes if name.startswith((f"{scope}attention", f"{scope}getitem")))
    return Done(f"{'qkv'[i]} and {'qkv'[j]} exchanged", (*inside, f"{scope}transpose", f"{scope}reshape"))


def _folds(o: Onnx) -> list[str]:
    return [v for v, node in o.produced("Transpose") if v.endswith("fold_patches.transpose") and "unfold" not in v]


def _fold(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    node = _node(o, value)
    perm = list(attribute(node, "perm", []))
    if perm != [0, 5, 3, 1, 4, 2]:
        return None
    set_attribute(node, "perm", [0, 5, 3, 2, 4, 1])
    scope = value.rpartition(".")[0]
    return Done("rows and columns within a patch exchanged", tuple(n for n in o.graph.nodes if n.startswith(scope)))


def _first(o: Onnx) -> list[str]:
    return [next(v for v, node in o.produced("Conv"))]


def _stored(o: Onnx, value: str, rng: np.random.Generator) -> Done:
    for tensor in o.model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            a = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(a.astype(np.float16).astype(np.float32), tensor.name))
    return Done("all constants rounded to float16", (value,))


def _one_element(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    found = o.weighted(value)
    if found is None:
        return None
    node, a = found
    i = int(rng.integers(a.size))
    a.reshape(-1)[i] = -3 * a.reshape(-1)[i] + 2 * a.std()
    o.own(node, 1, a)
    return Done(f"element {i} of the weight", folded(o, value))


def _clipped(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    x, top = _source(o, value), float(o.reference.golden[value].max())
    limit = top * float(rng.uniform(0.4, 0.8))
    if x is None or top == 0:
        return None
    ends = [o.write(f"{value} {name}", np.array(v, np.float32)) for name, v in (("low", 0), ("high", limit))]
    o.put(value, [("Clip", [x, *ends], "", {})])
    return Done(f"clipped at {limit:.3g}", (value,))


def _channel(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    """One filter of a convolution, with its bias, scaled."""
    found = o.weighted(value)
    if found is None or found[0].op_type != "Conv":
        return None
    node, a = found
    i, factor = int(rng.integers(a.shape[0])), np.float32(rng.choice([rng.uniform(0.6, 0.95), rng.uniform(1.05, 1.6)]))
    a[i] *= factor
    o.own(node, 1, a)
    if len(node.input) > 2 and (bias := o.array(node.input[2])) is not None:
        bias[i] *= factor
        o.own(node, 2, bias)
    return Done(f"channel {i} by {factor:.4g}", folded(o, value))


def _inputs_first(node: onnx.NodeProto, a: Array) -> Array:
    """A view of a weight with the inputs of the product along the first axis."""
    first = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))
    return a if first else a.swapaxes(0, 1)


def _short_sum(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    found = o.weighted(value)
    if found is None or (rows := _inputs_first(*found)).shape[0] <= 8:
        return None
    last = int(rng.integers(1, rows.shape[0] // 8 + 1))
    rows[-last:] = 0
    o.own(found[0], 1, found[1])
    return Done(f"the last {last} inputs left out", folded(o, value))


def _neighbour(o: Onnx, value: str, rng: np.random.Generator) -> Done | None:
    """An input that counts for its neighbour: what reading a channel twice gives."""
    found = o.weighted(value)
    if found is None or (rows := _inputs_first(*found)).shape[0] <= 8:
        return None
    i = int(rng.integers(1, rows.shape[0]))
    rows[i - 1] += rows[i]
    rows[i] = 0
    o.own(found[0], 1, found[1])
    return Done(f"channel {i} read as {i - 1}", folded(o, value))


BUGS = (
    Bug("attention-scale", "scale of the attention", _scales, _scale),
    Bug("softmax-axis", "axis of a softmax", _softmaxes, _axis),
    Bug("concat-order", "a concatenation in another order", _concats, _reordered),
    Bug("residual-missing", "no residual", _sums, _no_residual),
    Bug("heads-merged", "heads put together without a transpose", _heads, _merged),
    Bug("qkv-order", "queries, keys and values exchanged", _slices, _roles),
    Bug("fold-order", "MobileViT's fold", _folds, _fold),
    Bug("weights-in-half-precision", "constants in half precision", _first, _stored),
)
OTHERS = (
    Bug("one-element", "one element of a weight", products, _one_element),
    Bug("clipped", "results clipped", of("Relu"), _clipped),
    Bug("one-channel-scaled", "one channel scaled", products, _channel),
    Bug("sum-too-short", "a sum leaves out its last terms", products, _short_sum),
    Bug("neighbouring-channel", "one input channel is read from its neighbour", products, _neighbour),
)
