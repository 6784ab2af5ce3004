"""The command line: what it prints where, what it writes, and its exit codes."""

import argparse
import json
import os
import pickle
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from helpers import handmade as h
from PIL import Image

import refvit

RNG = np.random.default_rng(4)
PIXELS = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def image(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "one.png")
    return str(tmp_path / "one.png")


@pytest.fixture
def folder(tmp_path):
    """img1, img2 (broken), img10: in this order."""
    path = tmp_path / "photos"
    path.mkdir()
    Image.fromarray(PIXELS).save(path / "img1.png")
    Image.fromarray(PIXELS[::-1]).save(path / "img10.png")
    (path / "img2.png").write_bytes(b"\x89PNG broken")
    return path


@pytest.fixture
def run(run):
    """As for all tests, but with the lines on standard error."""

    def call(*args):
        code, out, err = run(*args)
        return code, out, err.splitlines()

    return call


def errors(lines):
    return [line for line in lines if line.startswith("refvit: error: ")]


# infer


def test_infer_prints_a_table(run, image):
    code, out, err = run("infer", image)
    assert code == 0
    source, *rows = out.splitlines()
    assert source == image
    expected = refvit.load().infer(image).top(5)
    assert [row.split() for row in rows] == [[f"{p.probability:.2%}", p.label] for p in expected]
    assert len(err) == 1  # the notice about the demonstration model
    assert err[0].startswith("refvit: mobilevit_xxs.cifar10 is a demonstration")
    code, again, _ = run("infer", image, "--top", 2)
    assert again.splitlines() == out.splitlines()[:3]
    assert len(run("infer", image, "--top", 999)[1].splitlines()) == 11


