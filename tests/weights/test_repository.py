"""Weights by the id of a repository of the hub: which file is meant, what comes along, what is recorded."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save

import refvit
from refvit.errors import WeightsError
from refvit.weights import hub, repository, store
from refvit.weights.embedded import load_embedded

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: nothing to download with")
from helpers.files import shard_files, torch_file
from helpers.hub_server import COMMIT, FILE, LATER, block_sockets

HERE = Path(__file__).parents[2]
ID = "somebody/mobilevit-fine_tuned.v2"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working folder in which nothing is called like a repository."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def loaded(weights=ID, model="mobilevit_xxs", **options):
    return refvit.load(model, weights, backend="numpy", **options)


def message(weights=ID):
    with pytest.raises(WeightsError) as caught:
        loaded(weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def asked(server):
    return [path.rpartition("/")[2] for verb, path, _ in server.log if verb == "HEAD"]


# what is an id


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", ("a/b", None, None)),
        ("apple/mobilevit-x.small_2", ("apple/mobilevit-x.small_2", None, None)),
        ("a/b@main", ("a/b", None, "main")),
        ("a/b@refs/pr/1", ("a/b", None, "refs/pr/1")),
        ("a/b@refs/convert/x-1", ("a/b", None, "refs/convert/x-1")),
        ("a/b@feature%2Fx", ("a/b", None, "feature/x")),
        ("hf://a/b", ("a/b", None, None)),
        ("hf://a/b@main", ("a/b", None, "main")),
        ("hf://a/b.pth", ("a/b.pth", None, None)),
        ("hf://a/b/best.pth", ("a/b", "best.pth", None)),
        ("hf://a/b@v1.0/runs/1/best model.pth", ("a/b", "runs/1/best model.pth", "v1.0")),
        ("hf://a/b@refs/pr/12/sub/c.bin", ("a/b", "sub/c.bin", "refs/pr/12")),
        ("hf://a/b@refs/x/c.bin", ("a/b", "x/c.bin", "refs")),
        ("hf://a/b@feature%2Fx/c.bin", ("a/b", "c.bin", "feature/x")),
    ],
)
def test_ids(text, expected):
    place = repository.parse(text)
    assert (place.repository, place.file, place.revision) == expected
    assert str(place) == text
    assert place.certain == text.startswith("hf://")


def test_ids_are_those_of_the_client():
    parser = pytest.importorskip("huggingface_hub.utils._hf_uris", reason="this version of huggingface_hub has no URIs")
    for rest in (
        "",
        "@main",
        "@v1.0/c.pth",
        "/c d.pth",
        "@refs/pr/12/sub/c.bin",
        "@refs/convert/x-1",
        "@x%2Fy/c.bin",
        "@refs/x/c.bin",
    ):
        place, theirs = repository.parse(f"hf://a/b{rest}"), parser.parse_hf_uri(f"hf://a/b{rest}")
        assert (place.repository, place.revision, place.file or "") == (theirs.id, theirs.revision, theirs.path_in_repo), rest


@pytest.mark.parametrize(
    "text",
    [
        *(
            "model.safetensors",
            "mobilevit_xxs",
            "mobilevit_s.cvnets_in1k",
            "",
            "/",
            "/a/b",
            "./a/b",
            "../a/b",
            "~/a/b",
            "a/",
            "a//b",
        ),
        *(
            "a\\b",
            "C:/a",
            "C:\\a\\b",
            "https://a/b",
            "a/b/../c.pth",
            "a/b/./c.pth",
            "a/b//c.pth",
            "a/b/c:d.pth",
            "a/b@",
            "a/b@-x",
        ),
        *("runs/exp1/best.pth", "a/b/c", "a/b/c@main", "a/b@main/c.pth", "a/b@feature/x", "HF://a/b", "hf:/a/b"),
        *("-a/b", "a/.b", "a b/c", "runs/best.pth", "runs/model.safetensors", "a/b.bin", "a/b\0", "a/b/c\0.pth", "a/b/c\n.pth"),
        *("a/" + "b" * 97, "a/b/c\\d.pth"),
    ],
)
def test_what_is_a_path(text):
    assert repository.parse(text) is None


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "a",
        "a/",
        "/a/b",
        "a/b@",
        "a/b@-x",
        "a/b/",
        "a//b",
        "a/b/../c",
        "a/b/c.pth@main",
        "a/b\\c",
        "a/b/c:d",
        "a/b/\x1b[31m",
        "a/b@x%41",
    ],
)
def test_what_is_no_id_behind_the_scheme(rest):
    with pytest.raises(WeightsError, match=r"hf://OWNER/NAME\[@REVISION\]\[/FILE\] expected") as caught:
        repository.parse(f"hf://{rest}")
    assert str(caught.value).isprintable()


def test_a_path_with_a_mistake_in_it_is_not_asked_of_the_network(run, folders, server):
    for path in ("runs/exp1/best.pth", "runs/new/exp1/best", "checkpoints/best.pth"):
        assert "no such weights file" in message(path)
        code, _, err = run("convert", path)
        assert code == 2 and "no such weights file" in err
    assert server.log == []


def test_a_folder_that_hides_an_owner_is_named(run, folders, server, checkpoint):
    server.publish("runs/new", model__safetensors=checkpoint)
    os.makedirs("runs/old")
    assert repository.parse("runs/old") is None and repository.parse("run/new") is not None
    for text in ("runs/new", "runs/new@main"):
        expected = f"{text}: the folder runs is here, and this is not in it; check the path, or give hf://{text}"
        assert message(text).startswith(expected)
    assert expected in run("convert", text)[2]
    assert server.log == []
    assert loaded("hf://runs/new")._weights.source["repository"] == "runs/new"
    os.makedirs("runs/new")
    assert "a folder with none of" in message("runs/new")
    assert loaded("hf://runs/new@main")._weights.source["revision"] == COMMIT
    assert message("hf://runs/newer").startswith("hf://runs/newer: runs/newer: access denied (401)")


def test_a_path_of_that_name_goes_first(server, folders, checkpoint, monkeypatch):
    server.publish(ID, model__safetensors=b"another")
    Path(ID).mkdir(parents=True)
    (Path(ID) / FILE).write_bytes(checkpoint)
    block_sockets(monkeypatch)
    assert "repository" not in loaded()._weights.source
    assert loaded(f"{ID}/{FILE}")._weights.source["file"] == FILE
    assert server.log == []
    Path("hf:").mkdir()
    Path(f"hf:/{ID}").mkdir(parents=True)
    assert repository.parse(f"hf://{ID}").certain  # although hf:/somebody/... exists


def test_a_path_object_is_a_path(server, folders, checkpoint):
    server.publish(ID, model__safetensors=checkpoint)
    with pytest.raises(WeightsError, match="no such weights file"):
        loaded(Path(ID))
    assert server.log == []


# which file


def test_a_repository_is_loaded(server, folders, case, checkpoint):
    server.publish(ID, model__safetensors=checkpoint, pytorch_model__bin=b"older", README__md=b"")
    model = loaded(dtype="float64")
    assert case.check({"output": model(case.input())}) < 1e-12
    source = model._weights.source
    assert (source["repository"], source["revision"], source["file"]) == (ID, COMMIT, FILE)
    assert source["sha256"] == hashlib.sha256(checkpoint).hexdigest()
    assert asked(server) == [FILE, "config.json", "preprocessor_config.json"]
    assert not (folders / "refvit").exists()  # only what a tag names is kept converted


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards(server, folders, case, suffix):
    state = case.state()
    server.publish(ID, **shard_files(state, suffix))
    weights = loaded()._weights
    assert weights.sha256 == loaded(case.state())._weights.sha256
    assert weights.source["file"].endswith(f".{suffix}.index.json")
    index = next(name for name in server.repositories[ID][COMMIT] if name.endswith(".json"))
    shards = [name for name in server.repositories[ID][COMMIT] if name != index]
    assert set(shards) <= set(asked(server))
    del server.repositories[ID][COMMIT][shards[1]]
    (folders / "hub").rename(folders / "old")
    assert "not found" in message()


def test_shards_do_not_lead_out_of_the_repository(server, folders, case):
    files = shard_files(case.state(), "safetensors")
    index = json.loads(files["model.safetensors.index.json"])
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../../secret.safetensors")
    server.publish(ID, **files | {"model.safetensors.index.json": json.dumps(index).encode()})
    assert "expected is the name of a .safetensors file in its folder" in message()
    assert "secret.safetensors" not in "".join(path for _, path, _ in server.log)


def test_the_older_file_and_the_only_file(server, folders, checkpoint, case):
    server.publish(ID, pytorch_model__bin=torch_file(case.state()), other__pth=b"x")
    assert loaded()._weights.source["file"] == "pytorch_model.bin"
    more = {"README.md": b"", "training_args.bin": b"x", "runs/optimizer.pt": b"x", "log.txt": b"x"}
    server.publish("somebody/one", **{"runs/best.pth": checkpoint}, **more)
    found = loaded("somebody/one")._weights.source
    assert (found["file"], found["repository"], found["revision"]) == ("best.pth", "somebody/one", COMMIT)


def test_several_files_are_named_and_one_is_chosen(server, folders, checkpoint):
    names = [f"epoch-{i}.pth" for i in range(12)]
    server.publish(ID, **dict.fromkeys(names, checkpoint))
    text = message()
    assert "'epoch-0.pth', 'epoch-1.pth'" in text and "and 4 more" in text
    assert f"say which, as in hf://{ID}/epoch-0.pth" in text
    assert loaded(f"hf://{ID}/epoch-7.pth")._weights.source["file"] == "epoch-7.pth"
    assert f"as in hf://{ID}@{COMMIT}/epoch-0.pth" in message(f"{ID}@{COMMIT}")
    assert "not found" in message(f"hf://{ID}/epoch-77.pth")


def test_a_repository_without_weights(server, folders):
    server.publish(ID, README__md=b"", **{"training_args.bin": b"x"})
    assert f"{ID}: none of the 2 files of this repository is one that weights are read from" in message()


def test_names_of_files_that_lead_elsewhere_are_not_asked_for(server, folders, checkpoint):
    server.publish(ID, **{"../../../evil.pth": checkpoint, "a\x1b[31m.pth": checkpoint, "c:\\d.pth": checkpoint})
    assert "none of the 3 files" in message()


def test_a_file_of_refvits_own(server, folders, tmp_path):
    data = store.save(load_embedded("mobilevit_xxs.cifar10"), tmp_path / "a.safetensors").read_bytes()
    server.publish("somebody/ten", model__safetensors=data)
    model = loaded("somebody/ten", None)
    assert model.name == "mobilevit_xxs.cifar10" and len(model.labels) == 10
    assert model._weights.source["repository"] == "somebody/ten" and model._weights.source["revision"] == COMMIT


# which model


def published(case, tmp_path, config=None):
    """The files of a repository with these tensors."""
    data = case.save(tmp_path / FILE).read_bytes()
    return {FILE: data} | ({} if config is None else {"config.json": json.dumps(config).encode()})


@pytest.mark.parametrize("model_type", ["vit", "deit"])
@pytest.mark.parametrize("config", [False, True])
def test_a_repository_of_the_table_says_its_model(run, server, folders, golden, tmp_path, monkeypatch, model_type, config):
    """A ViT and a DeiT have the same names and shapes; facebook's DeiT without distillation is a ViT to transformers."""
    name = f"{model_type}_tiny_patch16_224"
    table = hub._table()
    row = {**table["weights"]["deit_tiny_patch16_224.transformers_in1k"], "repository": "google/vit-tiny"}
    monkeypatch.setattr(hub, "_table", lambda: {**table, "weights": {**table["weights"], "vit_tiny_patch16_224.mine": row}})
    where = {"vit": "google/vit-tiny", "deit": "facebook/deit-tiny-patch16-224"}[model_type]
    case = golden("vit_tiny_patch16_224.transformers")
    server.publish(where, **published(case, tmp_path, {"model_type": "vit"} if config else None))
    code, out, err = run("convert", where, "--json", "--no-check")
    assert code == 0, err
    assert json.loads(out)["model"] == name
    model = loaded(f"hf://{where}/{FILE}", None)
    assert model.name == name
    assert loaded(where, "deit_tiny_patch16_224").name == "deit_tiny_patch16_224"  # what is asked for goes first


