"""Bringing databases up to date: new ones, early ones, by many at once, by who is killed."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, inspect, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex

from tests.conftest import ErrorFactory
from tests.store import early
from tests.store.migrating import migrate_at_once
from tocsin.failures import SchemaMismatch, StoreAway, TableMissing
from tocsin.model import Batch
from tocsin.store import Store, access, errors, migrate, open_store, schema
from tocsin.store.schema import SCHEMA

OLD_COLUMNS = "id, severity, category, message, stack, environment, resolved, timestamp, resolved_at, created_at"


@pytest.fixture
async def empty_store(empty_database_url: str) -> AsyncIterator[Store]:
    """A store on a database in which there is nothing."""
    opened = open_store(empty_database_url)
    yield opened
    await opened.close()


@pytest.fixture
async def early_store(empty_store: Store) -> Store:
    """A store on a database with the early table and three rows."""
    await empty_store.write(make_early_table)
    return empty_store


def make_early_table(connection: Connection) -> None:
    script = (early.SQLITE if connection.dialect.name == "sqlite" else early.POSTGRES) + early.ROWS
    for statement in filter(str.strip, script.split(";\n")):
        connection.exec_driver_sql(statement)


def differences(connection: Connection) -> list[Any]:
    """What the migrations have built otherwise than `schema` says."""
    if connection.dialect.name == "postgresql":
        options = {"include_schemas": True, "include_name": _is_ours, "version_table_schema": SCHEMA}
        return _compare(connection, schema.metadata, options)
    # SQLite has no schemas, and indexes over expressions are compared as text.
    wanted = MetaData()
    for table in schema.metadata.tables.values():
        table.to_metadata(wanted, schema=None)  # type: ignore[arg-type]  # None is "no schema" here
    found = set(
        connection.execute(text("SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")).scalars()
    )
    indexes = [index for table in wanted.tables.values() for index in table.indexes]
    expected = {str(CreateIndex(index).compile(dialect=connection.dialect)).strip() for index in indexes}
    options = {"include_object": lambda thing, name, kind, reflected, other: kind != "index"}
    return [*_compare(connection, wanted, options), *(found ^ expected)]


def _is_ours(name: str | None, kind: str, parents: Any) -> bool:
    return kind != "schema" or name in (None, SCHEMA)


def _compare(connection: Connection, wanted: MetaData, options: dict[str, Any]) -> list[Any]:
    options = {"version_table": migrate.VERSION_TABLE, **options}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), wanted))


def column_names(connection: Connection) -> set[tuple[str, str, bool]]:
    """Table, column, and whether it takes null, of all that is ours."""
    inspector = inspect(connection)
    place = SCHEMA if connection.dialect.name == "postgresql" else None
    names = {(None if table == "error_logs" else place, table) for table in inspector.get_table_names()}
    names |= {(place, table) for table in inspector.get_table_names(schema=place)}
    return {
        (table, column["name"], column["nullable"])
        for where, table in names
        for column in inspector.get_columns(table, schema=where)
    }


def index_names(connection: Connection) -> set[str]:
    statement = (
        "SELECT name FROM sqlite_master WHERE type = 'index' AND name LIKE 'idx%'"
        if connection.dialect.name == "sqlite"
        else "SELECT indexname FROM pg_indexes WHERE indexname LIKE 'idx%'"
    )
    return set(connection.execute(text(statement)).scalars())


async def early_rows(store: Store) -> list[Any]:
    def work(connection: Connection) -> list[Any]:
        return list(connection.execute(text(f"SELECT {OLD_COLUMNS} FROM error_logs ORDER BY id")).all())

    return await store.read(work)


async def test_the_migrations_and_the_schema_build_the_same_database(store: Store) -> None:
    """`schema` is what the code reads and writes; the migrations are what users have."""
    assert await store.read(differences) == []
    wanted = {(table.name, c.name, bool(c.nullable)) for table in schema.metadata.tables.values() for c in table.c}
    found = await store.read(column_names)
    assert {one for one in found if one[0] != migrate.VERSION_TABLE} == wanted


def test_the_code_expects_the_newest_revision() -> None:
    """And revisions sort by age, since they are compared without Alembic."""
    config = Config()
    config.set_main_option("script_location", "tocsin.store:migrations")
    scripts = ScriptDirectory.from_config(config)

    revisions = [script.revision for script in scripts.walk_revisions()]

    assert scripts.get_heads() == [migrate.EXPECTED]
    assert revisions == sorted(revisions, reverse=True)


async def test_an_empty_database_gets_all_tables(empty_store: Store) -> None:
    """And says what it does; a second time there is nothing to do and nothing to say."""
    said: list[str] = []
    assert await empty_store.read(migrate.version) is None

    assert await migrate.migrate(empty_store, said.append) == migrate.EXPECTED
    first = list(said)
    assert await migrate.migrate(empty_store, said.append) == migrate.EXPECTED

    assert first == said == [f"migrating the database from none to {migrate.EXPECTED}"]
    assert await empty_store.read(migrate.version) == migrate.EXPECTED


async def test_an_early_table_is_adopted_in_place(early_store: Store) -> None:
    """Rows, ids and times stay; what is missing is added, and doing it again is harmless."""
    before = await early_rows(early_store)

    await migrate.migrate(early_store)
    await migrate.migrate(early_store)

    assert await early_rows(early_store) == before
    assert len(before) == 3

    def work(connection: Connection) -> list[Any]:
        return list(connection.execute(select(schema.error_logs).order_by(schema.error_logs.c.id)).all())

    first, second, _ = await early_store.read(work)
    assert (first.context, first.count, first.group_id) == ({"leadId": "123", "metadata": {"attempt": 3}}, 1, "before")
    assert second.resolved_at.isoformat() == "2025-12-21T02:40:00+00:00"
    wanted = {index.name for index in schema.error_logs.indexes}
    assert wanted <= await early_store.read(index_names)
    # Those of the same names that were there have made room.
    indexes = await early_store.read(lambda connection: inspect(connection).get_indexes("error_logs"))
    assert [len(one["column_names"]) for one in indexes if one["name"] == "idx_error_logs_severity"] == [2]


async def test_an_adopted_table_keeps_columns_that_are_not_ours(early_store: Store) -> None:
    """Whoever added one reads it somewhere."""
    if early_store.dialect == "postgresql":
        await early_store.write(lambda c: c.exec_driver_sql("ALTER TABLE error_logs ADD COLUMN reporter text"))
    await early_store.write(lambda c: c.exec_driver_sql("UPDATE error_logs SET reporter = 'anna'"))

    await migrate.migrate(early_store)

    def work(connection: Connection) -> set[Any]:
        return set(connection.execute(text("SELECT reporter FROM error_logs")).scalars())

    assert await early_store.read(work) == {"anna"}


@pytest.mark.parametrize("is_early", [False, True])
async def test_the_early_insert_goes_on_working(
    is_early: bool, empty_store: Store, error: ErrorFactory, now: datetime
) -> None:
    """On a fresh and on an adopted table; with categories of a team's own, with no severity that is none."""
    if is_early:
        await empty_store.write(make_early_table)
    await migrate.migrate(empty_store)
    insert = "INSERT INTO error_logs (severity, category, message, context) VALUES ('{}', 'payments', 'm', '{{}}')"

    await empty_store.write(lambda c: c.exec_driver_sql(insert.format("low")))
    with pytest.raises(DBAPIError):
        await empty_store.write(lambda c: c.exec_driver_sql(insert.format("loud")))
    await empty_store.write(errors.write_batch, Batch(entries=[error()]), now)

    def work(connection: Connection) -> Any:
        logs = schema.error_logs
        return connection.execute(select(logs).where(logs.c.category == "payments")).one()

    stored = await empty_store.read(work)
    assert (stored.environment, stored.resolved, stored.count, stored.context) == ("development", False, 1, {})
    assert UUID(stored.id).version == 4
    assert stored.timestamp == stored.created_at
    assert stored.group_id is None  # which is how it is known that it has to be taken in


