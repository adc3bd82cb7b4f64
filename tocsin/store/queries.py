"""What people ask of the tables: lists, statistics, charts, and whether the database takes a write."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, case, false, func, literal_column, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from tocsin.failures import NotFound
from tocsin.lifecycle import Status
from tocsin.store import cursors
from tocsin.store.schema import counters, error_counts, error_groups, error_logs, hourly_totals, instances

MAX_LIMIT = 500
"""The most rows that one list gives."""

RECENT_AT_MOST = 10_000
"""`recent` adds up at most so many rows, so that health stays quick in a storm."""

Row = dict[str, Any]
_HOUR = timedelta(hours=1)


def floor_hour(moment: datetime) -> datetime:
    """The full hour at or before a moment."""
    return moment.replace(minute=0, second=0, microsecond=0)


# The rows of a resolved or reopened group follow in chunks behind it, so a row's own columns may be
# late: where the group knows better, it speaks.
_REOPENED: ColumnElement[bool] = and_(error_groups.c.rows_pending, error_groups.c.resolved_at.is_(None))
_BY_GROUP: ColumnElement[bool] = func.coalesce(error_logs.c.timestamp <= error_groups.c.resolved_at, false())
_RESOLVED: ColumnElement[bool] = case(
    (func.coalesce(_REOPENED, false()), false()),
    else_=or_(func.coalesce(error_logs.c.resolved, false()), _BY_GROUP),
)
_RESOLVED_AT: ColumnElement[datetime | None] = case(
    (_RESOLVED, func.coalesce(error_logs.c.resolved_at, error_groups.c.resolved_at)), else_=None
)

# In the words of the partial index.
_REGRESSED: ColumnElement[bool] = and_(
    error_groups.c.resolved_at.is_not(None), error_groups.c.status != literal_column("'resolved'")
)

# Rows of other programs name no service; their group does.
_SERVICE: ColumnElement[str | None] = func.coalesce(error_logs.c.service, error_groups.c.service)

_ERROR_COLUMNS = (
    *(column for column in error_logs.c if column.name not in ("resolved", "resolved_at", "service")),
    _SERVICE.label("service"),
    _RESOLVED.label("resolved"),
    _RESOLVED_AT.label("resolved_at"),
    error_groups.c.number.label("group"),
)
_ERRORS = select(*_ERROR_COLUMNS).select_from(
    error_logs.outerjoin(error_groups, error_logs.c.group_id == error_groups.c.id)
)
_NEWEST_FIRST = (error_logs.c.timestamp.desc(), error_logs.c.id.desc())


def list_errors(
    connection: Connection,
    *,
    category: str | None = None,
    severity: str | None = None,
    resolved: bool | None = None,
    service: str | None = None,
    environment: str | None = None,
    group: int | None = None,
    q: str | None = None,
    since: datetime | None = None,
    limit: int = 50,
    before: str | None = None,
) -> tuple[list[Row], str | None]:
    """
    Errors, newest first, and the `before` of the next page (None: this was the last).

    Each row has the columns of ``error_logs`` and ``group``, its group's number; ``resolved`` is the
    group's state, which is true before its rows have followed.

    Args:
        q: text in the message, upper and lower case alike.
        limit: 1 to `MAX_LIMIT`.
        before: what an earlier call gave; a page is stable while new errors arrive.

    Raises:
        BadInput: `before` is not what an earlier call gave.
    """
    wanted: list[ColumnElement[bool]] = []
    for column, value in (
        (error_logs.c.category, category),
        (error_logs.c.severity, severity),
        (_SERVICE, service),
        (error_logs.c.environment, environment),
    ):
        if value is not None:
            wanted.append(column == value)
    if resolved is not None:
        wanted.append(_resolution(connection, resolved))
    if group is not None:
        of_group = select(error_groups.c.id).where(error_groups.c.number == group).scalar_subquery()
        wanted.append(error_logs.c.group_id == of_group)
    if q:
        wanted.append(error_logs.c.message.icontains(q, autoescape=True))
    if since is not None:
        wanted.append(error_logs.c.timestamp >= since)
    if before is not None:
        timestamp, error_id = cursors.decode(before)
        if not is_error_id(error_id):
            raise cursors.refusal()
        wanted.append(
            or_(
                error_logs.c.timestamp < timestamp,
                and_(error_logs.c.timestamp == timestamp, error_logs.c.id < error_id),
            )
        )
    found = connection.execute(_ERRORS.where(*wanted).order_by(*_NEWEST_FIRST).limit(limit + 1)).mappings().all()
    rows = [_error(row) for row in found[:limit]]
    following = cursors.encode(rows[-1]["timestamp"], rows[-1]["id"]) if len(found) > limit else None
    return rows, following


def _resolution(connection: Connection, resolved: bool) -> ColumnElement[bool]:
    """Rows in this state: by their own column, which an index finds, unless rows of some group are late."""
    late = connection.execute(select(error_groups.c.id).where(error_groups.c.rows_pending).limit(1)).first()
    if late is not None:
        return _RESOLVED if resolved else ~_RESOLVED
    return error_logs.c.resolved.is_(True) if resolved else error_logs.c.resolved.is_not(True)


def get_error(connection: Connection, error_id: str) -> Row:
    """One error as in `list_errors`; raises `NotFound`, also for what is no id at all."""
    if is_error_id(error_id):
        row = connection.execute(_ERRORS.where(error_logs.c.id == error_id)).mappings().one_or_none()
        if row is not None:
            return _error(row)
    raise NotFound(f"error {error_id[:40]}")


def group_errors(connection: Connection, group_id: str, limit: int = 20) -> list[Row]:
    """The newest errors of a group."""
    rows = connection.execute(
        _ERRORS.where(error_logs.c.group_id == group_id).order_by(*_NEWEST_FIRST).limit(limit)
    ).mappings()
    return [_error(row) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """What happened lately: how many errors, and the newest one of all (None: none in that time)."""

    count: int
    last: Row | None


def recent(connection: Connection, since: datetime) -> Recent:
    """The errors since a moment, at most `RECENT_AT_MOST` rows of them added up."""
    counts = (
        select(error_logs.c.count)
        .where(error_logs.c.timestamp >= since)
        .order_by(error_logs.c.timestamp.desc())
        .limit(RECENT_AT_MOST)
        .subquery()
    )
    total = connection.execute(select(func.coalesce(func.sum(counts.c.count), 0))).scalar_one()
    rows, _ = list_errors(connection, since=since, limit=1)
    return Recent(count=int(total), last=rows[0] if rows else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What happened in the hours that a period touches, from the counts kept per hour."""

    total: int
    by_severity: dict[str, int]
    by_category: dict[str, int]
    by_service: dict[str, int]
    by_hour: list[tuple[datetime, dict[str, int]]]  # each hour with its errors by severity, oldest first
    unresolved: int