@pytest.mark.parametrize(
    ("layout", "config", "expected"),
    [
        ("timm", {"architecture": "vit_tiny_patch16_224"}, "vit_tiny_patch16_224"),
        ("timm", {"architecture": "deit_tiny_patch16_224"}, "deit_tiny_patch16_224"),
        ("transformers", {"model_type": "vit"}, "vit_tiny_patch16_224"),
    ],
)
def test_another_repository_says_its_model_in_its_configuration(
    run, server, folders, golden, tmp_path, layout, config, expected
):
    server.publish(ID, **published(golden(f"vit_tiny_patch16_224.{layout}"), tmp_path, config))
    code, out, err = run("convert", ID, "--json", "--no-check")
    assert code == 0, err
    assert json.loads(out)["model"] == expected
    assert loaded(ID, "deit_tiny_patch16_224").name == "deit_tiny_patch16_224"


def test_a_repository_that_does_not_say_its_model(run, server, folders, golden, tmp_path):
    server.publish(ID, **published(golden("vit_tiny_patch16_224.transformers"), tmp_path))
    code, _, err = run("convert", ID)
    assert code == 2 and "fit vit_tiny_patch16_224 and deit_tiny_patch16_224; say which by --model" in err


def test_a_configuration_of_another_model(run, server, folders, golden, tmp_path):
    case = golden("vit_tiny_patch16_224.timm")
    server.publish(ID, **published(case, tmp_path, {"architecture": "vit_small_patch16_224"}))
    for more in ((), ("--model", "vit_tiny_patch16_224")):
        code, _, err = run("convert", ID, *more)
        assert code == 2 and "config.json says" in err and "vit_small_patch16_224" in err


