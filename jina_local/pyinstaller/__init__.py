"""What PyInstaller needs to know of this package. It asks the entry point `hook-dirs` for this folder."""

from __future__ import annotations

from pathlib import Path


def hook_dirs() -> list[str]:
    """The folder of the hooks."""
    return [str(Path(__file__).parent)]
