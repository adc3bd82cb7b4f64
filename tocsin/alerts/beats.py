"""
Cron jobs that are missing or fail: an error when that begins, a recovery when they run again.

What is missing is decided only by who has led for a while with the database there: signs of life that could
not be told during an outage are on their way then.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from sqlalchemy import Connection

from tocsin.alerts import messages
from tocsin.alerts.conditions import begun
from tocsin.beats import State
from tocsin.failures import TocsinError
from tocsin.lifecycle import Status
from tocsin.model import Batch, Recovery, Severity
from tocsin.settings import Settings
from tocsin.spans import text_of
from tocsin.store import Store, beats, errors
from tocsin.store.beats import KeptBeat
from tocsin.store.leases import database_now

_BREAK_S: Final = 10.0
"""So long without a look there was an outage, or somebody else has led."""


class Deed(StrEnum):
    """What is to be done about a beat."""

    TELL = "tell"
    END = "end"  # it is well again


class _Changed(TocsinError):
    """It is not any more as it was read: nothing of what was about to be told is stored."""


def decide(beat: KeptBeat, now: datetime, *, may_miss: bool) -> Deed | None:
    """
    Whether to tell of a beat, or that it is well again.

    One that goes on failing is told each time, one that goes on missing is not: only when a person has resolved
    it, and it has not come within its time since then.

    Args:
        may_miss: whether its sign of life cannot be on its way any more.
    """
    state = beat.state(now)
    if state == State.MISSING and not may_miss:
        return None
    if beat.error_id is None or beat.told_at is None:
        return Deed.TELL if state != State.OK else None
    if state == State.OK:
        return Deed.END
    if beat.last_at > beat.told_at or state != beat.told:
        return Deed.TELL
    if state == State.FAILED:
        return None
    if beat.group_status is None:  # retention has taken the error away
        return Deed.TELL
    due_s = beat.every_s + beat.grace_s
    since = beat.group_resolved_at
    is_due = since is not None and now > since + timedelta(seconds=due_s)
    return Deed.TELL if beat.group_status == Status.RESOLVED and is_due else None


class Watch:
    """
    Looks at the beats, for who leads; `look` is called again and again.

    Args:
        patience_s: how long after a start, an outage or a change of the leader nothing counts as missing.
        break_s: a pause between two looks that means one of these.
    """

    def __init__(self, settings: Settings, patience_s: float, break_s: float = _BREAK_S) -> None:
        self._settings = settings
        self._patience_s = patience_s
        self._break_s = max(break_s, 3 * settings.check_interval_s)
        self._last_look = float("-inf")  # monotonic
        self._steady_since = 0.0

    async def look(self, store: Store) -> bool:
        """Tell what is to be told; whether there was anything. Raises `StoreAway`."""
        began = time.monotonic()
        if began - self._last_look > self._break_s:
            self._steady_since = began
        self._last_look = float("-inf")  # should the database be away now
        may_miss = began - self._steady_since >= self._patience_s
        found = await store.read(_worth_a_deed, may_miss)
        has_told = False
        for beat, deed in found:
            work = _tell if deed == Deed.TELL else _end
            try:
                await store.write(work, beat, self._settings)
                has_told = True
            except _Changed:  # the next look sees how it is now
                pass
        self._last_look = time.monotonic()
        return has_told


def _worth_a_deed(connection: Connection, may_miss: bool) -> list[tuple[KeptBeat, Deed]]:
    now = database_now(connection)
    found = [(beat, decide(beat, now, may_miss=may_miss)) for beat in beats.overdue(connection, now)]
    return [(beat, deed) for beat, deed in found if deed is not None]


def _tell(connection: Connection, beat: KeptBeat, settings: Settings) -> None:
    """The error, and which one it is, in one transaction: two leaders at once tell once."""
    now = database_now(connection)
    state = beat.state(now)
    record = begun(
        f"beat:{beat.name}",
        f"beat {beat.name} is missing or has failed",  # the title stays while it is now the one, now the other
        now=now,
        severity=Severity.HIGH,
        service=beat.service or "cron",
        environment=beat.environment,
        message=_missing(beat, settings, now) if state == State.MISSING else _failed(beat),
        context={
            "beat": beat.name,
            "every": text_of(beat.every_s),
            "grace": text_of(beat.grace_s),
            "last": _iso(beat.last_at),
            "last_ok": _iso(beat.last_ok_at),
            "due": _iso(beat.due_at),
        },
    )
    errors.write_batch(connection, Batch(entries=[record]), now)
    if not beats.mark_told(connection, beat, record.id, state):
        raise _Changed


def _end(connection: Connection, beat: KeptBeat, settings: Settings) -> None:
    now = database_now(connection)
    took = f", took {_span(beat.took_s)}" if beat.took_s is not None else ""
    said = f"{beat.name} has run again at {messages.when(beat.last_at, settings, now)}{took}"
    over = Recovery(error_id=beat.error_id or "", timestamp=now, message=said)
    errors.write_batch(connection, Batch(entries=[over]), now)
    if not beats.mark_told(connection, beat, None, None):
        raise _Changed


def _missing(beat: KeptBeat, settings: Settings, now: datetime) -> str:
    due, last = messages.when(beat.due_at, settings, now), messages.when(beat.last_at, settings, now)
    return (
        f"{beat.name} is missing: it was due by {due}, and was last heard of at {last} (every {text_of(beat.every_s)})"
    )


def _failed(beat: KeptBeat) -> str:
    after = f" after {_span(beat.took_s)}" if beat.took_s is not None else ""
    return f"{beat.name} has failed{after}" + (f": {beat.message}" if beat.message else "")


def _span(seconds: float) -> str:
    """How long a run took: ``42 s``."""
    return f"{seconds:.1f} s" if seconds < 10 else messages.age(timedelta(seconds=seconds))


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")