# what comes along


def test_the_configuration_is_that_of_the_commit(server, folders, golden, tmp_path):
    data = golden("mobilevit_xxs.transformers").save(tmp_path / FILE).read_bytes()
    labels = [f"kind {i}" for i in range(1000)]
    config = json.dumps({"model_type": "mobilevit", "id2label": dict(enumerate(labels))}).encode()
    processor = json.dumps({"size": {"shortest_edge": 300}}).encode()
    server.publish(ID, model__safetensors=data, config__json=config, preprocessor_config__json=processor)
    model = loaded()
    assert model.labels == tuple(labels) and model.preprocess.resize == 300
    assert model._weights.source["configuration"] == ["config.json", "preprocessor_config.json"]
    beside = {"sub/config.json": config, "sub/best.pth": data, "config.json": b"{"}
    server.publish("somebody/sub", **beside)
    model = loaded("hf://somebody/sub/sub/best.pth")
    assert model.labels == tuple(labels) and model._weights.source["configuration"] == ["config.json"]
    assert model.preprocess.resize == 288


def test_a_configuration_beside_a_named_file_is_only_for_transformers(server, folders, checkpoint):
    server.publish(ID, **{"best.pth": checkpoint, "config.json": b'{"learning_rate": 1e-3}'})
    assert "configuration" not in loaded(f"hf://{ID}/best.pth")._weights.source


