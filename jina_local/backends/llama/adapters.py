"""The adapters of one llama.cpp model: checked first, then loaded once each, and set on contexts."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import EngineError, ModelDamaged
from ...formats import gguf
from ...formats.gguf import Header
from ...spec import NO_TASK
from ...weights.adapters import gguf_file
from ...weights.architecture import Architecture
from .library import Library, clear_log, logged_reason


def check(files: Mapping[str, Path], base: Header, arch: Architecture) -> None:
    """Hold every adapter file against its base, values included. Raises ModelDamaged."""
    if files and arch.xlm_roberta:
        raise ModelDamaged(
            f"{base.path}: llama.cpp ignores an adapter's factors for the table of token types, so {arch.kind} "
            "runs merged on it. Convert again without separate adapters, or use the mlx backend."
        )
    wanted = gguf_file.Base(base.path, base.text(gguf_file.BASE_KEY), arch)
    for task, path in files.items():
        header = gguf.read_header(path)
        gguf_file.check(header, task, wanted)
        gguf_file.check_values(header)


class Adapters:
    """Task -> adapter, in memory. llama.cpp frees them with their model."""

    def __init__(self, lib: Library, model: Any, files: Mapping[str, Path]) -> None:
        """Load them before the model's first context, because its graph needs room for the adapters' nodes."""
        self._api = lib.api
        self._loaded: dict[str, Any] = {}
        for task, path in files.items():
            clear_log()
            self._loaded[task] = self._api.llama_adapter_lora_init(model, os.fsencode(path))
            if not self._loaded[task]:
                raise ModelDamaged(f"{path}: llama.cpp cannot load it: {logged_reason()}.")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have an adapter."""
        return tuple(self._loaded)

    def put_on(self, context: Any, task: str | None) -> None:
        """Let a context run with a task's adapter from its next pass on, or with none for None and NO_TASK.

        Weights are not changed.
        """
        kind = self._api.llama_adapter_lora_p_ctypes
        chosen = [] if task in (None, NO_TASK) else [ctypes.cast(self._loaded[task], kind)]
        # llama.cpp multiplies this with alpha / rank, which it takes from the file.
        scales = (ctypes.c_float * 1)(1.0)
        clear_log()
        if self._api.llama_set_adapters_lora(context, (kind * 1)(*chosen), len(chosen), scales):
            raise EngineError(f"llama.cpp cannot switch to the adapter of {task}: {logged_reason()}.")
