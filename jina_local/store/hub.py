"""The hub: fetch a model into the Hugging Face cache, and compare every file with the hub's size and digest.

Only `pull` opens a socket, to HF_ENDPOINT or huggingface.co. It announces each step as a warning of the logger
"jina_local", because a download of hundreds of megabytes must not be silent.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .. import registry
from ..errors import JinaError, ModelDamaged, ModelNotFound, OutputError, UsageError
from ..formats.schema import check, matching, or_null, shown, text, whole
from ..registry import Published
from ..spec import READERS
from . import default_weights, local_store
from .hub_cache import ADAPTER, INDEX, NEEDED, SHARD, cache_folder, checked, discard, fault_of, root_of
from .places import size_text

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

# Small files that converters carry over; not every repository has them.
_WELCOME = (
    "tokenizer_config.json", "config_sentence_transformers.json", "modules.json", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_TRUE = ("1", "on", "yes", "true")
_SPARE = 64 << 20  # bytes that stay free on the disk
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR)
_SECONDS = 10.0  # for the answer to a question; the library's own limit is longer, so that this one is what ends it

_log = logging.getLogger("jina_local")
_Answer = TypeVar("_Answer")
_COMMIT = matching("[0-9a-f]{40}", "a commit of 40 hex digits")  # becomes a folder's name


@dataclass(frozen=True)
class _Remote:
    """A file on the hub, named by its SHA-256 (64 digits) if it is large, else by its git blob id (40)."""

    name: str
    size: int | None
    digest: str


@dataclass(frozen=True)
class _Listed:
    """A repository's files at a commit, and the tasks that are wanted of it."""

    repo: str
    commit: str
    remote: Mapping[str, _Remote]
    tasks: Sequence[str]


@dataclass(frozen=True)
class _Fetch:
    """The files to fetch from one repository."""

    repo: str
    commit: str
    files: Sequence[_Remote]
    serves: Mapping[str, str]  # task -> the file that serves it, "." for the whole folder

    @property
    def folder(self) -> Path:
        return root_of(self.repo) / "snapshots" / self.commit

    def part(self, file: _Remote) -> Path:
        """Where the first bytes of a large file are kept until the rest has come."""
        return root_of(self.repo) / "blobs" / f"{file.digest}.incomplete"


