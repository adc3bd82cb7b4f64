"""
Growth is bounded: by age, by number per group and hour, by size.

A `Run` is a row of small transactions, so that nobody waits for it: each stops after `BUDGET_S`, and
whoever drives it rests between two for at least as long as one took. What a transaction did stays; a
run that was cut off is begun anew. Counts (``error_counts``, ``hourly_totals``, a group's own) tell
what happened and stay exact when rows go.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Select,
    Table,
    and_,
    delete,
    exists,
    func,
    literal,
    not_,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from tocsin.failures import StoreAway
from tocsin.lifecycle import Status
from tocsin.store.leases import database_now
from tocsin.store.schema import (
    SCHEMA,
    Id,
    UtcTime,
    alerts,
    counters,
    deliveries,
    error_counts,
    error_groups,
    error_logs,
    hourly_totals,
)

KEPT_PER_HOUR = 100
"""Full errors of a group that are kept of each hour: the first ones, and the newest."""

BUDGET_S = 0.02
"""A transaction looks for more to do only while it is younger than this."""

REST_S = 0.02
"""The least pause between two transactions."""

OLD_GROUP_AGE = timedelta(days=90)
"""A group unseen for so long, and its alerts, are history; with a longer retention, that counts."""

TOTALS_AGE = timedelta(days=400)
"""Counts per hour are kept so long: a year can be held against the one before it."""

GRACE = timedelta(days=1)
"""So long a server leaves alone what was there before it came: time to choose another retention."""

ON_ITS_WAY = timedelta(hours=1)
"""What was stored so recently stays: its repeats and amendments may come yet, and need its row."""

LATE = timedelta(days=3)
"""An outage of so long is looked for, when it fills hours that were looked at before."""

LOG_BYTES = 64 * 2**20
"""SQLite's log is let grow to this; then a run waits for whoever reads in it."""

_ON_ITS_WAY_WHEN_FULL = timedelta(minutes=2)
_MARGIN = 0.95  #         how far below the limit a run goes, so that the next one need not follow at once
_CLOCKS_APART = timedelta(days=1)
_ROWS_PER_LOOK = 100  #   how many rows of SQLite go before its size is looked at again
_GROUPS_AT_ONCE = 50
_SAMPLED_PAGES = 2000
_INDEXED_BYTES = 360  #   what a row takes on PostgreSQL besides its values: its header, its place in each index
_LOOKED_UNTIL = "retention: hours"
_BEGINS = "retention: begins"
_WAITED = "retention: waited"

_OPEN = (Status.OPEN, Status.ACKNOWLEDGED, Status.MUTED)
_KEPT = (Status.IGNORED, Status.MUTED)

_Place = tuple[datetime, str]
_OF_ROWS = select(error_logs.c.timestamp, error_logs.c.id)
_OLDEST_FIRST = (error_logs.c.timestamp, error_logs.c.id)


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
        self._pace = _Pace()
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
            _prepare_sqlite(connection)
            if _is_log_long(connection):
                # The log becomes short when somebody writes who finds nobody reading in it.
                _remember(connection, _WAITED, time.time_ns())  # another value each time, or nothing is written
                return Chunk(task, 0, self._at, is_held_up=True)
        work = _Work(connection, self._policy, now or database_now(connection), self._at, self._pace)
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


