"""What a candidate knows of the places of its values beside their names."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field

from refvit.crosscheck.observed import Observed
from refvit.graph.ir import Array


@dataclass(frozen=True)
class Layer:
    """The constants of a convolution or linear layer: weight (out, in, ...), bias (out,), or None where none is added."""

    weight: Array
    bias: Array | None


@dataclass(frozen=True)
class Located(Observed):
    """An `Observed` whose names need not be paths of modules.

    paths: value -> path of the module that computes it, among other values perhaps, as its parameters are called
    owners: parameter -> path of the module that reads it, where its own name does not say so
    layers: value -> the layer that makes it
    apart: values of another run than the others, which was made because showing these changes what is computed
    """

    paths: Mapping[str, str] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, Layer] = field(default_factory=dict)
    apart: frozenset[str] = frozenset()


def path_of_slashes(name: str) -> str:
    """The module in a name like "/blocks/blocks.0/attn/qkv/Add_output_0": "blocks.0.attn.qkv"; "" if it is no such name.

    A container that is called itself repeats its path in the names of its children.
    """
    if not name.startswith("/"):
        return ""
    path: list[str] = []
    for part in name.split("/")[1:-1]:
        if path and part.startswith(path[-1] + "."):
            path.pop()
        path.append(part)
    return ".".join(path)


def path_of_scopes(scopes: str) -> str:
    """The module in what torch.onnx writes beside a node: "['', 'blocks', 'blocks.0', 'add']" -> "blocks.0"."""
    try:
        found = ast.literal_eval(scopes)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""
    return found[-2] if isinstance(found, list) and len(found) > 1 and all(isinstance(s, str) for s in found) else ""
