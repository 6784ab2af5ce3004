"""Object code of the kernels: compiled once, kept on disk, loaded by address.

The folder's name is a hash of every file of this backend, of the versions of Numba and llvmlite, and of the processor, so that
an edited kernel, another flag or another machine never meets old code. A folder that can only be read is read. What cannot be
written lives in memory. REFVIT_CACHE names another place for it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import itertools
import logging
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from refvit.backends.numba.cpu import target
from refvit.backends.numba.microkernel import tile_module, tile_name
from refvit.backends.numba.sources import HERE, LOADED, fingerprint
from refvit.errors import BackendError
from refvit.files import write_atomic

log = logging.getLogger("refvit")
FASTMATH = {"contract", "reassoc", "nsz"}  # never nnan or ninf: NaN must stay visible
# of Numba's environment: what changes no code, and what is in `target()` already
HARMLESS = {
    "NUMBA_CACHE_DIR", "NUMBA_CAPTURED_ERRORS", "NUMBA_COLOR_SCHEME", "NUMBA_CPU_FEATURES", "NUMBA_CPU_NAME",
    "NUMBA_DISABLE_PERFORMANCE_WARNINGS", "NUMBA_NUM_THREADS", "NUMBA_SHOW_HELP", "NUMBA_THREADING_LAYER",
    "NUMBA_THREADING_LAYER_PRIORITY", "NUMBA_WARNINGS",
}  # fmt: skip
_compiling = threading.RLock()  # LLVM's own lock would stay taken in a process that is forked meanwhile


class Objects:
    """The kernels of this process by name: `Objects()["conv.dense"]` is an address."""

    def __init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=target().name, features=target().features, opt=3, jit=True
        )
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self._machine)
        self._known: dict[str, int] = {}
        self._lock = threading.RLock()

    def __getitem__(self, name: str) -> int:
        if name not in self._known:
            self.require([name])
        return self._known[name]

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those that are neither loaded nor on disk."""
        return [n for n in dict.fromkeys(names) if n not in self._known and _read(n) is None]

    def require(self, names: Iterable[str]) -> None:
        """Load these, and compile first what is not on disk."""
        from refvit.backends.numba.progress import compiling

        with self._lock:
            names = [n for n in dict.fromkeys(names) if n not in self._known]
            if not names:
                return
            _check_sources()
            found: dict[str, Any] = {n: _read(n) for n in names}  # None where it has to be compiled
            for name in compiling([n for n, code in found.items() if code is None]):
                found[name] = self.compile(name)
                _check_sources()
                _write(name, found[name])
            with _compiling:
                names = [n for n in names if n not in self._known]  # a signal's handler may have been here
                for name in names:
                    self._engine.add_object_file(llvm.ObjectFileRef.from_data(found[name]))
                self._engine.finalize_object()
                self._known |= {name: self._engine.get_function_address(symbol(name)) for name in names}

    def compile(self, name: str) -> bytes:
        """The object code of one kernel."""
        with _compiling:
            return self._emit(name)

    def _emit(self, name: str) -> bytes:  # a function, so that what LLVM made for it is gone when the lock is free again
        module = llvm.parse_assembly(source(name))
        _keep_only(module, symbol(name))
        module.triple = llvm.get_process_triple()
        module.verify()
        passes = llvm.create_pass_builder(self._machine, llvm.create_pipeline_tuning_options(speed_level=3))
        passes.getModulePassManager().run(module, passes)
        code: bytes = self._machine.emit_object(module)
        return code


def _keep_only(module: llvm.ModuleRef, kernel: str) -> None:
    """Make everything but the kernel private to its object.

    Numba numbers functions by the order in which a process compiles them, and all closures of one factory have one name. The
    same weak symbol may therefore be two functions in objects from two processes, and the linker would take either for both.
    """
    number = itertools.count()
    for value in [*module.functions, *module.global_variables]:
        if not value.is_declaration and value.name != kernel:
            value.linkage = "internal"
            value.name = f"{kernel}_{next(number)}"  # not Numba's name: equal code is then equal bytes


