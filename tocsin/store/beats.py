"""Beats: the signs of life of what runs on a schedule, and which of them are missing."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from tocsin import contained
from tocsin.beats import LEAST_S, State, grace_of
from tocsin.failures import BadInput, NotFound
from tocsin.lifecycle import Status, Trigger
from tocsin.model import Beat
from tocsin.store import audit, groups, schema

MOST = 1_000
"""How many beats there may be; a script that makes up names shall not fill the table."""

_beats = schema.beats
_groups = schema.error_groups
_logs = schema.error_logs


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptBeat:
    """
    A row of ``beats``, with the group of the error that tells of it.

    ``told`` and ``told_at`` say what that error tells, and of which sign of life.
    """

    environment: str
    name: str
    service: str | None
    every_s: float
    grace_s: float
    created_at: datetime
    last_at: datetime
    last_ok_at: datetime | None
    due_at: datetime
    is_ok: bool
    took_s: float | None
    message: str | None
    error_id: str | None
    told: str | None
    told_at: datetime | None
    group: int | None
    group_status: Status | None  # None: its error is gone, by retention perhaps
    group_resolved_at: datetime | None

    def state(self, now: datetime) -> State:
        """How it stands; by the database's clock."""
        if now > self.due_at:
            return State.MISSING
        return State.OK if self.is_ok else State.FAILED


def note(connection: Connection, beat: Beat, now: datetime) -> None:
    """Note a sign of life from a spool; one that cannot be taken is left out, and said."""
    try:
        tell(connection, beat, now)
    except BadInput as problem:
        contained.note("taking a beat", problem)


def tell(connection: Connection, beat: Beat, now: datetime) -> None:
    """
    Note a sign of life; the first one makes the row, an older one than that of the row changes nothing.

    Args:
        beat: where it says how often it comes but no grace, that is the usual one.
        now: the database's time; nothing is taken to have happened after it.

    Raises:
        BadInput: nobody has ever said how often it comes, or there are `MOST` beats. Nothing is stored.
    """
    if beat.every_s is not None and beat.every_s < LEAST_S:
        raise BadInput("every", f"{beat.name} cannot come more than once a second")
    at = min(beat.timestamp, now)
    row = _held(connection, beat)
    if row is None:
        if beat.every_s is None:
            problem = f"nothing is known of {beat.name} in {beat.environment} yet; say how often it runs, such as 1d"
            raise BadInput("every", problem)
        if connection.execute(select(func.count()).select_from(_beats)).scalar_one() >= MOST:
            raise BadInput("name", f"there are {MOST:,} beats, which is the most; forget one first")
        if _made(connection, beat, at, now):
            return
        row = _held(connection, beat)  # somebody else has made it this moment
    if row is None or at < row.last_at:
        return
    every_s = row.every_s if beat.every_s is None else beat.every_s
    usual_s = row.grace_s if beat.every_s is None else grace_of(every_s)
    changes = _values(beat, at, every_s, usual_s if beat.grace_s is None else beat.grace_s)
    if beat.is_ok:
        changes["last_ok_at"] = at
    connection.execute(update(_beats).where(_is(beat.environment, beat.name)).values(**changes))


def list_beats(connection: Connection, environment: str | None = None) -> list[KeptBeat]:
    """All beats, by name."""
    query = _QUERY.order_by(_beats.c.name, _beats.c.environment)
    return _read(connection, query if environment is None else query.where(_beats.c.environment == environment))


def is_known(connection: Connection, environment: str, name: str) -> bool:
    """Whether there is such a beat."""
    return connection.execute(select(_beats.c.name).where(_is(environment, name))).first() is not None


def overdue(connection: Connection, now: datetime) -> list[KeptBeat]:
    """Those of which there may be something to tell: missing, failed, or told of."""
    is_worth_it = or_(_beats.c.error_id.is_not(None), _beats.c.is_ok.is_(False), _beats.c.due_at < now)
    return _read(connection, _QUERY.where(is_worth_it).order_by(_beats.c.environment, _beats.c.name))


