"""Weights by their tag, from the Hugging Face hub.

`data/hub.json` says which repository has the weights of a tag. Their file comes through huggingface_hub, with its cache, its
environment variables (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and others) and its progress bar on terminals. It is
checked, converted, and kept converted in refvit's own cache; from then on neither the network nor huggingface_hub is used.

Where the table has no sha256 the first download decides: its commit and sha256 are recorded beside the converted file, and a
later download has to agree. Such weights are called unpinned in their `source`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import sys
import threading
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from refvit.errors import UnknownModelError, WeightsError
from refvit.files import write_atomic
from refvit.weights import store
from refvit.weights.store import Weights

FILES = ("model.safetensors", "pytorch_model.bin")  # what a repository may have, the better one first
BESIDE = ("config.json", "preprocessor_config.json")  # what transformers' repositories say about their weights


@dataclass(frozen=True)
class Entry:
    """A row of the table. revision and sha256 are None where no source tells them, license where it is not known.

    preprocess: how the weights are evaluated, as far as the table tells; it goes before what layout and repository say
    """

    name: str
    library: str  # "timm" or "transformers", in whose layout the file is
    repository: str
    revision: str | None
    sha256: str | None
    license: str | None
    preprocess: Mapping[str, Any]
    about: str


@dataclass(frozen=True)
class Record:
    """What was downloaded: file of a repository at a commit, and its sha256."""

    repository: str
    revision: str
    file: str
    sha256: str

    def of(self, wanted: Entry) -> bool:
        """Whether this is what the table asks for."""
        return (
            self.repository == wanted.repository
            and wanted.revision in (None, self.revision)
            and wanted.sha256 in (None, self.sha256)
        )


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((files("refvit.weights") / "data" / "hub.json").read_text("utf-8"))
    return table


def known(name: str) -> bool:
    """Whether `fetch` can get the weights of this name, "mobilevit_s.cvnets_in1k" say."""
    return name in _table()["weights"]


def tags(model: str) -> tuple[str, ...]:
    """The tags of a model that the hub has; without the network."""
    return tuple(name.partition(".")[2] for name in _table()["weights"] if name.partition(".")[0] == model)


def entry(name: str) -> Entry:
    """The row of `name`. UnknownModelError names the tags that there are."""
    if not known(name):
        model = name.partition(".")[0]
        there = f"of {model} it has {', '.join(tags(model))}" if tags(model) else f"it has none of {model}"
        raise UnknownModelError(f"{name}: no weights of the hub that refvit knows; {there}")
    return Entry(name=name, about=_table()["tags"][name.partition(".")[2]], **_table()["weights"][name])


def cache_folder() -> Path:
    """Where refvit keeps converted weights: REFVIT_CACHE, or `refvit` in the user's cache. It may be deleted at any time."""
    if folder := os.environ.get("REFVIT_CACHE"):
        return Path(folder).expanduser()
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "refvit"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or os.path.expanduser(r"~\AppData\Local")) / "refvit" / "Cache"
    return Path(os.path.expanduser("~/Library/Caches/refvit" if sys.platform == "darwin" else "~/.cache/refvit"))


def fetch(name: str) -> Weights:
    """The weights called `name`: from refvit's cache, else from huggingface_hub's, else from the network.

    Raises UnknownModelError for a name that is not in the table, and WeightsError for whatever goes wrong on the way: not
    found, no permission, no connection, offline and not in a cache, another sha256, or a file that cannot be converted.
    """
    wanted = entry(name)
    folder = cache_folder() / "weights"
    record_file = folder / f"{name}.json"
    record = _recorded(record_file, wanted)
    if record and (kept := _kept(folder / _key(wanted, record), wanted, record)):
        return kept
    path = _download(wanted, record)
    found = Record(wanted.repository, path.parent.name, path.name, _sha256(path))
    _check(wanted, found, record, path, record_file)
    weights = _convert(wanted, found, path)
    try:
        store.save(weights, folder / _key(wanted, found))
        write_atomic(record_file, json.dumps(asdict(found)).encode())
    except OSError as error:
        _say_once(
            f"{folder}: converted weights cannot be kept there ({error}); set REFVIT_CACHE to a folder that can be written"
        )
    return weights


def _recorded(file: Path, wanted: Entry) -> Record | None:
    """What an earlier `fetch` recorded, if it is still what the table asks for."""
    try:
        record = Record(**json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError):  # not there, or damaged
        return None
    return record if record.of(wanted) else None


def _key(wanted: Entry, record: Record) -> str:
    """Name of the converted file: another one for whatever could make it differ."""
    what = [asdict(record), dict(wanted.preprocess), store.FORMAT_VERSION, _converters()]
    return f"{wanted.name}-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]}.safetensors"


