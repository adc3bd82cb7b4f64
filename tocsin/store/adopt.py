"""
An ``error_logs`` that other programs write to: the indexes it wants, and rows that have no group yet.

Nothing here makes a writer wait. Rows are `UNTAKEN` when another program has inserted them since the
table was adopted, and `BEFORE` when they stood there then; which is which was settled in the moment of the
adoption, by the default that the column ``group_id`` was added with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, literal, literal_column, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex

from tocsin.failures import StoreAway
from tocsin.model import Batch, EarlyRecord
from tocsin.store import bulk, errors, leases, schema
from tocsin.store.engine import PostgresStore, Store, sqlstate
from tocsin.store.leases import database_now
from tocsin.text import MESSAGE_LIMIT, STACK_LIMIT

SMALL_BYTES = 8 * 2**20
"""Up to this size the indexes of a table are built at once: some ten thousand rows, within some 100 ms."""

LOCK_WITHIN_S = 0.3
"""How long a lock on the whole table may be waited for: for so long everybody else waits behind it."""

_logs = schema.error_logs

Say = Callable[[str], None]


def is_large(connection: Connection) -> bool:
    """Whether the table's indexes have to be built beside those who write to it."""
    if connection.dialect.name != "postgresql":
        return False
    return bool(connection.scalar(text(f"SELECT pg_relation_size('error_logs') > {SMALL_BYTES}")))


def hurry(connection: Connection) -> None:
    """Have this transaction give up soon when it cannot lock what others use; see `is_busy`."""
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_WITHIN_S * 1000:.0f}")


def is_busy(problem: StoreAway) -> bool:
    """Whether somebody else uses the table, so that another try is worth while."""
    return problem.__cause__ is not None and sqlstate(problem.__cause__) in ("55P03", "40P01")


# Indexes.


def are_indexes_ready(connection: Connection) -> bool:
    """Whether the table has all its indexes."""
    return connection.dialect.name != "postgresql" or not _wanting(connection)


def build_indexes(store: Store, owner: str, say: Say) -> None:
    """
    Build the indexes that a large table lacks, beside its writers, one after the other.

    One process does so at a time; the others wait for it here. Whatever it was killed in the middle of is
    done anew. An index of an early table that has the name of ours makes room once ours is ready.

    Args:
        owner: what tells this process from others.

    Raises:
        StoreAway: the database is away, or refuses to build an index; what was built stays.
    """
    if not isinstance(store, PostgresStore):
        return
    unhurried = store.unhurried()
    try:
        has_built = False
        while (step := unhurried.write_now(_next_step, owner)) is not None:
            if step.says:
                say(step.says)
            if step.statement is not None:
                unhurried.alone_now(step.statement)
                has_built = True
            elif step.work is None or not _done(unhurried, step.work):
                time.sleep(0.5)
        if has_built:  # what the planner knows of the table is from before it had these columns
            unhurried.alone_now("ANALYZE error_logs")
    finally:
        unhurried.close_now()


@dataclass(frozen=True, slots=True)
class _Step:
    """What to do next: a statement for no transaction, some work in one, or to wait."""

    statement: str | None = None
    work: Callable[[Connection], None] | None = None
    says: str = ""


def _done(store: Store, work: Callable[[Connection], None]) -> bool:
    try:
        store.write_now(work)
    except StoreAway as problem:
        if not is_busy(problem):
            raise
        return False
    return True


_FIRST = ("idx_error_logs_untaken", "idx_error_logs_group")
_INDEXES = sorted(_logs.indexes, key=lambda index: (index.name not in _FIRST, str(index.name)))

# Of ours by name, or by the name that they have until they are ready; with what tells ours from earlier ones.
_FOUND = text("""
    SELECT c.relname AS name, i.indisvalid AS is_valid, i.indnkeyatts AS keys, i.indpred IS NOT NULL AS is_partial
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = 'error_logs'::regclass
""")

# Whoever builds an index holds this lock, also after the program that wished for it is gone.
_IS_BUILDING = text("""
    SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'relation' AND relation = 'error_logs'::regclass
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND mode = 'ShareUpdateExclusiveLock' AND pid <> pg_backend_pid())
""")


def _wanting(connection: Connection) -> list[str]:
    """The names of the indexes that are not there as they should be."""
    found = {row.name: row for row in connection.execute(_FOUND)}
    wanting = []
    for index in _INDEXES:
        name = str(index.name)
        is_partial = index.dialect_options["postgresql"]["where"] is not None
        here = found.get(name)
        if here is None or not here.is_valid or (here.keys, here.is_partial) != (len(index.expressions), is_partial):
            wanting.append(name)
    return wanting