def offline(asked: bool | None) -> bool:
    """Whether the network may not be used: as asked, else as the environment says."""
    names = ("JINA_LOCAL_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return asked if asked is not None else any(os.environ.get(n, "").lower() in _TRUE for n in names)


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, else huggingface.co. Raises UsageError if it is no URL."""
    url = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not url.startswith(("https://", "http://")):
        raise UsageError(f"HF_ENDPOINT is {url!r}; expected a URL, as https://huggingface.co.")
    return url.rstrip("/")


def pull(
    row: Published,
    engine: str = "llama",
    *,
    tasks: Sequence[str] | None = None,
    weights: str | None = None,
    revision: str | None = None,
    show_progress: bool | None = None,
) -> dict[str, Path]:
    """Fetch a model into the cache and compare every file with the hub's size and digest, also files already there.

    engine: "llama" takes one GGUF for each task and the files that belong beside it; the others take the base
        checkpoint and the adapters of `tasks`.
    weights: the type of the GGUF files; None: see default_weights.
    tasks: None is the model's default task with "llama", all of them with "mlx".
    revision: replaces the pinned commit.
    show_progress: None shows bars on a terminal, as huggingface_hub does; False shows none.

    Returns task -> .gguf file or snapshot folder. A file that is not as the hub says is removed. A broken or
    interrupted download is taken up where it ended. Raises ModelNotFound (no such thing, or no network),
    ModelDamaged, OutputError, UsageError.
    """
    known = {reader for readers in READERS.values() for reader in readers}
    if engine not in known:
        raise UsageError(f"unknown engine {engine!r}. Possible: {', '.join(sorted(known))}.")
    default = (row.spec.default_task or row.spec.tasks[0],) if engine == "llama" else row.spec.tasks
    chosen = registry.tasks_for(row, tasks) if tasks else default
    if row.bundled:
        raise UsageError(f"{row.spec.name} comes with the package: there is nothing to fetch, and `load` opens it.")
    by_task = row.repos(engine, chosen)
    if not by_task:
        raise ModelNotFound(f"{row.spec.name}: {local_store.how_to_make(row, weights)}")
    listed = []
    for repo in dict.fromkeys(by_task.values()):
        wanted = checked(revision) or row.pinned(repo) or "main"
        with _library(row, repo, wanted, show_progress):
            listed.append(_ask(row, repo, wanted, [task for task in chosen if by_task[task] == repo]))
    label = _label(row, weights, listed) if engine == "llama" else None
    fetches = [_files(row, one, label) for one in listed]
    with _library(row, fetches[0].repo, fetches[0].commit, show_progress):
        _announce(row, label, fetches)
    try:
        for fetch in fetches:
            with _library(row, fetch.repo, fetch.commit, show_progress):
                _download(fetch)
    except KeyboardInterrupt:
        _log.warning("%s: what has arrived is kept; the next fetch goes on from there", row.spec.name)
        raise
    for repo, commit in ((fetch.repo, fetch.commit) for fetch in fetches):
        if revision is None and row.pinned(repo) is None:
            text = '%s has no pinned commit: main was fetched, which is %s. To get these files again: revision="%s"'
            _log.warning(f"{text}, or --revision %s", repo, commit, commit, commit)
    return {task: fetch.folder / name for fetch in fetches for task, name in fetch.serves.items()}


@contextmanager
def _library(row: Published, repo: str, revision: str, show_progress: bool | None) -> Iterator[None]:
    """Calls of huggingface_hub: without its telemetry, without bars if none are wanted, its errors translated."""
    from huggingface_hub import constants, errors, utils

    telemetry = constants.HF_HUB_DISABLE_TELEMETRY
    hide = show_progress is False and not utils.are_progress_bars_disabled()
    hide = hide and constants.HF_HUB_DISABLE_PROGRESS_BARS is None
    if "HF_HUB_DISABLE_TELEMETRY" not in os.environ:
        constants.HF_HUB_DISABLE_TELEMETRY = True
    if hide:
        utils.disable_progress_bars()
    try:
        yield
    except (errors.HTTPError, errors.EntryNotFoundError, OSError, RuntimeError) as error:
        # RuntimeError: for faults of hf_xet, the transfer that the library prefers, there is no class.
        raise translate_error(error, row, f"{repo} at revision {revision}", repo) from error
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry
        if hide:
            utils.enable_progress_bars()


def translate_error(error: Exception, row: Published, where: str, repo: str) -> JinaError:
    """The library's error as an error of this package. Its classes overlap: the first that fits decides."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return ModelNotFound(
            f"{where}: is given only to those who accepted its terms. Accept them at {endpoint()}/{repo} and set "
            "HF_TOKEN to a token of that account."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFound(f"{where}: {endpoint()} has the repository and not this revision.{_main_of(repo)}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFound(
            f"{where}: {endpoint()} has no such repository, or it is private. If it is private, set HF_TOKEN."
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelNotFound(
            f"{where}: was not fetched, because HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set. Unset it to fetch."
        )
    if isinstance(error, OSError) and error.errno in _DISK:
        return OutputError(
            f"{cache_folder()}: cannot be written ({error.strerror}). HF_HUB_CACHE sets another place."
        )
    pico = " --model pico takes the small model that comes with the package." if row.spec.scoring is None else ""
    if isinstance(error, errors.HfHubHTTPError):
        said = f"the hub answered {error.response.status_code} to {error.response.url}"
        return ModelNotFound(f"{where}: {said}. Try again later.{pico}")
    reason = next(iter(str(error.__cause__ or error).splitlines()), "") or type(error).__name__
    facts = row.about(default_weights.of(row.spec).label if repo != row.repo else "checkpoint")
    return ModelNotFound(
        f"{where}: was asked of {endpoint()}, which could not be reached or broke off ({reason}). Try again when "
        f"there is a network ({row.spec.name}: {facts}); what has arrived is kept.{pico} `python -m jina_local "
        "models list` shows what is here, and a folder or a .gguf file can be given by its path."
    )


def _answered(question: Callable[[], _Answer]) -> _Answer:
    """The answer to a question to the hub. Raises TimeoutError if none comes in time, whatever the host does.

    The library's own limit counts for each address of the host anew, and not for finding the addresses.
    """
    answer: Future[_Answer] = Future()

    def ask() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    if wait([answer], _SECONDS).not_done:
        raise TimeoutError(f"no answer within {_SECONDS:.0f} seconds")
    return answer.result()


def _main_of(repo: str) -> str:
    from huggingface_hub import HfApi, errors

    api = HfApi(endpoint=endpoint())
    with suppress(errors.HTTPError, OSError):
        return f" Its main is at {_answered(lambda: api.model_info(repo, timeout=2 * _SECONDS)).sha}."
    return ""


def _ask(row: Published, repo: str, revision: str, tasks: Sequence[str]) -> _Listed:
    """The files of a repository at a revision."""
    from huggingface_hub import HfApi

    _log.warning("%s: asking %s for %s", row.spec.name, endpoint(), repo)
    api = HfApi(endpoint=endpoint())
    where = f"{endpoint()}: its list of the files of {repo}"
    try:
        info = _answered(lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=2 * _SECONDS))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # The library takes the members of the answer as if they were there and of the right type.
        raise ModelDamaged(f"{where} cannot be read ({error!r}). HF_ENDPOINT may be no hub.") from error
    commit = check(info.sha, _COMMIT, where, "sha")
    remote = {file.name: file for one in info.siblings or [] if (file := _remote(one, where))}
    return _Listed(repo, commit, remote, tasks)


def _label(row: Published, asked: str | None, listed: Sequence[_Listed]) -> str:
    """The type of GGUF files: as asked, else the machine's default if all tasks have it, else the next one."""
    if asked is not None:
        return asked.upper()
    default = default_weights.of(row.spec).label
    names = ((one, row.gguf_file.format(task=task, type=default)) for one in listed for task in one.tasks)
    published = all(name in one.remote for one, name in names)
    return default if published else default_weights.NEXT


def _files(row: Published, listed: _Listed, label: str | None) -> _Fetch:
    """The files that the tasks need of a repository. `label`: the type of GGUF files; None: the checkpoint."""
    repo, commit, remote, tasks = listed.repo, listed.commit, listed.remote, listed.tasks
    if label:
        serves = {task: row.gguf_file.format(task=task, type=label) for task in tasks}
        wanted = [*serves.values(), *row.beside_gguf]
    else:
        serves = dict.fromkeys(tasks, ".")
        weights = [name for name in remote if SHARD.fullmatch(name)] or ["model.safetensors"]
        extra = [name for name in (INDEX, *_WELCOME) if name in remote]
        adapters = [f"adapters/{task}/{name}" for task in tasks if row.adapter_folders for name in ADAPTER]
        wanted = [*NEEDED, *weights, *extra, *adapters]
    if missing := [name for name in wanted if name not in remote]:
        suffixes = {Path(name).suffix for name in missing}
        alike = [name for name in sorted(remote) if Path(name).suffix in suffixes] or sorted(remote)
        raise ModelNotFound(
            f"{repo} at commit {commit} has no {', '.join(missing)}. It has: {', '.join(alike[:40]) or 'no files'}"
            f"{', ...' if len(alike) > 40 else ''}."
        )
    return _Fetch(repo, commit, [remote[name] for name in wanted], serves)


def _remote(listed: RepoSibling, where: str) -> _Remote | None:
    """A file of the hub's list; None if it has no digest, which becomes a file's name. Raises ModelDamaged."""
    name = check(listed.rfilename, text, where, "rfilename")
    size = check(listed.size, or_null(whole(0, 1 << 50)), where, f"size of {shown(name)}")
    digest = listed.lfs.sha256 if listed.lfs else listed.blob_id
    known = isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest)
    return _Remote(name, size, digest) if known else None