async def test_on_sqlite_ids_and_times_by_default_are_text_as_tocsin_writes_it(sqlite_url: str) -> None:
    """Any SQL tool can read them, and they sort among the others."""
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as connection:
        for _ in range(20):
            connection.execute("INSERT INTO error_logs (severity, category, message) VALUES ('low', 'api', '')")
        rows = connection.execute("SELECT id, timestamp FROM error_logs").fetchall()
    connection.close()

    assert len({row_id for row_id, _ in rows}) == 20
    for row_id, timestamp in rows:
        assert str(UUID(row_id)) == row_id
        assert len(timestamp) == len("2026-03-14T09:26:53.589793+00:00")
        assert timestamp.endswith("000+00:00")


def test_many_that_migrate_at_once_leave_one_clean_schema(empty_database_url: str) -> None:
    """One does it, the others wait and find it done: ten servers on PostgreSQL, a few services on SQLite."""
    many = 4 if empty_database_url.startswith("sqlite") else 10

    results = migrate_at_once(empty_database_url, many)

    assert [result for result in results if isinstance(result, str)] == []
    assert sorted(len(said) for said in results) == [0] * (many - 1) + [1]
    store = open_store(empty_database_url)
    assert store.read_now(differences) == []
    store.close_now()


def test_who_is_killed_in_the_middle_leaves_nothing_behind(empty_database_url: str, tmp_path: Path) -> None:
    """The next one finds the database as it was, and does it."""
    sign = tmp_path / "in the middle"
    program = f"""
import pathlib, time
from sqlalchemy import Connection, event
from tocsin.store import migrate, open_store

@event.listens_for(Connection, "before_cursor_execute")
def stop(connection, cursor, statement, *rest):
    if "hourly_totals" in statement:
        pathlib.Path({str(sign)!r}).touch()
        time.sleep(600)

migrate.migrate_now(open_store({empty_database_url!r}))
"""
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        until = time.monotonic() + 30
        while not sign.exists() and time.monotonic() < until:
            time.sleep(0.02)
        process.kill()
    assert sign.exists()
    store = open_store(empty_database_url)
    assert store.read_now(migrate.version) is None

    assert migrate.migrate_now(store) == migrate.EXPECTED

    assert store.read_now(differences) == []
    store.close_now()


