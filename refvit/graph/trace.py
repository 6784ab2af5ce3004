"""From model code to a graph: the same functions, called on symbolic tensors instead of arrays.

`@op` marks a word of the vocabulary, `@block` a function with parameters of its own. On ndarrays both only check their
arguments; on a `Tensor` an op records a node. There is no global state: a tensor knows the trace it belongs to.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, ParamSpec, TypeVar

import numpy as np

from refvit.errors import ConfigError, ShapeError, TraceError
from refvit.graph.ir import OPS, Graph, HasShape, Node, Op, Shape, ShapeOnly, dims
from refvit.weights.params import Params

P = ParamSpec("P")
R = TypeVar("R")


class Tensor:
    """A value that has a name and a shape but no numbers, and the few operators that model code uses."""

    __slots__ = ("name", "shape", "trace")

    def __init__(self, trace: Trace, name: str, shape: Shape) -> None:
        self.trace, self.name, self.shape = trace, name, shape

    def __repr__(self) -> str:
        return f"Tensor({self.name}: {dims(self.shape)})"

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def _record(self, op: str, *tensors: Any, **attrs: Any) -> Tensor:
        return self.trace.record(OPS[op], tensors, attrs)

    def __add__(self, other: Tensor) -> Tensor:
        return self._record("add", self, other)

    def __radd__(self, other: Tensor) -> Tensor:
        return self._record("add", other, self)

    def __mul__(self, other: Tensor | float) -> Tensor:
        if isinstance(other, (int, float)):
            return self._record("scale", self, factor=other)
        return self._record("multiply", self, other)

    __rmul__ = __mul__

    def __matmul__(self, other: Tensor) -> Tensor:
        return self._record("matmul", self, other)

    def __getitem__(self, index: Any) -> Tensor:
        return self._record("getitem", self, index=index)

    def __iter__(self) -> Iterable[Tensor]:
        return (self[i] for i in range(self.shape[0]))

    def reshape(self, *shape: Any) -> Tensor:
        return self._record("reshape", self, shape=tuple(shape[0]) if isinstance(shape[0], Iterable) else shape)

    def transpose(self, *axes: Any) -> Tensor:
        return self._record("transpose", self, axes=tuple(axes[0]) if isinstance(axes[0], Iterable) else axes)

    def swapaxes(self, a: int, b: int) -> Tensor:
        axes = list(range(self.ndim))
        axes[a], axes[b] = axes[b], axes[a]
        return self.transpose(axes)

    def _value(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TraceError("model code looked at a tensor's value; under tracing only shapes and the config may steer it")

    __bool__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __float__ = __int__ = _value
    __hash__ = object.__hash__

    def _stray(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TraceError("NumPy was called on a traced tensor, or mixed with one; use refvit.ops and parameters in model code")

    __array__ = __array_ufunc__ = __array_function__ = _stray


class Trace:
    """A graph under construction."""

    def __init__(self, params: Mapping[str, HasShape], expand: bool) -> None:
        self.inputs: dict[str, HasShape] = {}
        self.params = params
        self.nodes: dict[str, Node] = {}
        self.aliases: dict[str, str] = {}
        self.scope = ""
        self.expand = expand

    def input(self, name: str, shape: Shape) -> Tensor:
        self.inputs[name] = ShapeOnly(shape)
        return Tensor(self, name, shape)

    def record(self, op: Op, tensors: tuple[Any, ...], attrs: Mapping[str, Any]) -> Tensor:
        attrs = {name: _plain(value) for name, value in attrs.items()}
        for value in tensors:
            if value is not None and (type(value) is not Tensor or value.trace is not self):
                what = "a tensor of another trace" if type(value) is Tensor else f"a {type(value).__name__}"
                raise TraceError(f"{op.name} in {self.scope or 'the model'}: {what} beside traced tensors; make it a parameter")
        if wrong := [name for name, value in attrs.items() if type(value) is Tensor]:
            raise TraceError(f"{op.name} in {self.scope or 'the model'}: the attribute {wrong[0]} is a tensor")
        shape = op.shape(*tensors, **attrs)
        if op.composite and self.expand:
            outer, name = self.scope, self._unique(self._join(op.name))
            self.scope = name  # so that the names outside are the same whether or not it is expanded
            try:
                result: Tensor = op.function(*tensors, **attrs)
            finally:
                self.scope = outer
            self.aliases[name] = result.name
            return result
        name = self._unique(self._base(op, tensors))
        inputs = tuple(None if t is None else t.name for t in tensors)
        self.nodes[name] = Node(name, op.name, inputs, attrs, shape, self.scope)
        return Tensor(self, name, shape)

    def alias(self, path: str, value: Tensor) -> None:
        """Name a block's result; a second call of the same block gets a number."""
        self.aliases[self._unique(path)] = value.name

    def _base(self, op: Op, tensors: tuple[Any, ...]) -> str:
        """The module path of the op's weights; without weights, or where that is the block itself, block path and op."""
        weight = next((t.name for t in tensors if t is not None and t.name in self.params), "")
        module = weight.rpartition(".")[0]
        return module if module and module != self.scope else self._join(op.name)

    def _join(self, name: str) -> str:
        return f"{self.scope}.{name}" if self.scope else name

    def _unique(self, base: str) -> str:
        name, i = base, 0
        while any(name in table for table in (self.nodes, self.aliases, self.inputs, self.params)):
            i += 1
            name = f"{base}_{i}"
        return name


