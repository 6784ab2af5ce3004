"""The README's code runs and prints what the README shows; its excerpt is the real source."""

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from refvit.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


@pytest.fixture(autouse=True)
def beside_the_examples(monkeypatch, tmp_path):
    """Where the README's paths are right and what its code writes is not in the way."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)


def alike(shown, printed):
    """Equal but for the last digits of percentages, which depend on the BLAS library."""
    number = re.compile(r"\d+\.\d+(?=%)")
    assert number.sub("#", shown) == number.sub("#", printed)
    for a, b in zip(number.findall(shown), number.findall(printed), strict=True):
        assert abs(float(a) - float(b)) <= 0.1, (a, b)


def test_there_are_two_commands_to_set_up():
    (block,) = blocks("sh")
    assert len(block.splitlines()) == 2


@pytest.mark.parametrize("block", blocks("console"), ids=lambda b: b.splitlines()[0])
def test_commands_print_what_is_shown(block, capsys):
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        command, _, shown = part.partition("\n")
        program, *arguments = shlex.split(command)
        assert program == "refvit"
        assert main(arguments) == 0
        alike(shown.strip(), capsys.readouterr().out.strip())


@pytest.mark.parametrize("block", blocks("python"), ids=lambda b: b.splitlines()[0])
def test_python_runs_and_prints_what_is_shown(block):
    """A comment after a print shows what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "README.md", "exec"), {})
    shown = [c for line in block.splitlines() if line.startswith("print(") for c in re.findall(r"#\s+(.*)$", line)]
    alike("\n".join(shown), printed.getvalue().strip())


def test_the_excerpt_is_the_source():
    (excerpt,) = blocks("py")
    import refvit.models.mobilevit as source

    assert excerpt.strip() in Path(source.__file__).read_text("utf-8")


@pytest.mark.skipif(not (ROOT / "refvit").is_dir(), reason="the README's links lead into the source tree, which is not here")
def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", README)
    for link in (a or b for a, b in links):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_the_table_of_speeds_is_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.report import readme

    result = json.loads((ROOT / "bench" / "results" / "cpu.json").read_text("utf-8"))
    assert readme(result) in README
    machine = result["machine"]
    assert machine["processor"] in README and machine["date"] in README
    for name in ("onnxruntime", "openvino", "torch"):
        assert f"{name} {result['versions'][name]}" in README.lower().replace("pytorch", "torch")
    for means in result["summary"].values():
        assert f"{means['refvit']:.2f} at" in " ".join(README.split())
