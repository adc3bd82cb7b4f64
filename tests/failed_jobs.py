"""Jobs that failed, as a service tells of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, select

from tocsin import ids
from tocsin.model import Job
from tocsin.store import open_store, schema

FAILED_AT = datetime(2026, 3, 14, 9, 26, 53, 589793, UTC)


def failed_job(**values: Any) -> Job:
    """A job from what a test is about; the rest has defaults."""
    defaults: dict[str, Any] = {
        "id": ids.uuid7(),
        "failed_at": FAILED_AT,
        "function": "shop.leads:push",
        "file": "/srv/shop/shop/leads.py",
        "folder": "/srv/shop",
        "arguments": {"args": ["7"], "kwargs": {"source": "site"}},
        "changed": [],
        "attempts": [
            {"at": "2026-03-14T09:26:50.000Z", "type": "TimeoutError", "message": "no answer", "ms": 5000},
            {"at": "2026-03-14T09:26:53.589Z", "type": "TimeoutError", "message": "no answer", "ms": 5000},
        ],
        "tries": 2,
        "service": "shop",
        "environment": "production",
        "release": "v1",
        "category": "amocrm",
        "exception_type": "TimeoutError",
        "message": "no answer",
    }
    return Job(**defaults | values)


def jobs_in(database_url: str) -> list[Any]:
    """The rows of ``jobs``, oldest first."""

    def work(connection: Connection) -> list[Any]:
        return list(connection.execute(select(schema.jobs).order_by(schema.jobs.c.number)))

    store = open_store(database_url)
    try:
        return store.read_now(work)
    finally:
        store.close_now()
