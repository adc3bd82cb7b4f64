"""What this process holds in memory: numbers only, no object of it."""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from tocsin.exporter import limits

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
    """Bytes that this process may come to use: the least that its control groups allow, else the machine's memory."""
    return limits.lowest()


def reported(row: Mapping[str, Any]) -> dict[str, Figure | float | None]:
    """What an instance has said of its memory last; None for what it has not said."""
    rss, limit, trend = row["memory_bytes"], row["memory_limit_bytes"], row["memory_trend"]
    return {
        "rss": None if rss is None else figure(rss, "resident, as it last reported"),
        "limit": None if limit is None else figure(limit, "at which it is ended, by the lowest limit that it has"),
        "trend": None if trend is None else figure(trend, "growth in an hour, as it has gone in the last minutes"),
        "percent": None if rss is None or not limit else round(rss * 100 / limit, 1),
    }


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
