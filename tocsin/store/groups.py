"""Groups: finding them, and what people do to them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, Select, and_, bindparam, literal_column, or_, select, update

from tocsin import lifecycle
from tocsin.failures import NotFound
from tocsin.lifecycle import Status, Trigger
from tocsin.model import Severity
from tocsin.store import audit, bulk, cursors, schema
from tocsin.store.engine import wake_others
from tocsin.store.leases import database_now

_groups = schema.error_groups
_logs = schema.error_logs
_releases = schema.releases


class Mark(StrEnum):
    """Why the alerts should look at a group, strongest first; a mark is never weakened until it is cleared."""

    NEW = "new"
    REGRESSED = "regressed"
    UNMUTED = "unmuted"
    GRAVER = "graver"  #    what a person has said of it before was said of something lesser
    RECOVERED = "recovered"  # it is over, as tocsin saw by itself
    CHANGED = "changed"
    SEEN = "seen"  #        only counts have grown: that can wait a moment, until there is more to show


_STRENGTHS = {mark: -place for place, mark in enumerate(Mark)}


@dataclass(slots=True, kw_only=True)
class Group:
    """
    A row of ``error_groups``.

    ``resolved_at``, ``resolved_by`` and ``resolved_in_release`` tell of the last time that it was
    resolved: a regression keeps them, a reopen clears them. A row of the group counts as resolved when
    it happened no later than ``resolved_at``, whether or not `settle_rows` has come to it yet.
    """

    id: str
    number: int
    fingerprint: str
    title: str
    culprit: str | None
    service: str
    environment: str
    exception_type: str | None
    severity: Severity
    category: str
    status: Status
    first_seen: datetime
    last_seen: datetime
    count: int
    users: int
    resolved_at: datetime | None
    resolved_by: str | None
    resolved_in_release: str | None
    muted_until: datetime | None
    mute_until_count: int | None  #   the group's count that ends the mute
    regressions: int
    last_release: str | None
    last_error_id: str | None
    mark: Mark | None
    marked_at: datetime | None
    rows_pending: bool

    @classmethod
    def from_row(cls, row: RowMapping) -> Group:
        """A row with all columns of ``error_groups``."""
        values: dict[str, Any] = dict(row)
        values["severity"] = Severity(values["severity"])
        values["status"] = Status(values["status"])
        values["mark"] = values["mark"] and Mark(values["mark"])
        return cls(**values)

    def raise_mark(self, mark: Mark, now: datetime) -> None:
        """Have the alerts look at it; a stronger mark that still stands stays, and so does its time."""
        if self.mark is None or _STRENGTHS[mark] > _STRENGTHS[self.mark]:
            self.mark = mark
        self.marked_at = self.marked_at or now


@dataclass(frozen=True, slots=True)
class Acted:
    """What an act has come to; ``changed`` is False when all was so already."""

    group: Group
    before: Status
    changed: bool


def by_number(connection: Connection, number: int) -> Group:
    """The group that people call ``#number``; raises `NotFound`."""
    return _one(connection, _numbered(number), f"group #{number}")


def number_of_error(connection: Connection, error_id: str) -> int:
    """The number of the group that an error belongs to; raises `NotFound`."""
    try:
        error_id = str(UUID(error_id))
    except ValueError:
        raise NotFound(f"error {error_id}") from None
    query = select(_groups.c.number).join(_logs, _logs.c.group_id == _groups.c.id).where(_logs.c.id == error_id)
    number = connection.execute(query).scalar()
    if number is None:
        raise NotFound(f"error {error_id}")
    return int(number)


def lock(connection: Connection, group_ids: Collection[str]) -> dict[str, Group]:
    """Those of the groups that exist, held until the transaction ends; in order of ids, against deadlocks."""
    if not group_ids:
        return {}
    query = select(_groups).where(_groups.c.id.in_(sorted(group_ids))).order_by(_groups.c.id).with_for_update()
    return {row["id"]: Group.from_row(row) for row in connection.execute(query).mappings()}


