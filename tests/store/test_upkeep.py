"""Nothing grows for ever."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select

from tocsin.store import Store, audit, credentials, schema, upkeep

DAY = timedelta(days=1)
MOMENT = timedelta(microseconds=1)


async def names(store: Store, table: str, column: str) -> list[str]:
    chosen = schema.metadata.tables[f"{schema.SCHEMA}.{table}"].c[column]

    def work(connection: Connection) -> list[str]:
        return list(connection.execute(select(chosen).order_by(chosen)).scalars())

    return await store.read(work)


def segment(connection: Connection, name: str, at: datetime) -> None:
    connection.execute(insert(schema.spool_progress).values(segment=name, position=1, updated_at=at))


def instance(connection: Connection, name: str, at: datetime) -> None:
    values = {"id": name, "service": "shop", "environment": "production", "host": "web-1", "pid": 7}
    connection.execute(insert(schema.instances).values(**values, started_at=at, last_seen=at))


def entry(connection: Connection, name: str, at: datetime) -> None:
    audit.record(connection, actor="@anna", via="api", action=name, now=at)


@pytest.mark.parametrize(
    ("make", "table", "column", "age"),
    [
        (segment, "spool_progress", "segment", 7 * DAY),
        (instance, "instances", "id", 30 * DAY),
        (entry, "audit", "action", 365 * DAY),
    ],
)
async def test_what_is_too_old_goes(
    make: Any, table: str, column: str, age: timedelta, store: Store, now: datetime
) -> None:
    """And not a moment before."""
    for number in range(5):
        await store.write(make, f"old-{number}", now - age - MOMENT)
    await store.write(make, "young", now - age)

    removed = [await store.write(upkeep.sweep, now, limit=2) for _ in range(4)]

    assert removed == [2, 2, 1, 0]
    assert await names(store, table, column) == ["young"]


async def test_secrets_that_have_run_out_go(store: Store, now: datetime) -> None:
    """A token has no end."""
    for make in (credentials.make_token, credentials.make_session, credentials.make_code):
        await store.write(make, rights="full", label="admin", now=now)

    assert await store.write(upkeep.sweep, now) == 0
    assert await store.write(upkeep.sweep, now + 8 * DAY) == 2
    assert await names(store, "credentials", "kind") == ["token"]