def _check_arrays(op: Op, tensors: Iterable[Any]) -> None:
    """Eager calls: real arrays of one floating dtype, or NumPy would promote silently."""
    dtypes = set()
    for a in tensors:
        if a is None:
            continue
        if not isinstance(a, np.ndarray):
            raise ConfigError(f"{op.name}: expected NumPy arrays, got {type(a).__name__}")
        dtypes.add(a.dtype)
    if len(dtypes) > 1 or any(d.kind != "f" for d in dtypes):
        raise ConfigError(
            f"{op.name}: expected arrays of one floating dtype, got {', '.join(sorted(map(str, dtypes)))}; cast them first"
        )


def op(
    *, shape: Callable[..., Shape], macs: Callable[..., int] | None = None, composite: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Add a NumPy function to the vocabulary. Its positional parameters are tensors, its keyword-only ones attributes.

    `shape(*tensors, **attrs)` returns the result's shape or raises ShapeError; it is called before every eager call as well.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        attributes = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
        tensors = [p for p in signature.parameters.values() if p.kind is not p.KEYWORD_ONLY]
        names = tuple(f"*{p.name}" if p.kind is p.VAR_POSITIONAL else p.name for p in tensors)
        if not tensors or (names[-1].startswith("*") and len(names) > 1):
            raise TypeError(f"{function.__name__}: an op takes named tensors, at least one, or any number of them by *xs alone")
        defaults = {p.name: p.default for p in attributes if p.default is not p.empty}
        entry = Op(function.__name__, function, shape, macs, names, defaults, composite)
        OPS[entry.name] = entry

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise TypeError(f"{entry.name}: {error}") from None
            arrays = given.get(names[0][1:], ()) if entry.variadic else tuple(given.get(n) for n in names)
            attrs = defaults | {p.name: _plain(given[p.name]) for p in attributes if p.name in given}
            traced = next((a for a in arrays if type(a) is Tensor), None)
            if traced is not None:
                return traced.trace.record(entry, arrays, attrs)
            _check_arrays(entry, arrays)
            shape(*arrays, **attrs)
            return np.asarray(function(*arrays, **attrs))

        return call

    return decorate


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's: an eps of np.float64 would promote float32 arrays."""
    return value.item() if isinstance(value, np.generic) else value


def block(function: Callable[P, R]) -> Callable[P, R]:
    """Mark `function(x, p, ...)` as the block that owns the parameters `p`: it names nodes, intermediates and errors.

    x is a tensor or a list of them, as the branches of a network are; of a list that is returned, item i is called `path:i`.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        x, p = args[0], args[1]
        trace = _trace_of(x)
        outer = trace.scope if trace else ""
        try:
            if trace:
                trace.scope = p.path
            y = function(*args, **kwargs)
        except ShapeError as error:
            if getattr(error, "located", False) or not p.path:
                raise
            located = ShapeError(f"{p.path}: {error}")
            located.located = True  # type: ignore[attr-defined]
            raise located from None
        finally:
            if trace:
                trace.scope = outer
        if trace and p.path:
            results = {f"{p.path}:{i}": v for i, v in enumerate(y)} if isinstance(y, (list, tuple)) else {p.path: y}
            for path, value in results.items():
                if type(value) is Tensor:
                    trace.alias(path, value)
        return y

    return call


def _trace_of(x: Any) -> Trace | None:
    """The trace that a tensor, or the first of several in a list or dict, belongs to."""
    if isinstance(x, dict):
        x = list(x.values())
    if isinstance(x, (list, tuple)):
        return next((t for t in map(_trace_of, x) if t), None)
    return x.trace if type(x) is Tensor else None


def trace(
    function: Callable[..., Any], shape: Shape, params: Mapping[str, HasShape], *, expand: bool = False, **config: Any
) -> Graph:
    """Trace `function(x, p, **config)` for an input of `shape`; no weight is read, so shapes suffice as `params`.

    expand: record the definition of composite ops (attention, unfold, fold) instead of one node each.
    A dict returned by the function becomes named outputs; a single tensor is called "output".
    """
    state = Trace(params, expand)
    x = state.input("input", shape)
    symbolic = Params({name: Tensor(state, name, tuple(p.shape)) for name, p in params.items()})
    y = function(x, symbolic, **config)
    results: dict[str, Tensor] = y if isinstance(y, dict) else {"output": y}
    if wrong := [type(v).__name__ for v in results.values() if type(v) is not Tensor]:
        raise TraceError(f"{function.__name__} returned a {wrong[0]}; a tensor or a dict of tensors expected")
    outputs: dict[str, str] = {name: value.name for name, value in results.items()}
    return Graph(state.inputs, params, state.nodes, outputs, state.aliases).verify()
