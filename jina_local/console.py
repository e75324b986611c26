"""What every command shares: exit codes, one guard around main, progress on stderr, stdout kept for data."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, BinaryIO, NoReturn, Protocol

from .errors import (
    CallEnded,
    EngineError,
    EngineMissing,
    JinaError,
    Locked,
    ModelError,
    NonFiniteError,
    OutputError,
    Overloaded,
    SearchIndexError,
    ServerUnavailable,
    UsageError,
)

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

OK = 0
SOME_FAILED = 1
DAMAGED = 3
INTERNAL = 70
INTERRUPTED = 130

# The nearest class in an error's ancestry decides. The numbers above 64 are those of BSD's sysexits.h.
EXIT_CODES: dict[type[BaseException], int] = {
    NonFiniteError: SOME_FAILED,
    UsageError: 2,
    ModelError: DAMAGED,
    SearchIndexError: DAMAGED,
    EngineMissing: 69,
    ServerUnavailable: 69,
    EngineError: INTERNAL,
    OutputError: 73,
    OSError: 74,
    Locked: 75,
    Overloaded: 75,
    CallEnded: 75,
    KeyboardInterrupt: INTERRUPTED,
    BaseException: INTERNAL,
}


_BY_SIGNAL = 128  # and the number of the signal, as a shell counts
# A closed terminal (SIGHUP) and Ctrl-\ (SIGQUIT) end a command as SIGTERM does; Windows has neither.
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
_SIGNALS = (signal.SIGINT, *_ENDING)
_arrived: list[int] = []  # those of _SIGNALS since the command began


class _Terminated(BaseException):
    """A signal of _ENDING as an exception, so that temp files are removed on the way out."""


class Progress(Protocol):
    """A bar, or nothing at all."""

    def update(self, n: int) -> object:
        """Add `n` units."""
        ...

    def set_postfix_str(self, text: str, refresh: bool) -> object:
        """Show `text` behind the bar, from the next time on that it is drawn if not at once."""
        ...

    def close(self) -> object:
        """Take the bar down; what is printed next starts on a line of its own."""
        ...


class _Silent:
    def update(self, n: int) -> None:
        pass

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        pass

    def close(self) -> None:
        pass


def exit_code(error: BaseException) -> int:
    """The exit code that an error ends a command with."""
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command and leave the process with its exit code.

    Errors of ours and of the system become one line on stderr. Ctrl-C and a reader that went away (`| head`) end
    without a traceback. Anything else is a bug and keeps its traceback.
    """
    _listen()
    try:
        code = guarded(main)
        _listen_no_more()
    except (KeyboardInterrupt, _Terminated):  # it came while the outcome was told
        code = _stopped()
        _listen_no_more()
    for stream, target in ((sys.stderr, 2), (sys.stdout, 1)):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            _to_null(target)  # else the rest would be tried, and reported, again at shutdown
        except (OSError, ValueError) as error:
            code = code or exit_code(error)
            _to_null(target)
        else:
            # Destructors of native libraries may still print; that does not belong into the data.
            with suppress(OSError):
                os.dup2(2, target)
    if code > _BY_SIGNAL:
        # Python remembers a KeyboardInterrupt that passed through `exec`, and would end by the signal instead.
        os._exit(code)
    sys.exit(code)


def guarded(main: Callable[[], int]) -> int:
    """Call `main`; an exception becomes a message on stderr and an exit code."""
    try:
        return main()
    except BaseException as error:
        if is_stop(error):
            return _stopped()
        if isinstance(error, SystemExit):  # argparse, after --help or a fault that it has printed
            return error.code if isinstance(error.code, int) else 2 if error.code else OK
        if isinstance(error, BrokenPipeError):
            return OK  # the reader has all that it wanted
        if isinstance(error, MemoryError):
            say("error: out of memory. Use a smaller model or more strongly quantised weights.")
        elif isinstance(error, JinaError | OSError):
            say(f"error: {_text(error)}")
        else:
            import traceback

            with suppress(OSError):
                traceback.print_exc()
            say("error: this is a bug in jina_local; please report the lines above")
        return exit_code(error)


def is_stop(error: BaseException) -> bool:
    """Whether a signal is behind an error, even if C code has made another error of it."""
    return bool(_arrived) or isinstance(error, KeyboardInterrupt)