class _Pace:
    """
    How many rows a statement may take: as many as it does within a quarter of a budget.

    It cannot be stopped halfway, and what a row costs differs a hundred times between disks and tables.
    """

    FEWEST = 25
    MOST = 400

    def __init__(self) -> None:
        self.rows = self.FEWEST

    def took(self, rows: int, seconds: float) -> None:
        """Learn from a statement that took so many rows."""
        if seconds > BUDGET_S / 2:
            self.rows = max(self.rows // 2, self.FEWEST)
        elif rows == self.rows and seconds < BUDGET_S / 8:
            self.rows = min(self.rows * 2, self.MOST)


class _Work:
    """What a transaction has to know, and how long it may go on."""

    def __init__(self, connection: Connection, policy: Policy, now: datetime, at: Any, pace: _Pace) -> None:
        self.connection = connection
        self.policy = policy
        self.now = now
        self.at = at
        self.pace = pace
        self._until = time.monotonic() + BUDGET_S

    @property
    def has_time(self) -> bool:
        return time.monotonic() < self._until

    @property
    def oldest(self) -> datetime:
        """What happened before this goes."""
        return self.now - self.policy.age

    @property
    def history(self) -> datetime:
        """What of groups and alerts is older than this goes."""
        return self.now - max(OLD_GROUP_AGE, self.policy.age)


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
        _remember(connection, _BEGINS, int(moment))
    return datetime.fromtimestamp(int(moment), UTC)


_Done = tuple[int, Any]  # rows removed, and where to go on


# Rows of error_logs.


def _is_settled(now: datetime, after: timedelta = ON_ITS_WAY) -> ColumnElement[bool]:
    """Whether nothing that belongs to a row can be on its way any more."""
    return or_(error_logs.c.created_at.is_(None), error_logs.c.created_at < now - after)


def _remove_oldest(
    work: _Work, query: Select[Any], at: _Place | None, at_most: int = 2**31
) -> tuple[int, _Place | None]:
    """
    Remove the first rows of a query, oldest first; how many, and the last one's place (None: there are no more).

    It goes on from a place and not from the start: on PostgreSQL what is removed stands in the index until
    a vacuum, and would be walked over again each time. Rows that somebody else holds are left for the next run.
    """
    if at is not None:
        query = query.where(_is_after(at))
    number, began = min(work.pace.rows, at_most), time.monotonic()
    query = query.order_by(*_OLDEST_FIRST).limit(number)
    rows = work.connection.execute(query.with_for_update(of=error_logs, skip_locked=True)).all()
    removed = _remove(work.connection, [row.id for row in rows])
    work.pace.took(len(rows), time.monotonic() - began)
    return removed, (rows[-1].timestamp, rows[-1].id) if len(rows) == number else None


def _is_after(at: _Place) -> ColumnElement[bool]:
    return tuple_(error_logs.c.timestamp, error_logs.c.id) > _place(at)


def _place(at: _Place) -> ColumnElement[Any]:
    return tuple_(literal(at[0], UtcTime), literal(at[1], Id))


def _by_age(work: _Work) -> _Done:
    return _oldest_while_time(work, _OF_ROWS.where(*_too_old(work.now, work.policy)))


def _too_old(now: datetime, policy: Policy) -> tuple[ColumnElement[bool], ...]:
    return error_logs.c.timestamp < now - policy.age, _is_settled(now)


def _oldest_while_time(work: _Work, query: Select[Any]) -> _Done:
    removed, at = _remove_oldest(work, query, work.at)
    while at is not None and work.has_time:
        more, at = _remove_oldest(work, query, at)
        removed += more
    return removed, at


def _by_clock(work: _Work) -> _Done:
    """A row that claims to come from the future is as old as its stay here, or as its id says."""
    query = select(error_logs.c.timestamp, error_logs.c.id, error_logs.c.created_at).where(
        error_logs.c.timestamp > work.now + _CLOCKS_APART
    )
    if work.at is not None:
        query = query.where(_is_after(work.at))
    rows = work.connection.execute(query.order_by(*_OLDEST_FIRST).limit(work.pace.rows)).all()
    old = [row.id for row in rows if (row.created_at or _made_at(row.id, work.now)) < work.oldest]
    removed = _remove(work.connection, old)
    return removed, (rows[-1].timestamp, rows[-1].id) if len(rows) == work.pace.rows else None


def _made_at(error_id: str, otherwise: datetime) -> datetime:
    """When a UUIDv7 was made; another kind of id tells nothing."""
    value = UUID(error_id)
    if value.version != 7:
        return otherwise
    return min(datetime.fromtimestamp((value.int >> 80) / 1000, UTC), otherwise)


def _remove(connection: Connection, error_ids: Sequence[str]) -> int:
    if not error_ids:
        return 0
    return connection.execute(delete(error_logs).where(error_logs.c.id.in_(error_ids))).rowcount


# At most so many of each group and hour.


@dataclass(frozen=True, slots=True)
class _Hours:
    """How far the hours of groups were looked at."""

    since: datetime
    until: datetime
    after: str = ""  #                               the last group whose hours were looked for
    crowded: tuple[tuple[str, datetime], ...] = ()  # what is to be looked at next, in order of groups


def _by_hours(work: _Work) -> _Done:
    at: _Hours = work.at or _hours_to_look_at(work.connection, work.policy, work.now)
    removed = 0
    while work.has_time:
        if at.crowded:
            more, is_done = _thin_out(work, *at.crowded[0])
            removed += more
            at = replace(at, crowded=at.crowded[1:] if is_done else at.crowded)
            continue
        group_ids, after = _groups_seen(work.connection, at)
        if after is None:
            _remember(work.connection, _LOOKED_UNTIL, int(at.until.timestamp()))
            return removed, None
        at = replace(at, after=after, crowded=tuple(_crowded(work.connection, group_ids, at)))
    return removed, at


def _hours_to_look_at(connection: Connection, policy: Policy, now: datetime) -> _Hours:
    """
    The hours that ended since the last look, and some before that, for what came late.

    Of error_counts only these are read, group by group: it has no order by hour.
    """
    looked = connection.execute(select(counters.c.value).where(counters.c.name == _LOOKED_UNTIL)).scalar()
    since = now - policy.age
    if looked is not None:
        since = max(since, min(datetime.fromtimestamp(looked, UTC), now) - LATE)
    # A row is thinned out when its hour is over for as long as something may be on its way.
    return _Hours(since=_hour(since), until=_hour(now - ON_ITS_WAY))


def _groups_seen(connection: Connection, at: _Hours) -> tuple[list[str], str | None]:
    """Some groups that may have been seen in these hours, and the last one looked at; None: there are no more."""
    groups = select(error_groups.c.id, error_groups.c.last_seen).where(error_groups.c.id > at.after)
    rows = connection.execute(groups.order_by(error_groups.c.id).limit(_GROUPS_AT_ONCE)).all()
    return [row.id for row in rows if row.last_seen >= at.since], rows[-1].id if rows else None


def _crowded(connection: Connection, group_ids: Sequence[str], at: _Hours) -> Iterator[tuple[str, datetime]]:
    """Groups and hours with more errors than are kept; they need not all have rows."""
    if not group_ids:
        return
    counts = error_counts.c
    query = select(counts.group_id, counts.hour).where(
        counts.group_id.in_(group_ids),
        counts.hour >= at.since,
        counts.hour < at.until,
        counts.count > KEPT_PER_HOUR,
    )
    for row in connection.execute(query.order_by(counts.group_id, counts.hour)):
        yield row.group_id, row.hour


def _thin_out(work: _Work, group_id: str, hour: datetime) -> tuple[int, bool]:
    """
    Remove some of what is too much in a group's hour; how many rows, and whether that was all.

    What they counted goes to a neighbour that stays, on the same side of a resolve: a group's rows go on
    adding up. The group is held meanwhile, as whoever counts repeats does.
    """
    spared = _spared(work.connection, group_id, hour)
    if spared is None:
        return 0, True
    columns, (first, last) = error_logs.c, spared
    too_many = select(columns.id, columns.timestamp, columns.count.label("errors")).where(
        *_between(group_id, first, last),
        _is_settled(work.now),
        ~exists().where(error_groups.c.id == group_id, error_groups.c.last_error_id == columns.id),
    )
    query = too_many.order_by(*_OLDEST_FIRST).limit(work.pace.rows)
    if work.connection.execute(query.limit(1)).first() is None:
        return 0, True
    held = select(error_groups.c.resolved_at).where(error_groups.c.id == group_id).with_for_update()
    resolved_at = work.connection.execute(held).scalar()
    removed = 0
    while True:
        rows = work.connection.execute(query).all()
        counts: Counter[str] = Counter()
        for row in rows:
            is_before = resolved_at is not None and row.timestamp <= resolved_at
            counts[first[1] if is_before else last[1]] += row.errors
        for error_id, count in sorted(counts.items()):
            _add_to(work.connection, error_id, count)
        removed += _remove(work.connection, [row.id for row in rows])
        if len(rows) < work.pace.rows or not work.has_time:
            return removed, len(rows) < work.pace.rows


def _spared(connection: Connection, group_id: str, hour: datetime) -> tuple[_Place, _Place] | None:
    """The last of the first errors that are kept, and the newest; None when there are not so many."""
    columns = error_logs.c
    in_hour = select(columns.timestamp, columns.id).where(
        columns.group_id == group_id, columns.timestamp >= hour, columns.timestamp < hour + timedelta(hours=1)
    )
    first = connection.execute(in_hour.order_by(*_OLDEST_FIRST).offset(KEPT_PER_HOUR - 2).limit(1)).first()
    last = connection.execute(in_hour.order_by(columns.timestamp.desc(), columns.id.desc()).limit(1)).first()
    if first is None or last is None:
        return None
    return (first.timestamp, first.id), (last.timestamp, last.id)


def _between(group_id: str, first: _Place, last: _Place) -> tuple[ColumnElement[bool], ...]:
    return (
        error_logs.c.group_id == group_id,
        _is_after(first),
        tuple_(error_logs.c.timestamp, error_logs.c.id) < _place(last),
    )


def _add_to(connection: Connection, error_id: str, count: int) -> None:
    is_it = error_logs.c.id == error_id
    before = connection.execute(select(error_logs.c.count).where(is_it)).scalar()
    if before is not None:  # it may have become too old this moment
        most = 2**31 - 1  # that the column holds
        connection.execute(update(error_logs).where(is_it).values(count=min(before + count, most)))


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def _remember(connection: Connection, name: str, value: int) -> None:
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(counters).values(name=name, value=value)
    connection.execute(
        statement.on_conflict_do_update(index_elements=[counters.c.name], set_={"value": statement.excluded.value})
    )


# By size.


def used_bytes(connection: Connection) -> int:
    """
    How much the tables hold, in bytes; about, on PostgreSQL.

    Space that became free and was not given back does not count: what comes next fills it.
    """
    if connection.dialect.name == "sqlite":
        pages, free, size = _pragmas(connection, "page_count", "freelist_count", "page_size")
        return (pages - free) * size
    rows, row_bytes = _sampled(connection)
    errors, others = _on_disk(connection)
    return min(round(rows * row_bytes), errors) + others


def file_bytes(connection: Connection) -> int:
    """How much the tables take on disk, in bytes."""
    if connection.dialect.name == "sqlite":
        pages, size = _pragmas(connection, "page_count", "page_size")
        return pages * size
    return sum(_on_disk(connection))


def _pragmas(connection: Connection, *names: str) -> list[int]:
    return [int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()) for name in names]


