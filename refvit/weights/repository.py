"""Weights of any repository of the Hugging Face hub, by its id.

    OWNER/NAME[/FILE][@REVISION]

Which of its files holds the weights follows from the names that Hugging Face's libraries give them; where several could be
meant the caller says which. Everything comes through huggingface_hub, with its cache, its environment variables (HF_HOME,
HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and others) and its progress bar on terminals. A revision is a branch, a tag or a commit;
the commit that it leads to is recorded.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from refvit.errors import WeightsError
from refvit.weights.readers.checkpoint import IN_A_FOLDER
from refvit.weights.readers.limits import shown
from refvit.weights.readers.shards import read_index

BESIDE = ("config.json", "preprocessor_config.json")  # what transformers' repositories say about their weights
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".npz", ".tar", ".pkl")  # of what may be weights
NO_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")  # which trainers write beside
PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"
ID = re.compile(
    rf"(?P<repository>{PART}/{PART})(?:/(?P<file>[^@\\]+))?(?:@(?P<revision>[A-Za-z0-9_][A-Za-z0-9_./-]{{0,199}}))?"
)
SHOWN = 8


@dataclass(frozen=True)
class Place:
    """Where weights are: a repository, one of its files or None, and a revision or None for its main branch."""

    repository: str
    file: str | None
    revision: str | None

    def __str__(self) -> str:
        return self.repository + (f"/{self.file}" if self.file else "") + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Found:
    """A file in huggingface_hub's cache, with what belongs to it beside it.

    alone: whether the file was named, so that what is beside it need not be about it
    """

    file: Path
    repository: str
    commit: str
    alone: bool


def parse(text: str) -> Place | None:
    """The place that an id names; None for what is no id, or a path rather than one.

    A path is what exists, what begins in a folder that exists, and what would name a repository after a weights file: nothing
    is asked of a network because a file is missing.
    """
    match = ID.fullmatch(text)
    if match is None:
        return None
    repository, file, revision = match.group("repository", "file", "revision")
    if repository.endswith(SUFFIXES) or not _plain(file or "file"):
        return None
    if os.path.lexists(text) or os.path.isdir(text.partition("/")[0]):
        return None
    return Place(repository, file, revision)


def fetch(place: Place) -> Found:
    """Download what `place` names, and what belongs to it.

    WeightsError for whatever goes wrong: not found, no permission, no connection, offline and not in the cache, another sha256
    than the hub states, or no single file that has to be the weights.
    """
    what = f"{place} (no file or folder here)"
    names = IN_A_FOLDER if place.file is None else [place.file]
    choose = None if place.file else functools.partial(_only_weights, place)
    path = download(what, place.repository, place.revision, names, BESIDE, otherwise=choose)
    commit = snapshot(path)
    files = [path]
    if path.name.endswith(".index.json"):
        shards = [(path.parent / shard).relative_to(commit).as_posix() for shard in read_index(path).shards]
        files += [download(what, place.repository, commit.name, [shard]) for shard in shards]
    for file in files:
        check_stated(what, file, sha256(file))
    return Found(path, place.repository, commit.name, alone=path.name not in IN_A_FOLDER)


def snapshot(path: Path) -> Path:
    """The folder of huggingface_hub's cache that is named by the commit, of a file in it."""
    return next(folder for folder in path.parents if folder.parent.name == "snapshots")


def download(
    what: str,
    repository: str,
    revision: str | None,
    files: Sequence[str],
    beside: Sequence[str] = (),
    *,
    otherwise: Callable[[Sequence[str]], str] | None = None,
) -> Path:
    """The first of `files` that the repository has, in huggingface_hub's cache; asks the network where it has to.

    what: the name of these weights, for messages
    beside: files that come along, out of its folder, where they are there
    otherwise: if it has none of `files`, takes one of the names of all that it has
    """
    try:
        from huggingface_hub import _CACHED_NO_EXIST, HfApi, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise WeightsError(
            f'{what}: weights of the hub need huggingface_hub: pip install "refvit[hub]"; or download {files[0]} of '
            f"https://huggingface.co/{repository} and give it as weights"
        ) from error

    def get(file: str, revision: str | None, *, local: bool = False) -> Path:
        return Path(hf_hub_download(repository, file, revision=revision, local_files_only=local))

    def first() -> Path:
        missing: EntryNotFoundError | None = None
        for file in files:
            try:  # what could not be looked up the first time is not looked up again
                return get(file, revision, local=isinstance(missing, LocalEntryNotFoundError))
            except EntryNotFoundError as error:
                missing = missing or error
        assert missing is not None
        if otherwise is None or isinstance(missing, LocalEntryNotFoundError):
            raise missing
        there = HfApi().model_info(repository, revision=revision).siblings or []
        return get(otherwise([file.rfilename for file in there]), revision)

    try:
        path = first()
        commit = snapshot(path)
        for name in beside:
            file = (path.parent / name).relative_to(commit).as_posix()
            try:
                get(file, commit.name)
            except LocalEntryNotFoundError as error:
                if try_to_load_from_cache(repository, file, revision=commit.name) is not _CACHED_NO_EXIST:
                    raise _explained(f"{what}: {file}", repository, error) from error
            except EntryNotFoundError:
                pass  # the layout's own rules hold
    except WeightsError:
        raise
    except Exception as error:  # of huggingface_hub, of the HTTP client that its version uses, of the file system
        raise _explained(what, repository, error) from error
    return path


def _only_weights(place: Place, files: Sequence[str]) -> str:
    """The one of a repository's files that may be weights. WeightsError if that is none or several."""
    may_be = [f for f in files if f.endswith(SUFFIXES) and PurePosixPath(f).name not in NO_WEIGHTS and _plain(f)]
    if len(may_be) == 1:
        return may_be[0]
    if not may_be:
        raise WeightsError(f"{place}: none of the {len(files)} files of this repository is one that weights are read from")
    more = f" and {len(may_be) - SHOWN} more" if len(may_be) > SHOWN else ""
    raise WeightsError(
        f"{place}: this repository has {', '.join(map(shown, may_be[:SHOWN]))}{more}; say which, as in "
        f"{replace(place, file=may_be[0])}"
    )


def _plain(file: str) -> bool:
    """Whether a file's name is a relative path that stays below its folder, under any operating system."""
    return file.isprintable() and not set(file) & set('\\:*?"<>|') and not {"", ".", ".."} & set(file.split("/"))


def sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def check_stated(what: str, path: Path, found: str) -> None:
    """WeightsError if the hub states another sha256 of a file: huggingface_hub names its copy of a large one by it."""
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name) and blob.name != found:
        raise WeightsError(
            f"{what}: {path.name} has sha256 {found[:16]}..., the hub states {blob.name[:16]}...; the copy in its cache is "
            f"damaged: delete {blob} and try again"
        )


def _explained(what: str, repository: str, error: Exception) -> WeightsError:
    """What happened, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    # "Not in the cache" has the reason for which the network was of no use as its cause.
    reason = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    status = getattr(getattr(reason, "response", None), "status_code", None)
    url = f"{constants.ENDPOINT}/{repository}"
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
    return WeightsError(f"{what}: {repository}: {why}. Or download it elsewhere and give the file as weights")
