"""Files of another implementation, written here byte by byte, and every way in which they can be wrong."""

import dataclasses
import json
import os
import struct

import numpy as np
import pytest

import refvit
from refvit.crosscheck import comparison
from refvit.crosscheck.candidates.dumps import Dumps
from refvit.crosscheck.candidates.function import Function
from refvit.crosscheck.diagnose import Diagnosis
from refvit.crosscheck.subject import same_weights
from refvit.errors import ConfigError, RefvitError

RNG = np.random.default_rng(41)
A = RNG.standard_normal((1, 2, 3, 4)).astype(np.float32)
X = RNG.standard_normal((1, 3, 8, 6)).astype(np.float32)
X32 = RNG.standard_normal((1, 3, 32, 32)).astype(np.float32)
TEN = "mobilevit_xxs.cifar10"


@pytest.fixture
def folder(tmp_path):
    """folder(manifest, {file: bytes or array}) -> the folder with these in it."""

    def write(manifest=None, files=None, name="manifest.json"):
        for file, content in (files or {}).items():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, np.ndarray):
                np.save(tmp_path / file, content)
            else:
                (tmp_path / file).write_bytes(content.encode() if isinstance(content, str) else content)
        if manifest is not None:
            (tmp_path / name).write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
        return tmp_path

    return write


@pytest.fixture
def no_search(monkeypatch):
    """Whether something is wrong is asked for, not why."""
    monkeypatch.setattr(comparison, "diagnose", lambda *given, **more: Diagnosis("unknown", "", "", ()))


def one(path):
    """The only value that a dump holds."""
    observed = Dumps(path).run(X)
    ((name, a),) = observed.values.items()
    assert name == "v"
    return a


def entry(file, shape=A.shape, dtype="float32", **more):
    return {"v": {"file": file, "shape": list(shape), "dtype": dtype, **more}}


# what there is


def test_npz(tmp_path):
    np.savez(tmp_path / "run.npz", **{"stem.conv": A, "input": X, "classes": np.arange(3)})
    dumps = Dumps(tmp_path / "run.npz")
    observed = dumps.run(X)
    assert dumps.name == "run.npz" and list(observed.values) == ["stem.conv", "input"]
    np.testing.assert_array_equal(observed.values["stem.conv"], A)
    np.testing.assert_array_equal(dumps.input, X)
    assert observed.notes == ("classes: integers without a scale, not compared; manifest.json can give one",)


def test_arrays_by_name():
    observed = Dumps({"a": A, "logits": A[0]}, name="mine").run(X)
    assert observed.outputs == ("logits",) and observed.arithmetic is None
    np.testing.assert_array_equal(observed.values["a"], A)


def test_folder_of_npy_in_the_order_of_its_numbers(folder):
    path = folder(files={f"t{i}.npy": A + i for i in (10, 9, 1)} | {"deep/er.npy": A[0]})
    assert list(Dumps(path).run(X).values) == ["deep/er", "t1", "t9", "t10"]


def test_raw_floats(folder):
    values = A.reshape(-1).tolist()
    assert np.array_equal(one(folder(entry("a.bin"), {"a.bin": struct.pack("<24f", *values)})), A)
    assert np.array_equal(one(folder(entry("b.bin", dtype="float64"), {"b.bin": struct.pack("<24d", *values)})), A)
    half = struct.pack("<24e", *values)
    expected = np.array(struct.unpack("<24e", half)).reshape(A.shape)
    assert np.array_equal(one(folder(entry("c.bin", dtype="float16"), {"c.bin": half})), expected)
    upper = b"".join(struct.pack("<f", v)[2:] for v in values)  # bfloat16, rounded towards zero
    expected = np.array([struct.unpack("<f", b"\0\0" + upper[i : i + 2])[0] for i in range(0, 48, 2)]).reshape(A.shape)
    assert np.array_equal(one(folder(entry("d.bin", dtype="bfloat16"), {"d.bin": upper})), expected)
    assert Dumps(folder(entry("d.bin", dtype="bfloat16"))).run(X).dtypes == {"v": "bfloat16"}