def _on_disk(connection: Connection) -> tuple[int, int]:
    """What error_logs takes on PostgreSQL, and what all other tables take, with their indexes."""
    errors = connection.execute(text("SELECT pg_total_relation_size('error_logs')")).scalar_one()
    others = text(
        "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema AND c.relkind IN ('r', 'p')"
    )
    return int(errors), int(connection.execute(others, {"schema": SCHEMA}).scalar_one())


def _sampled(connection: Connection) -> tuple[float, float]:
    """
    About how many rows of error_logs there are on PostgreSQL, and about how many bytes one takes.

    Its files do not shrink when rows go, and its statistics are late or lost after a crash: the rows in
    some pages tell.
    """
    size = text("SELECT pg_relation_size('error_logs') / current_setting('block_size')::int")
    pages = connection.execute(size).scalar_one()
    percent = min(100.0, 100.0 * _SAMPLED_PAGES / pages) if pages else 100.0
    sample = error_logs.tablesample(func.system(literal(percent, Float)))
    # Of a value that lies beside its row the size is known without fetching it.
    sizes = (func.coalesce(func.pg_column_size(column), 0) for column in sample.c)
    values: ColumnElement[int] = sum(sizes, start=literal(0))
    count, total = connection.execute(select(func.count(), func.coalesce(func.sum(values), 0))).one()
    return count * 100.0 / percent, float(total) / max(count, 1) + _INDEXED_BYTES


