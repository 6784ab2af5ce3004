"""Where in a torch module each value of the reference is computed, and where it is shown; and a way to break single steps.

Nobody's names are trusted: the right module runs once in float64, and whatever it computes that equals a value of the reference
is that value. A step is broken by replacing one call of a torch function during the forward pass, the k-th of its kind, or by
editing the module that owns the step's weights.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bench.bugs.subjects import Reference
from bench.bugs.torch_models import build, result
from refvit.graph.ir import Array, Node

Call = tuple[str, int]
Change = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]  # function, arguments -> what is computed instead

KINDS = {  # op of the reference -> torch functions that may compute it
    "conv2d": {"conv2d"}, "linear": {"linear"}, "layer_norm": {"layer_norm"}, "batch_norm": {"batch_norm"},
    "gelu": {"gelu"}, "silu": {"silu"}, "relu": {"relu"}, "hardswish": {"hardswish"}, "softmax": {"softmax"},
    "add": {"add"}, "scale": {"mul", "div", "truediv"}, "concat": {"cat"}, "resize": {"interpolate"},
    "matmul": {"matmul", "div", "truediv", "scaled_dot_product_attention"}, "mean": {"mean", "adaptive_avg_pool2d", "flatten"},
    "reshape": {"reshape", "view", "flatten"}, "transpose": {"permute", "transpose"}, "mask_tail": {"add"},
    "getitem": {"getitem", "transpose"}, "broadcast": {"interpolate"},
}  # fmt: skip
COUNTED = frozenset().union(*KINDS.values())
CLOSE = 1e-6  # of the largest value: timm resamples position embeddings in float32


class Watch(TorchFunctionMode):
    """Numbers the calls of the functions above, by kind, and gives each to `act`."""

    def __init__(self, act: Callable[[Call, Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()
        self.act, self.counts = act, Counter[str]()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = getattr(function, "__name__", "").strip("_")
        if kind.startswith("r") and kind[1:] in COUNTED:  # __radd__
            kind = kind[1:]
        if kind not in COUNTED:
            return function(*args, **(kwargs or {}))
        self.counts[kind] += 1
        return self.act((kind, self.counts[kind] - 1), function, args, kwargs or {})


class Torch:
    """A torch module that is right until it is edited.

    shown: path of a module -> the value of the reference that it returns
    calls: value of the reference -> the call that computes it
    owners: parameter of the reference -> path of the same tensor in the module
    edits: what is computed in place of a call. results: what becomes of a call's result, broken or not
    hidden: values that are not shown, since a hook behind them changes what became of them
    """

    def __init__(self, reference: Reference, form: str) -> None:
        self.reference, self.graph, self.form = reference, reference.graph, form
        self.module = build(reference, form)
        self.edits: dict[Call, Change] = {}
        self.results: dict[Call, Callable[[torch.Tensor], torch.Tensor]] = {}
        self.hidden: set[str] = set()
        self._kept: dict[Call, Array] | None = None
        self._watch: Watch | None = None  # during a pass
        self._names = Names(reference)
        self.calls: dict[str, Call] = {}
        self.shown: dict[str, str] = {}
        self.before = self._record()
        self.owners = self._find_owners()
        self._forward = self.module.forward
        self.module.forward = functools.partial(self._broken_forward)

    def nodes(self, *ops: str) -> list[Node]:
        """The nodes of these ops that a call of this module computes."""
        return [node for node in self.graph if node.op in ops and node.name in self.calls]

    def recognisable(self) -> set[str]:
        """Values that are shown by a module whose name, or whose weights, tell which they are, even where they are wrong."""
        names = self.graph.names()
        modules = dict(self.module.named_modules())
        return {
            v
            for path, v in self.shown.items()
            if names.get(path) == v or next(modules[path].parameters(False), None) is not None
        }

    def owner(self, value: str) -> nn.Module | None:
        """The module that owns the weight which computes a value."""
        parameter = next((i for i in self.graph.nodes[value].inputs[1:] if i in self.owners), None)
        return None if parameter is None else self.module.get_submodule(self.owners[parameter].rpartition(".")[0])

    def tensor(self, parameter: str) -> torch.Tensor | None:
        """The module's tensor of a parameter of the reference."""
        path = self.owners.get(parameter)
        if path is None:
            return None
        module, _, leaf = path.rpartition(".")
        found: torch.Tensor = getattr(self.module.get_submodule(module), leaf)
        return found

    def edit(self, value: str, change: Change) -> None:
        """Compute a value by `change(function, args, kwargs)` from now on."""
        self.edits[self.calls[value]] = change

    def taken(self, module: nn.Module, scope: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change what a module takes, by torch functions that are not counted. What makes it, in `scope`, is hidden."""

        def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            with torch._C.DisableTorchFunction():
                return (change(args[0]), *args[1:])

        module.register_forward_pre_hook(hook)
        self.hidden |= {name for name in self.graph.nodes if name.startswith(f"{scope}.")}

    def counted(self, kind: str) -> int:
        """How many calls of a kind there are in a pass."""
        return self._counts[kind]

    def leaf(self, value: str, *kinds: type[nn.Module]) -> str | None:
        """The path of a module of these kinds without children that computes the value."""
        for path, name in self.shown.items():
            module = self.module.get_submodule(path)
            if name == value and isinstance(module, kinds) and not list(module.children()):
                return path
        return None

    def replace(self, path: str, module: nn.Module) -> None:
        """Another module in place of one that computes its value by a single call, which keeps its number."""
        parent, _, leaf = path.rpartition(".")
        old, forward = self.module.get_submodule(path), module.eval().forward

        def run(x: torch.Tensor) -> torch.Tensor:
            if self._watch is None:
                return forward(x)
            old(x.clone())
            with torch._C.DisableTorchFunction():
                y: torch.Tensor = forward(x)
                kind = self.calls[self.shown[path]][0]
                call = (kind, self._watch.counts[kind] - 1)
                y = self.results[call](y) if call in self.results else y
            if self._kept is not None:
                self._kept[call] = y.detach().double().numpy().copy()
            return y

        module.forward = run
        setattr(self.module.get_submodule(parent), leaf, module)

    def values(self, dtype: torch.dtype = torch.float64, x: Array | None = None) -> dict[str, Array]:
        """What the module shows, by values of the reference, computed in `dtype`."""
        self.module.to(dtype)
        try:
            with torch.no_grad(), self._hooked() as found:
                self.module(torch.from_numpy(self.reference.x if x is None else x).to(dtype))
        finally:
            self.module.float()
        return {self.shown[path]: y for path, y in reversed(list(found.items())) if path in self.shown}

    def everything(self, dtype: torch.dtype = torch.float64, x: Array | None = None) -> dict[str, Array]:
        """As `values`, and what is computed between modules as well, in the order of the graph."""
        self._kept = {}
        try:
            shown = self.values(dtype, x)
            known = {value: self._kept[call] for value, call in self.calls.items() if call in self._kept}
        finally:
            self._kept = None
        found = known | shown
        return {value: found[value] for value in self.graph.nodes if value in found and value not in self.hidden}

    def _broken_forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.edits and not self.results and self._kept is None:
            return self._forward(*args, **kwargs)

        def act(call: Call, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            y = self._edited(call, function, args, kwargs) if call in self.edits else function(*args, **kwargs)
            y = self.results[call](y) if call in self.results else y
            if self._kept is not None and isinstance(y, torch.Tensor):
                self._kept[call] = y.detach().double().numpy().copy()
            return y

        with Watch(act) as self._watch:
            y = self._forward(*args, **kwargs)
        watch, self._watch = self._watch, None
        if watch.counts != self._counts:
            raise RuntimeError("other calls than in the recorded pass: observing has called torch functions of its own")
        return y

    def _edited(self, call: Call, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In float32 where the module is in half precision, and rounded once: a step that is made of several there."""
        halves = {a.dtype for a in (*args, *(args[0] if args and isinstance(args[0], (list, tuple)) else ()))
                  if isinstance(a, torch.Tensor) and a.dtype in (torch.float16, torch.bfloat16)}  # fmt: skip
        if not halves:
            return self.edits[call](function, args, kwargs)

        def wide(value: Any) -> Any:
            if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
                return type(value)(wide(v) for v in value)
            return value.float() if isinstance(value, torch.Tensor) and value.dtype in halves else value

        y = self.edits[call](function, tuple(wide(a) for a in args), {k: wide(v) for k, v in kwargs.items()})
        return y.to(next(iter(halves))) if isinstance(y, torch.Tensor) else y

    @contextmanager
    def _hooked(self) -> Iterator[dict[str, Array]]:
        found: dict[str, Array] = {}

        def keep(path: str, _module: nn.Module, _inputs: Any, y: Any) -> None:
            y = result(y) if path == "" else y
            if isinstance(y, torch.Tensor) and y.is_floating_point():
                found.setdefault(path, y.detach().double().numpy().copy())

        handles = [m.register_forward_hook(functools.partial(keep, path)) for path, m in self.module.named_modules()]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def _record(self) -> dict[str, Array]:
        """Fill calls and shown from a float64 pass; what the module shows, by values of the reference."""

        def act(call: Call, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            y = function(*args, **kwargs)
            if isinstance(y, torch.Tensor) and y.is_floating_point():
                name = self._names.find(y.detach().numpy(), call[0], self.calls)
                if name is not None:
                    self.calls[name] = call
            return y

        self.module.double()
        with torch.no_grad(), self._hooked() as found, Watch(act) as watch:
            self.module(torch.from_numpy(self.reference.x).double())
        self.module.float()
        self._counts = watch.counts
        for path, y in found.items():
            name = self._names.find(y)
            if name is not None:
                self.shown[path] = name
        return {self.shown[path]: y for path, y in reversed(list(found.items())) if path in self.shown}

    def _find_owners(self) -> dict[str, str]:
        tensors = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        left = {path: t.numpy() for path, t in tensors.items() if t.is_floating_point()}
        owners: dict[str, str] = {}
        for name, a in self.reference.weights.params.items():
            same = (path for path, b in left.items() if a.shape == b.shape and np.array_equal(a, b))
            path = next(same, None)
            if path is not None:
                owners[name] = path
                del left[path]
        return owners


class Names:
    """Values of the reference by what they are."""

    def __init__(self, reference: Reference, close: float = CLOSE) -> None:
        self.nodes, self.close = reference.graph.nodes, close
        self.golden = reference.golden
        self.by_shape: dict[tuple[int, ...], list[tuple[float, str]]] = {}
        for name, a in self.golden.items():
            self.by_shape.setdefault(a.shape, []).append((self._print(a), name))

    def find(self, y: Array, kind: str | None = None, taken: Mapping[str, Any] | None = None) -> str | None:
        """The first value equal to y, of an op that a call of this kind computes, not taken yet."""
        if y.shape not in self.by_shape:
            return None
        mark = self._print(y)
        for other, name in self.by_shape[y.shape]:
            fits = kind is None or (kind in KINDS.get(self.nodes[name].op, ()) and name not in (taken or {}))
            if fits and abs(other - mark) <= self.close * max(1.0, abs(other)) * y.size**0.5:
                golden = self.golden[name]
                if np.abs(golden - y).max() <= self.close * max(np.abs(golden).max(), 1e-30):
                    return name
        return None

    @staticmethod
    def _print(a: Array) -> float:
        return float(np.sin(np.arange(1, a.size + 1) * 0.7) @ a.ravel())
