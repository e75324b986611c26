"""The Model Context Protocol over standard input and output, or HTTP: an index as tools for agents, in small answers.

Before an answer the index is brought up to date on a thread of its own. The answer waits for that no longer than
`_WAIT`; what is not done by then goes on, and the answer says so.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    nullcontext,
    redirect_stdout,
    suppress,
)
from typing import Any, ParamSpec

from .. import Index, JinaError, __version__
from ..errors import EngineMissing, IndexNotFound, Locked, UsageError
from .mcp_answers import HITS, Found, at_least, cut, listed, place, short_name, whole_name

try:
    import anyio
    import anyio.to_thread
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.server.transport_security import TransportSecuritySettings
    from mcp_types import ToolAnnotations
except ImportError as error:
    raise EngineMissing(
        "jina_local.integrations.mcp needs the package mcp: pip install 'jina_local[mcp]'."
    ) from error

P = ParamSpec("P")
App = Callable[[Any, Any, Any], Awaitable[None]]  # ASGI
Admitted = Callable[[Index, str], AbstractContextManager[object]]

_TOKENS = 800  # of an answer with passages, if the agent does not say
_TOKENS_OF_LINES = 2000
_WAIT = 1.0  # seconds
_MOST = 20.0  # seconds of one refresh; the next one goes on
_LAST = 1.0  # seconds that the end waits for the batch at hand
_OLD = "files that changed lately may be missing or old."

_INSTRUCTIONS = """Finds passages in folders of this machine by meaning and by words. Ask `search` first, in plain
words or with names from the code: it costs far less than grep and whole files. A hit is headed by PATH:FIRST-LAST;
`get` has the lines around it, `related` has passages like it."""


def serve(open_index: Callable[[], Index]) -> None:
    """Answer the client at the other end of standard input and output until it closes them.

    open_index: called at the first question, and again after an error or if the index was made anew; what it raises
        is the answer to that question.
    Raises UsageError if standard input or output is closed.
    """
    if sys.stdin is None or sys.stdout is None:
        raise UsageError("standard input or output is closed; the client speaks over both.")
    tools = Tools(open_index)
    faults: list[Exception] = []

    def speak() -> None:
        try:
            anyio.run(server(tools).run_stdio_async)
        except Exception as error:
            if not _client_has_gone(error):
                faults.append(error)

    # On a thread of its own, because the exception of a signal could leave an event loop waiting for the next line.
    thread = threading.Thread(target=speak, name="protocol", daemon=True)
    thread.start()
    try:
        thread.join()
    finally:
        tools.close()
    if faults:
        raise faults[0]


def _client_has_gone(error: BaseException) -> bool:
    """Whether nobody reads any more, and nothing else is in the groups of errors that anyio makes."""
    inner = getattr(error, "exceptions", ())
    return isinstance(error, BrokenPipeError) or (bool(inner) and all(map(_client_has_gone, inner)))


def server(tools: Tools) -> MCPServer:
    """The tools as a server of the SDK."""
    made = MCPServer(
        "jina-local",
        version=__version__,
        instructions=_INSTRUCTIONS,
        log_level="WARNING",
        lifespan=_printing_elsewhere,
    )
    reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    for tool in (tools.search, tools.get, tools.related, tools.index_status):
        made.add_tool(_telling(tool), description=inspect.getdoc(tool), annotations=reads, structured_output=False)
    return made


def http(tools: Tools) -> tuple[App, Callable[[], AbstractAsyncContextManager[None]]]:
    """The tools as an ASGI app for POST, and the context in which it answers, which closes them at its end.

    Requests depend on no earlier one, so there is no session, and each is answered at once. Who may ask is the
    caller's to decide.
    """
    made = server(tools)
    made.streamable_http_app(
        stateless_http=True,
        json_response=True,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    manager = made.session_manager

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        try:
            async with manager.run():
                yield
        finally:
            await anyio.to_thread.run_sync(tools.close)

    return manager.handle_request, running


@asynccontextmanager
async def _printing_elsewhere(_: object) -> AsyncIterator[None]:
    """What is printed goes to stderr; the SDK diverts descriptor 1, but not what Python holds back until the end."""
    with redirect_stdout(sys.stderr):
        yield


def _telling(tool: Callable[P, str]) -> Callable[P, str]:
    """The tool with our errors as MCP's, whose text the agent reads."""

    @functools.wraps(tool)
    def told(*args: P.args, **kwargs: P.kwargs) -> str:
        try:
            return tool(*args, **kwargs)
        except (JinaError, OSError) as error:
            raise ToolError(str(error)) from error

    return told


