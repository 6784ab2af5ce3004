"""Weights by their tag, from the Hugging Face hub.

`data/hub.json` says which repository has the weights of a tag. Their file is downloaded as `repository` says, checked,
converted, and kept converted in refvit's own cache; from then on neither the network nor huggingface_hub is used.

Where the table has no sha256 the first download decides: its commit and sha256 are recorded beside the converted file, and a
later download has to agree. Such weights are called unpinned in their `source`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
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
from refvit.weights import repository, store
from refvit.weights.store import Weights

FILES = ("model.safetensors", "pytorch_model.bin")  # what a repository may have, the better one first


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


def model_of(repository: str) -> str | None:
    """The model whose weights a repository of the table holds; None for another one."""
    rows = _table()["weights"].items()
    return next((name.partition(".")[0] for name, row in rows if row["repository"] == repository), None)


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
    # What was recorded is asked for again. Only transformers' repositories say something beside the tensors.
    revision = record.revision if record else wanted.revision
    beside = repository.BESIDE if wanted.library == "transformers" else ()
    path = repository.download(name, wanted.repository, revision, FILES, beside)
    found = Record(wanted.repository, repository.snapshot(path).name, path.name, repository.sha256(path))
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


def _check(wanted: Entry, found: Record, record: Record | None, path: Path, record_file: Path) -> None:
    """WeightsError unless the downloaded file has the sha256 of the hub, of the table, and of its first download."""
    repository.check_stated(wanted.name, path, found.sha256)
    first = record.sha256 if record else None
    for expected, whose, advice in (
        (wanted.sha256, "refvit knows", f"do not use it, and report it; it is {path.resolve()}"),
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


_lock = threading.Lock()
_said = False


def _say_once(message: str) -> None:
    global _said
    with _lock:
        said, _said = _said, True
    if not said:
        warnings.warn(message, UserWarning, stacklevel=3)  # the line that called fetch
