"""What may stay, and in which order the rest goes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

KEPT_PER_HOUR = 100
"""Full errors of a group that are kept of each hour: the first ones, and the newest."""

OLD_GROUP_AGE = timedelta(days=90)
"""A group unseen for so long, and its alerts, are history; with a longer retention, that counts."""

TOTALS_AGE = timedelta(days=400)
"""Counts per hour are kept so long: a year can be held against the one before it."""

ON_ITS_WAY = timedelta(hours=1)
"""What was stored so recently stays: its repeats and amendments may come yet, and need its row."""


class Task(StrEnum):
    """What a run does, in this order."""

    AGE = "age"  #         errors older than the retention
    CLOCK = "clock"  #     old errors whose own time lies in the future
    HOURS = "hours"  #     more full errors of a group and hour than are kept
    SIZE = "size"  #       the oldest errors, while the database is too large
    GROUPS = "groups"  #   groups unseen for long, of which no error is left
    COUNTS = "counts"  #   counts per group and hour
    TOTALS = "totals"  #   counts per hour
    ALERTS = "alerts"  #   alerts with their deliveries
    JOBS = "jobs"  #       failed jobs that were dealt with, and more than may wait


ERRORS = (Task.AGE, Task.CLOCK, Task.HOURS, Task.SIZE)
"""The tasks that remove rows of ``error_logs``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What may stay; from the settings of the same names."""

    days: int
    max_db_mb: int | None = None

    @property
    def age(self) -> timedelta:
        return timedelta(days=self.days)

    @property
    def max_bytes(self) -> int | None:
        return None if self.max_db_mb is None else self.max_db_mb * 2**20
