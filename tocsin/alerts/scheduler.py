"""
What runs: who leads looks at marks and listens to the bot, every process delivers.

All loops go on by themselves after whatever happens to the database or to Telegram. A wake-up is a
hint, the look every 250 ms is the truth.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, timedelta
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from tocsin import clock
from tocsin.alerts import beats, messages, outages, silence
from tocsin.alerts.channels import Channel, Message
from tocsin.alerts.console import Console
from tocsin.alerts.deliver import Deliverer
from tocsin.alerts.email import Email
from tocsin.alerts.limits import Limits
from tocsin.alerts.look import look
from tocsin.alerts.rules import Reason
from tocsin.alerts.telegram import Listener, Telegram
from tocsin.alerts.webhook import Webhook
from tocsin.contained import contained, note
from tocsin.failures import StoreAway, TableMissing, TocsinError
from tocsin.ids import uuid7
from tocsin.model import Severity
from tocsin.settings import Settings
from tocsin.store import Store, alerts, groups, leases, retention, upkeep

LEASE = "alerts"

_ROWS_AT_ONCE = 5000
_REST_S = 0.02
_SWEEP_EVERY_S = 3600
_HELD_UP_AT_MOST = 60
_SAID_FULL_EVERY_S = 86_400


def channels_of(settings: Settings) -> list[Channel]:
    """The channels that are set up; the console when there is no other."""
    channels: list[Channel] = []
    if settings.telegram_token and settings.telegram_chat_ids:
        channels.append(Telegram(settings))
    if settings.smtp_url and settings.email_to:
        channels.append(Email(settings))
    if settings.webhook_url:
        channels.append(Webhook(settings))
    return channels or [Console()]


@asynccontextmanager
async def running(
    settings: Settings,
    store: Store,
    *,
    channels: Sequence[Channel] | None = None,
    limits: Limits | None = None,
    behind_s: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[Alerts]:
    """
    Run the alerts while the context is open.

    Args:
        channels: instead of those that the settings name; they are the caller's to close.
        limits: instead of the usual patience.
        behind_s: how long what has come to this process may wait before it is stored.
    """
    own = channels_of(settings) if channels is None else []
    house = Alerts(settings, store, channels if channels is not None else own, limits or Limits(), behind_s)
    house.start()
    try:
        yield house
    finally:
        await house.stop()
        for channel in own:
            await channel.close()


class Alerts:
    """The running alerts of one process."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        channels: Sequence[Channel],
        limits: Limits,
        behind_s: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._store = store
        self._limits = limits
        self._channels = channels
        self._targets = [(channel.name, target) for channel in channels for target in channel.targets]
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid7()[-12:]}"
        self._beats = beats.Watch(settings, limits.missing_after_s)
        self._next_outages = 0.0  # monotonic
        self._silence = silence.Watch(settings, behind_s=behind_s)
        self._deliverer = Deliverer(settings, store, channels, limits, owner=self._owner)
        # A bot that nobody has told its chats yet still says to whom it talks.
        telegram = next((channel for channel in channels if isinstance(channel, Telegram)), None)
        self._answering = Telegram(settings) if settings.telegram_token and telegram is None else None
        ears = telegram or self._answering
        self._listener = Listener(settings, store, ears, limits, wake=self.wake) if ears else None
        self._listening: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._woken = asyncio.Event()
        self._due = asyncio.Event()
        self._unsettled = asyncio.Event()
        self._leads_until = 0.0  # by the monotonic clock of this process
        self._away_since: float | None = None
        self._said_full_at: float | None = None
        self._has_said_grace = False
        self._snapshot: dict[str, Any] = {"channels": [], "oldest_pending_at": None}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer = AsyncIOScheduler(
            timezone=UTC, job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": 30}
        )

    @property
    def is_leader(self) -> bool:
        """Whether this process may decide what rings just now."""
        return time.monotonic() < self._leads_until

    def wake(self) -> None:
        """Have a look now; from any thread."""
        if self._loop is None or self._loop.is_closed():
            return
        with contextlib.suppress(RuntimeError):  # the loop has just ended
            self._loop.call_soon_threadsafe(self._look_now)

    def _look_now(self) -> None:
        self._woken.set()
        self._due.set()

    def state(self) -> dict[str, Any]:
        """How the alerts stand, for health; a few seconds old at most."""
        oldest = self._snapshot["oldest_pending_at"]
        listener = self._listener
        return {
            "leader": self.is_leader,
            "leader_id": self._snapshot.get("leader_id"),
            "database": "away" if self._away_since is not None else "connected",
            "oldest_pending_s": None if oldest is None else max((clock.now() - oldest).total_seconds(), 0.0),
            "channels": self._snapshot["channels"],
            "bot": {"state": "off", "problem": None}
            if listener is None
            else {"state": listener.state, "problem": listener.problem},
        }

    # Start and stop.

    def start(self) -> None:
        """Start all loops; nothing is waited for."""
        self._loop = asyncio.get_running_loop()
        # It would warn of every round that is left out while the database is away.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        for name, once in (
            ("lease", self._keep_lease),
            ("look", self._look),
            ("deliver", self._deliver),
            ("settle", self._settle),
            ("snapshot", self._take_snapshot),
        ):
            self._tasks.append(self._keep(name, once))
        self._tasks.append(self._keep("listen", lambda: self._store.listen(self._look_now)))
        self._tasks.append(self._keep("tidy", self._tidy))
        self._tasks.append(self._keep("retain", self._retain))
        self._timer.add_job(
            self._timed, "interval", seconds=self._settings.check_interval_s, id="timed", next_run_time=clock.now()
        )
        self._timer.add_job(self._sweep, "interval", seconds=_SWEEP_EVERY_S, jitter=60, id="sweep")
        self._timer.start()

    async def stop(self) -> None:
        """End all loops within a few seconds, and give the lease back."""
        if self._timer.running:
            self._timer.shutdown(wait=False)
        await self._stop_listening()
        await self._deliverer.stop(self._limits.stop_s / 2)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        was_leader, self._leads_until = self.is_leader, 0.0
        if was_leader:
            with contextlib.suppress(StoreAway, TimeoutError):
                async with asyncio.timeout(self._limits.stop_s / 2):
                    await self._store.write(leases.release, LEASE, self._owner)
        if self._answering is not None:
            await self._answering.close()

    def _keep(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Run a loop in a task; if it dies, say so and begin again."""

        async def kept() -> None:
            while True:
                try:
                    await work()
                    return
                except StoreAway as problem:
                    self._database_is_away(problem)
                except Exception as problem:
                    note(f"alerts ({name})", problem)
                await asyncio.sleep(self._limits.away_s)

        return asyncio.create_task(kept(), name=f"tocsin-{name}")

    # The loops.

    async def _keep_lease(self) -> None:
        """Take the lease, or keep it; stop to lead before it can have run out."""
        while True:
            asked_at = time.monotonic()
            term = await self._store.write(leases.acquire, LEASE, self._owner, self._limits.lease_ttl_s)
            self._database_is_back()
            # A second less than the database counts, for what is under way when it ends.
            margin_s = min(1.0, self._limits.lease_ttl_s / 4)
            self._leads_until = 0.0 if term is None else asked_at + self._limits.lease_ttl_s - margin_s
            if term is None:
                await self._stop_listening()
            else:
                self._start_listening()
                self._woken.set()
            await asyncio.sleep(self._limits.lease_renew_s)

    async def _look(self) -> None:
        """From marks to alerts, while this process leads."""
        while True:
            await _wait(self._woken, self._limits.look_s)
            if not self.is_leader:
                await self._stop_listening()
                continue
            looked = await self._store.write(look, self._settings, self._limits, self._targets)
            if looked.rung or looked.edits:
                self._due.set()
            if looked.acted:
                self._unsettled.set()
            if looked.groups >= self._limits.marked_at_once:
                self._woken.set()

    async def _deliver(self) -> None:
        while True:
            await _wait(self._due, self._limits.look_s)
            await self._deliverer.look()

    async def _settle(self) -> None:
        """Let the rows of resolved groups follow, a chunk a transaction; no look waits for it."""
        while True:
            await _wait(self._unsettled, self._settings.check_interval_s)
            while self.is_leader:
                began = time.monotonic()
                if not await self._store.write(groups.settle_rows, _ROWS_AT_ONCE):
                    break
                # Half of the time belongs to others: who waits for SQLite's lock tries only now and then.
                await asyncio.sleep(max(time.monotonic() - began, _REST_S))

    async def _take_snapshot(self) -> None:
        """What health shows, read ahead: health must answer while the database is away."""
        while True:
            oldest = await self._store.read(alerts.oldest_pending)
            states = await self._store.read(alerts.states)
            leader = await self._store.read(leases.holder, LEASE)
            self._snapshot = {
                "oldest_pending_at": oldest,
                "leader_id": leader,
                "channels": [
                    {
                        "channel": state.channel,
                        "target": state.target,
                        "last_ok_at": state.last_ok_at,
                        "paused_until": state.paused_until,
                        "parked_reason": state.parked_reason,
                        "last_error": state.last_error,
                        "last_error_at": state.last_error_at,
                    }
                    for state in states
                    if (state.channel, state.target) in self._targets
                ],
            }
            await asyncio.sleep(self._limits.snapshot_s)

    async def _tidy(self) -> None:
        """Ask refusing targets again after a start, and let go of what waits for those not set up any more."""
        await self._store.write(alerts.unpark, [channel.name for channel in self._channels])
        while True:
            if self.is_leader:
                before = clock.now() - timedelta(seconds=self._limits.forget_s)
                await self._store.write(alerts.give_up, self._targets, before)
            await asyncio.sleep(self._limits.forget_s / 4)

    async def _timed(self) -> None:
        """What waits for time. Digest and reminders find their place beside it."""
        for work in (self._end_mutes, self._watch_beats, self._watch_silence, self._end_outages):
            if not self.is_leader:
                return
            try:
                await work()
            except asyncio.CancelledError:  # the timer has been stopped, and its log would call that a failure
                return
            except StoreAway as problem:
                self._database_is_away(problem)
                return
            except Exception as problem:
                note("alerts (timed)", problem)

    async def _end_mutes(self) -> None:
        if not await self._store.read(groups.is_work_waiting, clock.now()):
            return
        self._unsettled.set()
        if await self._store.write(groups.expire_mutes, clock.now()):
            self._woken.set()

    async def _end_outages(self) -> None:
        if time.monotonic() < self._next_outages:
            return
        self._next_outages = time.monotonic() + self._limits.outages_every_s
        if await outages.look(self._store, self._settings):
            self._woken.set()

    async def _watch_silence(self) -> None:
        if await self._silence.look(self._store):
            self._woken.set()

    async def _watch_beats(self) -> None:
        if await self._beats.look(self._store):
            self._woken.set()

    async def _sweep(self) -> None:
        """Remove what would grow for ever and nobody needs, a little at a time."""
        try:
            removed = 1
            while self.is_leader and removed:
                removed = await self._store.write(upkeep.sweep, clock.now())
        except StoreAway as problem:
            self._database_is_away(problem)
        except Exception as problem:
            note("alerts (sweep)", problem)

    async def _retain(self) -> None:
        """Bound what errors take, while this process leads; how large the database is, is looked at more often."""
        await asyncio.sleep(self._limits.prune_after_s)
        next_run = 0.0
        while True:
            if self.is_leader and time.monotonic() >= next_run:
                next_run = time.monotonic() + self._limits.prune_every_s
                await self._prune(await self._tasks_of_now())
            elif self.is_leader:
                await self._prune([retention.Task.SIZE])
            await asyncio.sleep(self._limits.prune_size_every_s)

    async def _tasks_of_now(self) -> list[retention.Task]:
        """All, but for errors that were here before the first server came: these have a day of grace."""
        begins = await self._store.write(retention.begins, self._policy)
        if begins <= clock.now():
            return [*retention.Task]
        if not self._has_said_grace:
            self._has_said_grace = True
            days = self._settings.retention_days
            _say(
                f"tocsin: there are errors older than TOCSIN_RETENTION_DAYS={days}; from {begins:%Y-%m-%d %H:%M} UTC"
                " on they are removed. Set it higher to keep them; `tocsin prune --dry-run` counts them"
            )
        return [task for task in retention.Task if task not in retention.ERRORS or task == retention.Task.SIZE]

    async def _prune(self, tasks: Sequence[retention.Task]) -> None:
        run = retention.Run(self._policy, tasks)
        held_up = 0
        while self.is_leader and run.task is not None and held_up < _HELD_UP_AT_MOST:
            began = time.monotonic()
            chunk = await self._store.write(run.chunk)
            run.note(chunk)
            held_up = held_up + 1 if chunk.is_held_up else 0
            # As in `_settle`: half of the time belongs to others.
            await asyncio.sleep(1.0 if chunk.is_held_up else max(time.monotonic() - began, retention.REST_S))
        if removed := run.removed[retention.Task.SIZE]:
            self._say_full(removed)

    @property
    def _policy(self) -> retention.Policy:
        return retention.Policy(days=self._settings.retention_days, max_db_mb=self._settings.max_db_mb)

    def _say_full(self, removed: int) -> None:
        if self._said_full_at is None or time.monotonic() - self._said_full_at > _SAID_FULL_EVERY_S:
            self._said_full_at = time.monotonic()
            limit = self._settings.max_db_mb
            _say(f"tocsin: the database is as large as TOCSIN_MAX_DB_MB={limit} allows: {removed} old errors made room")

    def _start_listening(self) -> None:
        if self._listener is not None and (self._listening is None or self._listening.done()):
            self._listening = self._keep("bot", self._listener.run)

    async def _stop_listening(self) -> None:
        task, self._listening = self._listening, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # What is said of the database: once when it goes, once when it is back.

    def _database_is_away(self, problem: StoreAway) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            state = "has not all its tables" if isinstance(problem, TableMissing) else "is away"
            _say(f"tocsin: the database {state}, alerts wait for it: {problem}")

    def _database_is_back(self) -> None:
        if self._away_since is not None:
            _say(f"tocsin: the database is back after {time.monotonic() - self._away_since:.0f} s")
            self._away_since = None


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    event.clear()


def _say(text: str) -> None:
    with contained("writing to stderr"):
        sys.stderr.write(text.encode("ascii", "backslashreplace").decode() + "\n")  # at once: others write there too
        sys.stderr.flush()


async def send_test(
    settings: Settings, store: Store, *, channels: Sequence[Channel] | None = None
) -> list[tuple[str, str, str | None]]:
    """
    Say a test on every channel, at once and past the outbox.

    Returns:
        Channel, target, and what went wrong or None, for each target.
    """
    own = channels_of(settings) if channels is None else []
    results: list[tuple[str, str, str | None]] = []
    message = test_message(settings)
    moved: dict[tuple[str, str], str] = {}
    with contextlib.suppress(StoreAway):
        moved = {
            (state.channel, state.target): state.moved_to for state in await store.read(alerts.states) if state.moved_to
        }
    for channel in own if channels is None else channels:
        for target in channel.targets:
            try:
                await channel.send(moved.get((channel.name, target), target), message)
                results.append((channel.name, target, None))
            except TocsinError as problem:
                results.append((channel.name, target, str(problem)))
    for channel in own:
        await channel.close()
    return results


def test_message(settings: Settings) -> Message:
    """The message that says that the way works."""
    alert = alerts.Alert(
        id=uuid7(),
        created_at=clock.now(),
        reason=Reason.TEST,
        group_id=None,
        severity=Severity.LOW,
        service=None,
        environment=None,
        details={},
    )
    return replace(messages.render(alerts.Subject(alert=alert, groups=[]), settings, clock.now()), is_silent=False)