def test_infer_json(run, image):
    code, out, _ = run("infer", image, "--json", "--top", 3)
    assert code == 0
    (line,) = out.splitlines()
    answer = json.loads(line)
    assert set(answer) == {"source", "size", "top", "notes", "provenance"}
    assert answer["source"] == image
    assert answer["size"] == [60, 40]
    assert [set(p) for p in answer["top"]] == [{"label", "probability", "index"}] * 3
    assert answer["provenance"]["model"] == "mobilevit_xxs.cifar10"


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "PNG"])
def test_infer_saves_a_picture(run, image, tmp_path, suffix):
    out = tmp_path / "new" / f"answer.{suffix}"
    code, _, err = run("infer", image, "--save", out)
    assert code == 0
    assert f"refvit: saved {out}" in err
    with Image.open(out) as drawn:
        assert drawn.format == {"jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}.get(suffix, "PNG")
        assert drawn.width > 480
    assert os.listdir(out.parent) == [out.name]


def test_infer_saves_json(run, image, tmp_path):
    assert run("infer", image, "--save", tmp_path / "a.json", "--top", 2)[0] == 0
    assert len(json.loads((tmp_path / "a.json").read_text())["top"]) == 2


def test_infer_saves_a_folder_for_many(run, image, folder, tmp_path):
    (folder / "img2.png").unlink()
    out = tmp_path / "answers"
    assert run("infer", folder, "--save", out)[0] == 0
    assert sorted(os.listdir(out)) == ["000001_img1.png", "000002_img10.png"]
    assert run("infer", image, image, "--save", tmp_path / "same")[0] == 0
    assert sorted(os.listdir(tmp_path / "same")) == ["000001_one.png", "000002_one.png"]


@pytest.mark.parametrize("name", ["answer.gif", "answer", "answer.svg"])
def test_save_with_another_suffix(run, image, tmp_path, name):
    code, _, err = run("infer", image, "--save", tmp_path / name)
    assert code == 2
    assert len(errors(err)) == 1
    assert ".png, .jpg" in errors(err)[0]
    assert not (tmp_path / name).exists()


def test_a_suffix_is_refused_before_the_work(run, image):
    assert run("infer", image, "--save", "answer.gif")[1] == ""


def test_save_many_into_one_file_is_refused_before_any_work(run, folder, image, tmp_path):
    for images in ([folder], [image, image], [f"{folder}/*.png"]):
        code, out, err = run("infer", *images, "--save", tmp_path / "a.png")
        assert (code, out) == (2, "")
        assert "for several images a folder is expected" in errors(err)[0]


def test_a_place_that_cannot_be_written(run, image, tmp_path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file" / "a.png", "/proc/nowhere/a.png"):
        code, _, err = run("infer", image, "--save", out)
        assert code == 2
        assert len(errors(err)) == 1
        assert str(Path(out).parent) in errors(err)[0]
    code, _, err = run("infer", image, image, "--save", tmp_path / "file" / "sub")
    assert (code, len(errors(err))) == (2, 1)


def test_a_folder_with_a_broken_image(run, folder):
    code, out, err = run("infer", folder, "--json")
    assert code == 1
    answers = [json.loads(line) for line in out.splitlines()]
    assert [Path(a["source"]).name for a in answers] == ["img1.png", "img2.png", "img10.png"]
    assert ["error" in a for a in answers] == [False, True, False]
    assert len(errors(err)) == 1
    assert "img2.png" in errors(err)[0]
    assert err[-1] == "refvit: 1 of 3 images failed"
    code, out, err = run("infer", folder)
    assert code == 1
    assert "img2.png" not in out
    assert len(out.splitlines()) == 12
    assert len(errors(err)) == 1


def test_several_arguments(run, image, folder):
    code, out, err = run("infer", image, folder, f"{folder}/*0.png", "gone.jpg", "--top", 1, "--batch-size", 2)
    assert code == 1
    names = [Path(line).name for line in out.splitlines()[::2]]
    assert names == ["one.png", "img1.png", "img10.png", "img10.png"]
    assert len(errors(err)) == 2
    assert err[-1] == "refvit: 2 of 6 images failed"


def test_one_image_that_cannot_be_read(run, folder, tmp_path):
    (tmp_path / "bare").mkdir()
    for path in ("gone.jpg", folder / "img2.png", tmp_path / "bare", f"{folder}/*.gif", "https://example.org/a.jpg"):
        code, out, err = run("infer", path)
        assert (code, out) == (2, "")
        assert len(errors(err)) == 1
        assert str(path) in errors(err)[0]


def test_notes_are_told(run, tmp_path):
    frames = [Image.new("RGB", (9, 9), c) for c in ("red", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    code, _, err = run("infer", tmp_path / "a.gif")
    assert code == 0
    assert err[-1] == f"refvit: {tmp_path / 'a.gif'}: frame 1 of 2 used"


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (["--model", "mobilevit_x"], 2, "did you mean mobilevit_xs"),
        (["--model", "mobilevit_s"], 2, "do not come with refvit"),
        (["--model", "mobilevit_xxs.imagenet"], 2, "mobilevit_xxs.cvnets_in1k"),
        (["--weights", "gone.safetensors"], 2, "gone.safetensors: no such weights file"),
        (["--backend", "tpu"], 3, "unknown backend 'tpu'; known are auto, numba, numpy"),
        (["--dtype", "int8"], 2, "float16, float32, float64, got 'int8'"),
        (["--labels", "gone.txt"], 2, "labels file gone.txt"),
        (["--interpolation", "sinc"], 2, "'sinc' given, expected one of nearest"),
        (["--channel-order", "rbg"], 2, "expected one of rgb, bgr"),
        (["--std", "0", "1", "1"], 2, "numbers above 0"),
        (["--mean", "nan", "0", "0"], 2, "three finite numbers"),
        (["--resize", "99999x99999"], 2, "pixels in all"),
    ],
)
def test_options_that_refvit_refuses(run, image, options, code, part):
    got, out, err = run("infer", image, *options)
    assert (got, out) == (code, "")
    assert len(errors(err)) == 1
    assert part in errors(err)[0]


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["frobnicate"],
        ["infer"],
        ["infer", "a.png", "--top", "0"],
        ["infer", "a.png", "--top", "-1"],
        ["infer", "a.png", "--top", "many"],
        ["infer", "a.png", "--top", "²"],
        ["infer", "a.png", "--batch-size", "0"],
        ["infer", "a.png", "--resize", "0"],
        ["infer", "a.png", "--crop", "1x2x3"],
        ["infer", "a.png", "--crop", "12px"],
        ["infer", "a.png", "--mean", "1", "2"],
        ["infer", "a.png", "--std", "a", "b", "c"],
        ["infer", "a.png", "--unknown"],
        ["summary"],
        ["summary", "mobilevit_s", "--size", "-3"],
        ["summary", "mobilevit_s", "--depth", "0"],
        ["models", "a", "b"],
        ["info", "more"],
    ],
)
def test_options_that_argparse_refuses(run, args):
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert err[0].startswith("usage: refvit")
    assert "error:" in err[-1]


