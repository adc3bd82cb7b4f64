"""
Who leads: a row with an owner and an end, by the database's clock.

No advisory locks: behind a transaction pooler two clients both get them, and a frozen holder keeps
them. Every change of owner raises the term.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Double, case, func, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite

from tocsin import clock
from tocsin.store.schema import UtcTime, leases


def _seconds(connection: Connection) -> ColumnElement[float]:
    if connection.dialect.name == "postgresql":
        return literal_column("extract(epoch from clock_timestamp())::double precision", Double)
    return literal_column("((julianday('now') - 2440587.5) * 86400.0)", Double)


def database_now(connection: Connection) -> datetime:
    """The database's clock: what replicas agree on while their own clocks differ."""
    if connection.dialect.name != "postgresql":
        return clock.now()  # the same clock, and SQLite tells it in milliseconds only
    return connection.execute(select(func.clock_timestamp(type_=UtcTime))).scalar_one()


def acquire(connection: Connection, name: str, owner: str, ttl_s: float) -> int | None:
    """
    Take the lease, or keep it, for `ttl_s` seconds from now.

    Returns:
        The term, or None while somebody else holds it.
    """
    seconds = _seconds(connection)
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(
        insert(leases).values(name=name, owner="", term=0, expires=0.0).on_conflict_do_nothing(index_elements=["name"])
    )
    return connection.execute(
        update(leases)
        .where(leases.c.name == name, (leases.c.owner == owner) | (leases.c.expires < seconds))
        .values(
            term=case((leases.c.owner == owner, leases.c.term), else_=leases.c.term + 1),
            owner=owner,
            expires=seconds + ttl_s,
        )
        .returning(leases.c.term)
    ).scalar_one_or_none()


def release(connection: Connection, name: str, owner: str) -> None:
    """Give the lease back, so that the next one need not wait for its end."""
    connection.execute(update(leases).where(leases.c.name == name, leases.c.owner == owner).values(expires=0.0))


def holder(connection: Connection, name: str) -> str | None:
    """Who holds the lease just now."""
    return connection.execute(
        select(leases.c.owner).where(leases.c.name == name, leases.c.expires >= _seconds(connection))
    ).scalar_one_or_none()