@pytest.mark.parametrize(("dtype", "code"), [("int8", "b"), ("uint8", "B"), ("int16", "h"), ("int32", "i")])
def test_raw_integers_with_a_scale(folder, dtype, code):
    words = [int(v) for v in RNG.integers(0 if code == "B" else -100, 120, 24)]
    path = folder(entry("a.bin", dtype=dtype, scale=0.25, zero_point=3), {"a.bin": struct.pack(f"<24{code}", *words)})
    expected = [(w - 3) * 0.25 for w in words]
    assert one(path).reshape(-1).tolist() == expected
    observed = Dumps(path).run(X)
    assert observed.scales == {"v": (0.25, 3.0)} and observed.arithmetic is None
    assert observed.dtypes == {"v": "int8" if code in "bB" else "float32"}  # 8 bits tell of weights of 8 bits, more do not


def test_real_numbers_have_no_scale_but_may_say_so(folder):
    for more in ({"scale": 1, "zero_point": 0}, {"scale": 1.0, "zero_point": None}, {"scale": None, "zero_point": None}):
        assert np.array_equal(one(folder(entry("a.npy", **more), {"a.npy": A})), A)
    for more in ({"scale": 0.5}, {"scale": 1, "zero_point": 2}):
        with pytest.raises(ConfigError, match="only integers have"):
            Dumps(folder(entry("a.npy", **more), {"a.npy": A})).run(X)


def test_scales_of_channels(folder):
    words = RNG.integers(-100, 100, (1, 2, 3, 4)).astype(np.int8)
    scales, zeros = [0.5, 0.125], [1, -2]
    expected = np.empty(words.shape)
    for c in range(2):
        expected[:, c] = (words[:, c].astype(float) - zeros[c]) * scales[c]
    given = entry("a.bin", dtype="int8", scale=scales, zero_point=zeros)
    assert np.array_equal(one(folder(given, {"a.bin": words.tobytes()})), expected)
    assert Dumps(folder(given)).run(X).scales == {"v": (0.5, 1.0)}
    last = np.ascontiguousarray(words.transpose(0, 2, 3, 1))
    given = entry("b.bin", last.shape, "int8", scale=scales, zero_point=zeros, layout="nhwc")
    assert np.array_equal(one(folder(given, {"b.bin": last.tobytes()})), expected.transpose(0, 2, 3, 1))
    square = RNG.integers(-100, 100, (2, 2)).astype(np.int8)
    given = entry("c.bin", (2, 2), "int8", scale=scales, axis=0)
    expected = np.array([[w * s for w in row] for row, s in zip(square.tolist(), scales, strict=True)])
    assert np.array_equal(one(folder(given, {"c.bin": square.tobytes()})), expected)


def test_which_axis_the_channels_are_may_need_saying(folder):
    given = entry("a.bin", (2, 2), "int8", scale=[0.5, 0.25])
    with pytest.raises(ConfigError, match=r"2 scales or zero points do not say for which axis of 2x2; say \"axis\""):
        Dumps(folder(given, {"a.bin": bytes(4)}))


def test_fixed_point(folder):
    words = [-4096, -1, 0, 1, 4095, 1000]
    path = folder(entry("a.bin", (2, 3), "4,8"), {"a.bin": struct.pack("<6h", *words)})
    assert one(path).reshape(-1).tolist() == [w / 256 for w in words]
    observed = Dumps(path).run(X)
    assert observed.scales == {"v": (1 / 256, 0.0)}
    assert observed.notes == ("fixed point, integer and fraction bits beside the sign: 4,8",)
    path = folder(entry("a.hex", (2, 3), "4,8"), {"a.hex": "\n".join(f"{w & 0x1FFF:04x}" for w in words)})  # 13 bits
    assert one(path).reshape(-1).tolist() == [w / 256 for w in words]