# revisions


def test_revisions_lead_to_commits(server, folders, checkpoint, case):
    other = save({**case.state(), "head.fc.bias": np.ones(1000, np.float32)})
    server.publish(ID, COMMIT, model__safetensors=checkpoint)
    server.publish(ID, LATER, model__safetensors=other)
    server.branches["v1.0"] = COMMIT
    for revision, commit in (("", LATER), ("@main", LATER), ("@v1.0", COMMIT), (f"@{COMMIT}", COMMIT), (f"@{LATER}", LATER)):
        weights = loaded(ID + revision)._weights
        assert weights.source["revision"] == commit
        assert (weights.params["head.fc.bias"][0] == 1) == (commit == LATER)
    server.branches["v1.0"] = LATER  # a branch that moved is followed
    assert loaded(f"{ID}@v1.0")._weights.source["revision"] == LATER
    assert "not found (RevisionNotFoundError)" in message(f"{ID}@v2.0")


# what goes wrong


def test_nothing_of_that_name(server, folders):
    text = message("runs/best")
    assert text.startswith("runs/best (no file or folder here): runs/best: access denied (401)")


def test_a_damaged_copy(server, folders, checkpoint):
    server.publish(ID, model__safetensors=checkpoint)
    loaded()
    blob = next(folders.glob("hub/*/blobs/" + hashlib.sha256(checkpoint).hexdigest()))
    data = bytearray(checkpoint)
    data[-1] ^= 1
    blob.write_bytes(data)
    assert f"the copy in its cache is damaged: delete {blob.resolve()} and try again" in message()


def test_a_broken_connection(server, folders, checkpoint, no_waiting):
    server.publish(ID, model__safetensors=checkpoint)
    server.cuts += [0] * 100
    assert "cannot be downloaded" in message()
    server.cuts.clear()
    assert loaded().name == "mobilevit_xxs"


