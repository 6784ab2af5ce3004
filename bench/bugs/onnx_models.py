"""ONNX files of a reference: refvit's own export, and what torch's exporter makes of timm, transformers and our modules.

The values of the reference are found in them by running the file in float64 with onnx's own evaluator, and comparing.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from bench.bugs.sites import Names
from bench.bugs.subjects import Reference
from bench.bugs.torch_models import build, result
from refvit.graph.ir import Array
from refvit.graph.onnx import to_onnx

FOLDED = 3e-5  # what the rounding of folded weights may change


class RefusedError(Exception):
    """torch's exporter does not know an operator of a right module: there is no file to look at."""


class Onnx:
    """An ONNX model that is right until it is edited.

    names: value of the reference -> the tensor that is it
    before: what the right model computes in float64, by values of the reference
    """

    def __init__(self, reference: Reference, form: str) -> None:
        self.reference, self.graph, self.form = reference, reference.graph, form
        self.model = onnx.load_from_string(self.export())
        self.names: dict[str, str] = {}
        known = Names(reference, FOLDED)
        for tensor, y in self.run().items():
            value = known.find(y) if form != "refvit" else tensor if tensor in self.graph.nodes else None
            if value is not None and value not in self.names:
                self.names[value] = tensor
        for public, value in self.graph.outputs.items():
            if value not in self.names and form == "refvit":
                self.names[value] = public
        self.before = self.values()

    def export(self) -> bytes:
        if self.form == "refvit":
            return to_onnx(self.graph, self.reference.weights.params)
        return exported(self.reference, self.form)

    def bytes(self) -> bytes:
        return self.model.SerializeToString()

    def run(self) -> dict[str, Array]:
        """Every tensor of the model, computed in float64."""
        from onnx.reference import ReferenceEvaluator

        model = doubled(self.model)
        (given,) = (i.name for i in model.graph.input)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = ReferenceEvaluator(model).run(None, {given: self.reference.x.astype(np.float64)}, intermediate=True)
        return {name: np.asarray(y) for name, y in found.items() if isinstance(y, np.ndarray) and y.dtype == np.float64}

    def values(self) -> dict[str, Array]:
        """What the model computes in float64, by values of the reference."""
        found = self.run()
        return {value: found[tensor] for value, tensor in self.names.items() if tensor in found}

    def recognisable(self) -> set[str]:
        """Values whose name, or whose weights, tell which they are, even where they are wrong."""
        weighted = ("conv2d", "linear", "batch_norm", "layer_norm")
        return {v for v in self.names if self.form == "refvit" or self.graph.nodes[v].op in weighted}

    def producer(self, value: str) -> onnx.NodeProto | None:
        """The node that computes a value."""
        tensor = self.names.get(value)
        return next((node for node in self.model.graph.node if tensor is not None and tensor in node.output), None)

    def produced(self, *operators: str) -> list[tuple[str, onnx.NodeProto]]:
        """The values that nodes of these operators compute, with them."""
        by_tensor = {tensor: node for node in self.model.graph.node for tensor in node.output}
        found = ((value, by_tensor.get(tensor)) for value, tensor in self.names.items())
        return [(value, node) for value, node in found if node is not None and node.op_type in operators]

    def weighted(self, value: str) -> tuple[onnx.NodeProto, Array] | None:
        """The node whose second input is the weight that computes a value, and the weight."""
        node = self.producer(value)
        if node is not None and node.op_type == "Add":  # of a bias, behind a product
            products = [n for n in self.model.graph.node if n.op_type == "MatMul" and n.output[0] in node.input]
            node = products[0] if products else None
        if node is None or node.op_type not in ("Conv", "Gemm", "MatMul"):
            return None
        weight = self.array(node.input[1])
        return None if weight is None else (node, weight)

    def array(self, name: str) -> Array | None:
        """A constant of the model."""
        found = next((t for t in self.model.graph.initializer if t.name == name), None)
        return None if found is None else numpy_helper.to_array(found).copy()

    def write(self, name: str, a: Array) -> str:
        """Set a constant of the model, or add one; its name."""
        for tensor in self.model.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(a), name))
                return name
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(a), name))
        return name

    def own(self, node: onnx.NodeProto, i: int, a: Array) -> None:
        """Give a node a constant input of its own, so that no other node that shares it changes."""
        node.input[i] = self.write(f"{node.output[0]} own {i}", a)

    def put(self, value: str, steps: list[tuple[str, list[str], str, dict[str, Any]]]) -> None:
        """Compute a value by other nodes: operator, inputs, output ("" for the value itself) and attributes of each."""
        node = self.producer(value)
        assert node is not None
        at = next(i for i, other in enumerate(self.model.graph.node) if other is node)
        tensor = self.names[value]
        new = [helper.make_node(op, inputs, [output or tensor], **attrs) for op, inputs, output, attrs in steps]
        nodes = list(self.model.graph.node)
        nodes[at : at + 1] = new
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same in float64."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    single, double = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == single:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for node in graph.node:
        for a in node.attribute:
            if a.type == onnx.AttributeProto.TENSOR and a.t.data_type == single:
                a.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(a.t).astype(np.float64), a.t.name))
            if node.op_type == "Cast" and a.name == "to" and a.i == single:
                a.i = double
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == single:
            value.type.tensor_type.elem_type = double
    del graph.value_info[:]
    return model


def exported(reference: Reference, form: str) -> bytes:
    """By torch's exporter; form is "timm", "transformers" or "own", with " traced" behind it for the older one.

    RefusedError where the exporter says that it cannot.
    """
    kind, _, way = form.partition(" ")
    module = build(reference, kind)

    class Answer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return result(self.model(x))

    x = torch.from_numpy(reference.x)
    with warnings.catch_warnings(), _silent(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return _export(Answer().eval(), x, way == "traced")
        except (torch.onnx.errors.UnsupportedOperatorError, torch.onnx.OnnxExporterError) as error:
            raise RefusedError(str(error)) from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what the exporters print; the older one prints a graph that it gives up from C++, past `sys.stdout`."""
    sys.stdout.flush()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def _export(module: torch.nn.Module, x: torch.Tensor, traced: bool) -> bytes:
    if traced:
        file = io.BytesIO()
        torch.onnx.export(module, (x,), file, dynamo=False, opset_version=17, input_names=["x"])
        return file.getvalue()
    program = torch.onnx.export(module, (x,), dynamo=True, opset_version=20, verbose=False)
    return program.model_proto.SerializeToString()
