"""The facts that belong to a number: the machine, the versions of all that ran, and the settings."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from typing import Any

from .. import __version__
from ..backends import cpu, machine

# Module -> distribution.
_LIBRARIES = {name: name for name in ("numpy", "tokenizers", "onnxruntime", "torch", "transformers")}
_LIBRARIES |= {"llama_cpp": "llama-cpp-python", "mlx.core": "mlx"}


def of_machine() -> dict[str, Any]:
    """The processor with what it multiplies, cores, memory, system, and how busy it is already."""
    return {
        "cpu": cpu.name(),
        "multiplies": cpu.multiplies(),
        "cores": machine.physical_cores(),
        "memory_gb": round(machine.total_memory() / 1e9, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_1min": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Package -> version, of jina_local, Python, and the libraries that this process has loaded."""
    found = {"jina_local": __version__, "python": platform.python_version()}
    return found | {name: version(name) for module, name in _LIBRARIES.items() if module in sys.modules}
