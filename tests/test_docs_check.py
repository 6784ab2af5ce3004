"""docs/check.md: its commands print what it shows, in order, and the README's excerpt is of that."""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from refvit.cli import main
from refvit.crosscheck.arithmetic import ARITHMETICS
from refvit.crosscheck.measure import FACTOR

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "check.md").read_text("utf-8")
NUMBER = re.compile(r"\b\d[\d,]*(?:\.\d+)?(?:e-?\d+)?\b")
LAST_BITS = ("error", "alike", "at the output", "worst")  # their numbers depend on the order of sums in a BLAS library
COUNTS = ("explains also", "only inherited")  # and of some values so does on which side of the limit they are


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture(autouse=True)
def beside_the_examples(monkeypatch, tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)


def lines(text):
    """label -> text, unwrapped; the first line as it is."""
    first, *rest = text.splitlines()
    found, label = {"": first}, ""
    for line in rest:
        label = line[:20].strip() or label
        found[label] = f"{found.get(label, '')} {line[20:].strip()}".strip()
    return found


def close(a, b, factor):
    pairs = zip(NUMBER.findall(a), NUMBER.findall(b), strict=True)
    numbers = [(m, float(m.replace(",", "")), n, float(n.replace(",", ""))) for m, n in pairs]
    return all(m == n or u / factor < v < u * factor for m, u, n, v in numbers)  # names have numbers too, such as 0


def alike(shown, printed):
    shown, printed = lines(shown), lines(printed)
    assert list(shown) == list(printed)
    for label, a in shown.items():
        b = printed[label]
        if label in COUNTS:
            assert close(a.partition(":")[0], b.partition(":")[0], 1.5), (a, b)
        elif label in LAST_BITS:
            assert NUMBER.sub("#", a) == NUMBER.sub("#", b) and close(a, b, 3), (a, b)
        else:
            assert a == b


def test_the_commands_print_what_is_shown(capsys):
    codes = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, shown = part.partition("\n")
            program, *arguments = shlex.split(command)
            assert program == "refvit"
            codes.append(main(arguments))
            printed = capsys.readouterr().out
            if "--json" not in arguments:
                alike(shown.strip(), printed.strip())
    assert codes.count(1) == 1 and set(codes) == {0, 1}
    assert Path("report.html").stat().st_size > 50_000
    text = Path("examples/port.py").read_text("utf-8")
    right = text.replace("epsilon=1e-3", "epsilon=1e-5")
    assert right != text
    Path("right.py").write_text(right, "utf-8")
    assert main(["check", "right:mobilevit_xxs", "--model", "mobilevit_xxs.cifar10", "--image", "examples/cat.jpg"]) == 0
    assert capsys.readouterr().out.startswith(
        "MATCH: right:mobilevit_xxs computes mobilevit_xxs.cifar10, as exactly as float32 can"
    )


@pytest.mark.parametrize("block", blocks("python"), ids=lambda b: b.splitlines()[-1])
def test_python_runs_and_prints_what_is_shown(block):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "check.md", "exec"), {})
    shown = [c for line in block.splitlines() if line.startswith("print(") for c in re.findall(r"#\s+(.*)$", line)]
    assert "\n".join(shown) == printed.getvalue().strip()


def test_the_readmes_excerpt_is_of_this_page():
    section = (ROOT / "README.md").read_text("utf-8").partition("## Check another implementation")[2].partition("\n## ")[0]
    (excerpt,) = [block for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", section, re.M | re.S) if not language]
    lines = excerpt.splitlines()
    assert len(lines) >= 5 and all(line in PAGE.splitlines() for line in lines)


def test_what_it_says_is_so():
    assert all(f"`{name}`" in PAGE for name in ARITHMETICS) and f"more than {FACTOR:.0f} times the second" in PAGE
    for link in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", PAGE):
        assert (ROOT / "docs" / (link[0] or link[1])).exists(), link
    with Image.open(ROOT / "examples" / "report.png") as picture:
        assert picture.width >= 1000
