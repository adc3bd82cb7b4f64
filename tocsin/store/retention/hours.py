"""At most so many full errors of each group and hour stay: the first ones, and the newest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Connection, exists, func, select, tuple_, update

from tocsin.store.retention.policy import KEPT_PER_HOUR, ON_ITS_WAY, Policy
from tocsin.store.retention.rows import OLDEST_FIRST, is_after, is_settled, remove
from tocsin.store.retention.work import GROUPS_AT_ONCE, Done, Place, Work, place, remember
from tocsin.store.schema import counters, error_counts, error_groups, error_logs

LATE = timedelta(days=3)
"""An outage of so long is looked for, when it fills hours that were looked at before."""

_LOOKED_UNTIL = "retention: hours"


@dataclass(frozen=True, slots=True)
class _Hours:
    """How far the hours of groups were looked at."""

    since: datetime
    until: datetime
    after: str = ""  #                               the last group whose hours were looked for
    crowded: tuple[tuple[str, datetime], ...] = ()  # what is to be looked at next, in order of groups


def by_hours(work: Work) -> Done:
    """Errors beyond those that are kept of a group and hour, once the hour is over."""
    at: _Hours = work.at or _hours_to_look_at(work.connection, work.policy, work.now)
    removed = 0
    while work.has_time():
        if at.crowded:
            more, is_done = _thin_out(work, *at.crowded[0])
            removed += more
            at = replace(at, crowded=at.crowded[1:] if is_done else at.crowded)
            continue
        group_ids, after = _groups_seen(work.connection, at)
        if after is None:
            remember(work.connection, _LOOKED_UNTIL, int(at.until.timestamp()))
            return removed, None
        at = replace(at, after=after, crowded=tuple(_crowded(work.connection, group_ids, at)))
    return removed, at


def count_by_hours(connection: Connection, policy: Policy, now: datetime) -> int:
    """How many rows that would remove."""
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
    rows = connection.execute(groups.order_by(error_groups.c.id).limit(GROUPS_AT_ONCE)).all()
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


def _thin_out(work: Work, group_id: str, hour: datetime) -> tuple[int, bool]:
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
        is_settled(work.now),
        ~exists().where(error_groups.c.id == group_id, error_groups.c.last_error_id == columns.id),
    )
    query = too_many.order_by(*OLDEST_FIRST).limit(work.pace.rows)
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
        removed += remove(work.connection, [row.id for row in rows])
        if len(rows) < work.pace.rows or not work.has_time():
            return removed, len(rows) < work.pace.rows


def _spared(connection: Connection, group_id: str, hour: datetime) -> tuple[Place, Place] | None:
    """The last of the first errors that are kept, and the newest; None when there are not so many."""
    columns = error_logs.c
    in_hour = select(columns.timestamp, columns.id).where(
        columns.group_id == group_id, columns.timestamp >= hour, columns.timestamp < hour + timedelta(hours=1)
    )
    first = connection.execute(in_hour.order_by(*OLDEST_FIRST).offset(KEPT_PER_HOUR - 2).limit(1)).first()
    last = connection.execute(in_hour.order_by(columns.timestamp.desc(), columns.id.desc()).limit(1)).first()
    if first is None or last is None:
        return None
    return (first.timestamp, first.id), (last.timestamp, last.id)


def _between(group_id: str, first: Place, last: Place) -> tuple[ColumnElement[bool], ...]:
    return (
        error_logs.c.group_id == group_id,
        is_after(first),
        tuple_(error_logs.c.timestamp, error_logs.c.id) < place(last),
    )


def _add_to(connection: Connection, error_id: str, count: int) -> None:
    is_it = error_logs.c.id == error_id
    before = connection.execute(select(error_logs.c.count).where(is_it)).scalar()
    if before is not None:  # it may have become too old this moment
        most = 2**31 - 1  # that the column holds
        connection.execute(update(error_logs).where(is_it).values(count=min(before + count, most)))


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)
