"""Adopting a table that others write to: no wait for them, and whoever is killed at it leaves it whole."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Connection, text

from tests.pgbouncer import pgbouncer
from tests.postgres import PostgresServer
from tests.store import early as early_table
from tests.store.test_migrate import differences
from tests.waiting import eventually
from tocsin.exporter.early import finish
from tocsin.store import Store, adopt, migrate, open_store, schema
from tocsin.store.adopt import Rows

LARGE = 8_000  # rows, more than fit into what is indexed at once
_FILL = """
    INSERT INTO error_logs (severity, category, message, stack, context, environment, resolved, timestamp, resolved_at)
    SELECT 'high', (array['amocrm', 'telegram', 'database', 'api'])[1 + i % 4],
      'Request failed with status code ' || (500 + i % 5),
      'AxiosError: Request failed' || E'\n    at settle (/app/node_modules/axios/lib/core/settle.js:19:12)'
        || E'\n    at pushLead' || (i % 50) || ' (/app/src/services/amocrm.ts:88:11)'
        || repeat(E'\n    at processTicksAndRejections (node:internal/process/task_queues:95:5)', 12),
      jsonb_build_object('leadId', i::text), 'production', i % 2 = 0,
      timestamptz '2025-11-01' + i * interval '2 seconds', CASE WHEN i % 2 = 0 THEN timestamptz '2025-12-01' END
    FROM generate_series(1, {rows}) i
"""
_INSERT = "INSERT INTO error_logs (severity, category, message, stack) VALUES ('high', 'api', $1, 'Error: x')"
_EARLY = (
    "id, severity, category, message, stack, context::text, environment, resolved, timestamp, resolved_at, created_at"
)


def fill(store: Store, rows: int) -> None:
    def work(connection: Connection) -> None:
        for statement in filter(str.strip, early_table.POSTGRES.split(";\n")):
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql(_FILL.format(rows=rows))

    unhurried = store.unhurried()
    unhurried.write_now(work)
    unhurried.close_now()


@pytest.fixture
def large(empty_postgres_url: str) -> Iterator[Store]:
    """A store on a database with an early table too large to be indexed at once."""
    store = open_store(empty_postgres_url)
    fill(store, LARGE)
    yield store
    store.close_now()


_WRITER = """
import asyncio, sys, threading, time
import asyncpg

async def run(url, statement):
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    connection = await asyncpg.connect(url)
    written, longest_s = 0, 0.0
    while not stop.is_set():
        begun = time.monotonic()
        await connection.execute(statement, f"number {written}")
        longest_s = max(longest_s, time.monotonic() - begun)
        written += 1
        if written == 10:
            print("at work", flush=True)
        await asyncio.sleep(0.002)
    print(written, longest_s)

asyncio.run(run(*sys.argv[1:]))
"""


class Writer:
    """
    Another program, which goes on inserting; afterwards it has said how long it ever had to wait.

    A process of its own: as a thread of this one it would wait for us, too.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.written = 0
        self.longest_s = 0.0

    def __enter__(self) -> Writer:
        arguments = [sys.executable, "-c", _WRITER, self._url, _INSERT]
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "at work\n"
        return self

    def __exit__(self, *_: object) -> None:
        said = self._process.communicate(timeout=60)[0].split()
        self.written, self.longest_s = int(said[0]), float(said[1])


def rows_of_before(store: Store) -> list[Any]:
    query = text(f"SELECT {_EARLY} FROM error_logs WHERE stack <> 'Error: x' ORDER BY id")
    return store.read_now(lambda connection: list(connection.execute(query)))


def figures(store: Store) -> list[int]:
    """What has to be the same number four times, and what has to be none."""
    query = text("""
        SELECT (SELECT count(*) FROM error_logs), (SELECT sum(count) FROM tocsin.error_groups),
          (SELECT sum(count) FROM tocsin.error_counts), (SELECT sum(count) FROM tocsin.hourly_totals),
          (SELECT count(*) FROM error_logs l LEFT JOIN tocsin.error_groups g ON g.id = l.group_id WHERE g.id IS NULL)
    """)
    return store.read_now(lambda connection: [int(number) for number in connection.execute(query).one()])


def lacking(store: Store) -> list[Any]:
    """What the database has otherwise than `schema` says; the team's own indexes stay."""
    return [one for one in store.read_now(differences) if one[0] != "remove_index"]


def adopted_beside_a_writer(url: str, rows: int, pooled_url: str | None = None) -> Writer:
    """Fill, migrate and group, with a writer at work; everything has to be right after it."""
    store = open_store(pooled_url or url)
    fill(store, rows)
    before = rows_of_before(store) if rows <= LARGE else []
    with Writer(url) as writer:
        migrate.migrate_now(store)
        assert store.read_now(migrate.version) == migrate.EXPECTED
        finish(store, say=print)
        migrate.migrate_now(store)
    finish(store)
    assert before == (rows_of_before(store) if before else [])
    assert figures(store) == [rows + writer.written] * 4 + [0]
    assert lacking(store) == []
    store.close_now()
    return writer


def test_a_large_table_is_adopted_while_a_writer_is_at_work(empty_postgres_url: str) -> None:
    """It never waits for long, and loses nothing; what it wrote is counted with the rest."""
    writer = adopted_beside_a_writer(empty_postgres_url, LARGE)

    assert writer.longest_s < 1.0