def test_preprocessing_options(run, image, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join("abcdefghij"))
    options = "--resize 48 --crop 40x36 --interpolation box --mean 0.5 0.4 0.3 --std 0.2 0.3 0.4 --channel-order bgr"
    code, out, _ = run("infer", image, "--json", *options.split(), "--labels", names, "--dtype", "float64")
    assert code == 0
    answer = json.loads(out)
    expected = {"resize": 48, "crop": [40, 36], "interpolation": "box", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    assert expected.items() <= answer["provenance"]["preprocess"].items()
    assert answer["provenance"]["preprocess"]["channel_order"] == "bgr"
    assert answer["provenance"]["dtype"] == "float64"
    assert {p["label"] for p in answer["top"]} < set("abcdefghij")


def test_own_weights(run, image, golden, tmp_path):
    path = golden("mobilevit_xxs.timm").save(tmp_path / "model.safetensors")
    code, out, err = run("infer", image, "--weights", path, "--model", "mobilevit_xxs", "--resize", 64, "--crop", 64, "--json")
    assert code == 0
    assert err == []  # no word about the demonstration model
    assert json.loads(out)["provenance"]["weights_source"]["file"] == "model.safetensors"
    code, _, err = run("infer", image, "--weights", path, "--model", "mobilevit_xs")
    assert code == 2
    assert "model.safetensors: this is a complete mobilevit_xxs checkpoint" in errors(err)[0]


def test_warnings_of_libraries_are_one_line(run, image, monkeypatch):
    infer = refvit.Model.infer

    def warn(*args, **options):
        warnings.warn("something\nodd", UserWarning, stacklevel=1)
        return infer(*args, **options)

    monkeypatch.setattr(refvit.Model, "infer", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        _, _, err = run("infer", image)
    assert err[-1] == "refvit: something odd"


# models, summary, info


HUB = ("cvnets_in1k", "transformers_in1k")


def test_models(run):
    code, out, err = run("models", "mobilevit_*s")
    assert (code, err) == (0, [])
    head, *rows = out.splitlines()
    assert head.split()[:4] == ["model", "task", "parameters", "MACs"]
    assert rows[0].split() == ["mobilevit_xxs", "classification", "1,272,024", "407,364,096", "256x256", "cifar10", *HUB]
    assert rows[2].split() == ["mobilevit_s", "classification", "5,578,632", "2,000,831,488", "256x256", *HUB]
    assert len(rows) == 3
    assert len({line.index("256x256") for line in rows}) == 1  # aligned


def test_models_json_and_patterns(run):
    code, out, _ = run("models", "*_x*s", "--json")
    assert code == 0
    rows = json.loads(out)
    assert [r["name"] for r in rows] == ["mobilevit_xxs", "mobilevit_xs"]
    assert set(rows[0]) == {"name", "task", "params", "input_size", "weights", "macs"}
    assert rows[1]["macs"] == 1_025_911_808
    for args in (["resnet*"], ["vit*", "--task", "pose"]):
        code, out, err = run("models", *args)
        assert (code, out) == (2, "")
        assert f"no model matches {args[0]!r}" in errors(err)[0]


def test_summary(run):
    code, out, err = run("summary", "mobilevit_xxs")
    assert (code, err) == (0, [])
    assert out.splitlines()[0] == "mobilevit_xxs, input 1x3x256x256"
    assert out.splitlines()[-1].split()[:4] == ["total", "1x1000", "1,272,024", "407,364,096"]
    half = run("summary", "mobilevit_xxs", "--size", "128", "--batch-size", 2)[1]
    assert half.splitlines()[0] == "mobilevit_xxs, input 2x3x128x128"
    assert run("summary", "mobilevit_xxs", "--size", "96x160")[1].splitlines()[0].endswith("1x3x96x160")
    assert len(run("summary", "mobilevit_xxs", "--depth", 3)[1].splitlines()) > len(out.splitlines())
    code, _, err = run("summary", "mobilevit")
    assert code == 2
    assert "did you mean mobilevit_" in errors(err)[0]


def test_summary_json_and_graph(run):
    table = json.loads(run("summary", "mobilevit_s", "--json")[1])
    assert set(table) == {"name", "input_shape", "blocks", "total"}
    assert (table["total"]["params"], table["total"]["macs"]) == (5_578_632, 2_000_831_488)
    assert sum(b["macs"] for b in table["blocks"]) == 2_000_831_488
    code, out, _ = run("summary", "mobilevit_xxs", "--graph", "--size", 64)
    assert code == 0
    assert out.startswith("graph(input: 1x3x64x64)")
    assert "conv2d(" in out


def test_summary_graph_and_json_exclude_each_other(run):
    assert run("summary", "mobilevit_xxs", "--graph", "--json")[0] == 2


@pytest.mark.parametrize(("name", "code"), [("mobilevit_xxs.cifar10", 0), ("mobilevit_xxs.nonsense", 2)])
def test_summary_of_a_tag(run, name, code):
    got, out, _ = run("summary", name)
    assert got == code
    assert "1x1000" not in out


def test_summary_saves_drawings(run, tmp_path):
    svg, dot = tmp_path / "a.svg", tmp_path / "new" / "a.dot"
    assert run("summary", "mobilevit_xxs", "--save", svg)[0] == 0
    texts = " ".join(ElementTree.parse(svg).getroot().itertext())
    assert all(f"stages.{i}" in texts for i in range(5))
    code, _, err = run("summary", "mobilevit_xxs", "--save", dot)
    assert code == 0
    assert f"refvit: saved {dot}" in err
    assert dot.read_text().startswith("digraph")
    assert dot.read_text().count("{") == dot.read_text().count("}")
    code, out, err = run("summary", "mobilevit_xxs", "--save", tmp_path / "a.png")
    assert (code, out) == (2, "")
    assert ".svg or .dot" in errors(err)[0]


def test_info(run):
    code, out, err = run("info")
    assert (code, err) == (0, [])
    assert f"refvit: {refvit.__version__}" in out
    assert "usable" in out
    assert json.loads(run("info", "--json")[1]) == refvit.info()


def test_help_and_version(run):
    options = {
        "infer": "--model --weights --labels --top --json --save --backend --dtype --batch-size --allow-url --resize --crop "
        "--interpolation --mean --std --channel-order",
        "models": "--task --json",
        "summary": "--size --batch-size --depth --graph --json --save",
        "info": "--json",
        "check": "--model --weights --image --names --layouts --arithmetic --outputs-only --json --output --set --mean",
        "dump": "--model --weights --image --nodes --format --dtype --fixed-point --layout --tile --weights-too --force --json",
    }
    code, out, _ = run("--help")
    assert code == 0
    assert all(verb in out for verb in options)
    assert "exit codes: 0 fine, 1 a mismatch, or some of several inputs failed, 2 wrong usage" in out
    for verb, names in options.items():
        code, out, _ = run(verb, "--help")
        assert code == 0
        assert all(name in out for name in names.split()), verb
    assert run("--version")[:2] == (0, f"refvit {refvit.__version__}\n")


# in a process of its own


def refvit_process(command, **variables):
    env = {**os.environ, "PYTHONPATH": str(Path(refvit.__file__).parent.parent), **variables}
    line = command.replace("refvit", f"{sys.executable} -m refvit", 1)
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], env=env, capture_output=True, text=True, timeout=60)


