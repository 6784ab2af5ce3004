"""What `bench/check_bugs.py` holds for the right answer, and how it counts."""

import ast
from pathlib import Path

import numpy as np
import pytest

from bench.bugs import jpeg
from bench.bugs.answers import ANSWERS, UNKNOWN, VARIANTS, answers, right, said_of
from bench.bugs.bug import expected, magnitude
from bench.bugs.effects import Loss, effect
from bench.bugs.subjects import SUBJECTS, reference
from bench.bugs.tables import column, markdown, summary
from refvit.crosscheck.causes.table import BY_NAME
from refvit.crosscheck.inputs import ADVICE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def truth():
    return reference(SUBJECTS["vit"], np.random.default_rng(1))


def test_the_last_value_to_be_found_is_one_that_can_be_compared(truth):
    first, second, third = "blocks.0.norm1", "blocks.0.attn.proj", "blocks.0.norm2"
    before = {name: truth.golden[name] for name in (first, second, third)}
    after = {first: before[first].swapaxes(1, 2), second: before[second] + 1, third: before[third] + 1}
    found = expected(truth, before, after, (first,), set(before))
    assert (found.first, found.last) == (first, second)
    assert expected(truth, before, after, (first,), {third}).last == third
    assert expected(truth, before, before | {third: before[third] + 1}, (third,), set(before)).first == third
    assert expected(truth, before, before, (first,), set(before)) is None


def test_an_effect_is_measured_in_what_the_arithmetic_loses(truth):
    value = "blocks.1.norm1"
    change = 1e-3 * truth.golden[value]
    sizes = [effect(truth, truth.golden, value, change, Loss(a)) for a in ("float32", "float16", "bfloat16")]
    assert sizes[0] > 1000 * sizes[1] > 5000 * sizes[2] > 0
    top = float(np.abs(truth.golden[value]).max())
    assert effect(truth, truth.golden, value, change, Loss("int8", {value: (top / 127, 0)})) < 0.1
    assert Loss("bfloat16").rounded("", np.array([1 + 2**-8, 1 + 3 * 2**-8])).tolist() == [1.0, 1 + 2**-6]
    assert Loss("int8", {"a": (0.5, 10)}).rounded("a", np.array([0.3, 1e3])).tolist() == [0.5, 58.5]


def test_magnitudes_are_as_often_any_as_usual_ones_and_never_the_right_one():
    rng = np.random.default_rng(1)
    drawn = [magnitude(rng, (1e-3, 1e-5), 1e-8, 1e-2, right=1e-5) for _ in range(400)]
    assert 150 < sum(v == 1e-3 for v in drawn) < 250
    others = [v for v in drawn if v != 1e-3]
    assert len(set(others)) == len(others) and all(1e-8 <= v <= 1e-2 and abs(v - 1e-5) > 1e-6 for v in others)
    assert min(others) < 1e-7 and max(others) > 1e-3


def test_every_answer_is_a_cause_of_the_table():
    known = {*BY_NAME, *ADVICE, *UNKNOWN}
    said = {bug: ["", *VARIANTS.get(bug, {})] for bug in ANSWERS}
    assert set(VARIANTS) <= set(ANSWERS)
    for bug, details in said.items():
        for detail in details:
            for answer in answers(bug, detail):
                assert answer in known or answer.partition(": ")[0] in known, answer


def test_the_answer_depends_on_what_the_candidate_shows():
    reversed_weights = "input channels of the first weights reversed"
    assert answers("channels-reversed", said_of(reversed_weights, "torch", True)) == {"channels-reversed"}
    assert answers("channels-reversed", said_of("input channels reversed", "torch", True)) == {"input-channel-order"}
    assert len(answers("channels-reversed", said_of(reversed_weights, "dump", True))) == 2
    assert answers("weights-not-loaded", said_of("Linear as initialised", "dump", True)) == UNKNOWN
    assert answers("weights-not-loaded", said_of("Linear as initialised", "torch", True)) == {"weights-not-loaded"}
    late = answers("activation-behind-projection", said_of("", "torch", False))
    assert not right("activation-missing", "a: no hardswish", late)
    assert right("activation-missing", "a: no hardswish", answers("activation-behind-projection", said_of("", "torch", True)))