class Tools:
    """The tools of one server. Their docstrings are for the agent, which pays for each word."""

    def __init__(
        self, open_index: Callable[[], Index], *, whole_paths: bool = False, admitted: Admitted | None = None
    ) -> None:
        """whole_paths: the agent does not share the working directory, below which paths are short else.

        admitted: the context in which a question is answered; what it raises is the answer.
        """
        self._open_index, self._name = open_index, whole_name if whole_paths else short_name
        self._admitted = admitted or (lambda _index, _question: nullcontext())
        self._current: tuple[Index, tuple[int, int], _Refresh] | None = None
        self._lock = threading.Lock()

    def search(self, query: str, max_tokens: int = _TOKENS, offset: int = 0, paths: Sequence[str] = ()) -> str:
        """Find passages that answer a question or define a name, best first.

        Args:
            query: a question in plain words, or names from the code.
            max_tokens: about how long the answer may be. The best hits come with their text, others are named.
            offset: hits to pass over, to see the next ones.
            paths: globs such as "src/*.py", or folders, to search in these only.
        """
        at_least(0, offset=offset)
        index, notes = self._fresh()
        with self._admitted(index, query):
            answer = index.search(query, offset + HITS + 1, paths=tuple(paths))
        found = [Found.of(hit, self._name) for hit in answer.hits[offset:]]
        return listed(found, max_tokens, [*notes, *answer.missing], offset)

    def related(self, path: str, line: int = 1, max_tokens: int = _TOKENS) -> str:
        """Find passages like the one at a line of a file: similar code, other notes on the subject.

        Args:
            path: as `search` gives it.
            line: any line of the passage.
            max_tokens: about how long the answer may be.
        """
        index, notes = self._fresh()
        answer = index.related(path, line, HITS)
        found = [Found.of(hit, self._name) for hit in answer.hits]
        return listed(found, max_tokens, [*notes, *answer.missing])

    def get(self, path: str, line: int = 1, count: int | None = None, max_tokens: int = _TOKENS_OF_LINES) -> str:
        """Read lines of an indexed file, as it is now. Other files are refused.

        Args:
            path: as `search` gives it.
            line: the first line; of a PDF the first page.
            count: how many; without it, to the end of the file or of max_tokens.
            max_tokens: about how long the answer may be.
        """
        found = self._index().get(path, line, count)
        kept = cut(found.text, max_tokens)
        lines = kept.count("\n") + 1
        whole, counted = len(kept) == len(found.text), found.unit == "line"
        last = found.end_line if whole or not counted else found.start_line + lines - 1
        out = [place(self._name(found.path), found.unit, found.start_line, last), kept]
        if not whole:
            more = f"get it with line={last + 1}" if counted and last < found.end_line else "raise max_tokens"
            out.append(f"({'Line' if counted else found.unit.capitalize()}s follow to {found.end_line}: {more}.)")
        return "\n".join(out)

    def index_status(self) -> str:
        """What is indexed: folders, number of files and passages, model, and what is missing."""
        index, notes = self._fresh()
        status = index.status()
        counts = status.counts
        model = f"{status.model}, {status.dim} dimensions" if status.model else "none yet: words alone answer"
        out = [
            f"{status.name}: {counts.documents:,} files, {counts.chunks:,} passages, {counts.vectors:,} with vectors",
            f"model: {model}",
            *(f"folder: {self._name(os.fsencode(folder))}" for folder in status.folders),
            *(f"{kind}: {', '.join(globs)}" for kind in ("include", "exclude") if (globs := getattr(status, kind))),
        ]
        if counts.skipped:
            out.append(f"{counts.skipped:,} files were skipped, such as:")
            out += [f"  {self._name(row.path)}: {row.reason}" for row in status.skipped[:5]]
        return "\n".join([*out, *notes])

    def close(self) -> None:
        """Stop a refresh and close the index."""
        with self._lock:
            self._put_down()

    def _index(self) -> Index:
        return self._opened()[0]

    def _fresh(self) -> tuple[Index, list[str]]:
        """The index, up to date if that is soon done; and sentences about what is not."""
        index, refresh = self._opened()
        note = refresh.wait()
        return index, [note] if note else []

    def _opened(self) -> tuple[Index, _Refresh]:
        """The index, opened anew if another file has its place."""
        with self._lock:
            if self._current is not None:
                index, file, refresh = self._current
                with suppress(FileNotFoundError):
                    if _file(index) == file:
                        return index, refresh
                self._put_down()
            index = self._open_index()
            try:
                file = _file(index)
            except FileNotFoundError:
                index.close()
                raise IndexNotFound(f"{index.path}: there is no index here. Make one: `index FOLDER`.") from None
            self._current = index, file, _Refresh(index)
            return index, self._current[2]

    def _put_down(self) -> None:
        if self._current is not None:
            index, _, refresh = self._current
            self._current = None
            refresh.stop()
            index.close()


class _Stopped(Exception):
    """The refresh has had its time."""


class _Refresh:
    """Brings an index up to date, again and again, one run at a time."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._thread: threading.Thread | None = None
        self._began = 0.0
        self._stopped = False
        self._outcome: str | None = None
        self._lock = threading.Lock()

    def wait(self) -> str | None:
        """Begin a run unless there is one, and wait for its end; a sentence if the index is not up to date."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._began = time.monotonic()
                # A daemon: it may be left behind anywhere, because all that it wrote before is kept.
                self._thread = threading.Thread(target=self._run, name="refresh", daemon=True)
                self._thread.start()
            thread = self._thread
        thread.join(max(self._began + _WAIT - time.monotonic(), 0))
        return f"The index is being brought up to date: {_OLD}" if thread.is_alive() else self._outcome

    def stop(self) -> None:
        """End the run after the batch at hand, or leave it behind if that takes too long."""
        self._stopped = True
        if self._thread is not None:
            self._thread.join(_LAST)

    def _run(self) -> None:
        outcome: str | None = "The index could not be brought up to date: standard error has a traceback."
        try:
            self._index.update(command="mcp", progress=self._go_on)
            outcome = None
        except _Stopped:
            outcome = None  # the answer says how many passages have no vector
        except Locked:
            outcome = f"Another process is bringing the index up to date: {_OLD}"
        except (JinaError, OSError) as error:
            outcome = f"The index could not be brought up to date: {error}"
        finally:
            self._outcome = outcome

    def _go_on(self, _: object) -> None:
        if self._stopped or time.monotonic() > self._began + _MOST:
            raise _Stopped


def _file(index: Index) -> tuple[int, int]:
    found = os.stat(index.path)
    return found.st_dev, found.st_ino