@pytest.mark.gate
def test_a_million_rows_are_adopted_while_a_writer_is_at_work(empty_postgres_url: str) -> None:
    """The same at the size that the first users have."""
    writer = adopted_beside_a_writer(empty_postgres_url, 1_000_000)

    print(f"the writer inserted {writer.written} rows, and waited {writer.longest_s:.3f} s at most")
    assert writer.longest_s < 1.0


def test_which_rows_stood_there_is_known_to_the_row(large: Store) -> None:
    """Those of before read so at once, though none was touched; whoever inserts afterwards has none of it."""
    migrate.migrate_now(large)
    large.write_now(Connection.exec_driver_sql, _INSERT.replace("$1", "'later'"))

    assert large.read_now(adopt.count, Rows.BEFORE) == LARGE
    assert large.read_now(adopt.count, Rows.UNTAKEN) == 1


def test_who_reads_the_table_for_long_makes_no_writer_wait(large: Store, empty_postgres_url: str) -> None:
    """A lock that is waited for holds up everybody behind it; so it is given up, and tried again."""
    said: list[str] = []
    with Writer(empty_postgres_url) as writer:
        with reading(empty_postgres_url) as release:
            migrating = threading.Thread(target=lambda: migrate.migrate_now(large, said.append))
            migrating.start()
            eventually(lambda: any("in use" in line for line in said), 30)
            release()
        migrating.join()

    assert large.read_now(migrate.version) == migrate.EXPECTED
    assert writer.longest_s < 1.0


@contextmanager
def reading(url: str) -> Iterator[Any]:
    """A transaction that has read the table and goes on, as a backup does."""
    done, ready = threading.Event(), threading.Event()

    async def hold() -> None:
        connection = await asyncpg.connect(url)
        async with connection.transaction():
            await connection.fetchval("SELECT count(*) FROM error_logs")
            ready.set()
            await asyncio.to_thread(done.wait)
        await connection.close()

    thread = threading.Thread(target=lambda: asyncio.run(hold()))
    thread.start()
    ready.wait()
    try:
        yield done.set
    finally:
        done.set()
        thread.join()


_SLOW_INDEX = """
import sys
from tocsin.store import adopt, migrate, open_store
store = open_store(sys.argv[1])
migrate.migrate_now(store)
adopt.build_indexes(store, "killed", lambda line: print(line, flush=True))
"""


def test_who_is_killed_while_an_index_is_built_leaves_it_to_the_next(large: Store, empty_postgres_url: str) -> None:
    """The server may be at it still, which is waited for; what is half done is done anew."""
    migrate.migrate_now(large)
    with reading(empty_postgres_url) as release:
        arguments = [sys.executable, "-c", _SLOW_INDEX, empty_postgres_url]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert "building the index" in process.stdout.readline()
            eventually(lambda: large.read_now(_half_built), 30)
            process.kill()
        release()
    large.write_now(Connection.exec_driver_sql, "UPDATE tocsin.leases SET expires = 0")

    finish(large)

    assert large.read_now(adopt.are_indexes_ready)
    assert lacking(large) == []
    assert large.read_now(_names_of_indexes) >= {index.name for index in schema.error_logs.indexes}
    assert not any(name.endswith("_new") for name in large.read_now(_names_of_indexes))


def _half_built(connection: Connection) -> bool:
    query = "SELECT EXISTS (SELECT FROM pg_index WHERE indrelid = 'error_logs'::regclass AND NOT indisvalid)"
    return bool(connection.scalar(text(query)))


def _names_of_indexes(connection: Connection) -> set[str]:
    return set(connection.scalars(text("SELECT indexname FROM pg_indexes WHERE tablename = 'error_logs'")))


def test_an_index_that_is_damaged_is_built_anew(large: Store) -> None:
    """As one is left whose building was cut off, under either name."""
    migrate.migrate_now(large)
    finish(large)
    damage = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{}'::regclass"
    large.write_now(Connection.exec_driver_sql, "CREATE INDEX idx_error_logs_group_new ON error_logs (id)")
    for name in ("idx_error_logs_group", "idx_error_logs_timestamp", "idx_error_logs_group_new"):
        large.write_now(Connection.exec_driver_sql, damage.format(name))
    assert not large.read_now(adopt.are_indexes_ready)

    finish(large)

    assert large.read_now(adopt.are_indexes_ready)
    assert lacking(large) == []


def test_two_that_build_at_once_build_each_index_once(large: Store, empty_postgres_url: str) -> None:
    """One of them builds, the other waits until it is done."""
    migrate.migrate_now(large)
    said: list[str] = []

    def build(name: str) -> None:
        store = open_store(empty_postgres_url)
        adopt.build_indexes(store, name, said.append)
        store.close_now()

    threads = [threading.Thread(target=build, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(said) == len(schema.error_logs.indexes)
    assert lacking(large) == []


def test_a_large_table_is_adopted_through_a_pooler(postgres_server: PostgresServer) -> None:
    """An index is built in no transaction, which a pooler hands to whichever session is free."""
    with pgbouncer(postgres_server, pool_size=3) as url:
        writer = adopted_beside_a_writer(postgres_server.url, LARGE, url)

    assert writer.longest_s < 1.0
