"""Processes of which nothing is heard: who they are, what was told of them, and when they are given up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, and_, or_, select, update

from tocsin.store.errors import SILENT
from tocsin.store.schema import instances

GIVEN_UP_AFTER = timedelta(hours=24)
"""A row of which nothing was heard for so long is closed, so that it is not there for ever."""

_DEPLOY = timedelta(minutes=2)  # a new release may be there for so long before the old one goes
_MOST = 1000

_table = instances.c


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """A process that has said nothing for a while, or was told to be silent; see the columns of ``instances``."""

    id: str
    service: str
    environment: str
    release: str | None
    host: str
    pid: int
    started_at: datetime
    last_seen: datetime
    ended_at: datetime | None
    ended_how: str | None
    is_shutting_down: bool
    memory_bytes: int | None
    memory_limit_bytes: int | None
    active_requests: int | None
    loop_lag_ms: int | None
    beats_every_s: float | None
    silent_error_id: str | None

    @property
    def place(self) -> tuple[str, str]:
        """What is told of as one."""
        return self.service, self.environment


_COLUMNS = [instances.c[name] for name in Quiet.__dataclass_fields__]


def quiet(connection: Connection, now: datetime, after: timedelta) -> list[Quiet]:
    """Those that live as far as anybody knows and have said nothing for so long, and those that were told of."""
    old = or_(_table.beats_every_s > 0, _table.last_seen < now - GIVEN_UP_AFTER)
    silent = and_(_table.ended_at.is_(None), _table.last_seen < now - after, old)
    found: dict[str, Quiet] = {}
    for which in (_table.silent_error_id.is_not(None), silent):
        query = select(*_COLUMNS).where(which).order_by(_table.last_seen, _table.id).limit(_MOST)
        found |= {row["id"]: Quiet(**row) for row in connection.execute(query).mappings()}
    return list(found.values())


def silent_now(connection: Connection) -> list[Quiet]:
    """Those that are told of, the longest silent first."""
    query = select(*_COLUMNS).where(_table.silent_error_id.is_not(None)).order_by(_table.last_seen, _table.id)
    return [Quiet(**row) for row in connection.execute(query.limit(_MOST)).mappings()]


def is_replaced(connection: Connection, one: Quiet) -> bool:
    """Whether another release of its service has begun about when it went: that is a deploy, however rude."""
    query = select(_table.id).where(
        _table.service == one.service,
        _table.environment == one.environment,
        _table.release != one.release,
        _table.started_at > max(one.started_at, one.last_seen - _DEPLOY),
    )
    return connection.execute(query.limit(1)).first() is not None


def count_alive(connection: Connection, place: tuple[str, str], since: datetime) -> int:
    """How many processes of a service have been heard of since then."""
    service, environment = place
    query = select(_table.id).where(
        _table.service == service,
        _table.environment == environment,
        _table.ended_at.is_(None),
        _table.last_seen >= since,
    )
    return len(connection.execute(query.limit(_MOST)).all())


def note_told(connection: Connection, one: Quiet, error_id: str) -> None:
    """That its silence is told of."""
    connection.execute(update(instances).where(_table.id == one.id).values(silent_error_id=error_id))


def note_over(connection: Connection, ids: Sequence[str]) -> None:
    """That there is nothing more to tell of the silence of these."""
    connection.execute(update(instances).where(_table.id.in_(sorted(ids))).values(silent_error_id=None))


def give_up(connection: Connection, one: Quiet) -> None:
    """Close the row of one of which nothing is expected any more; unless it was heard of in between."""
    still = (_table.id == one.id, _table.ended_at.is_(None), _table.last_seen == one.last_seen)
    values = {"ended_at": one.last_seen, "ended_how": SILENT, "silent_error_id": None, "is_shutting_down": False}
    connection.execute(update(instances).where(*still).values(values))
