"""Weights by tag: the real huggingface_hub client against a server of our own that speaks the hub's protocol."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import refvit
from refvit.errors import UnknownModelError, WeightsError
from refvit.models import ARCHITECTURES
from refvit.vision.preprocess import Preprocess
from refvit.weights import hub, store

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: nothing to download with")
from helpers.hub_server import COMMIT, FILE, LATER, NAME, REPOSITORY, block_sockets, point_at
from huggingface_hub import constants

HERE = Path(__file__).parents[2]


def message(name=NAME, error=WeightsError):
    with pytest.raises(error) as caught:
        hub.fetch(name)
    text = str(caught.value)
    assert name in text
    assert "\n" not in text
    return text


def converted(folders):
    return sorted((folders / "refvit" / "weights").glob("*.safetensors"))


def pin(monkeypatch, **fields):
    """Another row for NAME in the table."""
    table = hub._table()
    weights = {**table["weights"], NAME: {**table["weights"][NAME], **fields}}
    monkeypatch.setattr(hub, "_table", lambda: {**table, "weights": weights})


def test_first_use_downloads_and_converts(server, folders, case, checkpoint, capfd):
    weights = hub.fetch(NAME)
    outputs = refvit.Model(weights, dtype="float64", backend="numpy")(case.input())
    assert case.check({"output": outputs}) < 1e-12
    assert weights.name == NAME
    assert weights.labels is not None and len(weights.labels) == 1000
    source = dict(weights.source)
    assert (source["repository"], source["revision"], source["file"]) == (REPOSITORY, COMMIT, FILE)
    assert source["sha256"] == hashlib.sha256(checkpoint).hexdigest()
    assert source["license"] == "cvnets-license"
    assert source["pinned"].startswith("unpinned")
    assert not {"preprocess", "resize", "mean"} & {*source, *source.get("assumed", ())}  # the table tells it
    assert [(verb, path.rpartition("/")[2]) for verb, path, _ in server.log] == [("HEAD", FILE), ("GET", source["sha256"])]
    assert capfd.readouterr() == ("", "")  # no bar without a terminal


def test_later_uses_need_neither_the_network_nor_the_client(server, folders, monkeypatch):
    first = hub.fetch(NAME)
    server.log.clear()
    block_sockets(monkeypatch)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    again = hub.fetch(NAME)
    assert server.log == []
    assert again.sha256 == first.sha256
    for field in ("model", "tag", "config", "preprocess", "postprocess", "labels", "source"):
        plain = [json.loads(json.dumps(getattr(w, field))) for w in (first, again)]
        assert plain[0] == plain[1], field


def test_no_network_for_embedded_weights_and_lists(folders, monkeypatch):
    block_sockets(monkeypatch)
    assert refvit.load("mobilevit_xxs.cifar10", backend="numpy").name == "mobilevit_xxs.cifar10"
    assert not hub.known("mobilevit_xxs.cifar10")
    assert hub.tags("mobilevit_xxs") == ("cvnets_in1k", "transformers_in1k")
    assert not (folders / "refvit").exists()


def test_the_model_of_each_repository_is_known(folders, monkeypatch):
    block_sockets(monkeypatch)
    for name, row in hub._table()["weights"].items():
        assert hub.model_of(row["repository"]) == name.partition(".")[0] in ARCHITECTURES
    assert hub.model_of("google/vit-base-patch16-224") == "vit_base_patch16_224"
    assert hub.model_of("facebook/deit-base-patch16-224") == "deit_base_patch16_224"
    assert hub.model_of("google/vit") is None and hub.model_of("") is None


def test_evaluation_of_the_tag_goes_before_the_layouts(server, folders, golden, tmp_path):
    name = "hrnet_w18_small.gluon_in1k"
    data = golden("hrnet_w18_small.timm").save(tmp_path / FILE).read_bytes()
    server.publish(f"timm/{name}", model__safetensors=data)
    server.publish("timm/hrnet_w18_small.ms_in1k", model__safetensors=data)
    for tag, interpolation in (("gluon_in1k", "bicubic"), ("ms_in1k", "bilinear")):
        weights = hub.fetch(f"hrnet_w18_small.{tag}")
        assert (weights.preprocess["resize"], weights.preprocess["interpolation"]) == (256, interpolation)
        assert hub.fetch(f"hrnet_w18_small.{tag}").preprocess["interpolation"] == interpolation


def test_transformers_files_beside_the_tensors_are_used(server, folders, golden, tmp_path):
    name, repository = "mobilevit_xxs.transformers_in1k", "apple/mobilevit-xx-small"
    case = golden("mobilevit_xxs.transformers")
    labels = [f"kind {i}" for i in range(1000)]
    config = {"model_type": "mobilevit", "id2label": dict(enumerate(labels))}
    processor = {"size": {"shortest_edge": 300}, "crop_size": {"height": 256, "width": 256}, "do_flip_channel_order": True}
    processor |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # which MobileViT's processor has and does not use
    files = {"model__safetensors": case.save(tmp_path / FILE).read_bytes(), "config__json": json.dumps(config).encode()}
    server.publish(repository, **files, preprocessor_config__json=json.dumps(processor).encode())
    weights = hub.fetch(name)
    assert weights.labels == tuple(labels)
    assert (weights.preprocess["resize"], weights.preprocess["channel_order"]) == (300, "bgr")
    assert (list(weights.preprocess["mean"]), list(weights.preprocess["std"])) == ([0, 0, 0], [1, 1, 1])
    assert case.check({"output": refvit.Model(weights, dtype="float64", backend="numpy")(case.input())}) < 1e-12
    server.log.clear()
    assert hub.fetch(name).labels == tuple(labels)
    assert server.log == []


def test_a_repository_without_configuration(server, folders, golden, tmp_path, no_waiting):
    """Then the rules of the layout hold. What could not be asked for is not taken for missing."""
    data = golden("vit_tiny_patch16_224.transformers").save(tmp_path / FILE).read_bytes()
    name = "deit_tiny_patch16_224.transformers_in1k"
    server.publish("facebook/deit-tiny-patch16-224", model__safetensors=data)
    server.refusals["preprocessor_config.json"] = (503, "")
    assert "503" in message(name)
    server.refusals.clear()
    server.log.clear()
    weights = hub.fetch(name)
    assert weights.preprocess["resize"] == [256, 256]
    assert [path.rpartition("/")[2] for _, path, _ in server.log] == [FILE, "config.json", "preprocessor_config.json"]


def test_the_older_file_where_there_is_no_safetensors(server, folders, checkpoint):
    server.publish(REPOSITORY, pytorch_model__bin=checkpoint)  # told by its content, whatever its name
    assert hub.fetch(NAME).source["file"] == "pytorch_model.bin"
    server.log.clear()
    assert hub.fetch(NAME).source["file"] == "pytorch_model.bin"
    assert server.log == []


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((401, "RepoNotFound"), ("access denied (401)", "HF_TOKEN")),
        ((403, "GatedRepo"), ("access denied (403)", "terms")),
        ((403, ""), ("access denied (403)", "HF_TOKEN")),
        ((404, "RepoNotFound"), ("not found (RepositoryNotFoundError)", REPOSITORY)),
        ((404, "EntryNotFound"), ("not found (", REPOSITORY)),
        ((404, "RevisionNotFound"), ("not found (RevisionNotFoundError)", REPOSITORY)),
        ((500, ""), ("cannot be downloaded", "500", "try again")),
    ],
)
def test_refusals_of_the_server(server, folders, no_waiting, refusal, said):
    server.refusals[REPOSITORY] = refusal
    text = message()
    assert all(part in text for part in said), text
    assert "give the file as weights" in text
    assert not (folders / "refvit").exists()
    assert not [path for verb, path, _ in server.log if verb == "GET"]
    if refusal[1] != "EntryNotFound":  # one file tells enough
        assert not [path for _, path, _ in server.log if path.endswith("pytorch_model.bin")]


def test_a_broken_connection_is_resumed(server, folders, checkpoint, case, no_waiting, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**16)  # what has arrived of a chunk is lost; 10 MiB by default
    server.cuts += [200_000, 1_000_000]
    weights = None
    while weights is None:  # newer clients go on by themselves, those up to 1.0 when they are called again
        with contextlib.suppress(WeightsError):
            weights = hub.fetch(NAME)
        assert len(server.log) < 10
    assert weights.source["sha256"] == hashlib.sha256(checkpoint).hexdigest()
    assert case.check({"output": refvit.Model(weights, dtype="float64", backend="numpy")(case.input())}) < 1e-12
    starts = [int(asked[6:-1]) if asked else 0 for verb, _, asked in server.log if verb == "GET"]
    assert len(starts) == 3
    assert starts[0] == 0 < starts[1] <= 200_000 < starts[2] <= 1_200_000


def test_a_connection_that_stays_broken(server, folders, no_waiting):
    server.cuts += [0] * 100
    text = message()
    assert "cannot be downloaded" in text and "try again" in text
    assert not (folders / "refvit").exists()
    server.cuts.clear()
    assert hub.fetch(NAME).name == NAME


def test_nobody_there(server, folders, no_waiting, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        point_at(f"http://127.0.0.1:{free.getsockname()[1]}", monkeypatch)
    text = message()
    assert "cannot be downloaded" in text and "HF_ENDPOINT" in text


def test_sha256_of_the_table(server, folders, monkeypatch, checkpoint):
    right = hashlib.sha256(checkpoint).hexdigest()
    pin(monkeypatch, sha256="0" * 64)
    text = message()
    assert f"sha256 {right[:16]}..." in text and "refvit knows 0000000000000000..." in text and "do not use it" in text
    assert converted(folders) == []
    pin(monkeypatch, sha256=right)
    assert hub.fetch(NAME).source["pinned"] == "by its sha256"
    pin(monkeypatch, sha256="0" * 64)  # a later refvit knows better than the record
    assert "refvit knows" in message()


def test_revision_of_the_table(server, folders, monkeypatch, checkpoint):
    server.publish(REPOSITORY, LATER, model__safetensors=checkpoint[:100])
    pin(monkeypatch, revision=COMMIT)
    assert hub.fetch(NAME).source["revision"] == COMMIT
    assert all(f"/resolve/{COMMIT}/" in path for verb, path, _ in server.log if verb == "HEAD")
    server.publish(REPOSITORY, LATER, model__safetensors=checkpoint)
    pin(monkeypatch, revision=LATER)  # a later refvit asks for another one
    assert hub.fetch(NAME).source["revision"] == LATER


def test_the_first_download_decides(server, folders, checkpoint, case):
    """The repository moves on, then its history is rewritten: neither is followed silently."""
    sha256 = hub.fetch(NAME).sha256
    server.publish(REPOSITORY, LATER, model__safetensors=b"something else")
    for path in converted(folders):
        path.unlink()
    shutil.rmtree(folders / "hub")
    assert hub.fetch(NAME).sha256 == sha256
    other = {**case.state(), "head.fc.bias": np.zeros(1000, np.float32)}
    from safetensors.numpy import save

    server.publish(REPOSITORY, COMMIT, model__safetensors=save(other))
    for path in converted(folders):
        path.unlink()
    shutil.rmtree(folders / "hub")
    text = message()
    record = folders / "refvit" / "weights" / f"{NAME}.json"
    assert "its first download had" in text and f"delete {record}" in text
    record.unlink()
    assert hub.fetch(NAME).sha256 != sha256


def test_a_damaged_copy_of_the_client(server, folders, checkpoint):
    """A bit that fell over on the disk, seen because the client names the copy by the sha256 that the hub states."""
    name = hashlib.sha256(checkpoint).hexdigest()
    blob = folders / "hub" / "models--timm--mobilevit_xxs.cvnets_in1k" / "blobs" / name
    hub.fetch(NAME)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    shutil.rmtree(folders / "refvit")
    text = message()
    assert "the hub states" in text and f"delete {blob.resolve()} and try again" in text
    blob.unlink()
    assert hub.fetch(NAME).source["sha256"] == name


DAMAGES = {
    "bit": lambda path, other: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "cut": lambda path, other: path.write_bytes(path.read_bytes()[:-1000]),
    "empty": lambda path, other: path.write_bytes(b""),
    "foreign": lambda path, other: path.write_bytes(other),
    "gone": lambda path, other: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_converted_file_is_made_again(server, folders, checkpoint, damage):
    sha256 = hub.fetch(NAME).sha256
    (path,) = converted(folders)
    DAMAGES[damage](path, checkpoint)
    server.log.clear()
    assert hub.fetch(NAME).sha256 == sha256
    assert server.log == []  # the client still has the file, and the commit is known
    assert store.load(path).sha256 == sha256


def test_another_file_of_refvits_in_its_place(server, folders):
    weights = hub.fetch(NAME)
    (path,) = converted(folders)
    wrong = dataclasses.replace(weights, source={**weights.source, "sha256": "0" * 64})
    store.save(wrong, path)
    assert hub.fetch(NAME).source["sha256"] == weights.source["sha256"]
    store.save(dataclasses.replace(weights, tag="other"), path)
    assert hub.fetch(NAME).name == NAME


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"repository": 1}', '{"a": ', "\xff"])
def test_a_damaged_record(server, folders, text):
    sha256 = hub.fetch(NAME).sha256
    record = folders / "refvit" / "weights" / f"{NAME}.json"
    good = record.read_bytes()
    record.write_bytes(text.encode("latin-1"))
    assert hub.fetch(NAME).sha256 == sha256
    assert record.read_bytes() == good


def test_what_other_converters_made_is_not_used(server, folders, monkeypatch):
    hub.fetch(NAME)
    monkeypatch.setattr(hub, "_converters", lambda: "others")
    hub.fetch(NAME)
    monkeypatch.setattr(store, "FORMAT_VERSION", 2)
    hub.fetch(NAME)
    pin(monkeypatch, preprocess={**hub.entry(NAME).preprocess, "resize": 300})
    assert hub.fetch(NAME).preprocess["resize"] == 300
    assert len(converted(folders)) == 4


def test_a_cache_that_cannot_be_written(server, folders, monkeypatch):
    (folders / "file").write_bytes(b"")
    monkeypatch.setenv("REFVIT_CACHE", str(folders / "file" / "cache"))
    with pytest.warns(UserWarning, match="set REFVIT_CACHE") as caught:
        first = hub.fetch(NAME)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hub.fetch(NAME).sha256 == first.sha256  # said once
    assert sum(verb == "GET" for verb, _, _ in server.log) == 1


def test_a_client_that_cannot_write(server, folders, monkeypatch):
    (folders / "file").write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folders / "file" / "hub"))
    text = message()
    assert "cannot be kept in" in text and "HF_HOME" in text


def test_a_file_that_cannot_be_converted(server, folders, case):
    from safetensors.numpy import save

    state = case.state()
    del state["head.fc.bias"]
    server.publish(REPOSITORY, model__safetensors=save(state))
    with pytest.raises(WeightsError, match=r"missing head\.fc\.bias"):
        hub.fetch(NAME)
    assert not (folders / "refvit").exists()


def test_many_threads_at_once(server, folders):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(hub.fetch, [NAME] * 4))
    assert len({w.sha256 for w in found}) == 1
    assert len(converted(folders)) == 1
    assert not list((folders / "refvit").rglob("*.tmp"))


def test_without_the_client(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    text = message()
    assert 'pip install "refvit[hub]"' in text and f"https://huggingface.co/{REPOSITORY}" in text


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevit_xxs.cifar", "hrvit_b1.in1k", "vit_base_patch16_224.mae", "", "."])
def test_unknown_names(name):
    assert not hub.known(name)
    text = message(name, UnknownModelError)
    tags = hub.tags(name.partition(".")[0])
    assert all(tag in text for tag in tags)


def test_the_table():
    table = hub._table()
    for name in table["weights"]:
        entry = hub.entry(name)
        model = name.partition(".")[0]
        assert model in ARCHITECTURES
        assert entry.about and entry.library in table["read_from"]
        assert entry.repository.count("/") == 1
        assert entry.repository.startswith("timm/") == (entry.library == "timm")
        for digest, length in ((entry.revision, 40), (entry.sha256, 64)):
            assert digest is None or (len(digest) == length and set(digest) <= set("0123456789abcdef"))
        Preprocess.from_dict({**USUAL, **entry.preprocess})
        assert name.partition(".")[2] in hub.tags(model)
    used = {name.partition(".")[2] for name in table["weights"]}
    assert used == set(table["tags"])
    assert hub.entry("hrnet_w18.ms_aug_in1k").preprocess["resize"] == 235  # the others of HRNet have 256
    assert hub.tags("hrvit_b1") == ()


USUAL = {"resize": 256, "crop": 224, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3, "channel_order": "rgb"}


def test_segmentation_sees_whole_images():
    """Whatever the repository's own processor says: a map is of the whole image."""
    for model in ("mobilevit_xxs_deeplabv3", "mobilevit_xs_deeplabv3", "mobilevit_s_deeplabv3"):
        fields = hub.entry(f"{model}.transformers_voc").preprocess
        assert (fields["resize"], fields["crop"]) == ([512, 512], None)


