"""The settings that `mcp install` writes: our server goes in, everything else stays."""

from __future__ import annotations

import json
import stat
import sys

import pytest

from jina_local import JinaError
from jina_local.errors import UsageError
from jina_local.integrations import mcp_clients


@pytest.fixture
def user(tmp_path, monkeypatch):
    for name in ("CLAUDE_CONFIG_DIR", "CODEX_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    return tmp_path / "user"


PLACES = {
    "claude-code": ".claude.json",
    "codex": ".codex/config.toml",
    "cursor": ".cursor/mcp.json",
    "vscode": "Library/Application Support/Code/User/mcp.json" if sys.platform == "darwin"
    else ".config/Code/User/mcp.json",
}  # fmt: skip
OTHERS = {
    "claude-code": '{\n    "numStartups": 7,\n    "mcpServers": {"other": {"command": "x"}},\n    "é": [1.5]\n}\n',
    "codex": '# mine\nmodel = "o"  # good\n\n[mcp_servers.other]\ncommand = "x"\n\n[profiles.a]\nb = 1979-05-27\n',
    "cursor": '{"mcpServers": {"other": {"command": "x"}}}',
    "vscode": '{\n\t"inputs": [],\n\t"servers": {\n\t\t"other": {"type": "stdio", "command": "x"}\n\t}\n}\n',
}


def parsed(path):
    if path.suffix == ".toml":
        tomllib = pytest.importorskip("tomllib")
        return tomllib.loads(path.read_text())
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", PLACES)
def test_install_adds_our_server_and_keeps_the_rest(name, user):
    client, path = mcp_clients.CLIENTS[name], user / PLACES[name]
    assert client.file() == path
    path.parent.mkdir(parents=True)
    path.write_text(OTHERS[name])
    path.chmod(0o600)
    before = parsed(path)
    change = mcp_clients.install(client, ["--index", "notes"], {"JINA_LOCAL_HOME": '/a "b" \\ é'})
    assert change.before is None
    after = parsed(path)
    ours = after[client.key].pop("jina-local")
    assert after == before
    assert ours == {
        **client.facts, "command": sys.executable, "args": ["-m", "jina_local", "mcp", "--index", "notes"],
        "env": {"JINA_LOCAL_HOME": '/a "b" \\ é'},
    }  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
    if name == "codex":
        assert path.read_text().startswith(OTHERS[name])
    if name == "vscode":
        assert "\n\t\t" in path.read_text()


@pytest.mark.parametrize("name", PLACES)
def test_install_again_changes_what_is_ours_and_keeps_what_was_added_to_it(name, user):
    client, path = mcp_clients.CLIENTS[name], user / PLACES[name]
    mcp_clients.install(client, [], {})
    text = path.read_text()
    if name == "codex":
        text += "startup_timeout_sec = 30\n\n[mcp_servers.jina-local.tools.search]\non = true\n\n[last]\nx = 1\n"
    else:
        text = text.replace('"command"', '"disabled": true, "command"')
    path.write_text(text)
    change = mcp_clients.install(client, ["--index", "other"], {})
    ours = parsed(path)[client.key]["jina-local"]
    assert change.before is not None
    assert ours == {**change.before, "args": ["-m", "jina_local", "mcp", "--index", "other"]}
    assert ("startup_timeout_sec" if name == "codex" else "disabled") in ours
    if name == "codex":
        assert ours["tools"] == {"search": {"on": True}}
        assert parsed(path)["last"] == {"x": 1}
    stamp = path.stat().st_mtime_ns
    again = mcp_clients.install(client, ["--index", "other"], {})
    assert again.before == again.after
    assert path.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vscode", '{ // mine\n "servers": {} }'),
        ("cursor", '{"mcpServers": ['),
        ("cursor", "[]"),
        ("cursor", '{"mcpServers": []}'),
        ("claude-code", b"\xff\xfe{}"),
        ("codex", "model = \n"),
        ("codex", 'mcp_servers = { other = { command = "x" } }\n'),
    ],
)
def test_a_file_that_is_not_understood_is_left_alone(name, text, user):
    path = user / PLACES[name]
    path.parent.mkdir(parents=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = path.read_bytes()
    with pytest.raises(UsageError, match="is left as it is") as refused:
        mcp_clients.install(mcp_clients.CLIENTS[name], [], {})
    assert "jina-local" in str(refused.value), "the text to put in is there"
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_link_stays_and_its_target_changes(user):
    path = user / PLACES["cursor"]
    path.parent.mkdir(parents=True)
    (user / "dotfiles.json").write_text("{}")
    path.symlink_to(user / "dotfiles.json")
    mcp_clients.install(mcp_clients.CLIENTS["cursor"], [], {})
    assert path.is_symlink()
    assert "jina-local" in parsed(user / "dotfiles.json")["mcpServers"]


def test_a_place_that_cannot_be_written_is_told(user):
    path = user / PLACES["cursor"]
    path.parent.parent.mkdir(parents=True)
    path.parent.write_text("a file where the folder should be")
    with pytest.raises(JinaError, match="cannot be"):
        mcp_clients.install(mcp_clients.CLIENTS["cursor"], [], {})
