"""A trained checkpoint -> what the package carries: `python -m convert.pico.bundle CHECKPOINT`.

jina_local/bundled_models/pico/ holds the checkpoint in the published layout (MLX and the converters read it), a Q8_0
base with its adapters (llama.cpp), the model card, and the digests of them all. The card is kept as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from convert import source
from convert.gguf.files import to_gguf
from convert.verify import probes
from jina_local.formats.files import sha256
from jina_local.store import package
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights.checkpoint import Checkpoint

from .export import TASKS

ROOT = Path(__file__).parents[2] / "jina_local" / "bundled_models" / "pico"
_LARGEST = 24_000_000  # bytes for both engines together


def bundle(checkpoint: Path, root: Path) -> int:
    """Write both forms below `root`; the size of all files in bytes."""
    for name in ("checkpoint", "gguf"):
        shutil.rmtree(root / name, ignore_errors=True)
    shutil.copytree(checkpoint, root / "checkpoint")
    to_gguf(root / "checkpoint", root / "gguf", tasks=TASKS, types=["Q8_0"], separate=True, source_name="pico")
    with Checkpoint(root / "checkpoint") as opened:
        tokenizer = Tokenizer.from_file(root / "checkpoint" / "tokenizer.json")
        entries: dict[Path, tuple[str | None, str | None]] = {
            root / "checkpoint" / "adapters" / task: (task, None) for task in TASKS
        }
        entries[root / "checkpoint" / "model.safetensors"] = (None, "F16")
        known = probes.of_files(entries, opened, source.narrowed(opened, TASKS), tokenizer)
    numbers = {task: of_label["F16"] for task, of_label in known.items()}
    (root / package.PROBES).write_text(json.dumps(numbers) + "\n", encoding="utf-8")
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != "digests.json")
    digests = {path.relative_to(root).as_posix(): sha256(path) for path in files}
    (root / "digests.json").write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
    total = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    if total >= _LARGEST:
        raise SystemExit(f"{root}: {total:,} bytes; the package carries less than {_LARGEST:,}")
    return total


def main() -> None:
    """Build it in this checkout."""
    parser = argparse.ArgumentParser(
        prog="python -m convert.pico.bundle", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("checkpoint", type=Path)
    args = parser.parse_args()
    print(f"{ROOT}: {bundle(args.checkpoint, ROOT):,} bytes")


if __name__ == "__main__":
    main()
