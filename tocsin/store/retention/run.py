"""
One time through all tasks, in small transactions, and what it would come to.

Each transaction stops after `BUDGET_S`, and whoever drives it rests between two for at least as long as
one took. What a transaction did stays; a run that was cut off is begun anew.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, exists, func, not_, select

from tocsin.store import jobs, schema
from tocsin.store.leases import database_now
from tocsin.store.retention.history import KEPT, is_last_alert, old_alerts, old_counts, old_groups, old_jobs, old_totals
from tocsin.store.retention.hours import by_hours, count_by_hours
from tocsin.store.retention.policy import ERRORS, OLD_GROUP_AGE, TOTALS_AGE, Policy, Task
from tocsin.store.retention.rows import CLOCKS_APART, by_age, by_clock, made_at, too_old
from tocsin.store.retention.size import by_size, count_by_size
from tocsin.store.retention.sqlite_file import is_log_long, prepare
from tocsin.store.retention.work import Done, Pace, Work, remember
from tocsin.store.schema import alerts, counters, error_counts, error_groups, error_logs, hourly_totals

GRACE = timedelta(days=1)
"""So long a server leaves alone what was there before it came: time to choose another retention."""

_BEGINS = "retention: begins"
_WAITED = "retention: waited"


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one transaction has done; it counts when it is committed."""

    task: Task
    removed: int  #      rows; in SIZE too
    at: Any  #           where the task goes on; None: it is done
    is_held_up: bool = False  # it did nothing, since SQLite's log is long; worth another try in a second


class Run:
    """
    One time through all tasks.

    Args:
        policy: what may stay.
        tasks: do only these.
    """

    def __init__(self, policy: Policy, tasks: Sequence[Task] = tuple(Task)) -> None:
        self._policy = policy
        self._tasks = list(tasks)
        self._pace = Pace()
        self._at: Any = None
        self.removed: Counter[Task] = Counter()

    @property
    def task(self) -> Task | None:
        """What is being done; None: all is done."""
        return self._tasks[0] if self._tasks else None

    def chunk(self, connection: Connection, now: datetime | None = None) -> Chunk:
        """
        Do some of it in this transaction; when that is committed, `note` the result.

        Args:
            now: by default the database's time; a server whose clock is ahead must not remove what is young.
        """
        task = self._tasks[0]
        if connection.dialect.name == "sqlite":
            prepare(connection)
            if is_log_long(connection):
                # The log becomes short when somebody writes who finds nobody reading in it.
                remember(connection, _WAITED, time.time_ns())  # another value each time, or nothing is written
                return Chunk(task, 0, self._at, is_held_up=True)
        work = Work(connection, self._policy, now or database_now(connection), self._at, self._pace)
        removed, at = _DOES[task](work)
        return Chunk(task, removed, at)

    def note(self, chunk: Chunk) -> None:
        """Go on from where a committed transaction ended."""
        if chunk.is_held_up:
            return
        self.removed[chunk.task] += chunk.removed
        self._at = chunk.at
        if chunk.at is None:
            self._tasks.pop(0)


_DOES: dict[Task, Callable[[Work], Done]] = {
    Task.AGE: by_age,
    Task.CLOCK: by_clock,
    Task.HOURS: by_hours,
    Task.SIZE: by_size,
    Task.GROUPS: old_groups,
    Task.COUNTS: old_counts,
    Task.TOTALS: old_totals,
    Task.ALERTS: old_alerts,
    Task.JOBS: old_jobs,
}


def begins(connection: Connection, policy: Policy, now: datetime | None = None) -> datetime:
    """
    From when on a server may remove errors, by the database's time.

    Where the first server finds errors older than the retention, such as those of an adopted table, it
    is `GRACE` later: nobody shall lose by a default what they have kept for years.
    """
    now = now or database_now(connection)
    name = counters.c.name == _BEGINS
    moment = connection.execute(select(counters.c.value).where(name)).scalar()
    if moment is None:
        oldest = connection.execute(select(func.min(error_logs.c.timestamp))).scalar()
        moment = (now + GRACE if oldest is not None and oldest < now - policy.age else now).timestamp()
        remember(connection, _BEGINS, int(moment))
    return datetime.fromtimestamp(int(moment), UTC)


def count(connection: Connection, policy: Policy, now: datetime | None = None) -> Counter[Task]:
    """
    How many rows a run would remove, about: for who wants to know before, or how far a run has come.

    It reads all that would go; give it a store that waits.
    """
    now = now or database_now(connection)
    oldest, history = now - policy.age, now - max(OLD_GROUP_AGE, policy.age)

    def number(table: Table, *conditions: ColumnElement[bool]) -> int:
        return int(connection.execute(select(func.count()).select_from(table).where(*conditions)).scalar_one())

    is_future = error_logs.c.timestamp > now + CLOCKS_APART
    unknown = select(error_logs.c.id).where(is_future, error_logs.c.created_at.is_(None))
    beyond = jobs.is_beyond(connection)
    found = Counter(
        {
            Task.AGE: number(error_logs, *too_old(now, policy)),
            Task.CLOCK: number(error_logs, is_future, error_logs.c.created_at < oldest)
            + sum(made_at(error_id, now) < oldest for error_id in connection.execute(unknown).scalars()),
            Task.HOURS: count_by_hours(connection, policy, now),
            Task.GROUPS: number(
                error_groups,
                error_groups.c.last_seen < history,
                error_groups.c.status.not_in(KEPT),
                error_groups.c.mark.is_(None),
                ~exists().where(error_logs.c.group_id == error_groups.c.id, not_(and_(*too_old(now, policy)))),
            ),
            Task.COUNTS: number(error_counts, error_counts.c.hour < now - TOTALS_AGE),
            Task.TOTALS: number(hourly_totals, hourly_totals.c.hour < now - TOTALS_AGE),
            Task.ALERTS: number(alerts, alerts.c.created_at < history, ~is_last_alert()),
            Task.JOBS: number(schema.jobs, jobs.is_over(oldest))
            + (0 if beyond is None else number(schema.jobs, beyond)),
        }
    )
    if policy.max_bytes is not None:
        found[Task.SIZE] = count_by_size(connection, policy.max_bytes, sum(found[task] for task in ERRORS))
    return found
