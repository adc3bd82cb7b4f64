"""
Many rows in one statement, on PostgreSQL.

The columns go as arrays, so that the text of a statement does not grow with the rows; where all rows
have the same value, it goes once. Of what was measured (many VALUES, a statement for each row, COPY
into a table beside) this costs both sides the least that also works behind a transaction pooler and
tells which rows are new.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, CursorResult, Table
from sqlalchemy.dialects import postgresql

_dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
_to_json = json.JSONEncoder(ensure_ascii=False).encode


def is_for(connection: Connection) -> bool:
    """Whether the database has arrays; SQLite takes rows one by one quickly."""
    return connection.dialect.name == "postgresql"


def insert(
    connection: Connection, table: Table, names: Sequence[str], rows: Collection[Sequence[Any]], then: str
) -> CursorResult[Any]:
    """
    Insert rows in their order.

    Args:
        names: of the columns, in the order of each row's values; JSON as text (`as_json`).
        then: what follows, such as ``ON CONFLICT DO NOTHING``; the table is ``old`` there.
    """
    same, values = _columns(names, rows)
    source, chosen = _source(table, tuple(names), same)
    into = f"{table.fullname} AS old ({', '.join(map(_quoted, names))})"
    return connection.exec_driver_sql(
        f"INSERT INTO {into} SELECT {', '.join(chosen)} FROM {source} {then}",  # noqa: S608  (names of our own tables)
        values,
    )


def update(connection: Connection, table: Table, names: Sequence[str], rows: Collection[Sequence[Any]]) -> None:
    """Set columns of rows; the first name is that of the key."""
    same, values = _columns(names, rows)
    source, chosen = _source(table, tuple(names), same)
    changes = ", ".join(f"{_quoted(name)} = {new}" for name, new in zip(names[1:], chosen[1:], strict=True))
    key = _quoted(names[0])
    connection.exec_driver_sql(
        f"UPDATE {table.fullname} AS old SET {changes} FROM {source} WHERE old.{key} = new.{key}",  # noqa: S608
        values,
    )


def as_json(value: Any) -> str:
    """JSON for a column."""
    return _to_json(value)


def _columns(names: Sequence[str], rows: Collection[Sequence[Any]]) -> tuple[frozenset[str], tuple[Any, ...]]:
    """Which columns have one value in all rows, and what to send: that value, or all; of the first always all."""
    columns = list(zip(*rows, strict=True))
    same = frozenset(
        name for name, column in zip(names[1:], columns[1:], strict=True) if column.count(column[0]) == len(column)
    )
    return same, tuple(column[0] if name in same else column for name, column in zip(names, columns, strict=True))


@lru_cache(maxsize=256)
def _source(table: Table, names: tuple[str, ...], same: frozenset[str]) -> tuple[str, tuple[str, ...]]:
    """The arrays as rows, and how each column is read."""
    places = dict(zip(names, range(1, len(names) + 1), strict=True))
    several = [name for name in names if name not in same]
    arrays = ", ".join(f"${places[name]}::{_sent_as(table, name)}[]" for name in several)
    columns = ", ".join(map(_quoted, several))
    chosen = tuple(
        f"${places[name]}::{_sent_as(table, name)}{_cast(table, name)}" if name in same else _read(table, name)
        for name in names
    )
    return f"unnest({arrays}) AS new ({columns})", chosen


def _read(table: Table, name: str) -> str:
    return f"new.{_quoted(name)}{_cast(table, name)}"


def _cast(table: Table, name: str) -> str:
    return "::jsonb" if _type(table, name) == "JSONB" else ""


def _sent_as(table: Table, name: str) -> str:
    kind = _type(table, name)
    return "text" if kind == "JSONB" else kind


def _type(table: Table, name: str) -> str:
    return table.c[name].type.compile(_dialect)


def _quoted(name: str) -> str:
    return f'"{name}"'
