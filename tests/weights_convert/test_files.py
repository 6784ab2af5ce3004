"""Every seeded checkpoint as a file of every format, converted, and giving the original's outputs; `refvit convert`."""

import dataclasses
import itertools
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import files, handmade
from helpers.files import torch_file, write
from safetensors.numpy import load_file

import refvit
from refvit import ops
from refvit.errors import WeightsError
from refvit.weights import store
from refvit.weights.embedded import load_embedded
from refvit.weights.readers.checkpoint import read_checkpoint

GOLDEN = Path(__file__).parent.parent / "golden"
FIXTURES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
BOUND = 1e-10  # of the largest value
FLOAT32 = {"vit_tiny_patch16_224.transformers": 1e-6, "vit_tiny_patch16_224.jax": 1e-6}  # the original rounds on the way
UPSAMPLED = {  # to the size of the picture: align_corners
    "mobilevit_xxs_deeplabv3.cvnets": False,
    "mobilevit_xxs_deeplabv3.cvnets_v2": True,
}


def outputs(fixture, model, x):
    """What the original gave for x, by its names."""
    if fixture == "hrnet_w48_ocr":
        heads = model.intermediates(x, "*_head")
        return {"[0]": heads["aux_head"], "[1]": heads["cls_head"]}
    y = model(x)
    if fixture == "mobilevit_xxs_ssdlite.cvnets":
        return {"[0]": y["scores"], "[1]": y["boxes"]}
    if fixture in UPSAMPLED:
        y = ops.resize(y, size=x.shape[2:], mode="bilinear", align_corners=UPSAMPLED[fixture])
    return {"output": y}


@pytest.mark.parametrize("fixture", FIXTURES)
def test_every_format_gives_the_same_tensors(golden, tmp_path, fixture):
    state = golden(fixture).state()
    for suffix in files.SUFFIXES:
        path = write(state, tmp_path / f"a{suffix}")
        found = read_checkpoint(path)
        assert found.tensors.keys() == state.keys()
        for name, a in state.items():
            np.testing.assert_array_equal(found.tensors[name], a, strict=True)
        path.unlink()


@pytest.mark.parametrize(("fixture", "suffix"), list(zip(FIXTURES, itertools.cycle(files.SUFFIXES))))
def test_a_file_gives_the_originals_outputs(golden, tmp_path, fixture, suffix):
    case = golden(fixture)
    name = fixture.split(".")[0] if fixture.startswith(("vit", "deit")) else None  # the tensors of a ViT fit a DeiT as well
    path = write(case.state(), tmp_path / f"a{suffix}")
    loaded = refvit.load(name, path, dtype="float64", backend="numpy")
    assert case.check(outputs(fixture, loaded, case.input())) < FLOAT32.get(fixture, BOUND)
    kept = refvit.load(None, store.save(loaded._weights, tmp_path / "kept.safetensors"), dtype="float64")
    assert kept._weights.sha256 == loaded._weights.sha256 and kept.config == loaded.config
    path.unlink()
    (tmp_path / "kept.safetensors").unlink()


def test_a_wrapped_file_says_so(xxs, tmp_path):
    parts = dict(xxs)
    path = tmp_path / "best.pth"
    path.write_bytes(torch_file({f"module.{k}": v for k, v in parts.items()}))
    weights = refvit.load("mobilevit_xxs", path)._weights
    assert weights.source["key"] == "module." and weights.source["file"] == "best.pth"


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.", "net.", "backbone.", "_orig_mod.", "module.model.", "_orig_mod.module.", "model.net._orig_mod."],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_prefix_of_all_names_is_taken_off(xxs, tmp_path, prefix, suffix):
    loaded = refvit.load("mobilevit_xxs", write({prefix + k: v for k, v in xxs.items()}, tmp_path / f"a{suffix}"))._weights
    assert loaded.sha256 == refvit.load("mobilevit_xxs", xxs)._weights.sha256
    assert prefix == loaded.source.get("key", "") + loaded.source.get("prefix", "")
    mixed = {k if i else prefix + k: v for i, (k, v) in enumerate(xxs.items())}
    with pytest.raises(WeightsError):
        refvit.load("mobilevit_xxs", write(mixed, tmp_path / f"b{suffix}"))


def test_prefixes_without_end_are_not_taken_off(tmp_path):
    """In bounded time, whatever the length of the names."""
    state = {"module." * 100 + name: np.zeros(2, np.float32) for name in ("a", "b")}
    with pytest.raises(WeightsError, match="the layout is not one of the"):
        refvit.load(None, write(state, tmp_path / "a.safetensors"))