def test_hex_as_verilog_reads_it(folder):
    text = """
        // first line
        @3 7f 80      /* two
                         words */ 0_1
        @0
        ff 00 // end
        FE
    """
    path = folder(entry("a.hex", (6,), "int8", scale=2), {"a.hex": text})
    assert one(path).tolist() == [-2, 0, -4, 254, -256, 2]
    lines = "\n".join(struct.pack(">f", v).hex() for v in A.reshape(-1).tolist())
    assert np.array_equal(one(folder(entry("f.hex"), {"f.hex": lines})), A)
    lines = "\n".join(struct.pack(">f", v).hex()[:4] for v in A.reshape(-1).tolist())
    assert np.abs(one(folder(entry("b.hex", dtype="bfloat16"), {"b.hex": lines})) - A).max() < 2**-6


def test_npy_beside_a_manifest(folder):
    words = RNG.integers(-100, 100, A.shape).astype(np.int16)
    path = folder({"v": {"file": "a.npy", "scale": 0.5, "layout": "nchw", "dtype": "int16"}}, {"a.npy": words})
    assert np.array_equal(one(path), words * 0.5)
    assert Dumps(path).run(X).layouts == {"v": "nchw"}
    assert np.array_equal(one(folder({"v": {"file": "a.npy", "dtype": "2,3"}})), words / 8)
    with pytest.raises(ConfigError, match=r"a.npy holds int16, the manifest says float32"):
        Dumps(folder({"v": {"file": "a.npy", "dtype": "float32"}}))
    with pytest.raises(ConfigError, match=r"a.npy is 1x2x3x4, the manifest says 1x2x4x3"):
        Dumps(folder({"v": {"file": "a.npy", "dtype": "int16", "scale": 1, "shape": [1, 2, 4, 3]}}))


def test_other_json_lies_beside_arrays(folder):
    path = folder({"lr": 1}, {"v.npy": A}, name="config.json")
    np.testing.assert_array_equal(one(path), A)


def test_any_one_json_is_the_manifest(folder):
    path = folder(entry("a.bin"), {"a.bin": A.tobytes()}, name="description.json")
    assert np.array_equal(one(path), A)
    assert np.array_equal(one(path / "description.json"), A)
    with pytest.raises(ConfigError, match=r"another.json, description.json might be its manifest"):
        Dumps(folder({}, name="another.json"))


@pytest.mark.parametrize("name", ["input", "x", "pixel_values"])
def test_the_input_is_recognised(name):
    np.testing.assert_array_equal(Dumps({"stem": A, name: X}).input, X)
    np.testing.assert_array_equal(Dumps({"stem": A, name: X[0]}).input, X)
    np.testing.assert_array_equal(Dumps({"stem": A, name: X.transpose(0, 2, 3, 1)}).input, X)
    assert Dumps({"stem": A, name: A}).input is None
    assert Dumps({"stem": X}).input is None


def test_the_layout_says_which_axis_of_the_input_are_the_channels(folder):
    x = RNG.standard_normal((1, 3, 4, 3)).astype(np.float32)  # rows 3, columns 4, channels last; or channels 3 first
    given = {"input": entry("a.bin", x.shape, layout="nhwc")["v"]}
    np.testing.assert_array_equal(Dumps(folder(given, {"a.bin": x.tobytes()})).input, x.transpose(0, 3, 1, 2))
    given["input"]["layout"] = "nchw"
    np.testing.assert_array_equal(Dumps(folder(given)).input, x)


