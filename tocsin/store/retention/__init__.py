"""
Growth is bounded: by age, by number per group and hour, by size.

A `Run` is a row of small transactions, so that nobody waits for it. Counts (``error_counts``,
``hourly_totals``, a group's own) tell what happened and stay exact when rows go.
"""

from tocsin.store.retention.policy import ERRORS, KEPT_PER_HOUR, OLD_GROUP_AGE, TOTALS_AGE, Policy, Task
from tocsin.store.retention.run import Chunk, Run, begins, count
from tocsin.store.retention.size import file_bytes, free_bytes, used_bytes
from tocsin.store.retention.sqlite_file import LOG_BYTES, compact
from tocsin.store.retention.work import REST_S

__all__ = [
    "ERRORS",
    "KEPT_PER_HOUR",
    "LOG_BYTES",
    "OLD_GROUP_AGE",
    "REST_S",
    "TOTALS_AGE",
    "Chunk",
    "Policy",
    "Run",
    "Task",
    "begins",
    "compact",
    "count",
    "file_bytes",
    "free_bytes",
    "used_bytes",
]