def _announce(row: Published, label: str | None, fetches: Sequence[_Fetch]) -> None:
    """Announce the size, place and licence of the files. Raises OutputError if the disk has no room for them."""
    absent = [(fetch, file) for fetch in fetches for file in fetch.files if not (fetch.folder / file.name).exists()]
    if not absent:
        text = "%s: all files are here, and are compared with the hub's. Licence of the weights: %s"
        _log.warning(text, row.spec.name, row.terms)
        return
    missing = sum(file.size or 0 for _, file in absent)
    here = sum(part.stat().st_size for fetch, file in absent if (part := fetch.part(file)).exists())
    cache_folder().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache_folder()).free
    if free < missing - here + _SPARE:
        raise OutputError(
            f"{cache_folder()}: {size_text(missing)} are to be fetched, {size_text(free)} are free. "
            "Free some room, or set HF_HUB_CACHE to a folder on another disk."
        )
    what = f"{label} weights" if label else "the published checkpoint"
    done = f" ({size_text(here)} of it are here)" if here else ""
    _log.warning(
        "%s: fetching %s, %s%s, into %s. Licence of the weights: %s",
        *(row.spec.name, what, size_text(missing), done, cache_folder(), row.terms),
    )


def _download(fetch: _Fetch) -> None:
    """Bring the files into the cache and check each."""
    for file in fetch.files:
        was_here = (fetch.folder / file.name).exists()
        fault = _fetch_file(fetch, file)
        if fault and was_here:
            fault = _fetch_file(fetch, file)
        if fault:
            raise ModelDamaged(
                f"{fault}. These are not the bytes that {endpoint()} announced for {fetch.repo} at commit "
                f"{fetch.commit}; the file was removed. Fetch it again; if that does not help, a proxy on the way "
                "changes files."
            )


