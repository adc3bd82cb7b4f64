"""
Outages of dependencies whose end nobody is left to tell: the process that met them has ended meanwhile.

A process that is alive tells of a return by itself, see `tocsin.instrumentation.dependency`. Here the next one,
which has found the dependency there, stands in for it: a deploy during an outage leaves no group open.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Connection, and_, select

from tocsin.exporter.fingerprint import of_place
from tocsin.ids import group_id
from tocsin.lifecycle import Status
from tocsin.model import Batch, Recovery
from tocsin.settings import Settings
from tocsin.store import Store, dependencies, errors
from tocsin.store.leases import database_now
from tocsin.store.schema import error_groups, error_logs, instances


async def look(store: Store, settings: Settings) -> bool:
    """Tell of the outages that are over; whether there was one. Raises `StoreAway`."""
    silent_after = timedelta(seconds=settings.silent_after_s)
    if not await store.read(_over, silent_after):
        return False
    return await store.write(_end, silent_after)


def _end(connection: Connection, silent_after: timedelta) -> bool:
    over = _over(connection, silent_after)
    errors.write_batch(connection, Batch(entries=[*over]), database_now(connection))
    return bool(over)


def _over(connection: Connection, silent_after: timedelta) -> list[Recovery]:
    """
    What there is to tell: a dependency was found there, by a living process, after its group's last error.

    Where the process of that error lives, it is for that one to say when it is over.
    """
    now = database_now(connection)
    there = {
        group_id(of_place(f"{one.name} is away"), one.service, one.environment): one
        for one in dependencies.all_there(connection, now, silent_after)
    }
    table = error_groups.c
    is_told_by = and_(instances.c.id == error_logs.c.instance_id, dependencies.is_living(now, silent_after))
    waiting = (
        select(table.id, table.last_seen, table.last_error_id)
        .join(error_logs, error_logs.c.id == table.last_error_id)
        .outerjoin(instances, is_told_by)
        .where(
            table.id.in_(sorted(there)),
            table.status.in_((Status.OPEN, Status.ACKNOWLEDGED)),
            instances.c.id.is_(None),
        )
    )
    return [
        Recovery(
            error_id=row.last_error_id, timestamp=there[row.id].since, message=f"{there[row.id].name} answers again"
        )
        for row in (connection.execute(waiting).all() if there else ())
        if row.last_seen < there[row.id].since
    ]
