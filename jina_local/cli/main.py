"""The command line: finds the command, hands it its arguments, returns its exit code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

from .. import console

if TYPE_CHECKING:
    import argparse

    from .options import Parser


class _Command(Protocol):
    """What the file of a command has."""

    SUMMARY: str

    def parser(self, add: Callable[[str, str, str], Parser]) -> Any: ...

    def run(self, args: argparse.Namespace) -> int: ...


_COMMANDS = (
    "index", "search", "get", "related", "mcp", "serve", "service", "embed", "rerank", "export", "models", "cache",
    "doctor", "bench",
    "convert",
)  # fmt: skip
_PROG = "jina-local"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 if some items failed; raises JinaError for the rest."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0].startswith("-"):
        return _top(args)
    if args[0] not in _COMMANDS:
        from ..errors import UsageError
        from ..registry import near_match

        near = near_match(args[0], _COMMANDS)
        raise UsageError(f"unknown command {args[0]!r}{near}. Commands: {', '.join(_COMMANDS)}.")
    try:
        if args[0] == "convert":
            from . import convert

            return convert.run(args[1:])
        command = _command(args[0])
        parser = command.parser(_make)
        end = args.index("--") if "--" in args else len(args)
        # What follows `--` is text as it is.
        parsed = parser.parse_intermixed_args(args[1:end])
        if args[end + 1 :]:
            if not hasattr(parsed, "texts"):
                parser.error(f"this command takes no texts after --: {' '.join(args[end + 1 :])}")
            parsed.texts += args[end + 1 :]
        return command.run(parsed)
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else 0


def run() -> NoReturn:
    """The console script."""
    console.run(main)


def _command(name: str) -> _Command:
    """A command's file. It is imported here, so that Ctrl-C during its imports meets the guard of `console.run`."""
    return cast(_Command, importlib.import_module(f".{name}", __package__))


def _make(name: str, summary: str, epilog: str) -> Parser:
    from .options import Parser

    return Parser(f"{_PROG} {name}", summary[0].upper() + summary[1:] + ".", epilog)


def _top(args: list[str]) -> int:
    from .. import __version__
    from ..errors import UsageError
    from .options import Parser

    commands = [(name, importlib.import_module(f".{name}", __package__)) for name in _COMMANDS]
    lines = "".join(f"  {name:<8} {command.SUMMARY}\n" for name, command in commands)
    parser = Parser(
        _PROG,
        "Jina's text models on one machine, offline.",
        f"commands:\n{lines}\n{commands[0][1].EXAMPLES}\n`{_PROG} COMMAND --help` says more.",
    )
    parser.usage = f"{_PROG} COMMAND ..."
    parser.add_argument("--version", action="version", version=f"{_PROG} {__version__}")
    try:
        parser.parse_intermixed_args(args)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    raise UsageError(f"no command was given.\n\n{parser.format_help().rstrip()}")
