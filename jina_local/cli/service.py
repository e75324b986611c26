"""`service`: `serve` as a service of your session: a launchd agent on macOS, a systemd user unit on Linux."""

from __future__ import annotations

import argparse
import os
import plistlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import children, console
from ..errors import OutputError, UsageError
from ..records import output
from . import options, serve
from .mcp import PLACES

SUMMARY = "let the system start `serve` when you log in"

EXAMPLES = """examples:
  jina-local service install --model pico --index notes
  jina-local service install --print                        # and write nothing
  jina-local service install --print --kind launchd
  jina-local service remove
"""

_EPILOG = """install writes one file, says which, and which command starts the service; it
starts nothing itself. The options are those of `serve`, whose help explains
them; paths are made absolute. Variables of this shell do not reach a service:
give options in place of JINA_LOCAL_... Those that say where models and indexes
lie are written into the file. A key is never: use --api-key-file.
exit codes:
  0 done, 1 there was nothing to remove, 2 bad options, 73 cannot write.
"""

NAME = "jina-local"  # of the systemd unit
_LABEL = "local.jina-local.serve"  # of the launchd agent
_KINDS = ("launchd", "systemd")
_FOR_GOOD = (2, 3, 69)  # exit codes of `serve` after which another start would end the same way
_STOPPING = 45  # seconds; a server that is told to end answers what it has begun


def parser(add: Any) -> options.Parser:
    """The options of `service`: its own, and those of `serve`."""
    p = serve.parser(lambda _name, _summary, _epilog: add("service", SUMMARY, _EPILOG))
    p.usage = f"{p.prog} install|remove [--print] [options of serve]"
    p.description = f"{SUMMARY[0].upper() + SUMMARY[1:]}.\n\n{EXAMPLES}"
    p.add_argument("action", choices=("install", "remove"), help="write the file, or delete it")
    g = p.add_argument_group("service")
    g.add_argument("--print", action="store_true", help="print the file, and write nothing")
    g.add_argument("--kind", choices=_KINDS, help="of file, for --print (default: this system's)")
    return p


def run(args: argparse.Namespace) -> int:
    """Write, print or delete the file."""
    own = "launchd" if sys.platform == "darwin" else "systemd"
    kind = args.kind or own
    if args.print and args.action == "remove":
        raise UsageError("--print goes with `service install`.")
    if kind != own and not args.print:
        raise UsageError(f"--kind {kind}: this system has {own}; --print prints the file of another.")
    path = _path(kind)
    given = _options(args)
    if args.action == "remove":
        if given:
            raise UsageError(f"{given[0]}: `service remove` takes no options of serve.")
        return _remove(kind, path)
    serve.check(args)
    text = _text(kind, children.command("jina_local", "serve", *given))
    if args.print:
        with console.quiet_stdout() as stdout:
            stdout.write(text)
        console.say(f"This belongs into {path}")
        return console.OK
    if os.environ.get("JINA_LOCAL_API_KEY"):
        raise UsageError("JINA_LOCAL_API_KEY does not reach a service: put the key into a file, for --api-key-file.")
    return _install(kind, path, text)


def _install(kind: str, path: Path, text: bytes) -> int:
    before = path.read_bytes() if path.exists() else None
    if before == text:
        console.say(f"{path}: is as it has to be; nothing was written")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        with console.quiet_stdout() as stdout, output.destination(str(path), stdout) as file:
            file.write(text)
        console.say(f"{path}: {'written' if before is None else 'replaced'}")
    for word, command in _commands(kind, path, running=before is not None).items():
        console.say(f"{word}: {command}")
    return console.OK


def _remove(kind: str, path: Path) -> int:
    if not path.exists():
        console.say(f"{path}: there is no service")
        return console.SOME_FAILED
    try:
        path.unlink()
    except OSError as error:
        raise OutputError(f"{path}: cannot be removed: {error.strerror}.") from error
    console.say(f"{path}: removed")
    console.say(f"If it runs, stop it: {_commands(kind, path, running=True)['stop it']}")
    return console.OK


