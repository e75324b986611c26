"""How many physical cores this process may use."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path


def physical_cores() -> int:
    """Cores, not hardware threads, within the process's affinity; on Apple silicon the performance cores."""
    if platform.system() == "Darwin":
        count = _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu")
        return count or os.cpu_count() or 1
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(path.read_text().strip() if path.exists() else str(cpu))
    return max(1, len(siblings))


def _sysctl(name: str) -> int:
    value, size = ctypes.c_int(0), ctypes.c_size_t(4)
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return 0 if failed else value.value
