"""One door to both databases: transactions, outages, and what wakes whom."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, func, insert, select, text
from sqlalchemy.exc import DBAPIError, StatementError

from tests.conftest import ErrorFactory
from tests.postgres import PostgresServer
from tests.waiting import aeventually
from tocsin.failures import BadInput, StoreAway, TableMissing
from tocsin.model import Batch
from tocsin.store import Store, errors, migrate, open_store, schema
from tocsin.store.engine import PostgresStore, SqliteStore


def count_errors(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(schema.error_logs)).scalar_one()


async def test_work_that_fails_leaves_nothing(store: Store, error: ErrorFactory, now: datetime) -> None:
    """All of a transaction or nothing, whatever was raised."""

    def work(connection: Connection) -> None:
        errors.write_batch(connection, Batch(entries=[error()]), now)
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        await store.write(work)

    assert await store.read(count_errors) == 0


def test_a_thread_without_a_loop_reads_and_writes(database_url: str, error: ErrorFactory, now: datetime) -> None:
    """The drain and the commands have none."""
    store = open_store(database_url)

    store.write_now(errors.write_batch, Batch(entries=[error()]), now)

    assert store.read_now(count_errors) == 1
    store.close_now()


async def test_a_server_that_is_away_is_said_so_and_found_again(postgres_server: PostgresServer) -> None:
    """The same store goes on when the server is back, though its connections were cut."""
    store = open_store(postgres_server.url)
    await migrate.migrate(store)
    assert await store.read(count_errors) == 0

    postgres_server.stop(at_once=True)
    for _ in range(3):
        with pytest.raises(StoreAway):
            await store.read(count_errors)
    postgres_server.start()

    assert await store.read(count_errors) == 0
    await store.close()


async def test_who_listens_is_woken_by_what_another_process_stores(
    postgres_url: str, error: ErrorFactory, now: datetime
) -> None:
    """The alerts look at once instead of at the next beat."""
    writer, listener = open_store(postgres_url), open_store(postgres_url)
    woken = asyncio.Event()
    listening = asyncio.create_task(listener.listen(woken.set))

    async def is_woken() -> bool:
        await writer.write(errors.write_batch, Batch(entries=[error()]), now)
        return woken.is_set()

    await aeventually(is_woken)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await writer.close()
    await listener.close()


async def test_a_listener_comes_back_after_an_outage(postgres_server: PostgresServer) -> None:
    """It has a connection of its own, which nobody else would mend."""
    store = open_store(postgres_server.url)
    await migrate.migrate(store)
    woken = asyncio.Event()
    listening = asyncio.create_task(store.listen(woken.set))

    async def is_woken() -> bool:
        await store.write(lambda connection: connection.exec_driver_sql("SELECT pg_notify('tocsin', '')"))
        return woken.is_set()

    await aeventually(is_woken)
    postgres_server.stop(at_once=True)
    postgres_server.start()
    woken.clear()

    await aeventually(is_woken, 20)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await store.close()


def test_a_file_that_another_process_holds_is_away(sqlite_url: str, error: ErrorFactory, now: datetime) -> None:
    """A backup that locks it for long is an outage like any other; reading goes on."""
    path = sqlite_url.removeprefix("sqlite:///")
    store = SqliteStore(sqlite_url, patience_s=0.05)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreAway, match="locked"):
        store.write_now(errors.write_batch, Batch(entries=[error()]), now)
    assert store.read_now(count_errors) == 0
    holder.execute("ROLLBACK")
    store.write_now(errors.write_batch, Batch(entries=[error()]), now)

    assert store.read_now(count_errors) == 1
    holder.close()
    store.close_now()


_RAISES = "DO $$ BEGIN RAISE EXCEPTION 'no more connections allowed' USING ERRCODE = '{}'; END $$"


@pytest.mark.parametrize(
    ("sqlite", "postgresql", "gone"),
    [
        ("SELECT * FROM lost", "SELECT * FROM tocsin.lost", r"the table (tocsin\.)?lost is missing"),
        ("SELECT lost FROM alerts", "SELECT a.lost FROM tocsin.alerts a", r"the column (a\.)?lost is missing"),
        (
            "INSERT INTO alerts (lost) VALUES (1)",
            "INSERT INTO tocsin.alerts (lost) VALUES (1)",
            "the column lost of the table alerts is missing",
        ),
    ],
)
async def test_what_is_missing_in_a_database_is_no_outage(
    store: Store, sqlite: str, postgresql: str, gone: str
) -> None:
    """Who reads that it is away looks for the fault at the wrong end."""
    with pytest.raises(TableMissing, match=f"^{gone}: `tocsin check`"):
        await store.write(
            lambda connection: connection.exec_driver_sql(sqlite if store.dialect == "sqlite" else postgresql)
        )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.mkdir(), "is a folder: TOCSIN_DATABASE_URL has to name a file, such as sqlite:///"),
        (lambda path: path.write_text("port = 5432\n" * 20), "is a file, but no database of SQLite"),
        (lambda path: path.parent.rmdir() or path.parent.touch(), "cannot be made: .* is a file"),
    ],
    ids=["folder", "other file", "file for a folder"],
)
def test_a_file_that_is_none_of_sqlite_s_is_named_with_what_to_do(
    make: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "state" / "tocsin.db"
    path.parent.mkdir()
    make(path)
    store = SqliteStore(f"sqlite:///{path}")

    with pytest.raises(StoreAway, match=f"^{path} {said}"):
        store.read_now(count_errors)

    store.close_now()


@pytest.mark.parametrize(
    "statement",
    [
        _RAISES.format("XX000"),  # what poolers answer when they have no place left
        _RAISES.format("08P01"),
        _RAISES.format("25006"),
        _RAISES.format("40P01"),
        _RAISES.format("53300"),
        _RAISES.format("57P03"),
        _RAISES.format("P0001"),
        "SELECT lost FROM error_logs",
        "SELECT * FROM lost",
    ],
)
async def test_what_postgresql_says_of_itself_is_an_outage(postgres_url: str, statement: str) -> None:
    """None of it speaks against an error, which is kept for later."""
    store = open_store(postgres_url)

    with pytest.raises(StoreAway):
        await store.write(lambda connection: connection.exec_driver_sql(statement))

    await store.close()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1 / 0",
        "SELECT 'x'::uuid",
        "INSERT INTO tocsin.counters VALUES ('group_number', 1)",
        "INSERT INTO tocsin.counters VALUES (NULL, 1)",
        _RAISES.format("54000"),
    ],
)
async def test_what_postgresql_says_of_a_value_passes(postgres_url: str, statement: str) -> None:
    """Another try would meet the same."""
    store = open_store(postgres_url)

    with pytest.raises(DBAPIError):
        await store.write(lambda connection: connection.exec_driver_sql(statement))

    await store.close()


@pytest.mark.parametrize(
    "values",
    [
        {"name": object(), "value": 1},
        {"name": "group_number", "value": 1},
        {"name": None, "value": 1},
    ],
)
async def test_a_value_that_cannot_be_stored_passes(store: Store, values: dict[str, Any]) -> None:
    """Also where the driver refuses it before the database does."""
    with pytest.raises(DBAPIError):
        await store.write(lambda connection: connection.execute(insert(schema.counters).values(values)))


async def test_a_value_of_another_type_passes(postgres_url: str) -> None:
    """SQLite would store it."""
    store = open_store(postgres_url)
    values = {"name": "a", "value": "no number"}

    with pytest.raises(DBAPIError):
        await store.write(lambda connection: connection.execute(insert(schema.counters).values(values)))

    await store.close()


async def test_a_time_without_a_zone_passes(store: Store) -> None:
    """It fails on its way to the driver."""
    values = {"service": "shop", "release": "1", "first_seen": datetime(2026, 1, 1)}

    with pytest.raises(StatementError, match="time zone"):
        await store.write(lambda connection: connection.execute(insert(schema.releases).values(values)))


def test_a_damaged_file_is_away(tmp_path: Path) -> None:
    """A disk that fails says nothing against what was to be stored."""
    path = tmp_path / "tocsin.db"
    store = open_store(f"sqlite:///{path}")
    store.write_now(lambda connection: connection.execute(text("CREATE TABLE t (x)")) and None)
    store.close_now()
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 4000)
    store = open_store(f"sqlite:///{path}")

    with pytest.raises(StoreAway, match="malformed"):
        store.read_now(lambda connection: connection.execute(text("SELECT * FROM t")).all())

    store.close_now()


async def test_a_read_on_postgresql_ends_in_time(postgres_url: str) -> None:
    """One that goes on for ever holds a connection that others wait for; work on whole tables may take long."""
    store = PostgresStore(postgres_url, read_within_s=0.05)
    unhurried = store.unhurried()

    with pytest.raises(StoreAway, match="timeout"):
        await store.read(lambda connection: connection.execute(text("SELECT pg_sleep(20)")).all())
    await store.write(lambda connection: connection.execute(text("SELECT pg_sleep(0.1)")).all())
    await unhurried.read(lambda connection: connection.execute(text("SELECT pg_sleep(0.1)")).all())

    await store.close()
    await unhurried.close()


def test_a_file_of_sqlite_is_made_for_its_user_alone(tmp_path: Path) -> None:
    """Errors hold what is nobody else's business."""
    path = tmp_path / "state" / "tocsin.db"
    store = open_store(f"sqlite:///{path}")

    migrate.migrate_now(store)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    store.close_now()


def test_an_address_without_its_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base installation has none for PostgreSQL."""
    monkeypatch.setitem(__import__("sys").modules, "asyncpg", None)

    with pytest.raises(BadInput, match=r"asyncpg: pip install .*\[postgres\]"):
        open_store("postgresql://db/x")