def stats(
    connection: Connection,
    hours: int,
    now: datetime,
    *,
    service: str | None = None,
    environment: str | None = None,
) -> Stats:
    """
    Statistics of the last `hours` hours; no row of ``error_logs`` is counted.

    The hour in which the period begins counts as a whole, so ``by_hour`` has one entry more than `hours`.
    """
    first = floor_hour(now - hours * _HOUR)
    totals = hourly_totals.c
    query = select(
        totals.hour, totals.severity, totals.category, totals.service, func.sum(totals.count).label("errors")
    ).where(totals.hour >= first, totals.hour <= now)
    for column, value in ((totals.service, service), (totals.environment, environment)):
        if value is not None:
            query = query.where(column == value)
    by_severity: dict[str, int] = defaultdict(int)
    by_category: dict[str, int] = defaultdict(int)
    by_service: dict[str, int] = defaultdict(int)
    by_hour: dict[datetime, dict[str, int]] = {first + step * _HOUR: defaultdict(int) for step in range(hours + 1)}
    for row in connection.execute(query.group_by(totals.hour, totals.severity, totals.category, totals.service)):
        count = int(row.errors)
        by_severity[row.severity] += count
        by_category[row.category] += count
        by_service[row.service] += count
        if (hour := floor_hour(row.hour)) in by_hour:
            by_hour[hour][row.severity] += count
    return Stats(
        total=sum(by_severity.values()),
        by_severity=_most_first(by_severity),
        by_category=_most_first(by_category),
        by_service=_most_first(by_service),
        by_hour=[(hour, dict(counts)) for hour, counts in by_hour.items()],
        unresolved=unresolved(connection, service=service, environment=environment),
    )