def mark_told(connection: Connection, beat: KeptBeat, error_id: str | None, told: State | None) -> bool:
    """
    Note which error tells of a beat, None once it is well again; False where it is not any more as it was read.

    Then somebody else has told, or it has just been heard of: the caller takes back what it was about to tell.
    """
    same_error = _beats.c.error_id.is_(None) if beat.error_id is None else _beats.c.error_id == beat.error_id
    statement = update(_beats).where(_is(beat.environment, beat.name), _beats.c.last_at == beat.last_at, same_error)
    told_at = None if told is None else beat.last_at
    return bool(connection.execute(statement.values(error_id=error_id, told=told, told_at=told_at)).rowcount)


def forget(connection: Connection, name: str, environment: str | None, *, by: str, via: str, now: datetime) -> KeptBeat:
    """
    Remove a beat that shall come no more; what rang of it is resolved by whoever forgets it.

    Raises:
        NotFound: there is none.
        BadInput: it is there in several environments, and none is named.
    """
    found = [beat for beat in list_beats(connection, environment) if beat.name == name]
    if not found:
        raise NotFound(f"beat {name}" + (f" in {environment}" if environment else ""))
    if len(found) > 1:
        raise BadInput("environment", f"{name} is in {', '.join(one.environment for one in found)}: say in which")
    (beat,) = found
    if beat.group is not None and beat.group_status in (Status.OPEN, Status.ACKNOWLEDGED):
        groups.act(connection, beat.group, Trigger.RESOLVE, by=by, via=via)
    connection.execute(delete(_beats).where(_is(beat.environment, name)))
    audit.record(
        connection, actor=by, via=via, action="forget", target=f"beat {name}", detail=beat.environment, now=now
    )
    return beat


_GROUP = (
    _groups.c.number.label("group"),
    _groups.c.status.label("group_status"),
    _groups.c.resolved_at.label("group_resolved_at"),
)
_QUERY = select(
    *(_beats.c[one.name] for one in fields(KeptBeat) if not one.name.startswith("group")), *_GROUP
).select_from(
    _beats.outerjoin(_logs, _logs.c.id == _beats.c.error_id).outerjoin(_groups, _groups.c.id == _logs.c.group_id)
)


def _read(connection: Connection, query: Select[Any]) -> list[KeptBeat]:
    found = []
    for row in connection.execute(query).mappings():
        status = row["group_status"]
        found.append(KeptBeat(**{**row, "group_status": None if status is None else Status(status)}))
    return found


def _is(environment: str, name: str) -> ColumnElement[bool]:
    return and_(_beats.c.environment == environment, _beats.c.name == name)


def _held(connection: Connection, beat: Beat) -> Any:
    columns = (_beats.c.last_at, _beats.c.every_s, _beats.c.grace_s)
    return connection.execute(select(*columns).where(_is(beat.environment, beat.name)).with_for_update()).first()


def _made(connection: Connection, beat: Beat, at: datetime, now: datetime) -> bool:
    """Make the row; False where it is there."""
    every_s = beat.every_s or 0.0
    values = _values(beat, at, every_s, grace_of(every_s) if beat.grace_s is None else beat.grace_s)
    values |= {"environment": beat.environment, "name": beat.name, "created_at": now}
    values["last_ok_at"] = at if beat.is_ok else None
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return bool(connection.execute(dialect.insert(_beats).values(**values).on_conflict_do_nothing()).rowcount)


def _values(beat: Beat, at: datetime, every_s: float, grace_s: float) -> dict[str, Any]:
    return {
        "service": beat.service,
        "every_s": every_s,
        "grace_s": grace_s,
        "last_at": at,
        "due_at": at + timedelta(seconds=every_s + grace_s),
        "is_ok": beat.is_ok,
        "took_s": beat.took_s,
        "message": beat.message or None,
    }
