"""`refvit check` on the command line: exit codes, what goes where, and what is imported."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import refvit
from refvit.crosscheck.layouts import LAYOUTS

ROOT = Path(__file__).parent.parent
TEN = "mobilevit_xxs.cifar10"
PORT = """
import numpy as np
import refvit

model = refvit.load(backend="numpy")
WHERE = ("stages.0", "stages.1", "stages.2")


def right(x):
    return {**{n: model.intermediates(x, n)[n] for n in WHERE}, "logits": model(x)}


def wrong(x):
    shown = right(x)
    return {**shown, "stages.2": np.roll(shown["stages.2"], 1, axis=3)}


def broken(x):
    raise RuntimeError("no such kernel")


class Nested:
    right = staticmethod(right)


class Bare:
    def __call__(self, x):
        raise AssertionError


def leaving(x):
    raise SystemExit(0)


number = 3
"""


@pytest.fixture(autouse=True)
def beside_a_port(monkeypatch, tmp_path):
    """A working folder with a module that can be imported by name, and the cat."""
    (tmp_path / "myport.py").write_text(PORT)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] in ("myport", "examples", "failing", "lacking")]:
        del sys.modules[name]


def check(run, candidate, *options):
    return run("check", candidate, "--model", TEN, "--image", "examples/cat.jpg", *options)


def test_a_match_is_0_and_a_mismatch_1(run):
    code, out, err = check(run, "myport:right")
    assert code == 0 and out.startswith(f"MATCH: myport:right computes {TEN}, as exactly as float32 can\n") and err == ""
    code, out, err = check(run, "myport:wrong")
    assert code == 1 and out.startswith(f"MISMATCH: myport:wrong does not compute {TEN}\n") and err == ""
    assert "first divergence  stages.2 " in out
    assert check(run, "myport:Nested.right")[0] == 0


def test_it_is_the_function(run):
    _, out, _ = check(run, "myport:wrong", "--json")
    module = importlib.import_module("myport")
    report = refvit.check(module.wrong, TEN, image="examples/cat.jpg")
    assert json.loads(out) == {**report.to_dict(), "candidate": "myport:wrong"}
    assert json.loads(out)["first_divergence"] == "stages.2"


def test_a_report_is_saved_either_way(run):
    for name, code, suffix in (("right", 0, ".html"), ("wrong", 1, ".html"), ("right", 0, ".txt"), ("right", 0, ".json")):
        got, out, err = check(run, f"myport:{name}", "-o", f"new/{name}{suffix}")
        assert got == code and err == f"refvit: saved new/{name}{suffix}\n"
        text = Path(f"new/{name}{suffix}").read_text("utf-8")
        assert text.startswith({".html": "<!doctype html>", ".txt": out, ".json": '{"ok": true'}[suffix])
    code, out, err = check(run, "myport:right", "-o", "report.pdf")
    assert (code, out) == (2, "") and "a name ending in .html, .json, .txt expected" in err


def test_backends_files_and_folders(run):
    assert check(run, "numpy")[0] == 0
    assert run("dump", "--model", TEN, "--image", "examples/cat.jpg", "-o", "golden", "--nodes", "stages.?")[0] == 0
    code, out, _ = run("check", "golden", "--model", TEN)
    assert code == 0 and "7 of 311 values" in out
    x = refvit.load()._prepare("examples/cat.jpg", None, False)[1].inputs[0][None]
    model = refvit.load(backend="numpy")
    shown = model.intermediates(x, "final_conv*")  # or it would be looked for in the whole network
    np.savez("v.npz", **shown, logits=model(x))
    assert check(run, "v.npz")[0] == 0
    np.savez("v.npz", **shown, logits=model(x) + np.float32(0.01))
    assert check(run, "v.npz")[0] == 1


def test_an_input_can_be_given(run):
    x = np.random.default_rng(1).standard_normal((1, 3, 32, 64), np.float32)
    np.save("x.npy", x)
    code, out, _ = run("check", "myport:right", "--model", TEN, "--input", "x.npy")
    assert code == 0 and "the given array, 1x3x32x64" in out
    for file, message in (("gone.npy", "gone.npy: not a readable .npy"), ("examples/cat.jpg", "not a readable .npy")):
        code, _, err = run("check", "myport:right", "--model", TEN, "--input", file)
        assert code == 2 and message in err
    code, _, err = check(run, "myport:right", "--input", "x.npy")
    assert code == 2 and "one of them expected" in err


def test_layouts_are_listed(run):
    listed = " ".join(run("check", "--help")[1].split())
    written = (
        (ROOT / "docs" / "check.md").read_text("utf-8") if (ROOT / "docs").is_dir() else "".join(f"`{n}`" for n in LAYOUTS)
    )
    for name in LAYOUTS:
        assert name in listed and f"`{name}`" in written


def test_maps_are_files_of_json(run):
    Path("names.json").write_text('{"logits": "head.fc"}')
    Path("layouts.json").write_text('{"stages.*": "nchw"}')
    code, out, _ = check(run, "myport:right", "--names", "names.json", "--layouts", "layouts.json")
    assert code == 0 and "1 by map" in out
    Path("layouts.json").write_text('{"stages.1": "nhwc"}')
    code, out, _ = check(run, "myport:right", "--layouts", "layouts.json")
    assert code == 1 and "wrong shape" in out
    Path("names.json").write_text('{"nothing": "head.fc"}')
    code, _, err = check(run, "myport:right", "--names", "names.json")
    assert code == 2 and "nothing" in err
    for text in ("{", "[1]", '{"a": 1}'):
        Path("names.json").write_text(text)
        code, _, err = check(run, "myport:right", "--names", "names.json")
        assert code == 2 and "refvit: error: --names names.json: " in err
    assert check(run, "myport:right", "--names", "gone.json")[0] == 2


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ("gone.onnx", "gone.onnx: no such file or folder"),
        ("myport", "myport: no such file or folder"),
        ("C:\\gone.onnx", "no such file or folder"),
        ("my port:right", "no such file or folder"),
        ("nowhere:right", "no module nowhere"),
        ("examples.nowhere:right", "no module examples.nowhere"),
        ("myport:nothing", "myport has no nothing; it has"),
        ("myport:Nested.nothing", "myport has no Nested.nothing"),
        ("myport:number", "or a callable expected, got int"),
        ("myport:number.real.foo", "myport has no number.real.foo; it has no names"),
        ("myport:Bare", "Bare: is a class; give an instance, such as Bare()"),
        ("myport:leaving", "myport:leaving failed for an input of 1x3x64x64: SystemExit: 0"),
        ("myport:broken", "RuntimeError: no such kernel"),
        ("myport.py", "myport.py"),
    ],
)
def test_what_cannot_be_checked_is_2(run, candidate, message):
    code, out, err = check(run, candidate)
    assert (code, out) == (2, "") and message in err and err.startswith("refvit: error: ")


def test_nothing_is_imported_without_the_colon(run):
    Path("evil.py").write_text("open('ran', 'w').write('x')")
    for candidate in ("evil", "evil.py", "./evil.py", "evil/run"):
        assert check(run, candidate)[0] == 2
    assert not Path("ran").exists()


def test_a_module_that_fails_is_2_and_one_that_lacks_something_3(run):
    Path("failing.py").write_text("1 / 0")
    code, _, err = check(run, "failing:right")
    assert code == 2 and "importing failing failed, ZeroDivisionError" in err
    Path("failing.py").write_text("import sys; sys.exit(0)")
    code, _, err = check(run, "failing:right")
    assert code == 2 and "importing failing failed, SystemExit: 0" in err
    Path("lacking.py").write_text("import a_framework_that_is_not_here")
    code, _, err = check(run, "lacking:right")
    assert code == 3 and "a_framework_that_is_not_here" in err


def test_usage(run):
    for options in (["--arithmetic", "float8"], ["--set", "colour=1"], ["--image", "gone.png"], ["--weights", "gone.npz"]):
        code, out, err = run("check", "numpy", "--model", TEN, *options)
        assert (code, out) == (2, "") and err.startswith("refvit: error: "), options
    assert (
        "--arithmetic float8: one of float64, float32, tf32"
        in run("check", "numpy", "--model", TEN, "--arithmetic", "float8")[2]
    )
    assert run("check", "numpy")[0] == 2  # --model is missing
    assert run("check", "numpy", "--model", "mobilevit_x")[0] == 2


def test_without_onnxruntime_it_is_3(run, monkeypatch):
    Path("a.onnx").write_bytes(b"\x08\x08")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, out, err = check(run, "a.onnx")
    assert (code, out) == (3, "") and "onnx" in err


def test_preprocessing_can_be_replaced(run):
    whole = ("--resize", "80", "--crop", "64x96", "--enlarge", "none")
    for options, size in ((whole, "1x3x64x96"), (("--set", "enlarge=96"), "1x3x96x96")):
        code, out, _ = check(run, "myport:right", *options)
        assert code == 0 and f"examples/cat.jpg, {size}" in out


def test_names_do_not_reach_the_terminal_as_they_are(run):
    with Path("myport.py").open("a") as file:
        file.write("\n\ndef strange(x):\n    return {'a\\x1b[31mb\\nc': right(x)['stages.1'], 'logits': right(x)['logits']}\n")
    code, out, _ = check(run, "myport:strange")
    assert code == 0 and "\x1b" not in out


def test_as_a_process():
    command = [sys.executable, "-m", "refvit", "check", "myport:wrong", "--model", TEN, "--image", "examples/cat.jpg"]
    path = {"PYTHONPATH": str(ROOT)} if (ROOT / "refvit").is_dir() else {}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **path})
    assert done.returncode == 1 and done.stdout.startswith("MISMATCH: ") and done.stderr == ""