def _next_step(connection: Connection, owner: str) -> _Step | None:
    wanting = _wanting(connection)
    if not wanting:
        leases.release(connection, "indexes", owner)
        return None
    if leases.acquire(connection, "indexes", owner, 60) is None or connection.scalar(_IS_BUILDING):
        return _Step()
    name = wanting[0]
    is_ready = {row.name: row.is_valid for row in connection.execute(_FOUND)}.get(f"{name}_new")
    if is_ready is None:
        left = f"{len(wanting) - 1} more after it" if len(wanting) > 1 else "the last one"
        return _Step(_statement(name), says=f"building the index {name} beside the table's writers, {left}")
    if not is_ready:
        return _Step(work=lambda connection: _swap(connection, f"DROP INDEX {name}_new"))
    return _Step(
        work=lambda connection: _swap(
            connection, f"DROP INDEX IF EXISTS {name}", f"ALTER INDEX {name}_new RENAME TO {name}"
        )
    )


def _swap(connection: Connection, *statements: str) -> None:
    hurry(connection)
    for statement in statements:
        connection.exec_driver_sql(statement)


def _statement(name: str) -> str:
    (index,) = (index for index in _INDEXES if index.name == name)
    statement = str(CreateIndex(index).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
    return statement.replace(f"CREATE INDEX {name} ", f"CREATE INDEX CONCURRENTLY {name}_new ", 1)


# Rows.


class Rows(StrEnum):
    """Which rows without a group."""

    UNTAKEN = "untaken"
    BEFORE = "before"


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyRow:
    """A row as another program has written it: its long texts shortened, its times within reason."""

    id: str
    timestamp: datetime  #            1970 to now, whatever the row says
    severity: str
    category: str
    message: str
    stack: str | None
    environment: str
    resolved_at: datetime | None  #   None: it is not resolved
    service: str | None
    exception_type: str | None
    count: int
    place: str | None  #              where it happened, of a row without a message that tells in its context


def waiting(connection: Connection, which: Rows) -> bool:
    """Whether there are such rows; by index, so that it can be asked twice a second."""
    return connection.execute(select(_logs.c.id).where(_is(which)).limit(1)).first() is not None


def count(connection: Connection, which: Rows) -> int:
    """How many there are; a second for a million."""
    return connection.execute(select(func.count()).select_from(_logs).where(_is(which))).scalar_one()


def hold(
    connection: Connection,
    which: Rows,
    *,
    limit: int,
    until: datetime | None = None,
    only: str | None = None,
    without: Collection[str] = (),
) -> list[EarlyRow]:
    """
    Some of the rows, held until the transaction ends: those that another server holds are left out.

    Args:
        until: of `Rows.BEFORE`, which are read newest first, only those at or before this time; it spares a
            walk past the many that are done.
        only: just the row with this id.
        without: ids of rows that shall wait.
    """
    query = select(*_columns(connection)).where(_is(which)).limit(limit).with_for_update(skip_locked=True)
    newest_first = which is Rows.BEFORE
    query = query.order_by(_logs.c.timestamp.desc() if newest_first else _logs.c.timestamp)
    if until is not None:
        query = query.where(_logs.c.timestamp <= until)
    if only is not None:
        query = query.where(_logs.c.id == only)
    if without:
        query = query.where(_logs.c.id.not_in(list(without)))
    now = database_now(connection)
    return [_row(found, now) for found in connection.execute(query).mappings()]


def ids_of(connection: Connection, which: Rows, limit: int, until: datetime | None = None) -> list[str]:
    """The ids of some of the rows, of which nothing else is read."""
    query = select(_logs.c.id).where(_is(which)).limit(limit)
    query = query.order_by(_logs.c.timestamp.desc() if which is Rows.BEFORE else _logs.c.timestamp)
    if until is not None:
        query = query.where(_logs.c.timestamp <= until)
    return list(connection.execute(query).scalars())


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row belongs."""

    row_id: str
    group_id: str
    exception_type: str | None


def take(connection: Connection, places: Sequence[Place], records: Sequence[EarlyRecord]) -> None:
    """
    Group and count rows that this transaction holds; those that ring are marked for the alerts.

    Args:
        places: one for each row.
        records: what they add up to, for the groups: no more than one for each row.
    """
    if not places:
        return
    rows = [(one.row_id, one.group_id, one.exception_type) for one in sorted(places, key=lambda one: one.row_id)]
    names = ("id", "group_id", "exception_type")
    if bulk.is_for(connection):
        bulk.update(connection, _logs, names, rows)
    else:
        for row in rows:
            connection.execute(update(_logs).where(_logs.c.id == row[0]).values(dict(zip(names, row, strict=True))))
    errors.write_batch(connection, Batch(entries=list(records)), database_now(connection))


_TIDY = text("""
    SELECT gin_clean_pending_list(i.indexrelid) FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
    WHERE i.indrelid = 'error_logs'::regclass AND i.indisvalid AND a.amname = 'gin'
      AND pg_has_role(c.relowner, 'USAGE')  -- else it would refuse, and the rows with it
""")


def tidy(connection: Connection) -> None:
    """
    Put what was changed into the team's own indexes over JSON now.

    PostgreSQL lets it wait until there is much, and then has whoever comes next do it all: a writer.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(_TIDY).all()


def refuse(connection: Connection, row_id: str) -> None:
    """Leave a row alone for good: it is shown, but belongs to no group."""
    connection.execute(update(_logs).where(_logs.c.id == row_id).values(group_id=schema.REFUSED))


def _is(which: Rows) -> ColumnElement[bool]:
    # In the words of the partial index.
    return _logs.c.group_id.is_(None) if which is Rows.UNTAKEN else _logs.c.group_id == literal_column("'before'")


def _columns(connection: Connection) -> Iterator[ColumnElement[Any]]:
    """The row's own columns as they are, whatever type an early table gives them, but never more than is needed."""
    is_postgres = connection.dialect.name == "postgresql"
    yield _logs.c.id
    for name in ("severity", "category", "environment", "service", "exception_type"):
        yield func.substr(literal_column(name), 1, 300).label(name)
    yield literal_column("count").label("count")
    yield literal_column("resolved").label("resolved")
    for name in ("timestamp", "resolved_at"):
        moment: ColumnElement[Any] = literal_column(name)
        if is_postgres:  # years that Python has not, and infinity
            lowest: ColumnElement[Any] = literal_column("timestamptz '1970-01-01 00:00Z'")
            moment = func.least(func.greatest(moment, lowest), func.clock_timestamp())
            moment = case((literal_column(name).is_not(None), moment), else_=None)
        yield moment.label(name)
    yield shortened("message", MESSAGE_LIMIT)
    yield shortened("stack", STACK_LIMIT)
    yield literal_column(_PLACE_ON_POSTGRES if is_postgres else _PLACE_ON_SQLITE).label("place")


def shortened(name: str, limit: int) -> ColumnElement[Any]:
    """A long text without its middle: what an exception is stands at the start of a stack, or at its end."""
    whole: ColumnElement[Any] = literal_column(name)
    half = limit // 2
    ends = (
        func.substr(whole, 1, half).op("||")(literal("\n…\n")).op("||")(func.substr(whole, func.length(whole) - half))
    )
    return case((func.length(whole) <= limit, whole), else_=ends).label(name)


_PLACE_ON_POSTGRES = (
    "CASE WHEN message = '' AND jsonb_typeof(context) = 'object'"
    " THEN left(concat_ws(' ', context->>'method', context->>'endpoint'), 300) END"
)
_PLACE_ON_SQLITE = (
    "CASE WHEN message = '' AND json_valid(context) THEN substr(trim("
    "coalesce(json_extract(context, '$.method'), '') || ' ' || coalesce(json_extract(context, '$.endpoint'), '')"
    "), 1, 300) END"
)


def _row(found: Any, now: datetime) -> EarlyRow:
    timestamp = _moment(found["timestamp"], now) or now
    resolved_at = None
    if found["resolved"]:
        resolved_at = _moment(found["resolved_at"], now) or timestamp
    return EarlyRow(
        id=found["id"],
        timestamp=timestamp,
        severity=_text(found["severity"]),
        category=_text(found["category"]),
        message=_text(found["message"]),
        stack=_text(found["stack"]) or None,
        environment=_text(found["environment"]),
        resolved_at=resolved_at,
        service=_text(found["service"]) or None,
        exception_type=_text(found["exception_type"]) or None,
        count=found["count"] if isinstance(found["count"], int) and found["count"] > 0 else 1,
        place=_text(found["place"]) or None,
    )


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)


def _moment(value: object, now: datetime) -> datetime | None:
    """A time as an early table has it, on SQLite in any form; None where it says nothing."""
    moment = schema.read_time(value)
    if moment is None:
        return None
    return min(max(moment, datetime(1970, 1, 1, tzinfo=UTC)), now)
