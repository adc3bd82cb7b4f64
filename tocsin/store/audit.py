"""Who did what, when and by which way; what was refused stands here as well."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime, timedelta

from sqlalchemy import Connection, insert, select, update

from tocsin.store import schema

REFUSALS_AN_HOUR = 20
"""What one person tries in vain is written down so often; more is only counted."""

_audit = schema.audit
_REFUSED, _MORE = "refused", "refused more"


BY_ITSELF = "tocsin"
"""The actor where tocsin has seen by itself that something is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the audit."""

    at: datetime
    actor: str  #          "@anna (17)", "cli: root", "token: full"
    via: str  #            telegram, api, page, cli
    action: str  #         a trigger of the lifecycle, or log-in, refused, …
    target: str | None  #  "#42"
    detail: str | None
    allowed: bool


def record(
    connection: Connection,
    *,
    actor: str,
    via: str,
    action: str,
    target: str | None = None,
    detail: str | None = None,
    allowed: bool = True,
    now: datetime,
) -> None:
    """Write down what somebody did, or tried to."""
    values = {"actor": actor, "via": via, "action": action, "target": target, "detail": detail, "allowed": allowed}
    connection.execute(insert(_audit).values(at=now, **values))


def refuse(
    connection: Connection, *, actor: str, via: str, target: str | None, detail: str | None, now: datetime
) -> None:
    """
    Write down what somebody tried in vain.

    Whoever may do nothing may still write here; so one row counts what goes beyond `REFUSALS_AN_HOUR`.
    """
    lately = connection.execute(
        select(_audit.c.id, _audit.c.action, _audit.c.detail)
        .where(
            _audit.c.actor == actor,
            _audit.c.via == via,
            _audit.c.action.in_((_REFUSED, _MORE)),
            _audit.c.at > now - timedelta(hours=1),
        )
        .order_by(_audit.c.at)
    ).all()
    counting = next((row for row in lately if row.action == _MORE), None)
    if len(lately) - (counting is not None) < REFUSALS_AN_HOUR:
        record(connection, actor=actor, via=via, action=_REFUSED, target=target, detail=detail, allowed=False, now=now)
    elif counting is None:
        record(connection, actor=actor, via=via, action=_MORE, detail="1", allowed=False, now=now)
    else:
        more = str(int(counting.detail) + 1)
        connection.execute(update(_audit).where(_audit.c.id == counting.id).values(detail=more))


def of_target(connection: Connection, target: str, limit: int = 50) -> list[Entry]:
    """What was done to a target such as ``#42``, newest first."""
    query = (
        select(*(_audit.c[field.name] for field in fields(Entry)))
        .where(_audit.c.target == target)
        .order_by(_audit.c.id.desc())
        .limit(limit)
    )
    return [Entry(**row) for row in connection.execute(query).mappings()]
