"""`refvit.dump`: golden intermediates in files, their manifest, and what is refused."""

import hashlib
import json
import os
import warnings

import numpy as np
import pytest
from PIL import Image

import refvit
from refvit.crosscheck.forms import FileNames, FixedPoint, hex_lines
from refvit.crosscheck.maps import maps
from refvit.errors import ConfigError, ShapeError
from refvit.graph.ir import ShapeOnly
from refvit.graph.trace import trace
from refvit.models import ARCHITECTURES

RNG = np.random.default_rng(11)
X = RNG.standard_normal((1, 3, 64, 64)).astype(np.float32)
TEN = "mobilevit_xxs.cifar10"
FEW = ["stem", "stages.2.1.transformer.0.attn.attention.softmax"]


@pytest.fixture(scope="module")
def golden():
    """Every intermediate for X in float64."""
    model = refvit.load(backend="numpy", dtype="float64")
    return {"input": X.astype(np.float64), **model.intermediates(X)}


def words_of(folder, entry, part=None):
    """What a porting engineer writes to read a file: by the manifest alone."""
    data = (folder / (part or entry)["file"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == (part or entry)["sha256"]
    dtype, shape = np.dtype(entry["dtype"]), (part or entry)["shape"]
    if entry["file" if part is None else "dtype"] and (part or entry)["file"].endswith(".npy"):
        a = np.load(folder / (part or entry)["file"])
        assert a.dtype == dtype and list(a.shape) == shape
        return a
    if (part or entry)["file"].endswith(".bin"):
        return np.frombuffer(data, dtype.newbyteorder("<")).reshape(shape)
    values = [int(line, 16) for line in data.decode("ascii").splitlines()]
    if dtype.kind == "f":
        return np.array(values, f"u{dtype.itemsize}").view(dtype).reshape(shape)
    half = 2 ** (entry["bits"] - 1)
    return np.array([v - 2 * half if v >= half else v for v in values], dtype).reshape(shape)


def whole(folder, entry):
    """The real numbers of a value in the reference's order of axes."""
    if "tiles" in entry:
        words = np.full(entry["shape"], 99, entry["dtype"])
        filled = np.zeros(entry["shape"], int)
        first = {"nchw": 2, "nhwc": 1}[entry["layout"]]
        for tile in entry["tiles"]:
            a = words_of(folder, entry, tile)
            h, w = a.shape[first : first + 2]
            rows, columns = slice(tile["row"], tile["row"] + h), slice(tile["column"], tile["column"] + w)
            where = (slice(None),) * first + (rows, columns)
            words[where] = a
            filled[where] += 1
        assert (filled == 1).all()
    else:
        words = words_of(folder, entry)
    a = (words.astype(np.float64) - entry["zero_point"]) * entry["scale"]
    return a.transpose(0, 3, 1, 2) if entry["layout"] == "nhwc" else a


@pytest.mark.parametrize("format", ["npy", "bin", "hex"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_are_the_golden_values_rounded_once(tmp_path, golden, format, dtype):
    facts = refvit.dump(TEN, tmp_path / "d", input=X, nodes=FEW, format=format, dtype=dtype)
    assert facts == json.loads((tmp_path / "d" / "manifest.json").read_text("utf-8"))
    assert [e["name"] for e in facts["values"]] == ["input", *FEW, "head.fc"]
    for entry in facts["values"]:
        assert entry["dtype"] == dtype
        assert np.array_equal(whole(tmp_path / "d", entry), golden[entry["name"]].astype(dtype))


def test_everything_once_with_all_its_names(tmp_path, golden):
    facts = refvit.dump(TEN, tmp_path / "d", input=X)
    names = [[e["name"], *e.get("also", [])] for e in facts["values"]]
    assert sorted(n for group in names for n in group) == sorted(golden)
    files = {e["file"] for e in facts["values"]} | {"manifest.json"}
    assert files == set(os.listdir(tmp_path / "d")) and len(files) == len(names) + 1
    for entry in facts["values"]:
        for name in (entry["name"], *entry.get("also", [])):
            assert np.array_equal(whole(tmp_path / "d", entry), golden[name].astype(np.float32))


@pytest.fixture(scope="module", params=[(3, 12), (2, 5), (6, 11), (4, 40)], ids=str)
def bits_and_golden(request):
    """Integer and fraction bits, and every intermediate for X as these bits can hold it, in float64."""
    integer, fraction = request.param
    words = np.clip(
        np.rint(X.astype(np.float64) * 2.0**fraction), -(2.0 ** (integer + fraction)), 2.0 ** (integer + fraction) - 1
    )
    x = words / 2.0**fraction
    return request.param, {**refvit.load(backend="numpy", dtype="float64").intermediates(x), "input": X.astype(np.float64)}


@pytest.mark.parametrize("format", ["npy", "bin", "hex"])
def test_fixed_point_is_the_nearest_word(tmp_path, bits_and_golden, format):
    """Of what is computed from the input in the file: who reads that has no other."""
    bits, golden = bits_and_golden
    integer, fraction = bits
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        facts = refvit.dump(TEN, tmp_path / "d", input=X, nodes=FEW, format=format, fixed_point=bits)
    lowest, highest = -(2.0**integer), 2.0**integer - 2.0**-fraction
    saturated = {}
    for entry in facts["values"]:
        got, want = whole(tmp_path / "d", entry), golden[entry["name"]]
        inside = np.clip(want, lowest, highest)
        assert np.abs(got - inside).max() <= 2.0 ** -(fraction + 1)
        assert (got >= lowest).all() and (got <= highest).all()
        beyond = (want >= highest + 2.0 ** -(fraction + 1)) | (want < lowest - 2.0 ** -(fraction + 1))
        assert entry["saturated"] == np.count_nonzero(beyond)
        saturated[entry["name"]] = entry["saturated"]
    assert bool(said) == any(saturated.values())
    if said:
        worst = max(saturated, key=saturated.get)
        assert f"most of them {worst}: {saturated[worst]} of" in str(said[0].message)
        assert said[0].filename == __file__


def test_fixed_point_by_hand():
    words, saturated = FixedPoint(1, 2).quantise(np.array([0.125, 0.375, -0.125, -0.375, 1.75, 1.874, 1.876, -2.0, -2.13, 9.0]))
    assert words.tolist() == [0, 2, 0, -2, 7, 7, 7, -8, -8, 7] and words.dtype == np.int8
    assert saturated == 3
    assert [FixedPoint(s, f).dtype for s, f in ((0, 7), (0, 8), (0, 15), (8, 8), (31, 0), (16, 16))] == [
        "int8", "int16", "int16", "int32", "int32", "int64",
    ]  # fmt: skip


def test_hex_by_hand():
    assert hex_lines(np.array([1, -1, -2048, 2047], np.int16), 12) == b"001\nfff\n800\n7ff\n"
    assert hex_lines(np.array([1, -1], np.int32), 18) == b"00001\n3ffff\n"
    assert hex_lines(np.array([[1.0], [-2.0]], np.float32), 32) == b"3f800000\nc0000000\n"
    assert hex_lines(np.array([-5], np.int8), 8) == b"fb\n"


def test_channels_last(tmp_path, golden):
    nodes = [*FEW, "stages.2.1.conv_1x1", "stages.2.1.norm"]
    facts = refvit.dump(TEN, tmp_path / "d", input=X, nodes=nodes, layout="nhwc", weights_too=True)
    by = {e["name"]: e for e in facts["values"]}
    assert {n: e["layout"] for n, e in by.items()} == {
        "input": "nhwc", "stem": "nhwc", FEW[1]: None, "stages.2.1.conv_1x1": "nhwc", "stages.2.1.norm": None, "head.fc": None,
    }  # fmt: skip
    assert by["stem"]["shape"] == [1, 32, 32, 16]
    for name, entry in by.items():
        assert np.array_equal(whole(tmp_path / "d", entry), golden[name].astype(np.float32))
    params = refvit.load()._params
    weights = {e["name"]: e for e in facts["parameters"]}
    assert set(weights) == set(params)
    for name, entry in weights.items():
        a = words_of(tmp_path / "d", entry)
        assert np.array_equal(a.transpose(0, 3, 1, 2) if entry["layout"] == "krsc" else a, params[name])
        assert (entry["layout"] == "krsc") == (params[name].ndim == 4)
    assert all(e["file"].startswith("weights/") for e in weights.values())


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_tiles_cover_every_map_once(tmp_path, golden, layout):
    facts = refvit.dump(TEN, tmp_path / "d", input=X, nodes=[*FEW, "stages.3"], tile=(24, 5), layout=layout)
    counts = {e["name"]: len(e.get("tiles", [0])) for e in facts["values"]}
    assert counts == {"input": 3 * 13, "stem": 2 * 7, FEW[1]: 1, "stages.3": 1, "head.fc": 1}
    for entry in facts["values"]:
        assert np.array_equal(whole(tmp_path / "d", entry), golden[entry["name"]].astype(np.float32))


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "hrvit_b1_segformer", "hrnet_w18_small_seg", "hrnet_w48_ocr", "mobilevit_xxs_ssdlite"]
)
def test_maps_are_told_from_other_arrays_of_four_axes(name):
    arch = ARCHITECTURES[name]
    params = {n: ShapeOnly(s) for n, s in arch.parameters(arch.config)}
    graph = trace(arch.forward, (1, 3, 224, 224), params, expand=True, config=arch.config)
    found = maps(graph)
    assert set(graph.inputs) <= found
    for node in graph:
        if node.op in ("conv2d", "resize", "batch_norm") and len(node.shape) == 4:
            assert node.name in found and node.inputs[0] in found
        if node.op in ("matmul", "softmax", "linear", "layer_norm"):
            assert node.name not in found
    if "hrnet" in name or "hrvit" in name:
        assert all(
            value in found for path, value in graph.aliases.items() if path.startswith("stage2") and path.count(".") == 0
        )


def test_an_image_is_preprocessed_as_infer_does(tmp_path):
    Image.fromarray(RNG.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    facts = refvit.dump(TEN, tmp_path / "d", image=tmp_path / "a.png", nodes="head.fc", dtype="float64")
    logits = whole(tmp_path / "d", facts["values"][-1])
    want = refvit.load(backend="numpy", dtype="float64").infer(tmp_path / "a.png").logits
    assert np.array_equal(logits[0], want)
    assert facts["input"]["what"] == f"{tmp_path / 'a.png'}, 1x3x64x64"


def test_without_an_input_it_is_seeded_and_looks_normalised(tmp_path):
    one = refvit.dump(TEN, tmp_path / "one", nodes="stem")
    two = refvit.dump(TEN, tmp_path / "two", nodes="stem")
    assert one == two and "seeded" in one["input"]["what"]
    x = whole(tmp_path / "one", one["values"][0])
    assert x.shape == (1, 3, 64, 64) and x.min() >= 0 and x.max() <= 1 and 0.1 < x.std() < 0.4
    neighbours = np.corrcoef(x[0, :, :, 1:].ravel(), x[0, :, :, :-1].ravel())[0, 1]
    assert neighbours > 0.5  # white noise has none


def test_the_manifest_says_what_it_is(tmp_path):
    model = refvit.load()
    facts = refvit.dump(model, tmp_path / "d", input=X, nodes="stem")
    assert facts["model"] == TEN and facts["weights_sha256"] == model._provenance()["weights_sha256"]
    assert facts["preprocess"] == model.preprocess.to_dict() and facts["outputs"] == {"output": "head.fc"}
    assert set(facts["versions"]) == {"refvit", "numpy", "pillow"} and facts["input"]["name"] == "input"


def test_a_folder_is_never_written_over(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for force in (False, True):
        with pytest.raises(ConfigError, match="exists; give another" if not force else "remove it first"):
            refvit.dump(TEN, tmp_path / "mine", input=X, nodes="stem", force=force)
    (tmp_path / "mine" / "manifest.json").write_text('["kind"]')
    with pytest.raises(ConfigError, match="remove it first"):
        refvit.dump(TEN, tmp_path / "mine", input=X, nodes="stem", force=True)
    with pytest.raises(ConfigError, match="a file; give the name of a folder"):
        refvit.dump(TEN, tmp_path / "mine" / "thesis.txt", input=X)
    refvit.dump(TEN, tmp_path / "d", input=X, nodes="stem")
    with pytest.raises(ConfigError, match="force=True to replace"):
        refvit.dump(TEN, tmp_path / "d", input=X, nodes="stages.0")
    refvit.dump(TEN, tmp_path / "d", input=X, nodes="stages.0", format="bin", force=True)
    assert sorted(os.listdir(tmp_path / "d")) == ["head.fc.bin", "input.bin", "manifest.json", "stages.0.bin"]
    assert sorted(os.listdir(tmp_path)) == ["d", "mine"]


def test_a_failure_leaves_nothing_and_the_earlier_dump(tmp_path, monkeypatch):
    facts = refvit.dump(TEN, tmp_path / "d", input=X, nodes="stem")

    def full(self, words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("refvit.crosscheck.forms.Form.encoded", full)
    for name in ("new", "d"):
        with pytest.raises(OSError, match="No space left"):
            refvit.dump(TEN, tmp_path / name, input=X, nodes="stem", force=True)
    assert os.listdir(tmp_path) == ["d"]
    assert np.isfinite(whole(tmp_path / "d", facts["values"][1])).all()


def test_file_names_are_safe_everywhere():
    name = FileNames()
    assert name("stages.1:0", ".npy") == "stages.1_0.npy"
    assert name("Stages.1:0", ".npy") == "Stages.1_0_2.npy"  # no capitals on Windows
    assert name("a/../b\\c*?", ".bin") == "a_.._b_c__.bin"
    assert name("CON", ".npy") == "_CON.npy" and name("con.weight", ".npy") == "_con.weight.npy"
    assert name("..", ".npy") == "_.npy" and name("-x", ".npy") == "_-x.npy"
    long = [name("x" * 400 + str(i), ".npy") for i in range(3)]
    assert len(set(long)) == 3 and max(map(len, long)) < 140


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "csv"}, "format='csv': one of npy, bin, hex expected"),
        ({"dtype": "float16"}, "dtype='float16': one of float32, float64 expected"),
        ({"layout": "hwc"}, "layout='hwc': one of nchw, nhwc expected"),
        ({"fixed_point": (0, 0)}, "1 to 52 together"),
        ({"fixed_point": (-1, 8)}, "integer and fraction bits beside the sign"),
        ({"fixed_point": (30, 30)}, "1 to 52 together"),
        ({"fixed_point": (1.5, 3)}, "whole numbers"),
        ({"fixed_point": 8}, "a pair, integer and fraction bits"),
        ({"tile": (0, 4)}, "two whole numbers above 0"),
        ({"tile": (4,)}, "two whole numbers above 0"),
        ({"tile": 16}, "tile=16: rows and columns of a tile, two whole numbers above 0"),
        ({"nodes": "stages.9*"}, r"no name matches 'stages.9\*'"),
        ({"nodes": ["stem", ""]}, "wildcard patterns of names expected"),
        ({"image": "a.png"}, "image= and input=: one of them"),
        ({"colour": 1}, "unknown option 'colour'"),
    ],
    ids=str,
)
def test_arguments_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        refvit.dump(TEN, tmp_path / "d", **{"input": X, **options})
    assert os.listdir(tmp_path) == []


def test_other_arguments_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="the name of a folder expected"):
        refvit.dump(TEN, "", input=X)
    with pytest.raises(ShapeError, match=r"\(n, 3, h, w\)"):
        refvit.dump(TEN, tmp_path / "d", input=X[0])
    with pytest.raises(ConfigError, match=r"cannot be changed on a loaded model; give them to refvit\.load"):
        refvit.dump(refvit.load(), tmp_path / "d", mean=(0, 0, 0))
    with pytest.raises(ConfigError, match="the name of a model expected"):
        refvit.dump(None, tmp_path / "d")