def test_cache_folder(monkeypatch, tmp_path):
    for name in ("REFVIT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for platform, expected in (("linux", ".cache/refvit"), ("darwin", "Library/Caches/refvit")):
        monkeypatch.setattr(sys, "platform", platform)
        assert hub.cache_folder() == tmp_path / expected
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert hub.cache_folder() == tmp_path / "local" / "refvit" / "Cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert hub.cache_folder() == tmp_path / "xdg" / "refvit"
    monkeypatch.setenv("REFVIT_CACHE", "~/mine")
    assert hub.cache_folder() == tmp_path / "mine"


# The rest starts processes, which read the client's environment as a user's would.

FETCH = """
import sys
from refvit.errors import WeightsError
from refvit.weights import hub
try:
    weights = hub.fetch(sys.argv[1])
    print(weights.sha256, weights.source["revision"], "huggingface_hub" in sys.modules)
except WeightsError as error:
    print("WeightsError", error)
"""


def environment(server, folder, **more):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_", "REFVIT_"))}
    paths = {"HF_HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "xdg"), "PYTHONPATH": str(HERE)}
    return {**kept, **paths, "HF_ENDPOINT": server.url, "no_proxy": "127.0.0.1,localhost", **more}


def start(server, folder, **more):
    command = [sys.executable, "-W", "error", "-c", FETCH, NAME]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment(server, folder, **more), **options)


def test_environment_variables_and_two_processes(server, tmp_path):
    both = [start(server, tmp_path, HF_TOKEN="hf_secret") for _ in range(2)]
    results = [process.communicate() for process in both]
    assert [err for _, err in results] == ["", ""]
    (sha256, revision, imported), (other, *_) = (out.split() for out, _ in results)
    assert (revision, imported, other) == (COMMIT, "True", sha256)
    assert server.tokens == {"Bearer hf_secret"}
    assert (tmp_path / "home" / "hub" / "models--timm--mobilevit_xxs.cvnets_in1k").is_dir()
    (path,) = (tmp_path / "xdg" / "refvit" / "weights").glob("*.safetensors")
    server.log.clear()
    out, err = start(server, tmp_path).communicate()
    assert (out.split(), err) == ([sha256, COMMIT, "False"], "")
    path.unlink()  # offline the client's copy is still converted again
    out, err = start(server, tmp_path, HF_HUB_OFFLINE="1").communicate()
    assert (out.split(), err) == ([sha256, COMMIT, "True"], "")
    assert server.log == []


def test_offline_and_in_no_cache(server, tmp_path):
    out, err = start(server, tmp_path, HF_HUB_OFFLINE="1").communicate()
    assert out.startswith(f"WeightsError {NAME}: {REPOSITORY}: not in the cache, and HF_HUB_OFFLINE is set")
    assert "give the file as weights" in out
    assert err == ""
    assert server.log == []


def test_offline_with_a_file_that_another_program_downloaded(server, tmp_path, checkpoint):
    server.publish(REPOSITORY, pytorch_model__bin=checkpoint)
    code = f"from huggingface_hub import hf_hub_download; hf_hub_download({REPOSITORY!r}, 'pytorch_model.bin')"
    subprocess.run([sys.executable, "-c", code], env=environment(server, tmp_path), check=True)
    server.log.clear()
    out, err = start(server, tmp_path, HF_HUB_OFFLINE="1").communicate()
    assert (out.split()[1:], err) == ([COMMIT, "True"], "")
    assert server.log == []


def test_a_bar_on_a_terminal(server, tmp_path):
    pty = pytest.importorskip("pty", reason="pseudo-terminals are POSIX only")
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-c", FETCH, NAME]
    process = subprocess.Popen(command, env=environment(server, tmp_path), stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 4096):
            shown += block
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    assert b"100%" in shown