def _commands(kind: str, path: Path, running: bool) -> Mapping[str, str]:
    """What a user types to start, stop and watch the service."""
    if kind == "systemd":
        again = f"systemctl --user restart {NAME}"
        return {
            "start it": "systemctl --user daemon-reload && "
            + (again if running else f"systemctl --user enable --now {NAME}"),
            "stop it": f"systemctl --user disable --now {NAME}",
            "its log": f"journalctl --user -u {NAME}",
            "start it without a login": "loginctl enable-linger",
        }
    domain = f"gui/{os.getuid()}"
    stop = f"launchctl bootout {domain}/{_LABEL}"
    return {
        "start it": (f"{stop}; " if running else "") + f"launchctl bootstrap {domain} {shlex.quote(str(path))}",
        "stop it": stop,
        "its log": str(_log()),
    }


def _path(kind: str) -> Path:
    """Where the system looks for it."""
    if kind == "launchd":
        return Path("~/Library/LaunchAgents").expanduser() / f"{_LABEL}.plist"
    home = os.environ.get("XDG_CONFIG_HOME")
    config = Path(home) if home and os.path.isabs(home) else Path("~/.config").expanduser()
    return config / "systemd" / "user" / f"{NAME}.service"


def _log() -> Path:
    return Path("~/Library/Logs/jina-local.log").expanduser()


def _options(args: argparse.Namespace) -> list[str]:
    """The options of `serve` that were given, as they stand in a command that is started elsewhere."""
    made: list[str] = []
    for name, value in vars(args).items():
        if name in ("action", "print", "kind", "progress") or value is None or value is False:
            continue
        option = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            made += [option] if one is True else [option, _anywhere(name, str(one))]
    return made


def _anywhere(name: str, value: str) -> str:
    """The value of an option as it is understood in any folder."""
    if name == "index":
        from ..search import places

        return places.name_of(places.known(value))
    is_path = name in ("uds", "api_key_file") or (
        name in ("model", "rerank_model") and os.path.lexists(os.path.expanduser(value))
    )
    return os.path.abspath(os.path.expanduser(value)) if is_path else value


def _environment() -> dict[str, str]:
    return {name: os.path.abspath(os.path.expanduser(os.environ[name])) for name in PLACES if os.environ.get(name)}


def _text(kind: str, command: Sequence[str]) -> bytes:
    for word in (*command, *_environment().values()):
        if any(ord(letter) < 32 for letter in word):
            raise UsageError(f"{word!r}: has control characters, which do not belong into the file of a service.")
    return _plist(command) if kind == "launchd" else _unit(command).encode()


def _plist(command: Sequence[str]) -> bytes:
    """launchd.plist(5)."""
    facts: dict[str, Any] = {
        "Label": _LABEL,
        "ProgramArguments": list(command),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 30,
        "ExitTimeOut": _STOPPING,
        "StandardErrorPath": str(_log()),
    }
    if environment := _environment():
        facts["EnvironmentVariables"] = environment
    return plistlib.dumps(facts, sort_keys=False)


def _unit(command: Sequence[str]) -> str:
    """systemd.service(5). The colon before the program leaves its dollar signs, and those of all arguments, alone."""
    environment = "".join(f"Environment={_quoted_for_unit(f'{k}={v}')}\n" for k, v in _environment().items())
    codes = " ".join(map(str, _FOR_GOOD))
    return f"""[Unit]
Description=jina_local, text models over HTTP

[Service]
ExecStart=:{" ".join(map(_quoted_for_unit, command))}
{environment}Restart=on-failure
RestartSec=5
RestartPreventExitStatus={codes}
TimeoutStopSec={_STOPPING}

[Install]
WantedBy=default.target
"""


def _quoted_for_unit(word: str) -> str:
    """A word of a unit, as systemd.syntax(7) quotes it, without specifiers."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
