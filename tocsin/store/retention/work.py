"""What a transaction of a run knows, and how much it may do."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, literal, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from tocsin.store.retention.policy import OLD_GROUP_AGE, Policy
from tocsin.store.schema import Id, UtcTime, counters

BUDGET_S = 0.02
"""A transaction looks for more to do only while it is younger than this."""

REST_S = 0.02
"""The least pause between two transactions."""

GROUPS_AT_ONCE = 50
"""So many groups, or alerts, are looked at in one statement."""

Place = tuple[datetime, str]
"""Of a row: its time and its id, in which order rows go."""

Done = tuple[int, Any]
"""Rows removed, and where to go on; None: there is nothing left."""


class Pace:
    """
    How many rows a statement may take: as many as it does within a quarter of a budget.

    It cannot be stopped halfway, and what a row costs differs a hundred times between disks and tables.
    """

    FEWEST = 25
    MOST = 400

    def __init__(self) -> None:
        self.rows = self.FEWEST

    def took(self, rows: int, seconds: float) -> None:
        """Learn from a statement that took so many rows."""
        if seconds > BUDGET_S / 2:
            self.rows = max(self.rows // 2, self.FEWEST)
        elif rows == self.rows and seconds < BUDGET_S / 8:
            self.rows = min(self.rows * 2, self.MOST)


class Work:
    """What a transaction has to know, and how long it may go on."""

    def __init__(self, connection: Connection, policy: Policy, now: datetime, at: Any, pace: Pace) -> None:
        self.connection = connection
        self.policy = policy
        self.now = now
        self.at = at
        self.pace = pace
        self._until = time.monotonic() + BUDGET_S
        self._has_begun = False

    def has_time(self) -> bool:
        """Whether to do more; the first time always, so that a run ends on the slowest machine too."""
        is_first, self._has_begun = not self._has_begun, True
        return is_first or time.monotonic() < self._until

    @property
    def oldest(self) -> datetime:
        """What happened before this goes."""
        return self.now - self.policy.age

    @property
    def history(self) -> datetime:
        """What of groups and alerts is older than this goes."""
        return self.now - max(OLD_GROUP_AGE, self.policy.age)


def place(at: Place) -> ColumnElement[Any]:
    """A place as SQL compares it."""
    return tuple_(literal(at[0], UtcTime), literal(at[1], Id))


def remember(connection: Connection, name: str, value: int) -> None:
    """Keep a number for the next run."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(counters).values(name=name, value=value)
    connection.execute(
        statement.on_conflict_do_update(index_elements=[counters.c.name], set_={"value": statement.excluded.value})
    )
