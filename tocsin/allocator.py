"""
How the C library keeps memory, for a process that works with bodies of megabytes for months.

Only glibc is told anything; elsewhere all of this does nothing.

Source: mallopt(3), malloc_trim(3).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress

_PARAMETERS = {-8: 2, -3: 256 * 1024, -1: 3 * 2**20}  # M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
_EVERY_S = 1.0


def settle() -> None:
    """
    Keep less.

    Each thread would get up to 64 MiB of its own, which what another thread has freed never returns to; and
    once a body of megabytes was freed, the next would be taken from between the small things.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _PARAMETERS.items():
            mallopt(parameter, value)


def giver_back() -> Callable[[], None]:
    """A function that returns to the system what is free, when it is called; not more often than is worth it."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return lambda: None
    next_at = 0.0

    def give_back() -> None:
        nonlocal next_at
        if time.monotonic() >= next_at:
            trim(0)
            next_at = time.monotonic() + _EVERY_S

    return give_back
