"""`serve`: the models of this machine for programs that speak HTTP."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import backends, console, registry
from ..errors import EngineMissing, UsageError
from ..store import local_store
from . import options

if TYPE_CHECKING:
    from ..search.index import Index
    from ..server.mounts import Hosted, Mount
    from ..server.served import Served

SUMMARY = "answer programs over HTTP, as Jina's and OpenAI's APIs do"

EXAMPLES = """examples:
  jina-local serve --model pico
  jina-local serve --model pico --index notes
  jina-local search "red planet" --server http://localhost:8765   # asks that one
  jina-local serve --model v5-nano --rerank-model reranker-v3 --port 9000
  curl localhost:8765/v1/embeddings -H 'Content-Type: application/json' \\
    -d '{"model": "pico", "input": ["hello world"], "task": "retrieval.passage"}'
"""

_EPILOG = """Every option has an environment variable: JINA_LOCAL_ and its name in capitals,
as in JINA_LOCAL_MAX_WAIT_MS; of repeatable ones the values are separated by
commas. The server answers this machine alone unless --host says otherwise, and
then it wants a key. It writes no text and no vector to its log.
exit codes:
  0 ended by SIGTERM or --idle-exit, 2 bad options, 3 the model, 69 starlette or
  uvicorn is not installed, 130 interrupted.
"""


def parser(add: Any) -> options.Parser:
    """The options of `serve`; `add` makes the parser."""
    p: options.Parser = add("serve", SUMMARY, _EPILOG)
    p.description = f"{p.description}\n\n{EXAMPLES}"
    g = p.add_argument_group("models")
    g.add_argument(
        "--model", action="append", metavar="NAME",
        help=f"name, folder or .gguf file; may be repeated (default: {registry.DEFAULT_MODEL})",
    )  # fmt: skip
    g.add_argument("--rerank-model", metavar="NAME", help="a reranker for /v1/rerank (default: none)")
    g.add_argument("--index", action="append", metavar="NAME|FOLDER", help="for /v1/search and /mcp; may be repeated")
    g.add_argument("--weights", metavar="LABEL", help="for example Q8_0 or 8bit (default: the best there is)")
    g.add_argument("--backend", choices=("auto", *backends.BACKENDS), help="engine (default: auto)")
    g.add_argument("--device", choices=("cpu", "metal"), help="default: the engine's best")
    g.add_argument("--threads", type=int, metavar="N", help="default: the physical cores")
    g.add_argument("--offline", action="store_true", help="fetch no model")
    g = p.add_argument_group("whom it answers")
    g.add_argument("--host", help="default: 127.0.0.1 and ::1; any other needs a key")
    g.add_argument("--port", type=int, metavar="N", help="default: 8765; 0 takes a free one")
    g.add_argument("--uds", metavar="PATH", help="a Unix socket in place of host and port, for its owner alone")
    g.add_argument("--api-key-file", metavar="FILE", help="a key a line; requests have to bring one of them")
    g.add_argument("--cors-origin", action="append", metavar="URL", help="web pages from there may ask; repeatable")
    g.add_argument(
        "--allowed-host", action="append", metavar="NAME", help="a further name that this server goes by; repeatable"
    )
    p.add_argument("--open", action="store_true", help="open the page in a browser once requests are taken")
    g = p.add_argument_group("limits")
    for name, metavar, kind, text in _LIMITS:
        g.add_argument(f"--{name}", metavar=metavar, type=kind, help=text)
    p.set_defaults(progress=None)
    return p


_LIMITS: Sequence[tuple[str, str, Callable[[str], object], str]] = (
    ("max-batch-tokens", "N", int, "tokens of a pass (default: what is fast for the engine)"),
    ("max-wait-ms", "MS", float, "how long a text waits for company while the engine is idle (default: 0)"),
    ("queue-tokens", "N", int, "under way at a time; more get 429 (default: about 20 seconds of work)"),
    ("max-body", "BYTES", int, "of a request (default: 8 MiB)"),
    ("max-inputs", "N", int, "texts of a request (default: 2048)"),
    ("timeout", "SECONDS", float, "for a request (default: 60)"),
    ("idle-exit", "SECONDS", float, "end after so long without a request (default: never)"),
)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    try:
        from ..server import listen
    except ModuleNotFoundError as error:
        raise EngineMissing(
            f"serve needs {error.name}, which is not installed: pip install 'jina_local[server]'."
        ) from error
    from ..search import places
    from ..server.settings import Settings

    settings = Settings(**check(args))
    indexes = [places.known(name) for name in _several(args.index, "INDEX") or ()]
    opens = args.open or os.environ.get("JINA_LOCAL_OPEN", "").lower() in ("1", "on", "yes", "true")
    if opens and settings.uds is not None:
        raise UsageError("--open: a browser cannot reach a Unix socket; give --host and --port.")
    _log_to_stderr()

    def ready(served: Served, addresses: Sequence[str]) -> None:
        for service in (*served.services, *served.indexes.own):
            origin = service.spec.origin
            if origin is not None:
                console.say(f"{service.name} {origin.weights} on {origin.backend} ({origin.device}): {origin.path}")
        for info in served.indexes.infos():
            vectors = f", {info.vectors:,} vectors of {info.model}" if info.model else ""
            console.say(f"index {info.name}: {info.passages:,} passages{vectors}")
        page = _page(addresses[0])
        console.say(f"listening at {' and '.join(addresses)}{page and f'; the page is {page}'}; Ctrl-C ends it")
        if opens:
            threading.Thread(target=_open, args=[page], daemon=True).start()  # some browsers return when they end

    with console.quiet_stdout():
        ended_by = listen.run(settings, _models(args), ready, indexes=indexes, mount=_mcp(indexes))
    if ended_by == signal.SIGINT:
        console.say("interrupted")
        return console.INTERRUPTED
    return console.OK


def _page(address: str) -> str:
    """Where a browser on this machine finds the page; "" for a Unix socket, which it cannot open."""
    if address.startswith("unix:"):
        return ""
    return address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:") + "/"


def _open(page: str) -> None:
    import webbrowser

    if not webbrowser.open(page):
        console.say(f"no browser could be started; open {page} in one")


def _mcp(indexes: Sequence[Path]) -> Mount | None:
    """The tools of each index at /mcp/NAME, of the first also at /mcp; None if the SDK is not installed."""
    if indexes and importlib.util.find_spec("mcp") is None:
        return None
    from ..server.mounts import Mounted

    def mount(served: Served) -> dict[str, Mounted]:
        made = {f"/mcp/{name}": Mounted(partial(_tools, served, name)) for name in served.indexes.names}
        return {"/mcp": next(iter(made.values())), **made} if made else {}

    return mount


def _tools(served: Served, name: str) -> Hosted:
    """The tools of one index. The SDK takes long to import."""
    from ..integrations import mcp
    from ..server.mounts import Hosted, ticket

    def admitted(index: Index, question: str) -> AbstractContextManager[object]:
        return served.indexes.admitted(index, question, "hybrid", ticket.get())

    tools = mcp.Tools(partial(served.indexes.borrow, name), whole_paths=True, admitted=admitted)
    return Hosted(*mcp.http(tools))


def check(args: argparse.Namespace) -> dict[str, Any]:
    """What was given of the arguments of Settings. Raises UsageError for what cannot be."""
    return {name: value for name, value in _settings(args).items() if value is not None}


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of Settings: an option, else its environment variable; None is left to the default."""
    found: dict[str, Any] = {
        "host": options.setting(args.host, "HOST"),
        "port": _number("port", args.port, int, low=0, high=65535),
        "uds": options.setting(args.uds, "UDS"),
        "keys": _keys(args),
        "inference_file": str(local_store.root() / "inference_endpoints.json"),
        "origins": _several(args.cors_origin, "CORS_ORIGIN"),
        "names": _several(args.allowed_host, "ALLOWED_HOST"),
    }
    if found["uds"] is not None and (found["host"] is not None or found["port"] is not None):
        raise UsageError("--uds stands in place of --host and --port; give one or the other.")
    for name, _, kind, _ in _LIMITS:
        field = name.replace("-", "_")
        found[field] = _number(name, getattr(args, field), kind, low=0 if name == "max-wait-ms" else 1)
    return found


