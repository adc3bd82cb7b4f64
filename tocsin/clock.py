"""The one place where wall time is read, so that a test can hold the clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> datetime:
    """The time of this machine, UTC."""
    return datetime.now(UTC)


def now_ns() -> int:
    """The time of this machine in nanoseconds since the epoch."""
    return time.time_ns()


def from_ns(time_ns: int) -> datetime:
    """A moment given in nanoseconds since the epoch, UTC, to the microsecond."""
    seconds, rest_ns = divmod(time_ns, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest_ns // 1_000)
