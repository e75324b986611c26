"""One case: damage a file, open the model in a forked child, and say what became of it.

The parent never starts an engine, so that a fork is as good as a new process.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np

from .bases import Base, ask, listing
from .mutate import of_bytes, of_json

LIMIT = 10.0  # seconds after which a case counts as hung
_MEMORY = 8 << 30  # bytes of address space that a child may take
# What may become of a case. The first four are as it should be.
SAME, REFUSED, CHANGED = "same vector", "refused", "weights changed, other vector"
FORGED = "forged with its manifest, other vector"  # no record of the original is left to compare with
OTHER, DEATH, HANG, UNTYPED, ODD, MEMORY = (
    "OTHER VECTOR", "DEATH", "HANG", "UNTYPED", "NOT FINITE", "OUT OF MEMORY",
)  # fmt: skip
RIGHT = (SAME, REFUSED, CHANGED, FORGED)


def in_child(work: Callable[[], str], limit: float = LIMIT) -> str:
    """Run `work` in a forked child; its answer, or what became of it."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _become_child(work, writing)
    os.close(writing)
    os.set_blocking(reading, False)
    end, answer = time.monotonic() + limit, b""
    try:
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return f"{HANG} over {limit:g} s"
            time.sleep(0.002)
        while piece := os.read(reading, 1 << 16):
            answer += piece
    finally:
        os.close(reading)
    if os.WIFSIGNALED(status):
        return f"{DEATH} by {signal.Signals(os.WTERMSIG(status)).name}"
    return answer.decode("utf-8", "replace") or f"{DEATH} with exit code {os.WEXITSTATUS(status)}"


def _become_child(work: Callable[[], str], writing: int) -> None:
    faulthandler.disable()  # pytest's would tell of an abort that is looked for
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    try:
        answer = work()
    except MemoryError:
        answer = MEMORY
    except BaseException as error:
        answer = named(error)
    os.write(writing, answer.encode("utf-8", "backslashreplace")[:4000])
    os._exit(0)


def named(error: BaseException) -> str:
    """An error as an outcome."""
    from jina_local import JinaError

    if isinstance(error, JinaError):
        return f"{REFUSED}: {type(error).__name__}: {error}"
    where = error.__traceback__
    while where and where.tb_next:
        where = where.tb_next
    place = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where else "?"
    return f"{UNTYPED} {type(error).__name__} at {place}: {error}"


def digest(rows: np.ndarray) -> str:
    """What is compared of an answer."""
    if not np.isfinite(rows).all():
        return ODD
    return hashlib.sha256(np.ascontiguousarray(rows, np.float32).tobytes()).hexdigest()


def expected(base: Base) -> str:
    """The answer of the undamaged model."""
    found = in_child(lambda: digest(ask(base.folder, base.backend, base.task)), limit=120)
    if len(found) != 64:
        raise RuntimeError(f"{base.name} does not run undamaged: {found}")
    return found


def case(base: Base, answer: str, seed: str, room: Path) -> tuple[str, str]:
    """(what became of it, what was done) for one seed."""
    rng = Random(seed)
    changed, what, weights = base.damage(rng, (base.folder / base.subject).read_bytes())
    signed = rng.random() < 0.5 and base.subject != "manifest.json" and (base.folder / "manifest.json").exists()
    folder = room / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base.folder, folder, copy_function=os.link)
    (folder / base.subject).unlink()
    (folder / base.subject).write_bytes(changed)
    if signed:
        _sign(folder, base.subject)
        what += " (and the manifest says so)"
    found = in_child(lambda: digest(ask(folder, base.backend, base.task)))
    if len(found) == 64 and " " not in found:
        found = SAME if found == answer else CHANGED if weights else FORGED if signed else OTHER
    return found, f"{base.name}: {what}"


def _sign(folder: Path, name: str) -> None:
    """Make the manifest agree with a damaged file, so that what stands behind it is tried."""
    path = folder / "manifest.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    raw = (folder / name).read_bytes()
    entry = body["files"][name]
    entry |= {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    if "header_bytes" in entry:
        size = min(entry["header_bytes"], len(raw))
        entry |= {"header_bytes": size, "header_sha256": hashlib.sha256(raw[:size]).hexdigest()}
    path.unlink()
    path.write_text(json.dumps(body), encoding="utf-8")


def hub_case(seed: str, room: Path) -> tuple[str, str]:
    """A damaged answer of the hub to the question what a repository has."""
    rng = Random(seed)
    raw, what = of_json(rng, listing()) if rng.random() < 0.8 else of_bytes(rng, listing(), 0, len(listing()))

    def pull() -> str:
        import huggingface_hub
        from huggingface_hub import errors

        from jina_local import registry
        from jina_local.store import hub

        def info(self: object, repo: str, **words: object) -> object:
            try:
                return huggingface_hub.hf_api.ModelInfo(**json.loads(raw))
            except Exception as error:  # the library's own fault with the answer comes as it likes
                raise errors.HTTPError(f"bad answer: {error}") from error

        believed: list[hub._Fetch] = []
        os.environ["HF_HUB_CACHE"] = str(room)
        huggingface_hub.HfApi.model_info = info  # type: ignore[method-assign]
        hub._download = believed.append
        found = hub.pull(registry.lookup("v5-nano"), "llama")
        (fetch,), (path,) = believed, found.values()
        names = [file.name for file in fetch.files]
        good = names == [path.name] == ["v5-nano-retrieval-Q8_0.gguf"] and path.parent == fetch.folder
        good &= bool(re.fullmatch(r"[0-9a-f]{40}", fetch.commit)) and fetch.folder.name == fetch.commit
        return SAME if good else f"{OTHER}: {fetch}"

    return in_child(pull), f"hub listing: {what}"


def preload() -> None:
    """Import what every child needs, so that a case costs a fork and not the imports. No engine is started."""
    os.environ |= {"GGML_NO_BACKTRACE": "1", "TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1",
                   "JINA_LOCAL_OFFLINE": "1"}  # fmt: skip
    import importlib

    for name in ("jina_local.loading", "jina_local.embedding.embedder", "jina_local.reranking.reranker",
                 "tokenizers", "llama_cpp", "huggingface_hub.hf_api"):  # fmt: skip
        importlib.import_module(name)
    from tqdm import tqdm

    tqdm.get_lock()  # else each child makes one
    sys.stdout.flush()