def test_a_process(image):
    done = refvit_process(f"refvit infer {image} --json --backend tpu")
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("refvit: error: unknown backend 'tpu'; known are auto, numba, numpy")


@pytest.mark.parametrize("reader", ["head -1", "true"])
def test_a_reader_that_had_enough(reader):
    done = refvit_process(f"refvit summary mobilevit_s --graph --depth 9 | {reader}")
    assert done.returncode == 0
    assert done.stdout.startswith("graph(") == (reader == "head -1")
    assert done.stderr == ""


def test_a_terminal_that_cannot_print_the_name(image, tmp_path):
    os.rename(image, tmp_path / "naïve.png")
    done = refvit_process(f"refvit infer {tmp_path}/*.png --top 1", PYTHONIOENCODING="ascii")
    assert "Traceback" not in done.stderr
    assert done.returncode == 0


# what an error tells to give


@pytest.fixture
def nested(tmp_path):
    """A checkpoint with two models in it, without checksums."""
    pairs = [(h.text(key), h.mapping([("w", h.vector("0", 4))])) for key in ("model", "model_ema", "it's")]
    entries = h.torch_entries(h.pickle(h.mapping(pairs)), {"0": bytes(range(16))})
    (tmp_path / "two.pth").write_bytes(h.archive(entries))
    for entry in entries:
        entry.crc = 0
    (tmp_path / "no_crc.pth").write_bytes(h.archive(entries))
    return tmp_path


