"""Who did what, when and by which way; what was refused stands here as well."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime

from sqlalchemy import Connection, insert, select

from tocsin.store import schema

_audit = schema.audit


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


def of_target(connection: Connection, target: str, limit: int = 50) -> list[Entry]:
    """What was done to a target such as ``#42``, newest first."""
    query = (
        select(*(_audit.c[field.name] for field in fields(Entry)))
        .where(_audit.c.target == target)
        .order_by(_audit.c.id.desc())
        .limit(limit)
    )
    return [Entry(**row) for row in connection.execute(query).mappings()]
