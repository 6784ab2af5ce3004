"""Bad input, case by case, through the Python interface and through the command line: an answer, or one clear line."""

import json
import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import refvit
from refvit.cli import main
from refvit.errors import BackendError, ConfigError, ImageError, RefvitError, UnknownModelError, WeightsError
from refvit.weights.embedded import load_embedded
from refvit.weights.store import save

RNG = np.random.default_rng(6)
NOISE = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)


def png(width, height, depth, colour, rows):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def make_missing(path):
    pass


def make_folder(path):
    path.mkdir()
    (path / "readme.txt").write_text("no image")


def make_truncated(path):
    Image.fromarray(NOISE).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:900])


def make_weird_name(path):
    path.write_text("not an image")


def make_frames(path):
    frames = [Image.new("RGB", (20, 20), c) for c in ("red", "lime", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def image(make, *size):
    return lambda path: make().save(path)


BAD = {  # name of the file -> (what makes it, part of the message)
    "missing.png": (make_missing, "no such file"),
    "folder": (make_folder, "a folder without images"),
    "empty.png": (Path.touch, "empty (0 bytes)"),
    "truncated.jpg": (make_truncated, "damaged or truncated"),
    "text.png": (lambda path: path.write_text("not an image"), "not an image, or damaged: it begins with b'not an image'"),
    "line\nbreak.png": (make_weird_name, r"line\nbreak.png: not an image"),
    "bomb.png": (lambda path: path.write_bytes(png(60000, 60000, 8, 2, bytes(100))), "3600000000"),
    "large.png": (lambda path: path.write_bytes(png(12000, 12000, 8, 2, bytes(100))), "12000 x 12000 pixels; at most 1342"),
    "float.tif": (image(lambda: Image.new("F", (9, 9), 0.5)), "floating-point grey (mode F) has no known range"),
    "int32.tif": (image(lambda: Image.new("I", (9, 9), 70000)), "32-bit integer grey (mode I) has no known range"),
    "page.svg": (lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"), "expected JPEG"),
}


def one_line(text, *parts):
    assert "\n" not in text
    assert "Traceback" not in text
    assert len(text) < 600
    for part in parts:
        assert part in text


def command(capsys, *args):
    """(exit code, standard output, error lines) of the command line in this process."""
    code = main([str(a) for a in args])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, [line for line in err.splitlines() if line.startswith("refvit: error: ")]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", list(BAD))
def test_bad_files(name, tmp_path, capsys):
    make, part = BAD[name]
    path = tmp_path / name
    make(path)
    shown = name.replace("\n", r"\n")
    with pytest.raises(ImageError) as caught:
        refvit.infer(path)
    one_line(str(caught.value), part, shown)
    code, out, errors = command(capsys, "infer", path)
    assert (code, out) == (2, "")
    assert len(errors) == 1
    one_line(errors[0], part, shown)
    # among others it costs nothing but its own answer
    good = tmp_path / "good.png"
    Image.fromarray(NOISE).save(good)
    results = list(refvit.infer([good, path, good]))
    assert [r.error is None for r in results] == [True, False, True]
    code, out, errors = command(capsys, "infer", good, path, good, "--json")
    assert code == 1
    assert ["error" in json.loads(line) for line in out.splitlines()] == [False, True, False]
    assert len(errors) == 1


GOOD = {  # name of the file -> (what makes it, colour of the first pixel, part of the note or None)
    "tiny.png": (image(lambda: Image.new("RGB", (1, 1), (9, 8, 7))), (9, 8, 7), None),
    "animated.gif": (make_frames, (255, 0, 0), "frame 1 of 3"),
    "pages.tif": (make_frames, (255, 0, 0), "frame 1 of 3"),
    "grey.png": (image(lambda: Image.new("L", (30, 20), 77)), (77, 77, 77), None),
    "grey_alpha.png": (image(lambda: Image.new("LA", (30, 20), (100, 51))), (224, 224, 224), "over white"),
    "alpha.png": (image(lambda: Image.new("RGBA", (30, 20), (255, 0, 0, 0))), (255, 255, 255), "over white"),
    "sixteen.png": (image(lambda: Image.fromarray(np.full((20, 30), 257 * 99, np.uint16))), (99, 99, 99), "16-bit"),
    "ink.jpg": (image(lambda: Image.new("CMYK", (32, 32), (0, 255, 255, 0))), (254, 0, 0), "CMYK"),
    "palette.png": (image(lambda: Image.new("RGB", (30, 20), (1, 2, 3)).quantize(2)), (1, 2, 3), None),
    "wide.png": (image(lambda: Image.new("RGB", (3000, 1), (5, 5, 5))), (5, 5, 5), None),
    "no_suffix": (lambda path: Image.new("RGB", (30, 20), (5, 5, 5)).save(path, "PNG"), (5, 5, 5), None),
    "wrong_suffix.jpg": (lambda path: Image.new("RGB", (30, 20), (5, 5, 5)).save(path, "PNG"), (5, 5, 5), None),
    "spaces and ü [1].png": (image(lambda: Image.new("RGB", (9, 9), (5, 5, 5))), (5, 5, 5), None),
}


@pytest.mark.parametrize("name", list(GOOD))
def test_files_that_work(name, tmp_path, capsys):
    make, colour, note = GOOD[name]
    path = tmp_path / name
    make(path)
    result = refvit.infer(path)
    np.testing.assert_allclose(result.picture.pixels[0, 0], colour, atol=2)
    assert np.isfinite(result.logits).all()
    assert result.source == str(path)
    assert len(result.picture.notes) == (note is not None)
    assert note is None or note in result.picture.notes[0]
    code, out, errors = command(capsys, "infer", path, "--json", "--save", tmp_path / "out" / "drawn.png")
    assert (code, errors) == (0, [])
    assert json.loads(out)["top"] == result.to_dict()["top"]
    assert json.loads(out)["notes"] == list(result.picture.notes)


def test_elongated_beyond_reason(tmp_path, capsys):
    path = tmp_path / "line.png"
    Image.new("1", (200_000, 1)).save(path)  # 32 high it would be 6.4 million wide
    with pytest.raises(ImageError, match="6400000 x 32, over"):
        refvit.infer(path)
    code, out, errors = command(capsys, "infer", path)
    assert (code, out, len(errors)) == (2, "", 1)


def test_elongated_beyond_reason_names_the_image(tmp_path, capsys):
    path = tmp_path / "line.png"
    Image.new("1", (200_000, 1)).save(path)
    with pytest.raises(ImageError, match=r"line\.png"):
        refvit.infer(path)


def process(args, memory):
    """The command line in a process that may map at most `memory` bytes."""
    env = {**os.environ, "PYTHONPATH": str(Path(refvit.__file__).parent.parent), "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "refvit", *map(str, args)],
        env=env,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, memory)),
    )


@pytest.fixture(scope="module")
def hundred_megapixels(tmp_path_factory):
    path = tmp_path_factory.mktemp("huge") / "hundred.png"
    path.write_bytes(png(10_000, 10_000, 1, 0, bytes(1 + 10_000 // 8) * 10_000))
    assert path.stat().st_size < 2**16
    return path


@pytest.fixture(scope="module")
def huge_run(hundred_megapixels):
    return process(["infer", hundred_megapixels, "--json"], 3 * 2**30)


def test_100_megapixels_work(huge_run):
    assert huge_run.returncode == 0
    answer = json.loads(huge_run.stdout)
    assert answer["size"] == [10_000, 10_000]
    black = refvit.infer(np.zeros((64, 64, 3), np.uint8)).top()
    assert [p["index"] for p in answer["top"]] == [p.index for p in black]


def test_100_megapixels_work_without_alarm(huge_run):
    assert "bomb" not in huge_run.stderr


def test_too_little_memory_is_said(hundred_megapixels):
    done = process(["infer", hundred_megapixels], 600 * 2**20)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "damaged" not in done.stderr


# arrays, which the command line cannot be given


@pytest.mark.parametrize(
    ("array", "parts"),
    [
        (np.full((9, 9, 3), np.nan, np.float32), ["float32", "NaN", "uint8"]),
        (np.zeros((9, 9, 3), np.float64), ["float64", "(x * 255)"]),
        (np.zeros((9, 9, 3), np.int64), ["int64", "uint8"]),
        (np.zeros((9, 9, 3), bool), ["bool", "* 255"]),
        (np.zeros((9, 9), np.uint8), ["(9, 9)", "np.stack"]),
        (np.zeros((9, 9, 4), np.uint8), ["(9, 9, 4)", "x[..., :3]"]),
        (np.zeros((9, 9, 1), np.uint8), ["(9, 9, 1)", "np.repeat"]),
        (np.zeros((9, 9, 2), np.uint8), ["(9, 9, 2)"]),
        (np.zeros((3, 9, 9), np.uint8), ["(3, 9, 9)", "transpose(1, 2, 0)"]),
        (np.zeros((0, 9, 3), np.uint8), ["no pixels"]),
        (np.zeros(9, np.uint8), ["(9,)"]),
        (np.zeros((1, 1, 9, 9, 3), np.uint8), ["(1, 1, 9, 9, 3)"]),
        (np.array(None), ["()"]),
    ],
    ids=lambda v: str(getattr(v, "shape", "")),
)
def test_bad_arrays(array, parts, demo):
    for call in (refvit.infer, demo.infer):
        with pytest.raises(ImageError) as caught:
            call(array)
        one_line(str(caught.value), *parts)
    good, bad = demo.infer([NOISE, array])
    assert good.error is None
    one_line(str(bad.error), *parts)
    assert bad.source == "<array>"


# models, weights, backends


@pytest.fixture
def files(tmp_path, golden):
    """Weights of another model, and corrupt ones."""
    golden("mobilevit_xxs.timm").save(tmp_path / "xxs.safetensors")
    whole = save(load_embedded("mobilevit_xxs.cifar10"), tmp_path / "own.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.safetensors").write_bytes(whole[:-1000] + b"\x55" + whole[-999:])
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "pickle.pth").write_bytes(b"PK\3\4 archive/data.pkl")
    return tmp_path


@pytest.mark.parametrize(
    ("model", "weights", "backend", "error", "code", "parts"),
    [
        ("resnet50", None, "auto", UnknownModelError, 2, ["unknown model 'resnet50'", "did you mean"]),
        ("mobilevit_xss", None, "auto", UnknownModelError, 2, ["did you mean mobilevit_xs"]),
        (None, None, "cuda", BackendError, 3, ["unknown backend 'cuda'", "numpy"]),
        ("mobilevit_s", "xxs.safetensors", "auto", WeightsError, 2, ["xxs.safetensors", "a complete mobilevit_xxs checkpoint"]),
        ("mobilevit_xs", "own.safetensors", "auto", WeightsError, 2, ["own.safetensors", "not of mobilevit_xs"]),
        (None, "cut.safetensors", "auto", WeightsError, 2, ["cut.safetensors", "not a readable safetensors file"]),
        (None, "flipped.safetensors", "auto", WeightsError, 2, ["flipped.safetensors", "sha256", "get the file again"]),
        (None, "empty.safetensors", "auto", WeightsError, 2, ["empty.safetensors", "empty (0 bytes)"]),
        (None, "pickle.pth", "auto", WeightsError, 2, ["pickle.pth", "not a readable PyTorch checkpoint"]),
        (None, "gone.safetensors", "auto", WeightsError, 2, ["gone.safetensors: no such weights file"]),
    ],
)
def test_bad_models(files, capsys, model, weights, backend, error, code, parts):
    path = weights and files / weights
    with pytest.raises(error) as caught:
        refvit.infer(NOISE, model, weights=path, backend=backend)
    assert isinstance(caught.value, RefvitError)
    text = str(caught.value)
    assert "\n" not in text
    assert all(part in text for part in parts)
    Image.fromarray(NOISE).save(files / "good.png")
    options = ["--model", model] * (model is not None) + ["--weights", path] * (path is not None) + ["--backend", backend]
    got, out, errors = command(capsys, "infer", files / "good.png", *options)
    assert (got, out, len(errors)) == (code, "", 1)
    assert all(part in errors[0] for part in parts)


def test_a_layout_without_a_model_is_told(tmp_path, capsys):
    from safetensors.numpy import save_file

    save_file({"blocks.0.attn.qkv.weight": np.zeros((3, 1), np.float32)}, tmp_path / "vit.safetensors")
    Image.fromarray(NOISE).save(tmp_path / "good.png")
    code, _, errors = command(capsys, "infer", tmp_path / "good.png", "--weights", tmp_path / "vit.safetensors")
    assert (code, len(errors)) == (2, 1)
    one_line(errors[0], "vit.safetensors", "nearest is ", "blocks.0.attn.qkv.weight")


@pytest.mark.parametrize(
    ("options", "part"),
    [({"dtype": "int8"}, "float32"), ({"device": "cuda"}, "cpu"), ({"mean": 0.5}, "three"), ({"crop": 0}, "a size above 0")],
)
def test_bad_options(options, part):
    with pytest.raises(ConfigError, match=part):
        refvit.infer(NOISE, **options)
