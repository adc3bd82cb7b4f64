"""
Bring a database up to date, however many try at once and whenever one is killed.

A migration is one transaction. On PostgreSQL it holds an advisory lock that ends with the transaction
(so it works behind a pooler); on SQLite it holds the one write lock. Who comes second finds the work
done.

A table that others write to is locked for some milliseconds at the end of it, and never waited for any
longer than they can wait behind us: where it is in use, all is undone and tried again. The schema counts
as current then. Indexes of a large table, and groups for its rows, follow behind (`tocsin.store.adopt`).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from sqlalchemy import Connection, Table, func, insert, inspect, select, text

from tocsin.failures import SchemaMismatch, StoreAway, TableMissing
from tocsin.model import SCHEMA_VERSION
from tocsin.store.access import close_to_the_public
from tocsin.store.adopt import hurry, is_busy
from tocsin.store.engine import Store
from tocsin.store.schema import SCHEMA, counters, error_groups, error_logs, metadata

EXPECTED = SCHEMA_VERSION

VERSION_TABLE = "tocsin_version"

_MOST_TRIES = 200  # some five minutes: a backup that reads the table may take longer, and is said
_LOCK = 0x746F6373696E  # "tocsin"
_HOW_TO_MIGRATE = "run `tocsin migrate` of this version, or start its `tocsin serve`"
_HOW_TO_UPGRADE = "a newer tocsin has migrated it; install that version here too"

Say = Callable[[str], None]


async def migrate(store: Store, say: Say | None = None) -> str:
    """
    Bring the database up to date and return its version; nothing happens when it is so already.

    Args:
        say: told in a few words what happens, as it happens.

    Raises:
        SchemaMismatch: the database is newer than this code.
        StoreAway: the database is away; nothing was changed.
    """
    tries = _Tries(say)
    unhurried = store.unhurried()
    try:
        while True:
            try:
                return await unhurried.write(_upgrade, tries.say)
            except StoreAway as problem:
                await asyncio.sleep(tries.pause_s(problem))
    finally:
        await unhurried.close()


def migrate_now(store: Store, say: Say | None = None, *, mend: bool = False) -> str:
    """
    `migrate` for a thread that has no event loop.

    Args:
        mend: make tables anew that somebody has dropped. Only for a person who asks for it: what was in
            them is gone, and an empty table would hide it.

    Raises:
        TableMissing: not everything can be made anew; nothing was changed.
    """
    tries = _Tries(say)
    unhurried = store.unhurried()
    try:
        while True:
            try:
                return unhurried.write_now(_upgrade, tries.say, mend=mend)
            except StoreAway as problem:
                time.sleep(tries.pause_s(problem))
    finally:
        unhurried.close_now()


class _Tries:
    """How often a table was found in use, and how long to leave it alone."""

    def __init__(self, say: Say | None) -> None:
        self._tell = say
        self._told: set[str] = set()
        self._failed = 0

    def say(self, line: str) -> None:
        """Say what each try says, once."""
        if self._tell is not None and line not in self._told:
            self._told.add(line)
            self._tell(line)

    def pause_s(self, problem: StoreAway) -> float:
        """Raises what is no reason for another try."""
        if not is_busy(problem) or self._failed >= _MOST_TRIES:
            raise problem
        self._failed += 1
        self.say("error_logs is in use, by a backup or a vacuum perhaps: it is left alone, and tried again")
        return min(0.1 * self._failed, 2.0) * random.uniform(0.5, 1.5)


def version(connection: Connection) -> str | None:
    """The version that the database is at; None when it has no tables of tocsin's yet."""
    schema = SCHEMA if connection.dialect.name == "postgresql" else None
    if not inspect(connection).has_table(VERSION_TABLE, schema=schema):
        return None
    table = f"{schema}.{VERSION_TABLE}" if schema else VERSION_TABLE
    found: str | None = connection.execute(text(f"SELECT version_num FROM {table}")).scalar()  # noqa: S608
    return found