@functools.cache
def _converters() -> str:
    """Digest of the converters' sources, so that what an older version of them made is not used."""
    spec = importlib.util.find_spec("weights_convert")
    folders = spec.submodule_search_locations if spec else None
    sources = sorted(path for folder in folders or () for path in Path(folder).rglob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()


def _kept(path: Path, wanted: Entry, record: Record) -> Weights | None:
    """The converted file; None if it is not there, damaged, or of something else."""
    try:
        weights = store.load(path) if path.exists() else None
    except WeightsError:
        return None
    return weights if weights and (weights.name, weights.source.get("sha256")) == (wanted.name, record.sha256) else None


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _check(wanted: Entry, found: Record, record: Record | None, path: Path, record_file: Path) -> None:
    """WeightsError unless the downloaded file has the sha256 of the hub, of the table, and of its first download."""
    blob = path.resolve()  # which huggingface_hub names by the sha256 that the hub states, for large files
    told = blob.name if re.fullmatch("[0-9a-f]{64}", blob.name) else None
    first = record.sha256 if record else None
    for expected, whose, advice in (
        (told, "the hub states", f"the copy in its cache is damaged: delete {blob} and try again"),
        (wanted.sha256, "refvit knows", f"do not use it, and report it; it is {blob}"),
        (first, "its first download had", f"do not trust it; to accept it all the same delete {record_file}"),
    ):
        if expected and found.sha256 != expected:
            what = f"{found.file} of {found.repository} at {found.revision[:12]}"
            raise WeightsError(f"{wanted.name}: {what} has sha256 {found.sha256[:16]}..., {whose} {expected[:16]}...; {advice}")


def _convert(wanted: Entry, found: Record, path: Path) -> Weights:
    from weights_convert import convert_file

    source = {
        "repository": found.repository,
        "revision": found.revision,
        "license": wanted.license or "see the repository",
        "pinned": "by its sha256" if wanted.sha256 else "unpinned, its sha256 was recorded at its first download",
    }
    model, _, tag = wanted.name.partition(".")
    # In a folder the converter finds what transformers' files say beside the tensors.
    where = path.parent if wanted.library == "transformers" else path
    return convert_file(where, model=model, tag=tag, preprocess=dict(wanted.preprocess), source=source)


def _download(wanted: Entry, record: Record | None) -> Path:
    """The file in huggingface_hub's cache, below a folder that is named by the commit; asks the network where it has to."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise WeightsError(
            f'{wanted.name}: weights of the hub need huggingface_hub: pip install "refvit[hub]"; or download {FILES[0]} of '
            f"https://huggingface.co/{wanted.repository} and give it as weights"
        ) from error

    def get(file: str, revision: str | None, *, local: bool = False) -> Path:
        return Path(hf_hub_download(wanted.repository, file, revision=revision, local_files_only=local))

    revision = record.revision if record else wanted.revision
    first: EntryNotFoundError | None = None
    try:
        for file in FILES:
            try:  # what could not be looked up the first time is not looked up again
                path = get(file, revision, local=isinstance(first, LocalEntryNotFoundError))
                break
            except EntryNotFoundError as error:
                first = first or error
        else:
            assert first is not None
            raise first
        for file in BESIDE if wanted.library == "transformers" else ():
            try:
                get(file, path.parent.name)
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                pass  # the layout's own rules hold
    except Exception as error:  # of huggingface_hub, of the HTTP client that its version uses, of the file system
        raise _explained(wanted, error) from error
    return path


def _explained(wanted: Entry, error: Exception) -> WeightsError:
    """What happened, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    # "Not in the cache" has the reason for which the network was of no use as its cause.
    reason = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    status = getattr(getattr(reason, "response", None), "status_code", None)
    url = f"{constants.ENDPOINT}/{wanted.repository}"
    said = " ".join(f"{type(reason).__name__}: {reason}".split())[:300]
    if constants.HF_HUB_OFFLINE:
        why = "not in the cache, and HF_HUB_OFFLINE is set; unset it once where there is a connection"
    elif status in (401, 403):
        why = f"access denied ({status}); see whether {url} exists and has terms to accept, and set HF_TOKEN to your token"
    elif status == 404:
        why = f"not found ({type(reason).__name__}); see what {url} has"
    elif isinstance(error, OSError) and error.errno:
        why = f"cannot be kept in {constants.HF_HUB_CACHE} ({said}); set HF_HOME to a folder with room that can be written"
    else:
        why = f"cannot be downloaded ({said}); check the connection, or HF_ENDPOINT, and try again"
    return WeightsError(f"{wanted.name}: {wanted.repository}: {why}. Or download it elsewhere and give the file as weights")


_lock = threading.Lock()
_said = False


def _say_once(message: str) -> None:
    global _said
    with _lock:
        said, _said = _said, True
    if not said:
        warnings.warn(message, UserWarning, stacklevel=3)  # the line that called fetch
