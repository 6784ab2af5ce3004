"""What a report says: text, JSON and exceptions, of a reference with one step replaced."""

import dataclasses
import json
import math

import numpy as np
import pytest
from helpers import crosschecked as c

from refvit.crosscheck.diagnosis import Diagnosis, Trial
from refvit.crosscheck.measure import FACTOR
from refvit.crosscheck.words import cosine, number, share
from refvit.errors import ConfigError

UNKNOWN = Diagnosis("unknown", "", "", (Trial("gelu-tanh", "the tanh form", 61.2, False), Trial("x", "y", 900.0, False)))


@pytest.fixture(scope="module")
def good():
    return c.report(c.shown())


@pytest.fixture(scope="module")
def wrong():
    return c.report(c.shown({c.NORM: {"eps": 1e-3}}), c.EPS)


def lines(report):
    """label -> text, unwrapped."""
    found, label = {}, ""
    for line in report.text().splitlines()[1:]:
        label = line[:20].strip() or label
        found[label] = f"{found.get(label, '')} {line[20:].strip()}".strip()
    return found


def test_a_match(good):
    assert good.ok and good.first_divergence is None and good.cause == "rounding only" and good.missing == []
    first, *_ = good.text().splitlines()
    assert first == "MATCH: port.onnx computes mobilevit_xxs.cifar10, as exactly as float32 can"
    said = lines(good)
    assert set(said) == {"input", "compared", "worst", "cause"}  # and nothing adds up
    assert said["compared"] == f"311 of 311 values, 311 by path; allowed is {FACTOR:.0f} times what float32 itself costs"
    good.assert_matches()
    assert repr(good) == "Report(port.onnx, mobilevit_xxs.cifar10, match)" and str(good) == good.text()


def test_a_mismatch_says_where_how_much_why_and_what_to_do(wrong):
    assert not wrong.ok and wrong.first_divergence.name == c.NORM and wrong.cause == "norm-eps"
    assert wrong.text().startswith("MISMATCH: port.onnx does not compute mobilevit_xxs.cifar10\n")
    said = lines(wrong)
    f = wrong.first_divergence
    assert said["first divergence"] == f"{c.NORM} (layer_norm, 4x4x80)"
    assert said["error"].endswith(f"{number(f.own_ratio)} times what float32 costs there")
    ulps = f"{number(f.own.ulps_elsewhere)} ulps of float32, near zero by {number(f.own.ulps_near_zero)}"
    assert said["alike"] == f"cosine {cosine(f.own.cosine)}; off by up to {ulps}"
    assert said["cause"] == "norm-eps: the layer norm adds 0.001 to the variance where the reference adds 1e-05"
    assert said["what to do"] == "set eps=1e-05 in this layer norm"
    inherited = [f.name for f in wrong.findings if f.verdict == "inherited"]
    assert said["only inherited"].startswith(f"{len(inherited)} later ones, by what they read: {inherited[0]}, ")
    assert said["at the output"].startswith("off by ")
    assert "not compared" not in said
    assert 8 <= len(wrong.text().splitlines()) <= 14
    assert max(map(len, wrong.text().splitlines())) <= 120


def test_assert_matches_raises_the_text(wrong):
    with pytest.raises(AssertionError) as caught:
        wrong.assert_matches()
    assert str(caught.value) == wrong.text()


def test_a_cause_that_is_not_known_shows_the_nearest(wrong):
    report = dataclasses.replace(wrong, diagnosis=UNKNOWN)
    said = lines(report)
    assert said["cause"] == "unknown"
    assert said["nearest"] == "the tanh form, which leaves 61 times what float32 costs"


def test_notes_are_said(wrong):
    told = dataclasses.replace(c.EPS, notes=("not all were tried",))
    said = lines(dataclasses.replace(wrong, diagnosis=told, notes=("looking may change what is fused",)))
    assert said["note"] == "looking may change what is fused not all were tried"


def test_nothing_is_left_out_silently():
    names = [n for n in c.graph().nodes if n.endswith((".silu", ".conv"))]
    report = c.report(c.shown(), leave=names)
    said = lines(report)
    assert said["not compared"] == f"{len(names)} of the reference: {', '.join(names[:3])} and {len(names) - 3} more"
    matching = dataclasses.replace(report.matching, unmatched_candidate=("tmp_7",), reasons={"tmp_7": "of no shape"})
    other = dataclasses.replace(report, matching=matching)
    assert "1 of the candidate: tmp_7 (of no shape)" in lines(other)["not compared"]
    assert other.to_dict()["unmatched_reference"] == names and other.to_dict()["unmatched_candidate"] == ["tmp_7"]
    assert other.to_dict()["reasons"] == {"tmp_7": "of no shape"}


def test_a_missing_output_is_a_mismatch():
    report = c.report(c.shown(), leave=["head.fc"])
    assert not report.ok and report.missing == ["output"] and report.first_divergence is None
    assert lines(report)["missing"] == "output: no value of the candidate was found to be this output"
    with pytest.raises(AssertionError, match="missing"):
        report.assert_matches()
    assert json.loads(report.to_json())["missing"] == ["output"]


def added_up(report, value, ratio):
    """The report with one value that is too far off in total, and right by its own step."""
    found = [dataclasses.replace(f, verdict="inherited", total_ratio=ratio) if f.value == value else f for f in report.findings]
    return dataclasses.replace(report, findings=tuple(found))


