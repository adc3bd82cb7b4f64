"""
What would grow for ever is swept: what nobody can need any more.

Errors have a retention of their own.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, Select, Table, delete, select

from tocsin.store import credentials, dependencies, held, schema

SEGMENT_AGE = timedelta(days=7)
"""A spool segment that was not read for so long is gone, or its machine is."""

INSTANCE_AGE = timedelta(days=30)
AUDIT_AGE = timedelta(days=365)

RECEIVED_AGE = timedelta(hours=24)
"""Whoever sends the same again does it within the day: OpenTelemetry's exporters give up after minutes."""

MOST_RECEIVED = 5_000_000
"""Ids that are kept, however many arrive in a day; about half a gigabyte."""


def sweep(connection: Connection, now: datetime, limit: int = 10_000, most_received: int = MOST_RECEIVED) -> int:
    """
    Remove what is too old, some at a time.

    Args:
        limit: the most rows of each table to look at in this transaction.
        most_received: ids of what came by HTTP that stay, the newest.

    Returns:
        How many rows were removed; 0 when nothing is left to do.
    """
    segments, instances, audit = schema.spool_progress, schema.instances, schema.audit
    old_segments = select(segments.c.segment).where(segments.c.updated_at < now - SEGMENT_AGE).limit(limit)
    old_instances = select(instances.c.id).where(instances.c.last_seen < now - INSTANCE_AGE).limit(limit)
    # The audit is long and has no index by time: its first rows are its oldest.
    first = select(audit.c.id, audit.c.at).order_by(audit.c.id).limit(limit).subquery()
    old_audit = select(first.c.id).where(first.c.at < now - AUDIT_AGE)
    removed = credentials.sweep(connection, now)
    for table, old in ((segments, old_segments), (instances, old_instances), (audit, old_audit)):
        removed += _remove(connection, table, old)
    removed += dependencies.sweep(connection, limit)
    removed += held.sweep(connection, now, limit)
    return removed + _sweep_received(connection, now, limit, most_received)


def _sweep_received(connection: Connection, now: datetime, limit: int, most: int) -> int:
    received = schema.received
    oldest = select(received.c.id).order_by(received.c.received_at).limit(limit)
    removed = _remove(connection, received, oldest.where(received.c.received_at < now - RECEIVED_AGE))
    if removed:
        return removed
    newest_first = select(received.c.received_at).order_by(received.c.received_at.desc())
    last = connection.execute(newest_first.offset(most).limit(1)).scalar()
    if last is None:
        return 0
    return _remove(connection, received, oldest.where(received.c.received_at <= last))


def _remove(connection: Connection, table: Table, old: Select[tuple[str]]) -> int:
    (key,) = table.primary_key
    return connection.execute(delete(table).where(key.in_(old))).rowcount
