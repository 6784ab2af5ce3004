"""Weights of any repository of the Hugging Face hub, by its id.

    OWNER/NAME[@REVISION]
    hf://OWNER/NAME[@REVISION][/FILE]

The second form is that of huggingface_hub's URIs. It is never taken for a path, and it alone names a file: a path with a
mistake in it must not be looked for in a network. A revision is a branch, a tag or a commit, with %2F for a slash in its name
except in refs/pr/1 and the like. The commit that it leads to is recorded.

Where no file is named, which one holds the weights follows from the names that Hugging Face's libraries give them. Where
several could be meant the caller says which. Everything comes through huggingface_hub, with its cache, its environment
variables (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and others) and its progress bar on terminals.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from refvit.errors import WeightsError
from refvit.weights.readers.checkpoint import IN_A_FOLDER
from refvit.weights.readers.limits import shown
from refvit.weights.readers.shards import read_index

BESIDE = ("config.json", "preprocessor_config.json")  # what transformers' repositories say about their weights
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".npz", ".tar", ".pkl")  # of what may be weights
NO_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")  # which trainers write beside
SCHEME = "hf://"
PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"
REFS = r"refs/(?:pr/\d+|convert/[A-Za-z0-9_.-]+)"  # revisions whose slashes stay as they are
REVISION = rf"{REFS}|[A-Za-z0-9_](?:[A-Za-z0-9_.-]|%2[Ff]){{0,199}}"
ID = re.compile(rf"(?P<repository>{PART}/{PART})(?:@(?P<revision>{REVISION}))?(?:/(?P<file>[^@\\]+))?")
SHOWN = 8


@dataclass(frozen=True)
class Place:
    """Where weights are: a repository, one of its files or None, and a revision or None for its main branch.

    certain: whether no path could be meant
    """

    repository: str
    file: str | None
    revision: str | None
    certain: bool = False

    def __str__(self) -> str:
        """The id, as `parse` takes it."""
        revision = self.revision or ""
        if not re.fullmatch(REFS, revision):
            revision = revision.replace("/", "%2F")
        scheme = SCHEME if self.certain or self.file else ""
        return f"{scheme}{self.repository}{'@' * bool(revision)}{revision}{'/' * bool(self.file)}{self.file or ''}"


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
    """The place that an id names; None for a path.

    Without hf:// a path is what exists, what has more or fewer than two parts, and what would name a repository after a weights
    file. WeightsError if it begins in a folder that exists, so that either may be meant, and for what is no id behind hf://.
    """
    certain = text.startswith(SCHEME)
    match = ID.fullmatch(text.removeprefix(SCHEME))
    if certain and (match is None or not _plain(match["file"] or "file")):
        raise WeightsError(
            f"{shown(text)}: {SCHEME}OWNER/NAME[@REVISION][/FILE] expected, with %2F for a slash in the revision"
        )
    if match is None:
        return None
    repository, file, revision = match.group("repository", "file", "revision")
    if not certain:
        if file or repository.endswith(SUFFIXES) or os.path.lexists(text):
            return None
        if os.path.isdir(owner := text.partition("/")[0]):
            raise WeightsError(
                f"{text}: the folder {owner} is here, and this is not in it; check the path, or give {SCHEME}{text} for the "
                "repository of the hub"
            )
    return Place(repository, file, revision and unquote(revision), certain)


def fetch(place: Place) -> Found:
    """Download what `place` names, and what belongs to it.

    WeightsError for whatever goes wrong: not found, no permission, no connection, offline and not in the cache, another sha256
    than the hub states, or no single file that has to be the weights.
    """
    what = f"{place}" if place.certain else f"{place} (no file or folder here)"
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
        from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
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
                # None: it is not known whether there is such a file. Otherwise that there is none is in the cache.
                if try_to_load_from_cache(repository, file, revision=commit.name) is None:
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