def test_an_error_names_what_can_be_typed(run, image, nested):
    two, bare = nested / "two.pth", nested / "no_crc.pth"
    (line,) = errors(run("convert", two)[2])
    assert "say which one by --key model (1 tensors) or --key model_ema (1 tensors)" in line
    (line,) = errors(run("infer", image, "--model", "mobilevit_xxs", "--weights", two)[2])
    assert "say which one by --set key=model (1 tensors) or --set key=model_ema (1 tensors)" in line
    (line,) = errors(run("convert", bare)[2])
    assert line.endswith("give --no-crc") and "layout" in errors(run("convert", bare, "--no-crc", "--key", "model")[2])[0]
    (line,) = errors(run("infer", image, "--model", "mobilevit_xxs", "--weights", bare)[2])
    assert line.endswith("give --set check_crc=false")
    line = errors(run("infer", image, "--model", "mobilevit_xxs", "--weights", bare, "--set", "check_crc=false")[2])[0]
    assert "--set key=" in line
    with pytest.raises(refvit.errors.WeightsError, match="give check_crc=False"):  # and in Python what Python takes
        refvit.load("mobilevit_xxs", bare)


def test_the_model_and_options_of_a_layout_are_asked_for(run, golden, image, tmp_path):
    path = golden("vit_tiny_patch16_224.timm").save(tmp_path / "model=vit.safetensors")  # what looks so is left alone in a name
    (line,) = errors(run("infer", image, "--weights", path)[2])
    assert line.endswith("say which by --model") and "model=vit.safetensors: these tensors fit" in line
    (line,) = errors(run("convert", path)[2])
    assert line.endswith("say which by --model") and "model=vit.safetensors: " in line
    options = ("--model", "vit_tiny_patch16_224", "--no-check", "--to", "timm", "-o", tmp_path / "out.safetensors")
    (line,) = errors(run("convert", golden("vit_tiny_patch16_224.jax").save(tmp_path / "jax.safetensors"), *options)[2])
    assert "say --told gelu --told position_resize (" in line
    (line,) = errors(run("infer", image, "--model", "mobilevit_s")[2])
    assert "or give a file by --weights FILE" in line
    (line,) = errors(run("summary", "hrvit_b1.in1k")[2])
    assert "give a file by weights=FILE" in line  # this command has no option for it


def test_options_without_a_name_of_their_own_are_set(run, golden, tmp_path):
    state = golden("hrnet_w18_small_seg").state()
    head = {name: a[:7] for name, a in state.items() if name.startswith("last_layer.3.")}
    from safetensors.numpy import save_file

    save_file({k: np.ascontiguousarray(a) for k, a in (state | head).items()}, tmp_path / "a.safetensors")
    (line,) = errors(run("convert", tmp_path / "a.safetensors")[2])
    assert "say --set align_corners=VALUE (see the repository that trained it)" in line


@pytest.mark.parametrize(
    ("argument", "given", "typed"),
    [
        ("key='a b'", {"key": None}, "--key 'a b'"),
        ("told=['a', 'b']", {"told": []}, "--told a --told b"),
        ("batch_size=1", {"batch_size": None}, "--batch-size 1"),
        ("flip=False", {"set": []}, "--set flip=false"),
        ("scales=[1, 2]", {"set": []}, "--set scales=[1, 2]"),
        ("key='a\"b'", {"set": []}, "--set key='a\"b'"),
        ("check_crc=False", {"no_crc": False, "set": []}, "--no-crc"),
        ("weights=FILE", {"weights": None}, "--weights FILE"),
        ("weights=FILE", {}, "weights=FILE"),
        ("model=", {"model": None}, "--model"),
    ],
)
def test_how_an_argument_is_typed(argument, given, typed):
    from refvit.cli.common import typed as spelled

    inner = refvit.errors.WeightsError(f"say {argument} now", argument)
    outer = refvit.errors.ConfigError(f"{argument}.pth: {inner}")
    outer.__cause__ = inner
    assert spelled(outer, argparse.Namespace(**given)) == f"{argument}.pth: say {typed} now"


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(refvit.errors.WeightsError("say key=1", "key=1")))
    assert (str(error), error.arguments) == ("say key=1", ("key=1",))
