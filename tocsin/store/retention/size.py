"""The oldest errors go while the database holds more than it may."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from sqlalchemy import ColumnElement, Connection, Float, exists, func, literal, select, text

from tocsin.lifecycle import Status
from tocsin.store.retention.rows import OF_ROWS, is_settled, remove_oldest
from tocsin.store.retention.work import Done, Place, Work
from tocsin.store.schema import SCHEMA, error_groups, error_logs

_MARGIN = 0.95  #         how far below the limit a run goes, so that the next one need not follow at once
_ON_ITS_WAY_WHEN_FULL = timedelta(minutes=2)
_ROWS_PER_LOOK = 100  #   how many rows of SQLite go before its size is looked at again
_SAMPLED_PAGES = 2000
_INDEXED_BYTES = 360  #   what a row takes on PostgreSQL besides its values: its header, its place in each index
_OPEN = (Status.OPEN, Status.ACKNOWLEDGED, Status.MUTED)


def used_bytes(connection: Connection) -> int:
    """
    How much the tables hold, in bytes; about, on PostgreSQL.

    Space that became free and was not given back does not count: what comes next fills it.
    """
    if connection.dialect.name == "sqlite":
        pages, free, size = _pragmas(connection, "page_count", "freelist_count", "page_size")
        return (pages - free) * size
    rows, row_bytes = _sampled(connection)
    errors, others = _on_disk(connection)
    return min(round(rows * row_bytes), errors) + others


def file_bytes(connection: Connection) -> int:
    """How much the tables take on disk, in bytes."""
    if connection.dialect.name == "sqlite":
        pages, size = _pragmas(connection, "page_count", "page_size")
        return pages * size
    return sum(_on_disk(connection))


def free_bytes(connection: Connection) -> int:
    """How much of SQLite's file is free for what comes; 0 on PostgreSQL, which does not tell."""
    if connection.dialect.name != "sqlite":
        return 0
    free, size = _pragmas(connection, "freelist_count", "page_size")
    return free * size


def _pragmas(connection: Connection, *names: str) -> list[int]:
    return [int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()) for name in names]


def _on_disk(connection: Connection) -> tuple[int, int]:
    """What error_logs takes on PostgreSQL, and what all other tables take, with their indexes."""
    errors = connection.execute(text("SELECT pg_total_relation_size('error_logs')")).scalar_one()
    others = text(
        "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema AND c.relkind IN ('r', 'p')"
    )
    return int(errors), int(connection.execute(others, {"schema": SCHEMA}).scalar_one())


def _sampled(connection: Connection) -> tuple[float, float]:
    """
    About how many rows of error_logs there are on PostgreSQL, and about how many bytes one takes.

    Its files do not shrink when rows go, and its statistics are late or lost after a crash: the rows in
    some pages tell.
    """
    size = text("SELECT pg_relation_size('error_logs') / current_setting('block_size')::int")
    pages = connection.execute(size).scalar_one()
    percent = min(100.0, 100.0 * _SAMPLED_PAGES / pages) if pages else 100.0
    sample = error_logs.tablesample(func.system(literal(percent, Float)))
    # Of a value that lies beside its row the size is known without fetching it.
    sizes = (func.coalesce(func.pg_column_size(column), 0) for column in sample.c)
    values: ColumnElement[int] = sum(sizes, start=literal(0))
    count, total = connection.execute(select(func.count(), func.coalesce(func.sum(values), 0))).one()
    return count * 100.0 / percent, float(total) / max(count, 1) + _INDEXED_BYTES


@dataclass(frozen=True, slots=True)
class _Shrinking:
    """How far the oldest errors have made room."""

    place: Place | None = None
    rows: int = 0  #  how many more go before it is measured again
    is_begun: bool = False


def by_size(work: Work) -> Done:
    """The oldest errors, but for the last of a group that is not done with."""
    limit = work.policy.max_bytes
    if limit is None:
        return 0, None
    at: _Shrinking = work.at or _Shrinking()
    query = OF_ROWS.where(is_settled(work.now, _ON_ITS_WAY_WHEN_FULL), ~_is_last_of_its_group())
    removed = 0
    while True:
        if at.rows <= 0:
            at = replace(at, rows=_rows_too_many(work.connection, limit, is_begun=at.is_begun))
        if at.rows <= 0:
            return removed, None
        more, place = remove_oldest(work, query, at.place, at.rows)
        removed += more
        if place is None:
            return removed, None
        at = _Shrinking(place, at.rows - more, is_begun=True)
        if not work.has_time():
            return removed, at


def count_by_size(connection: Connection, limit: int, gone: int) -> int:
    """How many rows the size would cost when so many are gone before."""
    if connection.dialect.name != "sqlite":
        return max(_rows_too_many(connection, limit) - gone, 0)
    used = used_bytes(connection)
    if used <= limit:
        return 0
    rows = int(connection.execute(select(func.count()).select_from(error_logs)).scalar_one())
    return max(round(rows * (1 - limit * _MARGIN / used)) - gone, 0)


def _rows_too_many(connection: Connection, limit: int, *, is_begun: bool = False) -> int:
    """How many rows, about, there is no room for; once it has begun, some room is made for what comes."""
    most = round(limit * _MARGIN) if is_begun else limit
    if connection.dialect.name == "sqlite":
        # It is measured in no time, and exactly.
        return _ROWS_PER_LOOK if used_bytes(connection) > most else 0
    errors, others = _on_disk(connection)
    if errors + others <= most:
        return 0
    rows, row_bytes = _sampled(connection)
    # Whatever else has grown: the errors keep a tenth.
    if min(rows * row_bytes, errors) <= max(most - others, limit // 10):
        return 0
    return max(round(rows - max(limit * _MARGIN - others, limit // 10) / row_bytes), 1)


def _is_last_of_its_group() -> ColumnElement[bool]:
    """Whether a row is what people see of a group that is not done with."""
    return exists().where(
        error_groups.c.id == error_logs.c.group_id,
        error_groups.c.last_error_id == error_logs.c.id,
        error_groups.c.status.in_(_OPEN),
    )
