"""
Processes that fall silent without a goodbye: an error for a service when that begins, a recovery when it is over.

Every row says how often it is made anew, by the process itself or by a server beside it. What is missing is
decided only by who has led for that long with the database there: until then nobody could say anything.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from sqlalchemy import Connection

from tocsin.alerts import messages
from tocsin.alerts.conditions import begun
from tocsin.ids import uuid7
from tocsin.model import Batch, ErrorRecord, Recovery, Severity
from tocsin.settings import Settings
from tocsin.store import Store, errors, silence
from tocsin.store.leases import database_now
from tocsin.store.silence import GIVEN_UP_AFTER, Quiet
from tocsin.text import bytes_in_words, clean, one_line

MISSED: Final = 2.5
"""So many signs of life, one after the other, must be missing: one may come late, and one get lost."""

_BREAK_S: Final = 10.0
"""So long without a look there was an outage, or somebody else has led, or the machine was asleep."""


class Deed(StrEnum):
    """What is to be done about a process of which nothing is heard."""

    TELL = "tell"
    END = "end"  #          it is heard of again, or has ended
    GIVE_UP = "give up"  #  nothing is expected of it any more, and nobody is told


def decide(one: Quiet, now: datetime, *, silent_after_s: float, steady_s: float) -> Deed | None:
    """
    What to do about a process.

    One that was asked to stop and is not heard of any more has done what it was asked for.

    Args:
        steady_s: for how long it could have been heard of without a break.
    """
    quiet_s = (now - one.last_seen).total_seconds()
    patience_s = max(silent_after_s, MISSED * (one.beats_every_s or 0.0))
    if one.silent_error_id is not None and (one.ended_at is not None or quiet_s < patience_s):
        return Deed.END
    if one.ended_at is not None or steady_s < patience_s:
        return None
    if quiet_s >= GIVEN_UP_AFTER.total_seconds():
        return Deed.GIVE_UP
    if one.silent_error_id is not None or quiet_s < patience_s or not one.beats_every_s:
        return None
    return Deed.GIVE_UP if one.is_shutting_down else Deed.TELL


class Watch:
    """
    Looks at the processes, for who leads; `look` is called again and again.

    Args:
        break_s: a pause between two looks that means that somebody could not be heard.
        steady_s: for how long all could be heard of already.
        behind_s: how long what has come may wait here before it is stored; after an outage that is much.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        break_s: float = _BREAK_S,
        steady_s: float = 0.0,
        behind_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._settings = settings
        self._behind_s = behind_s
        self._break_s = max(break_s, 3 * settings.check_interval_s)
        self._last_look = time.monotonic()
        self._steady_since: float | None = self._last_look - steady_s
        self._ahead_s: float | None = None  # of the database's clock, which goes on while this machine sleeps

    async def look(self, store: Store) -> bool:
        """Tell what is to be told; whether there was anything. Raises `StoreAway`."""
        since, self._steady_since = self._steady_since, None  # should the database be away now
        now, found = await store.read(_quiet, self._settings)
        self._steady_since, steady_s = self._steady(since, now)
        silent_after_s = self._settings.silent_after_s
        if not any(decide(one, now, silent_after_s=silent_after_s, steady_s=steady_s) for one in found):
            return False
        since, self._steady_since = self._steady_since, None
        has_told = await store.write(_settle, self._settings, steady_s)
        self._steady_since = since
        return has_told

    def _steady(self, since: float | None, now: datetime) -> tuple[float, float]:
        """Since when all could be heard of, and for how long that is."""
        moment = time.monotonic()
        ahead_s = now.timestamp() - moment
        jump_s = 0.0 if self._ahead_s is None else abs(ahead_s - self._ahead_s)
        is_broken = max(moment - self._last_look, jump_s, self._behind_s()) > self._break_s
        self._last_look, self._ahead_s = moment, ahead_s
        since = moment if since is None or is_broken else since
        return since, moment - since


def _quiet(connection: Connection, settings: Settings) -> tuple[datetime, list[Quiet]]:
    now = database_now(connection)
    return now, silence.quiet(connection, now, timedelta(seconds=settings.silent_after_s))