def act(
    connection: Connection,
    number: int,
    trigger: Trigger,
    *,
    by: str,
    via: str,
    now: datetime | None = None,
    until: datetime | None = None,
    until_count: int | None = None,
) -> Acted:
    """
    Do to a group what a person wants, and write it into the audit.

    Args:
        by: who, as the audit and the group shall name them.
        now: when; by default the database's time, which is that of the errors too. By the clock of a
            server that is ahead, what comes next would have happened before the resolve.
        until: for MUTE, when it ends by itself; None is never.
        until_count: for MUTE, after how many more errors it ends.

    Raises:
        NotFound: there is no such group.
        IllegalTransition: the lifecycle does not allow it; nothing was changed.
    """
    group = _one(connection, _numbered(number).with_for_update(), f"group #{number}")
    now = now or database_now(connection)
    before = replace(group)
    group.status, _ = lifecycle.advance(before.status, trigger)
    group.muted_until = group.mute_until_count = None
    if group.status == Status.MUTED:
        group.muted_until = until
        group.mute_until_count = None if until_count is None else group.count + until_count
    if group.status == Status.RESOLVED and before.status != Status.RESOLVED:
        group.resolved_at, group.resolved_by, group.rows_pending = now, by, True
        group.resolved_in_release = _newest_release(connection, group.service) or group.last_release
    if trigger == Trigger.REOPEN and before.status == Status.RESOLVED:
        group.resolved_at = group.resolved_by = group.resolved_in_release = None
        group.rows_pending = True
    changed = group != before
    if changed:
        group.raise_mark(Mark.CHANGED, now)
        save(connection, [group])
        wake_others(connection)
    ends = [until and f"until {until:%Y-%m-%d %H:%M} UTC", until_count and f"for {until_count} more errors"]
    detail = ", ".join(part for part in ends if part) if changed else "it was so already"
    audit.record(
        connection, actor=by, via=via, action=trigger.value, target=f"#{number}", detail=detail or None, now=now
    )
    return Acted(group, before.status, changed)


# In the words of the partial index.
_MUTED = _groups.c.status == literal_column("'muted'")


def is_work_waiting(connection: Connection, now: datetime) -> bool:
    """
    Whether `expire_mutes` or `settle_rows` would find something.

    To be asked in a read, every few seconds, so that the one lock for writing is not taken for nothing.
    """
    waiting = (
        select(_groups.c.id).where(_groups.c.rows_pending).limit(1),
        select(_groups.c.id).where(_MUTED, _groups.c.muted_until <= now).limit(1),
    )
    return any(connection.execute(query).first() is not None for query in waiting)


def expire_mutes(connection: Connection, now: datetime) -> int:
    """End the mutes whose time is over; returns how many."""
    query = select(_groups).where(_MUTED, _groups.c.muted_until <= now).order_by(_groups.c.id).with_for_update()
    expired = [Group.from_row(row) for row in connection.execute(query).mappings()]
    for group in expired:
        unmute(group, now)
    if expired:
        save(connection, expired)
        wake_others(connection)
    return len(expired)


def unmute(group: Group, now: datetime) -> None:
    """End the mute of a group in memory; `save` stores it."""
    group.status, reason = lifecycle.advance(group.status, Trigger.EXPIRE)
    group.muted_until = group.mute_until_count = None
    if reason is not None:
        group.raise_mark(Mark(reason.value), now)


def settle_rows(connection: Connection, limit: int = 5000) -> int:
    """
    Make the rows of resolved and reopened groups say what their group says, some at a time.

    Rows that happened no later than the group's ``resolved_at`` become resolved; when a reopen has
    cleared it, all become unresolved.

    Args:
        limit: the most rows to change in this transaction.

    Returns:
        How many rows were changed; 0 when no group waits any more, or only for rows that others hold.
    """
    changed, last = 0, ""
    while changed < limit:
        pending = select(_groups.c.id, _groups.c.resolved_at).where(_groups.c.rows_pending, _groups.c.id > last)
        group = connection.execute(pending.order_by(_groups.c.id).limit(1).with_for_update()).first()
        if group is None:
            break
        last = group.id
        if group.resolved_at is not None:
            wrong = and_(_logs.c.timestamp <= group.resolved_at, _logs.c.resolved.is_not(True))
        else:
            wrong = _logs.c.resolved.is_(True)
        of_group = select(_logs.c.id).where(_logs.c.group_id == group.id, wrong)
        # A row that somebody else holds is left for later: to wait for it would hold the group too, and its bell.
        chunk = of_group.limit(limit - changed).with_for_update(skip_locked=True)
        changed += connection.execute(
            update(_logs)
            .where(_logs.c.id.in_(chunk))
            .values(resolved=group.resolved_at is not None, resolved_at=group.resolved_at)
        ).rowcount
        if changed < limit and connection.execute(of_group.limit(1)).first() is None:
            connection.execute(update(_groups).where(_groups.c.id == group.id).values(rows_pending=False))
    return changed


