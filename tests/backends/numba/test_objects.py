"""Object code on disk: found again, never stale, never trusted when damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from refvit.backends.numba import objects

SMALL = "tile_2x1"


def python(script, *arguments, **options):
    """A script in a process of its own."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REFVIT_CACHE", str(tmp_path))
    monkeypatch.setattr(objects, "_memory", {})
    objects.folder.cache_clear()
    yield tmp_path
    objects.folder.cache_clear()


def test_a_kernel_is_compiled_once(cache, monkeypatch):
    first = objects.Objects()
    assert first.missing([SMALL]) == [SMALL]
    assert first[SMALL]
    assert objects.Objects().missing([SMALL]) == []
    monkeypatch.setattr(objects.Objects, "compile", lambda *_: pytest.fail("compiled again"))
    monkeypatch.setattr(objects, "_memory", {})
    assert objects.Objects()[SMALL]


def test_a_damaged_file_is_compiled_again(cache):
    objects.Objects().require([SMALL])
    (file,) = cache.rglob("*.o")
    code = bytearray(file.read_bytes())
    code[len(code) // 2] ^= 1
    file.write_bytes(bytes(code))
    objects._memory.clear()
    assert objects.Objects().missing([SMALL]) == [SMALL]
    objects.Objects().require([SMALL])
    assert file.read_bytes() != bytes(code)


def test_no_folder_to_write_to(tmp_path, monkeypatch, caplog):
    file = tmp_path / "file"
    file.write_text("not a folder")
    monkeypatch.setenv("REFVIT_CACHE", str(file))
    monkeypatch.setattr(objects, "_memory", {})
    objects.folder.cache_clear()
    try:
        assert objects.Objects()[SMALL]
        assert "REFVIT_CACHE" in caplog.text
        assert len(caplog.records) == 1
    finally:
        objects.folder.cache_clear()


def test_the_key_follows_every_file_and_the_processor(tmp_path, monkeypatch):
    keys = [objects.key(objects.fingerprint(objects.HERE))]
    copy = tmp_path / "numba"
    for path in objects.HERE.rglob("*.py"):
        target = copy / path.relative_to(objects.HERE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    monkeypatch.setattr(objects, "HERE", copy)
    assert objects.key(objects.fingerprint(objects.HERE)) == keys[0]
    for name in ("simd.py", "kernels/conv.py", "microkernel.py"):
        with (copy / name).open("a") as file:
            file.write("# edited\n")
        keys.append(objects.key(objects.fingerprint(objects.HERE)))
    (copy / "kernels" / "new.py").write_text("")
    keys.append(objects.key(objects.fingerprint(objects.HERE)))
    other = objects.target().__class__("haswell", "+avx2", 8, 6, 16)
    monkeypatch.setattr(objects, "target", lambda: other)
    keys.append(objects.key(objects.fingerprint(objects.HERE)))
    monkeypatch.setattr(objects, "FASTMATH", {"contract"})
    keys.append(objects.key(objects.fingerprint(objects.HERE)))
    monkeypatch.setenv("NUMBA_OPT", "1")
    keys.append(objects.key(objects.fingerprint(objects.HERE)))
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")  # changes no code
    assert objects.key(objects.fingerprint(objects.HERE)) == keys[-1]
    assert len(set(keys)) == len(keys)


COMPILE = """
import hashlib, json, sys
from refvit.backends.numba.objects import Objects
objects = Objects()
print(json.dumps({name: hashlib.sha256(objects.compile(name)).hexdigest() for name in sys.argv[1:]}))
"""


def test_the_order_of_compilation_does_not_matter():
    """Two kernels with the same helpers, which Numba numbers by the order in which it meets them."""
    names = ["shortcut.shortcut", "combine.one"]
    seen = []
    for order in (names, names[::-1]):
        done = python(COMPILE, *order)
        assert done.returncode == 0, done.stderr
        seen.append(json.loads(done.stdout))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", ["combine.one", "team.work", "tile_3x1"])
def test_an_object_shows_its_kernel_and_nothing_else(name):
    """A helper that the linker could see would be shared with objects where the same name is another function."""
    code = objects._read(name) or objects.Objects().compile(name)
    text = code.replace(objects.symbol(name).encode(), b"")
    assert text != code
    assert b"NumbaEnv" not in text
    assert b"elementary" not in text


def test_warmup_leaves_nothing_to_compile(run):
    code, _, err = run("warmup")
    assert code == 0, err
    script = (
        "import refvit\n"
        "from refvit.backends.numba import objects\n"
        "objects.Objects.compile = lambda self, name: exit(name)\n"
        "refvit.load('mobilevit_xxs.cifar10', backend='numba').infer('examples/cat.jpg')\n"
    )
    done = python(script)
    assert done.returncode == 0, done.stderr


def test_numba_without_its_compiler(tmp_path):
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "REFVIT_CACHE": str(tmp_path)}
    script = "import refvit; refvit.infer('examples/cat.jpg', backend='numba')"
    done = python(script, env=environment)
    assert done.returncode == 1
    assert "BackendError: NUMBA_DISABLE_JIT is set" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX only")
def test_a_fork_waits_for_the_compiler():
    """The child could otherwise wait for ever for a lock of LLVM that a thread of its parent held."""
    script = (
        "import os, signal, threading, time, warnings\n"
        "from refvit.backends.numba.objects import Objects\n"
        "warnings.simplefilter('ignore')\n"
        "stop, parent = threading.Event(), Objects()\n"
        "def work():\n"
        "    while not stop.is_set():\n"
        "        parent.compile('tile_14x2')\n"
        "        time.sleep(0.01)\n"
        "thread = threading.Thread(target=work)\n"
        "thread.start()\n"
        "for _ in range(5):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        signal.alarm(30)\n"
        "        Objects().compile('tile_2x1')\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "stop.set()\n"
        "thread.join()\n"
    )
    done = python(script)
    assert done.returncode == 0, done.stderr


def test_an_edited_kernel_is_never_stale(tmp_path):
    """Another process with another version of a kernel's source, and the same cache."""
    source = Path(objects.HERE).parents[1]
    package = tmp_path / "refvit"
    for path in source.rglob("*"):
        if (path.is_file() and path.suffix in (".py", ".json", ".txt")) or path.name == "py.typed":
            target = package / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    script = (
        "import ctypes, json, numpy as np\n"
        "from refvit.backends.numba.objects import Objects\n"
        "a = np.zeros(4, np.int64)\n"
        "objects = Objects()\n"
        "code = objects['probe.seven']\n"
        "ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(code)(a.ctypes.data, 0, 0)\n"
        "print(json.dumps(int(a[0])))\n"
    )
    probe = package / "backends" / "numba" / "kernels" / "probe.py"
    seen = []
    for value in (7, 7, 8):
        probe.write_text(
            f"from refvit.backends.numba.simd import set_arg\n\n\ndef seven(a, unit, scratch):\n    set_arg(a, 0, {value})\n"
        )
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "REFVIT_CACHE": str(tmp_path / "cache")}
        done = python(script, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        seen.append(json.loads(done.stdout))
    assert seen == [7, 7, 8]
    assert len(list((tmp_path / "cache" / "kernels").iterdir())) == 2
    assert len(list((tmp_path / "cache").rglob("*.o"))) == 2
    assert not list((tmp_path / "cache").rglob("*.tmp"))
