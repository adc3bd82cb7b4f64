"""Jobs: pieces of a user's work that failed after their retries, kept for a person."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection

from tocsin.model import Job


def add(connection: Connection, job: Job, now: datetime) -> None:
    """Store a job that failed; one that is there already stays as it is."""