def _fetch_file(fetch: _Fetch, file: _Remote) -> str | None:
    """Fetch one file unless it is there. A file that is not as announced is removed, and its fault returned."""
    from huggingface_hub import hf_hub_download

    if len(file.digest) == 64 and not (fetch.folder / file.name).exists():
        _fetch_large(fetch, file)
    # A large file is among the blobs by now, and is only linked.
    places = {"cache_dir": str(cache_folder()), "endpoint": endpoint()}
    path = Path(hf_hub_download(fetch.repo, file.name, revision=fetch.commit, **places))
    if fault := fault_of(path, file.size, file.digest):
        discard(path)
    return fault


def _fetch_large(fetch: _Fetch, file: _Remote) -> None:
    """Fetch a large file into the cache's blobs, and continue a part that is here.

    The download is not left to hf_hub_download, because that deletes its part when it is interrupted.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    part = fetch.part(file)
    blob = part.with_name(file.digest)
    lock = cache_folder() / ".locks" / root_of(fetch.repo).name / f"{file.digest}.lock"
    for folder in (part.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        if part.exists() and file.size is not None and part.stat().st_size > file.size:
            part.unlink()
        with part.open("ab") as opened:
            http_get(
                hf_hub_url(fetch.repo, file.name, revision=fetch.commit, endpoint=endpoint()),
                opened,
                resume_size=opened.tell(),
                headers=build_hf_headers(),
                expected_size=file.size,
                displayed_filename=file.name,
            )
        part.replace(blob)