@pytest.mark.parametrize(
    "form",
    [
        {"format": "npy"},
        {"format": "bin", "layout": "nhwc"},
        {"format": "hex", "fixed_point": (6, 13), "tile": (5, 3)},
        {"format": "bin", "dtype": "float64", "tile": (4, 4), "layout": "nhwc"},
    ],
    ids=str,
)
def test_what_refvit_dump_writes(tmp_path, form):
    x = RNG.standard_normal((1, 3, 32, 32)).astype(np.float32)
    refvit.dump("mobilevit_xxs.cifar10", tmp_path / "d", input=x, nodes="stages.2.*", weights_too=True, **form)
    model = refvit.load(backend="numpy", dtype="float64")
    dumps = Dumps(tmp_path / "d")
    golden = {**model.intermediates(dumps.input), "input": x}
    observed = dumps.run(x)
    step = 2.0**-13 / 2 if "fixed_point" in form else 0
    assert {"stages.2.1.transformer.0.attn.attention.softmax", "input", "head.fc"} <= observed.values.keys()
    for name, a in observed.values.items():
        want = golden[name].transpose(0, 2, 3, 1) if observed.layouts.get(name) == "nhwc" else golden[name]
        bound = step + (0 if form.get("dtype") == "float64" or step else 2.0**-24 * np.abs(want).max())
        assert a.shape == want.shape and np.abs(a - want).max() <= bound, name
    assert observed.outputs == ("head.fc",)
    assert np.abs(dumps.input - x).max() <= step
    assert observed.parameters.keys() == model._params.keys()
    for name, p in observed.parameters.items():
        assert np.abs(p - model._params[name]).max() <= step + 2.0**-24 * np.abs(p).max(), name


def test_an_input_keeps_its_numbers():
    x = X.astype(np.float64) * (1 + 1e-9)
    assert Dumps({"stem": A, "input": x}).input.dtype == np.float64
    np.testing.assert_array_equal(Dumps({"stem": A, "input": x}).input, x)
    assert Dumps({"stem": A, "input": X.astype(np.float16)}).input.dtype == np.float32


def test_float64_is_held_to_float64(no_search):
    """The input of dumps is not cut to float32, which what they hold was not made from."""
    x = X32.astype(np.float64) * (1 + 1e-9)
    golden = refvit.load(TEN, backend="numpy", dtype="float64").intermediates(x)
    report = refvit.check({"input": x, "stages.3": golden["stages.3"], "output": golden["head.fc"]}, TEN)
    assert report.ok and report.arithmetic == "float64"


def test_bfloat16_is_told_wherever_it_is_widened(folder, tmp_path):
    """NumPy stores it as two raw bytes, of which the readers make float32."""
    raw = np.ascontiguousarray(A).view(np.uint16)[..., 1::2].copy().view("V2")
    want = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    path = folder({"v": {"file": "a.npy"}}, {"a.npy": raw})
    np.savez(tmp_path / "run.npz", v=raw, w=A)
    for source, dtypes in ((path, {"v": "bfloat16"}), (tmp_path / "run.npz", {"v": "bfloat16", "w": "float32"})):
        observed = Dumps(source).run(X)
        assert observed.dtypes == dtypes
        np.testing.assert_array_equal(observed.values["v"], want)

    class Narrow:  # a tensor of another library
        dtype = "torch.bfloat16"

        def __array__(self, dtype=None, copy=None):
            return A

    assert Dumps({"v": Narrow()}).run(X).dtypes == {"v": "bfloat16"}
    assert Function(lambda x: {"v": Narrow(), "w": A}).run(X).dtypes == {"v": "bfloat16", "w": "float32"}


def test_empty_arrays_are_left_out():
    observed = Dumps({"a": A, "boxes": np.zeros((0, 4), np.float32)}).run(X)
    assert list(observed.values) == ["a"] and observed.notes == ("boxes: without any number, not compared",)