@dataclass(frozen=True, slots=True)
class _Shrinking:
    """How far the oldest errors have made room."""

    place: _Place | None = None
    rows: int = 0  #  how many more go before it is measured again
    is_begun: bool = False


def _by_size(work: _Work) -> _Done:
    limit = work.policy.max_bytes
    if limit is None:
        return 0, None
    at: _Shrinking = work.at or _Shrinking()
    query = _OF_ROWS.where(_is_settled(work.now, _ON_ITS_WAY_WHEN_FULL), ~_is_last_of_its_group())
    removed = 0
    while True:
        if at.rows <= 0:
            at = replace(at, rows=_rows_too_many(work.connection, limit, is_begun=at.is_begun))
        if at.rows <= 0:
            return removed, None
        more, place = _remove_oldest(work, query, at.place, at.rows)
        removed += more
        if place is None:
            return removed, None
        at = _Shrinking(place, at.rows - more, is_begun=True)
        if not work.has_time:
            return removed, at


def _rows_too_many(connection: Connection, limit: int, *, is_begun: bool = False) -> int:
    """How many rows, about, there is no room for; once it has begun, some room is made for what comes."""
    most = round(limit * _MARGIN) if is_begun else limit
    if connection.dialect.name == "sqlite":
        # It is measured in no time, and exactly.
        return _ROWS_PER_LOOK if used_bytes(connection) > most else 0
    errors, others = _on_disk(connection)
    if errors + others <= most:
        return 0
    rows, row_bytes = _sampled(connection)
    # Whatever else has grown: the errors keep a tenth.
    if min(rows * row_bytes, errors) <= max(most - others, limit // 10):
        return 0
    return max(round(rows - max(limit * _MARGIN - others, limit // 10) / row_bytes), 1)


def _is_last_of_its_group() -> ColumnElement[bool]:
    """Whether a row is what people see of a group that is not done with."""
    return exists().where(
        error_groups.c.id == error_logs.c.group_id,
        error_groups.c.last_error_id == error_logs.c.id,
        error_groups.c.status.in_(_OPEN),
    )


# What tells of rows that are gone.


def _old_groups(work: _Work) -> _Done:
    """Groups are few and go one by one: each may have counts of a year."""
    removed = 0
    at: tuple[datetime, str] | None = work.at
    while work.has_time:
        row = work.connection.execute(_next_old_group(work.history, at)).first()
        if row is None:
            return removed, None
        at = row.last_seen, row.id
        if row.status in _KEPT or row.mark is not None:
            continue
        # Held, and looked at again: an error of it may have come this moment.
        is_forgotten = and_(
            error_groups.c.id == row.id,
            error_groups.c.last_seen == row.last_seen,
            ~exists().where(error_logs.c.group_id == error_groups.c.id),
        )
        held = select(error_groups.c.id).where(is_forgotten).with_for_update(skip_locked=True)
        if work.connection.execute(held).first() is not None:
            work.connection.execute(delete(error_counts).where(error_counts.c.group_id == row.id))
            removed += work.connection.execute(delete(error_groups).where(error_groups.c.id == row.id)).rowcount
    return removed, at


def _next_old_group(before: datetime, at: tuple[datetime, str] | None) -> Select[Any]:
    columns = error_groups.c
    query = select(columns.id, columns.last_seen, columns.status, columns.mark).where(columns.last_seen < before)
    if at is not None:
        query = query.where(tuple_(columns.last_seen, columns.id) > tuple_(literal(at[0], UtcTime), at[1]))
    return query.order_by(columns.last_seen, columns.id).limit(1)


def _old_counts(work: _Work) -> _Done:
    before = work.now - TOTALS_AGE
    at, removed = work.at or "", 0
    while work.has_time:
        groups = select(error_groups.c.id, error_groups.c.first_seen).where(error_groups.c.id > at)
        rows = work.connection.execute(groups.order_by(error_groups.c.id).limit(_GROUPS_AT_ONCE)).all()
        if not rows:
            return removed, None
        at = rows[-1].id
        old = [row.id for row in rows if row.first_seen < before]
        if old:
            is_old = and_(error_counts.c.group_id.in_(old), error_counts.c.hour < before)
            removed += work.connection.execute(delete(error_counts).where(is_old)).rowcount
    return removed, at


def _old_totals(work: _Work) -> _Done:
    first = select(func.min(hourly_totals.c.hour)).where(hourly_totals.c.hour < work.now - TOTALS_AGE)
    removed = 0
    while work.has_time:
        hour = work.connection.execute(first).scalar()
        if hour is None:
            return removed, None
        removed += work.connection.execute(delete(hourly_totals).where(hourly_totals.c.hour == hour)).rowcount
    return removed, hour


def _is_last_alert() -> ColumnElement[bool]:
    """Whether an alert is the last one of a group that is there: without it, the group would ring as if new."""
    newer = alerts.alias()
    is_newer = tuple_(newer.c.created_at, newer.c.id) > tuple_(alerts.c.created_at, alerts.c.id)
    return and_(
        exists().where(error_groups.c.id == alerts.c.group_id),
        ~exists().where(newer.c.group_id == alerts.c.group_id, is_newer),
    )


def _old_alerts(work: _Work) -> _Done:
    removed, at = 0, work.at
    while work.has_time:
        columns = alerts.c
        query = select(columns.created_at, columns.id, _is_last_alert().label("needed")).where(
            columns.created_at < work.history
        )
        if at is not None:
            query = query.where(tuple_(columns.created_at, columns.id) > _place(at))
        rows = work.connection.execute(query.order_by(columns.created_at, columns.id).limit(_GROUPS_AT_ONCE)).all()
        old = [row.id for row in rows if not row.needed]
        if old:
            work.connection.execute(delete(deliveries).where(deliveries.c.alert_id.in_(old)))
            removed += work.connection.execute(delete(alerts).where(columns.id.in_(old))).rowcount
        if len(rows) < _GROUPS_AT_ONCE:
            return removed, None
        at = rows[-1].created_at, rows[-1].id
    return removed, at


_DOES: dict[Task, Callable[[_Work], _Done]] = {
    Task.AGE: _by_age,
    Task.CLOCK: _by_clock,
    Task.HOURS: _by_hours,
    Task.SIZE: _by_size,
    Task.GROUPS: _old_groups,
    Task.COUNTS: _old_counts,
    Task.TOTALS: _old_totals,
    Task.ALERTS: _old_alerts,
}


# What would go.


def count(connection: Connection, policy: Policy, now: datetime | None = None) -> Counter[Task]:
    """
    How many rows a run would remove, about: for who wants to know before, or how far a run has come.

    It reads all that would go; give it a store that waits.
    """
    now = now or database_now(connection)
    oldest, history = now - policy.age, now - max(OLD_GROUP_AGE, policy.age)

    def number(table: Table, *conditions: ColumnElement[bool]) -> int:
        return int(connection.execute(select(func.count()).select_from(table).where(*conditions)).scalar_one())

    is_future = error_logs.c.timestamp > now + _CLOCKS_APART
    unknown = select(error_logs.c.id).where(is_future, error_logs.c.created_at.is_(None))
    found = Counter(
        {
            Task.AGE: number(error_logs, *_too_old(now, policy)),
            Task.CLOCK: number(error_logs, is_future, error_logs.c.created_at < oldest)
            + sum(_made_at(error_id, now) < oldest for error_id in connection.execute(unknown).scalars()),
            Task.HOURS: _count_by_hours(connection, policy, now),
            Task.GROUPS: number(
                error_groups,
                error_groups.c.last_seen < history,
                error_groups.c.status.not_in(_KEPT),
                error_groups.c.mark.is_(None),
                ~exists().where(error_logs.c.group_id == error_groups.c.id, not_(and_(*_too_old(now, policy)))),
            ),
            Task.COUNTS: number(error_counts, error_counts.c.hour < now - TOTALS_AGE),
            Task.TOTALS: number(hourly_totals, hourly_totals.c.hour < now - TOTALS_AGE),
            Task.ALERTS: number(alerts, alerts.c.created_at < history, ~_is_last_alert()),
        }
    )
    if policy.max_bytes is not None:
        found[Task.SIZE] = _count_by_size(connection, policy.max_bytes, sum(found[task] for task in ERRORS))
    return found


def _count_by_hours(connection: Connection, policy: Policy, now: datetime) -> int:
    at = _hours_to_look_at(connection, policy, now)
    total = 0
    while True:
        group_ids, after = _groups_seen(connection, at)
        if after is None:
            return total
        at = replace(at, after=after)
        for group_id, hour in _crowded(connection, group_ids, at):
            in_hour = (error_logs.c.timestamp >= hour, error_logs.c.timestamp < hour + timedelta(hours=1))
            rows = select(func.count()).where(error_logs.c.group_id == group_id, *in_hour)
            total += max(connection.execute(rows).scalar_one() - KEPT_PER_HOUR, 0)


def _count_by_size(connection: Connection, limit: int, gone: int) -> int:
    """How many rows the size would cost when so many are gone before."""
    if connection.dialect.name != "sqlite":
        return max(_rows_too_many(connection, limit) - gone, 0)
    used = used_bytes(connection)
    if used <= limit:
        return 0
    rows = int(connection.execute(select(func.count()).select_from(error_logs)).scalar_one())
    return max(round(rows * (1 - limit * _MARGIN / used)) - gone, 0)


# SQLite's file.


def _prepare_sqlite(connection: Connection) -> None:
    # What is removed is overwritten with zeros, also where SQLite was built without that habit. An answer
    # left open would hold a place in the log, which then could not begin anew.
    for pragma in ("secure_delete = ON", f"journal_size_limit = {LOG_BYTES // 4}"):
        connection.exec_driver_sql(f"PRAGMA {pragma}").close()


def _is_log_long(connection: Connection) -> bool:
    """Whether somebody reads for so long that SQLite's log could only grow."""
    log = Path(f"{connection.engine.url.database}-wal")
    return log.exists() and log.stat().st_size > LOG_BYTES


def free_bytes(connection: Connection) -> int:
    """How much of SQLite's file is free for what comes; 0 on PostgreSQL, which does not tell."""
    if connection.dialect.name != "sqlite":
        return 0
    free, size = _pragmas(connection, "freelist_count", "page_size")
    return free * size


def compact(path: Path, *, wait_s: float = 60) -> None:
    """
    Write SQLite's file anew, without free space, and empty its log: nothing of what was removed is left in them.

    Whoever wants to write waits meanwhile; errors wait in the spool.

    Args:
        wait_s: how long others may hold the file, before it begins and before the log can be emptied.

    Raises:
        StoreAway: somebody holds the file, or the disk has no room for a second copy; all is as it was.
    """
    room, needed = shutil.disk_usage(path.parent).free, 2 * path.stat().st_size
    if room < needed:
        raise StoreAway(f"{path} needs {needed // 2**20} MB of free disk to be written anew, and has {room // 2**20}")
    try:
        with closing(sqlite3.connect(path, timeout=wait_s, isolation_level=None)) as connection:
            connection.execute("VACUUM")
            [is_busy, *_] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as problem:
        raise StoreAway(str(problem)) from problem
    if is_busy:
        raise StoreAway(f"{path} is written anew, but somebody reads in its log; try again")
