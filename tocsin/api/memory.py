"""What this process holds in memory: numbers only, no object of it."""

from __future__ import annotations

import gc
import os
import resource
import sys
from pathlib import Path
from typing import TypedDict

_MB = 1024 * 1024


class Figure(TypedDict):
    """One figure of the memory."""

    bytes: int
    mb: float
    description: str


def figure(size: int, description: str) -> Figure:
    """A size in bytes and in MB, and what it is the size of."""
    return {"bytes": size, "mb": round(size / _MB, 1), "description": description}


def megabytes(size: int) -> str:
    """A size as people read it: ``123 MB``."""
    return f"{round(size / _MB)} MB"


def resident() -> int:
    """Bytes of this process in physical memory."""
    return _statm()[1]


def shared() -> int:
    """Bytes of it that are mapped from files or shared with other processes."""
    return _statm()[2]


def peak() -> int:
    """The most that was resident since the process started."""
    unit = 1 if sys.platform == "darwin" else 1024
    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, resident())


def available() -> int:
    """Bytes that this process may come to use: the container's limit, else the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(int(Path(path).read_text("ascii")), machine)
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return machine


def figures() -> dict[str, Figure]:
    """All figures of this process; takes some ten milliseconds, so not for the event loop."""
    size, in_memory, from_files, data = _statm()
    objects = gc.get_objects()
    held = sum(sys.getsizeof(one, 0) for one in objects)
    return {
        "rss": figure(in_memory, "resident: what this process has in physical memory"),
        "peak": figure(peak(), "the most that was resident since the start"),
        "virtual": figure(size, "address space, mostly not in memory"),
        "data": figure(data, "heap and stacks, private to this process"),
        "shared": figure(from_files, "mapped from files or shared with other processes"),
        "python": figure(held, f"{len(objects)} Python objects that the garbage collector tracks"),
        "total": figure(available(), "the memory of the machine, or the limit of the container"),
    }


def _statm() -> tuple[int, int, int, int]:
    """Size, resident, shared and data, in bytes; on systems without ``/proc`` what is known."""
    try:
        pages = [int(word) for word in Path("/proc/self/statm").read_text("ascii").split()]
    except OSError:
        known = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return known, known, 0, known
    unit = os.sysconf("SC_PAGE_SIZE")
    return pages[0] * unit, pages[1] * unit, pages[2] * unit, pages[5] * unit
