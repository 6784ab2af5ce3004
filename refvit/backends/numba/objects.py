"""Object code of the kernels: compiled once, kept on disk, loaded by address.

The folder's name is a hash of every file of this backend, of the versions of Numba and llvmlite, and of the processor, so that
an edited kernel, another flag or another machine never meets old code. Without a folder to write to, code lives in memory.
REFVIT_CACHE names another place for it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from refvit.backends.numba.cpu import target
from refvit.backends.numba.microkernel import tile_module, tile_name

log = logging.getLogger("refvit")
HERE = Path(__file__).parent
FASTMATH = {"contract", "reassoc", "nsz"}  # never nnan or ninf: NaN must stay visible


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
            absent = self.missing(names)
            for name in compiling(absent):
                _write(name, self.compile(name))
            for name in names:
                code = _read(name)
                self._engine.add_object_file(llvm.ObjectFileRef.from_data(_memory[name] if code is None else code))
            if names:
                self._engine.finalize_object()
            for name in names:
                self._known[name] = self._engine.get_function_address(symbol(name))

    def compile(self, name: str) -> bytes:
        """The object code of one kernel."""
        module = llvm.parse_assembly(source(name))
        module.triple = llvm.get_process_triple()
        module.verify()
        passes = llvm.create_pass_builder(self._machine, llvm.create_pipeline_tuning_options(speed_level=3))
        passes.getModulePassManager().run(module, passes)
        code: bytes = self._machine.emit_object(module)
        return code


def everything() -> list[str]:
    """The names of all kernels, and of the microkernels of every size that a plan may ask for."""
    names = []
    for path in sorted((HERE / "kernels").glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = [f for f in tree.body if isinstance(f, ast.FunctionDef) and not f.decorator_list]
        names += [f"{path.stem}.{f.name}" for f in found if [a.arg for a in f.args.args] == ["a", "unit", "scratch"]]
    vectors = range(1, target().panel // target().lanes + 1)
    return names + [f"tile_{m}x{v}" for v in vectors for m in range(1, target().rows + 1)]


def symbol(name: str) -> str:
    """The kernel's name in object code."""
    return "refvit_" + name.replace(".", "_")


def source(name: str) -> str:
    """LLVM IR of a kernel: "tile_RxV" is a microkernel, "file.function" is one of `kernels`."""
    if name.startswith("tile_"):
        rows, _, vectors = name.removeprefix("tile_").partition("x")
        text = str(tile_module(int(rows), int(vectors), target().lanes))
        return text.replace(tile_name(int(rows), int(vectors)), symbol(name))
    from numba import int64, njit, void

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


def key() -> str:
    """What the object code depends on, as a name of a folder."""
    digest = hashlib.sha256()
    for path in sorted(HERE.rglob("*.py")):
        digest.update(path.relative_to(HERE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    facts = [importlib.metadata.version(p) for p in ("numba", "llvmlite")]
    facts += [target().name, target().features, sys.platform, llvm.get_process_triple(), *sorted(FASTMATH)]
    digest.update("\0".join(facts).encode())
    return digest.hexdigest()[:24]


@functools.cache
def folder() -> Path | None:
    """Where object code is kept, created if need be; None, said once, if nothing can be written."""
    if given := os.environ.get("REFVIT_CACHE"):
        root = Path(given)
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "refvit"
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches" / "refvit"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refvit"
    path = root / "kernels" / key()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        log.warning(
            "kernels cannot be kept in %s (%s) and are compiled in every process; set REFVIT_CACHE", path, error.strerror
        )
        return None
    return path


_memory: dict[str, bytes] = {}  # of kernels that could not be written


def _read(name: str) -> bytes | None:
    place = folder()
    if place is None:
        return _memory.get(name)
    try:
        stored = (place / f"{name}.o").read_bytes()
    except OSError:
        return _memory.get(name)
    digest, code = stored[:32], stored[32:]
    return code if hashlib.sha256(code).digest() == digest else None  # a damaged file is compiled again


def _write(name: str, code: bytes) -> None:
    place = folder()
    _memory[name] = code
    if place is None:
        return
    try:
        handle, temporary = tempfile.mkstemp(dir=place, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(temporary, place / f"{name}.o")
    except OSError as error:
        log.warning("kernel %s cannot be kept in %s: %s", name, place, error.strerror)
