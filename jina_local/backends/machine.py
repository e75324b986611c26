"""The machine's resources: physical cores, available memory, and how to give memory back."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from pathlib import Path


def physical_cores() -> int:
    """The number of cores, not of hardware threads, in the process's affinity; on Apple silicon performance cores."""
    if platform.system() == "Darwin":
        count = system_number("hw.perflevel0.physicalcpu") or system_number("hw.physicalcpu")
        return count or os.cpu_count() or 1
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(path.read_text().strip() if path.exists() else str(cpu))
    return max(1, len(siblings))


def available_memory() -> int | None:
    """The kernel's estimate of the bytes that can be taken without swapping, or None if it gives none."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def give_back(start: int, length: int) -> None:
    """Tell the system that the whole pages within these bytes are not needed.

    On Linux they read as zeros afterwards and take no memory. macOS may take them if memory is short. On other
    systems, or if the system declines, nothing happens.
    """
    advice = {"Linux": 4, "Darwin": 5}.get(platform.system())  # MADV_DONTNEED; MADV_FREE (sys/mman.h)
    page = mmap.PAGESIZE
    first, last = -(-start // page) * page, (start + length) // page * page
    if advice is not None and last > first:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)


def system_number(name: str) -> int:
    """A number of macOS's sysctl; 0 if it has none of that name."""
    value, size = ctypes.c_int(0), ctypes.c_size_t(4)
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return 0 if failed else value.value


def system_text(name: str) -> str:
    """A text of macOS's sysctl; empty if it has none of that name."""
    size = ctypes.c_size_t(256)
    value = ctypes.create_string_buffer(size.value)
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), value, ctypes.byref(size), None, 0)
    return "" if failed else value.value.decode(errors="replace")


def total_memory() -> int:
    """Bytes of memory that the system has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory() -> int:
    """The most bytes of memory that this process has had at a time, the pages of mapped files included."""
    path = Path("/proc/self/status")
    if path.exists():  # ru_maxrss counts what the parent had before it started this program
        line = next(line for line in path.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024