def _several(option: list[str] | None, name: str) -> tuple[str, ...] | None:
    if option is not None:
        return tuple(option)
    given = os.environ.get(f"JINA_LOCAL_{name}")
    return tuple(one.strip() for one in given.split(",") if one.strip()) if given else None


def _number(name: str, option: Any, kind: Callable[[str], Any], *, low: float, high: float | None = None) -> Any:
    variable = name.replace("-", "_").upper()
    value = options.setting(option, variable)
    if value is None:
        return None
    try:
        number = kind(str(value))
    except ValueError:
        number = None
    if number is None or not low <= number <= (high if high is not None else float("inf")):
        upper = "" if high is None else f" to {high:g}"
        what = f"--{name} {value}" if option is not None else f"JINA_LOCAL_{variable} is {value!r}"
        raise UsageError(f"{what}: expected a number from {low:g}{upper}.")
    return number


def _keys(args: argparse.Namespace) -> tuple[str, ...] | None:
    """The keys of a file, a key a line, or the one of JINA_LOCAL_API_KEY; an argument would be seen by all."""
    path = options.setting(args.api_key_file, "API_KEY_FILE")
    return options.own_key() if path is None else options.api_keys(path)


def _models(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The words of `load` for each model, each engine in a process of its own."""
    names = _several(args.model, "MODEL") or (registry.DEFAULT_MODEL,)
    reranker = options.setting(args.rerank_model, "RERANK_MODEL")
    words = []
    for name in (*names, *([reranker] if reranker else [])):
        args.model = name
        words.append({**options.settings(args, name), "isolate": "process"})
    return words


def _log_to_stderr() -> None:
    """What the package and uvicorn have to say goes to stderr, a line each, without texts."""
    import logging

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("jina_local", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
