"""The command line: finds the command, hands it its arguments, returns its exit code."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

from .. import __version__, console
from ..errors import UsageError
from . import doctor, embed, models, rerank


class _Command(Protocol):
    """What the file of a command has."""

    SUMMARY: str

    def parser(self, add: Callable[[str, str, str], argparse.ArgumentParser]) -> Any: ...

    def run(self, args: argparse.Namespace) -> int: ...


_COMMANDS: dict[str, _Command] = {"embed": embed, "rerank": rerank, "models": models, "doctor": doctor}
_PROG = "jina-local"


class _Parser(argparse.ArgumentParser):
    """Faults are raised as UsageError, so that they leave like every other error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 where some items failed; raises JinaError for the rest."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0].startswith("-"):
        return _top(args)
    command = _COMMANDS.get(args[0])
    if command is None:
        near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UsageError(f"unknown command {args[0]!r}{hint}. Commands: {', '.join(_COMMANDS)}.")
    parser = command.parser(_make)
    end = args.index("--") if "--" in args else len(args)
    try:
        # Intermixed: texts may stand before, between and after the options; what follows `--` is text as it is.
        parsed = parser.parse_intermixed_args(args[1:end])
        if args[end + 1 :]:
            if not hasattr(parsed, "texts"):
                parser.error(f"unrecognized arguments: {' '.join(args[end:])}")
            parsed.texts += args[end + 1 :]
        return command.run(parsed)
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else 0


def run() -> NoReturn:
    """The console script."""
    console.run(main)


def _make(name: str, summary: str, epilog: str) -> argparse.ArgumentParser:
    return _Parser(
        prog=f"{_PROG} {name}",
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _top(args: list[str]) -> int:
    lines = [f"  {name:<8} {command.SUMMARY}" for name, command in _COMMANDS.items()]
    parser = _Parser(
        prog=_PROG,
        usage=f"{_PROG} COMMAND ...",
        description="Jina's text models on one machine, offline.",
        epilog="commands:\n" + "\n".join(lines) + f"\n\n{embed.EXAMPLES}\n`{_PROG} COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{_PROG} {__version__}")
    try:
        parser.parse_args(args)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    raise UsageError(f"no command was given.\n\n{parser.format_help().rstrip()}")
