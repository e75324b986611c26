"""Child processes that run a module of this package, in frozen apps too.

There `sys.executable` is the app. As Python does, it takes `-m` and a module as its first arguments, because `divert`
runs before the app's own code. Only MODULES are taken, so that nobody can have the app run anything else.
"""

from __future__ import annotations

import os
import sys

from .errors import EngineError

MODULES = frozenset(
    {
        "jina_local",
        "jina_local.backends.worker",
        "jina_local.backends.llama.canary",
        "jina_local.bench.worker",
        "jina_local.doctor.looks",
        "jina_local.search.pdf_text",
    }
)
_diverts = False  # whether `divert` has run in this process


def command(module: str, *arguments: str) -> list[str]:
    """The words that start `python -m module`. Raises EngineError if they would start a frozen app once more."""
    if not sys.executable:
        raise EngineError("no process can be started: this Python has no program of its own.")
    if _frozen() and not (_diverts and module in MODULES):
        raise EngineError(
            f"{sys.executable}: this app cannot run {module} in a process of its own. Build it with PyInstaller, "
            "which finds the hook of jina_local, or call jina_local.children.divert() in its first line."
        )
    return [sys.executable, "-m", module, *arguments]


def same_modules() -> dict[str, str]:
    """The environment variables with which a child finds the modules of this process, if it starts in `/`."""
    # A path that is not a text belongs to an import hook, which no variable can hand on.
    places = [os.path.abspath(place) for place in sys.path if isinstance(place, str)]
    # From Python 3.11, PYTHONSAFEPATH leaves out the folder that a process starts in.
    return {"PYTHONPATH": os.pathsep.join(places), "PYTHONSAFEPATH": "1"}


def divert() -> None:
    """In a frozen app that `command` has started: run the module, and end the process. Otherwise return."""
    global _diverts
    if not _frozen():
        return
    _diverts = True
    if len(sys.argv) > 2 and sys.argv[1] == "-m" and sys.argv[2] in MODULES:
        import runpy
        import traceback

        module = sys.argv[2]
        del sys.argv[1:3]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except Exception:  # as Python says it; a frozen app would go on to other words
            traceback.print_exc()
            sys.exit(1)
        sys.exit()


def _frozen() -> bool:
    return bool(getattr(sys, "frozen", False))
