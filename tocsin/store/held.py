"""
What is said of an error before the error is here: it is held until that comes, for a day.

A service's lines may reach the database by several servers, and one that was killed may bring an error
long after another has brought its repeats.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from tocsin.model import Amendment, Recovery, Repeats, Severity
from tocsin.store import schema

AGE = timedelta(hours=24)

MOST = 50_000
"""That are held, the newest: anybody with the right to send may speak of errors that never come."""

_MOST_OF_A_CONTEXT = 16 * 1024

_held = schema.held

Later = Amendment | Repeats | Recovery
"""What is said of an error after it happened."""


def hold(connection: Connection, entries: Iterable[Later], now: datetime) -> None:
    """Keep what is said of errors that have never been received."""
    rows = [{"error_id": entry.error_id, "content": _content(entry), "held_at": now} for entry in entries]
    if rows:
        connection.execute(insert(_held), rows)


def release(connection: Connection, error_ids: Collection[str]) -> list[Later]:
    """Let go, in its order, of what waited for errors that have come in this transaction."""
    if not error_ids:
        return []
    query = delete(_held).where(_held.c.error_id.in_(sorted(error_ids))).returning(*_held.c)
    return [_entry(row.error_id, row.content) for row in sorted(connection.execute(query), key=lambda row: row.id)]


def sweep(connection: Connection, now: datetime, limit: int, most: int = MOST) -> int:
    """Give up the oldest, some at a time; how many."""
    first = select(_held.c.id, _held.c.held_at).order_by(_held.c.id).limit(limit).subquery()
    last = select(_held.c.id).order_by(_held.c.id.desc()).offset(most).limit(1).scalar_subquery()
    old = select(first.c.id).where((first.c.held_at < now - AGE) | (first.c.id <= last))
    return connection.execute(delete(_held).where(_held.c.id.in_(old))).rowcount


def _content(entry: Later) -> dict[str, Any]:
    if isinstance(entry, Repeats):
        return {"count": entry.count, "timestamp": entry.timestamp.isoformat()}
    if isinstance(entry, Recovery):
        return {"recovered": entry.message, "timestamp": entry.timestamp.isoformat()}
    is_small = len(json.dumps(entry.context)) <= _MOST_OF_A_CONTEXT
    return {
        "severity": entry.severity,
        "category": entry.category,
        "handled": entry.handled,
        "mechanism": entry.mechanism,
        "context": entry.context if is_small else {},
    }


def _entry(error_id: str, content: dict[str, Any]) -> Later:
    if "timestamp" in content:
        moment = datetime.fromisoformat(content["timestamp"])
        if "recovered" in content:
            return Recovery(error_id=error_id, timestamp=moment, message=content["recovered"])
        return Repeats(error_id=error_id, count=content["count"], timestamp=moment)
    severity = content["severity"]
    return Amendment(error_id=error_id, **{**content, "severity": Severity(severity) if severity is not None else None})
