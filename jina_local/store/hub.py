"""The hub: fetch a model; and the local store, where converted folders are looked for.

Only `pull` opens a socket, to HF_ENDPOINT or huggingface.co. Places follow HF_HUB_CACHE, HF_HOME and JINA_LOCAL_HOME
as they are when a function is called.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .. import registry
from ..errors import JinaError, ModelDamaged, ModelNotFound, OutputError, UsageError
from ..formats import manifest
from ..formats.files import open_regular
from ..formats.manifest import Manifest
from ..registry import Published
from .hub_cache import (
    ADAPTER,
    INDEX,
    NEEDED,
    SHARD,
    Held,
    beside,
    cache_folder,
    checked,
    commit_of,
    discard,
    fault_of,
    pinned,
    repos,
    root_of,
)
from .hub_cache import Verified as Verified
from .hub_cache import cached as cached

GGUF_DEFAULT = "Q8_0"
# Small files that converters carry over; not every repository has them.
_WELCOME = (
    "tokenizer_config.json", "config_sentence_transformers.json", "modules.json", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_TRUE = ("1", "on", "yes", "true")
_TIMEOUT = 20.0  # seconds for one question to the hub
_SPARE = 64 << 20  # bytes that stay free on the disk
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR)


@dataclass(frozen=True)
class Stored:
    """One folder of the local store; `manifest` is None where it cannot be read, and `fault` says why."""

    path: Path
    manifest: Manifest | None
    fault: str | None


@dataclass(frozen=True)
class _Remote:
    name: str
    size: int | None
    digest: str


def local_store() -> Path:
    """Where converted folders are looked for by name: JINA_LOCAL_HOME, else the platform's data folder."""
    if os.environ.get("JINA_LOCAL_HOME"):
        return Path(os.environ["JINA_LOCAL_HOME"]).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "jina_local"
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "jina_local"


