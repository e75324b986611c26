"""Weight types by name: which engine reads them, which is preferred, and the file names that carry them."""

from __future__ import annotations

import re
from pathlib import Path

from .. import registry
from ..registry import Published
from ..spec import RERANK

# The first type that is there is used if none is asked for: Q8_0 and 8bit, whose loss is below that of the arithmetic
# of 16-bit engines, then the types that lose less and take more room, then downwards by loss.
GGUF = (
    "Q8_0", "F16", "BF16", "F32", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1",
    "IQ4_NL", "IQ4_XS", "Q4_0", "Q3_K_L", "Q3_K_M", "IQ3_M", "IQ3_S", "Q3_K_S", "IQ3_XS", "IQ3_XXS", "Q2_K",
    "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
)  # fmt: skip
MLX = ("8bit", "16bit", "BF16", "F16", "32bit", "F32", "6bit", "5bit", "4bit")
ONNX = ("INT8", "INT16", "F32", "BF16", "F16", "INT4")
READ_BY = {"llama": GGUF, "mlx": MLX, "onnx": ONNX}
ALL = {label.casefold(): label for label in (*GGUF, *MLX, *ONNX)}  # in any letters -> as files spell it


def rank(label: str, engine: str = "llama") -> int:
    """The place of a label among those that an engine reads; unknown labels come last."""
    order = READ_BY[engine]
    return order.index(label) if label in order else len(order)


def published_name(path: Path) -> tuple[Published, str, str] | None:
    """(row, task, label) if the file has exactly a name that Jina publishes GGUF files by, else None."""
    name = own_name(path)
    return name if name and name[1] != "base" and name[2] != "ADAPTER" else None


def own_name(path: Path) -> tuple[Published, str, str] | None:
    """As `published_name`; of our own names the task of a base is "base", the label of an adapter "ADAPTER"."""
    for row in registry.PUBLISHED:
        tasks = "|".join(map(re.escape, (*row.spec.tasks, "base")))
        pattern = re.escape(row.gguf_file).replace(re.escape("{task}"), f"(?P<task>{tasks})")
        pattern = pattern.replace(re.escape("{type}"), r"(?P<type>[A-Za-z0-9_]+)")
        if match := re.fullmatch(pattern, path.name):
            task, label = match.groupdict().get("task", RERANK), match["type"].upper()
            if not (row.spec.scoring and label == "ADAPTER"):
                return row, task, label
    return None
