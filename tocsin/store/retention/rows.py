"""Rows of ``error_logs`` go, oldest first: by age, and where their own time lies in the future."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Select, delete, or_, select, tuple_

from tocsin.store.retention.policy import ON_ITS_WAY, Policy
from tocsin.store.retention.work import Done, Place, Work, place
from tocsin.store.schema import error_logs

CLOCKS_APART = timedelta(days=1)
"""A row whose time lies further ahead than this was written by a clock that was wrong."""

OF_ROWS = select(error_logs.c.timestamp, error_logs.c.id)
OLDEST_FIRST = (error_logs.c.timestamp, error_logs.c.id)


def is_settled(now: datetime, after: timedelta = ON_ITS_WAY) -> ColumnElement[bool]:
    """Whether nothing that belongs to a row can be on its way any more."""
    return or_(error_logs.c.created_at.is_(None), error_logs.c.created_at < now - after)


def remove_oldest(work: Work, query: Select[Any], at: Place | None, at_most: int = 2**31) -> tuple[int, Place | None]:
    """
    Remove the first rows of a query, oldest first; how many, and the last one's place (None: there are no more).

    It goes on from a place and not from the start: on PostgreSQL what is removed stands in the index until
    a vacuum, and would be walked over again each time. Rows that somebody else holds are left for the next run.
    """
    if at is not None:
        query = query.where(is_after(at))
    number, began = min(work.pace.rows, at_most), time.monotonic()
    query = query.order_by(*OLDEST_FIRST).limit(number)
    rows = work.connection.execute(query.with_for_update(of=error_logs, skip_locked=True)).all()
    removed = remove(work.connection, [row.id for row in rows])
    work.pace.took(len(rows), time.monotonic() - began)
    return removed, (rows[-1].timestamp, rows[-1].id) if len(rows) == number else None


def is_after(at: Place) -> ColumnElement[bool]:
    """Whether a row comes after a place."""
    return tuple_(error_logs.c.timestamp, error_logs.c.id) > place(at)


def by_age(work: Work) -> Done:
    """Errors older than the retention."""
    return _oldest_while_time(work, OF_ROWS.where(*too_old(work.now, work.policy)))


def too_old(now: datetime, policy: Policy) -> tuple[ColumnElement[bool], ...]:
    """What is true of an error that is older than the retention and may go."""
    return error_logs.c.timestamp < now - policy.age, is_settled(now)


def _oldest_while_time(work: Work, query: Select[Any]) -> Done:
    removed, at = remove_oldest(work, query, work.at)
    while at is not None and work.has_time():
        more, at = remove_oldest(work, query, at)
        removed += more
    return removed, at


def by_clock(work: Work) -> Done:
    """A row that claims to come from the future is as old as its stay here, or as its id says."""
    query = select(error_logs.c.timestamp, error_logs.c.id, error_logs.c.created_at).where(
        error_logs.c.timestamp > work.now + CLOCKS_APART
    )
    if work.at is not None:
        query = query.where(is_after(work.at))
    rows = work.connection.execute(query.order_by(*OLDEST_FIRST).limit(work.pace.rows)).all()
    old = [row.id for row in rows if (row.created_at or made_at(row.id, work.now)) < work.oldest]
    removed = remove(work.connection, old)
    return removed, (rows[-1].timestamp, rows[-1].id) if len(rows) == work.pace.rows else None


def made_at(error_id: str, otherwise: datetime) -> datetime:
    """When a UUIDv7 was made; another kind of id tells nothing."""
    value = UUID(error_id)
    if value.version != 7:
        return otherwise
    return min(datetime.fromtimestamp((value.int >> 80) / 1000, UTC), otherwise)


def remove(connection: Connection, error_ids: Sequence[str]) -> int:
    """Remove these rows; how many there were."""
    if not error_ids:
        return 0
    return connection.execute(delete(error_logs).where(error_logs.c.id.in_(error_ids))).rowcount