@pytest.mark.parametrize(
    ("text", "word", "fits"),
    [
        ("blocks.1.mlp.gelu: ReLU where the exact GELU (erf) is expected", "relu", True),
        ("blocks.1.mlp.gelu: ReLU6 where the exact GELU (erf) is expected", "relu", False),
        ("blocks.1.mlp.gelu: leaky ReLU of slope 0.01 where GELU is expected", "relu", False),
        ("a.relu: leaky ReLU of slope 0.01 where ReLU is expected", "leaky", True),
        ("a.relu: GELU where ReLU is expected", "relu", False),
        ("a.gelu: SiLU where GELU is expected", "gelu", False),
        ("g: ReLU where GELU is expected. This input cannot tell that from: g: ReLU6 where GELU is expected.", "relu", True),
        ("g: ReLU where GELU is expected. This input cannot tell that from: g: ReLU6 where GELU is expected.", "relu6", False),
        ("", "relu", False),
    ],
)
def test_a_word_counts_only_in_what_is_said_to_be_done(text, word, fits):
    assert right("activation-swapped", text, frozenset({f"activation-swapped: {word}"})) is fits
    assert not right("other", text, frozenset({f"activation-swapped: {word}"}))


def test_the_two_steps_of_a_factor_are_an_answer_only_where_there_are_two():
    said = "a: resized by a power of two, 2, first, and then to the size"
    assert right("resize-steps", said, answers("resize-by-factor", "times 2, then resized again"))
    assert not right("resize-steps", said, answers("resize-by-factor", "times 2, then cut"))
    assert not right("resize-steps", "resized in one step", answers("resize-by-factor", "times 2, then resized again"))


def test_a_runtime_that_is_wrong_itself_is_counted_apart():
    plain = {"seed": 1, "subject": "vit", "form": "timm", "cause": "rounding only", "found": None, "matched": True}
    wrong = plain | {"right": "openvino", "matched": False, "defect": 0.2, "ok": True, "cause": "unknown", "found": "head"}
    rows = [
        plain | {"right": "function", "ok": True, "defect": None},
        plain | {"right": "dump", "ok": False, "matched": False, "defect": None},
        plain | {"right": "onnx file, exported", "refused": ["vit: no"]},
        wrong,
        wrong | {"ok": False, "matched": True, "seed": 2},
    ]
    figures = summary(rows)
    assert (figures["right_runs"], figures["right_ways"], figures["false_alarms"]) == (2, 2, 1)
    assert (figures["runtimes_wrong_themselves"], figures["runtimes_wrong_and_found"]) == (2, 1)
    assert figures["right_but_not_exportable"] == 1
    text = markdown({"rows": rows, "summary": figures})
    alarms, defects = text.partition("False alarms:")[2].split("Runtimes that are wrong themselves:")
    assert alarms.count("- seed") == 1
    assert "20 % off onnxruntime on the same file; refvit: mismatch, unknown at head" in defects
    assert "seed 2, openvino, vit: 20 % off onnxruntime on the same file; refvit: not noticed" in defects
    assert "- seed 1, onnx file, exported: vit: no" in text.partition("no exporter writes it:")[2]


def test_mistakes_are_counted_and_every_one_that_went_wrong_is_listed():
    row = {
        "seed": 1,
        "bug": "a",
        "words": "what it is",
        "kind": "torch",
        "subject": "hrnet, small",
        "form": "timm",
        "site": "s",
    }
    row |= {"detail": "d", "first": "f", "found": "f", "cause": "c", "outside": False, "segment": 1, "alternatives": []}
    good = row | {"located": True, "exactly": True, "named": True, "wrong": False}
    rows = [
        good,
        good | {"exactly": False, "segment": 9, "alternatives": ["e"], "kind": "dump"},
        good | {"kind": "image", "exactly": False, "segment": 0},
        good | {"named": False, "wrong": True, "located": False, "exactly": False, "subject": "vit"},
        good | {"bug": "b", "outside": True, "cause": "unknown"},
        {"seed": 5, "bug": "a", "kind": "torch", "impossible": True, "tried": [["x", 3.0]], "refused": []},
        {"seed": 6, "bug": "a", "kind": "bench", "failed": "ValueError: no"},
    ]
    figures = summary(rows)
    assert (figures["mistakes"], figures["known"], figures["others"], figures["kinds_of_mistakes"]) == (5, 4, 1, 1)
    assert (figures["located_percent"], figures["located_without_images_percent"]) == (80, 75)
    assert figures["located_exactly_without_images_percent"] == 50
    assert figures["steps_of_the_reference_in_what_was_located_median"] == 1
    assert figures["steps_of_the_reference_in_what_was_located_90_percent"] == 9
    assert (figures["named_percent"], figures["wrong_percent"], figures["unknown_when_unknown_percent"]) == (75, 20, 100)
    assert figures["named_with_alternatives_percent"] == pytest.approx(33.33)
    text = markdown({"rows": rows, "summary": figures})
    assert "| a | what it is | 4 | 3 | 1 | 3 | 1 | c 4 |" in text
    assert "| HRNet | 0, 0, 0; 0, 0 | 2, 2, 2; 0, 0 |" in text
    assert text.partition("Misses:")[2].partition("False")[0].count("--only") == 1
    assert "--seeds 5 --only a: torch; 1 tried, the largest effect 3" in text
    assert "--seeds 6 --only a: ValueError: no" in text


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"kind": "torch", "form": "own"}, "torch"),
        ({"kind": "torch in half", "form": "timm in float16"}, "timm"),
        ({"kind": "int8 dump", "form": "timm, npy, 1"}, "dumps"),
        ({"kind": "onnx", "form": "timm traced"}, "ONNX"),
        ({"kind": "image", "form": "timm, npz, 1"}, "dumps behind an image"),
        ({"right": "openvino", "form": "refvit"}, "ONNX"),
        ({"right": "refvit on numpy", "form": "refvit"}, "refvit"),
        ({"right": "torch.compile", "form": "transformers"}, "transformers"),
    ],
)
def test_a_row_is_of_one_kind_of_candidate(row, kind):
    assert column(row) == kind