async def test_a_newer_schema_is_left_alone(store: Store) -> None:
    """Old code in one service must not harm what newer code has made."""
    await set_version(store, "9999")

    with pytest.raises(SchemaMismatch, match="newer tocsin") as newer:
        await migrate.migrate(store)

    assert (newer.value.found, newer.value.expected) == ("9999", migrate.EXPECTED)
    assert await store.read(migrate.version) == "9999"


@pytest.mark.parametrize(("found", "todo"), [("9999", "install that version"), ("0000", "tocsin migrate")])
def test_a_service_says_what_to_do_about_another_schema(postgres_url: str, found: str, todo: str) -> None:
    """It leaves a database that others use to them, and its errors wait in the spool."""
    store = open_store(postgres_url)
    store.write_now(_set_version, found)

    with pytest.raises(SchemaMismatch, match=todo):
        migrate.prepare_now(store)

    store.close_now()


_SOME = ("alerts", "audit", "counters", "received")


def drop(connection: Connection, *tables: str) -> None:
    place = f"{SCHEMA}." if connection.dialect.name == "postgresql" else ""
    for table in tables:
        connection.exec_driver_sql(f"DROP TABLE {table if table == 'error_logs' else place + table}")


async def test_what_somebody_has_dropped_is_named(store: Store) -> None:
    """Tables and columns, as the database has their names."""
    place = f"{SCHEMA}." if store.dialect == "postgresql" else ""

    def work(connection: Connection) -> list[str]:
        assert migrate.missing(connection) == []
        drop(connection, "error_logs", "alerts")
        connection.exec_driver_sql(f"ALTER TABLE {place}leases DROP COLUMN term")
        return migrate.missing(connection)

    assert set(await store.write(work)) == {"error_logs", f"{place}alerts", f"{place}leases.term"}