def missing(connection: Connection) -> list[str]:
    """What a database of this version has no longer: tables (``tocsin.alerts``), columns (``tocsin.alerts.reason``)."""
    inspector = inspect(connection)
    gone = []
    for schema in dict.fromkeys((None, SCHEMA if connection.dialect.name == "postgresql" else None)):
        tables = [table for table in metadata.sorted_tables if _schema_of(table, connection) == schema]
        columns = inspector.get_multi_columns(schema=schema, filter_names=[table.name for table in tables])
        found = {name: {column["name"] for column in there} for (_, name), there in columns.items()}
        for table in tables:
            shown = f"{schema}.{table.name}" if schema else table.name
            if not found.get(table.name):
                gone.append(shown)
            else:
                gone += [f"{shown}.{column.name}" for column in table.c if column.name not in found[table.name]]
    return gone


def can_be_made_anew(gone: str) -> bool:
    """Whether `migrate_now` makes a missing table anew: but not the rows of others, nor a single column."""
    return gone.removeprefix(f"{SCHEMA}.") in {table.name for table in metadata.tables.values()} - {error_logs.name}


def _schema_of(table: Table, connection: Connection) -> str | None:
    return table.schema if connection.dialect.name == "postgresql" else None


def require_current(found: str | None) -> None:
    """Raise `SchemaMismatch` when a database at version `found` does not fit this code."""
    if found is not None and found > EXPECTED:
        raise SchemaMismatch(found, EXPECTED, _HOW_TO_UPGRADE)
    if found != EXPECTED:
        raise SchemaMismatch(found, EXPECTED, _HOW_TO_MIGRATE)


def prepare_now(store: Store) -> None:
    """
    What a service does before it stores its first error: nothing, when all is well.

    It makes tocsin's tables in a database that has none, and brings SQLite up to date, where nobody
    else would. A PostgreSQL database that others use too is left to ``tocsin serve`` and ``migrate``;
    so is one in which an early ``error_logs`` waits to be adopted.

    Raises:
        SchemaMismatch: the database is newer or older than this code; has what to do.
        StoreAway: the database is away.
    """
    found, has_early_table = store.read_now(_look)
    if found == EXPECTED:
        return
    is_empty = found is None and not has_early_table
    if not is_empty and (store.dialect != "sqlite" or (found is not None and found > EXPECTED)):
        require_current(found)
    migrate_now(store)


def _look(connection: Connection) -> tuple[str | None, bool]:
    found = version(connection)
    return found, found is None and inspect(connection).has_table("error_logs")


def _upgrade(connection: Connection, say: Say, *, mend: bool = False) -> str:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    found = version(connection)
    if found == EXPECTED:
        if mend:
            _make_anew(connection, say)
        return found
    if found is not None and found > EXPECTED:
        require_current(found)
    if found is None and inspect(connection).has_table(error_groups.name, _schema_of(error_groups, connection)):
        raise TableMissing(f"its table {VERSION_TABLE} is missing, and others are there: restore it from a backup")
    from alembic import command  # noqa: PLC0415  (a service on a database that is ready never loads it)
    from alembic.config import Config  # noqa: PLC0415

    say(f"migrating the database from {found or 'none'} to {EXPECTED}")
    config = Config()
    config.set_main_option("script_location", "tocsin.store:migrations")
    config.attributes["connection"] = connection
    config.attributes["say"] = say
    config.attributes["found"] = found
    if connection.dialect.name == "postgresql":
        hurry(connection)
    command.upgrade(config, "head")
    return EXPECTED


def _make_anew(connection: Connection, say: Say) -> None:
    gone = missing(connection)
    if hopeless := [name for name in gone if not can_be_made_anew(name)]:
        raise TableMissing(f"{', '.join(hopeless)} is missing; `tocsin check` says how to get it back")
    tables = [table for table in metadata.sorted_tables if {table.name, f"{SCHEMA}.{table.name}"} & {*gone}]
    for table in tables:
        say(f"the table {table.name} was missing: it is made anew, empty")
        table.create(connection)
    if counters in tables:  # a number is never given twice
        given = select(func.coalesce(func.max(error_groups.c.number), 0)).scalar_subquery()
        connection.execute(insert(counters).values(name="group_number", value=given))
    if tables and connection.dialect.name == "postgresql":
        close_to_the_public(connection)
