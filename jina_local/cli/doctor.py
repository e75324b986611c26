"""`doctor`: the findings as a table or as JSON."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from .. import console

SUMMARY = "what is installed, how fast it is, which model would be loaded"

_EPILOG = """examples:
  jina-local doctor
  jina-local doctor --json | jq '.[] | select(.ok == false)'

Marks: "ok" all is well, "--" it works but could be better, "!!" it does not work. Opens no socket.
exit codes: 0 nothing is broken, 1 something is.
"""


def parser(add: Any) -> argparse.ArgumentParser:
    """The options of `doctor`."""
    p: argparse.ArgumentParser = add("doctor", SUMMARY, _EPILOG)
    p.add_argument("--json", action="store_true", help="a list of {label, ok, detail, next_step}")
    return p


def run(args: argparse.Namespace) -> int:
    """Print every check. Returns 1 if one failed."""
    from .. import doctor

    with console.quiet_stdout() as stdout:
        found = doctor.checks()
        if args.json:
            text = json.dumps([asdict(check) for check in found], indent=1) + "\n"
        else:
            text = "".join(_row(check.label, check.ok, check.detail, check.next_step) for check in found)
        stdout.write(text.encode())
    return console.SOME_FAILED if any(check.ok is False for check in found) else console.OK


def _row(label: str, ok: bool | None, detail: str, next_step: str | None) -> str:
    mark = {True: "ok", None: "--", False: "!!"}[ok]
    step = f"\n   {'':<18} -> {next_step}" if next_step else ""
    return f"{mark} {label:<18} {detail}{step}\n"
