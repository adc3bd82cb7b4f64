"""What processes tell besides errors, each into its table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection

from tocsin.model import Beat, DependencyState, Fact, Job
from tocsin.store import beats, dependencies, jobs


def write(connection: Connection, told: Sequence[Fact], now: datetime) -> None:
    """Store facts; what was stored before changes nothing."""
    ordered = in_order(told)
    jobs.add(connection, [fact for fact in ordered if isinstance(fact, Job)])
    for fact in ordered:
        match fact:
            case Beat():
                beats.note(connection, fact, now)
            case DependencyState():
                dependencies.note(connection, fact, now)


def in_order(told: Sequence[Fact]) -> list[Fact]:
    """
    By kind and key, so that writers wait for one another instead of meeting in a deadlock.

    What is told of one key stays in the order in which it was told.
    """
    return sorted(told, key=_place)


def _place(fact: Fact) -> tuple[int, str, str]:
    match fact:
        case Job():
            return 0, fact.id, ""
        case Beat():
            return 1, fact.environment, fact.name
        case DependencyState():
            return 2, fact.instance_id, fact.name
