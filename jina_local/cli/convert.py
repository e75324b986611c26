"""`convert`: the package `convert`, which turns checkpoints into the files that are run here, as one more command."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ..errors import EngineMissing, UsageError

SUMMARY = "merge, gguf, mlx, verify: from a published checkpoint to files that run here"


def run(args: Sequence[str]) -> int:
    """Do what `python -m convert` does. Raises UsageError if another package of that name is in the way."""
    beside = Path(__file__).resolve().parents[2] / "convert"
    found = importlib.util.find_spec("convert")
    if found is None:
        raise EngineMissing("the package `convert` is not installed: pip install 'jina_local[convert]'.")
    places = [Path(place).resolve() for place in found.submodule_search_locations or [str(found.origin)]]
    if places != [beside]:
        raise UsageError(
            f"{places[0]} is in the way: it is named `convert` as well and is not jina_local's, which belongs at "
            f"{beside}. Rename it, or run the command from another folder."
        )
    return int(importlib.import_module("convert.__main__").main(list(args)))
