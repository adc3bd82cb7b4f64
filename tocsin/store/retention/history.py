"""What tells of rows that are gone: groups, counts, alerts; and the jobs beside them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, literal, select, tuple_

from tocsin.lifecycle import Status
from tocsin.store import jobs
from tocsin.store.retention.policy import TOTALS_AGE
from tocsin.store.retention.work import GROUPS_AT_ONCE, Done, Work, place
from tocsin.store.schema import UtcTime, alerts, deliveries, error_counts, error_groups, error_logs, hourly_totals

KEPT = (Status.IGNORED, Status.MUTED)
"""A group that somebody has silenced stays: without it, its next error would ring."""


def old_groups(work: Work) -> Done:
    """Groups are few and go one by one: each may have counts of a year."""
    removed = 0
    at: tuple[datetime, str] | None = work.at
    while work.has_time():
        row = work.connection.execute(_next_old_group(work.history, at)).first()
        if row is None:
            return removed, None
        at = row.last_seen, row.id
        if row.status in KEPT or row.mark is not None:
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


def old_counts(work: Work) -> Done:
    """Counts per group and hour, read group by group: they have no order by hour."""
    before = work.now - TOTALS_AGE
    at, removed = work.at or "", 0
    while work.has_time():
        groups = select(error_groups.c.id, error_groups.c.first_seen).where(error_groups.c.id > at)
        rows = work.connection.execute(groups.order_by(error_groups.c.id).limit(GROUPS_AT_ONCE)).all()
        if not rows:
            return removed, None
        at = rows[-1].id
        old = [row.id for row in rows if row.first_seen < before]
        if old:
            is_old = and_(error_counts.c.group_id.in_(old), error_counts.c.hour < before)
            removed += work.connection.execute(delete(error_counts).where(is_old)).rowcount
    return removed, at


def old_totals(work: Work) -> Done:
    """Counts per hour."""
    first = select(func.min(hourly_totals.c.hour)).where(hourly_totals.c.hour < work.now - TOTALS_AGE)
    removed = 0
    while work.has_time():
        hour = work.connection.execute(first).scalar()
        if hour is None:
            return removed, None
        removed += work.connection.execute(delete(hourly_totals).where(hourly_totals.c.hour == hour)).rowcount
    return removed, hour


def is_last_alert() -> ColumnElement[bool]:
    """Whether an alert is the last one of a group that is there: without it, the group would ring as if new."""
    newer = alerts.alias()
    is_newer = tuple_(newer.c.created_at, newer.c.id) > tuple_(alerts.c.created_at, alerts.c.id)
    return and_(
        exists().where(error_groups.c.id == alerts.c.group_id),
        ~exists().where(newer.c.group_id == alerts.c.group_id, is_newer),
    )


def old_alerts(work: Work) -> Done:
    """Alerts with their deliveries."""
    removed, at = 0, work.at
    while work.has_time():
        columns = alerts.c
        query = select(columns.created_at, columns.id, is_last_alert().label("needed")).where(
            columns.created_at < work.history
        )
        if at is not None:
            query = query.where(tuple_(columns.created_at, columns.id) > place(at))
        rows = work.connection.execute(query.order_by(columns.created_at, columns.id).limit(GROUPS_AT_ONCE)).all()
        old = [row.id for row in rows if not row.needed]
        if old:
            work.connection.execute(delete(deliveries).where(deliveries.c.alert_id.in_(old)))
            removed += work.connection.execute(delete(alerts).where(columns.id.in_(old))).rowcount
        if len(rows) < GROUPS_AT_ONCE:
            return removed, None
        at = rows[-1].created_at, rows[-1].id
    return removed, at


def old_jobs(work: Work) -> Done:
    """Jobs that were done or discarded as long ago as errors go, and failed ones beyond what may wait."""
    removed = 0
    while work.has_time():
        over = jobs.remove(work.connection, jobs.is_over(work.oldest), GROUPS_AT_ONCE)
        beyond = jobs.remove(work.connection, jobs.is_beyond(work.connection), GROUPS_AT_ONCE)
        removed += over + beyond
        if not over + beyond:
            return removed, None
    return removed, work.now
