"""The parser of every command line: its faults are UsageError, and name the word that is close."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from .errors import UsageError
from .registry import near_match


class Parser(argparse.ArgumentParser):
    """Raises faults as UsageError, so that they leave like every other error. Options are not abbreviated."""

    def __init__(self, **words: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **words)

    def refuse(self, word: str, more: str = "") -> NoReturn:
        """Refuse an argument that nobody takes. `more` is said of an option that is like no other."""
        option = word.partition("=")[0]
        if not option.startswith("-"):
            self.error(f"unexpected argument {option!r}")
        known = [name for name in self._option_string_actions if name[:2] == "--"]
        self.error(f"unknown option {option}{near_match(option, known) or more}")

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message}. See `{self.prog} --help`.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += near_match(str(value), [str(choice) for choice in action.choices or ()])
            raise
