"""A folder of notes with an index, and a server that answers questions to it, for tests of this folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jina_local.cli import main

NOTES = {
    "router.md": "# Router\n\nIt is in the hall.\n\n## Reset\n\nHold the button on the back for ten seconds.\n",
    "bread.md": "# Bread\n\nFeed the sourdough starter with flour and water every day.\n",
    "code/moon.py": 'def phase(day):\n    """The phase of the moon on a day."""\n    return day % 29.5\n',
}


def indexed(home: Path, *options: str) -> dict[str, str]:
    """Write the notes below a folder and index them, as "notes"; the variables that say where the index lies."""
    for name, text in NOTES.items():
        path = home / "notes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (home / os.fsdecode(b"notes/caf\xe9.txt")).write_text("The caf\u00e9 opens at nine.\n", encoding="utf-8")
    where = {"JINA_LOCAL_HOME": str(home / "data"), "XDG_CACHE_HOME": str(home / "cache")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in where.items():
            patch.setenv(name, value)
        assert main.main(["index", str(home / "notes"), "--model", "pico", *options]) == 0
    return where
