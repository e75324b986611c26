"""`mcp`: an index as tools for coding agents, and the settings of the programs that run them."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from .. import console
from ..errors import UsageError
from ..integrations import mcp_clients
from . import options
from .search import opened

SUMMARY = "let coding agents search an index"

EXAMPLES = """examples:
  jina-local mcp install claude-code           # then ask the agent something
  jina-local mcp install codex --index notes
  jina-local mcp install vscode --print
  jina-local mcp --index ~/notes               # what the agent's program starts
"""

_EPILOG = """The server speaks the Model Context Protocol over standard input and output. Its
tools are search, get, related and index_status; answers are kept short. It
brings the index up to date before it answers, and opens no socket.
which index:
  --index, else the one that covers the folder in which the server is started,
  else the only one there is.
exit codes:
  0 done, 2 bad options or settings that cannot be read, 69 the package mcp is not
  installed, 73 cannot write, 130 interrupted.
"""

# Programs start a server with few of the user's variables; these say where indexes and models lie.
PLACES = ("JINA_LOCAL_HOME", "XDG_DATA_HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")


def parser(add: Any) -> options.Parser:
    """The options of `mcp`; `add` makes the parser."""
    p: options.Parser = add("mcp", SUMMARY, _EPILOG)
    p.usage = f"{p.prog} [install CLIENT [--print]] [--index NAME|FOLDER]"
    p.description = f"{p.description}\n\n{EXAMPLES}"
    p.add_argument("action", nargs="?", choices=("install",), help="write the server into a program's settings")
    p.add_argument(
        "client", nargs="?", choices=tuple(mcp_clients.CLIENTS), metavar="CLIENT",
        help=f"one of {', '.join(mcp_clients.CLIENTS)}",
    )  # fmt: skip
    p.add_argument("--index", metavar="NAME|FOLDER", help="the index that answers")
    p.add_argument("--print", action="store_true", help="print what belongs into the settings, and write nothing")
    p.set_defaults(device=None, threads=None, progress=False)
    return p


def run(args: argparse.Namespace) -> int:
    """Serve until the client goes, or install."""
    if args.action is None:
        if args.print:
            raise UsageError("--print goes with `mcp install CLIENT`.")
        from ..integrations import mcp

        console.raise_if_stopped()
        if sys.stdin is not None and sys.stdin.isatty():
            console.say(
                "waiting for an agent's program to speak; `jina-local mcp install CLIENT` lets one start this"
            )
        mcp.serve(lambda: opened(args))
        return console.OK
    if args.client is None:
        raise UsageError(f"mcp install: for which program? Possible: {', '.join(mcp_clients.CLIENTS)}.")
    return _install(args)


def _install(args: argparse.Namespace) -> int:
    from ..search import places

    client = mcp_clients.CLIENTS[args.client]
    arguments = [] if args.index is None else ["--index", places.name_of(places.known(args.index))]
    environment = {
        name: os.path.abspath(os.path.expanduser(os.environ[name])) for name in PLACES if os.environ.get(name)
    }
    if args.print:
        with console.quiet_stdout() as stdout:
            stdout.write(mcp_clients.fragment(client, arguments, environment).encode())
        console.say(f"This belongs into {client.file()}")
        return console.OK
    change = mcp_clients.install(client, arguments, environment)
    if change.before == change.after:
        console.say(f"{change.path}: has the server {mcp_clients.NAME} already; nothing was changed")
        return console.OK
    did = "added" if change.before is None else "replaced"
    console.say(f"{change.path}: {did} the server {mcp_clients.NAME}; all else is as it was")
    for name, value in change.after.items():
        if change.before is None or change.before.get(name) != value:
            console.say(f"  {name}: {value}")
    if args.index is None:
        console.say("Which index answers depends on the folder that the agent works in; --index chooses one.")
    console.say(f"Start {client.title} again to use it.")
    return console.OK