@pytest.mark.parametrize("length", [0x10708, 0x10808, 0x1017B, 0x18B1F])
def test_the_length_of_a_header_looks_like_nothing_else(xxs, tmp_path, length):
    """Its low bytes may be those with which an ONNX, gzip or JSON file begins."""
    data = write(xxs, tmp_path / "a.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].rstrip()
    assert len(header) <= length
    (tmp_path / "b.safetensors").write_bytes(length.to_bytes(8, "little") + header.ljust(length) + data[8 + size :])
    assert len(read_checkpoint(tmp_path / "b.safetensors").tensors) == len(xxs)


def test_nested_checkpoints_are_chosen_by_key(xxs, tmp_path):
    parts = []
    for group in ("model", "model_ema"):
        body = handmade.mapping([(handmade.text("stem.conv.weight"), handmade.vector("0", 4))])
        parts.append((handmade.text(group), body))
    (tmp_path / "two.pth").write_bytes(handmade.torch_zip(handmade.pickle(handmade.mapping(parts)), {"0": bytes(16)}))
    for options in ({}, {"key": "model_ema"}):
        with pytest.raises(WeightsError, match="the layout is not one of" if options else "key="):
            refvit.load("mobilevit_xxs", tmp_path / "two.pth", **options)
    with pytest.raises(WeightsError, match="only PyTorch files nest checkpoints"):
        refvit.load("mobilevit_xxs", write(xxs, tmp_path / "a.npz"), key="model")


def test_a_stack_of_too_many_layers_is_refused_at_once(tmp_path):
    names = ("embedding/kernel", "Transformer/encoderblock/LayerNorm_0/scale", "Transformer/encoderblock/LayerNorm_1/scale")
    extra = {"Transformer/encoder_norm/scale": np.zeros(1, np.float32)}
    state = {name: np.zeros(2_000_000, np.float32) for name in names} | extra
    with pytest.raises(WeightsError):
        refvit.load("vit_tiny_patch16_224", write(state, tmp_path / "a.npz"))


@pytest.mark.parametrize(
    "changes", [{"labels": ("a",)}, {"labels": (1,) * 10}, {"source": {"assumed": 5}}, {"config": {"num_classes": 10**9}}]
)
def test_our_own_files_are_checked_as_well(run, tmp_path, changes):
    whole = load_embedded("mobilevit_xxs.cifar10")
    if "config" in changes:
        changes = {"config": {**whole.config, **changes["config"]}}
    path = store.save(dataclasses.replace(whole, **changes), tmp_path / "a.safetensors")
    code, _, err = run("convert", path, "-o", tmp_path / "b.safetensors")
    assert code == 2 and "error" in err and not (tmp_path / "b.safetensors").exists()
    with pytest.raises(refvit.errors.RefvitError):
        refvit.load(None, path)


def test_names_from_files_do_not_steer_the_terminal(run, tmp_path):
    labels = ("\x1b[31mEVIL\x07", *"bcdefghij")
    path = store.save(dataclasses.replace(load_embedded("mobilevit_xxs.cifar10"), labels=labels), tmp_path / "a.safetensors")
    for arguments in (
        ("infer", Path(__file__).parents[2] / "examples" / "cat.jpg", "--weights", path, "--top", 10),
        ("convert", path),
    ):
        code, out, err = run(*arguments)
        assert code == 0 and "\x1b" not in out + err


# the command line


def test_convert_reports_and_writes(run, xxs, tmp_path):
    source, target = write(xxs, tmp_path / "model.pth"), tmp_path / "out.safetensors"
    code, out, err = run("convert", source, "-o", target, "--tag", "mine", "--dtype", "float16")
    assert code == 0 and f"saved {target}" in err
    rows = dict(line.split(None, 1) for line in out.splitlines() if not line.startswith(" "))
    assert rows["model"] == "mobilevit_xxs.mine" and "1,272,024 parameters, float16" in rows["tensors"]
    assert "1x3x128x128 -> output 1x1000" in rows["self-check"]
    loaded = refvit.load(None, target)
    assert rows["sha256"] == loaded._weights.sha256 and loaded._weights.params["stem.conv.weight"].dtype == np.float16
    assert loaded.name == "mobilevit_xxs.mine" and loaded._weights.source["file"] == "model.pth"


def test_without_a_target_nothing_is_written(run, xxs, tmp_path):
    source = write(xxs, tmp_path / "model.npz")
    code, out, err = run("convert", source, "--json", "--no-check")
    found = json.loads(out)
    assert code == 0 and "nothing was written" in err and "self_check" not in found
    assert found["parameters"] == 1_272_024 and found["source"]["layout"] == "mobilevit.timm"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.npz"]


def test_options_are_remembered(run, xxs, tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps([f"c{i}" for i in range(1000)]))
    target = tmp_path / "o.safetensors"
    options = ("--resize", "256", "--crop", "224", "--mean", "1", "2", "3", "--channel-order", "bgr")
    code, *_ = run("convert", write(xxs, tmp_path / "best.pth"), "-o", target, "--labels", tmp_path / "classes.json", *options)
    model = refvit.load(None, target)
    assert code == 0 and model.labels[7] == "c7" and model.preprocess.channel_order == "bgr"
    assert (model.preprocess.resize, model.preprocess.crop, model.preprocess.mean) == (256, 224, (1.0, 2.0, 3.0))


def test_to_another_layout_and_back(run, xxs, tmp_path):
    target, back = tmp_path / "cvnets.safetensors", tmp_path / "back.safetensors"
    code, out, _ = run("convert", write(xxs, tmp_path / "a.pth"), "--to", "cvnets", "-o", target)
    assert code == 0 and "written as" in out
    assert "conv_1.block.conv.weight" in load_file(target)
    assert run("convert", target, "--to", "timm", "-o", back)[0] == 0
    again = load_file(back)
    for name, a in xxs.items():
        np.testing.assert_array_equal(again[name], a)


def test_an_option_that_a_layout_cannot_say(run, golden, tmp_path):
    source = write(golden("vit_tiny_patch16_224.jax").state(), tmp_path / "a.npz")
    options = (
        "convert",
        source,
        "--model",
        "vit_tiny_patch16_224",
        "--no-check",
        "--to",
        "timm",
        "-o",
        tmp_path / "b.safetensors",
    )
    code, _, err = run(*options)
    assert (
        code == 2 and "implies gelu 'none' where these weights have 'tanh'" in err and not (tmp_path / "b.safetensors").exists()
    )
    code, out, _ = run(*options, "--told", "gelu", "--told", "position_resize")
    assert code == 0 and "gelu: the file does not tell that it is 'tanh'" in out
    assert "blocks.0.attn.qkv.weight" in load_file(tmp_path / "b.safetensors")


def test_nan_is_found(run, xxs, tmp_path):
    bad = dict(xxs) | {"stem.conv.weight": np.full_like(xxs["stem.conv.weight"], np.nan)}
    code, _, err = run("convert", write(bad, tmp_path / "a.pth"), "-o", tmp_path / "b.safetensors")
    assert code == 2 and "stem.conv.weight: NaN or infinite values in 1 tensors" in err
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89HDF\r\n\x1a\n" + b"x" * 600, "an HDF5 file"),
        (b"<!DOCTYPE html>" + b" " * 600, "a web page"),
        (zlib.compress(b"x" * 900), "none of safetensors, .npz and PyTorch"),
        (b"", "empty (0 bytes)"),
        (b"\x1f\x8b" + b"x" * 600, "gzip"),
    ],
)
def test_other_files_are_told_apart(run, tmp_path, content, message):
    (tmp_path / "a.pth").write_bytes(content)
    code, _, err = run("convert", tmp_path / "a.pth")
    assert code == 2 and message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "x.pth"), "ending in .safetensors expected"),
        (("--to", "timm"), "--to needs --output FILE"),
        (("--told", "gelu"), "--told needs --to LAYOUT"),
        (("-o", ""), "ending in .safetensors expected as --output"),
        (("--to", "keras", "-o", "x.safetensors"), "keras"),
        (("--model", "vit_tiny_patch16_224"), "not vit_tiny_patch16_224"),
        (("--dtype", "int8"), "int8"),
        (("--set", "colour=1"), "unknown option 'colour'"),
        (("--key", "ema"), "ema"),
    ],
)
def test_bad_arguments(run, xxs, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("convert", write(xxs, tmp_path / "a.pth"), *arguments)
    assert code == 2 and message in err
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_an_embedded_tag_converts(run, tmp_path):
    code, out, _ = run("convert", "mobilevit_xxs.cifar10", "-o", tmp_path / "a.safetensors", "--dtype", "float32")
    assert code == 0 and "mobilevit_xxs.cifar10" in out
    assert refvit.load(None, tmp_path / "a.safetensors").name == "mobilevit_xxs.cifar10"
    code, _, err = run("convert", "mobilevit_xxs.cifar10", "--model", "mobilevit_s")
    assert code == 2 and "leave --model, --tag and --key out" in err
    code, _, err = run("convert", tmp_path / "a.safetensors", "-o", tmp_path, "--no-check")
    assert code == 2


def test_a_file_that_is_not_there(run, tmp_path):
    code, _, err = run("convert", tmp_path / "gone.pth")
    assert code == 2 and "no such weights file" in err
    with pytest.raises(WeightsError, match="no such weights file"):
        refvit.load("mobilevit_xxs", tmp_path / "gone.pth")