def test_without_the_client(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    text = message()
    assert 'pip install "refvit[hub]"' in text and f"https://huggingface.co/{ID}" in text


def test_a_client_without_names_that_are_not_public(server, folders, checkpoint, monkeypatch):
    """What is remembered to be missing is known offline all the same."""
    import huggingface_hub

    names = ("HfApi", "hf_hub_download", "try_to_load_from_cache", "constants")
    public = SimpleNamespace(**{name: getattr(huggingface_hub, name) for name in names}, __path__=huggingface_hub.__path__)
    monkeypatch.setitem(sys.modules, "huggingface_hub", public)
    server.publish(ID, model__safetensors=checkpoint)
    assert loaded()._weights.source["revision"] == COMMIT
    monkeypatch.setattr(public.constants, "HF_HUB_OFFLINE", True)
    assert loaded()._weights.source["revision"] == COMMIT
    for note in folders.glob("hub/*/.no_exist/*/config.json"):
        note.unlink()
    assert f"config.json: {ID}: not in the cache" in message()


# the command line


def test_convert(run, server, folders, checkpoint, case):
    server.publish(ID, model__safetensors=checkpoint)
    code, out, err = run("convert", f"{ID}@main", "-o", "a.safetensors", "--tag", "mine", "--no-check", "--json")
    assert code == 0, err
    source = json.loads(out)["source"]
    assert (source["repository"], source["revision"], source["layout"]) == (ID, COMMIT, "mobilevit.timm")
    kept = refvit.load(None, "a.safetensors")
    assert kept.name == "mobilevit_xxs.mine" and kept._weights.source["revision"] == COMMIT
    server.publish("somebody/many", **{"a.pth": checkpoint, "b.pth": checkpoint})
    code, _, err = run("convert", "somebody/many")
    assert code == 2 and "say which, as in hf://somebody/many/a.pth" in err


def test_convert_in_python(run, server, folders, checkpoint):
    server.publish(ID, model__safetensors=checkpoint)
    report = refvit.convert(f"{ID}@main", "a.safetensors", tag="mine", check=False).to_dict()
    assert report == json.loads(run("convert", ID, "-o", "b.safetensors", "--tag", "mine", "--no-check", "--json")[1])
    assert (report["source"]["repository"], report["source"]["revision"]) == (ID, COMMIT)
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    with pytest.raises(WeightsError, match="access denied"):
        refvit.convert("somebody/gone", "c.safetensors")
    server.publish("somebody/own", model__safetensors=Path("a.safetensors").read_bytes())
    again = refvit.convert("somebody/own", check=False, resize=300).to_dict()
    assert again["model"] == "mobilevit_xxs.mine" and again["preprocess"] == {**report["preprocess"], "resize": 300}
    assert again["source"]["repository"] == "somebody/own" and again["source"]["layout"] == "mobilevit.timm"


def test_infer(run, server, folders, tmp_path):
    small = dataclasses.replace(load_embedded("mobilevit_xxs.cifar10"), tag="other")
    server.publish(ID, model__safetensors=store.save(small, tmp_path / "a.safetensors").read_bytes())
    code, out, _ = run("infer", HERE / "examples" / "cat.jpg", "--weights", ID, "--top", 1)
    assert code == 0 and "cat" in out


def test_offline(server, tmp_path, checkpoint):
    """In processes, which read the client's environment as a user's would."""
    server.publish(ID, model__safetensors=checkpoint)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_", "REFVIT_"))}
    kept |= {"HF_HOME": str(tmp_path), "PYTHONPATH": str(HERE), "HF_ENDPOINT": server.url, "no_proxy": "127.0.0.1,localhost"}
    command = [sys.executable, "-m", "refvit", "convert", ID, "--no-check", "--json"]
    options = {"capture_output": True, "text": True, "check": False}
    done = subprocess.run(command, env=kept | {"HF_HUB_OFFLINE": "1"}, **options)
    assert done.returncode == 2
    assert f"{ID} (no file or folder here): {ID}: not in the cache, and HF_HUB_OFFLINE is set" in done.stderr
    assert server.log == []
    assert subprocess.run(command, env=kept, **options).returncode == 0
    server.log.clear()
    done = subprocess.run(command, env=kept | {"HF_HUB_OFFLINE": "1"}, **options)
    assert json.loads(done.stdout)["source"]["revision"] == COMMIT  # that there is no config.json is remembered as well
    assert server.log == []
    for note in tmp_path.glob("hub/*/.no_exist/*/config.json"):
        note.unlink()
    done = subprocess.run(command, env=kept | {"HF_HUB_OFFLINE": "1"}, **options)
    assert done.returncode == 2 and f"config.json: {ID}: not in the cache" in done.stderr