def everything() -> list[str]:
    """The names of all kernels, and of the microkernels of every size that a plan may ask for."""
    names = []
    for path in sorted((HERE / "kernels").glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = [f for f in tree.body if isinstance(f, ast.FunctionDef) and not f.decorator_list]
        names += [f"{path.stem}.{f.name}" for f in found if [a.arg for a in f.args.args][::2] == ["a", "scratch"]]
    return names + [tile_name(m, v) for v, most in target().tiles.items() for m in range(1, most + 1)]


def symbol(name: str) -> str:
    """The kernel's name in object code."""
    return "refvit_" + name.replace(".", "_")


def source(name: str) -> str:
    """LLVM IR of a kernel: "tile_RxV" is a microkernel, "file.function" is one of `kernels`."""
    if name.startswith("tile_"):
        rows, _, vectors = name.removeprefix("tile_").partition("x")
        text = str(tile_module(int(rows), int(vectors), target().lanes))
        return text.replace(tile_name(int(rows), int(vectors)), symbol(name))
    from numba import config, int64, njit, void

    if getattr(config, "DISABLE_JIT", False):
        raise BackendError(
            "NUMBA_DISABLE_JIT is set, and the numba backend is nothing without its compiler; unset it, or take numpy"
        )

    file, _, function = name.partition(".")
    kernel = getattr(importlib.import_module(f"refvit.backends.numba.kernels.{file}"), function)
    options: dict[str, Any] = {"fastmath": FASTMATH, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    compiled = njit(void(int64, int64, int64), nogil=True, error_model="numpy", **options)(kernel)
    result: Any = compiled.overloads[compiled.signatures[0]]
    inner = result.fndesc.llvm_func_name
    text = result.library.get_llvm_str()
    return f"""{text}
define void @{symbol(name)}(i64 %a, i64 %unit, i64 %scratch) {{
  %value = alloca i8*
  %error = alloca i8*
  %status = call i32 @{inner}(i8** %value, i8** %error, i64 %a, i64 %unit, i64 %scratch)
  ret void
}}
"""


def key(sources: str) -> str:
    """What the object code depends on, as a name of a folder. sources: `fingerprint` of this backend's files."""
    facts = [sources, *(importlib.metadata.version(p) for p in ("numba", "llvmlite"))]
    facts += [target().name, target().features, sys.platform, llvm.get_process_triple(), *sorted(FASTMATH)]
    facts += [
        f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("NUMBA_") and name not in HARMLESS
    ]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:24]


def _check_sources() -> None:
    if fingerprint(HERE) != LOADED:
        raise BackendError(f"the files in {HERE} have changed since this process imported them; start it again")


def root() -> Path:
    """The folder for all that this backend keeps. RuntimeError if there is no home folder and none is named."""
    if given := os.environ.get("REFVIT_CACHE"):
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "refvit"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "refvit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refvit"


@functools.cache
def folder() -> Path | None:
    """Where object code of this process is kept, there or not; None if there is no place for it."""
    try:
        return root() / "kernels" / key(LOADED)
    except RuntimeError:
        return None


_memory: dict[str, bytes] = {}  # of kernels that could not be written
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_compiling.acquire, after_in_parent=_compiling.release, after_in_child=_compiling.release)


def kept() -> bool:
    """Whether all that this process compiled is on disk."""
    return not _memory


def _read(name: str) -> bytes | None:
    place = folder()
    try:
        stored = b"" if place is None else (place / f"{name}.o").read_bytes()
    except OSError:
        stored = b""
    digest, code = stored[:32], stored[32:]
    # a damaged file is compiled again
    return code if hashlib.sha256(code).digest() == digest else _memory.get(name)


def _write(name: str, code: bytes) -> None:
    place = folder()
    try:
        if place is None:
            raise OSError(None, "there is no home folder")
        write_atomic(place / f"{name}.o", hashlib.sha256(code).digest() + code)
    except OSError as error:
        if not _memory:  # said once
            log.warning(
                "kernels cannot be kept in %s (%s) and are compiled in every process; set REFVIT_CACHE", place, error.strerror
            )
        _memory[name] = code