# the command line


def test_the_command_is_the_function(run, tmp_path):
    Image.fromarray(RNG.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    options = ["--image", tmp_path / "a.png", "--nodes", "stem", "stages.2.1.*", "--format", "hex", "--fixed-point", "9,6"]
    options += ["--layout", "nhwc", "--tile", "8,16", "--weights-too", "--resize", "40"]
    code, out, err = run("dump", "--model", TEN, "-o", tmp_path / "one", *options)
    assert code == 0 and err == f"refvit: saved {tmp_path / 'one'}\n"
    facts = refvit.dump(
        TEN, tmp_path / "two", image=str(tmp_path / "a.png"), nodes=["stem", "stages.2.1.*"], format="hex", fixed_point=(9, 6),
        layout="nhwc", tile=(8, 16), weights_too=True, resize=40,
    )  # fmt: skip
    assert json.loads((tmp_path / "one" / "manifest.json").read_text("utf-8")) == facts
    tiles = sum(len(e.get("tiles", ())) for e in facts["values"])
    first, second = out.splitlines()
    assert (
        first
        == f"{len(facts['values'])} values, {tiles} tiles, {len(facts['parameters'])} parameters of {TEN} as int16, format hex"
    )
    assert second == f"input: {tmp_path / 'a.png'}, 1x3x64x64"
    code, out, _ = run("dump", "--model", TEN, "-o", tmp_path / "three", "--nodes", "stem", "--json")
    assert code == 0 and [e["name"] for e in json.loads(out)["values"]] == ["input", "stem", "head.fc"]


def test_the_command_says_that_values_saturated(run, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, _, err = run("dump", "--model", TEN, "-o", tmp_path / "d", "--nodes", "stem", "--fixed-point", "0,7")
    assert code == 0
    assert "do not fit into 0 integer bits and were saturated" in err.splitlines()[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "csv"], "--format csv: one of npy, bin, hex expected"),
        (["--fixed-point", "40,40"], "--fixed-point"),
        (["--nodes", "nothing"], "no name matches 'nothing'"),
        (["--image", "gone.png"], "gone.png"),
        (["--set", "colour=1"], "unknown option 'colour'"),
    ],
    ids=str,
)
def test_the_command_refuses(run, tmp_path, options, message):
    code, out, err = run("dump", "--model", TEN, "-o", tmp_path / "d", *options)
    assert (code, out) == (2, "") and message in err
    assert os.listdir(tmp_path) == []


def test_the_command_speaks_of_its_own_options(run, tmp_path):
    assert run("dump", "--model", TEN, "-o", tmp_path / "d", "--nodes", "stem")[0] == 0
    code, _, err = run("dump", "--model", TEN, "-o", tmp_path / "d")
    assert code == 2 and "give another folder, or --force to replace an earlier dump" in err
    assert run("dump", "--model", TEN, "-o", tmp_path / "d", "--force", "--nodes", "stages.0")[0] == 0
    for bad in (["--fixed-point", "3"], ["--fixed-point", "-1,3"], ["--tile", "axb"]):
        code, _, err = run("dump", "--model", TEN, "-o", tmp_path / "e", *bad)
        assert code == 2 and "expected" in err