def test_hex_without_addresses_is_read_at_once(folder, monkeypatch):
    """The same numbers, however the words are apart, and without a step of Python for each that looks for addresses."""
    words = RNG.integers(-(2**17), 2**17, 1000)
    lines = [f"{w & 0x3FFFF:05X}" for w in words.tolist()]
    for i, text in enumerate(("\n".join(lines), "\r\n".join(lines) + "\n", " // comment\n".join(lines))):
        path = folder(entry(f"{i}.hex", (10, 100), "9,8"), {f"{i}.hex": text})
        monkeypatch.setattr("refvit.crosscheck.candidates.manifest.WORD", None)
        assert np.array_equal(one(path), words.reshape(10, 100) / 256)


def test_a_dump_of_other_weights_is_refused(tmp_path):
    refvit.dump(TEN, tmp_path / "d", input=X32, nodes="stem")
    model = refvit.load(TEN, backend="numpy", dtype="float64")
    dumps = Dumps(tmp_path / "d")
    assert (dumps.model, dumps.weights_sha256) == (TEN, model._weights.sha256)
    same_weights(dumps, model)
    params = {**model._weights.params, "head.fc.bias": model._weights.params["head.fc.bias"] + 1}
    other = refvit.model.Model(dataclasses.replace(model._weights, params=params), backend="numpy")
    with pytest.raises(ConfigError, match=rf"d: was made from {TEN} with weights [0-9a-f]{{12}}\.\.\., which are not those of"):
        refvit.check(tmp_path / "d", other)
    facts = json.loads((tmp_path / "d" / "manifest.json").read_text())
    (tmp_path / "d" / "manifest.json").write_text(json.dumps({**facts, "kind": "mine", "weights_sha256": "1234"}))
    same_weights(Dumps(tmp_path / "d"), model)  # what a port writes there is its own affair


@pytest.mark.parametrize("bits", [(5, 10), (5, 20)], ids=str)
@pytest.mark.parametrize("nodes", ["stages.?", "stages.3.1.trans*.0.*"])
def test_wide_fixed_point_is_no_int8(tmp_path, no_search, bits, nodes):
    """Golden values in fixed point match, and what is wrong by 2 % does not pass for weights of 8 bits."""
    refvit.dump(TEN, tmp_path / "d", input=X32, nodes=nodes, fixed_point=bits)
    report = refvit.check(tmp_path / "d", TEN)
    assert report.ok and report.arithmetic == "float32"
    path = next((tmp_path / "d").glob("stages.3*.npy"))
    words = np.load(path)
    np.save(path, np.rint(words * 1.02).astype(words.dtype))
    assert path.stem in refvit.check(tmp_path / "d", TEN).first_divergence.candidate


def test_an_image_of_8_bits_is_no_int8(folder, no_search):
    """Values beside it are float32, and held to that."""
    x = np.ascontiguousarray(X32)
    scale = float(np.abs(x).max() / 127)
    words = np.rint(x / scale).astype(np.int8)
    model = refvit.load(TEN, backend="numpy", dtype="float64")
    golden = model.intermediates(words * scale)
    arrays = {n: golden[n].astype(np.float32) for n in ("stages.2", "stages.3", "head.fc")}
    given = {n: {"file": f"{n}.npy"} for n in arrays}
    given["input"] = {"file": "input.npy", "scale": scale}
    path = folder(given, {f"{n}.npy": a for n, a in arrays.items()} | {"input.npy": words})
    report = refvit.check(path, TEN)
    assert report.ok and report.arithmetic == "float32"
    np.save(path / "stages.3.npy", arrays["stages.3"] * np.float32(1.02))
    assert refvit.check(path, TEN).first_divergence.name == "stages.3"
    with pytest.raises(ConfigError, match="none of the values that are compared has a scale"):
        refvit.check(path, TEN, arithmetic="int8")


# what is wrong


def of_parameter(**more):
    values = [{"name": "v", **entry("a.bin")["v"]}]
    return {"values": values, "parameters": [{"name": "w", **entry("a.bin")["v"], **more}]}


