"""Dependencies: what services need, and whether it is there for each of their processes."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection

from tocsin.model import DependencyState


def note(connection: Connection, state: DependencyState, now: datetime) -> None:
    """Note how a dependency stands for a process; what is older than the row changes nothing."""
