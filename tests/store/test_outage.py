"""Ways in which a PostgreSQL server refuses: noticed, left, and come back to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import asyncpg
import pytest
from sqlalchemy import Connection, func, select, text

from tests.conftest import ErrorFactory
from tests.postgres import PostgresServer
from tests.waiting import aeventually
from tocsin.failures import StoreAway
from tocsin.model import Batch
from tocsin.store import Store, errors, migrate, open_store, schema
from tocsin.store.engine import CONNECTIONS, PostgresStore


def count_errors(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(schema.error_logs)).scalar_one()


def execute(url: str, *statements: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url)
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    asyncio.run(run())


@pytest.fixture
def url(postgres_server: PostgresServer) -> str:
    """A migrated database on a server of the test's own."""
    store = open_store(postgres_server.url)
    migrate.migrate_now(store)
    store.close_now()
    return postgres_server.url


async def test_a_primary_that_became_read_only_is_left_and_come_back_to(
    url: str, error: ErrorFactory, now: datetime
) -> None:
    """Its sessions stay read-only for as long as they live; a new one is not, once the failover is over."""
    store = open_store(url)
    await store.write(errors.write_batch, Batch(entries=[error()]), now)

    await asyncio.to_thread(execute, url, "ALTER DATABASE postgres SET default_transaction_read_only = on")
    await asyncio.to_thread(execute, url, _END_OTHERS)
    with pytest.raises(StoreAway, match="read-only"):
        await store.write(errors.write_batch, Batch(entries=[error()]), now)
    assert await store.read(count_errors) == 1
    await asyncio.to_thread(
        execute, url, "SET default_transaction_read_only = off", "ALTER DATABASE postgres RESET ALL"
    )
    with pytest.raises(StoreAway):
        await store.write(errors.write_batch, Batch(entries=[error()]), now)

    await store.write(errors.write_batch, Batch(entries=[error()]), now)

    assert await store.read(count_errors) == 2
    await store.close()


_END_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE pid <> pg_backend_pid() AND datname = current_database()"
)


async def test_a_standby_is_no_place_to_write_until_it_is_promoted(
    url: str, postgres_server: PostgresServer, error: ErrorFactory, now: datetime
) -> None:
    """An address with both hosts finds the one that takes writes; within ten seconds after the failover."""
    with postgres_server.standby() as standby:
        both = url.replace("@", f"@127.0.0.1:{standby.port},") + "?target_session_attrs=read-write"
        direct, either = open_store(standby.url), open_store(both)
        with pytest.raises(StoreAway, match="read-only"):
            await direct.write(errors.write_batch, Batch(entries=[error()]), now)
        await either.write(errors.write_batch, Batch(entries=[error()]), now)

        postgres_server.stop(at_once=True)
        standby.promote()
        begun = time.monotonic()

        async def is_written(store: Store) -> bool:
            try:
                await store.write(errors.write_batch, Batch(entries=[error()]), now)
            except StoreAway:
                return False
            return True

        await aeventually(lambda: is_written(direct), 10)
        await aeventually(lambda: is_written(either), 10)
        assert time.monotonic() - begun < 10
        await direct.close()
        await either.close()


@pytest.mark.parametrize("end", ["pg_terminate_backend", "pg_cancel_backend"])
async def test_a_session_that_the_server_ends_is_an_outage_of_one_try(url: str, end: str) -> None:
    """57P01 and 57014: nothing of it was stored, and the next try has another session."""
    store = open_store(url)
    others = f"SELECT {end}(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(20)%' AND pid <> pg_backend_pid()"
    sleeping = asyncio.create_task(store.write(lambda c: c.execute(text("SELECT pg_sleep(20)")).all()))

    async def ended() -> bool:
        await asyncio.to_thread(execute, url, others)
        return sleeping.done()

    await aeventually(ended)
    with pytest.raises(StoreAway):
        await sleeping
    assert await store.read(count_errors) == 0
    await store.close()


@contextmanager
def holding(url: str, statement: str) -> Iterator[None]:
    """A transaction that has run a statement and does nothing more."""
    done, ready = threading.Event(), threading.Event()

    async def hold() -> None:
        connection = await asyncpg.connect(url)
        async with connection.transaction():
            await connection.execute(statement)
            ready.set()
            await asyncio.to_thread(done.wait)
        await connection.close()

    thread = threading.Thread(target=lambda: asyncio.run(hold()))
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


async def test_a_lock_that_somebody_keeps_is_not_waited_for_for_ever(
    url: str, error: ErrorFactory, now: datetime
) -> None:
    """It is an outage: what was to be stored is kept, and tried again."""
    store = PostgresStore(url, write_within_s=0.4)
    await store.write(errors.write_batch, Batch(entries=[error()]), now)

    with holding(url, "SELECT * FROM tocsin.error_groups FOR UPDATE"):
        begun = time.monotonic()
        with pytest.raises(StoreAway, match="lock timeout"):
            await store.write(errors.write_batch, Batch(entries=[error()]), now)
        assert time.monotonic() - begun < 5
    await store.write(errors.write_batch, Batch(entries=[error()]), now)

    assert await store.read(count_errors) == 2
    await store.close()


async def test_a_store_opens_no_more_sessions_than_it_says(url: str) -> None:
    """However much is asked of it at once; and from one thread it is one."""
    store, alone = open_store(url), open_store(url)
    sessions = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tocsin'")

    def work(connection: Connection) -> int:
        connection.execute(text("SELECT pg_sleep(0.05)"))
        return int(connection.execute(sessions).scalar_one())

    most = max(await asyncio.gather(*(store.read(work) for _ in range(30))))
    assert most == CONNECTIONS
    await store.close()

    def from_a_thread() -> int:
        for _ in range(5):
            alone.write_now(work)
        found = alone.read_now(work)
        alone.close_now()
        return found

    assert await asyncio.to_thread(from_a_thread) == 1


def test_who_does_not_own_the_tables_is_told_so(url: str) -> None:
    """Row level security would hide every row from another user, and refuse every one that it writes."""
    execute(url, "CREATE ROLE shop LOGIN", "GRANT ALL ON error_logs TO shop")
    store = open_store(url.replace("postgres@", "shop@"))

    with pytest.raises(StoreAway, match="who owns tocsin's tables"):
        migrate.prepare_now(store)
    with pytest.raises(StoreAway, match="who owns tocsin's tables"):
        store.write_now(
            Connection.exec_driver_sql, "INSERT INTO error_logs (severity, category, message) VALUES ('low', 'api', '')"
        )

    store.close_now()
