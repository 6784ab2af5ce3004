"""Who may import whom, and that no module hides a public function."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import refvit

ROOT = Path(refvit.__file__).parent

# Package or module -> the parts of refvit that it may import (itself always). The order is the order of the design.
ALLOWED = {
    "errors": set(),
    "files": set(),
    "weights.params": {"errors"},
    "graph.ir": {"errors"},
    "graph.trace": {"errors", "graph.ir", "weights.params"},
    "ops": {"errors", "graph.ir", "graph.trace"},
    "models": {"errors", "graph.ir", "graph.trace", "ops", "weights.params"},
    "graph": {"errors", "graph"},
    "graph.passes": {"errors", "graph.ir", "graph.trace"},
    "graph.profile": {"errors", "files", "graph.ir"},
    "backends": {"errors", "files", "graph", "ops"},
    "weights": {"errors", "files", "graph.ir", "weights"},
    "vision": {"errors", "files", "graph.ir", "ops", "vision"},
    "model": {"errors", "backends", "graph", "models", "vision", "weights", ""},
    "stored": {"errors", "models", "vision", "weights"},
    "loading": {"errors", "graph.ir", "models", "stored", "vision", "weights"},
    "conversion": {"errors", "loading", "models", "weights"},
    "api": {"loading", "errors", "backends", "graph", "model", "models", "vision", "weights", ""},
    "crosscheck": {"api", "backends", "errors", "files", "graph.ir", "loading", "model", "ops", "vision"},
    "crosscheck.observed": {"graph.ir"},
    "crosscheck.causes": {"crosscheck", "errors", "graph.ir", "ops"},  # a hypothesis sees arrays, not the candidate
    "crosscheck.candidates": {"crosscheck", "errors", "graph.ir", "model", "weights.readers"},
    "dumping": {"crosscheck", "errors", "graph.ir", "loading", "model"},
    "cli": {"api", "crosscheck", "loading", "errors", "files", "graph", "model", "vision", "weights", ""},
    "cli.warmup": {"backends", "cli", "errors"},
    "cli.check": {"backends", "cli", "crosscheck", "errors", "loading", ""},
    "__main__": {"cli"},
}


def imports(path):
    """Modules that the file imports, wherever in it, without the leading "refvit."."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if node.module == "refvit":
                names = [f"refvit.{a.name}" if (ROOT / a.name).exists() else "refvit" for a in node.names]
        yield from (n.removeprefix("refvit").removeprefix(".") for n in names if n.split(".")[0] == "refvit")


def within(module, part):
    return module == part or module.startswith(part + ".") if part else module == ""


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_import_direction(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").removesuffix(".")
    if not module:
        return  # the public interface imports what it exports
    rule = max((r for r in ALLOWED if within(module, r)), key=len)
    for imported in imports(path):
        assert any(within(imported, part) for part in ALLOWED[rule] | {rule}), f"{module} imports refvit.{imported}"


def test_converters_import_no_backend():
    folder = ROOT.parent / "weights_convert"
    for path in folder.glob("*.py"):
        assert not any(within(m, "backends") or within(m, "model") or within(m, "api") for m in imports(path)), path.name


def test_no_module_hides_a_public_name():
    public = {name: getattr(refvit, name) for name in refvit.__all__}
    for module in pkgutil.walk_packages([str(ROOT)], "refvit."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name, value in public.items():
        assert getattr(refvit, name) is value, name
    assert not {m.name for m in pkgutil.iter_modules([str(ROOT)])} & set(refvit.__all__)