BAD = {
    "size": (entry("a.bin", (1, 2, 3, 5)), "a.bin has 96 bytes, and 1x2x3x5 of float32 has 120"),
    "missing": (entry("b.bin"), "'b.bin' is missing in"),
    "absolute": (entry("/etc/hostname"), "the name of a file in the folder expected"),
    "traversal": (entry("../a.bin"), "leads out of"),
    "backslash": (entry("..\\a.bin"), "the name of a file in the folder expected"),
    "no file": ({"v": {"shape": [1], "dtype": "int8"}}, 'an object with "file", "shape" and "dtype" expected'),
    "no object": ({"v": "a.bin"}, 'an object with "file", "shape" and "dtype" expected'),
    "unknown key": (entry("a.bin", zeropoint=3), "unknown zeropoint; known are axis, bits, dtype"),
    "dtype": (entry("a.bin", dtype="float8"), "dtype is 'float8'; expected are float16, bfloat16"),
    "no dtype": ({"v": {"file": "a.bin", "shape": [24]}}, "dtype is None; expected are"),
    "wide": (entry("a.bin", dtype="40,40"), "64 together at most"),
    "shape": (entry("a.bin", shape=(1, -24)), r"shape is \[1, -24\]; a list of whole numbers above 0 expected"),
    "huge": (entry("a.bin", shape=(2**40, 2**40)), "a list of whole numbers above 0 expected"),
    "layout": (entry("a.bin", layout="nwhc"), "layout 'nwhc' does not exist"),
    "layout list": (entry("a.bin", layout=["nhwc"]), r"'v': layout \['nhwc'\] does not exist"),
    "layout of a kernel": (entry("a.bin", layout="krsc"), "'v': layout 'krsc' does not exist"),
    "layout of a parameter": (of_parameter(layout="nhwc"), "'w': layout is 'nhwc'; of a parameter it is one of kcrs, krsc"),
    "kernel without axes": (of_parameter(layout="krsc", shape=[24]), "'w': krsc is a layout of four axes, 24 has 1"),
    "tiles 5": ({"v": {"tiles": 5, "shape": [1], "dtype": "int8"}}, "'v': tiles is 5; a list of objects with"),
    "tiles of names": ({"v": {"tiles": ["a.bin"], "shape": [1]}}, r"'v': tiles is \['a.bin'\]; a list of objects with"),
    "suffix": (entry("a.txt"), "a.txt is none of .npy, .bin, .hex"),
    "no scale": (entry("a.bin", (96,), "int8"), "is int8 and needs a scale above 0"),
    "scale 0": (entry("a.bin", (96,), "int8", scale=0), "is int8 and needs a scale above 0"),
    "scale text": (entry("a.bin", (96,), "int8", scale="1"), "scale is '1'; a number, or a list"),
    "scale of floats": (entry("a.bin", scale=0.5), "is float32 and has a scale or zero point"),
    "scales": (entry("a.bin", (96,), "int8", scale=[1, 2]), "2 scales or zero points do not say for which axis of 96"),
    "bits": (entry("a.bin", (96,), "int8", scale=1, bits=9), "bits is 9; int8 has up to 8"),
    "more words": (entry("a.hex", (2,), "int8", scale=1), "word 2 is one more than the 2 of the shape"),
    "far fewer words": (entry("a.hex", (2**32,), "int8", scale=1), "a.hex: 8 bytes are too few for 4294967296 words"),
    "fewer words": (entry("a.hex", (4,), "int8", scale=1), "word 3 of 4 is missing"),
    "wide word": (entry("b.hex", (1,), "int8", scale=1), "'100' has more than the 8 bits of int8"),
    "no word": (entry("c.hex", (1,), "int8", scale=1), "'xz' is no hexadecimal word"),
    "twice": (entry("d.hex", (2,), "int8", scale=1), "word 0 is there twice"),
    "duplicate": ('{"v": {"file": "a.bin"}, "v": {"file": "a.bin"}}', "'v' twice"),
    "duplicate in a list": ({"values": [{"name": "v", **entry("a.bin")["v"]}] * 2}, "'v' is there twice"),
    "no json": ("{", "not a readable manifest"),
    "nan": ('{"v": NaN}', "not a readable manifest"),
    "a list": ([1], "an object of names expected"),
    "deep": ("[" * 100000, "not a readable manifest"),
}  # fmt: skip
FILES = {
    "a.bin": A.tobytes(), "a.txt": b"", "a.hex": "01 02 03", "b.hex": "100", "c.hex": "xz", "d.hex": "01 @0 02",
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_manifest_says_what_is_wrong(folder, case):
    manifest, message = BAD[case]
    with pytest.raises(ConfigError, match=message) as info:
        Dumps(folder(manifest, FILES))
    assert len(str(info.value)) < 600 and str(info.value).isprintable()


def test_a_link_out_of_the_folder(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "a.bin"
    outside.write_bytes(A.tobytes())
    path = folder(entry("l.bin"))
    os.symlink(outside, path / "l.bin")
    with pytest.raises(ConfigError, match="leads out of"):
        Dumps(path)


@pytest.mark.parametrize("tiles", ["gap", "overlap", "outside"])
def test_tiles_that_do_not_fit(folder, tiles):
    place = {"gap": (0, 0), "overlap": (0, 1), "outside": (0, 3)}[tiles]
    parts = [{"file": "t.bin", "shape": [1, 2, 3, 2], "row": 0, "column": 0}]
    parts += [{"file": "t.bin", "shape": [1, 2, 3, 2], "row": place[0], "column": place[1]}] if tiles != "gap" else []
    given = {"v": {"shape": [1, 2, 3, 4], "dtype": "float32", "layout": "nchw", "tiles": parts}}
    with pytest.raises(ConfigError, match="do not cover all" if tiles == "gap" else "overlaps another, or leads out"):
        Dumps(folder(given, {"t.bin": A[..., :2].tobytes()}))


def test_nothing_is_unpickled(folder, tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harmed"),)

    objects = np.array([Harm()], object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    with pytest.raises(ConfigError, match=r"not a readable .npy: Object arrays cannot be loaded"):
        Dumps(tmp_path)
    np.savez(tmp_path / "a.npz", a=objects)
    with pytest.raises(RefvitError, match="Python objects"):
        Dumps(tmp_path / "a.npz")
    import pickle

    (tmp_path / "b.npy").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ConfigError, match=r"not a readable .npy"):
        Dumps(tmp_path / "b.npy")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", np.lib.format.MAGIC_PREFIX + b"\x01\x00\xff\xff{", b"PK\x03\x04"])
def test_a_broken_npy(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ConfigError, match="not a"):
        Dumps(tmp_path)


def test_a_header_that_promises_too_much(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 64), }"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + bytes(64))
    with pytest.raises(ConfigError, match=r"not a readable .npy"):
        Dumps(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "no array of floating-point numbers in it"),
        ({"a": np.arange(3)}, "a holds integers, for which manifest.json has to give a scale"),
        ({"a": "text"}, "names and arrays of real numbers expected"),
        ({3: A}, "names and arrays of real numbers expected"),
        ("nowhere.npz", "no such file or folder"),
    ],
)
def test_sources_that_are_none(source, message):
    with pytest.raises(ConfigError, match=message):
        Dumps(source)


def test_folders_that_are_none(folder):
    with pytest.raises(ConfigError, match=r"not a folder of dumps; no .npy and no manifest.json in it"):
        Dumps(folder())
    with pytest.raises(ConfigError, match=r"not a folder of dumps; a.bin needs a manifest.json such as"):
        Dumps(folder(files={"a.bin": b"1"}))
    with pytest.raises(ConfigError, match=r"an .npz, a folder, or its manifest, a .json, expected"):
        Dumps(folder() / "a.bin")