def test_the_other_decoder_differs_from_pillow_by_grey_levels(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(2)
    rough = Image.fromarray(rng.integers(90, 166, (9, 11, 3), np.uint8))
    smooth = rough.resize((61, 45), Image.Resampling.BICUBIC)
    for subsampling, low, high in ((0, 0.0, 1.0), (2, 0.3, 6.0)):
        smooth.save(path := tmp_path / "a.jpg", quality=90, subsampling=subsampling)
        difference = jpeg.decode(path).astype(float) - np.asarray(Image.open(path).convert("RGB"), float)
        assert low <= np.sqrt(np.mean(difference**2)) <= high
    smooth.save(path, progressive=True)
    with pytest.raises(ValueError, match="baseline"):
        jpeg.decode(path)


def test_what_is_right_walks_through_every_way_with_every_model():
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from bench.bugs.right import RIGHT, cell, grid

    cells = [str(c) for c in grid()]
    assert len(set(cells)) == len(cells)
    ways = len(RIGHT)
    assert len({cell(i).right.name for i in range(ways)}) == ways
    assert len({cell(i).subject.name for i in range(ways)}) == len(SUBJECTS)
    assert cell(len(cells)) == cell(0)
    for name in ("openvino", "torch.compile", "onnx file, exported"):
        assert {c.subject.name for c in grid() if c.right.name == name} == set(SUBJECTS)


def test_a_name_that_no_mistake_has_is_an_error_of_usage(monkeypatch, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from bench import check_bugs

    monkeypatch.setattr(check_bugs, "versions", dict)
    monkeypatch.setattr("sys.argv", ["check_bugs", "--only", "gelu-tanhh"])
    with pytest.raises(SystemExit, match="2"):
        check_bugs.main()
    assert "no mistake gelu-tanhh" in capsys.readouterr().err


def test_rows_of_other_code_are_not_taken_up(monkeypatch, capsys, tmp_path):
    from bench import check_bugs

    (tmp_path / "a.rows.jsonl").write_text('{"key": "1 a", "code": "older"}\n')
    monkeypatch.setattr(check_bugs, "versions", dict)
    monkeypatch.setattr(check_bugs, "code", lambda: "newer")
    monkeypatch.setattr("sys.argv", ["check_bugs", "--out", str(tmp_path / "a.json")])
    with pytest.raises(SystemExit, match="2"):
        check_bugs.main()
    assert "older" in capsys.readouterr().err


def _imported(folder: Path) -> set[str]:
    """The modules that the files of a folder import."""
    nodes = [node for file in sorted(folder.rglob("*.py")) for node in ast.walk(ast.parse(file.read_text()))]
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    taken = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return plain | {f"{node.module}.{alias.name}" for node in taken for alias in node.names}


def test_mistakes_and_causes_share_no_code():
    bench, check = _imported(ROOT / "bench"), _imported(ROOT / "refvit" / "crosscheck")
    assert len(bench) > 50 < len(check)
    assert not [name for name in bench if name.startswith("refvit.crosscheck")]
    assert not [name for name in check if name.startswith("bench")]