def list_groups(
    connection: Connection,
    *,
    status: Status | None = None,
    severity: Severity | None = None,
    category: str | None = None,
    service: str | None = None,
    environment: str | None = None,
    q: str | None = None,
    limit: int = 50,
    before: str | None = None,
) -> tuple[list[Group], str | None]:
    """
    Groups, the last seen first, and where the next page starts.

    Args:
        q: a part of title, place or exception type, in any case.
        before: what an earlier call returned as its second value.

    Returns:
        The groups, and an opaque value for `before`; None when there are no more.

    Raises:
        BadInput: `before` is not such a value.
    """
    wanted = {"status": status, "severity": severity, "category": category, "service": service}
    query = select(_groups).where(
        *(_groups.c[name] == str(value) for name, value in (wanted | {"environment": environment}).items() if value)
    )
    if q:
        places = (_groups.c.title, _groups.c.culprit, _groups.c.exception_type)
        query = query.where(or_(*(place.icontains(q, autoescape=True) for place in places)))
    if before is not None:
        last_seen, group_id = cursors.decode(before)
        same_moment = and_(_groups.c.last_seen == last_seen, _groups.c.id < group_id)
        query = query.where(or_(_groups.c.last_seen < last_seen, same_moment))
    query = query.order_by(_groups.c.last_seen.desc(), _groups.c.id.desc()).limit(limit + 1)
    found = [Group.from_row(row) for row in connection.execute(query).mappings()]
    page = found[:limit]
    return page, cursors.encode(page[-1].last_seen, page[-1].id) if len(found) > limit and page else None


_SAVED = (
    *("number", "severity", "category", "status", "first_seen", "last_seen", "count", "regressions"),
    *("resolved_at", "resolved_by", "resolved_in_release", "muted_until", "mute_until_count"),
    *("last_release", "last_error_id", "mark", "marked_at", "rows_pending"),
)
_saved = attrgetter(*_SAVED)
_save = (
    update(_groups)
    .where(_groups.c.id == bindparam("saved_id"))
    .values({name: bindparam(f"new_{name}", type_=_groups.c[name].type) for name in _SAVED})
)


def save(connection: Connection, changed: Collection[Group]) -> None:
    """Store what may change in groups that this transaction holds."""
    ordered = sorted(changed, key=lambda group: group.id)
    if ordered and bulk.is_for(connection):
        bulk.update(connection, _groups, ("id", *_SAVED), [(group.id, *_saved(group)) for group in ordered])
    elif ordered:
        names = [f"new_{name}" for name in _SAVED]
        connection.execute(
            _save, [{"saved_id": group.id} | dict(zip(names, _saved(group), strict=True)) for group in ordered]
        )


def _numbered(number: int) -> Select[Any]:
    # People type anything; a number that the column cannot hold is no group's.
    return select(_groups).where(_groups.c.number == (number if 0 < number < 2**31 else 0))


def _one(connection: Connection, query: Select[Any], what: str) -> Group:
    row = connection.execute(query).mappings().first()
    if row is None:
        raise NotFound(what)
    return Group.from_row(row)


def _newest_release(connection: Connection, service: str) -> str | None:
    query = select(_releases.c.release).where(_releases.c.service == service)
    return connection.execute(query.order_by(_releases.c.first_seen.desc()).limit(1)).scalar()
