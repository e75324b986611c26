"""The settings of programs that run coding agents: where each keeps its MCP servers, and ours written into them.

Read in November 2026: code.claude.com/docs/en/mcp (scope "user"), developers.openai.com/codex/mcp,
cursor.com/docs/context/mcp, code.visualstudio.com/docs/copilot/reference/mcp-configuration. Claude Code, Codex and
Cursor start a server in the folder of the project; VS Code does so unless `cwd` says otherwise.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..children import command
from ..errors import OutputError, UsageError

NAME = "jina-local"  # of our server in all of them


@dataclass(frozen=True)
class Client:
    """A program that starts MCP servers."""

    title: str
    file: Callable[[], Path]  # of its user's settings
    key: str  # of the servers in it
    facts: Mapping[str, str]  # of a server, beside command, args and env


def _home(variable: str, otherwise: str) -> Path:
    return Path(os.environ.get(variable) or otherwise).expanduser()


def _of_vscode() -> Path:
    if sys.platform == "darwin":
        return Path("~/Library/Application Support/Code/User/mcp.json").expanduser()
    return _home("XDG_CONFIG_HOME", "~/.config") / "Code" / "User" / "mcp.json"


CLIENTS = {
    "claude-code": Client(
        "Claude Code", lambda: _home("CLAUDE_CONFIG_DIR", "~") / ".claude.json", "mcpServers", {"type": "stdio"}
    ),
    "codex": Client("Codex", lambda: _home("CODEX_HOME", "~/.codex") / "config.toml", "mcp_servers", {}),
    "cursor": Client("Cursor", lambda: Path("~/.cursor/mcp.json").expanduser(), "mcpServers", {}),
    "vscode": Client("VS Code", _of_vscode, "servers", {"type": "stdio"}),
}


@dataclass(frozen=True)
class Change:
    """What an installation did. `before` is the server that had our name, None if there was none."""

    path: Path
    before: Mapping[str, Any] | None
    after: Mapping[str, Any]


def fragment(client: Client, arguments: list[str], environment: Mapping[str, str]) -> str:
    """What belongs into the settings, in their format."""
    server = _server(client, arguments, environment)
    if client.file().suffix == ".toml":
        return _table(client.key, server)
    return json.dumps({client.key: {NAME: server}}, indent=2, ensure_ascii=False) + "\n"


def install(client: Client, arguments: list[str], environment: Mapping[str, str]) -> Change:
    """Write our server into the settings; all else in them stays, and so do further settings of our server.

    Raises UsageError for a file that cannot be read with certainty, which is left as it is; OutputError.
    """
    path = client.file()
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise _refused(path, client, arguments, environment, f"it is not UTF-8: {error}") from error
    toml = path.suffix == ".toml"
    try:
        settings = _parse(text, toml)
        servers = settings.get(client.key, {})
        before = servers.get(NAME)
        after = {**(before or {}), **_server(client, arguments, environment)}
        wanted = {**settings, client.key: {**servers, NAME: after}}
        new = _in_toml(text, client.key, after) if toml else _in_json(text, wanted)
        if _parse(new, toml) != wanted:
            raise ValueError("our server cannot be put in without touching the rest")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _refused(path, client, arguments, environment, str(error)) from error
    if before != after:
        _replace(path, new)
    return Change(path, before, after)


def _server(client: Client, arguments: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    program, *rest = command("jina_local", "mcp", *arguments)
    own: dict[str, Any] = {**client.facts, "command": program, "args": rest}
    return {**own, "env": dict(environment)} if environment else own


def _refused(
    path: Path, client: Client, arguments: list[str], environment: Mapping[str, str], why: str
) -> UsageError:
    return UsageError(
        f"{path}: is left as it is, because {why}. Put this into it yourself:\n\n"
        f"{fragment(client, arguments, environment).rstrip()}"
    )


def _parse(text: str, toml: bool) -> dict[str, Any]:
    """The settings; an empty file has none. Raises ValueError."""
    if not text.strip():
        return {}
    if toml:
        if sys.version_info < (3, 11):
            raise ValueError("Python before 3.11 reads no TOML")
        import tomllib

        return tomllib.loads(text)
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return found


def _in_json(text: str, wanted: Mapping[str, Any]) -> str:
    indent = re.search(r'^([ \t]+)"', text, re.MULTILINE)
    return json.dumps(wanted, indent=indent[1] if indent else 2, ensure_ascii=False) + "\n"


def _in_toml(text: str, key: str, server: Mapping[str, Any]) -> str:
    """The text with our server's table at its end, and without the table that it had."""
    kept, ours = [], False
    header = re.compile(rf"""\s*\[\s*{key}\s*\.\s*["']?{NAME}["']?\s*[.\]]""")
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("["):
            ours = header.match(line) is not None
        if not ours:
            kept.append(line)
    rest = "".join(kept).rstrip()
    return (f"{rest}\n\n" if rest else "") + _table(key, server)


def _table(key: str, server: Mapping[str, Any]) -> str:
    lines = [f"{name} = {_value(value)}\n" for name, value in server.items()]
    return f"[{key}.{NAME}]\n{''.join(lines)}"


def _value(value: object) -> str:
    """A value in TOML. Raises TypeError for dates, which no server needs."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(name)} = {_value(one)}" for name, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _replace(path: Path, text: str) -> None:
    """Give a file another content, at once and with the permissions that it had."""
    target = Path(os.path.realpath(path))
    temp = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o600
        with open(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, target)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}).") from error
    finally:
        with suppress(OSError):
            temp.unlink()