def raise_if_stopped() -> None:
    """Raise a signal's exception once more if foreign code has swallowed it, as imports of C libraries may."""
    if _arrived:
        raise KeyboardInterrupt if _arrived[0] == signal.SIGINT else _Terminated


def say(message: str) -> None:
    """One line of talk, on stderr; a stderr that is closed or gone is no reason to fail."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write(_printable(message) + "\n")
            sys.stderr.flush()


def wants_progress(enabled: bool | None) -> bool:
    """As asked; if nothing was asked, whether stderr is a terminal that can redraw a line."""
    if enabled is not None:
        return enabled
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def progress(total: int | None, unit: str, enabled: bool | None = None, label: str | None = None) -> Progress:
    """A bar on stderr, if `wants_progress`, with `label` before it. The unit "B" is for bytes, shown in multiples."""
    if not wants_progress(enabled):
        return _Silent()
    from tqdm import tqdm

    terminal = wants_progress(None)
    plain = not terminal or bool(os.environ.get("NO_COLOR"))
    bar: Progress = tqdm(
        total=total,
        desc=label,
        unit=unit if unit == "B" else f" {unit}",
        unit_scale=unit == "B",
        ascii=plain,
        file=sys.stderr,
        mininterval=0.2 if terminal else 5.0,
    )
    return bar


@contextmanager
def quiet_stdout() -> Iterator[BinaryIO]:
    """Yield the real standard output; until the block ends, descriptor 1 itself leads to stderr.

    What native libraries, `print` and child processes write to descriptor 1 meanwhile is talk. For the
    whole process, so not for nested use. Raises OutputError if standard output is closed.
    """
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        os.fstat(2)
    except OSError:
        _to_null(2)  # stderr is closed: nobody wants the talk, and the next descriptor must not get its number
    try:
        private = os.dup(1)
    except OSError as error:
        raise OutputError("standard output is closed; give --output FILE.") from error
    os.dup2(2, 1)
    data = os.fdopen(os.dup(private), "wb")
    try:
        yield data
    except BaseException:
        _give_back(private)
        with suppress(OSError):
            data.close()  # what could not be written then cannot be written now; the first error counts
        raise
    _give_back(private)
    data.close()


def _give_back(private: int) -> None:
    """Descriptor 1 is standard output again; what was printed to it meanwhile is pushed out to stderr first."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        _flush_c()
    finally:
        os.dup2(private, 1)
        os.close(private)


def _flush_c() -> None:
    """Push out what C code printed to its own buffer of stdout, before the descriptor changes again."""
    if os.name == "posix":
        import ctypes

        ctypes.CDLL(None).fflush(None)


def _to_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    if null != descriptor:
        os.close(null)


def _listen() -> None:
    """Turn signals into exceptions. One that the caller ignores, as a shell's `&` and `nohup` do, stays so."""
    _arrived.clear()
    for number in _SIGNALS:
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    sys.unraisablehook = _unraisable


def _listen_no_more() -> None:
    """All work is done or undone, and Ctrl-C could only disturb the way out."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> None:
    _arrived.append(number)
    if len(_arrived) == 1:
        raise KeyboardInterrupt if number == signal.SIGINT else _Terminated
    # The command is tidying up, which must not be broken off. If that hangs, the next signal ends the process.
    signal.signal(number, signal.SIG_DFL)


def _stopped() -> int:
    if _arrived[:1] and _arrived[0] in _ENDING:
        return _BY_SIGNAL + _arrived[0]
    say("interrupted")
    return INTERRUPTED


def _unraisable(found: UnraisableHookArgs) -> None:
    """Raise a signal's exception once more if it was raised where no exception gets out, as in a C callback."""
    if not _arrived or not isinstance(found.exc_value, KeyboardInterrupt | _Terminated):
        sys.__unraisablehook__(found)
    elif hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _raise_again)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)


def _raise_again(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code is _unraisable.__code__:
            return  # from there it would be lost again; the timer comes back
        frame = frame.f_back
    signal.setitimer(signal.ITIMER_REAL, 0)
    raise KeyboardInterrupt if _arrived[0] == signal.SIGINT else _Terminated


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, JinaError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror or error}"
    return str(error)


def _printable(message: str) -> str:
    # File names and texts may hold bytes that no terminal encoding takes.
    encoding = sys.stderr.encoding or "utf-8"
    return message.encode(encoding, "backslashreplace").decode(encoding)
