"""What processes tell besides errors, each into its table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection

from tocsin.model import Beat, DependencyState, Fact, Job
from tocsin.store import beats, dependencies, jobs


def write(connection: Connection, told: Sequence[Fact], now: datetime) -> None:
    """Store facts in the order in which they were told; what was stored before changes nothing."""
    for fact in told:
        match fact:
            case Job():
                jobs.add(connection, fact, now)
            case Beat():
                beats.note(connection, fact, now)
            case DependencyState():
                dependencies.note(connection, fact, now)