def unresolved(connection: Connection, *, service: str | None = None, environment: str | None = None) -> int:
    """How many errors are not resolved: those of groups that are not, less what came before a regression."""
    wanted: list[ColumnElement[bool]] = [error_groups.c.status != Status.RESOLVED]
    for column, value in ((error_groups.c.service, service), (error_groups.c.environment, environment)):
        if value is not None:
            wanted.append(column == value)
    never = select(func.coalesce(func.sum(error_groups.c.count), 0)).where(
        *wanted, error_groups.c.resolved_at.is_(None)
    )
    # Only groups that came back after a resolve need a look at their rows, and only at the later ones:
    # group by group, since a join lets SQLite begin with all rows there are.
    later = (
        select(func.sum(error_logs.c.count))
        .where(error_logs.c.group_id == error_groups.c.id, error_logs.c.timestamp > error_groups.c.resolved_at)
        .scalar_subquery()
    )
    again = select(func.coalesce(func.sum(later), 0)).where(*wanted, _REGRESSED)
    return int(connection.execute(never).scalar_one()) + int(connection.execute(again).scalar_one())


def group_counts(connection: Connection) -> dict[Status, int]:
    """How many groups there are in each status; zeros included."""
    rows = connection.execute(select(error_groups.c.status, func.count()).group_by(error_groups.c.status)).all()
    found = {row[0]: int(row[1]) for row in rows}
    return {status: found.get(status, 0) for status in Status}


def group_hours(
    connection: Connection, group_ids: Sequence[str], hours: int, now: datetime
) -> dict[str, list[tuple[datetime, int]]]:
    """For each group its errors per hour, oldest first, `hours` entries, zeros included: a sparkline."""
    first = floor_hour(now) - (hours - 1) * _HOUR
    series = {group_id: {first + step * _HOUR: 0 for step in range(hours)} for group_id in group_ids}
    if group_ids:
        counts = error_counts.c
        query = select(counts.group_id, counts.hour, counts.count.label("errors")).where(
            counts.group_id.in_(group_ids), counts.hour >= first
        )
        for row in connection.execute(query):
            if (hour := floor_hour(row.hour)) in series[row.group_id]:
                series[row.group_id][hour] += int(row.errors)
    return {group_id: list(by_hour.items()) for group_id, by_hour in series.items()}


def choices(connection: Connection) -> dict[str, list[str]]:
    """The services, environments and categories that there are groups of: what a list can be filtered by."""
    columns = (error_groups.c.service, error_groups.c.environment, error_groups.c.category)
    found = connection.execute(select(*columns).distinct().limit(5_000)).all()
    return {column.name: sorted({row[at] for row in found}) for at, column in enumerate(columns)}


def list_instances(connection: Connection, limit: int = 100) -> list[Row]:
    """The processes that tocsin watches: those alive first, then those seen last."""
    query = select(instances).order_by(instances.c.ended_at.is_not(None), instances.c.last_seen.desc()).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def probe_write(connection: Connection, now: datetime) -> None:
    """A write as small as it can be: whether the database takes one."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    value = int(now.timestamp())
    connection.execute(
        dialect.insert(counters)
        .values(name="health", value=value)
        .on_conflict_do_update(index_elements=["name"], set_={"value": value})
    )


_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def is_error_id(text: str) -> bool:
    """Whether a text has the shape of an error's id."""
    return _ID.fullmatch(text) is not None


def _error(row: RowMapping) -> Row:
    error = dict(row)
    error["resolved"] = bool(error["resolved"])
    return error


def _most_first(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
