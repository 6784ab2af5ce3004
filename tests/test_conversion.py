"""`refvit.convert`: what the command line does, in Python."""

import json

import numpy as np
import pytest
from helpers.files import write

import refvit
from refvit.errors import ConfigError, WeightsError

XXS = "mobilevit_xxs"


def test_it_says_and_writes_what_the_command_line_does(run, xxs, tmp_path):
    source = write(xxs, tmp_path / "best.pth")
    (tmp_path / "classes.txt").write_text("\n".join(f"c{i}" for i in range(1000)))
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    options = ("--tag", "mine", "--dtype", "float16", "--labels", tmp_path / "classes.txt", "--resize", "250", "--json")
    code, out, err = run("convert", source, "-o", one, *options)
    assert code == 0 and err == f"refvit: saved {one}\n"
    report = refvit.convert(source, two, tag="mine", dtype="float16", labels=tmp_path / "classes.txt", resize=250)
    assert report.to_dict() == json.loads(out)
    assert one.read_bytes() == two.read_bytes()
    assert run("convert", two)[1] == f"{refvit.convert(two)}\n"
    assert repr(report) == "Report(mobilevit_xxs.mine, 1,272,024 parameters)"


def test_the_report_is_a_copy(xxs):
    report = refvit.convert(dict(xxs), check=False)
    report.to_dict()["source"].clear()
    assert report.to_dict()["source"]["layout"] == "mobilevit.timm" and "self_check" not in report.to_dict()
    assert "self-check  1x3x128x128 -> output 1x1000" in str(refvit.convert(dict(xxs)))


def test_to_another_layout(run, xxs, tmp_path):
    report = refvit.convert(dict(xxs), tmp_path / "a.npz", to="cvnets", check=False)
    assert report.to_dict()["exported"]["layout"] == "mobilevit.cvnets" and "written as" in str(report)
    assert "conv_1.block.conv.weight" in np.load(tmp_path / "a.npz")


def test_what_was_recorded_goes_along(tmp_path):
    """refvit's own file, whose tensors have the names of timm's."""
    first = refvit.convert("mobilevit_xxs.cifar10", tmp_path / "a.safetensors", check=False).to_dict()
    again = refvit.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", resize=40, check=False).to_dict()
    assert first["labels"] == again["labels"] == 10 and first["source"] == again["source"]
    assert again["preprocess"] == {**first["preprocess"], "resize": 40}
    assert refvit.load(None, tmp_path / "b.safetensors").labels[3] == "cat"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "x.pth"}, "'x.pth': a name ending in .safetensors expected as output="),
        ({"output": ""}, "ending in .safetensors expected"),
        ({"output": "x.npz"}, "ending in .safetensors expected"),
        ({"output": "."}, "a folder; give the name of a file as output="),
        ({"to": "timm"}, "to= needs output=FILE"),
        ({"told": ["gelu"]}, "told= needs to=LAYOUT"),
        ({"told": ["gelu"], "output": "x.safetensors"}, "told= needs to=LAYOUT"),
        ({"dtype": "bfloat16"}, "'bfloat16': one of float16, float32, float64 expected as dtype="),
        ({"colour": 1}, "unknown option 'colour'"),
        ({"backend": "numpy"}, "backend: an argument of its own"),
    ],
    ids=str,
)
def test_arguments_are_refused_before_anything_is_read(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        refvit.convert("gone.pth", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["", None])
def test_no_source_is_not_the_working_folder(run, source):
    with pytest.raises(ConfigError, match="source: a file, a folder, a tag, an id of the hub or a dict of arrays expected"):
        refvit.convert(source)
    assert run("convert", "")[0] == 2
    with pytest.raises(ConfigError, match="got an empty text"):
        refvit.load(None, "")


def test_a_model_is_no_source_but_its_tags_are(run, xxs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tags = "its tags are mobilevit_xxs.cifar10, mobilevit_xxs.cvnets_in1k, mobilevit_xxs.transformers_in1k"
    for source in (XXS, f"{XXS}.foo", f"{XXS}.pth"):
        code, _, err = run("convert", source)
        assert code == 2 and f"{source}: no such weights file, and no tag of {XXS}; {tags}; give one of them or a file" in err
    with pytest.raises(WeightsError, match="no tag of mobilevit_s_ssdlite; it has no tags; give a file"):
        refvit.convert("mobilevit_s_ssdlite")
    with pytest.raises(WeightsError, match=r"mobilevit_q\.pth: no such weights file"):
        refvit.convert("mobilevit_q.pth")
    for options in ({"model": XXS}, {"tag": "a"}, {"key": "ema"}):
        with pytest.raises(ConfigError, match="leave model=, tag= and key= out"):
            refvit.convert(f"{XXS}.cifar10", **options)
    write(xxs, tmp_path / "a.pth").rename(XXS)  # a file of that name is a file
    assert refvit.convert(XXS, check=False).to_dict()["source"]["file"] == XXS


def test_nan_names_the_file(xxs, tmp_path):
    bad = dict(xxs) | {"stem.conv.weight": np.full_like(xxs["stem.conv.weight"], np.nan)}
    path = write(bad, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth: stem\.conv\.weight: NaN or infinite values in 1 tensors"):
        refvit.convert(path, tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match=r"^these arrays: stem"):
        refvit.convert(bad)
    assert not (tmp_path / "b.safetensors").exists()
