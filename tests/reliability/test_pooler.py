"""Behind a pooler in transaction mode: every transaction may meet another session, and nothing relies on one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from tests.conftest import ErrorFactory
from tests.pgbouncer import pgbouncer
from tests.postgres import PostgresServer
from tests.processes import rows_of
from tests.standin.telegram import TelegramStandIn
from tests.store.migrating import migrate_at_once
from tests.store.test_migrate import differences
from tests.test_journey import ANNA, CHAT, message_with, running
from tests.waiting import eventually
from tocsin.model import Batch
from tocsin.store import errors, migrate, open_store


@pytest.fixture
def pooled_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The address of a pooler whose clients share two sessions of PostgreSQL."""
    with pgbouncer(postgres_server, pool_size=2) as url:
        yield url


@pytest.mark.parametrize("many", [4, pytest.param(10, marks=pytest.mark.gate)])
def test_many_migrate_at_once_through_a_pooler(many: int, pooled_url: str) -> None:
    """They share two sessions, one of which holds the lock that the others wait for."""
    results = migrate_at_once(pooled_url, many)

    assert sorted(len(said) for said in results) == [0] * (many - 1) + [1], results
    store = open_store(pooled_url)
    assert store.read_now(differences) == []
    store.close_now()


async def test_many_at_once_share_few_sessions(pooled_url: str, error: ErrorFactory) -> None:
    """Statements of one transaction stay together, those of others never get between; nothing stays behind."""
    stores = [open_store(pooled_url) for _ in range(6)]
    await migrate.migrate(stores[0])

    async def write(number: int) -> None:
        for turn in range(10):
            record = error(f"Kind{(number + turn) % 3}")
            await stores[number % 6].write(errors.write_batch, Batch(entries=[record]), record.timestamp)

    await asyncio.gather(*(write(number) for number in range(12)))

    def counted(connection: Connection) -> int:
        return int(connection.execute(text("SELECT sum(count) FROM tocsin.error_groups")).scalar_one())

    def limits(connection: Connection) -> str:
        return str(connection.execute(text("SHOW lock_timeout")).scalar_one())

    assert await stores[0].read(counted) == 120
    unbounded = stores[0].unhurried()
    assert {await unbounded.read(limits) for _ in range(4)} == {"0"}
    for store in (*stores, unbounded):
        await store.close()


def test_raise_rings_and_resolve_answers_through_a_pooler(pooled_url: str, tmp_path: Path) -> None:
    """No notification gets through, so it is the look every quarter of a second that finds it."""
    with TelegramStandIn() as telegram, running(tmp_path, pooled_url, telegram) as (service, _):
        service.raise_("PaymentLost", "order 17")
        alert = message_with(telegram, "PaymentLost")

        telegram.say("/resolve 1", chat_id=CHAT, user_id=ANNA, chat_type="supergroup", username="anna")

        message_with(telegram, "#1", after=alert.message_id)
        eventually(lambda: all(row.resolved for row in rows_of(pooled_url)), 30)
