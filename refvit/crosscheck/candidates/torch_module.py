"""A torch.nn.Module: what goes into and comes out of each of its modules, by hooks.

A value is copied when it appears, because the next module may write to it (activations with inplace=True do). What functions
compute between modules has no hook of its own; it is seen where it goes into the next module.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from refvit.crosscheck.candidates.collect import ROOT, as_array, attempt, dtype_of, floats, leaves
from refvit.crosscheck.observed import Observed
from refvit.errors import ConfigError
from refvit.graph.ir import Array

ARITHMETICS = {"torch.float64": "float64", "torch.float32": "float32", "torch.float16": "float16", "torch.bfloat16": "bfloat16"}
COMPILED = "_orig_mod."  # what torch.compile puts in front of names
SHOWN = 3  # names in a note
INPUT = "input"


class TorchModule:
    """A candidate. call(module, x) runs it where module(x) is not the way; outputs_only: without hooks.

    Its values are called by the paths of its modules: "blocks.0.attn", "blocks.0.attn[1]" for the second of several results,
    "blocks.0.attn#1" for the second call, "input of blocks.0.norm2" where that is no value seen before, and "output".
    """

    def __init__(
        self, module: Any, *, name: str = "", call: Callable[[Any, Any], Any] | None = None, outputs_only: bool = False
    ) -> None:
        self.module, self._outputs_only = module, outputs_only
        self.name = name or type(_plain(module)).__name__
        self._call = call or (lambda module, x: module(x))

    def run(self, x: Array) -> Observed:
        """The module as it is, training mode included, on its own device and in its own dtype. No gradients.

        Buffers that a module in training mode changes are put back, and hooks are always removed. ConfigError if it fails.
        """
        torch = importlib.import_module("torch")
        parameters = {
            n.replace(COMPILED, ""): a
            for source in (self.module.named_parameters, self.module.named_buffers)
            for n, p in source(remove_duplicate=False)
            if p.is_floating_point() and (a := self._array(p)) is not None
        }
        like = next((p for p in self.module.parameters() if p.is_floating_point()), torch.empty(0))
        given = torch.from_numpy(np.array(x)).to(device=like.device, dtype=like.dtype)
        seen = _Seen()
        seen.add(INPUT, given)
        hooks = contextlib.nullcontext() if self._outputs_only else _hooked(self.module, seen)
        with torch.no_grad(), _kept(self.module), hooks:
            result = attempt(f"{self.name} (a torch module)", x.shape, lambda: self._call(self.module, given))
            outputs = tuple(seen.add(name, value) for name, value in leaves(result, ROOT))
        notes = (*_notes(self.module, like), *seen.notes())
        return Observed(
            seen.values,
            tuple(filter(None, outputs)),
            parameters,
            scales=seen.scales,
            dtypes=seen.dtypes,
            arithmetic=None if seen.scales else ARITHMETICS.get(str(like.dtype)),
            notes=notes,
        )

    def _array(self, parameter: Any) -> Array | None:
        if parameter.is_meta:
            raise ConfigError(f"{self.name}: its parameters are on the meta device and have no values; load weights first")
        return as_array(parameter)


class _Seen:
    """Copies of values by name, in the order of their appearance."""

    def __init__(self) -> None:
        self.values: dict[str, Array] = {}
        self.scales: dict[str, tuple[float, float]] = {}
        self.dtypes: dict[str, str] = {}
        self._digests: set[bytes] = set()
        self._left_out: dict[str, None] = {}

    def add(self, name: str, value: Any, *, only_new: bool = False) -> str:
        """The name under which it is kept, "" if it is no array of floats. only_new: not what there is under another name."""
        quantised = bool(getattr(value, "is_quantized", False))
        a = as_array(value.dequantize() if quantised else value)
        if a is None or not floats(a):
            if not only_new:
                self._left_out[name] = None
            return ""
        digest = hashlib.blake2b(np.ascontiguousarray(a).data, digest_size=16, salt=str(a.shape)[:16].encode()).digest()
        if only_new and digest in self._digests:
            return ""
        self._digests.add(digest)
        called, calls = name, 0
        while called in self.values:
            calls += 1
            called = f"{name}#{calls}"
        self.values[called] = a
        self.dtypes[called] = "int8" if quantised else dtype_of(value)
        if quantised and "channel" not in str(value.qscheme()):
            self.scales[called] = (float(value.q_scale()), float(value.q_zero_point()))
        return called

    def notes(self) -> Iterator[str]:
        if self._left_out:
            yield f"{_some(list(self._left_out))}: no arrays of floating-point numbers, and not compared"


@contextmanager
def _hooked(root: Any, seen: _Seen) -> Iterator[None]:
    """Every module inside `root` tells what it takes and gives, as far as Python runs it."""
    handles: list[Any] = []

    def watch(module: Any, path: str) -> None:
        def before(_: Any, args: Any, kwargs: Any) -> None:
            for i, (_, value) in enumerate(leaves([args, kwargs], "")):
                seen.add(f"input of {path}" + (f"[{i}]" if i else ""), value, only_new=True)

        def after(_: Any, args: Any, result: Any) -> None:
            for name, value in leaves(result, path):
                seen.add(name, value)

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))

    try:
        for path, module in _open(root):
            if path and not _scripted(module):  # which takes no hooks
                watch(module, path)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _open(root: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Path and module, each module once; nothing inside of what is compiled or scripted."""
    done: set[int] = set()
    pending = [(prefix, root)]
    while pending:
        path, module = pending.pop()
        if id(module) in done:
            continue
        done.add(id(module))
        yield path, module
        if not _closed(module):
            inner = [(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]
            pending += reversed(inner)


def _closed(module: Any) -> bool:
    """Whether what runs is not Python: compiled by torch.compile, or scripted."""
    compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
    return compiled or _scripted(module)


def _scripted(module: Any) -> bool:
    return isinstance(module, importlib.import_module("torch").jit.ScriptModule)


def _plain(module: Any) -> Any:
    return getattr(module, "_orig_mod", module)


@contextmanager
def _kept(module: Any) -> Iterator[None]:
    """Statistics that batch norms in training mode update are put back afterwards."""
    training = any(m.training for m in module.modules())
    kept = [(b, b.detach().clone()) for b in module.buffers()] if training else []
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.copy_(before)


def _notes(root: Any, like: Any) -> Iterator[str]:
    torch = importlib.import_module("torch")
    modules = dict(root.named_modules())
    if training := [path.replace(COMPILED, "") or "the module" for path, m in modules.items() if m.training]:
        yield (
            f"training=True: {len(training)} of {len(modules)} modules are in training mode ({_some(training)}), where dropout "
            "is active and batch norms use the statistics of the batch; call .eval() first"
        )
    if closed := [path for path, m in _open(root) if _closed(m)]:
        yield f"{_some([p or 'the module' for p in closed])}: compiled or scripted; only results are seen, nothing inside"
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in root.parameters() if p.is_floating_point()})
    if len(dtypes) > 1:
        given = str(like.dtype).removeprefix("torch.")
        yield f"parameters of {' and '.join(dtypes)}; the input is {given}, as the first of them"
    allowed = [
        name for name, b in (("cudnn", torch.backends.cudnn), ("cuda.matmul", torch.backends.cuda.matmul)) if b.allow_tf32
    ]
    if like.is_cuda and like.dtype == torch.float32 and allowed:
        yield f"torch may compute in tf32 on this device: torch.backends.{allowed[0]}.allow_tf32 is set"


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
