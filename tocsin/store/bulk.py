"""
Many rows in one statement, on PostgreSQL.

The columns go as arrays, so that the text of a statement is always the same, however many rows there
are. Of what was measured (many VALUES, a statement for each row, COPY into a table beside) this costs
both sides the least that also works behind a transaction pooler and tells which rows are new.
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
    source, chosen = _source(table, tuple(names))
    into = f"{table.fullname} AS old ({', '.join(map(_quoted, names))})"
    return connection.exec_driver_sql(
        f"INSERT INTO {into} SELECT {chosen} FROM {source} {then}",  # noqa: S608  (names of our own tables)
        tuple(zip(*rows, strict=True)),
    )


def update(connection: Connection, table: Table, names: Sequence[str], rows: Collection[Sequence[Any]]) -> None:
    """Set columns of rows; the first name is that of the key."""
    source, _ = _source(table, tuple(names))
    changes = ", ".join(f"{_quoted(name)} = {_read(table, name)}" for name in names[1:])
    key = _quoted(names[0])
    connection.exec_driver_sql(
        f"UPDATE {table.fullname} AS old SET {changes} FROM {source} WHERE old.{key} = new.{key}",  # noqa: S608
        tuple(zip(*rows, strict=True)),
    )


def as_json(value: Any) -> str:
    """JSON for a column."""
    return _to_json(value)


@lru_cache(maxsize=64)
def _source(table: Table, names: tuple[str, ...]) -> tuple[str, str]:
    """The arrays as rows, and their columns."""
    arrays = ", ".join(f"${place}::{_sent_as(table, name)}[]" for place, name in enumerate(names, 1))
    columns = ", ".join(map(_quoted, names))
    return f"unnest({arrays}) AS new ({columns})", ", ".join(_read(table, name) for name in names)


def _read(table: Table, name: str) -> str:
    return f"new.{_quoted(name)}" + ("::jsonb" if _type(table, name) == "JSONB" else "")


def _sent_as(table: Table, name: str) -> str:
    kind = _type(table, name)
    return "text" if kind == "JSONB" else kind


def _type(table: Table, name: str) -> str:
    return table.c[name].type.compile(_dialect)


def _quoted(name: str) -> str:
    return f'"{name}"'