def _worth_a_deed(connection: Connection, settings: Settings, steady_s: float) -> list[tuple[Quiet, Deed]]:
    now = database_now(connection)
    after = timedelta(seconds=settings.silent_after_s)
    found = []
    for one in silence.quiet(connection, now, after):
        deed = decide(one, now, silent_after_s=settings.silent_after_s, steady_s=steady_s)
        if deed == Deed.TELL and silence.is_replaced(connection, one):
            deed = Deed.GIVE_UP
        if deed is not None:
            found.append((one, deed))
    return found


def _settle(connection: Connection, settings: Settings, steady_s: float) -> bool:
    """All of it in one transaction; what two leaders tell at once has one id, and counts once."""
    now = database_now(connection)
    found = _worth_a_deed(connection, settings, steady_s)
    telling = [one for one, deed in found if deed == Deed.TELL]
    ending = [one for one, deed in found if deed == Deed.END]
    told = {one.id: _told(connection, one, settings, now) for one in telling}
    silent = {
        one.id: one.place
        for one in silence.quiet(connection, now, timedelta(seconds=settings.silent_after_s))
        if one.silent_error_id is not None
    }
    still = {place for key, place in silent.items() if key not in {one.id for one in ending}}
    still |= {one.place for one in telling}
    over = {one.place: _over(one, now) for one in ending if one.place not in still}
    errors.write_batch(connection, Batch(entries=[*told.values(), *over.values()]), now)
    for one in telling:
        silence.note_told(connection, one, told[one.id].id)
    silence.note_over(connection, [one.id for one in ending])
    for one, deed in found:
        if deed == Deed.GIVE_UP:
            silence.give_up(connection, one)
    return bool(told or over)


def _told(connection: Connection, one: Quiet, settings: Settings, now: datetime) -> ErrorRecord:
    service = one_line(clean(one.service, 200))
    record = begun(
        "silence",
        f"{service} is silent",
        now=now,
        severity=Severity.CRITICAL,
        service=one.service,
        environment=one.environment,
        message=_said(connection, one, service, settings, now),
        context={
            "host": one.host,
            "pid": one.pid,
            "release": one.release,
            "started": one.started_at.isoformat(timespec="seconds"),
            "last_seen": one.last_seen.isoformat(timespec="seconds"),
            "memory_bytes": one.memory_bytes,
            "memory_limit_bytes": one.memory_limit_bytes,
            "active_requests": one.active_requests,
            "loop_lag_ms": one.loop_lag_ms,
        },
        instance_id=one.id,
    )
    which = int.from_bytes(hashlib.sha256(f"{one.id}\0{one.last_seen.isoformat()}".encode()).digest()[:8])
    record.id = uuid7(int(one.last_seen.timestamp() * 1e6) * 1000, which)
    return record


def _said(connection: Connection, one: Quiet, service: str, settings: Settings, now: datetime) -> str:
    since = messages.when(one.last_seen, settings, now)
    said = f"{service} is silent: pid {one.pid} on {_host(one)} has said nothing since {since}"
    had = []
    if one.memory_bytes is not None:
        limit = f" of {bytes_in_words(one.memory_limit_bytes)}" if one.memory_limit_bytes else ""
        had.append(f"{bytes_in_words(one.memory_bytes)}{limit} of memory")
    if one.active_requests:
        had.append("1 request under way" if one.active_requests == 1 else f"{one.active_requests} requests under way")
    if one.loop_lag_ms:
        had.append(f"a loop that was {one.loop_lag_ms} ms late")
    said += f", when it had {', '.join(had)}" if had else ""
    others = silence.count_alive(connection, one.place, now - timedelta(seconds=settings.silent_after_s))
    return said + (f"; {others} other{' answers' if others == 1 else 's answer'}" if others else "; no other answers")


def _over(one: Quiet, now: datetime) -> Recovery:
    who = f"pid {one.pid} on {_host(one)}"
    said = f"{who} has ended ({one.ended_how or 'nobody knows how'})" if one.ended_at else f"{who} is heard of again"
    return Recovery(error_id=one.silent_error_id or "", timestamp=now, message=said)


def _host(one: Quiet) -> str:
    return one_line(clean(one.host, 100))