def offline(asked: bool | None) -> bool:
    """Whether the network may not be used: as asked, else as the environment says."""
    names = ("JINA_LOCAL_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return asked if asked is not None else any(os.environ.get(n, "").lower() in _TRUE for n in names)


def endpoint() -> str:
    """The hub that is asked: HF_ENDPOINT, else huggingface.co. Raises UsageError for what is no URL."""
    url = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not url.startswith(("https://", "http://")):
        raise UsageError(f"HF_ENDPOINT is {url!r}; expected a URL, as https://huggingface.co.")
    return url.rstrip("/")


def stored() -> list[Stored]:
    """The converted folders in the local store, up to two levels down, by path."""
    root = local_store()
    found: list[Stored] = []
    for marker in (*sorted(root.glob(f"*/{manifest.NAME}")), *sorted(root.glob(f"*/*/{manifest.NAME}"))):
        folder = marker.parent
        if any(one.path in folder.parents for one in found) or folder.name.startswith("."):
            continue
        try:
            found.append(Stored(folder, read_manifest(folder), None))
        except ModelDamaged as error:
            found.append(Stored(folder, None, str(error)))
    return found


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a converted folder, checked against the sizes of its files. Raises ModelDamaged."""
    open_regular(folder / manifest.NAME).close()
    return manifest.load(folder)


def pull(
    row: Published,
    kind: str = "llama",
    *,
    tasks: Sequence[str] | None = None,
    weights: str | None = None,
    revision: str | None = None,
    progress: bool = False,
) -> Held:
    """Fetch a model into the cache and compare every file with the hub's size and digest, those already there too.

    kind: "llama" takes one GGUF of type `weights` (Q8_0) for each task, by default the model's default task, and
    what belongs beside it; "mlx" takes the base checkpoint and the adapters of `tasks`, by default all. `revision`
    replaces the pinned commit. progress: bars on stderr. What is not as the hub says is removed. A cut connection
    is taken up where it broke. Raises ModelNotFound (no such thing, or no network), ModelDamaged, OutputError,
    UsageError.
    """
    if kind not in ("llama", "mlx"):
        raise UsageError(f"unknown kind {kind!r}. Possible: llama, mlx.")
    default = (row.spec.default_task or row.spec.tasks[0],) if kind == "llama" else row.spec.tasks
    chosen = registry.expand_tasks(row, tasks) if tasks else default
    if unknown := [task for task in chosen if task not in row.spec.tasks]:
        raise UsageError(f"unknown task {unknown[0]!r}. {row.spec.name} has: {', '.join(row.spec.tasks)}.")
    if row.bundled:
        raise UsageError(f"{row.spec.name} comes with the package: there is nothing to fetch, and `load` opens it.")
    by_task = repos(row, kind, chosen)
    if not by_task:
        raise ModelNotFound(f"{row.spec.name}: {unpublished(row)}")
    label = (weights or GGUF_DEFAULT).upper() if kind == "llama" else None
    files: dict[str, Path] = {}
    notes: list[str] = []
    for repo in dict.fromkeys(by_task.values()):
        served = [task for task in chosen if by_task[task] == repo]
        asked = checked(revision) or pinned(row, repo) or "main"
        with _client(repo, asked, progress):
            commit, remote = _ask(repo, asked)
            if kind == "llama":
                names = [row.gguf_file.format(task=task, type=label) for task in served]
                wanted = [*names, *beside(row)]
            else:
                names = ["."] * len(served)
                wanted = _checkpoint_files(remote, served if row.adapter_folders else ())
            _require(repo, commit, wanted, remote)
            folder = _download(repo, commit, [remote[name] for name in wanted])
        files |= {task: folder / name for task, name in zip(served, names, strict=True)}
        if revision is None and pinned(row, repo) is None:
            notes.append(f"no commit is pinned for {repo}: took main, which is {commit}")
    return Held(kind, files, label, str(commit_of(files[chosen[0]])), tuple(notes))


def ways_out(name: str) -> str:
    """How to get a model that is not here."""
    row = registry.lookup(name)
    text = f"Fetch it with `python -m jina_local models pull {name}`, or give the path of a folder or a .gguf file"
    if row.spec.scoring is None:
        text += "; or take the small model that comes with the package: --model pico"
    return f"{text}." if row.gguf_repo or row.bundled else f"{text}. For llama.cpp, {unpublished(row)}"


def unpublished(row: Published) -> str:
    """What to do where llama.cpp is to run a model of which no GGUF files are published."""
    tasks = " --task all" if len(row.spec.tasks) > 1 else ""
    return (
        "no GGUF files are published. Convert the checkpoint, to where it will be found by its name: `python -m "
        f'convert gguf {row.spec.name} "{local_store() / row.spec.name}"{tasks}` (it fetches what is not here; '
        "pip install 'jina_local[convert]' brings what it needs). MLX runs the checkpoint as it is."
    )


@contextmanager
def _client(repo: str, revision: str, progress: bool) -> Iterator[None]:
    """Calls of the library: without its telemetry, with bars only when asked, its errors made ours."""
    from huggingface_hub import constants, errors, utils

    telemetry = constants.HF_HUB_DISABLE_TELEMETRY
    bars = not utils.are_progress_bars_disabled()
    if "HF_HUB_DISABLE_TELEMETRY" not in os.environ:
        constants.HF_HUB_DISABLE_TELEMETRY = True
    if bars and not progress and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        utils.disable_progress_bars()
    try:
        yield
    except (errors.HTTPError, errors.EntryNotFoundError, OSError, RuntimeError) as error:
        # RuntimeError: what hf_xet, the transfer that the library prefers, has no class for.
        raise _ours(error, repo, revision) from error
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry
        if bars and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
            utils.enable_progress_bars()


def _ours(error: Exception, repo: str, revision: str) -> JinaError:
    """The library's error as one of ours. Its classes overlap: the first that fits decides."""
    from huggingface_hub import errors

    where = f"{repo} at revision {revision}"
    if isinstance(error, errors.GatedRepoError):
        return ModelNotFound(
            f"{where}: is given only to those who accepted its terms. Accept them at {endpoint()}/{repo} and set "
            "HF_TOKEN to a token of that account."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFound(f"{where}: {endpoint()} has the repository and not this revision.{_heads(repo)}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFound(
            f"{where}: {endpoint()} has no such repository, or it is private. If it is private, set HF_TOKEN."
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelNotFound(
            f"{where}: was not fetched, as HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set. Unset it to fetch."
        )
    if isinstance(error, OSError) and error.errno in _DISK:
        return OutputError(
            f"{cache_folder()}: cannot be written ({error.strerror}). HF_HUB_CACHE sets another place."
        )
    if isinstance(error, errors.HfHubHTTPError):
        answer = error.response
        return ModelNotFound(f"{where}: the hub answered {answer.status_code} to {answer.url}. Try again later.")
    reason = next(iter(str(error.__cause__ or error).splitlines()), "") or type(error).__name__
    return ModelNotFound(
        f"{where}: was asked of {endpoint()}, which could not be reached or broke off ({reason}). Try again when "
        "there is a network; what has arrived whole is kept. `python -m jina_local models list` shows what is here, "
        "and a folder or a .gguf file can be given by its path."
    )


def _heads(repo: str) -> str:
    from huggingface_hub import HfApi, errors

    try:
        return f" Its main is at {HfApi(endpoint=endpoint()).model_info(repo, timeout=_TIMEOUT).sha}."
    except (errors.HTTPError, OSError):
        return ""


def _ask(repo: str, revision: str) -> tuple[str, dict[str, _Remote]]:
    """(commit, every file of the repository with its size and digest)."""
    from huggingface_hub import HfApi

    info = HfApi(endpoint=endpoint()).model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT)
    files = {
        s.rfilename: _Remote(s.rfilename, s.size, s.lfs.sha256 if s.lfs else str(s.blob_id))
        for s in info.siblings or []
    }
    return str(info.sha), files


def _checkpoint_files(remote: Mapping[str, _Remote], tasks: Sequence[str]) -> list[str]:
    weights = [name for name in remote if SHARD.fullmatch(name)]
    extra = [name for name in (INDEX, *_WELCOME) if name in remote]
    return [
        *NEEDED,
        *(weights or ["model.safetensors"]),
        *extra,
        *(f"adapters/{t}/{n}" for t in tasks for n in ADAPTER),
    ]


def _require(repo: str, commit: str, wanted: Sequence[str], remote: Mapping[str, _Remote]) -> None:
    if missing := [name for name in wanted if name not in remote]:
        suffixes = {Path(name).suffix for name in missing}
        alike = [name for name in sorted(remote) if Path(name).suffix in suffixes] or sorted(remote)
        raise ModelNotFound(
            f"{repo} at commit {commit} has no {', '.join(missing)}. It has: {', '.join(alike[:40]) or 'no files'}"
            f"{', ...' if len(alike) > 40 else ''}."
        )


def _download(repo: str, commit: str, files: Sequence[_Remote]) -> Path:
    """Bring `files` into the cache and check each; the snapshot folder."""
    folder = root_of(repo) / "snapshots" / commit
    missing = sum(file.size or 0 for file in files if not (folder / file.name).exists())
    cache_folder().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache_folder()).free
    if missing and free < missing + _SPARE:
        raise OutputError(
            f"{cache_folder()}: {missing / 1e6:,.0f} MB are to be fetched, {free / 1e6:,.0f} MB are free. "
            "Free some room, or set HF_HUB_CACHE to a folder on another disk."
        )
    for file in files:
        was_here = (folder / file.name).exists()
        fault = _fetch(repo, commit, file)
        if fault and was_here:
            fault = _fetch(repo, commit, file)
        if fault:
            raise ModelDamaged(
                f"{fault}. These are not the bytes that {endpoint()} announced for {repo} at commit {commit}; "
                "the file was removed. Fetch it again; if that does not help, a proxy on the way changes files."
            )
    return folder


def _fetch(repo: str, commit: str, file: _Remote) -> str | None:
    """Fetch one file unless it is there; what is wrong with it, after it was removed for that."""
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(repo, file.name, revision=commit, cache_dir=str(cache_folder()), endpoint=endpoint()))
    if fault := fault_of(path, file.size, file.digest):
        discard(path)
    return fault