def test_what_adds_up_is_said_and_counts_at_the_output(good):
    inner = added_up(good, c.NORM, 17.3)
    assert inner.ok
    start = f"1 values are off by more than {FACTOR:.0f} times what float32 costs on the way there, "
    assert lines(inner)["adds up"] == f"{start}{c.NORM} by 17 times, though no step before is"
    output = added_up(good, "head.fc", 17.3)
    assert not output.ok and output.first_divergence is None
    assert lines(output)["at the output"].startswith("off by ")
    with pytest.raises(AssertionError, match="by 17 times"):
        output.assert_matches()


def test_a_second_mistake_is_told_from_what_is_inherited():
    other = "stages.4.1.transformer.2.norm2"
    values = c.shown({c.NORM: {"eps": 1e-3}, other: {"eps": 1e-2}})
    assert lines(c.report(values, c.EPS))["wrong as well"] == f"1, each by its own step: {other}"
    explained = c.report(values, dataclasses.replace(c.EPS, also=(other,)))
    assert lines(explained)["explains also"] == f"1: {other}" and "wrong as well" not in lines(explained)


def test_a_long_segment_says_what_to_show_next():
    inside = [n for n in c.graph().nodes if n.startswith("stages.3.1.transformer.1")]
    values = c.shown({c.NORM: {"eps": 1e-3}})
    said = lines(c.report(values, UNKNOWN, leave=inside))
    assert f"steps, {inside[0]} ... " in said["between"] and "; show " in said["between"]
    assert "; show " not in lines(c.report(values, c.EPS, leave=inside))["between"]


def test_nan_and_infinity_are_said_and_stay_out_of_the_json():
    def spoil(name, a):
        if name == c.NORM:
            a[0, 0, :3] = np.nan
            a[1, 0, 0] = np.inf
        return a

    report = c.report(c.shown(spoil=spoil), UNKNOWN)
    assert report.first_divergence.name == c.NORM
    assert lines(report)["error"] == "4 of its 1,280 values are NaN or infinite"

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    plain = json.loads(report.to_json(), parse_constant=refuse)
    found = next(f for f in plain["findings"] if f["name"] == c.NORM)
    assert found["own"]["bad"] == 4 and found["own_ratio"] is None and found["verdict"] == "diverges"


def test_json_has_everything_in_plain_values(wrong):
    plain = json.loads(wrong.to_json())
    assert plain == wrong.to_dict()
    assert plain["ok"] is False and plain["first_divergence"] == c.NORM and plain["factor"] == FACTOR
    assert [f["name"] for f in plain["findings"]] == [f.name for f in wrong.findings]
    assert plain["diagnosis"]["cause"] == "norm-eps" and len(plain["diagnosis"]["trials"]) == 3
    assert plain["diagnosis"]["trials"][2]["residual_ratio"] is None
    one, want = next(f for f in plain["findings"] if f["name"] == c.NORM), wrong.first_divergence
    assert one["own"]["largest"] == want.own.largest and one["spread"] == list(want.spread) and one["shape"] == [4, 4, 80]
    assert one["layout"] == "as is" and one["how"] == "path" and one["confidence"] == 1.0
    assert one["computed_from"] == list(want.segment.sources) and one["steps"] == [c.NORM]
    assert set(one["own"]) == {"largest", "rms", "cosine", "ulps_near_zero", "ulps_elsewhere", "where", "bad"}


def test_saving(wrong, tmp_path):
    for suffix, start in (
        (".html", "<!doctype html>"),
        (".json", '{"ok": false'),
        (".txt", "MISMATCH"),
        (".HTML", "<!doctype"),
    ):
        path = wrong.save(tmp_path / "new" / f"report{suffix}")
        assert path.read_text("utf-8").startswith(start)
    for name in ("report", "report.pdf", ""):
        with pytest.raises(ConfigError, match=r"a name ending in \.html, \.json, \.txt expected"):
            wrong.save(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_names_out_of_files_do_not_break_it(tmp_path):
    strange = c.report(c.shown(), rename=lambda n: f"{n}\ud800\n\x1b[31m</script><b>")
    assert json.loads(strange.to_json())["findings"][1]["candidate"].endswith("</script><b>")
    for suffix in (".html", ".json", ".txt"):
        assert strange.save(tmp_path / f"r{suffix}").stat().st_size > 200
    assert "</script><b>" not in (tmp_path / "r.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.0, "nothing"),
        (3.2e-7, "3.2e-07"),
        (0.0031, "0.31 %"),
        (0.5, "50 %"),
        (12.3, "1,230 %"),
        (math.inf, "an infinite part"),
    ],
)
def test_shares(x, text):
    assert share(x) == text


@pytest.mark.parametrize(
    ("x", "text"), [(0.0, "0"), (0.04, "0.04"), (7.96, "8.0"), (23.4, "23"), (1234.5, "1,234"), (math.inf, "infinitely many")]
)
def test_numbers(x, text):
    assert number(x) == text


@pytest.mark.parametrize(
    ("x", "text"), [(1.0, "1"), (1 - 2.1e-9, "1 - 2.1e-09"), (0.98765, "0.9877"), (-0.25, "-0.2500"), (0.0, "0.0000")]
)
def test_cosines(x, text):
    assert cosine(x) == text
