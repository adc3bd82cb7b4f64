"""Nothing grows for ever."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import pytest
from sqlalchemy import Connection, insert, select

from tocsin.model import Repeats
from tocsin.store import Store, audit, credentials, held, schema, upkeep

DAY = timedelta(days=1)
MOMENT = timedelta(microseconds=1)
YOUNG = "ffffffff-0000-8000-8000-000000000000"


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


def received(connection: Connection, name: str, at: datetime) -> None:
    value = str(uuid5(NAMESPACE_OID, name)) if name != "young" else YOUNG
    connection.execute(insert(schema.received).values(id=value, received_at=at))


def said_early(connection: Connection, name: str, at: datetime) -> None:
    error_id = str(uuid5(NAMESPACE_OID, name)) if name != "young" else YOUNG
    held.hold(connection, [Repeats(error_id=error_id, count=1, timestamp=at)], at)


@pytest.mark.parametrize(
    ("make", "table", "column", "age"),
    [
        (segment, "spool_progress", "segment", 7 * DAY),
        (instance, "instances", "id", 30 * DAY),
        (entry, "audit", "action", 365 * DAY),
        (received, "received", "id", DAY),
        (said_early, "held", "error_id", DAY),
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
    assert await names(store, table, column) == [YOUNG if table in ("received", "held") else "young"]


async def test_of_ids_received_only_so_many_stay(store: Store, now: datetime) -> None:
    """However fast they arrive, what is kept of them has an end; the oldest go first."""
    for number in range(5):
        await store.write(received, f"{number}", now + number * MOMENT)
    await store.write(received, "young", now + 5 * MOMENT)

    removed = [await store.write(upkeep.sweep, now, limit=2, most_received=1) for _ in range(4)]

    assert removed == [2, 2, 1, 0]
    assert await names(store, "received", "id") == [YOUNG]


async def test_of_what_waits_for_its_error_only_so_much_stays(store: Store, now: datetime) -> None:
    """Errors that never come can be told of without end."""
    for number in range(5):
        await store.write(said_early, f"{number}", now)
    await store.write(said_early, "young", now)

    removed = [await store.write(held.sweep, now, 2, 1) for _ in range(4)]

    assert removed == [2, 2, 1, 0]
    assert await names(store, "held", "error_id") == [YOUNG]


async def test_secrets_that_have_run_out_go(store: Store, now: datetime) -> None:
    """A token has no end."""
    for make in (credentials.make_token, credentials.make_session, credentials.make_code):
        await store.write(make, rights="full", label="admin", now=now)

    assert await store.write(upkeep.sweep, now) == 0
    assert await store.write(upkeep.sweep, now + 8 * DAY) == 2
    assert await names(store, "credentials", "kind") == ["token"]