async def test_a_table_that_is_gone_is_made_anew_when_a_person_asks(store: Store, error: ErrorFactory) -> None:
    """Empty, closed to the public, and no number is given twice; nobody else does it, since it would hide a loss."""
    now = datetime.now(UTC)
    said: list[str] = []
    for name in ("KeyError", "ValueError"):
        await store.write(errors.write_batch, Batch(entries=[error(name)]), now)
    await store.write(drop, *_SOME)

    await migrate.migrate(store)
    assert len(await store.read(migrate.missing)) == len(_SOME)
    assert await asyncio.to_thread(migrate.migrate_now, store, said.append, mend=True) == migrate.EXPECTED

    assert sorted(said) == [f"the table {table} was missing: it is made anew, empty" for table in _SOME]
    assert await store.read(migrate.missing) == await store.read(differences) == []
    if store.dialect == "postgresql":
        assert await store.read(access.open_tables) == []
    (third,) = await store.write(errors.write_batch, Batch(entries=[error("OSError")]), now)
    assert third.number == 3


async def test_what_cannot_be_made_anew_is_left_to_a_backup(store: Store) -> None:
    """Others write to the table of errors too; and without its version nobody knows how old the rest is."""
    await store.write(drop, "error_logs", "alerts")

    with pytest.raises(TableMissing, match="error_logs is missing"):
        await asyncio.to_thread(migrate.migrate_now, store, mend=True)
    await store.write(drop, migrate.VERSION_TABLE)
    with pytest.raises(TableMissing, match=f"{migrate.VERSION_TABLE} is missing"):
        await migrate.migrate(store)


def test_a_service_leaves_an_early_table_on_postgresql_to_the_server(empty_postgres_url: str) -> None:
    """Adopting it is a change of a table that others use."""
    store = open_store(empty_postgres_url)
    store.write_now(lambda c: c.exec_driver_sql("CREATE TABLE error_logs (id uuid)"))

    with pytest.raises(SchemaMismatch, match="tocsin migrate"):
        migrate.prepare_now(store)

    store.close_now()


def test_a_service_makes_the_tables_of_an_empty_database(empty_database_url: str) -> None:
    """So that the first try needs no command."""
    store = open_store(empty_database_url)

    migrate.prepare_now(store)
    migrate.prepare_now(store)

    assert store.read_now(migrate.version) == migrate.EXPECTED
    store.close_now()


def test_a_service_on_a_database_that_is_ready_loads_no_alembic(database_url: str) -> None:
    """It would cost every service a quarter of a second and its memory."""
    program = f"""
import sys
from tocsin.store import migrate, open_store
store = open_store({database_url!r})
migrate.prepare_now(store)
store.close_now()
sys.exit("alembic" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_database_that_is_away_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    """Nothing is made, and the caller tries again later."""
    store = open_store("postgresql://postgres@127.0.0.1:1/none")
    with pytest.raises(StoreAway):
        migrate.prepare_now(store)
    store.close_now()


async def set_version(store: Store, version: str) -> None:
    await store.write(_set_version, version)


def _set_version(connection: Connection, version: str) -> None:
    place = f"{SCHEMA}." if connection.dialect.name == "postgresql" else ""
    connection.execute(text(f"UPDATE {place}{migrate.VERSION_TABLE} SET version_num = '{version}'"))
