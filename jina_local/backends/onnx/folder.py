"""A model folder -> the weights of the graph: a published or merged checkpoint, computed in float32."""

from __future__ import annotations

from pathlib import Path

from ...weights.architecture import Architecture
from ...weights.checkpoint import Checkpoint
from .layers import Weight


class PlainFolder:
    """Weights in floating point: published, or merged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = Checkpoint(path)
        self.arch: Architecture = self.checkpoint.arch
        self.stored = self.checkpoint.dtype

    def weights(self, task: str | None) -> dict[str, Weight]:
        """Every tensor in float32. The adapter of `task` is merged in float32, if there is one."""
        return dict(self.checkpoint.merged(task))

    def close(self) -> None:
        """Close the files. Arrays that were read stay."""
        self.checkpoint.close()
